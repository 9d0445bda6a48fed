"""The masked forward against independent oracles: the model itself, hooks on the model, and the formula spelled out."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from tiny_transformers import MAKERS, random_pairs, tiny
from torch import Tensor, nn

from acdc.errors import BadWeights, OutOfMemory, ParityFailed, UnsupportedModel
from acdc.metrics import METRICS
from acdc.models.architectures import ARCHITECTURES, describe, wrap
from acdc.models.parity import check_parity, probe_tokens
from acdc.models.transformer import Transformer, as_found
from acdc.patching.ablation import Resample, Zero, mean_over
from acdc.patching.batches import make_batches
from acdc.patching.circuits import measure, prepare, require_memory
from acdc.patching.forward import NodeOutputs, Prefix, record
from acdc.patching.masked import run_masked

MEMORY = 2**30


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_all_ones_are_the_models_logits_and_all_zeros_the_corrupt_runs(name: str) -> None:
    t = wrap(tiny(name, torch.float32))
    assert check_parity(t, *probe_tokens(t)).worst < 1e-4


def test_every_described_architecture_is_tried() -> None:
    tried = {describe(tiny(name)).name for name in MAKERS}
    assert tried == {row.name for row in ARCHITECTURES}


@pytest.mark.parametrize("name", ["gpt2", "toy"])
def test_position_can_be_a_sender_of_its_own(name: str) -> None:
    t = wrap(tiny(name), split_position=True)
    assert [sender.name for sender in t.graph.senders[:2]] == ["embed", "pos"]
    assert check_parity(t, *probe_tokens(t)).worst < 1e-6


def test_rotary_positions_cannot_be_split_off() -> None:
    with pytest.raises(UnsupportedModel, match="no position embedding"):
        wrap(tiny("llama"), split_position=True)


def masked_by_the_formula(
    t: Transformer, clean: Tensor, ablation: NodeOutputs, mask: Tensor, roles: Tensor | None = None
) -> Tensor:
    """input_r = c_r + sum_s [a_s + M (out_s - a_s)], one receiver and one sender at a time, with the model's own norms
    and projections. roles: of each token, where edges are split by them. Returns logits [batch, pos, vocab]."""
    row, module = describe(t.module), t.module
    blocks = list(attrgetter(row.blocks)(module))
    outputs: list[Tensor] = list(t.embed(clean))
    cut: list[Tensor] = list(ablation.inputs)
    constant = torch.zeros(t.d_model, dtype=t.dtype)

    def at(receiver: str) -> Tensor:
        columns = torch.full(clean.shape, t.graph.n_receivers - 1)
        for row, pos in np.ndindex(*clean.shape):
            role = "" if roles is None else f"@{t.graph.shape.roles[int(roles[row, pos])]}"
            if receiver != "logits":
                columns[row, pos] = t.graph.receiver_index(receiver + role)
        total = constant.expand(*clean.shape, -1).clone()
        for s in range(int(t.graph.n_senders_before[columns[0, 0]])):
            total = total + cut[s] + mask[s][columns].unsqueeze(-1) * (outputs[s] - cut[s])
        return total

    rope = t.rope(outputs[0])
    for index, (block, layer) in enumerate(zip(blocks, t.layers, strict=True)):
        norm = attrgetter(row.read_norm)(block)
        parts: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
        for kind, count in (("q", t.n_heads), ("k", t.n_kv_heads), ("v", t.n_kv_heads)):
            for head in range(count):
                full = project(row, block, kind, norm(at(f"{index}.{head}.{kind}")), t)
                parts[kind].append(full[..., head * t.d_head : (head + 1) * t.d_head])
        q, k, v = (torch.stack(parts[kind], 1) for kind in "qkv")
        z = t.share(layer, t.attend(layer, q, k, v, rope))
        parallel = at(f"mlp{index}") if t.is_parallel else None
        for head in range(t.n_heads):
            of_head = slice(head * t.d_head, (head + 1) * t.d_head)
            outputs.append(z[..., of_head] @ layer.w_out[head])
            cut.append(ablation.z[index][..., of_head] @ layer.w_out[head])
        if layer.b_out is not None:
            constant = constant + layer.b_out
        if layer.mlp is not None:
            outputs.append(layer.mlp(at(f"mlp{index}") if parallel is None else parallel))
            cut.append(ablation.mlp[index])
    return t.unembed(at("logits"))


def project(row: Any, block: nn.Module, kind: str, x: Tensor, t: Transformer) -> Tensor:
    """The model's own projection of x to all q, k or v: [batch, pos, heads * e]."""
    if not row.fused:
        out: Tensor = attrgetter(row.qkv["qkv".index(kind)])(block)(x)
        return out
    fused = attrgetter(row.qkv[0])(block)(x)
    if row.fused == "blocks":
        return fused.chunk(3, -1)["qkv".index(kind)]
    return fused.unflatten(-1, (t.n_heads, 3, t.d_head))[..., "qkv".index(kind), :].flatten(-2)


@pytest.mark.parametrize("name", ["gpt2", "llama-with-biases", "qwen3", "gemma2", "gemma3", "gpt-neox", "toy"])
@torch.no_grad()
def test_any_mask_gives_what_the_formula_says_and_rows_do_not_mix(name: str) -> None:
    t = wrap(tiny(name))
    clean, corrupt = probe_tokens(t, length=5)
    ablation, _ = record(t, corrupt)
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(3, *t.graph.legal.shape, generator=generator, dtype=torch.float64)
    masks[1] = (masks[1] < 0.5).double()
    together = t.unembed(run_masked(t, t.embed(clean), ablation, masks))
    for mask, logits in zip(masks, together, strict=True):
        expected = masked_by_the_formula(t, clean, ablation, mask)
        assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gpt-neox", "toy"])
@torch.no_grad()
def test_cutting_all_that_leaves_a_node_equals_substituting_its_output_by_a_hook(name: str, kind: str) -> None:
    t = wrap(tiny(name))
    row = describe(t.module)
    batches = make_batches(t, random_pairs(3), 512, MEMORY)
    ablation = Zero() if kind == "zero" else mean_over(t, batches, per_role=False)
    values = ablation.values(t, batches[0])
    blocks = list(attrgetter(row.blocks)(t.module))
    head, of_head = 1, slice(t.d_head, 2 * t.d_head)

    def replace_head(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., of_head] = values.z[1][..., of_head]
        return (z, *args[1:])

    def replace_mlp(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return values.mlp[2].expand_as(out)

    mask = torch.from_numpy(t.graph.legal.copy()).double()
    mask[t.graph.sender_index(f"1.{head}")] = 0
    handles = [attrgetter(row.out)(blocks[1]).register_forward_pre_hook(replace_head)]
    if t.graph.shape.n_layers > 2:
        mask[t.graph.sender_index("mlp2")] = 0
        handles.append(attrgetter(row.mlp)(blocks[2]).register_forward_hook(replace_mlp))
    expected = t.module(batches[0].clean).logits
    for handle in handles:
        handle.remove()
    ours = t.unembed(run_masked(t, t.embed(batches[0].clean), values, mask[None])[0])
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_role_means_are_means_over_the_positions_of_that_role() -> None:
    t = wrap(tiny("llama"))
    pairs = random_pairs(5, lengths=(5, 6))
    batches = make_batches(t, pairs, 512, MEMORY)
    mean = mean_over(t, batches, per_role=True)
    outputs = [record(t, torch.tensor([pair.clean]))[0] for pair in pairs]
    for role, place in (("first", 0), ("end", -1)):
        expected = torch.stack([o.z[1][0, place] for o in outputs]).mean(0)
        assert torch.allclose(mean.by_role[role].z[1][0, 0], expected, atol=1e-10)
    everywhere = torch.cat([o.mlp[0][0] for o in outputs]).mean(0)
    assert torch.allclose(mean.overall.mlp[0][0, 0], everywhere, atol=1e-10)
    spread = mean.values(t, batches[0])
    assert torch.equal(spread.z[1][0, 0], mean.by_role["first"].z[1][0, 0])
    assert torch.equal(spread.z[1][0, 2], mean.overall.z[1][0, 0])


@torch.no_grad()
def test_means_are_of_prompts_whatever_the_answers_are() -> None:
    t = wrap(tiny("llama"))
    short = random_pairs(4, lengths=(5, 6))
    long = [replace(short[0], answers=((1, 2, 3), (4, 5))), *short[1:]]
    one, other = (mean_over(t, make_batches(t, pairs, 512, MEMORY), per_role=True) for pairs in (short, long))
    assert torch.allclose(one.overall.z[1], other.overall.z[1], atol=1e-9)
    assert torch.allclose(one.by_role["end"].z[1], other.by_role["end"].z[1], atol=1e-9)


def test_mixed_lengths_give_the_metrics_of_single_prompts() -> None:
    t = wrap(tiny("gemma3"))
    pairs = random_pairs(7, lengths=(4, 7, 5))
    mask = torch.from_numpy(np.random.default_rng(0).random(t.graph.legal.shape) < 0.5).double()[None]
    metrics = list(METRICS.values())
    ablation = Zero()
    together = measure(t, prepare(t, make_batches(t, pairs, 16, MEMORY), ablation), mask, metrics, MEMORY)
    for index, pair in enumerate(pairs):
        alone = measure(t, prepare(t, make_batches(t, [pair], 512, MEMORY), ablation), mask, metrics, MEMORY)
        for metric in metrics:
            assert together[metric.name][0, index] == pytest.approx(alone[metric.name][0, 0], abs=1e-5)


def test_tiles_of_circuits_do_not_change_what_is_measured() -> None:
    t = wrap(tiny("llama"))
    prompts = prepare(t, make_batches(t, random_pairs(3), 512, MEMORY), Zero())
    masks = torch.rand(5, *t.graph.legal.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = measure(t, prompts, masks, [METRICS["logit_diff"]], MEMORY)["logit_diff"]
    narrow = measure(t, prompts, masks, [METRICS["logit_diff"]], 1)["logit_diff"]
    assert np.allclose(wide, narrow, atol=1e-9)


def test_a_prompt_that_does_not_fit_is_out_of_memory_with_the_numbers() -> None:
    t = wrap(tiny("llama"))
    with pytest.raises(OutOfMemory, match=r"6 tokens needs .* bytes"):
        make_batches(t, random_pairs(1), 512, 1000)


def test_prompts_whose_runs_cannot_fit_are_refused_before_they_run() -> None:
    t = wrap(tiny("gpt2"))
    batches = make_batches(t, random_pairs(5, lengths=(6,)), 512, MEMORY)
    held = [p.ablation for p in prepare(t, batches, Resample())]
    outputs = sum(x.nbytes for one in held for x in (one.inputs, one.inputs, *one.z, *one.mlp))  # inputs of both runs
    needed = outputs + 5 * t.vocab_size * 8
    require_memory(t, batches, needed)
    with pytest.raises(OutOfMemory, match=f"5 prompts of this model need {needed:,} bytes"):
        require_memory(t, batches, needed - 1)


def test_the_model_is_left_exactly_as_found_also_after_an_exception() -> None:
    model = tiny("gpt2")
    model.train()
    model.transformer.h[0].eval()
    model.lm_head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    t = wrap(model)

    def fail_inside() -> None:
        with as_found(model):
            check_parity(t, *probe_tokens(t))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="Linear"):
        wrap(nn.Linear(2, 2))


def test_a_model_with_a_feature_that_is_not_described_fails_parity() -> None:
    model = tiny("llama", torch.float32)
    t = wrap(model)
    attention = model.model.layers[0].self_attn
    attention.scaling *= 1.5
    with pytest.raises(ParityFailed, match="plain forward of this llama model"):
        check_parity(t, *probe_tokens(t))


def test_weights_that_are_not_numbers_are_bad_weights() -> None:
    model = tiny("llama", torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    t = wrap(model)
    with pytest.raises(BadWeights, match="not finite"):
        check_parity(t, *probe_tokens(t))


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "mistral-sliding", "gemma2", "gemma3", "gpt-neox", "toy-bidirectional"]
)
def test_a_common_beginning_is_not_run_again_and_changes_nothing(name: str) -> None:
    t = wrap(tiny(name))
    pairs = [replace(pair, clean=(*pair.corrupt[:3], *pair.clean[3:])) for pair in random_pairs(4, (6, 7))]
    prompts = prepare(t, make_batches(t, pairs, 512, MEMORY), Resample())
    assert {p.prefix.start for p in prompts} == ({3} if t.is_causal else {0})
    masks = (torch.rand(4, *t.graph.legal.shape, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    rest = measure(t, prompts, masks, [METRICS["kl_divergence"]], MEMORY)["kl_divergence"]
    whole = [replace(p, prefix=Prefix()) for p in prompts]
    assert np.allclose(rest, measure(t, whole, masks, [METRICS["kl_divergence"]], MEMORY)["kl_divergence"], atol=1e-10)
    some = [p.narrowed([0, 1]) for p in prompts]
    few = measure(t, [p for p in some if p], masks, [METRICS["kl_divergence"]], MEMORY)["kl_divergence"]
    assert np.allclose(few, rest[:, :2], atol=1e-10)
    assert {p.prefix.start for p in prepare(t, [p.batch for p in prompts], Zero())} == {0}
