"""All cells of one map that share a layer, on one batch: tiles of rows run one after the other, then read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acdc.patch_map import Numbers
from acdc.tracing.measuring import Reader
from acdc.tracing.tiles import Ints, Tile, make_tiles

Run = Callable[[Tile, Tensor], tuple[Tensor, int]]
"""A tile and its rows [n] -> what they end with [n, positions, d], and the first of these positions."""


@dataclass(frozen=True)
class Sweep:
    """bytes_of_row: what a row takes from so many positions before its end on. memory_bytes: for rows, for what they
    end with until it is read, and for reading it."""

    reader: Reader
    bytes_of_row: Callable[[int], int]
    memory_bytes: int
    device: torch.device

    def __call__(self, last: Tensor, starts: Ints, run: Run, step: Callable[[], None]) -> Numbers:
        """Metrics of cells that change rows [cell, row] from `starts` on and else end as `last` [row, pos, d].

        step: called after every tile. Returns [metric, cell, example]. Raises OutOfMemory.
        """
        length = last.shape[1]
        of_cell = len(self.reader.batch.read_row) * last.shape[2] * last.dtype.itemsize
        most = max(1, self.memory_bytes // 4 // of_cell)
        values = []
        for first in range(0, len(starts), most):
            part = starts[first : first + most]
            left = self.memory_bytes - len(part) * of_cell
            read = self.reader.all_as(last, len(part))
            for tile in make_tiles(part, length, self.bytes_of_row, left, self.device.type):
                cells, rows = (torch.from_numpy(x).to(self.device) for x in (tile.cells, tile.rows))
                ends, begin = run(Tile(tile.cells + first, tile.rows, tile.start), rows)
                self.reader.put(read, cells, rows, ends, begin)
                step()
            values.append(self.reader.measure(read, left))
        return np.concatenate(values, 1)
