"""The faithfulness curve, read back from its SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations

import pytest
from drawing_samples import make_point, make_report
from test_drawing_circuit import SVG, overlap, path_points, text_boxes

from acdc.drawing import draw_curve
from acdc.report import Report


def titles(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}title")]


def lonely(report: Report) -> Report:
    return replace(report, k_star=None, areas=(), bands=(), kept=())


REPORTS = {
    "full": make_report(),
    "one rule, k* missed": make_report(rules=("signed",), met=False),
    "one size": make_report(grid=(0.02,)),
    "many sizes": make_report(grid=tuple(i / 150 for i in range(1, 151))),
    "nothing but points": lonely(make_report()),
    "no point": replace(lonely(make_report()), points=()),
    "beyond the axes": replace(
        make_report(),
        points=(make_point("held_out", "signed", 0.01, -40.0, 17.0), make_point("held_out", "signed", 1, 9.0, 0.0)),
    ),
    "withheld": replace(make_report(), points=tuple(replace(p, f=None, kl_share=None) for p in make_report().points)),
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_labels_are_legible_and_everything_lies_inside(report: Report) -> None:
    svg = draw_curve(report)
    root = ET.fromstring(svg)
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    boxes = text_boxes(root)
    assert [(a, b) for (a, box_a), (b, box_b) in combinations(boxes, 2) if overlap(box_a, box_b)] == []
    points = [corner for _, (a, b, c, d) in boxes for corner in ((a, b), (c, d))]
    for path in root.iter(f"{SVG}path"):
        points += path_points(path.get("d") or "")
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert min(float(text.get("font-size", "0")) for text in root.iter(f"{SVG}text")) >= 10
    assert not re.search(r"\b(nan|inf|None)\b", svg)


def test_every_point_has_a_mark_with_its_value() -> None:
    report = make_report()
    found = titles(draw_curve(report))
    for point in report.points:
        split = "held out" if point.split == "held_out" else "in sample"
        for what, value in (("f", point.f), ("KL share", point.kl_share)):
            assert any(t.startswith(f"{what} {value:.3f} at") and t.endswith(split) for t in found)


def test_marks_tell_held_out_from_in_sample_without_colour() -> None:
    marks = {"held out": set(), "in sample": set()}
    for path in ET.fromstring(draw_curve(make_report())).iter(f"{SVG}path"):
        title = path.findtext(f"{SVG}title") or ""
        if title.startswith("f ") and " at " in title:
            marks[title.rsplit(", ", 1)[1]].add(path.get("fill"))
    assert len(marks["held out"]) == len(marks["in sample"]) == 1
    assert marks["held out"] != marks["in sample"]


def test_a_higher_value_stands_higher_and_a_larger_circuit_further_right() -> None:
    points = tuple(make_point("held_out", "signed", x, f, 0.5) for x, f in ((0.01, 0.2), (0.1, 0.9), (1.0, 1.0)))
    svg = draw_curve(replace(lonely(make_report()), points=points))
    places = [
        path_points(path.get("d") or "")[0]
        for path in ET.fromstring(svg).iter(f"{SVG}path")
        if (path.findtext(f"{SVG}title") or "").startswith("f ") and " at " in (path.findtext(f"{SVG}title") or "")
    ]
    assert places[0][1] > places[1][1] > places[2][1]
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)  # a decade each


def test_withheld_points_leave_a_gap_and_a_note() -> None:
    whole = make_report(rules=("signed",))
    middle = 0.02
    broken = replace(whole, points=tuple(replace(p, f=None) if p.fraction == middle else p for p in whole.points))
    assert "f withheld at 2 of 20 points" in draw_curve(broken)
    assert "withheld at" not in draw_curve(whole)

    def n_lines(svg: str) -> int:
        return sum(path.get("stroke-width") == "2" for path in ET.fromstring(svg).iter(f"{SVG}path"))

    assert n_lines(draw_curve(broken)) == n_lines(draw_curve(whole)) + 2


def test_k_star_says_whether_it_was_met() -> None:
    assert "k*: " in draw_curve(make_report())
    missed = draw_curve(make_report(met=False))
    assert "k* was missed" in missed
    assert "nearest to k*" in missed
    assert "k*" not in draw_curve(replace(make_report(), k_star=None))


def test_the_random_band_spans_least_to_largest() -> None:
    report = make_report(rules=("signed",))
    svg = draw_curve(report)
    assert sum(title.startswith("random circuits") for title in titles(svg)) == 2
    assert sum(title.startswith("random circuits") for title in titles(draw_curve(lonely(report)))) == 0


def test_a_line_that_leaves_the_frame_does_not_run_along_it() -> None:
    values = (0.5, 4.5, 8.5, 0.5)
    points = tuple(
        make_point("held_out", "signed", x, f, 0.5) for x, f in zip((0.001, 0.01, 0.1, 1.0), values, strict=True)
    )
    root = ET.fromstring(draw_curve(replace(lonely(make_report()), points=points)))
    f_lines = [path_points(p.get("d") or "") for p in root.iter(f"{SVG}path") if p.get("stroke-width") == "2"][:2]
    (start, out), (back, end) = f_lines  # it leaves, it comes back
    assert out[1] == back[1] < start[1] == end[1]
    decade = (end[0] - start[0]) / 3
    assert out[0] - start[0] == pytest.approx(decade / 2, abs=0.2)  # 2.5 lies half way from 0.5 to 4.5
    assert end[0] - back[0] == pytest.approx(decade / 4, abs=0.2)


def test_a_panel_without_random_circuits_says_so_where_another_has_them() -> None:
    report = make_report()
    one = replace(report, bands=tuple(band for band in report.bands if band.rule == "signed"))
    said = "No random circuits were measured beside the sizes of selection absolute."
    assert said in draw_curve(one)
    assert "No random circuits" not in draw_curve(report)
    assert "No random circuits" not in draw_curve(replace(report, bands=()))


def test_the_areas_say_what_they_are_over() -> None:
    usual = re.sub(r"\s+", " ", " ".join(draw_curve(make_report()).split("<")))
    assert "areas over 0.1 % to 100 % of the edges" in usual
    assert "published" not in usual
    assert "published" in draw_curve(make_report(grid=(0.01, 0.1)))


def test_rules_choose_the_panels_and_an_unknown_one_is_named() -> None:
    svg = draw_curve(make_report(), rules=["absolute"])
    assert "selection: absolute" in svg
    assert "selection: signed" not in svg
    with pytest.raises(ValueError, match="greedy"):
        draw_curve(make_report(), rules=["greedy"])
