"""Normalised faithfulness f = (m(C) - m(empty)) / (m(M) - m(empty)), as a ratio of means, and KL beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acdc.circuit import Selected
from acdc.evaluation.bootstrap import mean_interval
from acdc.evaluation.outcomes import Floats, Outcome
from acdc.report import Point

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ROUNDING = 1e-6  # relative: differences below this are float32 rounding of the metrics
SMALLEST_KL = 1e-6  # nats: the rounding of a float32 log-softmax over a vocabulary


@dataclass(frozen=True)
class Scale:
    """The two ends of f on one split. full, empty: mean metric of the model and of the empty circuit.

    can_divide: false where m(M) - m(empty) is too small to divide by, and then f is withheld.
    kl_empty: mean KL(model || empty circuit) in nats.
    """

    full: float
    empty: float
    kl_empty: float
    can_divide: bool

    def f(self, metric: float) -> float | None:
        return (metric - self.empty) / (self.full - self.empty) if self.can_divide else None

    def share(self, cost: float) -> float | None:
        """A difference of metrics in units of f."""
        return cost / (self.full - self.empty) if self.can_divide else None

    def kl_share(self, kl: float) -> float | None:
        return kl / self.kl_empty if self.kl_empty > SMALLEST_KL else None


def scale_of(full: Outcome, empty: Outcome, groups: Sequence[str], seed: int) -> Scale:
    """The scale of a split from its model and its empty circuit.

    f is withheld where the 95 % interval of the mean of m(M) - m(empty) contains zero (the denominator may have either
    sign), of a single example, which has none, and where that mean is below 1e-6 of the largest metric (rounding).
    """
    return Scale(
        full=full.mean_metric,
        empty=empty.mean_metric,
        kl_empty=empty.mean_kl,
        can_divide=can_divide_by(full.metric, empty.metric, groups, seed),
    )


def can_divide_by(full: Floats, empty: Floats, groups: Sequence[str], seed: int) -> bool:
    """Whether the mean of full - empty [n_examples] is far enough from zero to be a denominator."""
    difference = full.astype(np.float64) - empty.astype(np.float64)
    is_rounding = abs(float(difference.mean())) <= ROUNDING * max(_largest(full), _largest(empty))
    return not is_rounding and len(difference) > 1 and not mean_interval(difference, groups, seed).contains(0.0)


def point_of(outcome: Outcome, scale: Scale, split: str, selected: Selected, fraction: float) -> Point:
    """One circuit's figures on one split."""
    metric, kl = outcome.mean_metric, outcome.mean_kl
    return Point(
        split=split,
        rule=selected.rule,
        fraction=fraction,
        asked_for=selected.asked_for,
        connected=selected.connected,
        metric=metric,
        f=scale.f(metric),
        kl=kl,
        kl_share=scale.kl_share(kl),
        accuracy=float(outcome.correct.mean()),
        quantiles=_quantiles(outcome.metric),
        kl_quantiles=_quantiles(outcome.kl),
        answer_logprob=float(outcome.answer_logprob.mean(dtype=np.float64)),
    )


def _quantiles(values: Floats) -> tuple[float, float, float, float, float]:
    q05, q25, q50, q75, q95 = (float(q) for q in np.quantile(values.astype(np.float64), QUANTILES))
    return q05, q25, q50, q75, q95


def _largest(values: Floats) -> float:
    return float(np.abs(values).max())
