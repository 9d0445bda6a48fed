"""Minimality: what the removal of each edge of a circuit costs, and which edges might as well be random ones.

Cost: m(C) - m(C without e), and the growth of KL; positive means that the edge helps. Effects of edges that stand in
for each other are not seen this way: each may go alone, both may not.

The test (Shi et al. 2024, arXiv 2410.13032) compares an edge with edges that do nothing for the circuit: a random path
embed -> logits is added, and one of its new edges removed again. An edge is called superfluous whose removal moves the
circuit further than clearly fewer than QUANTILE of those do, at 5 % over all edges tested (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from acdc.evaluation.curve import Judge
from acdc.evaluation.measuring import Ledger
from acdc.evaluation.outcomes import Floats
from acdc.evaluation.statistics import ALPHA, distance, rounding_of, superfluous
from acdc.graph import BoolMatrix, Edge, Graph
from acdc.progress import Progress
from acdc.report import Minimality, Removal
from acdc.selection import Kept

PATIENCE = 1000  # random paths in a row that add nothing, before the graph counts as used up


def n_circuits(n_edges: int, n_random: int) -> int:
    """Circuits that `minimality_of` measures, at most."""
    return n_edges + 2 * n_random if n_edges else 0


def minimality_of(
    judge: Judge, kept: Kept, n_edges: int, n_random: int, rng: np.random.Generator, progress: Progress
) -> Minimality | None:
    """On held-out prompts. n_edges: of more, so many are drawn. n_random: paths for the test, 0 for none. None where
    nothing is to be removed. Raises Cancelled."""
    edges = _drawn(judge.graph, kept.mask, n_edges, rng)
    if not edges:
        return None
    progress.phase("minimality", n_circuits(len(edges), n_random))
    ledger, scale = judge.ledgers["held_out"], judge.scales["held_out"]
    whole = ledger.known(kept.mask)
    ends = (ledger.known(mask).metric for mask in (judge.graph.legal, np.zeros_like(kept.mask)))
    rounding = rounding_of(whole.metric, *ends)
    without = ledger.all_of([_without(kept.mask, edge) for edge in edges])
    random = _random_distances(judge.graph, ledger, kept.mask, n_random, rng, done_before=len(edges))
    removals = []
    for edge, outcome in zip(edges, without, strict=True):
        moved = distance(whole.metric, outcome.metric)
        tested = superfluous(moved, random, rounding) if len(random) else None
        cost = float(np.mean(whole.metric.astype(np.float64) - outcome.metric))
        removals.append(
            Removal(
                edge=judge.graph.edge_name(edge),
                cost=cost,
                cost_f=scale.share(cost),
                cost_kl=float(np.mean(outcome.kl.astype(np.float64) - whole.kl)),
                moved=moved,
                exceeds=None if tested is None else int(tested.statistic),
                superfluous=None if tested is None else tested.p * len(edges) < ALPHA,
            )
        )
    return Minimality(n_edges=int(kept.mask.sum()), removals=tuple(removals), n_random=len(random))


def _drawn(graph: Graph, mask: BoolMatrix, n: int, rng: np.random.Generator) -> list[Edge]:
    """All edges of the circuit in the graph's order, or n of them."""
    edges = [edge for edge in graph.edges() if mask[edge.sender, edge.receiver]]
    if len(edges) <= n:
        return edges
    return [edges[i] for i in sorted(rng.choice(len(edges), size=n, replace=False))]


def _without(mask: BoolMatrix, edge: Edge) -> BoolMatrix:
    smaller = mask.copy()
    smaller[edge.sender, edge.receiver] = False
    return smaller


def _random_distances(
    graph: Graph, ledger: Ledger, mask: BoolMatrix, n: int, rng: np.random.Generator, done_before: int
) -> Floats:
    """How far the circuit with a random path moves when a new edge of it is removed: [n], fewer where the circuit
    leaves no room for a path."""
    pairs = []
    for added in random_paths(graph, mask, n, rng):
        larger = mask.copy()
        larger[tuple(np.array(added).T)] = True
        pairs += [larger, _without(larger, Edge(*added[rng.integers(len(added))]))]
    outcomes = ledger.all_of(pairs, done_before)
    moved = [distance(a.metric, b.metric) for a, b in zip(outcomes[::2], outcomes[1::2], strict=True)]
    return np.array(moved)


def random_paths(graph: Graph, mask: BoolMatrix, n: int, rng: np.random.Generator) -> Iterator[list[tuple[int, int]]]:
    """The edges of n random paths that the circuit has not, each walked back from the logits by uniform choices."""
    misses = 0
    while n and misses < PATIENCE:
        added = [(s, r) for s, r in _walk(graph, rng) if not mask[s, r]]
        if added:
            yield added
            n, misses = n - 1, 0
        else:
            misses += 1


def _walk(graph: Graph, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    receiver = graph.n_receivers - 1
    while True:
        sender = int(rng.choice(np.flatnonzero(graph.legal[:, receiver])))
        yield sender, receiver
        if sender < graph.n_inputs:
            return
        receiver = int(rng.choice(np.flatnonzero(graph.feeds[:, graph.output(sender, receiver)])))
