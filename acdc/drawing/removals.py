"""What the removal of each edge costs a circuit, as bars: the dearest first, those that cost nothing last."""

from __future__ import annotations

from acdc.drawing.svg import LINE_HEIGHT, QUIET, RULE, Drawing, number, signed, text_width
from acdc.numerals import count
from acdc.report import Minimality, Removal

MARGIN, ROW, GAP = 20.0, 18.0, 8.0
BARS = 420.0  # width of all bars together, from the least cost to the most
TITLE_SIZE, TEXT_SIZE = 16.0, 11.0
HELPS, HURTS, IDLE = "#14497f", "#8a5a00", "#ffffff"
SHOWN = 40


def draw_removals(minimality: Minimality, shown: int = SHOWN) -> str:
    """SVG. Of more edges than `shown`, those whose removal matters most, whichever way; the picture says how many it
    leaves out."""
    by_size = sorted(minimality.removals, key=lambda one: -abs(one.cost))[:shown]
    rows = sorted(by_size, key=lambda one: -one.cost)
    names = max((text_width(one.edge, TEXT_SIZE) for one in rows), default=0.0)
    values = max((text_width(signed(one.cost), TEXT_SIZE) for one in rows), default=0.0)
    notes = _notes(minimality, len(rows))
    head = MARGIN + 28 + len(notes) * TEXT_SIZE * LINE_HEIGHT + 12
    title = "What the removal of single edges costs"
    wide = max(text_width(line, TEXT_SIZE) for line in [*notes, title + "      "])
    width = max(MARGIN * 2 + names + 2 * GAP + BARS + values, MARGIN * 2 + wide)
    drawing = Drawing(width, head + len(rows) * ROW + MARGIN, title, _described(rows))
    drawing.text(MARGIN, MARGIN + 14, title, size=TITLE_SIZE, font_weight="600")
    drawing.lines(MARGIN, MARGIN + 20, notes, size=TEXT_SIZE, fill=QUIET)
    low, high = min([0.0, *(one.cost for one in rows)]), max([0.0, *(one.cost for one in rows)])
    scale = BARS / ((high - low) or 1.0)
    zero = MARGIN + names + GAP - low * scale
    for i, one in enumerate(rows):
        top = head + i * ROW
        baseline = top + ROW - 5
        drawing.text(MARGIN + names, baseline, one.edge, size=TEXT_SIZE, anchor="end")
        _bar(drawing, one, zero, top, scale)
        end = max(zero, zero + one.cost * scale)
        drawing.text(end + GAP / 2, baseline, signed(one.cost), size=TEXT_SIZE, fill=QUIET)
    drawing.path(f"M{number(zero)} {number(head - 4)} V{number(head + len(rows) * ROW)}", stroke=RULE)
    return drawing.to_string()


def _bar(drawing: Drawing, one: Removal, zero: float, top: float, scale: float) -> None:
    length = one.cost * scale
    colour = HELPS if one.cost > 0 else HURTS
    drawing.rect(
        min(zero, zero + length),
        top + 3,
        max(abs(length), 1.0),
        ROW - 6,
        title=_told(one),
        fill=IDLE if one.superfluous else colour,
        stroke=colour,
    )


def _notes(minimality: Minimality, n_rows: int) -> list[str]:
    n = len(minimality.removals)
    notes = [
        f"m(C) − m(C without the edge), held out; {count(n, 'edge')} of {minimality.n_edges:,} removed, each alone."
    ]
    if n_rows < n:
        notes.append(f"The {n_rows} largest are shown, {n - n_rows:,} more are in the report.")
    if minimality.n_random:
        notes.append("Hollow: superfluous, it exceeds clearly fewer than nine in ten random edges.")
    return notes


def _told(one: Removal) -> str:
    in_f = "" if one.cost_f is None else f" ({signed(one.cost_f)} in f)"
    verdict = {None: "", True: "; superfluous", False: "; not superfluous"}[one.superfluous]
    return f"{one.edge}: {signed(one.cost)}{in_f}, KL {signed(one.cost_kl)}{verdict}"


def _described(rows: list[Removal]) -> str:
    """The same in words, for screen readers."""
    return "; ".join(map(_told, rows)) or "no edge was removed"
