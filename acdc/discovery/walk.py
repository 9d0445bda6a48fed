"""The sequential search of ACDC as data: its order, its rule, its decisions so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from acdc.circuit import Scores
from acdc.discovery.guard import Guard
from acdc.graph import BoolMatrix, Graph
from acdc.progress import Array


@dataclass(frozen=True)
class Rule:
    """Cut what costs less than the threshold. is_absolute: compare the cost's size, so that an edge whose absence helps
    is kept too."""

    threshold: float
    is_absolute: bool = False

    def margin(self, cost: float) -> float:
        """How far a cost lies above the threshold."""
        return (abs(cost) if self.is_absolute else cost) - self.threshold

    def cuts(self, cost: float) -> bool:
        return (abs(cost) if self.is_absolute else cost) < self.threshold


def receiver_order(graph: Graph) -> Iterator[int]:
    """Receivers from the output to the input: logits; per layer, from the last, the MLP, then q, k, v, heads
    descending."""
    yield graph.n_receivers - 1
    for layer in reversed(range(graph.shape.n_layers)):
        of_layer = range(graph.n_receivers)[graph.receivers_of_layer(layer)]
        for kind in ("mlp", "q", "k", "v"):
            yield from reversed([r for r in of_layer if graph.receivers[r].kind == kind])


def sender_order(graph: Graph, receiver: int, order: str, seed: int) -> list[int]:
    """The senders before a receiver. order: reverse (late to early), normal, or random (by seed and receiver)."""
    senders = np.arange(int(graph.n_senders_before[receiver]))
    match order:
        case "reverse":
            senders = senders[::-1]
        case "random":
            senders = np.random.default_rng((seed, receiver)).permutation(senders)
    return [int(sender) for sender in senders]


REPORTED = (
    "edges_tested",
    "batched_evaluations",
    "rows",
    "node_recomputations",
    "borderline_edges",
    "masked_forwards",
)


@dataclass
class Walk:
    """A search under way. kept, costs, tested: [senders, receivers]; costs: what each tested edge cost when its turn
    came. position: receivers decided. counts: of what every search reports, and in a staged one edges_decided_early and
    rows_of_later_stages too. audited: kinds of visits at which rows were compared with whole masked forwards."""

    kept: BoolMatrix
    costs: Scores
    tested: BoolMatrix
    guard: Guard
    position: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REPORTED, 0))
    audited: set[str] = field(default_factory=set)

    @classmethod
    def begin(cls, kept: BoolMatrix, dtype: torch.dtype, row_error: float = 0.0) -> Walk:
        """dtype: of the model. row_error: what searches before this one saw of it."""
        return cls(kept.copy(), np.zeros(kept.shape, np.float32), np.zeros_like(kept), Guard.of(dtype, row_error))

    def count(self, what: str, n: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + n

    def record(self, sender: int, receiver: int, cost: float, is_cut: bool) -> None:
        self.kept[sender, receiver], self.tested[sender, receiver] = not is_cut, True
        self.costs[sender, receiver] = cost

    def facts(self) -> Mapping[str, object]:
        return {
            "position": self.position,
            "counts": self.counts,
            "guard": self.guard.facts(),
            "audited": sorted(self.audited),
        }

    def arrays(self) -> Mapping[str, Array]:
        return {"kept": self.kept, "costs": self.costs, "tested": self.tested}

    @classmethod
    def restored(cls, facts: Mapping[str, object], arrays: Mapping[str, Array]) -> Walk:
        counts, guard, audited = facts["counts"], facts["guard"], facts["audited"]
        assert isinstance(counts, dict)
        assert isinstance(guard, dict)
        assert isinstance(audited, list)
        return cls(
            arrays["kept"].astype(bool),
            arrays["costs"].astype(np.float32),
            arrays["tested"].astype(bool),
            Guard.restored(guard),
            int(str(facts["position"])),
            {str(name): int(n) for name, n in counts.items()},
            set(audited),
        )
