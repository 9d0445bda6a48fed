"""Attention knockout against the Hugging Face model with another attention mask in the layers of the window."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from hooked import exact_arithmetic
from known_induction import induction_with
from tiny_transformers import random_pairs, tiny
from torch import Tensor

from acdc.errors import GraphMismatch, OutOfMemory, TaskError
from acdc.evaluation.truth.hand_wired import induction_model
from acdc.metrics import METRICS
from acdc.models.architectures import describe, wrap
from acdc.models.transformer import Transformer
from acdc.patch_map import Cells, PatchMap
from acdc.patching.batches import make_batches
from acdc.progress import Quiet
from acdc.tasks.prompts import Pair, Span, Tokens
from acdc.tracing import knockout
from acdc.tracing.knockout import knock_out_attention
from acdc.tracing.windows import window_around

MEMORY = 2**30


def prompts(n: int, lengths: tuple[int, ...] = (6,)) -> list[Pair]:
    roles: dict[str, Span]
    pairs = []
    for i, pair in enumerate(random_pairs(n, lengths)):
        roles = {"name": (1, 3), "verb": (3 + i % 2, 4 + i % 2), "end": pair.roles["end"]}
        pairs.append(replace(pair, roles=roles))
    return pairs


def knock_out(t: Transformer, pairs: list[Pair], blocked: list[tuple[str, str]], **options: object) -> Cells:
    batches = make_batches(t, pairs, int(options.pop("batch_tokens", 512)), MEMORY)  # type: ignore[call-overload]
    settings = {"window": 1, "heads": None, "memory_bytes": MEMORY, "progress": Quiet(), **options}
    return knock_out_attention(t, pairs, batches, [METRICS["logit_diff"]], blocked=blocked, **settings)  # type: ignore[arg-type]


@torch.no_grad()
def logprobs_with_a_mask(t: Transformer, tokens: Tokens, query: Span, key: Span, layers: range) -> Tensor:
    """The model itself; in the layers its attention modules get a mask with the block in it. [pos, vocab]"""
    n = len(tokens)
    block = torch.zeros(n, n, dtype=torch.bool)
    block[slice(*query), slice(*key)] = True
    distance = torch.arange(n)[:, None] - torch.arange(n)

    def hook(window: int | None) -> Any:
        def put(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            allowed = (distance >= 0) & (distance < (window or n)) & ~block
            mask = torch.zeros(1, 1, n, n, dtype=t.dtype).masked_fill(~allowed, float("-inf"))
            return args, {**kwargs, "attention_mask": mask}

        return put

    row = describe(t.module)
    blocks = attrgetter(row.blocks)(t.module)
    with ExitStack() as hooks:
        for layer in layers:
            attention = attrgetter(row.out.rpartition(".")[0])(blocks[layer])
            handle = attention.register_forward_pre_hook(hook(t.layers[layer].window), with_kwargs=True)
            hooks.callback(handle.remove)
        logits: Tensor = t.module(torch.tensor([tokens])).logits[0]
    return logits.log_softmax(-1)


def with_a_mask(t: Transformer, pair: Pair, query: str, key: str, layers: range) -> float:
    """Logit difference of one right and one wrong answer, each forced in a run of its own. The end is also every place
    after it that a token of the answer is read at."""
    values, end = [], len(pair.clean) - 1
    for answer in (pair.answers[0], pair.wrong[0]):
        tokens = (*pair.clean, *answer[:-1])
        asks = (end, len(tokens)) if query == "end" else pair.roles[query]
        found = logprobs_with_a_mask(t, tokens, asks, pair.roles[key], layers)
        values.append(sum(float(found[end + step, token]) for step, token in enumerate(answer)))
    return values[0] - values[1]


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral-sliding", "gemma2", "gemma3", "gpt-neox"])
def test_every_cell_is_a_forward_with_another_attention_mask(name: str, window: int) -> None:
    model, pairs = tiny(name), prompts(3, (6, 7))
    model.set_attn_implementation("eager")  # the one that takes any mask
    blocked = [("end", "name"), ("end", "verb"), ("verb", "name")]
    with exact_arithmetic(model):
        t = wrap(model)
        cells = knock_out(t, pairs, blocked, window=window)
        for layer in range(t.n_layers):
            for edge, (query, key) in enumerate(blocked):
                for index, pair in enumerate(pairs):
                    expected = with_a_mask(t, pair, query, key, window_around(layer, window, t.n_layers))
                    assert cells.per_example[0, layer, edge, index] == pytest.approx(expected, abs=1e-8)
    assert np.abs(cells.per_example - cells.clean[:, None, None]).max() > 1e-3


@pytest.mark.parametrize("query", ["end", "verb"])
def test_answers_of_two_tokens_are_forced_with_the_attention_blocked(query: str) -> None:
    model = tiny("llama")
    model.set_attn_implementation("eager")
    pairs = [replace(pair, answers=((3 + i, 4),), wrong=((9, 10 + i),)) for i, pair in enumerate(prompts(2, (6, 7)))]
    with exact_arithmetic(model):
        t = wrap(model)
        cells = knock_out(t, pairs, [(query, "name")], window=2)
        for layer in range(t.n_layers):
            for index, pair in enumerate(pairs):
                expected = with_a_mask(t, pair, query, "name", window_around(layer, 2, t.n_layers))
                assert cells.per_example[0, layer, 0, index] == pytest.approx(expected, abs=1e-8)
    assert np.abs(cells.per_example - cells.clean[:, None, None]).max() > 1e-3


def test_heads_blocked_one_by_one_differ_and_all_of_them_are_the_default() -> None:
    t, pairs = wrap(tiny("llama")), prompts(2)
    blocked = [("end", "name")]
    everything = knock_out(t, pairs, blocked, window=9)
    named = [sender.name for sender in t.graph.senders if sender.kind == "head"]
    assert (
        np.abs(knock_out(t, pairs, blocked, window=9, heads=named).per_example - everything.per_example).max() < 1e-12
    )
    one = knock_out(t, pairs, blocked, heads=["1.2"])
    change = np.abs(one.per_example - one.clean[:, None, None]).max((0, 2, 3))
    assert change[1] > 1e-6
    assert change[[0, 2]].max() == 0


# Positions: x a b y f a. Where the end may not look at b it finds a nowhere and takes the mean of the other five, of
# which none is an answer; where b does not know its forerunner, the end takes the mean of all six, of which one is b.
# Clean logit difference 1, corrupt -1: so 1/2 and 5/12 of the way.
KNOWN = {(1, ("end", "b")): 1 / 2, (0, ("b", "a")): 5 / 12}


@pytest.mark.parametrize("window", [1, 3])
def test_on_the_hand_wired_model_only_the_two_known_looks_matter(window: int) -> None:
    """b looks at a in layer 0 (the token before), the end looks at b in layer 1; three layers are the whole model."""
    t, pairs = wrap(induction_model()), induction_with("other answer")
    blocked = [("end", "a"), ("end", "b"), ("b", "a"), ("end", "end")]
    shares = PatchMap.of(knock_out(t, pairs, blocked, window=window), seed=0).normalised("logit_diff").effect
    assert shares is not None
    found = {(int(a), blocked[b]): float(shares[a, b]) for a, b in np.argwhere(np.abs(shares) > 1e-6)}
    known = {(at, edge): share for (layer, edge), share in KNOWN.items() for at in ({layer} if window == 1 else {0, 1})}
    assert found == {cell: pytest.approx(share, abs=1e-9) for cell, share in known.items()}


@pytest.mark.parametrize("n_without", [1, 3])
def test_without_corrupt_prompts_the_effects_are_the_same_and_not_normalised(n_without: int) -> None:
    """Some are not enough: their difference would be too small for the effects of all."""
    t, pairs = wrap(induction_model()), induction_with("other answer")
    without = [replace(pair, corrupt=pair.clean) if i < n_without else pair for i, pair in enumerate(pairs)]
    whole, found = (PatchMap.of(knock_out(t, asked, [("end", "b")]), seed=0) for asked in (pairs, without))
    assert np.array_equal(found.effect, whole.effect)
    assert whole.normalised("logit_diff").effect is not None
    assert np.array_equal(found.cells.corrupt, found.cells.clean)
    assert found.normalised("logit_diff").withheld == "the prompts have no corrupt run to compare with"
    assert found.total("logit_diff") is None
    assert not found.remaining.any()


def test_looking_ahead_is_nothing_to_block() -> None:
    t, pairs = wrap(tiny("gpt2")), prompts(2)
    cells = knock_out(t, pairs, [("name", "end")])
    assert np.abs(cells.per_example - cells.clean[:, None, None]).max() == 0


def test_a_position_left_with_nothing_to_look_at_is_refused() -> None:
    pairs = [replace(pair, roles={"first": (0, 1), **pair.roles}) for pair in prompts(2)]
    with pytest.raises(TaskError, match="first -> first: prompt 1, position 0 could look at nothing"):
        knock_out(wrap(tiny("gpt2")), pairs, [("end", "name"), ("first", "first")])
    with pytest.raises(TaskError, match="end -> all"):
        knock_out(wrap(tiny("toy-bidirectional")), pairs, [("end", "all")])


def test_a_bidirectional_model_has_no_order_of_positions() -> None:
    t, pairs = wrap(tiny("toy-bidirectional")), prompts(2)
    cells = knock_out(t, pairs, [("name", "end")], window=1)
    assert np.abs(cells.per_example[0, 0] - cells.clean[0]).min() > 1e-6


def test_memory_and_batches_change_no_knockout() -> None:
    t, pairs = wrap(tiny("gemma3")), prompts(5, (6, 8))
    blocked = [("end", "name"), ("verb", "name")]
    wide = knock_out(t, pairs, blocked, window=2)
    narrow = knock_out(t, pairs, blocked, window=2, batch_tokens=8, memory_bytes=100_000)
    assert np.abs(wide.per_example - narrow.per_example).max() < 1e-10
    with pytest.raises(OutOfMemory):
        knock_out(t, pairs, blocked, memory_bytes=1000)


def test_one_run_and_the_flags_of_one_batch_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags grow with the square of the length, and memory is set aside for one run."""
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def watched(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any) -> Any:
            alive.append(sum(one() is not None for one in held))
            found = make(*args)
            held.append(weakref.ref(found))
            return found

        return made

    for name in ("_forbidden", "record_run"):
        monkeypatch.setattr(knockout, name, watched(getattr(knockout, name)))
    knock_out(wrap(tiny("llama")), prompts(4, (6, 7)), [("end", "name")])
    assert alive == [
        0,
        0,
        0,
        1,
        0,
        1,
    ]  # of two batches: flags to check both; then of each the flags, beside them the run


def test_unknown_heads_and_roles_are_refused_by_name() -> None:
    t, pairs = wrap(tiny("gpt2")), prompts(1)
    with pytest.raises(GraphMismatch, match=r"9\.9: no such head"):
        knock_out(t, pairs, [("end", "name")], heads=["1.1", "9.9"])
    with pytest.raises(TaskError, match="nobody"):
        knock_out(t, pairs, [("end", "nobody")])


@pytest.mark.parametrize(
    ("blocked", "where"),
    [
        ([("end", "nobody"), ("who", "name")], ["nobody", "who"]),
        ([("end", "name"), ("first", "first")], ["first -> first"]),
        ([], ["blocked"]),
    ],
)
def test_unknown_heads_hide_no_other_fault(blocked: list[tuple[str, str]], where: list[str]) -> None:
    pairs = [replace(pair, roles={"first": (0, 1), **pair.roles}) for pair in prompts(2)]
    with pytest.raises(TaskError) as caught:
        knock_out(wrap(tiny("gpt2")), pairs, blocked, heads=["9.9", "1.1", "8.8"])
    assert [fault.where for fault in caught.value.faults] == [*where, "9.9", "8.8"]
