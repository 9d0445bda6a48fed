"""Models whose metric is a known function of the mask: what evaluation says about them can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from acdc.evaluation.measuring import Split
from acdc.evaluation.outcomes import Outcomes
from acdc.graph import BoolMatrix, Graph, GraphShape

TINY = Graph(GraphShape(1, 2, 1))  # 4 senders, 6 receivers, 11 edges: small enough for all subsets
SMALL = Graph(GraphShape(3, 2, 1))
MEDIUM = Graph(GraphShape(8, 6, 2))  # more than 1000 edges: the grid is not swept size by size

SHAPES = st.builds(
    GraphShape,
    n_layers=st.integers(1, 3),
    n_heads=st.sampled_from([2, 4]),
    n_kv_heads=st.sampled_from([1, 2]),
    has_mlp=st.booleans(),
    is_parallel=st.booleans(),
    heads_share_norm=st.booleans(),
    split_position=st.booleans(),
    roles=st.sampled_from([(), ("first", "end", "other")]),
)


class Additive:
    """metric of an example = base + its share * g(sum of the kept edges' weights); kl = kl_full * share of weight lost.

    weights: [senders, receivers]. shares: [n_examples]. g defaults to the identity. calls: circuits in each call.
    """

    def __init__(self, weights: np.ndarray, shares: np.ndarray, base: float = 0.0, g=lambda x: x, kl=None) -> None:
        self.weights, self.shares, self.base, self.g = weights, shares, base, g
        self.kl = kl or (lambda kept: 1.0 - kept)
        self.calls: list[int] = []

    @property
    def n_examples(self) -> int:
        return len(self.shares)

    def __call__(self, masks: Sequence[BoolMatrix]) -> Outcomes:
        self.calls.append(len(masks))
        kept = np.array([(self.weights * mask).sum() for mask in masks]) / self.weights.sum()
        metric = self.base + self.g(kept)[:, None] * self.shares[None, :]
        kl = np.array([self.kl(share) for share in kept])[:, None] * np.ones_like(self.shares)[None, :]
        return Outcomes(metric.astype(np.float32), kl.astype(np.float32), metric > self.base + 0.5, -np.exp(-metric))


def split_of(measure: Additive, name: str, n_groups: int = 4) -> Split:
    n = measure.n_examples
    groups = tuple(f"{name}-{i % n_groups}" for i in range(n))
    return Split(name, measure, np.full(n, measure.base, dtype=np.float32), groups, 0.5)


def random_scores(graph: Graph, seed: int) -> np.ndarray:
    """Scores with many ties, of both signs, zero where there is no edge."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-4, 5, graph.legal.shape) * graph.legal / 4).astype(np.float32)
