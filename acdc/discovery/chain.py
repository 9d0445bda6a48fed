"""Which edges to test at once: what will become of each is guessed, and a chain ends where guesses fail too often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acdc.circuit import Scores
from acdc.graph import BoolMatrix

STAYS = 1 / 30  # of the edges, as if 30 had been seen before the first
FEW = 4.0  # edges of a size, until which all edges speak for them
OVERHEAD_ROWS = 2.0  # what starting a batch costs, in rows, until that is known
LEAST_OVERHEAD, MOST_OVERHEAD = 0.25, 256.0
REMEMBERED = 0.95  # of what batches took, with each further batch
SPREAD = 0.2  # of the numbers of rows, over their mean: of batches more alike nothing can be told
LONGEST = 256


class Odds:
    """How likely an edge is to stay: as often as edges that were guessed to cost about as much have stayed so far.

    guess [senders, receivers]: what edges cost, roughly, or 0 where nothing is known; only its order of size and its
    sign matter, so any attribution serves. Decisions do not depend on it.
    """

    def __init__(self, guess: Scores, kept: BoolMatrix, tested: BoolMatrix) -> None:
        """kept, tested: what a search that goes on has found so far."""
        size = np.log2(np.abs(guess), where=guess != 0, out=np.zeros_like(guess)).round().astype(int)
        known = size - int(size.min()) + 1
        self._kind = np.where(guess == 0, 0, np.where(guess > 0, known, -known)) + int(known.max())
        n_kinds = 2 * int(known.max()) + 1
        self._seen = np.bincount(self._kind[tested], minlength=n_kinds).astype(float)
        self._stayed = np.bincount(self._kind[tested & kept], minlength=n_kinds).astype(float)

    def saw(self, sender: int, receiver: int, stays: bool) -> None:
        kind = self._kind[sender, receiver]
        self._seen[kind] += 1
        self._stayed[kind] += stays

    def of(self, senders: Sequence[int], receiver: int) -> list[float]:
        """The probability that each stays."""
        of_all = (self._stayed.sum() + 1) / (self._seen.sum() + 1 / STAYS)
        kinds = self._kind[senders, receiver]
        odds: list[float] = ((self._stayed[kinds] + FEW * of_all) / (self._seen[kinds] + FEW)).tolist()
        return odds


class Pace:
    """What batches of some kind cost beside their rows: weights are read once for all rows, and on a GPU most of the
    time is spent on starting kernels. Told by the straight line through what the latest batches took."""

    def __init__(self) -> None:
        self.overhead = OVERHEAD_ROWS  # in rows
        self._sums = np.zeros(5)  # over batches: of 1, rows, seconds, rows^2, rows * seconds

    def took(self, rows: int, seconds: float) -> None:
        self._sums = REMEMBERED * self._sums + (1, rows, seconds, rows**2, rows * seconds)
        n, x, y, xx, xy = self._sums
        spread = n * xx - x**2
        if spread > (SPREAD * x) ** 2:
            of_row = (n * xy - x * y) / spread
            beside = (y - of_row * x) / n
            overhead = beside / of_row if of_row > 0 else MOST_OVERHEAD
            self.overhead = float(min(max(overhead, LEAST_OVERHEAD), MOST_OVERHEAD))


def chain_length(stays: Sequence[float], overhead: float) -> int:
    """The number of edges, from the first on, that decides the most in the least time. stays: the probability of each.
    An edge is decided if all guesses before it come true, and costs a row in any case."""
    best, best_rate, decided, all_true = 1, 0.0, 0.0, 1.0
    for n, stay in enumerate(stays, start=1):
        decided += all_true
        all_true *= max(stay, 1 - stay)
        if decided / (overhead + n) > best_rate:
            best, best_rate = n, decided / (overhead + n)
    return best
