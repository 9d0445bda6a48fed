"""Scores per example whose distribution is known, and so how far circuits of independent samples overlap.

The mean score of every edge is planted: edges of important nodes score high, so that the best edges hang together, and
their strengths fall off in one of five ways. Around it every example has noise of its own. Strengths are in units of
the noise of one example.

    nothing     no edge has a strength                      independent   normal, every edge apart
    cliff       the edges asked for all the same, no others heavy         Student's t with three degrees of freedom
    power       falls with the rank to the power of -0.7    shared        half of it in three directions of all edges
    exponential falls by e for every size asked for         shared heavy  these directions with Student's t
    normal      quantiles of a normal distribution          sizes         examples differ in size, their strength too
                                                            groups        half of it common to a group of 2 to 7
                                                            rare          one unit in 16 has other edges, strongly
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from acdc.graph import Graph
from acdc.selection import rank

Array = npt.NDArray[np.float64]
Circuit = npt.NDArray[np.bool_]  # [n_edges]

RARE = 1 / 16
BONUS = {"embed": 3.0, "mlp": 1.0, "logits": 3.0}  # in the importance of nodes: paths begin and end there
SIGNALS: dict[str, Callable[[Array, int], Array]] = {
    "nothing": lambda place, k: np.zeros_like(place),
    "cliff": lambda place, k: (place < k).astype(float),
    "power": lambda place, k: ((place + 1) / k) ** -0.7,
    "exponential": lambda place, k: np.exp(1 - place / k),
    "normal": lambda place, k: _normal_quantiles(len(place)),
}
NOISES = ("independent", "heavy", "shared", "shared heavy", "sizes", "groups", "rare")


def _normal_quantiles(n: int) -> Array:
    """Falling; of so many draws that the few that are needed are smooth."""
    draws = np.sort(np.random.default_rng(0).standard_normal((1000, n)), axis=1).mean(0)
    falling: Array = draws[::-1]
    return falling


@dataclass(frozen=True)
class Planted:
    """signal, noise: of the tables above. strength: that of the last edge asked for in a cliff, and as the table's
    formulae have it. n: units in a sample; with the noise "groups" these are groups."""

    graph: Graph
    asked_for: int
    signal: str
    strength: float
    noise: str
    n: int
    rule: str = "signed"

    @property
    def name(self) -> str:
        return (
            f"{self.graph.n_edges} edges, {self.asked_for} {self.rule}, {self.signal} {self.strength:g}, {self.noise}, "
            f"n {self.n}"
        )

    @cached_property
    def means(self) -> Array:
        """[n_edges], in the graph's order. Under the absolute rule every second edge or so is negative."""
        rng, graph = np.random.default_rng(1), self.graph
        senders = rng.standard_normal(graph.n_senders) + [BONUS.get(s.kind, 0) for s in graph.senders]
        receivers = rng.standard_normal(graph.n_receivers) + [BONUS.get(r.kind, 0) for r in graph.receivers]
        weight = graph.in_order(senders[:, None] + receivers[None, :]) + 0.5 * rng.standard_normal(graph.n_edges)
        place = np.empty(graph.n_edges)
        place[np.argsort(-weight)] = np.arange(graph.n_edges)
        falling = self.strength * np.sort(SIGNALS[self.signal](np.arange(graph.n_edges, dtype=float), self.asked_for))
        signs = rng.choice([-1.0, 1.0], graph.n_edges) if self.rule == "absolute" else 1.0
        means: Array = falling[::-1][place.astype(int)] * signs
        return means

    @cached_property
    def directions(self) -> Array:
        """[3, n_edges]: what examples have in common."""
        return np.random.default_rng(2).standard_normal((3, self.graph.n_edges))

    def sample(self, n: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], list[str]]:
        """n new units: scores [n_examples, n_edges], and each example's group: its own, unless noise is groups."""
        sizes = rng.integers(2, 8, n) if self.noise == "groups" else np.ones(n, dtype=int)
        groups = np.repeat(np.arange(n), sizes)
        own = rng.standard_normal((len(groups), self.graph.n_edges))
        match self.noise:
            case "heavy":
                own = rng.standard_t(3, own.shape) / np.sqrt(3)
            case "shared":
                own = (own + rng.standard_normal((n, 3)) @ self.directions) / 2
            case "shared heavy":
                own = (own + rng.standard_t(3, (n, 3)) / np.sqrt(3) @ self.directions) / 2
            case "groups":
                common = rng.standard_normal((n, self.graph.n_edges))
                own = np.sqrt(0.5) * (own + common[groups])
            case "rare":
                own += 6 * (rng.random((n, 1)) < RARE) * self.directions[0]
        scores = self.means + own
        if self.noise == "sizes":
            scores *= np.exp(rng.standard_normal((n, 1)))
        return scores.astype(np.float32), [str(group) for group in groups]

    def circuit(self, scores: npt.NDArray[np.float32]) -> Circuit:
        """Found on these examples: its connected edges."""
        graph = self.graph
        mean = graph.matrix_of(scores.astype(np.float64).mean(0).astype(np.float32))
        return graph.in_order(rank(graph, mean, graph.legal, self.rule, self.asked_for).select(self.asked_for).mask)

    def expected_overlap(self, n: int, pairs: int, seed: int) -> float:
        """The mean Jaccard of two circuits of independent samples of n units each."""
        rng = np.random.default_rng([seed, n])
        found = (jaccard(*(self.circuit(self.sample(n, rng)[0]) for _ in range(2))) for _ in range(pairs))
        return float(np.mean(list(found)))


def jaccard(one: Circuit, other: Circuit) -> float:
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 0.0
