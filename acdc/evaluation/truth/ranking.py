"""How near a ranking of edges comes to a known circuit: AUROC, average precision, size-matched F1.

All take each edge's merit (higher: more likely in the circuit) and whether it is true, one entry per edge that can be
scored. An edge of which nobody can say (a redundant one) is left out before.

Edges of equal merit stand in no order. So that nobody is lucky, they are counted together: the AUROC takes midranks
(half a pair won), average precision and F1 the share of true ones among the tied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from acdc.circuit import Scores
from acdc.evaluation.outcomes import Bools, Floats
from acdc.graph import BoolMatrix, Graph, Number
from acdc.selection import GRID, rank, size_of


def auroc(merit: Floats, true: Bools) -> float:
    """The chance that a true edge outranks a false one (Mann-Whitney, midranks). merit, true: [edge].

    Raises ValueError where there is no true or no false edge.
    """
    n_true, n_false = _counts(true)
    _, of_edge, sizes = np.unique(merit, return_inverse=True, return_counts=True)
    midranks = np.cumsum(sizes) - (sizes - 1) / 2
    return float((midranks[of_edge][true].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))


def average_precision(merit: Floats, true: Bools) -> float:
    """Precision averaged over the true edges, best first; its chance level is the share of true edges. [edge] each.

    Raises ValueError where there is no true or no false edge.
    """
    n_true, _ = _counts(true)
    hits, taken = _by_level(merit, true)
    return float((np.cumsum(hits) / np.cumsum(taken)) @ hits / n_true)


def size_matched_f1(merit: Floats, true: Bools) -> float:
    """F1 of as many edges as are true, the best: precision and recall are then the same. Where the cut falls among
    edges of equal merit, what it would keep of them on average. [edge] each.

    Raises ValueError where there is no true or no false edge.
    """
    n_true, _ = _counts(true)
    hits, taken = _by_level(merit, true)
    before = np.cumsum(taken) - taken
    share_taken = np.clip((n_true - before) / taken, 0, 1)
    return float(share_taken @ hits / n_true)


def mib_circuits(graph: Graph, scores: Scores, tested: BoolMatrix) -> list[BoolMatrix]:
    """Greedy connected circuits of the grid's sizes, as MIB's circuit-localisation track makes them. [senders,
    receivers] each."""
    ranking = rank(graph, scores, tested, "greedy")
    return [ranking.select(size_of(share, graph.n_edges)).mask for share in GRID]


def mib_auroc(circuits: Sequence[Bools], true: Bools) -> float:
    """The AUROC that MIB's circuit-localisation track reports (Mueller et al. 2025, arXiv 2504.13151), for comparison.

    Trapezoids through the (FPR, TPR) of its circuits, without the point (0, 0) and divided by the last FPR. An edge
    that a ranking has not is a negative here, where theirs counts it as found. circuits: the edges that each has,
    [edge].
    """
    n_true, n_false = _counts(true)
    tpr = np.array([(kept & true).sum() / n_true for kept in circuits])
    fpr = np.array([(kept & ~true).sum() / n_false for kept in circuits])
    return float(np.trapezoid(tpr, fpr) / fpr[-1])


def at_heads(graph: Graph, matrix: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """The largest of a head's q, k and v entries stands for the head: [senders, receivers] -> [senders, nodes], the
    nodes in forward order and last the logits. A key or value input counts for every head of its group."""
    nodes = [sender.name for sender in graph.senders[graph.n_inputs :]] + ["logits"]
    return np.stack([matrix[:, graph.receivers_of(node)].max(1) for node in nodes], axis=1)


def _by_level(merit: Floats, true: Bools) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each merit, best first: how many true edges have it, and how many edges."""
    levels, of_edge = np.unique(-merit, return_inverse=True)
    taken = np.bincount(of_edge, minlength=len(levels))
    return np.bincount(of_edge[true], minlength=len(levels)), taken


def _counts(true: Bools) -> tuple[int, int]:
    n_true = int(true.sum())
    if not 0 < n_true < len(true):
        raise ValueError(f"{n_true} of {len(true)} edges are true: a ranking is judged by both kinds")
    return n_true, len(true) - n_true
