"""Rows of many cells as batches of a bounded size: what starts at the same position goes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acdc.errors import OutOfMemory

Ints = npt.NDArray[np.int64]
# Positions in a tile: enough to keep the device busy, and on a CPU no more than its cache holds the states of.
FULL = {"cpu": 512}
FULL_ELSEWHERE = 16384


@dataclass(frozen=True)
class Tile:
    """cells, rows: [n], which cell on which row of the batch. start: the first position to compute."""

    cells: Ints
    rows: Ints
    start: int


def make_tiles(
    starts: Ints, length: int, bytes_of_row: Callable[[int], int], memory_bytes: int, device: str
) -> Iterator[Tile]:
    """starts: [cell, row], the first position at which a cell changes a row; `length` where it changes nothing, which
    then is in no tile. bytes_of_row: what a row of so many positions takes.

    Raises OutOfMemory where not even one row fits.
    """
    cells, rows = np.nonzero(starts < length)
    begins = starts[cells, rows]
    order = np.argsort(begins, kind="stable")
    full = FULL.get(device, FULL_ELSEWHERE)
    first = 0
    while first < len(order):
        start = int(begins[order[first]])
        m = length - start
        most = min(rows_that_fit(m, bytes_of_row, memory_bytes), max(1, full // m))
        stop = min(first + most, len(order))
        later = np.flatnonzero(begins[order[first:stop]] > start)
        if len(later) and later[0] * m >= full // 4:  # too few rows of one start are filled up with others
            stop = first + int(later[0])
        chosen = order[first:stop]
        yield Tile(cells[chosen], rows[chosen], start)
        first = stop


def rows_that_fit(m: int, bytes_of_row: Callable[[int], int], memory_bytes: int) -> int:
    """How many rows of m positions go into `memory_bytes`. Raises OutOfMemory where not even one does."""
    most = memory_bytes // bytes_of_row(m)
    if most < 1:
        raise OutOfMemory(
            f"one prompt from {m} positions before its end needs {bytes_of_row(m):,} bytes beside the recorded runs "
            f"and {max(memory_bytes, 0):,} are left: raise compute.memory_bytes or lower compute.batch_tokens"
        )
    return most
