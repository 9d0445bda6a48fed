"""Candidate circuits of a greedy search, many at a time: the standing circuit without edges at one receiver."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acdc.discovery.chain import LONGEST
from acdc.discovery.ledger import Ledger, Tiles
from acdc.discovery.problem import Problem
from acdc.graph import BoolMatrix
from acdc.patching.circuits import PerExample
from acdc.patching.needs import Needs, Positions
from acdc.patching.readout import make_readout
from acdc.patching.standing import Standing
from acdc.patching.suffix import Rooms, Suffix
from acdc.patching.visit import Visit

TOKENS_AT_ONCE = 2048  # of all rows of a batch; on two cores twice as many take a tenth longer each,
ROWS_AT_ONCE = 8  # and few rows longer still, as weights are read again for them


class Candidates:
    """The rows of one receiver after the other, over all batches of prompts.

    A receiver is left by one run of one row; so the standing circuit does not depend on how many candidates were tried
    together. All objectives are [..., example], examples batch after batch. rooms and ledger are shared by the stages
    of a search: what is held and what a tile of rows takes stay within the ledger's budget.
    """

    def __init__(self, problem: Problem, start: BoolMatrix, rooms: Rooms, ledger: Ledger) -> None:
        self.problem, self._rooms, self._ledger = problem, rooms, ledger
        self._kept, self._needs = start.copy(), Needs(problem.t.graph)
        t, prompts = problem.t, problem.prompts
        at = [Positions.of(t, p) for p in prompts]
        standing = sum(Standing.bytes_needed(t, of, p.batch.n_rows) for of, p in zip(at, prompts, strict=True))
        self._readout = make_readout(t, prompts, problem.objective)
        ledger.hold(self, standing + self._readout.bytes_held, self._bytes_of_whole_forward())
        self._suffixes = [Suffix(t, p, of, self._kept, self._needs, rooms) for of, p in zip(at, prompts, strict=True)]
        self._bytes_of_row = 0
        self._tiles = Tiles(ledger, rooms.release)
        self._visits: list[Visit] = []

    @property
    def node_runs(self) -> int:
        return sum(suffix.node_runs for suffix in self._suffixes)

    @torch.no_grad()
    def open(self, receiver: int, senders: Sequence[int]) -> None:
        """Begin with a receiver: its edges are decided in the order of `senders`. Raises OutOfMemory."""
        self._visits = []
        for suffix in self._suffixes:
            suffix.leave()
        held = self._readout.bytes_held + sum(suffix.bytes_held(receiver) for suffix in self._suffixes)
        visits = sum(Visit.bytes_needed(suffix, receiver, len(senders)) for suffix in self._suffixes)
        self._bytes_of_row = self._bytes_per_row(receiver)
        self._ledger.hold(self, held + visits, max(self._bytes_of_row, self._bytes_of_whole_forward()))
        self._visits = [Visit(suffix, receiver, senders) for suffix in self._suffixes]
        if self._rooms.n_bytes + self.rows_at_once * self._bytes_of_row > self._ledger.left:
            self._rooms.release()  # what other visits left there is in no tile's reckoning

    @torch.no_grad()
    def values(self, will_go: Sequence[bool], of: range | None = None) -> PerExample:
        """The objective without each of the next senders (or those of a range of them), the ones before it gone or kept
        as expected: [sender, example]. Finite or not: of a row that assumed a wrong decision nothing is used."""

        def tile(first: int, count: int) -> PerExample:
            return self._run(lambda visit: visit.rows(first, count, will_go))

        return self._tiles.run(of or range(len(will_go)), self._bytes_of_row, tile)

    @property
    def rows_at_once(self) -> int:
        """At the open receiver. Beyond these a batch gains nothing: weights are read once for very many tokens, and on
        a CPU what a layer computes of more of them no longer fits into its cache."""
        if self.problem.t.device.type != "cpu":
            return LONGEST
        level = self._needs.of_receiver(self._visits[0].receiver)
        return max(ROWS_AT_ONCE, TOKENS_AT_ONCE // max(s.batch.n_rows * s.at.count(level) for s in self._suffixes))

    @torch.no_grad()
    def value(self) -> PerExample:
        """The objective as decided so far. [example]"""
        return self._of_standing()

    @torch.no_grad()
    def decide(self, goes: Sequence[bool]) -> None:
        """The decisions on the next senders: true where the edge is cut."""
        for visit in self._visits:
            visit.decide(goes)

    def skip(self, receiver: int, kept: npt.NDArray[np.bool_]) -> None:
        """Note which edges [senders] stay into a receiver that is not opened, as it cannot change the metric or the
        search began without the others."""
        self._kept[:, receiver] = kept
        self._needs.decide(receiver, kept)

    @torch.no_grad()
    def leave(self, kept: npt.NDArray[np.bool_]) -> PerExample | None:
        """Make the edges [senders] that stay into the open receiver part of the standing circuit. The objective
        [example], None where nothing was cut."""
        receiver = self._visits[0].receiver
        is_changed = bool((self._kept[:, receiver] & ~kept).any())
        self._kept[:, receiver] = kept
        self._needs.decide(receiver, kept)
        return self._of_standing(commit=True) if is_changed else None

    def by_whole_forward(self, circuit: BoolMatrix) -> float:
        """The objective's mean of any circuit, by the ordinary masked forward. Raises ModelError if it is no number."""
        self._rooms.release()
        mean = self.problem.mean_with(circuit)
        self.problem.require_finite(mean, self._visits[0].receiver)
        return mean

    def _of_standing(self, *, commit: bool = False) -> PerExample:
        """[example]. Raises ModelError for what is no number."""
        values: PerExample = self._run(Visit.row, commit=commit)[0]
        self.problem.require_finite(values, self._visits[0].receiver)
        return values

    def _run(self, rows_of: Callable[[Visit], Tensor], *, commit: bool = False) -> PerExample:
        """rows_of: what the receiver reads, [row, B, n, d]. [row, example]"""
        pairs = zip(self._suffixes, self._visits, strict=True)
        last = [suffix.run(visit.receiver, rows_of(visit), commit=commit) for suffix, visit in pairs]
        values: PerExample = self._readout(last).cpu().numpy()
        return values

    def _bytes_per_row(self, receiver: int) -> int:
        """Of what one batch holds for a row there is one at a time; last residuals and logits are of all batches."""
        t = self.problem.t
        largest = max(suffix.bytes_per_row(receiver) for suffix in self._suffixes)
        reads = sum(len(p.batch.read_row) for p in self.problem.prompts)
        return largest + reads * (self._readout.bytes_per_read + t.d_model * t.dtype.itemsize)

    def _bytes_of_whole_forward(self) -> int:
        return max(self.problem.bytes_of_forward(p) for p in self.problem.prompts)
