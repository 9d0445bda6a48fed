"""Node attribution patching: scores of nodes, spread over the edges between them.

A node's score is gradient times activation difference at its output (Nanda 2023; at its embeddings' path for the
integrated form), which is the sum of attribution's scores over the edges that leave it. An edge gets that of its two
ends which is smaller in size: so a circuit of the best edges is one of the best nodes, with every edge between them.
The input and the logits belong to every circuit, and an edge between them is worth what it is by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from acdc.circuit import Scores
from acdc.discovery.eap import score_eap, score_eap_ig_inputs
from acdc.discovery.problem import Found, Problem
from acdc.graph import Graph
from acdc.progress import Progress

NO_EXAMPLES = "an edge gets the smaller score of two nodes, which is no mean over examples"


def score_node_ap(problem: Problem, progress: Progress) -> list[Found]:
    """Raises TaskError for an objective whose gradient at the clean run says nothing."""
    return _by_nodes(problem, score_eap(replace(problem, keep_examples=False), progress))


def score_node_ap_ig(problem: Problem, progress: Progress, *, steps: int) -> list[Found]:
    return _by_nodes(problem, score_eap_ig_inputs(replace(problem, keep_examples=False), progress, steps=steps))


def _by_nodes(problem: Problem, by_edges: Sequence[Found]) -> list[Found]:
    (found,) = by_edges
    scores = spread(problem.t.graph, found.scores)
    return [replace(found, scores=scores, why_no_examples=NO_EXAMPLES)]


def spread(graph: Graph, scores: Scores) -> Scores:
    """[senders, receivers] edge scores -> the smaller, in size, of the sums of each edge's two ends."""
    of_sender = scores.sum(1, dtype=np.float64)
    of_receiver = np.array([_read_by(graph, of_sender, r) for r in range(graph.n_receivers)])
    is_input = np.arange(graph.n_senders) < graph.n_inputs
    left = np.where(is_input, np.inf, of_sender)[:, None]
    right = of_receiver[None, :]
    smaller = np.where(np.abs(left) <= np.abs(right), left, right)
    between_ends = np.isinf(smaller)  # from the input straight to the logits
    spread: Scores = (np.where(between_ends, scores, smaller) * graph.legal).astype(np.float32)
    return spread


def _read_by(graph: Graph, of_sender: npt.NDArray[np.float64], receiver: int) -> float:
    """The score of the node behind a receiver; of a group that shares a key or value, the largest in size."""
    if graph.receivers[receiver].kind == "logits":
        return np.inf
    own = [of_sender[graph.sender_index(name)] for name in graph.nodes_read_by(receiver)]
    return float(max(own, key=abs))
