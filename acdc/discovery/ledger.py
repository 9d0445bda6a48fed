"""What a search holds in memory, against what it may, and rows in tiles that fit into the rest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from acdc.errors import OutOfMemory, is_out_of_memory
from acdc.patching.circuits import PerExample


class Ledger:
    """Bytes by holder, within a budget. most: that were wanted at one time so far. Raises OutOfMemory, with both
    numbers, before anything too large is made."""

    def __init__(self, limit: int, n_prompts: int) -> None:
        self.limit, self.n_prompts, self.most = limit, n_prompts, 0
        self._held: dict[object, int] = {}

    @property
    def left(self) -> int:
        return self.limit - sum(self._held.values())

    def hold(self, holder: object, n_bytes: int, and_for_a_while: int = 0) -> None:
        """The holder has so many bytes now, and will want some more for a while."""
        self._held[holder] = n_bytes
        needed = self.limit - self.left + and_for_a_while
        self.most = max(self.most, needed)
        if needed > self.limit:
            raise OutOfMemory(
                f"this search on {self.n_prompts:,} prompts needs {needed:,} bytes for one candidate circuit at a time "
                f"and compute.memory_bytes is {self.limit:,}: raise it, search on "
                "fewer prompts or lower compute.batch_tokens"
            )

    def release(self, holder: object) -> None:
        del self._held[holder]


class Tiles:
    """Rows, as many at a time as the ledger has room for. Where the device has less than was reckoned with, `free` is
    called, and from then on they are fewer."""

    def __init__(self, ledger: Ledger, free: Callable[[], None]) -> None:
        self._ledger, self._free = ledger, free
        self._most = 2**30

    def run(self, rows: range, bytes_of_row: int, work: Callable[[int, int], PerExample]) -> PerExample:
        """work: the first row of a tile and how many -> [row, ...]. All tiles as one array."""
        found: list[PerExample] = []
        done = rows.start
        while done < rows.stop:
            size = min(self._most, max(1, self._ledger.left // bytes_of_row), rows.stop - done)
            try:
                found.append(work(done, size))
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self._most = size // 2
                self._free()
            else:
                done += size
        return np.concatenate(found)
