"""One problem on several devices that share the rows of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from acdc.discovery.candidates import Candidates
from acdc.graph import BoolMatrix
from acdc.patching.circuits import PerExample

T = TypeVar("T")
W = TypeVar("W")


class Pool:
    """Replicas of the standing circuit, one a device: all are told every decision, and a chain's rows are cut into as
    many runs as there are replicas. No decision depends on how many there are, since where a row's last bits could
    matter the first replica decides by a whole masked forward. That takes devices of one kind: how far rows are off is
    measured on whichever has the row."""

    def __init__(self, replicas: Sequence[Candidates]) -> None:
        self._replicas = list(replicas)
        self._threads = ThreadPoolExecutor(len(self._replicas), "replica") if len(self._replicas) > 1 else None

    @property
    def node_runs(self) -> int:
        return sum(replica.node_runs for replica in self._replicas)

    def open(self, receiver: int, senders: Sequence[int]) -> None:
        self._all(lambda replica: replica.open(receiver, senders))

    def values(self, will_go: Sequence[bool]) -> PerExample:
        """See `Candidates.values`: [sender, example]"""
        cuts = np.linspace(0, len(will_go), len(self._replicas) + 1).round().astype(int)
        work = [
            (replica, range(int(first), int(last)))
            for replica, first, last in zip(self._replicas, cuts, cuts[1:], strict=False)
            if first < last
        ]
        return np.concatenate(self._each(lambda pair: pair[0].values(will_go, pair[1]), work))

    @property
    def rows_at_once(self) -> int:
        return len(self._replicas) * self._replicas[0].rows_at_once

    def value(self) -> PerExample:
        return self._replicas[0].value()

    def decide(self, goes: Sequence[bool]) -> None:
        self._all(lambda replica: replica.decide(goes))

    def skip(self, receiver: int, kept: npt.NDArray[np.bool_]) -> None:
        self._all(lambda replica: replica.skip(receiver, kept))

    def leave(self, kept: npt.NDArray[np.bool_]) -> PerExample | None:
        return self._all(lambda replica: replica.leave(kept))[0]

    def require_finite(self, value: PerExample, receiver: int) -> None:
        """Raises ModelError."""
        self._replicas[0].problem.require_finite(value, receiver)

    def by_whole_forward(self, circuit: BoolMatrix) -> float:
        return self._replicas[0].by_whole_forward(circuit)

    def _all(self, work: Callable[[Candidates], T]) -> list[T]:
        return self._each(work, self._replicas)

    def _each(self, work: Callable[[W], T], over: Sequence[W]) -> list[T]:
        return list(map(work, over) if self._threads is None else self._threads.map(work, over))
