"""Path patching against the masked forward, against activation patching, and against the definition spelled out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hand_wired import RESAMPLE_CIRCUIT, induction_model, induction_pairs
from tiny_transformers import MAKERS, random_pairs, tiny
from torch import Tensor

from acdc.errors import GraphMismatch, OutOfMemory, TaskError
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patch_map import Cells, PatchMap
from acdc.patching.batches import make_batches
from acdc.patching.forward import record
from acdc.patching.masked import run_masked
from acdc.progress import Quiet
from acdc.tasks.prompts import Pair
from acdc.tracing.activation import patch_activations
from acdc.tracing.paths import BETWEEN, NodeSet, all_receivers, all_senders, each, patch_paths, receivers_named
from acdc.tracing.places import make_places

MEMORY = 2**30
METRIC = METRICS["logit_diff"]


def paths(t: Transformer, pairs: list[Pair], **options: object) -> Cells:
    settings = {"between": "frozen", "direction": "noising", "memory_bytes": MEMORY, "progress": Quiet(), **options}
    batches = make_batches(t, pairs, int(settings.pop("batch_tokens", 512)), MEMORY)  # type: ignore[call-overload]
    return patch_paths(t, pairs, batches, [METRIC], **settings)  # type: ignore[arg-type]


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
        NodeSet("late", ("0.0.q", "1.0", "1.1.v", "logits")),
        NodeSet("all", tuple(r.name for r in t.graph.receivers)),
    ]
    cells = paths(t, pairs, senders=sets, receivers=into)
    for s, one in enumerate(sets):
        for r, other in enumerate(into):
            mask = t.graph.legal.astype(float)
            for name in one.names:
                mask[t.graph.sender_index(name), receivers_named(t.graph, other.names)] = 0
            assert np.abs(cells.per_example[0, s, r] - masked(t, pairs, "noising", mask[None])[0]).max() < 1e-9


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "qwen3", "toy-bidirectional"])
def test_all_paths_from_a_node_to_the_logits_are_activation_patching_of_it(name: str, direction: str) -> None:
    t, pairs = wrap(tiny(name)), random_pairs(3, (5, 6))
    heads = [sender.name for sender in t.graph.senders if sender.kind == "head"]
    mlps = [sender.name for sender in t.graph.senders if sender.kind == "mlp"]
    to_logits = {"receivers": each(["logits"]), "between": "free", "direction": direction}
    batches = make_batches(t, pairs, 512, MEMORY)
    for kind, names in (("head", heads), ("mlp", mlps)):
        found = paths(t, pairs, senders=each(names), **to_logits).per_example[0, :, 0]
        expected = patch_activations(
            t,
            pairs,
            batches,
            [METRIC],
            kind=kind,
            places=make_places(pairs, "all"),
            direction=direction,
            memory_bytes=MEMORY,
            progress=Quiet(),
        )
        assert np.abs(found - expected.per_example[0].reshape(found.shape)).max() < 1e-9
    everything = NodeSet("all", tuple(sender.name for sender in t.graph.senders))
    cells = paths(t, pairs, senders=[everything], **to_logits)
    assert np.abs(cells.per_example[:, 0, 0] - cells.other_metric).max() < 1e-9


@torch.no_grad()
def by_definition(t: Transformer, pair: Pair, sender: str, receiver: str, between: str) -> float:
    """Two runs, as Wang et al. describe them: in the first the sender is replaced, frozen nodes keep what they wrote,
    and what the receiver reads is noted; in the second the receiver reads that and everything else runs on."""
    (batch,) = make_batches(t, [pair], 512, MEMORY)
    base, _ = record(t, batch.clean)
    other, _ = record(t, batch.corrupt)
    ones = torch.from_numpy(t.graph.legal.copy()).double()
    first = ones.clone()
    first[t.graph.sender_index(sender)] = 0
    noted: dict[str, Tensor] = {}
    reads(t, base, first, other, between, noted, {})
    final = reads(t, base, ones, other, "free", {}, {receiver: noted[receiver]})
    return float(METRIC(t.unembed(batch.take(final)), batch))


def reads(t, base, mask, other, between, noted, given):  # type: ignore[no-untyped-def]
    """One node at a time: cut edges carry `other`, frozen nodes write what they wrote in `base`; noted: what every
    receiver reads; given: what it reads instead."""
    written, cut = list(base.inputs), list(other.inputs)

    def at(receiver):  # type: ignore[no-untyped-def]
        r = t.graph.receiver_index(receiver)
        n = int(t.graph.n_senders_before[r])
        total = sum(cut[s] + mask[s, r] * (written[s] - cut[s]) for s in range(n))
        layers = t.n_layers if receiver == "logits" else int(receiver.removeprefix("mlp").split(".")[0])
        own = int(receiver.startswith("mlp") and not t.is_parallel)
        total = total + sum(b for layer in t.layers[: layers + own] if (b := layer.b_out) is not None)
        noted[receiver] = total
        return given.get(receiver, total)

    rope = t.rope(base.inputs[0])
    for index, layer in enumerate(t.layers):
        names = [f"{index}.{h}.q" for h in range(t.n_heads)]
        names += [f"{index}.{h}.{kind}" for kind in "kv" for h in range(t.n_kv_heads)]
        projected = [
            (layer.read_scale(x) * x) @ layer.w_read[i].T + layer.b_read[i] for i, x in enumerate(map(at, names))
        ]
        q, k, v = torch.stack(projected, 1).split((t.n_heads, t.n_kv_heads, t.n_kv_heads), 1)
        mlp_input = at(f"mlp{index}") if t.is_parallel else None
        z = t.share(layer, t.attend(layer, q, k, v, rope)) if between == "free" else base.z[index]
        for head in range(t.n_heads):
            part = slice(head * t.d_head, (head + 1) * t.d_head)
            written.append(z[..., part] @ layer.w_out[head])
            cut.append(other.z[index][..., part] @ layer.w_out[head])
        if layer.mlp is not None:
            mlp_input = at(f"mlp{index}") if mlp_input is None else mlp_input
            written.append(base.mlp[index] if between == "frozen" else layer.mlp(mlp_input))
            cut.append(other.mlp[index])
    return at("logits")


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("name", ["llama", "gpt-neox", "gemma3"])
def test_one_sender_to_one_receiver_is_what_the_two_runs_of_the_definition_give(name: str, between: str) -> None:
    t, (pair,) = wrap(tiny(name)), random_pairs(1, (5,))
    senders, receivers = ["embed", "0.1", "mlp0", "1.2"], ["1.0.q", "1.1.v", "2.1.k", "mlp2", "logits"]
    cells = paths(t, [pair], senders=each(senders), receivers=each(receivers), between=between)
    for s, r in np.argwhere(cells.defined):
        expected = by_definition(t, pair, senders[s], receivers[r], between)
        assert cells.per_example[0, s, r, 0] == pytest.approx(expected, abs=1e-8), (senders[s], receivers[r])
    assert cells.defined.sum() == 18  # 1.2 comes after both receivers of its own layer


def test_on_the_hand_wired_model_the_matrix_shows_the_known_edges_and_nothing_else() -> None:
    t = wrap(induction_model())
    cells = paths(t, induction_pairs(), senders=all_senders(t.graph), receivers=all_receivers(t.graph))
    rows = PatchMap.of(cells, seed=0).rows()
    found = {f"{sender}->{receiver}" for _, sender, receiver, effect, *_ in rows if abs(effect) > 1e-9}  # type: ignore[arg-type]
    assert found == RESAMPLE_CIRCUIT


def test_memory_and_batches_change_no_path() -> None:
    t, pairs = wrap(tiny("gemma2")), random_pairs(4, (5, 8))
    some = {"senders": each(["embed", "0.1", "mlp1"]), "receivers": each(["1.0", "mlp2", "logits"]), "between": "free"}
    wide = paths(t, pairs, **some)
    narrow = paths(t, pairs, batch_tokens=8, memory_bytes=250_000, **some)
    assert np.abs(wide.per_example - narrow.per_example).max() < 1e-10
    with pytest.raises(OutOfMemory):
        paths(t, pairs, memory_bytes=1000, **some)


def test_a_head_named_as_receiver_is_its_query_and_its_groups_keys_and_values() -> None:
    graph = wrap(tiny("llama")).graph
    chosen = [graph.receivers[r].name for r in np.flatnonzero(receivers_named(graph, ["1.3"]))]
    assert chosen == ["1.3.q", "1.1.k", "1.1.v"]


def test_names_that_the_graph_has_not_are_all_reported() -> None:
    t = wrap(tiny("llama"))
    with pytest.raises(GraphMismatch) as caught:
        paths(t, random_pairs(1), senders=each(["embed", "9.9", "mlp7"]), receivers=each(["logits"]))
    assert [fault.where for fault in caught.value.faults] == ["9.9"]
    with pytest.raises(TaskError, match="between 'sometimes'"):
        paths(t, random_pairs(1), senders=each(["embed"]), receivers=each(["logits"]), between="sometimes")
    with pytest.raises(TaskError, match="at least one node"):
        paths(t, random_pairs(1), senders=[NodeSet("none", ())], receivers=each(["logits"]))
