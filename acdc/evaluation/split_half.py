"""How far two circuits overlap whose examples are independent of each other, with an interval.

What is estimated is the expected Jaccard of two circuits, each found on m = n // 2 new units (groups of prompts, or
prompts). Two disjoint halves of the n units at hand are two such samples, so the Jaccard of their circuits is unbiased
for it; it is averaged over random splits.

    theta = E J(circuit of m units, circuit of m other units)        U = mean over splits of J(half, other half)

The splits of one sample share its units, so their spread is not that of U. That is had by leaving out blocks of units:
with U_b from the same splits without block b, of g blocks,

    V = (g - 1) / g * sum over b of (U_b - mean of U_b)^2

which on average is no smaller than the variance of U, but for the step from n to n - n / g units (Efron and Stein 1981,
"The jackknife estimate of variance"; the blocks are their independent variables). J is a share of the edges that either
circuit has, so the interval is Wilson's for a share: of as many edges as would give that variance, at most as many as
there are, with a t quantile, as for shares in clustered surveys (Korn and Graubard 1998; Franco et al. 2019). It stays
within [0, 1] and has a width even where no split differs from another. make bench-coverage checks how often it contains
theta.

Cost: SPLITS * (BLOCKS + 1) * 2 selections; no model runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acdc.evaluation.bootstrap import Units
from acdc.evaluation.reselection import Counts, Reselection
from acdc.progress import Progress

SPLITS = 64
BLOCKS = 16
T = {10: 2.262, 11: 2.228, 12: 2.201, 13: 2.179, 14: 2.160, 15: 2.145, 16: 2.131}
"""Number of blocks -> 97.5 % quantile of Student's t with one degree of freedom less."""


@dataclass(frozen=True)
class SplitHalf:
    """jaccard: U, unbiased for theta. low, high: its 95 % interval."""

    jaccard: float
    low: float
    high: float


def split_half(reselection: Reselection, units: Units, seed: int, progress: Progress) -> SplitHalf | None:
    """The overlap of circuits from n // 2 units, None with fewer than ten units. Raises Cancelled."""
    n_blocks = min(BLOCKS, units.n)
    if n_blocks not in T:
        return None
    progress.phase("split halves", (n_blocks + 1) * SPLITS)
    overlaps = np.empty((n_blocks + 1, SPLITS, 2))  # jaccard, and edges that either circuit has
    for left_out, counts in enumerate(_halves(units, n_blocks, seed)):
        circuits = reselection.circuits(counts)
        for i, (one, other) in enumerate(zip(circuits, circuits, strict=True)):
            overlaps[left_out, i] = overlap(one, other)
            progress.step(left_out * SPLITS + i + 1)
    jaccard, either = overlaps.mean(1).T
    variance = (n_blocks - 1) * float(jaccard[1:].var())
    low, high = _interval(float(jaccard[0]), variance, float(either[0]), T[n_blocks])
    return SplitHalf(float(jaccard[0]), low, high)


def _halves(units: Units, n_blocks: int, seed: int) -> Iterator[Counts]:
    """Of all units, and then of those without each block in turn: [2 * SPLITS, n_examples], the halves of a split one
    after the other. The order that is cut in half is the same in all of them, so what a block moves is seen."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(units.n) for _ in range(SPLITS)]
    block_of = rng.permutation(np.arange(units.n) * n_blocks // units.n)
    for left_out in range(-1, n_blocks):
        counts = np.zeros((2 * SPLITS, units.n), dtype=np.int64)
        for i, order in enumerate(orders):
            stay = order[block_of[order] != left_out]
            half = len(stay) // 2
            counts[2 * i, stay[:half]] = 1
            counts[2 * i + 1, stay[half : 2 * half]] = 1
        yield counts[:, units.member_of]


def overlap(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> tuple[float, int]:
    """Jaccard and the edges that either has. Two empty circuits have nothing in common."""
    either = int((one | other).sum())
    return int((one & other).sum()) / max(either, 1), either


def _interval(share: float, variance: float, n_edges: float, t: float) -> tuple[float, float]:
    """Wilson's, of as many edges as give the variance. Near 0 and 1 the share of which that is told is moved inwards
    by one edge of each kind: there a variance says little."""
    inner = (share * n_edges + 1) / (n_edges + 2)
    n = min(n_edges, inner * (1 - inner) / variance) if variance > 0 else n_edges
    middle = (n * share + t**2 / 2) / (n + t**2)
    reach = t * math.sqrt(n * share * (1 - share) + t**2 / 4) / (n + t**2)
    return max(0.0, middle - reach), min(1.0, middle + reach)
