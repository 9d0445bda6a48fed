"""Circuits selected again from some of the examples, by the rule and the size asked for of one circuit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acdc.circuit import Scores
from acdc.graph import BoolMatrix, Graph
from acdc.selection import rank

AT_ONCE = 16  # circuits
EDGES_AT_ONCE = 2**14  # in float64 products

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reselection:
    """per_example: [n_examples, n_edges], edges in the graph's order. tested: [senders, receivers]. rule and asked_for:
    as in Selected."""

    graph: Graph
    per_example: Scores
    tested: BoolMatrix
    rule: str
    asked_for: int

    def circuits(self, counts: Counts) -> Iterator[npt.NDArray[np.bool_]]:
        """For every row of `counts` [circuit, example], how often each example counts: the connected edges of the
        circuit selected by their mean scores, [n_edges]."""
        for means in self._means(counts):
            taken = self.graph.connected(np.stack([self._taken(scores) for scores in means]))
            yield from (self.graph.in_order(mask) for mask in taken)

    def _taken(self, scores: Scores) -> BoolMatrix:
        ranking = rank(self.graph, self.graph.matrix_of(scores), self.tested, self.rule, self.asked_for)
        return ranking.taken(self.asked_for)

    def _means(self, counts: Counts) -> Iterator[Scores]:
        """A few circuits' mean scores at a time, [circuits, n_edges]. Summed in float64, so that what is equal in every
        example is equal in every mean."""
        n_edges = self.per_example.shape[1]
        for first in range(0, len(counts), AT_ONCE):
            weights = counts[first : first + AT_ONCE]
            weights = weights / weights.sum(1, keepdims=True)
            means = np.empty((len(weights), n_edges), dtype=np.float32)
            for start in range(0, n_edges, EDGES_AT_ONCE):
                edges = slice(start, start + EDGES_AT_ONCE)
                means[:, edges] = weights @ self.per_example[:, edges].astype(np.float64)
            yield means
