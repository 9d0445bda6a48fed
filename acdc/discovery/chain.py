"""How many edges to test at once on a prediction."""

from __future__ import annotations

OVERHEAD_ROWS = 6.0  # what starting a batch costs, in rows
LENGTHS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
MEMORY = 64.0  # predictions that the estimate looks back on


class ChainLength:
    """The length that decides the most edges for the least work, from how often predictions came true lately."""

    def __init__(self) -> None:
        self.right, self.wrong = MEMORY * 0.97, MEMORY * 0.03

    def saw(self, right: int, wrong: int) -> None:
        fade = max(0.0, 1 - (right + wrong) / MEMORY)
        self.right = self.right * fade + right
        self.wrong = self.wrong * fade + wrong

    def best(self) -> int:
        p = (self.right + 0.5) / (self.right + self.wrong + 1.0)
        return max(LENGTHS, key=lambda n: (1 - p**n) / (1 - p) / (OVERHEAD_ROWS + n))
