"""The smallest circuit that reaches a faithfulness, of one or several rankings, on the prompts that were searched.

f is not monotone in size, so this is a search of stated sizes: those of the curve from small to large, and between the
first that reaches it and the one before, bisection in the logarithm of size. It ends at a size that reaches it, where
one a few percent smaller that was tried does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from acdc.evaluation.curve import Judge, Size
from acdc.selection import Kept, Ranking

BISECTIONS = 6


def most_trials(sizes: Sequence[Size], n_rules: int) -> int:
    """Circuits that `smallest_reaching` measures on the search prompts, at most."""
    return n_rules * (len(sizes) + BISECTIONS)


def smallest_reaching(judge: Judge, rankings: Sequence[Ranking], sizes: Sequence[Size], wanted: float) -> Kept | None:
    """The circuit of fewest connected edges, of the first ranking where several have as few; None where f is withheld,
    or no size tried reaches `wanted`. Raises Cancelled."""
    found = [kept for ranking in rankings if (kept := _smallest(judge, ranking, sizes, wanted)) is not None]
    return min(found, key=lambda kept: kept.selected.connected, default=None)


def _smallest(judge: Judge, ranking: Ranking, sizes: Sequence[Size], wanted: float) -> Kept | None:
    low = 0
    for size in sizes:
        if _reaches(judge, ranking, size.n, wanted):
            return ranking.select(_bisected(judge, ranking, low, size.n, wanted))
        low = size.n
    return None


def _bisected(judge: Judge, ranking: Ranking, low: int, high: int, wanted: float) -> int:
    """low does not reach it, high does."""
    for _ in range(BISECTIONS):
        middle = round(math.sqrt(max(low, 1) * high))
        if not low < middle < high:
            break
        if _reaches(judge, ranking, middle, wanted):
            high = middle
        else:
            low = middle
    return high


def _reaches(judge: Judge, ranking: Ranking, n: int, wanted: float) -> bool:
    f = judge.point("search", ranking.select(n), n / ranking.graph.n_edges).f
    return f is not None and f >= wanted
