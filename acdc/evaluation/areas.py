"""Areas under the faithfulness curve (Mueller et al. 2025, arXiv 2504.13151), linear and over the logarithm of size.

CPR is the area under f, CMD the area under |1 - f|, by the trapezoid rule on the nominal fractions, from the smallest
one measured (not from 0). The linear forms put most of their weight beyond 20 % of the edges; the `_log` forms take
the same integral over ln(fraction), divided by the range, so that every decade of sizes counts the same.

CMD alone can be had by a ranking that pairs what helps with what hurts while the circuit predicts worse than the empty
one. So `cmd_guarded` counts |1 - f| as at least 1 at every size where KL(C) >= KL(empty), and `kl_area` is the area
under the KL share itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from acdc.report import Areas, Point


def trapezoid_weights(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights w with sum(w * y) the trapezoid integral of y over the increasing `x`."""
    steps = np.diff(x)
    weights = np.zeros_like(x)
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    return weights


def areas_of(points: Sequence[Point]) -> Areas:
    """Areas under one curve: points of one split and rule. Figures are None where any f is withheld, or where there are
    fewer than two sizes; the log forms leave out a size of zero."""
    points = sorted(points, key=lambda point: point.fraction)
    split, rule = points[0].split, points[0].rule
    if len(points) < 2 or any(point.f is None for point in points):
        return Areas(split, rule, None, None, None, None)
    x = np.array([point.fraction for point in points])
    f = np.array([point.f for point in points], dtype=np.float64)
    shares = [point.kl_share for point in points if point.kl_share is not None]
    least = [1.0 if (point.kl_share or 0.0) >= 1 else 0.0 for point in points]
    linear = trapezoid_weights(x)
    positive = x > 0
    log_x = np.log(x[positive])
    log = trapezoid_weights(log_x) / (log_x[-1] - log_x[0]) if len(log_x) > 1 else None
    return Areas(
        split,
        rule,
        cpr=float(linear @ f),
        cmd=float(linear @ abs(1 - f)),
        cpr_log=None if log is None else float(log @ f[positive]),
        cmd_log=None if log is None else float(log @ abs(1 - f[positive])),
        cmd_guarded=float(linear @ np.maximum(abs(1 - f), least)),
        kl_area=float(linear @ np.array(shares)) if len(shares) == len(points) else None,
    )
