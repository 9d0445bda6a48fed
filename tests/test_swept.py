"""What is said of the sizes that areas under a curve are over."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from acdc.evaluation.areas import areas_of
from acdc.selection import GRID
from acdc.swept import Swept

sys.path.insert(0, str(Path(__file__).parent / "drawing"))
from drawing_samples import make_point, make_report


def of(*grid: float) -> Swept:
    return Swept.of(make_report(grid=grid))


def test_the_usual_sizes_are_those_of_mib() -> None:
    swept = of(*GRID)
    assert swept.is_of_mib
    assert swept.span == "0.1 % to 100 % of the edges"
    assert "compare" not in " ".join(swept.sentences)


@pytest.mark.parametrize(
    ("grid", "span"),
    [
        ((0.01, 0.1), "1 % to 10 %"),
        (GRID[:-1], "0.1 % to 50 %"),
        ((0.001, 1.0), "0.1 % to 100 %"),  # the same range, other sizes
        (tuple(i / 64 for i in range(65)), "0 % to 100 %"),  # every size of a small graph
    ],
    ids=["two sizes", "without all edges", "the ends alone", "every size"],
)
def test_other_sizes_are_said_not_to_compare(grid: tuple[float, ...], span: str) -> None:
    swept = Swept(tuple(sorted(grid)))
    assert not swept.is_of_mib
    assert swept.span == f"{span} of the edges"
    assert "do not compare with published ones" in swept.sentences[-1]


def test_the_best_areas_are_those_of_a_curve_that_is_1_everywhere() -> None:
    best = areas_of([make_point("held_out", "signed", fraction, 1.0, 0.0) for fraction in (0.01, 0.1)])
    assert best.cpr == pytest.approx(0.09)
    assert (best.cpr_log, best.cmd) == (pytest.approx(1), 0)
    said = of(0.01, 0.1).sentences[0]
    assert "(linear): f = 1 at every size gives a CPR of 0.090" in said
    assert "and a CMD of 0" in said
    assert "logarithm of size and divided by its range: there f = 1 gives 1" in said


def test_one_size_has_no_area_to_speak_of() -> None:
    assert of(0.01).sentences == ()
    assert of(0.01).span == "1 % of the edges"
    assert Swept(()).span == "the sizes measured"
