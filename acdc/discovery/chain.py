"""How many edges to test at once on a prediction."""

from __future__ import annotations

OVERHEAD_ROWS = 4.0  # what starting a batch costs, in rows, until it was measured
LEAST_OVERHEAD = 0.25
LENGTHS = (2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)
MEMORY = 64.0  # predictions that the estimate looks back on


class ChainLength:
    """The length that decides the most edges in the least time, from how often predictions came true lately and from
    what a batch costs beside its rows: weights are read once for all of them, and on a GPU most of the time is spent
    on starting kernels. Decisions do not depend on it."""

    def __init__(self) -> None:
        self.right, self.wrong = MEMORY * 0.97, MEMORY * 0.03
        self.overhead_rows = OVERHEAD_ROWS

    def saw(self, right: int, wrong: int) -> None:
        fade = max(0.0, 1 - (right + wrong) / MEMORY)
        self.right = self.right * fade + right
        self.wrong = self.wrong * fade + wrong

    def timed(self, one_row_s: float, n_rows_s: float, n: int) -> None:
        """What a batch of one row took, and one of n at the same receiver."""
        of_row = (n_rows_s - one_row_s) / (n - 1)
        overhead = (one_row_s - of_row) / of_row if of_row > 0 else LENGTHS[-1]
        self.overhead_rows = min(max(overhead, LEAST_OVERHEAD), LENGTHS[-1])

    def best(self) -> int:
        p = (self.right + 0.5) / (self.right + self.wrong + 1.0)
        return max(LENGTHS, key=lambda n: (1 - p**n) / (1 - p) / (self.overhead_rows + n))
