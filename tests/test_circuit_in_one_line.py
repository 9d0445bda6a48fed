"""What `print` and a notebook show of a circuit and its report."""

from __future__ import annotations

from dataclasses import replace

from store_samples import circuit, report

from acdc.report import KStar, Point

LONGEST = 250


def test_circuit_prints_as_one_short_line_with_what_it_is_and_how_good() -> None:
    found = circuit(f=0.9)
    line = repr(found)
    assert len(line) < LONGEST
    assert "\n" not in line
    for part in ("ioi on path:toy by eap", f"5 connected edges of {found.graph.n_edges:,}", "5 asked for", "f 0.90"):
        assert part in line
    assert str(found) == line


def test_line_tells_the_held_out_figures_and_not_those_of_the_search() -> None:
    searched = Point("search", "signed", 0.1, 5, 5, 1.0, 0.11, 0.1, 0.12, 0.5, (0.0,) * 5)
    own = Point("held_out", "signed", 0.1, 5, 5, 1.0, None, 0.1, 0.34, 0.5, (0.0,) * 5)
    line = repr(replace(circuit(), report=replace(report(), kept=(searched, own))))
    assert "held out: f withheld, KL share 0.34" in line
    assert "0.11" not in line


def test_line_says_whether_k_star_was_met_and_at_which_size() -> None:
    point = Point("held_out", "signed", 0.1, 1300, 1234, 1.0, 0.9, 0.1, 0.3, 0.5, (0.0,) * 5)
    star = KStar(True, point)
    assert "k* 1,234 edges" in repr(replace(circuit(), report=replace(report(), k_star=star)))
    missed = replace(report(), k_star=replace(star, met=False))
    assert "k* missed" in repr(missed)
    assert "k* not looked for" in repr(replace(report(), k_star=None))


def test_circuit_without_a_report_says_so() -> None:
    assert "not evaluated" in repr(replace(circuit(), report=None))


def test_report_with_many_points_prints_as_one_short_line() -> None:
    point = Point("held_out", "signed", 0.1, 5, 5, 1.0, 0.9, 0.1, 0.3, 0.5, (0.0,) * 5)
    line = repr(replace(report(), points=(point,) * 500))
    assert len(line) < LONGEST
    assert "500 points" in line
    assert f"behaviour {report().behaviour.verdict}" in line
