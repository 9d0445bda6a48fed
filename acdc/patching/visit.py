"""What the receiver under decision reads, for every candidate set of its edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.patching.standing import BLOCK
from acdc.patching.suffix import Suffix


class Visit:
    """Edges into one receiver, decided in order.

    A candidate reads the ablated stream, what is kept so far, and what is still to be decided. The latter is summed
    from the end, so that it is exactly nothing at the end. Differences are formed BLOCK senders at a time.

    Where edges are split by role, the receiver is a part of one: at tokens of other roles it reads what it did.
    """

    def __init__(self, suffix: Suffix, receiver: int, senders: Sequence[int]) -> None:
        self.suffix, self.receiver, self.senders = suffix, receiver, list(senders)
        self.level = suffix.needs.of_receiver(receiver)
        self.done = 0
        self.own = self._own_tokens()
        self.base = self._base()
        self.kept = torch.zeros(self._shape, dtype=suffix.t.dtype, device=suffix.t.device)
        self._rests = self._rests_by_block()
        self._held: tuple[int, Tensor, Tensor] | None = None
        self._carried: tuple[int, Tensor] = 0, self.kept  # what is kept before a row, where its chain goes as expected

    def _own_tokens(self) -> Tensor | None:
        """1 at the tokens of the receiver's role [B, n, 1]; None where they are all."""
        graph = self.suffix.t.graph
        if not graph.shape.roles or graph.receivers[self.receiver].kind == "logits":  # read at one role as it is
            return None
        return self.suffix.at_tokens(np.arange(graph.n_roles) == graph.role_of[self.receiver], self.level)

    def _base(self) -> Tensor:
        """What the receiver reads when every edge into it is cut: [B or 1, n or 1, d]"""
        suffix, whole = self.suffix, self.suffix.t.graph.whole_of(self.receiver)
        base = suffix.standing.base(whole, self.level)
        if self.own is None:
            return base
        others = suffix.kept.copy()
        others[:, self.receiver] = False
        return suffix.standing.read(whole, self.level, others)

    @property
    def _shape(self) -> tuple[int, int, int]:
        suffix = self.suffix
        return suffix.batch.n_rows, suffix.at.count(self.level), suffix.t.d_model

    @staticmethod
    def bytes_needed(suffix: Suffix, receiver: int, n_senders: int) -> int:
        """What a visit holds beside its rows: sums at the blocks' ends, and two blocks of differences and sums."""
        streams = -(-n_senders // BLOCK) + 2 * 2 * min(BLOCK, n_senders) + 4
        n = suffix.at.count(suffix.needs.of_receiver(receiver))
        return streams * suffix.batch.n_rows * n * suffix.t.d_model * suffix.t.dtype.itemsize

    def rows(self, first: int, count: int, will_go: Sequence[bool]) -> Tensor:
        """What the receiver reads without each of `count` senders, beginning `first` after those decided, when those
        before it go or stay as expected: [count, B, n, d]"""
        kept = self._kept_before(first, will_go)
        rows = torch.empty(count, *self._shape, dtype=self.kept.dtype, device=self.kept.device)
        for begin in range(0, count, BLOCK):
            part = rows[begin : begin + BLOCK]
            differences, rests = self._next(first + begin, len(part))
            torch.add(rests[1 : len(part) + 1], self.base, out=part)
            expected = will_go[first + begin : first + begin + len(part)]
            for row, difference, goes in zip(part, differences, expected, strict=False):
                row.add_(kept)
                kept = kept if goes else kept + difference
        self._carried = first + count, kept
        return rows

    def row(self) -> Tensor:
        """What it reads as decided so far: [1, B, n, d]"""
        return self._rest() + self.base + self.kept

    def decide(self, goes: Sequence[bool]) -> None:
        """The decisions on the next senders."""
        for begin in range(0, len(goes), BLOCK):
            part = goes[begin : begin + BLOCK]
            self.kept = self._with(self.kept, 0, part)
            self.done += len(part)
        self._carried = 0, self.kept

    def _kept_before(self, first: int, will_go: Sequence[bool]) -> Tensor:
        if self._carried[0] == first:
            return self._carried[1]
        kept = self.kept
        for begin in range(0, first, BLOCK):
            kept = self._with(kept, begin, will_go[begin : min(begin + BLOCK, first)])
        return kept

    def _with(self, kept: Tensor, first: int, goes: Sequence[bool]) -> Tensor:
        """What is kept, and of the senders from `first` after those decided on those that do not go."""
        if all(goes):
            return kept
        differences, _ = self._next(first, len(goes))
        for difference, is_cut in zip(differences, goes, strict=False):
            kept = kept if is_cut else kept + difference
        return kept

    def _rest(self) -> Tensor:
        """[1, B, n, d]"""
        if self.done == len(self.senders):
            return torch.zeros_like(self.kept).unsqueeze(0)
        return self._next(0, 1)[1][:1]

    def _rests_by_block(self) -> list[Tensor]:
        """At each multiple of BLOCK (and at the end) the sum of the differences from there on."""
        rests = [torch.zeros_like(self.kept)]
        for first in reversed(range(0, len(self.senders), BLOCK)):
            rests.append(self._summed(first, first + BLOCK, rests[-1])[1][0].clone())
        return rests[::-1]

    def _next(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Differences of senders from `first` after those decided on, [at least count, B, n, d], and from each of them
        on the sum of all, [one more]. Kept until others are wanted."""
        begin = self.done + first
        if self._held is not None:
            held, differences, rests = self._held
            if held <= begin and begin + count <= held + len(differences):
                return differences[begin - held :], rests[begin - held :]
        self._held = None  # before the next are formed
        block = -(-(begin + count) // BLOCK)
        differences, rests = self._summed(begin, block * BLOCK, self._rests[block])
        self._held = begin, differences, rests
        return differences, rests

    def _summed(self, first: int, last: int, rest: Tensor) -> tuple[Tensor, Tensor]:
        differences = self.suffix.standing.differences(self.senders[first:last], self.level)
        differences = differences if self.own is None else differences.mul_(self.own)
        rests = torch.empty(len(differences) + 1, *self._shape, dtype=rest.dtype, device=rest.device)
        rests[-1] = rest
        for i in reversed(range(len(differences))):
            torch.add(rests[i + 1], differences[i], out=rests[i])
        return differences, rests
