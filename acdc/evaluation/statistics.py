"""The tests of a circuit hypothesis (Shi et al. 2024, arXiv 2410.13032), as statistics of numbers already measured.

Each function takes what circuits did and gives a p-value with what it was computed from; what is measured, and how the
random circuits are drawn, is in hypotheses.py. Where the paper's public code and its text differ, the text is followed:
equivalence counts signs, and minimality is corrected for the number of edges (Bonferroni). Where this differs from the
text, the function says so. rounding: what two metrics may differ by for nothing (`rounding_of`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acdc.evaluation.outcomes import Floats

ALPHA = 0.05
EPSILON = 0.1  # how far from even odds still counts as equivalent
QUANTILE = 0.9  # what a circuit has to beat: this share of random ones
PERMUTATIONS = 1000
FEWEST_EXAMPLES = 4  # for independence: three can be permuted in six ways only
ROUNDING = 1e-5  # of the largest metric: what float32 may do to one example; to a mean it does less (faithfulness.py)
SAME = 1e-9  # of the largest HSIC that two kernels could have: permutations that are nearer than this are level


@dataclass(frozen=True)
class Tested:
    """A statistic, how many observations it is of, its p-value, and how many observations were equal up to rounding:
    random circuits that are as near, or as far, as the circuit."""

    statistic: float
    n: int
    p: float
    ties: int = 0


def distance(a: Floats, b: Floats) -> float:
    """Between two circuits' metrics on the same examples: the mean |a - b|, in the metric's unit."""
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).mean())


def rounding_of(*metrics: Floats) -> float:
    """The largest difference between two metrics that may be nothing but rounding, in their unit. metrics: of all
    circuits that are compared, the empty one among them: of a metric that is a small difference they know the size."""
    return ROUNDING * max(float(np.abs(metric).max()) for metric in metrics)


def is_constant(metric: Floats, rounding: float) -> bool:
    """Whether a metric differs between examples by no more than rounding."""
    return float(np.ptp(metric)) <= rounding


def equivalence(circuit: Floats, model: Floats, rounding: float) -> Tested | None:
    """H0: the circuit's metric is above the model's on between .4 and .6 of all examples. Ties, to rounding, are
    dropped; None where all are ties. statistic: the share above.

    p = P(|K/n - 1/2| >= |share - 1/2|) with K ~ Binomial(n, 1/2 + EPSILON), the null's worst case. A small p says that
    the circuit is not equivalent; a large one says nothing: see `claimed_equivalence`.
    """
    above, n = _signs(circuit, model, rounding)
    if n == 0:
        return None
    far = abs(above / n - 0.5)
    chances = _binomial(n, 0.5 + EPSILON)
    outside = np.abs(np.arange(n + 1) / n - 0.5) >= far - 1e-12
    return Tested(above / n, n, float(min(1.0, chances[outside].sum())))


def claimed_equivalence(circuit: Floats, model: Floats, rounding: float) -> Tested | None:
    """The null the other way round, H0: that share is outside .4 to .6; a small p supports equivalence (two one-sided
    tests, the larger p of both)."""
    above, n = _signs(circuit, model, rounding)
    if n == 0:
        return None
    at_least = float(_binomial(n, 0.5 - EPSILON)[above:].sum())
    at_most = float(_binomial(n, 0.5 + EPSILON)[: above + 1].sum())
    return Tested(above / n, n, min(1.0, max(at_least, at_most)))


def independence(added: Floats, model: Floats, rounding: float, seed: int) -> Tested | None:
    """H0: what the complement adds to the empty circuit on an example is independent of what the model does there.
    added: the complement's metric less the empty circuit's. A small p says that the circuit is not the whole mechanism.
    None where either is the same on all examples up to rounding, or there are fewer than FEWEST_EXAMPLES.

    The paper tests the complement's metric itself. But where the circuit is the whole mechanism that is the empty
    circuit's, and a model is seldom independent of it: both are metrics of the same answers. So the empty circuit's is
    taken off, from the complement's side alone: taken off both, it would make them dependent itself.

    statistic: HSIC with Gaussian kernels, both of the median |x_i - y_j|; p by permuting examples, the observed order
    counted in, so that it is never zero. Permutations that come as near to the observed one as rounding of the sums
    count as level with it.
    """
    x, y = added.astype(np.float64), model.astype(np.float64)
    n = len(x)
    if n < FEWEST_EXAMPLES or is_constant(x, rounding) or is_constant(y, rounding):
        return None
    between = np.abs(x[:, None] - y[None, :])
    width = float(np.median(between)) or float(between.mean())
    of_x, of_y = (_centred(_kernel(z, width)) for z in (x, y))
    observed = float((of_x * of_y).sum())
    largest = float(np.linalg.norm(of_x) * np.linalg.norm(of_y))  # by Cauchy and Schwarz
    rng = np.random.default_rng(seed)
    as_large = 0
    for _ in range(PERMUTATIONS):
        order = rng.permutation(n)
        as_large += float((of_x[np.ix_(order, order)] * of_y).sum()) >= observed - SAME * largest
    return Tested(observed / (n - 1) ** 2, n, (1 + as_large) / (1 + PERMUTATIONS))


def sufficiency(of_circuit: float, of_random: Floats, rounding: float) -> Tested:
    """H0: the circuit is nearer to the model than at most QUANTILE of random circuits. of_*: distances to the model.
    statistic: how many it is nearer than; p: the upper tail.

    The paper counts ties as nearer. Here they count against the circuit: where most random circuits do nothing, one
    that does nothing either would be nearer than all of them.
    """
    n, beaten = len(of_random), int((of_random - of_circuit > rounding).sum())
    return Tested(beaten, n, _upper_tail(n, beaten), _ties(of_circuit, of_random, rounding))


def partial_necessity(of_complement: float, of_random_complements: Floats, rounding: float) -> Tested:
    """H0: to cut the circuit moves the model further than to cut a random one of its size does, at most QUANTILE of the
    time. of_*: the model's distance to what is left. statistic: how many it exceeds; p: the upper tail."""
    n, exceeded = len(of_random_complements), int((of_complement - of_random_complements > rounding).sum())
    return Tested(exceeded, n, _upper_tail(n, exceeded), _ties(of_complement, of_random_complements, rounding))


def superfluous(of_edge: float, of_random_edges: Floats, rounding: float) -> Tested:
    """H0: removing the edge moves the circuit further than removing an edge of a path that was added at random does, at
    least QUANTILE of the time. statistic: how many it exceeds; p: the lower tail, before any correction."""
    n, exceeded = len(of_random_edges), int((of_edge - of_random_edges > rounding).sum())
    p = float(min(1.0, _binomial(n, QUANTILE)[: exceeded + 1].sum()))
    return Tested(exceeded, n, p, _ties(of_edge, of_random_edges, rounding))


def _ties(of_one: float, of_others: Floats, rounding: float) -> int:
    return int((np.abs(of_others - of_one) <= rounding).sum())


def _upper_tail(n: int, count: int) -> float:
    return float(_binomial(n, QUANTILE)[count:].sum())


def _signs(circuit: Floats, model: Floats, rounding: float) -> tuple[int, int]:
    """How many examples the circuit is above the model on, and on how many they differ, both by more than rounding."""
    difference = circuit.astype(np.float64) - model.astype(np.float64)
    return int((difference > rounding).sum()), int((np.abs(difference) > rounding).sum())


def _binomial(n: int, p: float) -> npt.NDArray[np.float64]:
    """P(K = k) for k = 0..n."""
    k = np.arange(n + 1)
    ways = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(n + 1)])
    chances: npt.NDArray[np.float64] = np.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))
    return chances


def _kernel(x: npt.NDArray[np.float64], width: float) -> npt.NDArray[np.float64]:
    """The Gaussian kernel less 1, as centring takes that off: differences far below the width keep their digits."""
    kernel: npt.NDArray[np.float64] = np.expm1(-((x[:, None] - x[None, :]) ** 2) / (2 * width**2))
    return kernel


def _centred(kernel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """HKH with H = I - 11'/n."""
    rows = kernel.mean(1)
    centred: npt.NDArray[np.float64] = kernel - rows[:, None] - rows[None, :] + kernel.mean()
    return centred
