"""The plain form of ACDC, one edge and one whole masked forward at a time, following another search's decisions.

A flip of one decision makes all that come after it incomparable; so the oracle asks, at each edge, what it would have
decided in the circuit that the other search stood at. It shares nothing with the fast search but the order, and the
whole masked forward by which that one decides where its rows are too near the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from acdc.discovery.problem import Problem
from acdc.discovery.walk import Rule, receiver_order, sender_order
from acdc.graph import BoolMatrix


@dataclass(frozen=True)
class Decision:
    """What the oracle finds for one edge: metric of the circuit as it stood, cost of the edge, whether it is cut."""

    sender: int
    receiver: int
    metric: float
    cost: float
    is_cut: bool


def decide_again(
    problem: Problem,
    start: BoolMatrix,
    kept: BoolMatrix,
    rule: Rule,
    *,
    order: str = "reverse",
    order_seed: int = 0,
    only: BoolMatrix | None = None,
) -> Iterator[Decision]:
    """Decide on every edge of `start` that can still change the metric (or on those of `only`), in the search's order.

    start, kept: the edges that the other search began with and ended with [senders, receivers].
    """
    graph = problem.t.graph
    standing = start.copy()
    for receiver in receiver_order(graph):
        is_live = graph.reaches_logits(standing)[receiver]
        metric: float | None = None  # of the standing circuit, once it is needed
        for sender in sender_order(graph, receiver, order, order_seed):
            if not start[sender, receiver]:
                continue
            without: float | None = None  # the edge
            if is_live and (only is None or only[sender, receiver]):
                metric = problem.mean_with(standing) if metric is None else metric
                standing[sender, receiver] = False
                without = problem.mean_with(standing)
                yield Decision(sender, receiver, metric, metric - without, rule.cuts(metric - without))
            standing[sender, receiver] = kept[sender, receiver]
            if not kept[sender, receiver]:
                metric = without
