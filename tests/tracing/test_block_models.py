"""Residual patching of models that are known from outside only: a recurrent one, and one that is known both ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_transformers import VOCAB, random_pairs, tiny
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

from acdc.errors import Cancelled, OutOfMemory, TaskError, UnsupportedModel
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patch_map import Cells
from acdc.patching.batches import bucket_pairs
from acdc.progress import Quiet
from acdc.tasks.prompts import Pair
from acdc.tracing.activation import patch_activations
from acdc.tracing.blocks import BlockModel, find_blocks
from acdc.tracing.places import make_places

MEMORY = 2**28


def mamba() -> MambaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MambaForCausalLM(
            MambaConfig(
                vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=3, residual_in_fp32=False, expand=2
            )
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.double().eval()


def run(model: BlockModel | Transformer, pairs: list[Pair], kind: str, **options: Any) -> Cells:
    settings = {"direction": "noising", "memory_bytes": MEMORY, "progress": Quiet(), **options}
    places = make_places(pairs, settings.pop("places", "position"))
    batches = bucket_pairs(model, pairs, settings.pop("batch_tokens", 512))
    metrics = [METRICS["logit_diff"], METRICS["kl_divergence"]]
    return patch_activations(model, pairs, batches, metrics, kind=kind, places=places, **settings)


@torch.no_grad()
def by_hand(model: MambaForCausalLM, tokens: Tensor, other: Tensor, layer: int, position: int, when: str) -> Tensor:
    """Logits [row, vocab] at the end: the blocks called one after the other, without any hook."""

    def states(ids: Tensor) -> list[Tensor]:
        found = [model.backbone.embeddings(ids)]
        for block in model.backbone.layers:
            found.append(block(found[-1]))
        return found

    first = layer if when == "residual_before" else layer + 1
    x, theirs = states(tokens)[first].clone(), states(other)[first]
    x[:, position] = theirs[:, position]
    for block in model.backbone.layers[first:]:
        x = block(x)
    return model.lm_head(model.backbone.norm_f(x))[:, -1]


@pytest.mark.parametrize("kind", ["residual_before", "residual_after"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_every_cell_of_a_recurrent_model_is_its_blocks_run_by_hand(kind: str, direction: str) -> None:
    model, pairs = mamba(), random_pairs(3, (5,))
    cells = run(find_blocks(model), pairs, kind, direction=direction)
    clean, corrupt = torch.tensor([p.clean for p in pairs]), torch.tensor([p.corrupt for p in pairs])
    base, other = (clean, corrupt) if direction == "noising" else (corrupt, clean)
    (batch,) = bucket_pairs(find_blocks(model), pairs, 512)
    for layer in range(3):
        for position in range(5):
            logits = by_hand(model, base, other, layer, position, kind)
            expected = METRICS["logit_diff"](logits, batch).numpy()
            assert np.abs(cells.per_example[0, layer, position] - expected).max() < 1e-6
    assert np.abs(cells.per_example[0] - cells.base_metric[0]).max() > 1e-3


def test_a_recurrent_model_patched_everywhere_is_the_other_run() -> None:
    pairs = random_pairs(4, (5, 7))
    pairs[0] = replace(pairs[0], answers=((1, 2, 3),), wrong=((4,),))
    cells = run(find_blocks(mamba()), pairs, "residual_before", places="all")
    assert np.abs(cells.per_example[:, :, 0] - cells.corrupt[:, None]).max() < 1e-6


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt-neox"])
def test_from_outside_and_from_inside_a_transformer_gives_one_map(name: str) -> None:
    model, pairs = tiny(name), random_pairs(3, (5, 6))
    for kind in ("residual_before", "residual_after"):
        outside, inside = (run(m, pairs, kind, places="from_end") for m in (find_blocks(model), wrap(model)))
        assert np.abs(outside.per_example - inside.per_example).max() < 1e-5
        assert np.abs(outside.corrupt - inside.corrupt).max() < 1e-5


def test_memory_and_batches_change_nothing_of_a_recurrent_models_map() -> None:
    model, pairs = find_blocks(mamba()), random_pairs(4, (5, 8))
    wide = run(model, pairs, "residual_after", places="from_end")
    narrow = run(model, pairs, "residual_after", places="from_end", batch_tokens=8, memory_bytes=90_000)
    assert np.abs(wide.per_example - narrow.per_example).max() < 1e-10
    with pytest.raises(OutOfMemory):
        run(model, pairs, "residual_after", places="from_end", memory_bytes=1000)


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_no_hook_is_left_behind_also_after_an_exception() -> None:
    model, pairs = mamba(), random_pairs(1)
    blocks = find_blocks(model)

    class Stops(Quiet):
        def step(self, done: int, note: str = "") -> None:
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        run(blocks, pairs, "residual_before", progress=Stops())
    assert hooks_of(model) == 0
    broken = model.backbone.layers[1]
    broken.forward = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        blocks.record(torch.tensor([[1, 2, 3]]))
    assert hooks_of(model) == 0


def test_a_recurrent_model_has_no_heads_to_patch() -> None:
    with pytest.raises(TaskError, match=r"no state 'head' to patch; it has: residual_after, residual_before"):
        run(find_blocks(mamba()), random_pairs(1), "head")


def test_a_model_whose_blocks_do_not_carry_everything_is_refused() -> None:
    model = mamba()
    embeddings, norm = model.backbone.embeddings, model.backbone.norm_f
    seen: list[Tensor] = []
    embeddings.register_forward_hook(lambda module, args, out: seen.append(out))
    norm.register_forward_pre_hook(lambda module, args: (args[0] + seen[-1],))  # past the blocks
    with pytest.raises(UnsupportedModel, match="block 0 does not determine what follows"):
        find_blocks(model)


def test_a_bidirectional_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="a later token changes earlier predictions"):
        find_blocks(tiny("toy-bidirectional"))


def test_a_model_without_blocks_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="Linear has no list of some blocks"):
        find_blocks(nn.Linear(2, 2))


class Mixes(nn.Module):
    """A block that carries a state from position to position."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.tanh(x).cumsum(1)


class Scales(nn.Module):
    """A block of another type, that wants its input by name and gives a tuple."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.map = nn.Linear(d, d)

    def forward(self, *, hidden_states: Tensor) -> tuple[Tensor, None]:
        return hidden_states + torch.tanh(self.map(hidden_states)), None


class Hybrid(nn.Module):
    """Blocks of two types in one list."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, d)
        self.blocks = nn.ModuleList([Mixes(), Scales(d), Mixes(), Scales(d)])
        self.head = nn.Linear(d, VOCAB)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, tokens: Tensor) -> Any:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(hidden_states=x)[0] if isinstance(block, Scales) else block(x)
        return SimpleNamespace(logits=self.head(x))


def hybrid() -> Hybrid:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Hybrid().double().eval()


def test_blocks_of_several_types_are_judged_by_what_they_do() -> None:
    model, pairs = hybrid(), random_pairs(3, (5,))
    cells = run(find_blocks(model), pairs, "residual_before")
    assert cells.per_example.shape[1:3] == (4, 5)
    clean, corrupt = (model.embed(torch.tensor([getattr(p, name) for p in pairs])) for name in ("clean", "corrupt"))
    x, theirs = (model.blocks[1](hidden_states=model.blocks[0](one))[0].detach() for one in (clean, corrupt))
    x[:, 2] = theirs[:, 2]  # the stream before block 2 at position 2
    logits = model.head(model.blocks[3](hidden_states=model.blocks[2](x))[0])[:, -1].detach()
    (batch,) = bucket_pairs(find_blocks(model), pairs, 512)
    assert np.abs(cells.per_example[0, 2, 2] - METRICS["logit_diff"](logits, batch).numpy()).max() < 1e-9


def in_a_dictionary(block: nn.Module) -> None:
    block.forward = lambda x: {"x": x}  # type: ignore[assignment, method-assign]


def never(block: nn.Module) -> None:
    """The block is passed by: the model calls its `forward` without it."""
    block.__class__ = Passed


class Passed(Mixes):
    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (in_a_dictionary, "a block of type Mixes gives dict where a tensor was looked for"),
        (never, "Hybrid does not run its 4 blocks once each"),
    ],
)
def test_blocks_without_a_residual_in_and_out_are_refused_in_words(
    breaks: Callable[[nn.Module], None], says: str
) -> None:
    model = hybrid()
    model.blocks[3] = Mixes()
    breaks(model.blocks[3])
    with pytest.raises(UnsupportedModel, match=says):
        find_blocks(model)
    assert hooks_of(model) == 0


def test_model_whose_blocks_take_their_input_by_another_name_is_refused_in_words() -> None:
    class Named(nn.Module):
        def forward(self, *, stream: Tensor) -> Tensor:
            return stream

    model = hybrid()
    model.blocks = nn.ModuleList([Named(), Named()])
    model.forward = lambda tokens: model.blocks[0](stream=model.embed(tokens))  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModel, match="a block of type Named takes NoneType where a tensor was looked for"):
        find_blocks(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    model = mamba()
    with torch.no_grad():
        model.lm_head.weight[3, 0] = value
    with pytest.raises(UnsupportedModel, match=r"logits that are no finite numbers; use dtype float32"):
        find_blocks(model)


def test_an_empty_prompt_set_is_refused() -> None:
    with pytest.raises(TaskError):
        bucket_pairs(find_blocks(mamba()), [], 512)
