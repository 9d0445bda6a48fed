"""A challenge as a picture: f in every setting against the band where a circuit holds, and the controls below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acdc.challenge import HIGH, LOW, Challenge, Control, Tried
from acdc.drawing.svg import INK, LINE_HEIGHT, QUIET, RULE, Drawing, number, text_width, wrap

MARGIN, ROW, GAP, AXIS = 20.0, 18.0, 10.0, 22.0
PANEL, SIDE = 380.0, 150.0  # width of the panel of f, and of what stands right of it
TITLE_SIZE, TEXT_SIZE = 16.0, 11.0
HOLDS, FAILS, ZONE = "#14497f", "#b3261e", "#dcefe0"
RANGE = (-0.5, 2.0)  # of f; what lies beyond is marked at the rim
KINDS = {
    "own": "its own setting",
    "one": "one choice changed",
    "group": "one group of held-out prompts",
    "factorial": "several choices changed",
}
CONTROLS = "controls: circuits that should not hold"


@dataclass(frozen=True)
class _Row:
    """A heading has no marks and no note."""

    name: str
    marks: tuple[float, ...] = ()
    note: str = ""
    is_heading: bool = False


def draw_challenge(challenge: Challenge) -> str:
    """SVG. A filled mark holds, an open one does not."""
    rows = _rows(challenge)
    names = max(text_width(row.name, TEXT_SIZE) for row in rows)
    width = MARGIN * 2 + names + GAP + PANEL + GAP + SIDE
    lead = wrap(challenge.sentence + ".", TEXT_SIZE, width - 2 * MARGIN)
    top = MARGIN + 26 + len(lead) * TEXT_SIZE * LINE_HEIGHT + AXIS
    title = "The circuit, challenged"
    drawing = Drawing(width, top + len(rows) * ROW + MARGIN, title, "; ".join(_described(rows)))
    drawing.text(MARGIN, MARGIN + 14, title, size=TITLE_SIZE, font_weight="600")
    drawing.lines(MARGIN, MARGIN + 20, lead, size=TEXT_SIZE, fill=QUIET)
    left = MARGIN + names + GAP
    _draw_axis(drawing, left, top, len(rows) * ROW)
    for i, row in enumerate(rows):
        _draw_row(drawing, row, left, top + i * ROW)
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
    return _Row(one.name, (one.f,), f"f {one.f:.2f}{again}")


def _control(one: Control) -> _Row:
    if not one.told:
        return _Row(one.name, note="not told")
    return _Row(one.name, one.told, f"{one.n_hold} of {len(one.told)} hold")


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
        colour = HOLDS if holds else FAILS
        mark = drawing.group(f"{row.name}: f {f:.3f}{'' if holds else ', fails'}")
        drawing.circle(_x(left, f), top + ROW / 2, 4, parent=mark, fill=colour if holds else "#ffffff", stroke=colour)
    drawing.text(left + PANEL + GAP, baseline, row.note, size=TEXT_SIZE, fill=QUIET)


def _described(rows: Sequence[_Row]) -> list[str]:
    """The same in words, for screen readers."""
    return [row.name if row.is_heading else f"{row.name}: {row.note}" for row in rows]
