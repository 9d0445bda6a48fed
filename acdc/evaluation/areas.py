"""Areas under the faithfulness curve (Mueller et al. 2025, arXiv 2504.13151), linear and over the logarithm of size.

CPR is the area under f, CMD the area under |1 - f|, by the trapezoid rule on the nominal fractions, from the smallest
one measured (not from 0). The linear forms put most of their weight beyond 20 % of the edges; the `_log` forms take
the same integral over ln(fraction), divided by the range, so that every decade of sizes counts the same.
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
    withheld = Areas(points[0].split, points[0].rule, None, None, None, None)
    if len(points) < 2 or any(point.f is None for point in points):
        return withheld
    x = np.array([point.fraction for point in points])
    f = np.array([point.f for point in points], dtype=np.float64)
    linear = trapezoid_weights(x)
    positive = x > 0
    log_x = np.log(x[positive])
    areas = Areas(points[0].split, points[0].rule, float(linear @ f), float(linear @ abs(1 - f)), None, None)
    if len(log_x) < 2:
        return areas
    log = trapezoid_weights(log_x) / (log_x[-1] - log_x[0])
    f_log = f[positive]
    return Areas(areas.split, areas.rule, areas.cpr, areas.cmd, float(log @ f_log), float(log @ abs(1 - f_log)))
