"""From a patch job and a loaded model to a map: build the task, check parity, trace, and draw the intervals.

Where the specs of maps (pydantic) meet the tracing functions (plain arguments).
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from acdc.circuit import Choices, Provenance
from acdc.errors import Fault, GraphMismatch, TaskError, UnsupportedModel
from acdc.graph import Graph
from acdc.metrics import METRICS, Metric
from acdc.models.architectures import wrap
from acdc.models.loading import Loaded
from acdc.models.parity import check_parity, probe_tokens
from acdc.models.transformer import Transformer
from acdc.node_sets import Labelled, receiver_sets, sender_sets
from acdc.patch_map import Cells, PatchMap
from acdc.patching.batches import Batch, bucket_pairs, make_batches
from acdc.progress import Progress
from acdc.prompting import make_prompts
from acdc.provenance import record_run, task_card
from acdc.spec import Activations, Causes, Knockout, PatchSpec, Paths
from acdc.tasks.prompts import Pair, common_roles
from acdc.tracing.activation import patch_activations
from acdc.tracing.blocks import BlockModel, find_blocks
from acdc.tracing.causal import ANSWER_PROBABILITY, Corruption, Restored, faults_of_trace, trace_causes
from acdc.tracing.ends import inputs_named, senders_named
from acdc.tracing.faults import faults_raised
from acdc.tracing.knockout import knock_out_attention
from acdc.tracing.paths import NodeSet, patch_paths
from acdc.tracing.places import make_places
from acdc.tracing.states import RESIDUALS

SHOWN = 10  # labels in a fault: a word may stand for hundreds
OUTSIDE = "the model's family has no description here: it was patched from outside, between its blocks"


@dataclass(frozen=True)
class _Work:
    """A model, its prompts and what every tracing function is told."""

    model: Transformer | BlockModel
    pairs: Sequence[Pair]
    batches: Sequence[Batch]
    metric: Metric
    memory_bytes: int
    progress: Progress

    @property
    def t(self) -> Transformer:
        assert isinstance(self.model, Transformer), "only residuals of a model without a description are patched"
        return self.model


def make_map(loaded: Loaded, spec: PatchSpec, progress: Progress) -> PatchMap:
    """Raises TaskError, ModelError, GraphMismatch, OutOfMemory; Cancelled when `progress` says so."""
    begin = time.monotonic()
    metric = METRICS.get(spec.metric, ANSWER_PROBABILITY)
    assert metric.name == spec.metric
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    prompt_set = make_prompts(loaded.tokenizer, spec, metric, progress)
    pairs, compute = prompt_set.search, spec.compute
    progress.phase("parity", 1)
    model, parity = _checked(loaded, spec, pairs)
    progress.step(1)
    if isinstance(model, Transformer):
        batches = make_batches(model, pairs, compute.batch_tokens, compute.memory_bytes)
    else:
        batches = bucket_pairs(model, pairs, compute.batch_tokens)
    work = _Work(model, pairs, batches, metric, compute.memory_bytes, progress)
    cells = _trace(work, spec)
    run = record_run(
        spec,
        device=model.device,
        dtype=model.dtype,
        wall_time_s=time.monotonic() - begin,
        facts=cells.facts,
        notes=_notes(work, spec),
    )
    card = dataclasses.replace(loaded.card, parity=parity)
    provenance = Provenance(card, task_card(prompt_set, spec.task.seed), _choices(cells, spec), run)
    return PatchMap.of(cells, seed=spec.seed, provenance=provenance)


def _notes(work: _Work, spec: PatchSpec) -> list[str]:
    """What a reader should know of how the map was made."""
    notes = [] if isinstance(work.model, Transformer) else [OUTSIDE]
    without = sum(pair.clean == pair.corrupt for pair in work.pairs)
    if isinstance(spec.map, Knockout) and without:
        notes.append(f"{without} of {len(work.pairs)} prompts have no corrupt one: there is nothing to normalise by")
    return notes


def _checked(loaded: Loaded, spec: PatchSpec, pairs: Sequence[Pair]) -> tuple[Transformer | BlockModel, float | None]:
    """The model as it will be patched, and its parity. A model without a description may still have a residual stream,
    and then the check is that of `find_blocks`."""
    asked = spec.map
    try:
        t = wrap(loaded.model)
    except UnsupportedModel as unknown:
        if not isinstance(asked, Activations) or asked.state not in RESIDUALS:
            way_out = f"its residual stream can be patched: map activations, state {' or '.join(RESIDUALS)}"
            raise UnsupportedModel(f"{unknown.message}; {way_out}") from None
        return find_blocks(loaded.model), None
    return t, check_parity(t, *probe_tokens(t, max(len(pair.clean) for pair in pairs))).worst


def _trace(work: _Work, spec: PatchSpec) -> Cells:
    match spec.map:
        case Activations() as asked:
            return patch_activations(
                work.model,
                work.pairs,
                work.batches,
                [work.metric],
                kind=asked.state,
                places=make_places(work.pairs, asked.places, asked.roles),
                direction=asked.direction,
                memory_bytes=work.memory_bytes,
                progress=work.progress,
            )
        case Paths() as asked:
            return _paths(work, asked)
        case Causes() as asked:
            return _causes(work, asked, spec.seed)
        case Knockout() as asked:
            return knock_out_attention(
                work.t,
                work.pairs,
                work.batches,
                [work.metric],
                blocked=asked.blocked or [("end", role) for role in common_roles(work.pairs) if role != "end"],
                window=asked.window,
                heads=asked.heads,
                memory_bytes=work.memory_bytes,
                progress=work.progress,
            )


def _paths(work: _Work, asked: Paths) -> Cells:
    graph = work.t.graph
    senders, receivers = sender_sets(asked, graph), receiver_sets(asked, graph)
    _check_sets(graph, senders, receivers)
    return patch_paths(
        work.t,
        work.pairs,
        work.batches,
        [work.metric],
        senders=[NodeSet(*one) for one in senders],
        receivers=[NodeSet(*one) for one in receivers],
        between=asked.between,
        direction=asked.direction,
        memory_bytes=work.memory_bytes,
        progress=work.progress,
    )


def _check_sets(graph: Graph, senders: Sequence[Labelled], receivers: Sequence[Labelled]) -> None:
    """Raises TaskError for sets of one label and for what the model has no nodes of, GraphMismatch where there are only
    unknown names, with every fault of both sides."""
    faults: list[Fault] = []
    unknown: list[Fault] = []
    for where, sets, find in (("map.senders", senders, senders_named), ("map.receivers", receivers, inputs_named)):
        faults += _faults_of_sets(where, sets)
        unknown += faults_raised(partial(find, graph, [name for _, names in sets for name in names]))
    if faults:
        raise TaskError("paths cannot run between these sets", [*faults, *unknown])
    if unknown:
        raise GraphMismatch("not all of the nodes named are in this graph", unknown)


def _faults_of_sets(where: str, sets: Sequence[Labelled]) -> Iterator[Fault]:
    if not sets:
        yield Fault(where, "this model has none of the nodes asked for")
    yield from (Fault(where, f"this model has none of the nodes of {label!r}") for label, names in sets if not names)
    if twice := sorted(label for label, n in Counter(label for label, _ in sets).items() if n > 1):
        more = f" and {len(twice) - SHOWN} more" * (len(twice) > SHOWN)
        way_out = "leave one out, or call sets of your own otherwise"
        yield Fault(where, f"asked for twice: {', '.join(twice[:SHOWN])}{more}; {way_out}")


def _causes(work: _Work, asked: Causes, seed: int) -> Cells:
    subject = asked.subject
    if subject is None and asked.sigma is not None:
        subject = _changed_role(work.pairs)
    corruption = Corruption(subject, asked.sigma, asked.samples, seed)
    rows = asked.rows(has_mlp=work.t.graph.shape.has_mlp)
    restored = [Restored(one.state, one.window, one.severed) for one in rows]
    faults = [
        *faults_of_trace(work.t, work.pairs, corruption, restored),
        *faults_raised(lambda: make_places(work.pairs, asked.places, asked.roles)),
    ]
    if faults:
        raise TaskError("this cannot be traced", dict.fromkeys(faults))
    return trace_causes(
        work.t,
        work.pairs,
        work.batches,
        [work.metric],
        corruption=corruption,
        restored=restored,
        places=make_places(work.pairs, asked.places, asked.roles),
        memory_bytes=work.memory_bytes,
        progress=work.progress,
    )


def _changed_role(pairs: Sequence[Pair]) -> str:
    """The role that holds, in every prompt with a corrupt one, all tokens in which the two differ; of several the
    shortest.

    Raises TaskError where there is none, or no corrupt prompt at all.
    """
    roles = common_roles(pairs)
    changed = [pair for pair in pairs if pair.clean != pair.corrupt]
    fitting = [role for role in roles if all(_holds_the_change(pair, role) for pair in changed)]
    if not changed or not fitting:
        why = "no role holds all tokens that the corruption changes" if changed else "there are no corrupt prompts"
        raise TaskError(
            f"{why}, so which is the subject? Name one as map.subject (the prompts have: {', '.join(roles)}), or take "
            "a task.corruption that changes one of them alone"
        )
    return min(fitting, key=lambda role: sum(pair.roles[role][1] - pair.roles[role][0] for pair in pairs))


def _holds_the_change(pair: Pair, role: str) -> bool:
    start, stop = pair.roles[role]
    differs = [i for i, (clean, corrupt) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if clean != corrupt]
    return all(start <= i < stop for i in differs)


def _choices(cells: Cells, spec: PatchSpec) -> Choices:
    """What the numbers depend on, in the words that circuits are described with too."""
    parameters = cells.parameters
    match spec.map:
        case Causes():
            ablation = str(parameters["corruption"])
        case Knockout():
            ablation = "blocked attention"
        case _:
            ablation = "resample"
    other = "corrupt" if cells.base == "clean" else "clean"
    direction = f"one thing at a time of the {other} run is put into the {cells.base} run"
    return Choices(
        metric=spec.metric,
        objective=spec.metric,
        ablation=ablation,
        method=spec.map.name,
        parameters=dict(parameters),
        granularity=" x ".join(axis.name for axis in cells.axes[1:]),
        positions=str(parameters.get("places", "roles" if isinstance(spec.map, Knockout) else "all")),
        direction="attention is blocked in the clean run" if isinstance(spec.map, Knockout) else direction,
    )
