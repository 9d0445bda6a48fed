"""From a job spec to its results, in one process: load the model, build the task, search, select, evaluate.

Here, and for maps in `acdc.mapping`, specs (pydantic) meet the engine (plain arguments).
"""

from __future__ import annotations

import dataclasses
import functools
import time

import numpy as np
import torch

from acdc.challenging import challenge
from acdc.circuit import Circuit, Provenance
from acdc.discovery.problem import Found, Problem
from acdc.discovery.rehearsal import Rehearsal, rehearse_acdc
from acdc.errors import TaskError
from acdc.evaluation.editing import complement
from acdc.evaluation.judging import Judgement, judge
from acdc.evaluation.memory import Memory
from acdc.evaluation.random_circuits import random_circuits
from acdc.feasible import edges_asked_for, require_feasible
from acdc.from_spec import (
    held_out_under,
    job_of,
    kept_of,
    provenance_of,
    recorded_parameters,
    require_the_same_graph,
    require_the_same_weights,
    search_of,
    setting_of,
)
from acdc.graph import Graph
from acdc.mapping import make_map
from acdc.metrics import METRICS
from acdc.models.cache import ModelCache
from acdc.models.loading import Loaded
from acdc.models.transformer import as_found
from acdc.on_circuits import kept_of_hypothesis, kept_of_stored, require_whole_edges
from acdc.plan import evaluation_plan
from acdc.progress import Progress
from acdc.result import Result
from acdc.selection import Kept
from acdc.setting import Setting, top_tokens
from acdc.spec import (
    Acdc,
    ChallengeSpec,
    DiscoverSpec,
    EvaluateSpec,
    JobSpec,
    OnCircuit,
    PatchSpec,
    PromptsSpec,
    Selection,
    TrySpec,
    reference_of,
)
from acdc.stages import Stages
from acdc.tasks.encoding import Encoder
from acdc.tasks.prompts import Tokenizer

PARTLY = "{} of {} edges have a score: circuits of any size are cut from these, and areas and k* are of these alone"
FEWER_SCORED = "selection.size asks for {} edges and {} have a score: all of these are taken"
NO_CURVE = "no curve: what edges cost while the search decided on them puts them in no order"


def run_job(spec: JobSpec, *, models: ModelCache, progress: Progress, source: Circuit | None = None) -> list[Result]:
    """Do what `spec` asks. source: the stored circuit that a job on one names.

    Raises AcdcError; Cancelled when `progress` says so.
    """
    if isinstance(spec, OnCircuit):
        assert source is not None
        asked: PromptsSpec = job_of(source)
    else:
        asked = spec
    compute = asked.compute
    loaded = models.load(reference_of(asked.model), dtype=compute.dtype, device=compute.device, progress=progress)
    return run_on(loaded, spec, progress, source)


def run_on(loaded: Loaded, spec: JobSpec, progress: Progress, source: Circuit | None = None) -> list[Result]:
    """The same with the model at hand. It is left exactly as it was found."""
    with torch.inference_mode(False), as_found(loaded.model):
        match spec:
            case DiscoverSpec():
                return discover(loaded, spec, progress)
            case EvaluateSpec():
                return [evaluate(loaded, spec, progress, source)]
            case PatchSpec():
                return [Result("map", patch_map=make_map(loaded, spec, progress))]
            case TrySpec():
                assert source is not None
                return [try_prompt(loaded, spec, progress, source)]
            case ChallengeSpec():
                assert source is not None
                return challenge(loaded, spec, progress, source)


# -- discover ----------------------------------------------------------------------------------------------------------


def discover(loaded: Loaded, spec: DiscoverSpec, progress: Progress) -> list[Result]:
    """Search, then judge each circuit found."""
    begin = time.monotonic()
    stages = Stages(progress)
    setting = setting_of(loaded, spec, progress)
    require_feasible(spec, setting.t.graph)
    recorded = recorded_parameters(spec)
    objective = " + ".join(spec.objectives)
    results = []
    searched = search_of(setting, spec, stages.search)
    search_s = time.monotonic() - begin
    for found in searched:
        begin = time.monotonic()
        kept = kept_of(setting.t.graph, found, spec.selection)
        judgement = _judge(setting, spec, found, kept, progress, stages.memory)
        wall_time_s = search_s + time.monotonic() - begin
        method = found.label or spec.method.name
        notes = [*_emptiness(judgement.kept), *judgement.notes, *_said_of(setting.t.graph, found, spec.selection)]
        provenance = provenance_of(setting, spec, method, recorded, objective, wall_time_s, found, notes)
        results.append(Result(found.key, _circuit(setting, found, judgement, provenance)))
    return results


def _said_of(graph: Graph, found: Found, selection: Selection) -> list[str]:
    """What a reader of the curve and of the circuit's size has to know of the scores behind them."""
    if not found.is_ranking:
        return [NO_CURVE]
    n_scored = int((found.tested & graph.legal).sum())
    said = [] if n_scored == graph.n_edges else [PARTLY.format(f"{n_scored:,}", f"{graph.n_edges:,}")]
    if (asked_for := edges_asked_for(selection, graph.n_edges) or 0) > n_scored:
        said.append(FEWER_SCORED.format(f"{asked_for:,}", f"{n_scored:,}"))
    return said


def rehearse(spec: DiscoverSpec, *, models: ModelCache, progress: Progress) -> Rehearsal:
    """What an acdc search will take here."""
    assert isinstance(spec.method, Acdc)
    compute, method = spec.compute, spec.method
    loaded = models.load(reference_of(spec.model), dtype=compute.dtype, device=compute.device, progress=progress)
    with torch.inference_mode(False), as_found(loaded.model):
        setting = setting_of(loaded, spec, progress)
        problem = Problem(setting.t, setting.search.prompts, METRICS[spec.objectives[0]], compute.memory_bytes)
        return rehearse_acdc(
            problem,
            progress,
            thresholds=method.thresholds,
            rule=method.rule,
            edges=method.edges,
            warm_start=method.warm_start,
            stages=method.stages,
            validation=method.validation,
        )


def _judge(
    setting: Setting,
    spec: DiscoverSpec | EvaluateSpec,
    found: Found,
    kept: Kept | None,
    progress: Progress,
    memory: Memory,
) -> Judgement:
    plan = evaluation_plan(spec)
    if not found.is_ranking:
        plan = dataclasses.replace(plan, rules=())
    others = {
        other.title: functools.partial(held_out_under, setting, other, spec.metric) for other in spec.other_ablations
    }
    return judge(
        setting.t.graph,
        found.scores,
        found.tested,
        search=setting.search.split(setting.t, spec.metric),
        held_out=setting.held_out.split(setting.t, spec.metric),
        plan=plan,
        progress=progress,
        kept=kept,
        per_example=found.per_example,
        why_no_examples=found.why_no_examples,
        elsewhere=others,
        memory=memory,
    )


def _circuit(setting: Setting, found: Found, judgement: Judgement, provenance: Provenance) -> Circuit:
    return Circuit(
        graph=setting.t.graph,
        scores=found.scores,
        tested=found.tested,
        kept=judgement.kept.mask,
        selected=judgement.kept.selected,
        provenance=provenance,
        report=judgement.report,
        inclusion=judgement.inclusion,
    )


# -- evaluate ----------------------------------------------------------------------------------------------------------


def evaluate(loaded: Loaded, spec: EvaluateSpec, progress: Progress, source: Circuit | None) -> Result:
    """Judge a stored circuit, as it is, cut to another size or edited; or a hypothesis."""
    begin = time.monotonic()
    setting = setting_of(loaded, spec, progress, circuit=source)
    graph = setting.t.graph
    if source is not None:
        require_the_same_graph(loaded, graph, source)
    require_feasible(spec, graph)
    kept, idle = _kept_to_evaluate(graph, spec, source)
    found = _found_before(graph, source)
    judgement = _judge(setting, spec, found, kept, progress, Stages(progress).memory)
    choices = source.provenance.choices if source is not None else None
    provenance = provenance_of(
        setting,
        spec,
        choices.method if choices else "hypothesis",
        dict(choices.parameters) if choices else {},
        choices.objective if choices else spec.metric,
        time.monotonic() - begin,
        None,
        [*_notes(loaded, source), *idle, *_emptiness(judgement.kept), *judgement.notes],
    )
    return Result("evaluation", _circuit(setting, found, judgement, provenance))


def _found_before(graph: Graph, source: Circuit | None) -> Found:
    """What the search of a stored circuit found; a hypothesis has no scores."""
    if source is None:
        return Found(np.zeros(graph.legal.shape, np.float32), np.zeros_like(graph.legal))
    why = "an evaluation does not search again; see the report of the search"
    return Found(source.scores.copy(), source.tested.copy(), why_no_examples=why)


def _kept_to_evaluate(graph: Graph, spec: EvaluateSpec, source: Circuit | None) -> tuple[Kept | None, list[str]]:
    """The circuit to judge, None where its size is to be found first, and notes on its edit."""
    return kept_of_hypothesis(graph, spec) if source is None else kept_of_stored(source, spec)


def _emptiness(kept: Kept) -> list[str]:
    said = kept.selected.emptiness
    return [] if said is None else [said]


def _notes(loaded: Loaded, source: Circuit | None) -> list[str]:
    if source is None or source.provenance.model.fingerprint == loaded.card.fingerprint:
        return []
    return [f"evaluated on other weights than it was found on: found on {source.provenance.model.reference}"]


# -- try ---------------------------------------------------------------------------------------------------------------


def try_prompt(loaded: Loaded, spec: TrySpec, progress: Progress, source: Circuit) -> Result:
    """The likeliest next tokens of the model, the circuit, its complement and a matched random circuit."""
    require_whole_edges(source)
    asked = job_of(source)
    require_the_same_weights(loaded, source)
    _require_equal_lengths(loaded.tokenizer, spec)
    setting = setting_of(loaded, asked, progress, prompts_for_mean=spec.corrupt is None, circuit=source)
    graph = setting.t.graph
    require_the_same_graph(loaded, graph, source)
    rng = np.random.default_rng(asked.seed)
    masks = {"model": graph.legal, "circuit": source.kept, "complement": complement(graph, source.kept)}
    if source.kept.any():
        masks["random"] = random_circuits(graph, source.kept, 1, rng)[0]
    progress.phase("try", len(masks))
    columns = top_tokens(setting, loaded.tokenizer, spec.prompt, spec.corrupt, list(masks.values()), spec.top)
    progress.step(len(masks))
    ablation = "mean over the searched prompts" if spec.corrupt is None else "resample"
    data = {"prompt": spec.prompt, "corrupt": spec.corrupt, "ablation": ablation, "edges": source.n_edges}
    return Result("try", data={**data, "columns": dict(zip(masks, columns, strict=True))})


def _require_equal_lengths(tokenizer: Tokenizer, spec: TrySpec) -> None:
    """Before the prompts of the task are made and run. Raises TaskError."""
    if spec.corrupt is None:
        return
    clean, corrupt = (len(Encoder(tokenizer).prompt(text)) for text in (spec.prompt, spec.corrupt))
    if clean != corrupt:
        raise TaskError(f"the prompt has {clean} tokens and the corrupt one {corrupt}: make them equal")
