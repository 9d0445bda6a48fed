"""Is the behaviour there at all? A circuit of a behaviour that the model does not show explains nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acdc.evaluation.bootstrap import mean_interval
from acdc.evaluation.outcomes import Bools, Floats
from acdc.report import Behaviour

MIN_UNITS = 6  # with fewer, not even a unanimous sign test reaches 5 % on both sides (2 / 2**5 > .05)


def verdict_on(
    metric_clean: Floats, metric_corrupt: Floats, correct: Bools, groups: Sequence[str], chance: float, seed: int
) -> Behaviour:
    """Judge m(clean) - m(corrupt), all arrays [n_examples], by its 95 % bootstrap interval (see `mean_interval`).

    absent: the interval reaches down to zero or below, or the accuracy is clearly below chance (the upper end of its
            own interval is): corrupting the prompt does not lower the metric, or the model answers against the task.
    shown:  not absent, accuracy at least half way from chance to 1 (.75 where chance is .5), and at least six groups
            (or examples, where those are drawn), since fewer cannot carry an interval.
    weak:   everything between.

    The intervals are over groups where there are ten or more, else over examples; `clustered_by` says which.
    """
    difference = metric_clean.astype(np.float64) - metric_corrupt.astype(np.float64)
    interval = mean_interval(difference, groups, seed)
    accuracy = float(correct.mean())
    if interval.low <= 0 or mean_interval(correct, groups, seed).high < chance:
        verdict = "absent"
    elif accuracy >= (1 + chance) / 2 and interval.n_units >= MIN_UNITS:
        verdict = "shown"
    else:
        verdict = "weak"
    return Behaviour(
        verdict=verdict,
        metric_clean=float(metric_clean.mean(dtype=np.float64)),
        metric_corrupt=float(metric_corrupt.mean(dtype=np.float64)),
        interval=(interval.low, interval.high),
        accuracy_clean=accuracy,
        chance=chance,
        n_examples=len(difference),
        clustered_by=interval.unit,
    )
