"""The sizes that a curve went over, in words: the areas under it mean nothing without them."""

from __future__ import annotations

from dataclasses import dataclass

from acdc.numerals import figure, listed, percent
from acdc.report import Report
from acdc.selection import GRID

LINEAR, LOG = ("CPR", "CMD", "CMD guarded", "KL area"), ("CPR log", "CMD log")


@dataclass(frozen=True)
class Swept:
    """fractions: of all edges, each once, growing."""

    fractions: tuple[float, ...]

    @classmethod
    def of(cls, report: Report) -> Swept:
        return cls(tuple(sorted({point.fraction for point in report.points})))

    @property
    def span(self) -> str:
        """From where to where."""
        if not self.fractions:
            return "the sizes measured"
        low, high = self.fractions[0], self.fractions[-1]
        return f"{percent(low)} to {percent(high)} of the edges" if low < high else f"{percent(low)} of the edges"

    @property
    def is_of_mib(self) -> bool:
        """Whether these are the sizes that published CPR and CMD were taken over."""
        return self.fractions == tuple(sorted(GRID))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the areas are taken over, on which scale, and whether they compare with published ones."""
        if len(self.fractions) < 2:
            return ()
        length = self.fractions[-1] - self.fractions[0]
        first = (
            f"{len(self.fractions):,} sizes, from {self.span}. {listed(LINEAR)} are over the share of edges (linear): "
            f"f = 1 at every size gives a CPR of {figure(length)}, the length of that range, and a CMD of 0. "
            f"{listed(LOG)} are over the logarithm of size and divided by its range: there f = 1 gives 1."
        )
        if self.is_of_mib:
            return (first,)
        return (
            first,
            f"These are not the sizes that published areas are over (MIB: {len(GRID)} from {percent(min(GRID))} to "
            f"{percent(max(GRID))}), so the figures do not compare with published ones.",
        )
