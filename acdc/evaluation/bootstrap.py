"""Examples drawn again, as groups where there are enough of them, and intervals of a mean: by the bootstrap, and where
there are too few to draw from, Student's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIN_GROUPS = 10  # fewer clusters than this say too little about how much clusters differ
RESAMPLES = 2000
LEVEL = 0.95
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)  # Student's t, .975, 1 to 8 degrees of freedom
ROWS_AT_A_TIME = 512  # resampled means of so many rows are held at once


@dataclass(frozen=True, eq=False)
class Units:
    """What is drawn with replacement: n groups or examples (`name`). member_of: [n_examples], the unit of each."""

    name: str
    member_of: npt.NDArray[np.int64]
    n: int

    def draw(self, resamples: int, seed: int) -> npt.NDArray[np.int64]:
        """[resamples, n]: how often each unit was drawn."""
        return np.random.default_rng(seed).multinomial(self.n, np.full(self.n, 1 / self.n), size=resamples)


def units_of(groups: Sequence[str]) -> Units:
    """Groups, each with all its examples, where there are at least ten of them; otherwise single examples."""
    names, member_of = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) >= MIN_GROUPS:
        return Units("group", member_of, len(names))
    return Units("example", np.arange(len(groups)), len(groups))


@dataclass(frozen=True)
class Interval:
    """Of a mean, at the 95 % level. unit: what was drawn again, group or example, and how many there are. A single
    example has the interval of no width that it lies in: it says nothing."""

    low: float
    high: float
    unit: str
    n_units: int

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, eq=False)
class Intervals:
    """The intervals of many means over the same examples: low and high [...]; else as in Interval."""

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    unit: str
    n_units: int


def mean_interval(values: npt.NDArray[np.generic], groups: Sequence[str], seed: int) -> Interval:
    """The interval of the mean of `values` [n_examples].

    Drawn with replacement is what `units_of` says. A mean over drawn groups weighs examples, not groups. Percentiles
    of drawn means are too narrow where there is little to draw: fewer than ten examples have Student's interval.
    """
    drawn = mean_intervals(values, groups, seed)
    return Interval(float(drawn.low), float(drawn.high), drawn.unit, drawn.n_units)


def mean_intervals(values: npt.NDArray[np.generic], groups: Sequence[str], seed: int) -> Intervals:
    """`mean_interval` of every row of `values` [..., n_examples]; the same draws serve all rows."""
    n = values.shape[-1]
    if n == 0 or n != len(groups):
        raise ValueError(f"{n} values and {len(groups)} groups: give one group a value, and at least one value")
    units = units_of(groups)
    if units.n < MIN_GROUPS:
        half = _half_width(values) if n > 1 else 0.0
        means = values.mean(-1, dtype=np.float64)
        return Intervals(means - half, means + half, units.name, units.n)
    drawn = units.draw(RESAMPLES, seed)
    counts = drawn @ np.bincount(units.member_of, minlength=units.n)
    rows = values.reshape(-1, n).astype(np.float64)
    bounds = np.empty((2, len(rows)))
    for first in range(0, len(rows), ROWS_AT_A_TIME):
        chunk = rows[first : first + ROWS_AT_A_TIME]
        sums = np.stack([np.bincount(units.member_of, weights=row, minlength=units.n) for row in chunk])
        means = (sums @ drawn.T) / counts
        bounds[:, first : first + ROWS_AT_A_TIME] = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    low, high = bounds.reshape(2, *values.shape[:-1])
    return Intervals(low, high, units.name, units.n)


def _half_width(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Of Student's interval of the means of 2 to 9 values: [...]"""
    n = values.shape[-1]
    half: npt.NDArray[np.float64] = T_QUANTILES[n - 2] * values.std(-1, ddof=1, dtype=np.float64) / np.sqrt(n)
    return half
