"""Faithfulness over the size of the circuit, with KL below it: one column of panels per selection rule.

What the lines are is told by dashes and markers, so the picture survives black and white: held out solid with filled
marks, in sample dashed with open ones, random circuits a band with a dotted mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from acdc.drawing.svg import (
    INK,
    LINE_HEIGHT,
    PAGE,
    QUIET,
    RULE,
    Drawing,
    Point,
    number,
    polyline,
    text_width,
    wrap,
)
from acdc.numerals import count, fixed, listed, percent, two_digits
from acdc.report import Areas, KStar, Report
from acdc.report import Point as Judged
from acdc.swept import Swept

MARGIN, AXIS = 20.0, 46.0  # AXIS: room for the numbers left of a panel
PANEL_WIDTH, F_HEIGHT, KL_HEIGHT = 380.0, 250.0, 130.0
PANEL_GAP, ROW_GAP = 26.0, 58.0
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 16.0, 12.0, 10.5
HELD_OUT, IN_SAMPLE, BAND, BAND_MEAN, ZONE, STAR = "#14497f", "#8a5a00", "#d5d9e0", "#6b7280", "#dcefe0", "#b3261e"
F_LIMITS, KL_LIMITS = (-1.0, 2.5), (0.0, 2.5)  # a value beyond them is marked at the rim, its number in the tooltip
SOLID, IN_SAMPLE_DASH = "none", "6 3"

Value = Callable[[Judged], float | None]


@dataclass(frozen=True)
class Panel:
    """Axes of one panel: x logarithmic, y linear, both clipped to the frame."""

    left: float
    top: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, fraction: float) -> float:
        low, high = (math.log(v) for v in self.x_range)
        return self.left + PANEL_WIDTH * (math.log(fraction) - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.top + self.height * (1 - (min(max(value, low), high) - low) / (high - low))

    def holds(self, value: float) -> bool:
        return self.y_range[0] <= value <= self.y_range[1]


def draw_curve(report: Report, *, rules: Sequence[str] | None = None) -> str:
    """SVG text of the faithfulness curve. rules: the panels, left to right; by default all that the report has.

    Raises ValueError for a rule that the report has no point of.
    """
    # A curve over log size has no place for the empty circuit, which the sweep of a small graph begins with.
    report = replace(report, points=tuple(point for point in report.points if point.fraction > 0))
    known = list(dict.fromkeys(point.rule for point in report.points))
    rules = known if rules is None else list(rules)
    if missing := [rule for rule in rules if rule not in known]:
        raise ValueError(f"this report has no curve by {', '.join(missing)}; it has: {', '.join(known) or 'none'}")
    width = 2 * MARGIN + max(len(rules), 1) * (AXIS + PANEL_WIDTH) + max(len(rules) - 1, 0) * PANEL_GAP
    room = width - 2 * MARGIN
    title = "Faithfulness by circuit size"
    caption = [line for part in _caption(report) for line in wrap(part, TEXT_SIZE, room)]
    notes = [line for part in _notes(report, rules) for line in wrap(part, SMALL_SIZE, room)]
    legend = _legend_rows(report.k_star, room)
    top = MARGIN + (TITLE_SIZE + len(caption) * TEXT_SIZE) * LINE_HEIGHT + 44
    panels_height = F_HEIGHT + ROW_GAP + KL_HEIGHT + 46 if rules else 0.0
    end = top + panels_height + 18 * len(legend)
    height = end + len(notes) * SMALL_SIZE * LINE_HEIGHT + MARGIN

    drawing = Drawing(width, height, title, ". ".join([*_caption(report), *_described(report, rules)]))
    y = drawing.lines(MARGIN, MARGIN, [title], size=TITLE_SIZE, fill=INK, weight="600")
    drawing.lines(MARGIN, y, caption, size=TEXT_SIZE, fill=QUIET)
    for i, rule in enumerate(rules):
        _draw_rule(drawing, report, rule, MARGIN + AXIS + i * (AXIS + PANEL_WIDTH + PANEL_GAP), top, rules)
    _draw_legend(drawing, legend, top + panels_height)
    drawing.lines(MARGIN, end, notes, size=SMALL_SIZE, fill=QUIET)
    return drawing.to_string()


# -- words -------------------------------------------------------------------------------------------------------------


def _caption(report: Report) -> list[str]:
    behaviour = report.behaviour
    low, high = behaviour.interval
    parts = [
        f"behaviour {behaviour.verdict}: m(clean) − m(corrupt) in [{two_digits(low)}, {two_digits(high)}] "
        f"{behaviour.drawn_over}; accuracy {two_digits(behaviour.accuracy_clean)} (chance "
        f"{two_digits(behaviour.chance)}), {count(behaviour.n_examples, 'prompt')}"
    ]
    areas = [_area(area) for area in report.areas if area.split == "held_out"]
    swept = Swept.of(report)
    own = "" if swept.is_of_mib else "; not MIB's sizes, so not to compare with published ones"
    parts += [f"held out, areas over {swept.span}: {' · '.join(areas)}{own}"] if areas else []
    return parts + ([_star(report.k_star)] if report.k_star else [])


def _area(area: Areas) -> str:
    log = f"log size {two_digits(area.cpr_log)}, {two_digits(area.cmd_log)}"
    return f"{area.rule}: CPR {two_digits(area.cpr)}, CMD {two_digits(area.cmd)} ({log})"


def _star(star: KStar) -> str:
    point = star.point
    f = f"f {two_digits(point.f)}"
    kl = "KL share unknown" if point.kl_share is None else f"KL share {two_digits(point.kl_share)}"
    size = f"{point.connected:,} connected edges ({point.rule}, {percent(point.fraction)} asked for): {f}, {kl}"
    return f"k*: {size}" if star.met else f"k* was missed: no size has f in [.8, 1.2] and KL share ≤ .5; nearest {size}"


def _notes(report: Report, rules: Sequence[str]) -> list[str]:
    shown = [point for point in report.points if point.rule in rules]
    no_f = sum(point.f is None for point in shown)
    no_kl = sum(point.kl_share is None for point in shown)
    outside = sum(_is_outside(point.f, F_LIMITS) + _is_outside(point.kl_share, KL_LIMITS) for point in shown)
    notes = [] if rules else ["The report has no point to draw."]
    if without := _rules_without_band(report, rules):
        notes.append(f"No random circuits were measured beside the sizes of selection {listed(without)}.")
    if no_f:
        where = f"{no_f} of {count(len(shown), 'point')}"
        notes.append(f"f withheld at {where} (gaps in the line): |m(M) − m(∅)| is too small to divide by.")
    if no_kl:
        where = f"{no_kl} of {count(len(shown), 'point')}"
        notes.append(f"KL share unknown at {where}: the empty circuit's KL is too small to divide by.")
    if outside:
        notes.append(f"{count(outside, 'value')} beyond the axes: triangles at the rim, the number in the tooltip.")
    return notes


def _rules_without_band(report: Report, rules: Sequence[str]) -> list[str]:
    """Where others have one; a reader would look for it."""
    drawn = {band.rule for band in report.bands if any(f is not None for f in band.f)}
    return [rule for rule in rules if rule not in drawn] if drawn else []


def _is_outside(value: float | None, limits: tuple[float, float]) -> bool:
    return value is not None and not limits[0] <= value <= limits[1]


def _described(report: Report, rules: Sequence[str]) -> list[str]:
    """The held-out curves in words, for screen readers."""
    said = []
    for rule in rules:
        points = [p for p in report.points if p.rule == rule and p.split == "held_out"]
        values = (f"{percent(p.fraction)}: {two_digits(p.f)}" for p in points)
        said.append(f"f held out by {rule} selection: {', '.join(values)}")
    return said


# -- panels ------------------------------------------------------------------------------------------------------------


def _draw_rule(drawing: Drawing, report: Report, rule: str, left: float, top: float, rules: Sequence[str]) -> None:
    """The two panels of one rule, on the axes that all rules share."""
    shown = [point for point in report.points if point.rule in rules]
    bands = [band for band in report.bands if band.rule in rules]
    x_range = _span([p.fraction for p in shown] + [b.fraction for b in bands])
    f_values = [p.f for p in shown] + [f for b in bands for f in b.f]
    kl_values = [p.kl_share for p in shown] + [share for b in bands for share in b.kl_share]
    f_panel = Panel(left, top, F_HEIGHT, x_range, _rounded(f_values, (0.0, 1.3), F_LIMITS))
    below = top + F_HEIGHT + ROW_GAP
    kl_panel = Panel(left, below, KL_HEIGHT, x_range, _rounded(kl_values, (0.0, 1.1), KL_LIMITS))

    drawing.text(left, top - 26, f"selection: {rule}", size=13, font_weight="600")
    drawing.text(left, top - 8, "f = (m(C) − m(∅)) / (m(M) − m(∅))", size=SMALL_SIZE, fill=QUIET)
    zone_top, zone_bottom = f_panel.y(1.2), f_panel.y(0.8)
    drawing.rect(left, zone_top, PANEL_WIDTH, zone_bottom - zone_top, title="f in [.8, 1.2]", fill=ZONE)
    drawing.text(left, below - 8, "KL(C) / KL(∅)", size=SMALL_SIZE, fill=QUIET)
    for panel, line in ((f_panel, 1.0), (kl_panel, 0.5)):
        _draw_axes(drawing, panel)
        y = number(panel.y(line))
        drawing.path(f"M{number(left)} {y} h{number(PANEL_WIDTH)}", stroke=INK, stroke_width="1.2", title=f"{line:g}")
    _draw_band(drawing, f_panel, [(b.fraction, b.f) for b in report.bands if b.rule == rule])
    _draw_band(drawing, kl_panel, [(b.fraction, b.kl_share) for b in report.bands if b.rule == rule])
    for split in ("search", "held_out"):
        points = sorted((p for p in report.points if (p.rule, p.split) == (rule, split)), key=lambda p: p.fraction)
        _draw_line(drawing, f_panel, points, lambda p: p.f, "f")
        _draw_line(drawing, kl_panel, points, lambda p: p.kl_share, "KL share")
    middle, baseline = left + PANEL_WIDTH / 2, below + KL_HEIGHT + 34
    drawing.text(middle, baseline, "edges asked for, share of all (log scale)", size=SMALL_SIZE, anchor="middle")
    if report.k_star and report.k_star.point.rule == rule:
        _draw_star(drawing, report.k_star, f_panel, kl_panel)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low / 2, high * 2)


def _rounded(
    values: Sequence[float | None], least: tuple[float, float], limits: tuple[float, float]
) -> tuple[float, float]:
    """A range that holds `least` and the values, as far as the limits allow, on steps of 0.1."""
    known = [value for value in values if value is not None]
    low, high = min([*known, least[0]]), max([*known, least[1]])
    return max(math.floor(low * 10) / 10, limits[0]), min(math.ceil(high * 10) / 10, limits[1])


def _draw_axes(drawing: Drawing, panel: Panel) -> None:
    low, high = panel.y_range
    step = 0.5 if high - low > 1.6 or panel.height < 200 else 0.2
    for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        y = panel.y(i * step)
        drawing.path(f"M{number(panel.left)} {number(y)} h{number(PANEL_WIDTH)}", stroke=RULE, stroke_width="0.6")
        label = f"{i * step:.1f}".replace("-", "−")
        drawing.text(panel.left - 8, y + 3.7, label, size=SMALL_SIZE, anchor="end", fill=QUIET)
    bottom = panel.top + panel.height
    taken = -math.inf
    for fraction in _ticks(panel.x_range):
        x, label = panel.x(fraction), percent(fraction)
        half = text_width(label, SMALL_SIZE) / 2
        drawing.path(f"M{number(x)} {number(bottom)} v4", stroke=QUIET)
        if x - half > taken + 4:  # labels never touch
            drawing.text(x, bottom + 16, label, size=SMALL_SIZE, anchor="middle", fill=QUIET)
            taken = x + half
    drawing.rect(panel.left, panel.top, PANEL_WIDTH, panel.height, fill="none", stroke=QUIET, stroke_width="0.8")


def _ticks(x_range: tuple[float, float]) -> list[float]:
    """1, 2, 5 times powers of ten within the range; its ends where there are fewer than two."""
    low, high = x_range
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_ = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    ticks = [tick for tick in round_ if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return ticks if len(ticks) > 1 else [low, high]


def _draw_band(drawing: Drawing, panel: Panel, bands: Sequence[tuple[float, Sequence[float | None]]]) -> None:
    """Least to largest of the random circuits, and their mean dotted."""
    known = [(fraction, [v for v in values if v is not None]) for fraction, values in sorted(bands)]
    known = [(fraction, values) for fraction, values in known if values]
    if not known:
        return
    upper = [(panel.x(fraction), panel.y(max(values))) for fraction, values in known]
    lower = [(panel.x(fraction), panel.y(min(values))) for fraction, values in known]
    if len(known) == 1:  # a band of one size would have no width to see
        upper, lower = ([(p[0][0] - 4, p[0][1]), (p[0][0] + 4, p[0][1])] for p in (upper, lower))
    title = "random circuits of the same connected size and layer profile, held out: least to largest"
    d = polyline([*upper, *reversed(lower)]) + " Z"
    drawing.path(d, title=title, fill=BAND, fill_opacity="0.75", stroke=BAND_MEAN, stroke_width="0.5")
    means = [(panel.x(fraction), panel.y(sum(values) / len(values))) for fraction, values in known]
    drawing.path(polyline(means), stroke=BAND_MEAN, stroke_width="1.4", stroke_dasharray="1.5 3", title="their mean")


def _draw_line(drawing: Drawing, panel: Panel, points: Sequence[Judged], value: Value, what: str) -> None:
    """One split's line, broken where a value is withheld, and a mark with a tooltip per value."""
    if not points:
        return
    is_held_out = points[0].split == "held_out"
    colour, dash = (HELD_OUT, SOLID) if is_held_out else (IN_SAMPLE, IN_SAMPLE_DASH)
    for run in _runs([(p.fraction, value(p)) for p in points]):
        for part in _within(panel, run):
            drawing.path(polyline(part), stroke=colour, stroke_width="2", stroke_dasharray=dash)
    split = "held out" if is_held_out else "in sample"
    for point in points:
        y = value(point)
        if y is not None:
            title = f"{what} {fixed(y, 3)} at {percent(point.fraction)}, {point.connected:,} connected edges, {split}"
            place = panel.x(point.fraction), panel.y(y)
            d = _circle(place, 3.2) if panel.holds(y) else _triangle(place, is_up=y > 0)
            drawing.path(d, title=title, fill=colour if is_held_out else PAGE, stroke=colour, stroke_width="1.5")


def _runs(values: Sequence[tuple[float, float | None]]) -> list[list[Point]]:
    """The stretches between withheld values."""
    runs: list[list[Point]] = [[]]
    for x, y in values:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _within(panel: Panel, run: Sequence[Point]) -> list[list[Point]]:
    """The parts of a line of values that lie inside the frame, in pixels: a line leaves it and comes back, and never
    runs along it. A single value is a part where the frame holds it."""
    if len(run) == 1:
        return [[(panel.x(x), panel.y(y))] for x, y in run if panel.holds(y)]
    parts: list[list[Point]] = []
    goes_on = False  # the part before ends inside, where this one begins
    for (x0, y0), (x1, y1) in pairwise(run):
        inside = _clipped(y0, y1, panel.y_range)
        if inside is not None:
            left, right = panel.x(x0), panel.x(x1)
            start, end = ((left + t * (right - left), panel.y(y0 + t * (y1 - y0))) for t in inside)
            parts = [*parts[:-1], [*parts[-1], end]] if goes_on else [*parts, [start, end]]
        goes_on = inside is not None and inside[1] == 1
    return parts


def _clipped(y0: float, y1: float, limits: tuple[float, float]) -> tuple[float, float] | None:
    """From where to where, as shares of the way from y0 to y1, a straight line lies between the limits."""
    low, high = limits
    if y0 == y1:
        return (0.0, 1.0) if low <= y0 <= high else None
    at = sorted((limit - y0) / (y1 - y0) for limit in (low, high))
    start, end = max(at[0], 0.0), min(at[1], 1.0)
    return (start, end) if start < end else None


def _circle(centre: Point, r: float) -> str:
    x, y = centre
    arc = f"a{number(r)} {number(r)} 0 1 0"
    return f"M{number(x - r)} {number(y)} {arc} {number(2 * r)} 0 {arc} {number(-2 * r)} 0 Z"


def _triangle(tip: Point, *, is_up: bool) -> str:
    x, y = tip
    base = y + (8 if is_up else -8)
    return polyline([(x, y), (x + 5, base), (x - 5, base)]) + " Z"


def _diamond(centre: Point, r: float) -> str:
    x, y = centre
    return polyline([(x, y - r), (x + r, y), (x, y + r), (x - r, y)]) + " Z"


def _draw_star(drawing: Drawing, star: KStar, f_panel: Panel, kl_panel: Panel) -> None:
    """A line through both panels, a diamond on each curve; hollow where the conditions were missed."""
    x = min(max(f_panel.x(star.point.fraction), f_panel.left), f_panel.left + PANEL_WIDTH)
    for panel, value in ((f_panel, star.point.f), (kl_panel, star.point.kl_share)):
        d = f"M{number(x)} {number(panel.top)} v{number(panel.height)}"
        drawing.path(d, stroke=STAR, stroke_width="1.2", stroke_dasharray="3 2")
        if value is not None:
            d, fill = _diamond((x, panel.y(value)), 6), STAR if star.met else PAGE
            drawing.path(d, title=_star(star), fill=fill, stroke=STAR, stroke_width="1.6")
    label = "k*" if star.met else "nearest to k*"
    is_right = x > f_panel.left + PANEL_WIDTH * 0.7
    anchor, x_text = ("end", x - 6) if is_right else ("start", x + 6)
    drawing.text(x_text, f_panel.top + 14, label, size=TEXT_SIZE, anchor=anchor, fill=STAR, font_weight="600")


# -- legend ------------------------------------------------------------------------------------------------------------

_LEGEND = (
    ("held out", "held_out"),
    ("in sample", "search"),
    ("random circuits, held out: range and mean", "band"),
    ("f in [.8, 1.2]", "zone"),
)


def _legend_rows(star: KStar | None, room: float) -> list[list[tuple[float, str, str]]]:
    """Rows of (x, label, kind) that fit the width."""
    entries = list(_LEGEND)
    if star and star.met:
        entries.append(("k*: smallest with f in [.8, 1.2] and KL share ≤ .5", "star"))
    elif star:
        entries.append(("nearest to k*, which was missed", "missed"))
    rows: list[list[tuple[float, str, str]]] = [[]]
    x = 0.0
    for label, kind in entries:
        width = 36 + text_width(label, SMALL_SIZE) + 16
        if x + width > room and rows[-1]:
            rows.append([])
            x = 0.0
        rows[-1].append((x, label, kind))
        x += width
    return rows


def _draw_legend(drawing: Drawing, rows: list[list[tuple[float, str, str]]], top: float) -> None:
    for i, row in enumerate(rows):
        y = top + 18 * i + 6
        for x, label, kind in row:
            _draw_sample(drawing, MARGIN + x, y, kind)
            drawing.text(MARGIN + x + 36, y + 3.7, label, size=SMALL_SIZE)


def _draw_sample(drawing: Drawing, x: float, y: float, kind: str) -> None:
    line = f"M{number(x)} {number(y)} h30"
    if kind in ("held_out", "search"):
        colour, fill = (HELD_OUT, HELD_OUT) if kind == "held_out" else (IN_SAMPLE, PAGE)
        dash = SOLID if kind == "held_out" else IN_SAMPLE_DASH
        drawing.path(line, stroke=colour, stroke_width="2", stroke_dasharray=dash)
        drawing.path(_circle((x + 15, y), 3.2), stroke=colour, fill=fill, stroke_width="1.5")
    elif kind in ("star", "missed"):
        drawing.path(_diamond((x + 15, y), 6), fill=STAR if kind == "star" else PAGE, stroke=STAR, stroke_width="1.6")
    else:
        fill = ZONE if kind == "zone" else BAND
        drawing.rect(x, y - 6, 30, 12, fill=fill)
        if kind == "band":
            drawing.path(line, stroke=BAND_MEAN, stroke_width="1.4", stroke_dasharray="1.5 3")
