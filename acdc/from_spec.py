"""What specs (pydantic) ask, in the engine's plain arguments: the parts of a job that more than one kind of job has."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from acdc.circuit import Choices, Circuit, Provenance
from acdc.discovery import METHODS
from acdc.discovery.ensemble import Member
from acdc.discovery.problem import Found, Problem, add_scores
from acdc.errors import GraphMismatch, SpecError, TaskError
from acdc.evaluation.measuring import Split
from acdc.graph import Graph
from acdc.metrics import METRICS
from acdc.models.loading import Loaded
from acdc.progress import Progress
from acdc.prompting import make_prompts
from acdc.provenance import record_run, task_card
from acdc.selection import Kept, rank, size_of
from acdc.setting import Setting, make_setting
from acdc.spec import Ablation, DiscoverSpec, Ensemble, MeasuredSpec, MethodSpec, Selection, parse_job
from acdc.tasks.prompts import PromptSet


def setting_of(
    loaded: Loaded,
    spec: MeasuredSpec,
    progress: Progress,
    *,
    prompts_for_mean: bool = False,
    change: Callable[[PromptSet], PromptSet] | None = None,
    circuit: Circuit | None = None,
) -> Setting:
    """The model with the task's prompts on it. prompts_for_mean: cut edges carry the mean over them, whatever the spec
    says. change: of the prompts, before they are run. circuit: a stored one that is to be measured on them."""
    prompt_set = make_prompts(loaded.tokenizer, spec, METRICS[spec.metric], progress)
    return make_setting(
        loaded,
        prompt_set if change is None else change(prompt_set),
        positions=_positions_of(spec, circuit),
        split_position=spec.split_position,
        ablation="mean" if prompts_for_mean else spec.ablation.kind,
        mean_per_role=spec.ablation.mean_over == "role" and not prompts_for_mean,
        batch_tokens=spec.compute.batch_tokens,
        memory_bytes=spec.compute.memory_bytes,
        progress=progress,
        other_ablations=bool(spec.other_ablations),
    )


def _positions_of(spec: MeasuredSpec, circuit: Circuit | None) -> str | Sequence[str]:
    """What edges are split by: roles asked for are those of the circuit, whatever others the prompts have."""
    if spec.positions == "roles" and circuit is not None and circuit.graph.shape.roles:
        return circuit.graph.shape.roles
    return spec.positions


def search_of(setting: Setting, spec: DiscoverSpec, progress: Progress) -> Sequence[Found]:
    """One search, or one for each objective and the sum of their scores."""
    arguments = _arguments(spec.method)
    groups = tuple(pair.group for pair in setting.search.pairs)
    found = []
    for objective in spec.objectives:
        metric, memory = METRICS[objective], spec.compute.memory_bytes
        problem = Problem(setting.t, setting.search.prompts, metric, memory, keep_examples=True, groups=groups)
        found.append(METHODS[spec.method.name](problem, progress, **arguments))
    return found[0] if len(found) == 1 else [add_scores([part for (part,) in found])]


def kept_of(graph: Graph, found: Found, selection: Selection) -> Kept | None:
    """The circuit that the spec or the search decides on; None leaves it to k*."""
    if selection.size is not None and found.is_ranking:
        n = selection.size if isinstance(selection.size, int) else size_of(selection.size, graph.n_edges)
        if n > graph.n_edges:
            raise TaskError(f"selection.size asks for {n:,} edges and this graph has {graph.n_edges:,}")
        return rank(graph, found.scores, found.tested, selection.rule or "signed").select(n)
    return None if found.kept is None else Kept.of(graph, found.kept, "decisions")


def _arguments(method: MethodSpec) -> dict[str, Any]:
    """What the method's function is called with."""
    arguments = method.model_dump(exclude={"name", "objective"})
    if isinstance(method, Ensemble):
        arguments["methods"] = [Member(part.name, METHODS[part.name], _arguments(part)) for part in method.methods]
    return arguments


def recorded_parameters(spec: DiscoverSpec) -> dict[str, Any]:
    """The method's, as they are stored with what it finds."""
    as_asked = json.loads(spec.canonical_json)["method"]
    return {name: value for name, value in as_asked.items() if name not in ("name", "objective")}


def held_out_under(setting: Setting, ablation: Ablation, metric: str) -> Split:
    prepared = setting.held_out_under(ablation.kind, mean_per_role=ablation.mean_over == "role")
    return prepared.split(setting.t, metric)


def job_of(circuit: Circuit) -> MeasuredSpec:
    """The job that a stored circuit came from. Raises SpecError where its file names none that finds circuits."""
    spec = parse_job(circuit.provenance.job)
    if not isinstance(spec, MeasuredSpec):
        raise SpecError(f"the circuit's file says that a job of kind {spec.kind!r} made it, and none of these does")
    return spec


def require_the_same_graph(loaded: Loaded, graph: Graph, source: Circuit) -> None:
    if source.graph != graph and source.graph.whole == graph.whole:
        raise GraphMismatch(
            f"the circuit's edges are {_split_in_words(source.graph)}, and `positions` makes them "
            f"{_split_in_words(graph)}: leave it out to measure the circuit as it is"
        )
    if source.graph != graph:
        raise GraphMismatch(
            f"the circuit was found on {source.provenance.model.title} ({source.graph!r}); {loaded.card.title} has "
            f"another graph ({graph!r}), so its edges mean nothing there"
        )


def require_whole_edges(source: Circuit) -> None:
    if roles := source.graph.shape.roles:
        raise TaskError(
            f"the circuit's edges are split by position role ({', '.join(roles)}) and nothing says where these are in "
            "this prompt: evaluate the circuit on pairs with spans instead"
        )


def _split_in_words(graph: Graph) -> str:
    return f"split by role ({', '.join(graph.shape.roles)})" if graph.shape.roles else "whole"


def require_the_same_weights(loaded: Loaded, source: Circuit) -> None:
    found_on = source.provenance.model
    if loaded.card.fingerprint != found_on.fingerprint:
        raise GraphMismatch(
            f"the circuit was found on other weights than {loaded.card.reference} now has (sha256 "
            f"{found_on.fingerprint[:12]}, now {loaded.card.fingerprint[:12]}); evaluate it there first"
        )


def provenance_of(
    setting: Setting,
    spec: MeasuredSpec,
    method: str,
    parameters: Mapping[str, Any],
    objective: str,
    wall_time_s: float,
    found: Found | None,
    notes: Sequence[str] = (),
) -> Provenance:
    return Provenance(
        model=dataclasses.replace(setting.card, parity=setting.parity.worst),
        task=task_card(setting.prompt_set, spec.task.seed),
        choices=Choices(
            metric=spec.metric,
            objective=objective,
            ablation=spec.ablation.title,
            method=method,
            parameters=dict(parameters),
            positions=", ".join(setting.t.graph.shape.roles) or "all",
        ),
        run=record_run(
            spec,
            device=setting.t.device,
            dtype=setting.t.dtype,
            wall_time_s=wall_time_s,
            passes=found.passes if found else None,
            facts=found.facts if found else None,
            notes=(*notes, *(found.notes if found else ())),
        ),
    )
