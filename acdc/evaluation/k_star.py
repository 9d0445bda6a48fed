"""k*: the smallest connected circuit that does what the model does (docs/decisions/0003-k-star.md).

A circuit meets the conditions on a split where f is in [.8, 1.2] and KL(C) <= KL(empty) / 2. k* has to meet them on the
search prompts, where its size and rule are looked for, and again on the held-out prompts. A circuit that fails on the
search prompts is not chosen by its held-out figures; `KStar.looks` counts those that passed and were then tried held
out. Only where no swept size up to 2 % of the edges meets both does one of the curve that meets held out alone count,
and `chosen_on` then says held_out; where there is none either, the same two questions are asked of all sizes.

What is swept. f is not monotone in size, so this is a search of stated sizes, not a proof that none is smaller:
1. every size of the curve;
2. where none up to 2 % of the edges meets: three more sizes, evenly spaced in the logarithm, in every gap between
   neighbouring sizes up to 2 %;
3. for each rule, bisection (five steps, in the logarithm of size) between the smallest size swept that meets and the
   next smaller one swept, which does not: it ends at a size that meets while one a few percent smaller does not.
On a graph where the curve already holds every size, steps 2 and 3 have nothing to add, and k* is exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from acdc.evaluation.curve import Judge, Size
from acdc.report import KStar, Point
from acdc.selection import Ranking, size_of

BAND = (0.8, 1.2)
KL_SHARE = 0.5
TARGET = 0.02  # of all edges: what a circuit worth reading is at most
BISECTIONS = 5
BETWEEN = 3
N_NEAREST = 3


def meets(point: Point) -> bool:
    """Both conditions, on the point's own split."""
    return shortfall(point) == 0


def shortfall(point: Point) -> float:
    """How far a point is from meeting the conditions: the distance of f to its band over the band's half width (.2),
    plus the excess of KL(C)/KL(empty) over its limit in units of that limit (.5). Zero where both are met, infinite
    where f is withheld. An empty circuit that is no further from the model than rounding meets the KL condition."""
    if point.f is None:
        return math.inf
    outside = max(0.0, BAND[0] - point.f, point.f - BAND[1]) / ((BAND[1] - BAND[0]) / 2)
    excess = max(0.0, (point.kl_share or 0.0) - KL_SHARE) / KL_SHARE
    return outside + excess


@dataclass(frozen=True)
class _Tried:
    rule: str
    size: Size
    search: Point
    held_out: Point | None  # None where the search prompts already said no

    @property
    def meets_both(self) -> bool:
        return self.held_out is not None and meets(self.search) and meets(self.held_out)


class _Sweep:
    """Sizes tried so far, of all rules."""

    def __init__(self, judge: Judge, rankings: Sequence[Ranking]) -> None:
        self.judge = judge
        self.rankings = {ranking.rule: ranking for ranking in rankings}
        self.tried: dict[tuple[str, int], _Tried] = {}
        self.looks = 0

    def try_size(self, rule: str, size: Size, *, on_curve: bool = False) -> _Tried:
        """on_curve: its held-out point is wanted whatever the search prompts say."""
        if (rule, size.n) in self.tried:
            return self.tried[rule, size.n]
        kept = self.rankings[rule].select(size.n)
        search = self.judge.point("search", kept, size.fraction)
        held_out = None
        if on_curve or meets(search):
            held_out = self.judge.point("held_out", kept, size.fraction)
        self.looks += meets(search)
        self.tried[rule, size.n] = tried = _Tried(rule, size, search, held_out)
        return tried

    def of(self, rule: str) -> list[_Tried]:
        return sorted((one for one in self.tried.values() if one.rule == rule), key=lambda one: one.size.n)

    def held_out(self, among: Sequence[_Tried]) -> list[Point]:
        return sorted(
            (one.held_out for one in among if one.held_out),
            key=lambda point: (point.connected, point.rule, point.asked_for),
        )


def find_k_star(judge: Judge, rankings: Sequence[Ranking], sizes: Sequence[Size]) -> KStar | None:
    """The smallest swept circuit that meets both conditions, over all rules; ties go to the first rule's name.

    `point` is its held-out point. Where no size up to 2 % meets them held out, `nearest` holds the three held-out
    points up to 2 % with the least `shortfall` (k* itself may then be larger); where no size meets them at all, those
    of all sizes, and `point` is the first. None where f is withheld on either split, or nothing is ranked.
    """
    if not rankings or not sizes or not all(scale.can_divide for scale in judge.scales.values()):
        return None
    n_edges = rankings[0].graph.n_edges
    sweep = _Sweep(judge, rankings)
    for ranking in rankings:
        for size in sizes:
            sweep.try_size(ranking.rule, size, on_curve=True)
    if not any(one.meets_both and one.size.fraction <= TARGET for one in sweep.tried.values()):
        for ranking in rankings:
            for size in sizes_between(sizes, n_edges):
                sweep.try_size(ranking.rule, size)
    for ranking in rankings:
        _bisect(sweep, ranking.rule, n_edges)
    return _choose(sweep)


def sizes_between(sizes: Sequence[Size], n_edges: int) -> list[Size]:
    """Up to three sizes in every gap between neighbouring sizes up to 2 %."""
    numbers = [size.n for size in sizes if 0 < size.fraction <= TARGET]
    between = {
        round(low * (high / low) ** (step / (BETWEEN + 1)))
        for low, high in itertools.pairwise(numbers)
        for step in range(1, BETWEEN + 1)
    }
    return [Size(n / n_edges, n) for n in sorted(between - set(numbers))]


def most_trials(sizes: Sequence[Size], n_edges: int, n_rules: int) -> int:
    """Circuits that `find_k_star` measures on a split, beyond those of the curve, at most."""
    between = len(sizes_between(sizes, n_edges))
    is_exact = [size.n for size in sizes] == list(range(n_edges + 1))
    return 0 if is_exact else n_rules * (between + BISECTIONS)


def _bisect(sweep: _Sweep, rule: str, n_edges: int) -> None:
    tried = sweep.of(rule)
    first = next((i for i, one in enumerate(tried) if one.meets_both), None)
    if first is None:
        return
    high = tried[first].size.n
    low = max(1, tried[first - 1].size.n) if first else 1
    for _ in range(BISECTIONS):
        middle = round(math.sqrt(low * high))
        if not low < middle < high:
            return
        if sweep.try_size(rule, Size(middle / n_edges, middle)).meets_both:
            high = middle
        else:
            low = middle


def _choose(sweep: _Sweep) -> KStar:
    every = list(sweep.tried.values())
    small = [one for one in every if one.size.fraction <= TARGET]
    nearest: tuple[Point, ...] = ()
    if not any(map(meets, sweep.held_out(small))):
        nearest = tuple(sorted(sweep.held_out(small or every), key=shortfall)[:N_NEAREST])
    for among in (small, every):
        if confirmed := sweep.held_out([one for one in among if one.meets_both]):
            return KStar(True, confirmed[0], nearest, "search", sweep.looks)
        if unconfirmed := list(filter(meets, sweep.held_out(among))):
            return KStar(True, unconfirmed[0], nearest, "held_out", sweep.looks)
    nearest = tuple(sorted(sweep.held_out(every), key=shortfall)[:N_NEAREST])
    return KStar(False, nearest[0], nearest, "held_out", sweep.looks)


def target_size(n_edges: int) -> int:
    """Edges at 2 %: what is kept where k* cannot be told."""
    return max(1, size_of(TARGET, n_edges))
