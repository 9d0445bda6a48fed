"""What evaluation asks of the executor, and a ledger that never asks the same thing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from acdc.errors import ModelError
from acdc.evaluation.memory import Memory, key_of
from acdc.evaluation.outcomes import Floats, Outcome, Outcomes
from acdc.graph import BoolMatrix
from acdc.progress import Progress

ROWS_PER_CALL = 256  # prompts x circuits handed over at once: enough to fill batches, small enough to cancel between


class Measure(Protocol):
    """One set of prompts, one model, one metric, one ablation: circuits in, numbers per example out.

    The model itself is the mask of all legal edges, the empty circuit the mask of none.
    """

    @property
    def n_examples(self) -> int: ...

    def __call__(self, masks: Sequence[BoolMatrix]) -> Outcomes: ...


@dataclass(frozen=True, eq=False)
class Split:
    """One set of prompts and how it is measured.

    name: search or held_out. metric_corrupt: float [n_examples], the model's metric on the corrupt prompts. groups:
    each example's group. chance: the accuracy that guessing would reach.
    """

    name: str
    measure: Measure
    metric_corrupt: Floats
    groups: Sequence[str]
    chance: float


class Ledger:
    """Every circuit measured on a split, each once. `measured` counts the circuits that were really run.

    memory: holds what was measured, also by others in the same place: the split's name unless another is given.
    """

    def __init__(self, split: Split, progress: Progress, memory: Memory | None = None, place: str = "") -> None:
        self.split = split
        self.measured = 0
        self._progress = progress
        self._memory = memory or Memory()
        self._outcomes = self._memory.at(place or split.name)

    def __call__(self, mask: BoolMatrix) -> Outcome:
        return self.all_of([mask])[0]

    def has(self, mask: BoolMatrix) -> bool:
        return key_of(mask) in self._outcomes

    def known(self, mask: BoolMatrix) -> Outcome:
        """Of a circuit that was measured before; raises KeyError for another."""
        return self._outcomes[key_of(mask)]

    def all_of(self, masks: Sequence[BoolMatrix], done_before: int = 0) -> list[Outcome]:
        """Outcomes of the circuits, in order; progress steps count on from `done_before`.

        Raises ModelError where a number is not finite, and Cancelled when the run is to stop.
        """
        new = {key_of(mask): mask for mask in masks if not self.has(mask)}
        per_call = max(1, ROWS_PER_CALL // max(1, self.split.measure.n_examples))
        keys = list(new)
        done = done_before + len(masks) - len(keys)
        for start in range(0, len(keys), per_call):
            self._progress.step(done, self.split.name)
            self._run({key: new[key] for key in keys[start : start + per_call]})
            done += min(per_call, len(keys) - start)
        self._progress.step(done, self.split.name)
        return [self._outcomes[key_of(mask)] for mask in masks]

    def _run(self, masks: dict[bytes, BoolMatrix]) -> None:
        outcomes = self.split.measure(list(masks.values()))
        for name, numbers in (
            ("metric", outcomes.metric),
            ("KL", outcomes.kl),
            ("log-probability", outcomes.answer_logprob),
        ):
            if not np.isfinite(numbers).all():
                raise ModelError(
                    f"the masked forward gave a {name} that is not a finite number on the {self.split.name} prompts; "
                    "use dtype float32 or check the weights"
                )
        self._outcomes.update((key, outcomes.row(i)) for i, key in enumerate(masks))
        self.measured += len(masks)
        self._memory.on_change()
