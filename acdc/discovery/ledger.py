"""What a search holds in memory, against what it may."""

from __future__ import annotations

from acdc.errors import OutOfMemory


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
