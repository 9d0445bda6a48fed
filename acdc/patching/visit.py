"""What the receiver under decision reads, for every candidate set of its edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acdc.patching.standing import BLOCK
from acdc.patching.suffix import Suffix


class Visit:
    """Edges into one receiver, decided in order.

    A candidate reads the ablated stream, what is kept so far, and what is still to be decided. The latter is summed
    from the end, so that it is exactly nothing at the end, and all sums are formed edge by edge: a candidate is the
    same to the bit however many others are formed with it.
    """

    def __init__(self, suffix: Suffix, receiver: int, senders: Sequence[int]) -> None:
        self.suffix, self.receiver, self.senders = suffix, receiver, list(senders)
        self.level = suffix.needs.of_receiver(receiver)
        self.done = 0
        shape = suffix.batch.n_rows, suffix.at.count(self.level), suffix.t.d_model
        self.base = suffix.standing.base(receiver, self.level)
        self.kept = torch.zeros(shape, dtype=suffix.t.dtype, device=suffix.t.device)
        self._rests = self._rests_by_block()
        self._held: tuple[int, Tensor, Tensor] | None = None

    def rows(self, count: int, will_go: Sequence[bool]) -> Tensor:
        """What the receiver reads without each of the next senders, when those before it go or stay as expected:
        [count, B, n, d]"""
        differences, rests = self._next(count)
        kept = self.kept
        rows = rests[1 : count + 1] + self.base  # a copy
        for row, difference, goes in zip(rows, differences, will_go, strict=False):
            row.add_(kept)
            kept = kept if goes else kept + difference
        return rows

    def row(self, *, without_next: bool = False) -> Tensor:
        """What it reads as decided so far (without the next sender): [1, B, n, d]"""
        rest = self._next(1)[1][1:2] if without_next else self._rest()
        return rest + self.base + self.kept

    def decide(self, goes: Sequence[bool]) -> None:
        """The decisions on the next senders."""
        if goes:
            for difference, is_cut in zip(self._next(len(goes))[0], goes, strict=False):
                if not is_cut:
                    self.kept = self.kept + difference
            self.done += len(goes)

    def _rest(self) -> Tensor:
        """[1, B, n, d]"""
        if self.done == len(self.senders):
            return torch.zeros_like(self.kept).unsqueeze(0)
        return self._next(1)[1][:1]

    def _rests_by_block(self) -> list[Tensor]:
        """At each multiple of BLOCK (and at the end) the sum of the differences from there on."""
        rests = [torch.zeros_like(self.kept)]
        for first in reversed(range(0, len(self.senders), BLOCK)):
            rests.append(self._summed(first, first + BLOCK, rests[-1])[1][0])
        return rests[::-1]

    def _next(self, count: int) -> tuple[Tensor, Tensor]:
        """Differences of the next senders, [at least count, B, n, d], and from each of them on the sum of all, [one
        more]. Kept until others are wanted."""
        if self._held is not None:
            first, differences, rests = self._held
            if first <= self.done and self.done + count <= first + len(differences):
                return differences[self.done - first :], rests[self.done - first :]
        block = -(-(self.done + count) // BLOCK)
        differences, rests = self._summed(self.done, block * BLOCK, self._rests[block])
        self._held = self.done, differences, rests
        return differences, rests

    def _summed(self, first: int, last: int, rest: Tensor) -> tuple[Tensor, Tensor]:
        differences = self.suffix.standing.differences(self.senders[first:last], self.level)
        rests = torch.empty(len(differences) + 1, *differences.shape[1:], dtype=rest.dtype, device=rest.device)
        rests[-1] = rest
        for i in reversed(range(len(differences))):
            torch.add(rests[i + 1], differences[i], out=rests[i])
        return differences, rests
