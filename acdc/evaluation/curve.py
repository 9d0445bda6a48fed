"""The faithfulness curve: circuits of every size on the grid, by each rule, on both splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from acdc.evaluation.faithfulness import Scale, point_of, scale_of
from acdc.evaluation.measuring import Ledger
from acdc.graph import Graph
from acdc.report import Point
from acdc.selection import Kept, Ranking, size_of

SMALL = 1000  # edges: up to here the smallest usual share (.001) is less than two edges, and every size is affordable


@dataclass(frozen=True)
class Size:
    """A number of edges to ask for, and its share of all edges of the graph."""

    fraction: float
    n: int


def sizes_of(grid: Sequence[float], n_edges: int) -> list[Size]:
    """The sizes int(fraction * n_edges). On a graph so small that two of them coincide or one is zero, every size from
    0 to n_edges instead; on a large one such sizes are left out."""
    sizes = [Size(fraction, size_of(fraction, n_edges)) for fraction in sorted(set(grid))]
    distinct = {size.n: size for size in reversed(sizes) if size.n > 0}
    if len(distinct) < len(sizes) and n_edges <= SMALL:
        return [Size(n / n_edges, n) for n in range(n_edges + 1)]
    return sorted(distinct.values(), key=lambda size: size.n)


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures circuits on both splits; what it has seen once costs nothing again."""

    graph: Graph
    ledgers: Mapping[str, Ledger]
    scales: Mapping[str, Scale]

    def point(self, split: str, kept: Kept, fraction: float) -> Point:
        return self.points(split, [kept], [fraction])[0]

    def points(self, split: str, kept: Sequence[Kept], fractions: Sequence[float], done_before: int = 0) -> list[Point]:
        outcomes = self.ledgers[split].all_of([one.mask for one in kept], done_before)
        return [
            point_of(outcome, self.scales[split], split, one.selected, fraction)
            for outcome, one, fraction in zip(outcomes, kept, fractions, strict=True)
        ]


def scale_on(ledger: Ledger, graph: Graph, seed: int, done_before: int = 0) -> Scale:
    """The scale of a split, from the model and the empty circuit measured on it."""
    full, empty = ledger.all_of([graph.legal, np.zeros_like(graph.legal)], done_before)
    return scale_of(full, empty, ledger.split.groups, seed)


def curve(judge: Judge, rankings: Sequence[Ranking], sizes: Sequence[Size]) -> list[Point]:
    """Points by split, then rule, then size."""
    circuits = [ranking.select(size.n) for ranking in rankings for size in sizes]
    fractions = [size.fraction for _ in rankings for size in sizes]
    points: list[Point] = []
    for split in judge.ledgers:
        points += judge.points(split, circuits, fractions, done_before=len(points))
    return points
