"""A challenge as a picture: f in every setting against the band where a circuit holds, and the controls below."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from acdc.challenge import HIGH, LOW, Challenge, Control, Tried
from acdc.drawing.svg import INK, LINE_HEIGHT, PAGE, QUIET, RULE, Drawing, number, polyline, text_width, wrap
from acdc.numerals import fixed, two_digits

MARGIN, ROW, GAP, AXIS = 20.0, 18.0, 10.0, 22.0
PANEL, SIDE = 380.0, 150.0  # width of the panel of f, and of what stands right of it
TITLE_SIZE, TEXT_SIZE = 16.0, 11.0
HOLDS, FAILS, AS_IT_SHOULD, ZONE = "#14497f", "#b3261e", "#59616e", "#dcefe0"
LEGEND_ROW = 26.0
RANGE = (-0.5, 2.0)  # of f; what lies beyond is marked at the rim
KINDS = {
    "own": "its own setting",
    "one": "one choice changed",
    "group": "one group of held-out prompts",
    "factorial": "several choices changed",
}
CONTROLS = "controls: circuits that should not hold"
LEGEND = (  # label, holds, is a control
    ("holds", True, False),
    ("fails", False, False),
    ("control that fails, as it should", False, True),
    ("control that holds", True, True),
)


@dataclass(frozen=True)
class _Row:
    """A heading has no marks and no note. A control should not hold."""

    name: str
    marks: tuple[float, ...] = ()
    note: str = ""
    is_heading: bool = False
    is_control: bool = False


def draw_challenge(challenge: Challenge) -> str:
    """SVG. A filled mark holds, an open one does not; a control's is a diamond, red where it holds."""
    rows = _rows(challenge)
    names = max(text_width(row.name, TEXT_SIZE) for row in rows)
    width = MARGIN * 2 + names + GAP + PANEL + GAP + SIDE
    lead = wrap(challenge.sentence + ".", TEXT_SIZE, width - 2 * MARGIN)
    top = MARGIN + 26 + len(lead) * TEXT_SIZE * LINE_HEIGHT + AXIS
    title = "The circuit, challenged"
    bottom = top + len(rows) * ROW
    drawing = Drawing(width, bottom + LEGEND_ROW + MARGIN, title, "; ".join(_described(rows)))
    drawing.text(MARGIN, MARGIN + 14, title, size=TITLE_SIZE, font_weight="600")
    drawing.lines(MARGIN, MARGIN + 20, lead, size=TEXT_SIZE, fill=QUIET)
    left = MARGIN + names + GAP
    _draw_axis(drawing, left, top, len(rows) * ROW)
    for i, row in enumerate(rows):
        _draw_row(drawing, row, left, top + i * ROW)
    _draw_legend(drawing, bottom + LEGEND_ROW, has_controls=any(row.is_control for row in rows))
    return drawing.to_string()


def _rows(challenge: Challenge) -> list[_Row]:
    rows = []
    for kind, title in KINDS.items():
        if of_kind := [one for one in challenge.tried if one.kind == kind]:
            rows += [_Row(title, is_heading=True), *map(_row, of_kind)]
    if challenge.controls:
        rows += [_Row(CONTROLS, is_heading=True), *map(_control, challenge.controls)]
    return rows or [_Row("nothing was tried", is_heading=True)]


def _row(one: Tried) -> _Row:
    if one.f is None:
        return _Row(one.name, note="not told")
    again = "" if one.jaccard is None else f"  J {one.jaccard:.2f}"
    return _Row(one.name, (one.f,), f"f {two_digits(one.f)}{again}")


def _control(one: Control) -> _Row:
    if not one.told:
        return _Row(one.name, note="not told")
    return _Row(one.name, one.told, f"{one.n_hold} of {len(one.told)} hold", is_control=True)


def _x(left: float, f: float) -> float:
    low, high = RANGE
    return left + PANEL * (min(max(f, low), high) - low) / (high - low)


def _draw_axis(drawing: Drawing, left: float, top: float, height: float) -> None:
    zone = _x(left, LOW), _x(left, HIGH)
    drawing.rect(zone[0], top, zone[1] - zone[0], height, title=f"f in [{LOW}, {HIGH}]", fill=ZONE)
    for f in (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0):
        x = _x(left, f)
        drawing.path(f"M{number(x)} {number(top)} v{number(height)}", stroke=INK if f == 1 else RULE)
        drawing.text(x, top - 6, f"{f:g}", size=TEXT_SIZE, anchor="middle", fill=QUIET)


def _draw_row(drawing: Drawing, row: _Row, left: float, top: float) -> None:
    baseline = top + ROW - 5
    if row.is_heading:
        drawing.text(MARGIN, baseline, row.name, size=TEXT_SIZE, font_weight="600")
        return
    drawing.text(left - GAP, baseline, row.name, size=TEXT_SIZE, anchor="end")
    for f in row.marks:
        holds = LOW <= f <= HIGH
        said = "" if holds else ", fails as it should" if row.is_control else ", fails"
        mark = drawing.group(f"{row.name}: f {fixed(f, 3)}{said}")
        _draw_mark(drawing, _x(left, f), top + ROW / 2, holds, row.is_control, mark)
    drawing.text(left + PANEL + GAP, baseline, row.note, size=TEXT_SIZE, fill=QUIET)


def _draw_mark(drawing: Drawing, x: float, y: float, holds: bool, is_control: bool, parent: ET.Element) -> None:
    """Red is what should not be: a setting that fails, a control that holds."""
    if not is_control:
        colour = HOLDS if holds else FAILS
        drawing.circle(x, y, 4, parent=parent, fill=colour if holds else PAGE, stroke=colour)
        return
    colour = FAILS if holds else AS_IT_SHOULD
    d = polyline([(x, y - 4.5), (x + 4.5, y), (x, y + 4.5), (x - 4.5, y)]) + " Z"
    drawing.path(d, parent=parent, fill=colour if holds else PAGE, stroke=colour)


def _draw_legend(drawing: Drawing, baseline: float, *, has_controls: bool) -> None:
    x = MARGIN
    for label, holds, is_control in LEGEND[: None if has_controls else 2]:
        _draw_mark(drawing, x + 5, baseline - 4, holds, is_control, drawing.group(label))
        drawing.text(x + 15, baseline, label, size=TEXT_SIZE)
        x += 15 + text_width(label, TEXT_SIZE) + 16


def _described(rows: Sequence[_Row]) -> list[str]:
    """The same in words, for screen readers."""
    return [row.name if row.is_heading else f"{row.name}: {row.note}" for row in rows]
