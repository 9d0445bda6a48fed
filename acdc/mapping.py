"""From a patch job and a loaded model to a map: build the task, check parity, trace, and draw the intervals.

Where the specs of maps (pydantic) meet the tracing functions (plain arguments).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from acdc.circuit import Choices, Provenance
from acdc.errors import Fault, GraphMismatch, TaskError, UnsupportedModel
from acdc.graph import Graph
from acdc.metrics import METRICS, Metric
from acdc.models.architectures import wrap
from acdc.models.loading import Loaded
from acdc.models.parity import check_parity, probe_tokens
from acdc.models.transformer import Transformer
from acdc.patch_map import Cells, PatchMap
from acdc.patching.batches import Batch, bucket_pairs, make_batches
from acdc.progress import Progress
from acdc.prompting import make_prompts
from acdc.provenance import record_run, task_card
from acdc.spec import EVERY, Activations, Causes, Knockout, PatchSpec, Paths
from acdc.spec import NodeSet as AskedSet
from acdc.tasks.prompts import Pair
from acdc.tracing.activation import patch_activations
from acdc.tracing.blocks import BlockModel, find_blocks
from acdc.tracing.causal import ANSWER_PROBABILITY, Corruption, Restored, trace_causes
from acdc.tracing.knockout import knock_out_attention
from acdc.tracing.paths import NodeSet, each, patch_paths, receivers_named, senders_named
from acdc.tracing.places import common_roles, make_places, role_places
from acdc.tracing.states import RESIDUALS

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
        notes=() if isinstance(model, Transformer) else (OUTSIDE,),
    )
    card = dataclasses.replace(loaded.card, parity=parity)
    provenance = Provenance(card, task_card(prompt_set, spec.task.seed), _choices(cells, spec), run)
    return PatchMap.of(cells, seed=spec.seed, provenance=provenance)


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
                blocked=asked.blocked or _end_at_every_role(work.pairs),
                window=asked.window,
                heads=asked.heads,
                memory_bytes=work.memory_bytes,
                progress=work.progress,
            )


def _paths(work: _Work, asked: Paths) -> Cells:
    graph = work.t.graph
    senders = [sender.name for sender in graph.senders]
    heads = [sender.name for sender in graph.senders if sender.kind == "head"]
    mlps = [sender.name for sender in graph.senders if sender.kind == "mlp"]
    every = {"heads": heads, "mlps": mlps}
    from_sets = _sets(asked.senders, {**every, "all": senders})
    to_sets = _sets(asked.receivers, {**every, "all": [receiver.name for receiver in graph.receivers]})
    _require_nodes(graph, from_sets, to_sets)
    return patch_paths(
        work.t,
        work.pairs,
        work.batches,
        [work.metric],
        senders=from_sets,
        receivers=to_sets,
        between=asked.between,
        direction=asked.direction,
        memory_bytes=work.memory_bytes,
        progress=work.progress,
    )


def _sets(asked: Sequence[AskedSet], every: dict[str, list[str]]) -> list[NodeSet]:
    """Node sets in the order asked for, each once; a word that stands for many is replaced by them."""
    found: dict[str, NodeSet] = {}
    for one in asked:
        is_word = len(one.nodes) == 1 and one.nodes[0] in EVERY
        sets = each(every[one.nodes[0]]) if is_word else (NodeSet(one.label, one.nodes),)
        found |= {item.label: item for item in sets}
    if not found:
        raise TaskError("this model has none of the nodes asked for")
    return list(found.values())


def _require_nodes(graph: Graph, senders: Sequence[NodeSet], receivers: Sequence[NodeSet]) -> None:
    """Raises GraphMismatch with every name of either side that the graph has not."""
    faults: list[Fault] = []
    for find, sets in ((senders_named, senders), (receivers_named, receivers)):
        try:
            find(graph, [name for one in sets for name in one.names])
        except GraphMismatch as error:
            faults += error.faults
    if faults:
        raise GraphMismatch(f"{len(faults)} of the nodes named are not in this graph", faults)


def _causes(work: _Work, asked: Causes, seed: int) -> Cells:
    subject = asked.subject or _changed_role(work.pairs)
    role_places(work.pairs, list(dict.fromkeys((subject, *(asked.roles or ())))))  # all that are missing, at once
    return trace_causes(
        work.t,
        work.pairs,
        work.batches,
        [work.metric],
        corruption=Corruption(subject, asked.sigma, asked.samples, seed),
        restored=[Restored(one.state, one.window, one.severed) for one in asked.restored],
        places=make_places(work.pairs, asked.places, asked.roles),
        memory_bytes=work.memory_bytes,
        progress=work.progress,
    )


def _changed_role(pairs: Sequence[Pair]) -> str:
    """The role that holds, in every prompt, all tokens in which clean and corrupt differ; of several the shortest.

    Raises TaskError where there is none.
    """
    roles = common_roles(pairs)
    fitting = [role for role in roles if all(_holds_the_change(pair, role) for pair in pairs)]
    if not fitting:
        raise TaskError(
            "no role holds all tokens that the corruption changes, so which is the subject? Name one as map.subject; "
            f"the prompts have: {', '.join(roles)}"
        )
    return min(fitting, key=lambda role: sum(pair.roles[role][1] - pair.roles[role][0] for pair in pairs))


def _holds_the_change(pair: Pair, role: str) -> bool:
    start, stop = pair.roles[role]
    differs = [i for i, (clean, corrupt) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if clean != corrupt]
    return all(start <= i < stop for i in differs)


def _end_at_every_role(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Raises TaskError where the prompts have no role but their end."""
    roles = [role for role in common_roles(pairs) if role != "end"]
    if not roles:
        raise TaskError("the prompts have no role to look at but their end: give spans, or name map.blocked")
    return [("end", role) for role in roles]


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
