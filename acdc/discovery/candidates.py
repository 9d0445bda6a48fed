"""Candidate circuits of a greedy search, many at a time: the standing circuit without edges at one receiver."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acdc.discovery.problem import Problem
from acdc.errors import OutOfMemory
from acdc.graph import BoolMatrix
from acdc.patching.circuits import PerExample
from acdc.patching.needs import Needs
from acdc.patching.readout import make_readout
from acdc.patching.suffix import Suffix
from acdc.patching.visit import Visit


class Candidates:
    """The rows of one receiver after the other, over all batches of prompts.

    A receiver is left by one run of one row; so the standing circuit does not depend on how many candidates were tried
    together. All objectives are [..., example], examples batch after batch.
    """

    def __init__(self, problem: Problem, kept: BoolMatrix, needs: Needs) -> None:
        self.problem = problem
        self._suffixes = [Suffix(problem.t, p, kept, needs) for p in problem.prompts]
        self._readout = make_readout(problem.t, problem.prompts, problem.objective)
        self._most_rows = 2**30  # fewer once memory has run out
        self._visits: list[Visit] = []

    @property
    def node_runs(self) -> int:
        return sum(suffix.node_runs for suffix in self._suffixes)

    @torch.no_grad()
    def open(self, receiver: int, senders: Sequence[int]) -> None:
        """Begin with a receiver: its edges are decided in the order of `senders`."""
        for suffix in self._suffixes:
            suffix.leave()
        self._visits = [Visit(suffix, receiver, senders) for suffix in self._suffixes]

    @torch.no_grad()
    def values(self, count: int, will_go: Sequence[bool]) -> PerExample:
        """The objective without each of the next senders, those before it gone or kept as expected: [count, example]"""
        return self._evaluate([visit.rows(count, will_go) for visit in self._visits])

    @torch.no_grad()
    def value(self) -> PerExample:
        """The objective as decided so far. [example]"""
        alone: PerExample = self._evaluate([visit.row() for visit in self._visits])[0]
        return alone

    @torch.no_grad()
    def with_and_without_next(self) -> tuple[PerExample, PerExample]:
        """The objective as decided so far, and without the next sender, always as two rows. [example] each"""
        pairs = [torch.cat((visit.row(), visit.row(without_next=True))) for visit in self._visits]
        standing, without = self._evaluate(pairs)
        return standing, without

    @torch.no_grad()
    def decide(self, goes: Sequence[bool]) -> None:
        """The decisions on the next senders: true where the edge is cut."""
        for visit in self._visits:
            visit.decide(goes)

    @torch.no_grad()
    def commit(self) -> PerExample:
        """Make what is decided the standing circuit; its objective [example]. The caller has updated `kept` and
        `needs`."""
        last = [
            suffix.run(visit.receiver, visit.row(), commit=True)
            for suffix, visit in zip(self._suffixes, self._visits, strict=True)
        ]
        values: PerExample = self._readout(last)[0].cpu().numpy()
        return values

    def _evaluate(self, inputs: Sequence[Tensor]) -> PerExample:
        """inputs: by batch, what the receiver reads [row, B, n, d]. In tiles that fit into memory; where they do not,
        in smaller ones."""
        receiver = self._visits[0].receiver
        found: list[Tensor] = []
        done, n_rows = 0, len(inputs[0])
        while done < n_rows:
            size = min(self._most_rows, self._rows_that_fit(receiver))
            try:
                tiles = [x[done : done + size] for x in inputs]
                last = [suffix.run(receiver, x) for suffix, x in zip(self._suffixes, tiles, strict=True)]
                found.append(self._readout(last))
            except (torch.OutOfMemoryError, MemoryError):
                if size == 1:
                    raise OutOfMemory("one candidate circuit alone does not fit: search on fewer prompts") from None
                self._most_rows = size // 2
                continue
            done += size
        values: PerExample = torch.cat(found).cpu().numpy()
        return values

    def _rows_that_fit(self, receiver: int) -> int:
        """Of what one batch holds for a row there is one at a time; last residuals and logits are of all batches."""
        t = self.problem.t
        largest = max(suffix.bytes_per_row(receiver) for suffix in self._suffixes)
        reads = sum(len(p.batch.read_row) for p in self.problem.prompts)
        n_bytes = largest + reads * (t.vocab_size * 8 + t.d_model * t.dtype.itemsize)
        return max(1, self.problem.memory_bytes // n_bytes)
