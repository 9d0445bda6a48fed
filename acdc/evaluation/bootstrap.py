"""Bootstrap intervals of a mean, over groups of examples where there are enough of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIN_GROUPS = 10  # fewer clusters than this say too little about how much clusters differ
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a mean at the 95 % level. unit: what was drawn again, group or example, and how many."""

    low: float
    high: float
    unit: str
    n_units: int

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


def mean_interval(values: npt.NDArray[np.generic], groups: Sequence[str], seed: int) -> Interval:
    """The interval of the mean of `values` [n_examples].

    Groups are drawn with replacement, with all their examples, where there are at least ten of them; otherwise examples
    are. A mean over drawn groups weighs examples, not groups.
    """
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(
            f"{len(values)} values and {len(groups)} groups: give one group a value, and at least one value"
        )
    names, member_of = np.unique(np.asarray(groups), return_inverse=True)
    unit = "group" if len(names) >= MIN_GROUPS else "example"
    if unit == "example":
        member_of = np.arange(len(values))
    n_units = int(member_of.max()) + 1
    sums = np.bincount(member_of, weights=values.astype(np.float64), minlength=n_units)
    counts = np.bincount(member_of, minlength=n_units)
    drawn = np.random.default_rng(seed).multinomial(n_units, np.full(n_units, 1 / n_units), size=RESAMPLES)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), unit, n_units)
