"""Every edge alone, cut from the full graph: score[s, r] = m(full) - m(full without the edge).

The measure that attribution approximates. Cost: one masked forward per edge, as many edges a batch as memory holds.
"""

from __future__ import annotations

import numpy as np

from acdc.discovery.problem import Found, Problem
from acdc.progress import Checkpoint, Progress

CHUNK = 64  # edges between two steps of progress


def score_exact(problem: Problem, progress: Progress) -> list[Found]:
    """Checkpoints after every chunk of edges."""
    graph = problem.t.graph
    edges = list(graph.edges())
    scores = np.zeros(graph.legal.shape, dtype=np.float32)
    start = 0
    if (saved := progress.resume()) is not None:
        scores, start = np.array(saved.arrays["scores"], dtype=np.float32), saved.step
    progress.phase("exact", len(edges))
    full = problem.full_mask()
    reference = problem.measure(full[None]).mean()
    for first in range(start, len(edges), CHUNK):
        chunk = edges[first : first + CHUNK]
        masks = full.repeat(len(chunk), 1, 1)
        for mask, edge in zip(masks, chunk, strict=True):
            mask[edge.sender, edge.receiver] = 0
        without = problem.measure(masks).mean(1)
        for edge, value in zip(chunk, without, strict=True):
            scores[edge.sender, edge.receiver] = reference - value
        progress.save(Checkpoint(first + len(chunk), arrays={"scores": scores}))
        progress.step(first + len(chunk))
    return [Found(scores, graph.legal.copy(), passes={"masked_forward": len(edges) + 1})]
