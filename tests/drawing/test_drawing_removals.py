"""What removals cost, read back from its SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest
from test_drawing_circuit import SVG, overlap, text_boxes

from acdc.drawing import draw_removals
from acdc.report import Minimality, Removal


def removals(costs, tested=True):
    return Minimality(
        len(costs) + 5,
        tuple(
            Removal(f"{i}.0->{i + 1}.3.q", cost, cost / 4, cost / 9, abs(cost), 50, (cost < 0.1) if tested else None)
            for i, cost in enumerate(costs)
        ),
        100 if tested else 0,
    )


CASES = {
    "both signs": removals([3.0, -1.0, 0.0, 0.05, 12345.0]),
    "all alike": removals([0.0, 0.0]),
    "none": Minimality(3, ()),
    "untested": removals([1.0, 0.5], tested=False),
    "many": removals([i / 7 for i in range(200)]),
}


@pytest.mark.parametrize("part", CASES.values(), ids=CASES.keys())
def test_labels_are_legible_and_everything_lies_inside(part):
    svg = draw_removals(part)
    root = ET.fromstring(svg)
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    boxes = text_boxes(root)
    assert [(a, b) for (a, box_a), (b, box_b) in combinations(boxes, 2) if overlap(box_a, box_b)] == []
    assert all(0 <= x <= width and 0 <= y <= height for _, (a, b, c, d) in boxes for x, y in ((a, b), (c, d)))
    for bar in root.iter(f"{SVG}rect"):
        x, w = float(bar.get("x")), float(bar.get("width"))
        assert 0 <= x <= x + w <= width + 0.1
    assert not re.search(r"\b(nan|inf|None)\b", svg)


def bars(part):
    root = ET.fromstring(draw_removals(part))
    return [bar for bar in root.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]


def test_a_bar_is_as_long_as_its_cost_and_the_dearest_stands_first():
    found = bars(removals([1.0, 4.0, -2.0]))
    assert [bar.find(f"{SVG}title").text.split(":")[0] for bar in found] == ["1.0->2.3.q", "0.0->1.3.q", "2.0->3.3.q"]
    widths = [float(bar.get("width")) for bar in found]
    assert widths == pytest.approx([4 * widths[1], widths[1], 2 * widths[1]], abs=0.2)
    zero = float(found[0].get("x"))
    assert float(found[2].get("x")) + widths[2] == pytest.approx(zero, abs=0.1)


def test_superfluous_edges_are_hollow():
    fills = [bar.get("fill") for bar in bars(removals([1.0, 0.05]))]
    assert fills == ["#14497f", "#ffffff"]
    assert {bar.get("fill") for bar in bars(removals([1.0, 0.05], tested=False))} == {"#14497f"}


def test_of_many_edges_the_most_important_are_shown_and_the_rest_is_counted():
    svg = draw_removals(CASES["many"], shown=10)
    assert "The 10 largest are shown, 190 more are in the report." in svg
    assert "199.0" in svg
    assert "100.0-" not in svg
