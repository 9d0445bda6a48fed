"""Activation patching against one forward of the Hugging Face model with one hook for every cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hooked import State, exact_arithmetic, logits_with, see_state
from known_induction import induction_with
from tiny_transformers import MAKERS, random_pairs, tiny
from torch import Tensor

from acdc.errors import Cancelled, OutOfMemory, TaskError
from acdc.evaluation.truth.hand_wired import induction_model
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patch_map import Cells, PatchMap
from acdc.patching.batches import Batch, make_batches
from acdc.progress import Quiet
from acdc.tasks.prompts import Pair
from acdc.tracing.activation import patch_activations
from acdc.tracing.places import make_places, role_places
from acdc.tracing.states import TransformerStates

MEMORY = 2**30
LOGIT_DIFF = [METRICS["logit_diff"]]


def pairs_with_common_beginning(n: int, lengths: tuple[int, ...] = (6,)) -> list[Pair]:
    """Clean and corrupt start with the same one or two tokens, as real pairs do."""
    pairs = random_pairs(n, lengths)
    return [
        replace(pair, corrupt=(*pair.clean[: 1 + i % 2], *pair.corrupt[1 + i % 2 :])) for i, pair in enumerate(pairs)
    ]


def run(model: object, pairs: list[Pair], kind: str, **options: object) -> Cells:
    t = wrap(model)  # type: ignore[arg-type]
    batches = make_batches(t, pairs, int(options.pop("batch_tokens", 512)), MEMORY)  # type: ignore[call-overload]
    places = make_places(pairs, str(options.pop("places", "position")))
    settings = {"metrics": LOGIT_DIFF, "direction": "noising", "memory_bytes": MEMORY, "progress": Quiet(), **options}
    return patch_activations(t, pairs, batches, kind=kind, places=places, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_cell_is_a_forward_with_one_hook(name: str, direction: str) -> None:
    model, pairs = tiny(name), pairs_with_common_beginning(2, (5,))
    with exact_arithmetic(model):
        t = wrap(model)
        (batch,) = make_batches(t, pairs, 512, MEMORY)
        base, other = (batch.clean, batch.corrupt) if direction == "noising" else (batch.corrupt, batch.clean)
        for kind in TransformerStates(t).kinds:
            cells = run(model, pairs, kind, direction=direction)
            assert cells.per_example.any()
            n_parts = len(cells.axes[2].labels) if len(cells.axes) == 4 else 1
            patched = cells.per_example[0].reshape(t.n_layers, n_parts, batch.length, -1)
            for layer in range(t.n_layers) if direction == "noising" else [1]:  # which only swaps the runs
                for part in range(n_parts):
                    expected = one_hook_a_place(t, batch, base, other, (kind, layer, part))
                    assert np.abs(patched[layer, part] - expected).max() < 1e-8 * max(1, np.abs(expected).max())


def one_hook_a_place(t: Transformer, batch: Batch, base: Tensor, other: Tensor, state: State) -> Any:
    """[place, example]: the model's rows do not mix, so one forward serves all places."""
    n, (rows, length) = base.shape[1], base.shape
    theirs = see_state(t, other, state)
    where = torch.eye(n, dtype=torch.bool).repeat_interleave(rows, 0)
    logits = logits_with(t, base.repeat(n, 1), state, theirs.repeat(n, 1, 1), where).view(n, rows, length, -1)
    return [METRICS["logit_diff"](one[batch.read_row, batch.read_pos], batch).numpy() for one in logits]


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "gpt-neox", "toy-bidirectional"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_everything_at_all_positions_before_the_first_layer_gives_the_other_run(name: str, direction: str) -> None:
    pairs = random_pairs(4, (5, 7))
    if name != "toy-bidirectional":
        pairs[0] = replace(pairs[0], answers=((1, 2, 3), (4,)))
    cells = run(tiny(name), pairs, "residual_before", places="all", direction=direction)
    assert np.abs(cells.per_example[:, 0, 0] - cells.other_metric).max() < 1e-10
    assert np.abs(cells.other_metric - cells.base_metric).min() > 1e-3


KNOWN = {
    # b is no longer preceded by a: 0.0 writes another token where b stands, and 1.0 does not find it there
    "broken match": {
        "head": {(0, 0, 2), (1, 0, 5)},
        "q": set(),
        "k": {(1, 0, 2)},
        "v": {(0, 0, 1)},
        "attention": {(0, 2), (1, 5)},
        "residual_before": {(0, 1), (1, 2)},
        "residual_after": {(0, 2), (1, 5)},
    },
    # another answer: 1.0 copies it
    "other answer": {
        "head": {(1, 0, 5)},
        "q": set(),
        "k": set(),
        "v": {(1, 0, 2)},
        "attention": {(1, 5)},
        "residual_before": {(0, 2), (1, 2)},
        "residual_after": {(0, 2), (1, 5)},
    },
    # another question: 1.0 looks for another token
    "other question": {
        "head": {(1, 0, 5)},
        "q": {(1, 0, 5)},
        "k": set(),
        "v": set(),
        "attention": {(1, 5)},
        "residual_before": {(0, 5), (1, 5)},
        "residual_after": {(0, 5), (1, 5)},
    },
}


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("corruption", sorted(KNOWN))
def test_on_the_hand_wired_model_a_map_shows_the_known_states_and_nothing_else(corruption: str, direction: str) -> None:
    pairs = induction_with(corruption)
    for kind, expected in KNOWN[corruption].items():
        effect = PatchMap.of(run(induction_model(), pairs, kind, direction=direction), seed=0).effect[0]
        assert {tuple(map(int, cell)) for cell in np.argwhere(np.abs(effect) > 1e-6)} == expected, kind


@pytest.mark.parametrize("kind", ["head", "residual_before", "k", "mlp"])
def test_memory_and_batches_change_nothing(kind: str) -> None:
    model, pairs = tiny("gemma3"), pairs_with_common_beginning(5, (5, 8))
    every = list(METRICS.values())
    wide = run(model, pairs, kind, places="from_end", metrics=every)
    t = wrap(model)
    states = TransformerStates(t)
    one = make_batches(t, pairs[1:2], 16, MEMORY)[0]
    least = states.bytes_of_runs(one) + states.bytes_of_row(8, 8) + t.d_model * 8  # and what one cell ends with
    narrow = run(model, pairs, kind, places="from_end", metrics=every, batch_tokens=8, memory_bytes=least)
    assert np.abs(wide.per_example - narrow.per_example).max() < 1e-10
    assert np.abs(wide.clean - narrow.clean).max() < 1e-10
    with pytest.raises(OutOfMemory, match="one prompt from 8 positions"):
        run(model, [replace(pairs[1], corrupt=tuple(reversed(pairs[1].clean)))], kind, memory_bytes=least - 1)
    with pytest.raises(OutOfMemory, match="recorded runs"):
        run(model, pairs[1:2], kind, memory_bytes=4000)


def test_a_role_is_patched_as_a_whole_wherever_it_stands() -> None:
    pairs = [replace(pair, roles={"name": (i, i + 2)}) for i, pair in enumerate(random_pairs(3, (6, 8)))]
    t = wrap(tiny("llama"))
    places = role_places(pairs, ["name", "all"])
    cells = patch_activations(
        t,
        pairs,
        make_batches(t, pairs, 512, MEMORY),
        LOGIT_DIFF,
        kind="residual_after",
        places=places,
        direction="noising",
        memory_bytes=MEMORY,
        progress=Quiet(),
    )
    for index, pair in enumerate(pairs):
        tokens, corrupt = torch.tensor([pair.clean]), torch.tensor([pair.corrupt])
        where = torch.zeros_like(tokens, dtype=torch.bool)
        where[:, index : index + 2] = True
        theirs = see_state(t, corrupt, ("residual_after", 0, 0))
        logits = logits_with(t, tokens, ("residual_after", 0, 0), theirs, where)[0, -1]
        expected = float(logits[pair.answers[0][0]] - logits[pair.wrong[0][0]])
        assert cells.per_example[0, 0, 0, index] == pytest.approx(expected, abs=1e-5)
    assert np.abs(cells.per_example[0, 0, 1] - cells.corrupt[0]).max() < 1e-10


def test_an_answer_of_several_tokens_is_patched_in_all_its_rows() -> None:
    pairs = [replace(pair, answers=((1, 2, 3), (4,)), wrong=((5, 6),)) for pair in pairs_with_common_beginning(2)]
    metrics = [METRICS["answer_logprob"], METRICS["logit_diff"]]
    t = wrap(tiny("gpt2"))
    cells = run(t.module, pairs, "head", metrics=metrics)
    (batch,) = make_batches(t, pairs, 512, MEMORY)
    theirs = see_state(t, batch.corrupt, ("head", 1, 2))
    where = torch.zeros_like(batch.clean, dtype=torch.bool)
    where[:, 4] = True
    logits = logits_with(t, batch.clean, ("head", 1, 2), theirs, where)
    for number, metric in enumerate(metrics):
        expected = metric(logits[batch.read_row, batch.read_pos], batch).numpy()
        assert np.abs(cells.per_example[number, 1, 2, 4] - expected).max() < 1e-8


def test_the_end_goes_on_where_the_rest_of_an_answer_is_read_and_other_roles_do_not() -> None:
    """Rows of one pair: the bare prompt of 6 and two tokens of filling, then the prompt with the first answer's."""
    pair = replace(random_pairs(1)[0], answers=((1, 2, 3),), wrong=((5,),))
    (batch,) = make_batches(wrap(tiny("gpt2")), [pair], 512, MEMORY)
    places = role_places([pair], ["first", "end", "all"])
    assert (batch.n_rows, batch.length) == (2, 8)
    positions = [[np.flatnonzero(row).tolist() for row in place] for place in places.in_batch(batch)]
    assert positions == [[[0]] * 2, [[5, 6, 7]] * 2, [list(range(8))] * 2]
    assert np.flatnonzero(places.in_prompts(batch)[1, 0]).tolist() == [5]
    from_end = make_places([pair], "from_end")
    assert np.flatnonzero(from_end.in_batch(batch)[-1, 0]).tolist() == [5]


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_is_read_as_on_the_models_own_logits(metric: str) -> None:
    t, pairs = wrap(tiny("toy")), pairs_with_common_beginning(3)
    cells = run(t.module, pairs, "mlp", metrics=[METRICS[metric]])
    (batch,) = make_batches(t, pairs, 512, MEMORY)
    clean, corrupt = (t.module(tokens).logits[:, -1].detach() for tokens in (batch.clean, batch.corrupt))
    logprobs = clean.log_softmax(-1)
    assert np.abs(cells.clean[0] - METRICS[metric](clean, batch, logprobs).numpy()).max() < 1e-8
    assert np.abs(cells.corrupt[0] - METRICS[metric](corrupt, batch, logprobs).numpy()).max() < 1e-8


def test_absolute_positions_of_different_lengths_are_refused_and_roles_named() -> None:
    with pytest.raises(TaskError, match="by role, or from_end"):
        make_places(random_pairs(2, (5, 6)), "position")


def test_a_role_that_prompts_lack_is_refused_with_their_numbers() -> None:
    pairs = random_pairs(3)
    pairs[1] = replace(pairs[1], roles={"end": (5, 6)})
    with pytest.raises(TaskError, match=r"first: 1 prompts have no such role \(2\); all have: end") as caught:
        role_places(pairs, ["first", "end", "nobody"])
    assert [fault.where for fault in caught.value.faults] == ["first", "nobody"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "residual_between"}, "no state 'residual_between'"),
        ({"kind": "head", "direction": "sideways"}, "direction 'sideways'"),
        ({"kind": "head", "places": "somewhere"}, "places 'somewhere'"),
    ],
)
def test_what_a_model_has_not_is_refused_with_what_it_has(options: dict[str, str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        run(tiny("gpt-neox"), random_pairs(1), **options)  # type: ignore[arg-type]


class StopsAtOnce(Quiet):
    def step(self, done: int, note: str = "") -> None:
        raise Cancelled("stopped by the test")


def test_a_map_can_be_cancelled() -> None:
    with pytest.raises(Cancelled):
        run(tiny("toy"), random_pairs(1), "head", progress=StopsAtOnce())
