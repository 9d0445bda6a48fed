"""Maps that are stopped at any step and go on from their checkpoint; and numbers that are never collected."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from stopping import StopsAt
from tiny_transformers import random_pairs, tiny
from torch import Tensor

import acdc.tracing.paths
from acdc.errors import Cancelled, ModelError, OutOfMemory
from acdc.metrics import METRICS, Metric
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patch_map import Axis, Cells
from acdc.patching.batches import Batch, make_batches
from acdc.patching.reruns import record_run
from acdc.progress import Checkpoint, Progress, Quiet
from acdc.tasks.prompts import Pair
from acdc.tracing import states
from acdc.tracing.activation import patch_activations
from acdc.tracing.causal import Corruption, Restored, trace_causes
from acdc.tracing.collecting import COPIES, Collected, Outline
from acdc.tracing.knockout import knock_out_attention
from acdc.tracing.paths import each, patch_paths
from acdc.tracing.places import make_places

MEMORY = 2**30
Make = Callable[..., Cells]


class Counts(StopsAt):
    """And counts what it is given."""

    def __init__(self, stop: int = -1, saved: Checkpoint | None = None) -> None:
        super().__init__(stop, saved)
        self.n_saved, self.log_lines = 0, list[str]()

    def save(self, checkpoint: Checkpoint) -> None:
        super().save(checkpoint)
        self.n_saved += 1

    def log(self, message: str) -> None:
        self.log_lines.append(message)


def prompts() -> list[Pair]:
    """Of two lengths, so that there are two batches."""
    roles = {"subject": (1, 3)}
    return [replace(pair, roles={**roles, **pair.roles}) for pair in random_pairs(4, (5, 6))]


def given(t: Transformer, progress: Progress, **options: Any) -> dict[str, Any]:
    pairs = options.pop("pairs", None) or prompts()
    common = {"t": t, "pairs": pairs, "batches": make_batches(t, pairs, 512, MEMORY), "memory_bytes": MEMORY}
    return {**common, "metrics": [METRICS["logit_diff"], METRICS["kl_divergence"]], "progress": progress, **options}


def activations(t: Transformer, progress: Progress, **options: Any) -> Cells:
    asked = given(t, progress, **{"kind": "head", "direction": "noising", **options})
    return patch_activations(asked.pop("t"), places=make_places(asked["pairs"], "role"), **asked)


def paths(t: Transformer, progress: Progress, **options: Any) -> Cells:
    nodes = {"senders": each(["embed", "0.1", "mlp1"]), "receivers": each(["1.0", "mlp2", "logits"])}
    return patch_paths(**given(t, progress, **{**nodes, "between": "free", "direction": "noising", **options}))


def causes(t: Transformer, progress: Progress, **options: Any) -> Cells:
    corruption = Corruption("subject", sigma=3.0, samples=2, seed=1)
    restored = [Restored("residual_after", 1), Restored("mlp", 3)]
    asked = given(t, progress, **{"corruption": corruption, "restored": restored, **options})
    return trace_causes(places=make_places(asked["pairs"], "role"), **asked)


def knockout(t: Transformer, progress: Progress, **options: Any) -> Cells:
    blocked = [("end", "first"), ("end", "subject")]
    return knock_out_attention(**given(t, progress, **{"blocked": blocked, "window": 1, "heads": None, **options}))


every_map = pytest.mark.parametrize("make", [activations, paths, causes, knockout])


def same(ours: Cells, theirs: Cells) -> bool:
    names = ("per_example", "clean", "corrupt")
    return all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in names)


@every_map
def test_map_that_is_cut_at_any_step_and_resumed_is_the_same_to_the_bit(make: Make) -> None:
    t, uncut = wrap(tiny("llama")), Counts()
    whole = make(t, uncut)
    n_steps = uncut.n_saved
    assert uncut.saved is not None
    assert uncut.saved.step == n_steps
    kept = set()
    for stop in sorted({*range(1, 4), *range(4, uncut.calls + 1, 5), uncut.calls}):
        first = Counts(stop)
        with pytest.raises(Cancelled):
            make(t, first)
        second = Counts(saved=first.saved)
        assert same(make(t, second), whole)
        assert first.n_saved + second.n_saved == n_steps  # no step is done twice
        kept.add(first.n_saved)
    assert {0, n_steps} <= kept
    assert len(kept) > n_steps / 4


@every_map
def test_map_that_was_over_when_it_was_cut_computes_nothing_again(make: Make) -> None:
    t, uncut = wrap(tiny("llama")), Counts()
    whole = make(t, uncut)
    again = Counts(saved=uncut.saved)
    assert same(make(t, again), whole)
    assert again.calls == 1


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (knockout, {"window": 3}),
        (activations, {"direction": "denoising"}),
        (activations, {"metrics": [METRICS["logit_diff"]]}),
        (paths, {"pairs": [*prompts()[1:], prompts()[0]]}),
        (causes, {"corruption": Corruption("subject", sigma=3.0, samples=2, seed=2)}),
    ],
)
def test_checkpoint_of_another_map_is_not_used(make: Make, other: dict[str, Any]) -> None:
    t, first = wrap(tiny("llama")), Counts(9)
    with pytest.raises(Cancelled):
        make(t, first)
    assert first.n_saved
    second = Counts(saved=first.saved)
    assert same(make(t, second, **other), make(t, Quiet(), **other))
    assert second.log_lines == ["the checkpoint is of another map: starting over"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def broken(name: str, at: Callable[[Tensor], Tensor]) -> Metric:
    """A logit difference that is no number where `at` says so of what is read [example]."""

    def function(logits: Tensor, batch: Batch, clean_logprobs: Tensor | None) -> Tensor:
        values = METRICS["logit_diff"].function(logits, batch, clean_logprobs)
        return torch.where(at(values), torch.nan, values)

    return Metric(name, function, needs_wrong=True, needs_clean=False, has_gradient=True)


@every_map
def test_metric_that_is_no_number_is_told_at_once_with_its_prompt(make: Make) -> None:
    t, progress = wrap(tiny("llama")), Counts()
    values = knockout(t, Quiet()).clean[0]
    third = broken("odd", lambda read: (read - values[2]).abs() < 1e-6)
    with pytest.raises(ModelError, match=r"odd of prompt 3 in the clean run is nan, .* use dtype float32"):
        make(t, progress, metrics=[METRICS["accuracy"], third])
    assert progress.n_saved == 0


def test_metric_that_is_no_number_of_a_changed_run_is_told_at_its_step() -> None:
    t, progress = wrap(tiny("llama")), Counts()
    first = knockout(t, Quiet()).per_example[0, :, 1, 1]
    odd = broken("odd", lambda read: (read - first[2]).abs() < 1e-6)
    with pytest.raises(ModelError, match="odd of prompt 2 with a change in it is nan"):
        knockout(t, progress, metrics=[odd])
    assert progress.n_saved % t.n_layers == 2


@every_map
def test_map_that_is_larger_than_the_memory_is_refused_before_anything_runs(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    t, progress = wrap(tiny("llama")), Counts()
    needed = COPIES * make(t, Quiet()).per_example.nbytes
    monkeypatch.setattr(Transformer, "attend_late", None)
    with pytest.raises(OutOfMemory) as caught:
        make(t, progress, memory_bytes=needed - 1)
    told = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", caught.value.message)]
    assert told[2:] == [needed, needed - 1]
    assert progress.calls == 0


@pytest.mark.parametrize(("make", "module"), [(activations, states), (paths, acdc.tracing.paths)])
def test_runs_of_one_batch_are_held_at_a_time(make: Make, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is set aside for two."""
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def watched(*args: Any) -> Any:
        alive.append(sum(run() is not None for run in held))
        found = record_run(*args)
        held.append(weakref.ref(found))
        return found

    monkeypatch.setattr(module, "record_run", watched)
    make(wrap(tiny("llama")), Quiet())
    assert alive == [0, 1, 0, 1]  # clean and corrupt of two batches


def test_cells_are_added_where_they_belong() -> None:
    t, pairs = wrap(tiny("toy")), random_pairs(3, (5, 6))  # the second prompt is in a batch of its own
    outline = Outline("any", [Axis("a", tuple("xyz")), Axis("b", tuple("xy"))], "clean", {}, 1)
    batches = make_batches(t, pairs, 512, MEMORY)
    collected = Collected(outline, pairs, batches, [METRICS["accuracy"]], MEMORY, Quiet())
    collected.note_cells(batches[0], (np.array([2, 0]), np.array([1, 1])), np.array([[[1.0, 2.0], [3.0, 4.0]]]))
    collected.note(batches[1], (1,), np.array([[[5.0], [6.0]]]), 0.5)
    found = collected.cells().per_example[0]
    assert found.tolist() == [
        [[0, 0, 0], [3, 0, 4]],
        [[0, 2.5, 0], [0, 3, 0]],
        [[0, 0, 0], [1, 0, 2]],
    ]
