"""From scores to a circuit: which edges are kept. Separate from scoring, so that any size can be cut again later.

Three rules, each a ranking of which a circuit of n edges takes the first n:

    signed     highest score first: edges that help the metric
    absolute   highest |score| first: edges that matter, whichever way
    greedy     grown from the logits: always the edge of highest |score| among those that end in a node already reached

Ties go to the edge that comes first in canonical order (receiver by receiver, senders from early to late), so a
ranking is the same on every machine. Edges that got no score are never taken. The edges taken that lie on no path
embed -> logits are dropped afterwards, and both counts are kept.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acdc.circuit import Scores, Selected
from acdc.errors import GraphMismatch
from acdc.graph import BoolMatrix, Graph

RULES = ("signed", "absolute", "greedy")
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of a graph's edges that MIB's circuit-localisation track looks at (Mueller et al. 2025)."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Kept:
    """A circuit and how it was chosen. mask: bool [senders, receivers], connected edges only."""

    mask: BoolMatrix
    selected: Selected

    @classmethod
    def of(cls, graph: Graph, mask: BoolMatrix, rule: str) -> Kept:
        """A set of edges that no ranking made (a search's decisions, a hypothesis, an edited circuit)."""
        connected = graph.connected(mask)
        return cls(connected, Selected(rule, int(mask.sum()), int(connected.sum())))


@dataclass(frozen=True, eq=False)
class Ranking:
    """Every edge that got a score, best first by one rule. order: flat indices into [senders, receivers]."""

    graph: Graph
    rule: str
    order: Indices

    def taken(self, n: int) -> BoolMatrix:
        """The first n edges, connected or not: [senders, receivers]."""
        mask = np.zeros(self.graph.legal.size, dtype=bool)
        mask[self.order[:n]] = True
        return mask.reshape(self.graph.legal.shape)

    def select(self, n: int) -> Kept:
        """The first n edges without those on no path; all of the ranking where it holds fewer than n."""
        connected = self.graph.connected(self.taken(n))
        return Kept(connected, Selected(self.rule, n, int(connected.sum())))


def rank(graph: Graph, scores: Scores, tested: BoolMatrix, rule: str, first: int | None = None) -> Ranking:
    """Order the edges by `rule`. scores, tested: [senders, receivers] of this graph. first: no more than so many are
    wanted; it saves most of the time.

    Raises GraphMismatch for arrays of another graph, ValueError for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"unknown selection rule {rule!r}; known rules: {', '.join(RULES)}")
    if scores.shape != graph.legal.shape or tested.shape != graph.legal.shape:
        raise GraphMismatch(
            f"scores {scores.shape} and tested {tested.shape} do not fit this graph; it needs {graph.legal.shape}"
        )
    merit = scores if rule == "signed" else np.abs(scores)
    usable = tested & graph.legal
    order = _greedy(graph, merit, usable, first) if rule == "greedy" else _sorted(merit, usable, first)
    return Ranking(graph, rule, order)


def _sorted(merit: Scores, usable: BoolMatrix, first: int | None) -> Indices:
    """A few of very many are parted from the rest before they are sorted, together with all that tie with the last."""
    canonical = _canonical(usable)
    negated = -merit.ravel()[canonical]
    if first is not None and 0 < first < len(canonical):
        last = np.partition(negated, first - 1)[first - 1]
        within = np.nonzero(~(negated > last))[0]
        canonical, negated = canonical[within], negated[within]
    order: Indices = canonical[np.argsort(negated, kind="stable")][:first]
    return order


def _canonical(edges: BoolMatrix) -> Indices:
    """Flat indices of the edges, in canonical order."""
    receivers, senders = np.nonzero(edges.T)
    flat: Indices = senders * edges.shape[1] + receivers
    return flat


def _greedy(graph: Graph, merit: Scores, usable: BoolMatrix, first: int | None) -> Indices:
    """Best-first growth from the logits. Each receiver's edges are sorted once: one heap entry each."""
    columns = [_best_first(merit[:, r], usable[:, r]) for r in range(graph.n_receivers)]
    inputs = [np.nonzero(column)[0].tolist() for column in graph.feeds.T]  # receivers that feed an output
    heap: list[tuple[float, int, int]] = []  # (-merit, receiver, how many of its edges are taken): canonical on ties

    def offer(receiver: int, taken: int) -> None:
        if taken < len(columns[receiver]):
            heapq.heappush(heap, (-float(merit[columns[receiver][taken], receiver]), receiver, taken))

    open_receivers = {graph.n_receivers - 1}
    offer(graph.n_receivers - 1, 0)
    order: list[int] = []
    while heap and len(order) != first:
        _, receiver, taken = heapq.heappop(heap)
        sender = columns[receiver][taken]
        order.append(sender * graph.n_receivers + receiver)
        offer(receiver, taken + 1)
        for fed in inputs[graph.output(sender, receiver)]:
            if fed not in open_receivers:
                open_receivers.add(fed)
                offer(fed, 0)
    return np.array(order, dtype=np.int64)


def _best_first(merit: Scores, usable: npt.NDArray[np.bool_]) -> list[int]:
    senders = np.nonzero(usable)[0]
    best: list[int] = senders[np.argsort(-merit[senders], kind="stable")].tolist()
    return best


def size_of(fraction: float, n_edges: int) -> int:
    """Edges in a share of the graph, rounded down. A share written in decimals means what it says: .29 of 100 is 29."""
    return int(fraction * n_edges + 1e-9)
