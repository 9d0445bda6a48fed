"""Path patching against the masked forward, against activation patching, and against the definition spelled out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from known_induction import induction_with
from tiny_transformers import MAKERS, random_pairs, tiny
from torch import Tensor
from transformers import PreTrainedModel

from acdc.errors import GraphMismatch, OutOfMemory, TaskError
from acdc.evaluation.truth.hand_wired import INDUCTION_RESAMPLE, induction_model, induction_pairs
from acdc.graph import Graph
from acdc.metrics import METRICS, Metric
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patch_map import Cells, PatchMap
from acdc.patching.batches import make_batches
from acdc.patching.forward import record
from acdc.patching.masked import run_masked
from acdc.progress import Quiet
from acdc.tasks.prompts import Pair
from acdc.tracing.activation import patch_activations
from acdc.tracing.ends import inputs_named, inputs_of_layer, receiver_of_input
from acdc.tracing.paths import BETWEEN, NodeSet, each, patch_paths
from acdc.tracing.places import make_places

MEMORY = 2**30
METRIC = METRICS["logit_diff"]


def paths(t: Transformer, pairs: list[Pair], metric: Metric = METRIC, **options: object) -> Cells:
    settings = {"between": "frozen", "direction": "noising", "memory_bytes": MEMORY, "progress": Quiet(), **options}
    batches = make_batches(t, pairs, int(settings.pop("batch_tokens", 512)), MEMORY)  # type: ignore[call-overload]
    return patch_paths(t, pairs, batches, [metric], **settings)  # type: ignore[arg-type]


def all_senders(graph: Graph) -> tuple[NodeSet, ...]:
    return each(sender.name for sender in graph.senders)


def all_receivers(graph: Graph) -> tuple[NodeSet, ...]:
    return each(receiver.name for receiver in graph.receivers)


def with_common_beginning(n: int, lengths: tuple[int, ...] = (6,)) -> list[Pair]:
    """Clean and corrupt start with the same one or two tokens: what comes before the first change is not computed."""
    pairs = random_pairs(n, lengths)
    return [
        replace(pair, corrupt=(*pair.clean[: 1 + i % 2], *pair.corrupt[1 + i % 2 :])) for i, pair in enumerate(pairs)
    ]


@torch.no_grad()
def masked(t: Transformer, pairs: list[Pair], direction: str, masks: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """[mask, example]: the edge-masked forward, cut edges carrying the other run."""
    (batch,) = make_batches(t, pairs, 512, MEMORY)
    base, other = (batch.clean, batch.corrupt) if direction == "noising" else (batch.corrupt, batch.clean)
    last = run_masked(t, t.embed(base), record(t, other)[0], torch.from_numpy(masks))
    return np.stack([METRIC(t.unembed(batch.take(one)), batch).numpy() for one in last])


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_direct_path_is_the_edge_that_the_masked_forward_cuts(name: str, direction: str) -> None:
    t, pairs = wrap(tiny(name)), random_pairs(2, (5,))
    graph = t.graph
    cells = paths(t, pairs, senders=all_senders(graph), receivers=all_receivers(graph), direction=direction)
    assert np.array_equal(cells.defined, graph.legal)
    edges = np.random.default_rng(0).permutation(np.argwhere(graph.legal))[:60]
    masks = np.repeat(graph.legal[None].astype(float), len(edges), 0)
    masks[np.arange(len(edges)), edges[:, 0], edges[:, 1]] = 0
    expected = masked(t, pairs, direction, masks)
    found = cells.per_example[0, edges[:, 0], edges[:, 1]]
    assert np.abs(found - expected).max() < 1e-9 * max(1, np.abs(expected).max())
    assert np.abs(expected - cells.base_metric).max() > 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-neox", "gpt2", "toy-attention-only"])
def test_direct_paths_between_sets_are_all_edges_between_them_cut(name: str) -> None:
    t, pairs = wrap(tiny(name)), random_pairs(3, (5,))
    sets = [NodeSet("early", ("embed", "0.1", "1.0")), NodeSet("heads", ("0.0", "0.1", "1.0", "1.1"))]
    into = [
        NodeSet("late", ("0.0.q", "1.0", "1.1", "1.1.v", "logits")),  # of 1.0 and 1.1 the group is all there
        NodeSet("all", tuple(r.name for r in t.graph.receivers)),
    ]
    cells = paths(t, pairs, senders=sets, receivers=into)
    for s, one in enumerate(sets):
        for r, other in enumerate(into):
            mask = t.graph.legal.astype(float)
            for name in one.names:
                mask[t.graph.sender_index(name), receiver_of_input(t.graph)[inputs_named(t.graph, other.names)]] = 0
            assert np.abs(cells.per_example[0, s, r] - masked(t, pairs, "noising", mask[None])[0]).max() < 1e-9


def activations(t: Transformer, pairs: list[Pair], kind: str, direction: str) -> np.ndarray:  # type: ignore[type-arg]
    """[layer and part of it, example]: the state of the other run at all positions."""
    cells = patch_activations(
        t,
        pairs,
        make_batches(t, pairs, 512, MEMORY),
        [METRIC],
        kind=kind,
        places=make_places(pairs, "all"),
        direction=direction,
        memory_bytes=MEMORY,
        progress=Quiet(),
    )
    return cells.per_example[0].reshape(-1, len(pairs))


POST_NORM = {"gemma2", "gemma3"}


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "qwen3", "toy-bidirectional", *sorted(POST_NORM)])
def test_all_paths_from_a_node_to_the_logits_are_activation_patching_of_it(name: str, direction: str) -> None:
    t, pairs = wrap(tiny(name)), random_pairs(3, (5, 6))
    to_logits = {"receivers": each(["logits"]), "between": "free", "direction": direction}
    for kind in ("mlp",) if name in POST_NORM else ("mlp", "head"):
        names = [sender.name for sender in t.graph.senders if sender.kind == kind]
        found = paths(t, pairs, senders=each(names), **to_logits).per_example[0, :, 0]
        assert np.abs(found - activations(t, pairs, kind, direction)).max() < 1e-9
    everything = NodeSet("all", tuple(sender.name for sender in t.graph.senders))
    cells = paths(t, pairs, senders=[everything], **to_logits)
    assert np.abs(cells.per_example[:, 0, 0] - cells.other_metric).max() < 1e-9


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("name", sorted(POST_NORM))
def test_under_a_post_norm_all_heads_of_a_layer_together_are_its_attention_and_one_is_not_its_state(
    name: str, direction: str
) -> None:
    t, pairs = wrap(tiny(name)), random_pairs(3, (5, 6))
    to_logits = {"receivers": each(["logits"]), "between": "free", "direction": direction}
    layers = [NodeSet("", tuple(f"{layer}.{head}" for head in range(t.n_heads))) for layer in range(t.n_layers)]
    found = paths(t, pairs, senders=layers, **to_logits).per_example[0, :, 0]
    assert np.abs(found - activations(t, pairs, "attention", direction)).max() < 1e-9
    shares = paths(t, pairs, senders=each(name for one in layers for name in one.names), **to_logits)
    assert np.abs(shares.per_example[0, :, 0] - activations(t, pairs, "head", direction)).max() > 1e-3


Told = dict[str, Tensor]


@torch.no_grad()
def by_definition(
    t: Transformer, pair: Pair, senders: NodeSet, receivers: NodeSet, between: str, direction: str
) -> float:
    """Two runs. In the open one senders write what they write in the other run, frozen nodes what they write in the
    closed one, and what the receivers read is noted; in the closed one they read that and everything else runs on.
    What a receiver tells the next one passes through both, so they are repeated until nothing changes any more."""
    (batch,) = make_batches(t, [pair], 512, MEMORY)
    base, other = (batch.clean, batch.corrupt) if direction == "noising" else (batch.corrupt, batch.clean)
    theirs, _ = run_nodes(t, other, {}, {})
    inputs = [name for receiver in receivers.names for name in inputs_of(t, receiver)]
    before, given = None, Told()
    while before is None or any(not torch.equal(given[name], before[name]) for name in inputs):
        closed, _ = run_nodes(t, base, {}, given)
        frozen = [name for name in closed if {"frozen": True, "heads": "." in name, "free": False}[between]]
        instead = {name: closed[name] for name in frozen if name != "embed"}
        _, noted = run_nodes(t, base, {**instead, **{name: theirs[name] for name in senders.names}}, {})
        before, given = given or None, {name: noted[name] for name in inputs}
    _, noted = run_nodes(t, base, {}, given)
    return float(METRIC(t.unembed(batch.take(given.get("logits", noted["logits"]))), batch))


def inputs_of(t: Transformer, receiver: str) -> list[str]:
    """What the name of a head or of a receiver stands for, with q, k and v of every head apart: 1.3.k."""
    layer, *rest = receiver.split(".")
    if len(rest) < 2:
        return [f"{receiver}.{kind}" for kind in "qkv"] if rest else [receiver]
    group = 1 if rest[1] == "q" else t.n_heads // t.n_kv_heads
    return [f"{layer}.{head}.{rest[1]}" for head in range(int(rest[0]) * group, (int(rest[0]) + 1) * group)]


def run_nodes(t: Transformer, tokens: Tensor, instead: Told, given: Told) -> tuple[Told, Told]:
    """One node after the other: what each writes, and what every input would read. instead: what nodes write for
    that; given: what inputs read for that."""
    (embedding,) = t.embed(tokens)
    writes, reads = {"embed": instead.get("embed", embedding)}, Told()
    biases, rope = torch.zeros(t.d_model, dtype=t.dtype), t.rope(embedding)

    def read(name: str) -> Tensor:
        reads[name] = torch.stack(list(writes.values())).sum(0) + biases
        return given.get(name, reads[name])

    for index, layer in enumerate(t.layers):
        at = {(kind, head): read(f"{index}.{head}.{kind}") for kind in "qkv" for head in range(t.n_heads)}
        mlp_input = read(f"mlp{index}") if t.is_parallel else None
        projected = [
            (layer.read_scale(x) * x) @ layer.w_read[own].T + layer.b_read[own]
            for x, own in zip(at.values(), rows_of_heads(t), strict=True)
        ]
        q, k, v = torch.stack(projected, 1).split(t.n_heads, 1)
        z = t.share(layer, t.attend(layer, q, k, v, rope)).unflatten(-1, (t.n_heads, t.d_head))
        for head in range(t.n_heads):
            writes[f"{index}.{head}"] = instead.get(f"{index}.{head}", z[..., head, :] @ layer.w_out[head])
        biases = biases if layer.b_out is None else biases + layer.b_out
        if layer.mlp is not None:
            x = read(f"mlp{index}") if mlp_input is None else mlp_input
            writes[f"mlp{index}"] = instead.get(f"mlp{index}", layer.mlp(x))
    read("logits")
    return writes, reads


def rows_of_heads(t: Transformer) -> list[int]:
    """Which of the projections are q, k and v of each head."""
    own = t.kv_of(range(t.n_heads))
    return [*range(t.n_heads), *(t.n_heads + kv for kv in own), *(t.n_heads + t.n_kv_heads + kv for kv in own)]


def assert_as_defined(
    t: Transformer, cells: Cells, pair: Pair, sides: tuple[Sequence[NodeSet], Sequence[NodeSet]]
) -> None:
    said = cells.parameters
    for s, r in np.argwhere(cells.defined):
        one, other = sides[0][s], sides[1][r]
        expected = by_definition(t, pair, one, other, said["between"], said["direction"])
        assert cells.per_example[0, s, r, 0] == pytest.approx(expected, abs=1e-8), (one.label, other.label)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("name", ["llama", "gpt-neox", "gemma3"])
def test_one_sender_to_one_receiver_is_what_the_two_runs_of_the_definition_give(
    name: str, between: str, direction: str
) -> None:
    t, (pair,) = wrap(tiny(name)), with_common_beginning(1, (5,))
    senders = each(["embed", "0.1", "mlp0", "1.2"])
    receivers = each(["1.0.q", "1.1.v", "1.3", "2.1.k", "mlp2", "logits"])
    cells = paths(t, [pair], senders=senders, receivers=receivers, between=between, direction=direction)
    assert_as_defined(t, cells, pair, (senders, receivers))
    assert cells.defined.sum() == 21  # 1.2 comes after the three receivers of its own layer


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("name", ["llama", "gpt-neox", "gemma3"])
def test_sets_with_receivers_in_a_row_are_what_the_definition_gives(name: str, between: str, direction: str) -> None:
    t, (pair,) = wrap(tiny(name)), with_common_beginning(1, (5,))
    senders = [NodeSet("heads", ("0.0", "0.3", "1.1")), NodeSet("early", ("embed", "mlp0"))]
    receivers = [
        NodeSet("in a row", ("1.2", "2.0.q", "mlp2")),
        NodeSet("to the end", ("0.1", "mlp0", "1.1.k", "2.3", "logits")),
    ]
    cells = paths(t, [pair], senders=senders, receivers=receivers, between=between, direction=direction)
    assert_as_defined(t, cells, pair, (senders, receivers))
    assert cells.defined.all()


def without_groups(model: PreTrainedModel) -> PreTrainedModel:
    """The same function, every head with keys and values of its own."""
    config = copy.deepcopy(model.config)
    group = config.num_attention_heads // config.num_key_value_heads
    config.num_key_value_heads = config.num_attention_heads
    state = model.state_dict()
    for name, weight in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            state[name] = weight.unflatten(0, (-1, model.config.head_dim)).repeat_interleave(group, 0).flatten(0, 1)
    twin = type(model)(config).to(model.dtype).eval()
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_head_as_receiver_is_that_of_the_model_with_keys_and_values_of_its_own_for_each(
    name: str, between: str
) -> None:
    grouped, pairs = tiny(name), with_common_beginning(3, (6, 7))
    apart = wrap(without_groups(grouped))
    sides = {
        "senders": each(["embed", "0.1", "mlp1"]),
        "receivers": each([f"{i}.{h}" for i in (1, 2) for h in range(4)]),
    }
    found, wanted = (paths(t, pairs, between=between, **sides) for t in (wrap(grouped), apart))
    assert np.array_equal(found.defined, wanted.defined)
    assert np.abs(found.per_example - wanted.per_example).max() < 1e-10
    groups = {"receivers": each(["1.0.k", "1.1.k", "2.0.v"])}
    heads = {
        "receivers": [NodeSet("", names) for names in (("1.0.k", "1.1.k"), ("1.2.k", "1.3.k"), ("2.0.v", "2.1.v"))]
    }
    of_group = paths(wrap(grouped), pairs, between=between, **{**sides, **groups})
    of_heads = paths(apart, pairs, between=between, **{**sides, **heads})
    assert np.abs(of_group.per_example - of_heads.per_example).max() < 1e-10


@pytest.mark.parametrize("between", BETWEEN)
def test_answers_of_two_tokens_are_forced_in_rows_of_their_own(between: str) -> None:
    """A pair of prompts for each step of each answer: the metric is the sum over them."""
    t = wrap(tiny("llama"))
    (pair,) = with_common_beginning(1)
    sides = {"senders": each(["0.1", "mlp0", "1.2"]), "receivers": each(["1.3", "mlp2", "logits"]), "between": between}
    whole = paths(t, [replace(pair, answers=((3, 4),), wrong=((9, 10),))], **sides)
    longer = [
        replace(pair, clean=(*pair.clean, first), corrupt=(*pair.corrupt, first), answers=((second,),))
        for first, second in ((3, 4), (9, 10))
    ]
    logprob = METRICS["answer_logprob"]
    first = [replace(pair, answers=((token,),)) for token in (3, 9)]
    right, wrong = (
        paths(t, [one, two], logprob, **sides).per_example[0].sum(-1) for one, two in zip(first, longer, strict=True)
    )
    assert np.abs(whole.per_example[0, ..., 0] - (right - wrong))[whole.defined].max() < 1e-9


# Without MLPs heads are all that lies between, so to freeze them is to freeze everything. Free paths from the embedding
# reach the keys through 0.0 and the logits through all; from 0.0 they go on to the logits.
KNOWN = {
    "frozen": set(INDUCTION_RESAMPLE),
    "heads": set(INDUCTION_RESAMPLE),
    "free": {*INDUCTION_RESAMPLE, "embed->1.0.k", "embed->logits", "0.0->logits"},
}


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("between", BETWEEN)
def test_on_the_hand_wired_model_the_matrix_shows_the_known_paths_and_nothing_else(
    between: str, direction: str
) -> None:
    """Either run is one of a working circuit, with other tokens in it."""
    t = wrap(induction_model())
    sides = {"senders": all_senders(t.graph), "receivers": all_receivers(t.graph)}
    cells = paths(t, induction_pairs(), between=between, direction=direction, **sides)
    rows = PatchMap.of(cells, seed=0).rows()
    found = {f"{sender}->{receiver}" for _, sender, receiver, effect, *_ in rows if abs(effect) > 1e-9}  # type: ignore[arg-type]
    assert found == KNOWN[between]


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("between", BETWEEN)
def test_on_the_hand_wired_model_what_one_head_tells_the_other_is_everything(between: str, direction: str) -> None:
    """With another token before b the end finds a nowhere: what 0.0 tells 1.0 is all that the corruption changes."""
    t = wrap(induction_model())
    heads = each(["0.0", "0.1", "1.0", "1.1"])
    cells = paths(
        t, induction_with("broken match"), senders=heads, receivers=heads, between=between, direction=direction
    )
    shares = PatchMap.of(cells, seed=0).normalised("logit_diff").effect
    assert shares is not None
    expected = np.zeros((4, 4))
    expected[0, 2] = 1
    assert np.abs(shares - expected).max() < 1e-9
    assert cells.defined.sum() == 4


def test_memory_and_batches_change_no_path() -> None:
    t, pairs = wrap(tiny("gemma2")), random_pairs(4, (5, 8))
    some = {"senders": each(["embed", "0.1", "mlp1"]), "receivers": each(["1.0", "mlp2", "logits"]), "between": "free"}
    wide = paths(t, pairs, **some)
    narrow = paths(t, pairs, batch_tokens=8, memory_bytes=250_000, **some)
    assert np.abs(wide.per_example - narrow.per_example).max() < 1e-10
    with pytest.raises(OutOfMemory):
        paths(t, pairs, memory_bytes=1000, **some)


def test_inputs_are_receivers_with_keys_and_values_of_a_group_once_for_each_head() -> None:
    graph = wrap(tiny("llama")).graph
    of = [graph.receivers[r].name for r in receiver_of_input(graph)[inputs_of_layer(graph, 1)]]
    q, k, v = (["1.0.q", "1.1.q", "1.2.q", "1.3.q"], ["1.0.k"] * 2 + ["1.1.k"] * 2, ["1.0.v"] * 2 + ["1.1.v"] * 2)
    assert of == [*q, *k, *v, "mlp1"]
    first = inputs_of_layer(graph, 1).start
    for name, places in (("1.3", [3, 7, 11]), ("1.1.k", [6, 7]), ("1.2.q", [2]), ("mlp1", [12])):
        assert np.flatnonzero(inputs_named(graph, [name])).tolist() == [first + place for place in places]
    assert np.flatnonzero(inputs_named(graph, ["logits"])).tolist() == [len(receiver_of_input(graph)) - 1]


def test_names_that_the_graph_has_not_are_all_reported() -> None:
    t = wrap(tiny("llama"))
    with pytest.raises(GraphMismatch) as caught:
        paths(t, random_pairs(1), senders=each(["embed", "9.9", "mlp7"]), receivers=each(["logits"]))
    assert [fault.where for fault in caught.value.faults] == ["9.9"]
    with pytest.raises(TaskError, match="between 'sometimes'"):
        paths(t, random_pairs(1), senders=each(["embed"]), receivers=each(["logits"]), between="sometimes")
    with pytest.raises(TaskError, match="at least one node"):
        paths(t, random_pairs(1), senders=[NodeSet("none", ())], receivers=each(["logits"]))


def test_senders_that_come_after_all_receivers_are_refused() -> None:
    with pytest.raises(TaskError, match="no sender comes before any receiver: are they swapped"):
        paths(wrap(tiny("llama")), random_pairs(1), senders=each(["1.2", "mlp2"]), receivers=each(["0.1", "1.0.q"]))
