"""A patching map as heat maps: rows by columns of cells, and a panel for every place of a third axis.

Made to be read in black and white: the larger an effect, the darker its cell, and what is below zero is hatched. A dot
marks a cell whose 95 % interval contains zero, where there are prompts enough to tell; where there is no such cell,
nothing is drawn. Layers run across and places down, as in most of the literature; layer by head where heads are alone.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from acdc.drawing.svg import (
    INK,
    LINE_HEIGHT,
    PAGE,
    QUIET,
    RULE,
    Drawing,
    number,
    signed,
    text_width,
    wrap,
)
from acdc.numerals import count
from acdc.patch_map import NO_OTHER_RUN, Flags, Numbers, PatchMap

MARGIN, GAP = 20.0, 26.0
WIDTH = 1120.0  # that panels are laid out in, side by side
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 16.0, 12.0, 10.5
LARGEST_CELL, SMALLEST_CELL = 44.0, 5.0
NUMBER_FROM, NUMBER_SIZE = 38.0, 10.0  # a cell of this size has room for its value
DOT = "#858d99"  # most cells of most maps have one, so it must not shout
HATCHED_BELOW = -0.02  # of the largest effect
MARKED_FROM = 7.0  # below, dots would be all that is seen
MAX_LABEL = 26  # characters
MAX_TITLES = 12_000  # cells that carry a tooltip: above, the picture would be larger than anything can open
FOLD_UP_TO = 12  # panels: more single heads than that stay in a row
BAR_WIDTH, BAR_HEIGHT = 220.0, 12.0
STEPS = 60  # of the colour bar

# Light in the middle, equally dark at both ends.
NEUTRAL, POSITIVE, NEGATIVE = (247, 247, 245), (8, 69, 128), (150, 45, 10)

UNITS = {
    "logit_diff": "logits",
    "prob_diff": "probability",
    "answer_probability": "probability",
    "answer_logprob": "nats",
    "kl_divergence": "nats",
    "accuracy": "share of prompts",
}
_HEAD = re.compile(r"(\d+)\.(\d+)")

Array = npt.NDArray[Any]  # either of them


@dataclass(frozen=True)
class Side:
    """Rows or columns: what stands at them."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Panel:
    """n_units: resampled for the intervals. effect, low, high, defined, unclear: [row, column]. unclear: what carries a
    dot."""

    title: str
    n_units: int
    effect: Numbers
    low: Numbers
    high: Numbers
    defined: Flags
    unclear: Flags


@dataclass(frozen=True)
class Frame:
    """What all panels share. left, top: room for the labels of rows and columns."""

    rows: Side
    columns: Side
    cell: tuple[float, float]
    left: float
    top: float
    upright: bool

    @property
    def width(self) -> float:
        return self.left + len(self.columns.labels) * self.cell[0]

    @property
    def height(self) -> float:
        return self.top + len(self.rows.labels) * self.cell[1]


def draw_map(found: PatchMap) -> str:
    """SVG text of a map, whatever its axes."""
    rows, columns, panels = _panels(found)
    frame = _frame(rows, columns, len(panels))
    per_line = max(1, int((WIDTH + GAP) // (frame.width + GAP)))
    n_lines = math.ceil(len(panels) / per_line)
    room = max(min(per_line, len(panels)) * (frame.width + GAP) - GAP, 520.0)
    width = room + 2 * MARGIN
    title = _title(found)
    caption = [line for part in _caption(found) for line in wrap(part, TEXT_SIZE, room)]
    notes = [line for part in _notes(found) for line in wrap(part, SMALL_SIZE, room)]
    titles = wrap(title, TITLE_SIZE, room)
    begin = MARGIN + (len(titles) * TITLE_SIZE + len(caption) * TEXT_SIZE) * LINE_HEIGHT + 14
    line_height = frame.height + 22 + GAP
    end = begin + n_lines * line_height
    height = end + 58 + len(notes) * SMALL_SIZE * LINE_HEIGHT + MARGIN

    drawing = Drawing(width, height, title, ". ".join([*_caption(found), *_strongest(found)]))
    hatch = _hatch(drawing)
    y = drawing.lines(MARGIN, MARGIN, titles, size=TITLE_SIZE, fill=INK, weight="600")
    drawing.lines(MARGIN, y, caption, size=TEXT_SIZE, fill=QUIET)
    scale = max((float(np.abs(p.effect[p.defined]).max()) for p in panels if p.defined.any()), default=0.0)
    for i, panel in enumerate(panels):
        x, y = MARGIN + i % per_line * (frame.width + GAP), begin + i // per_line * line_height
        _draw_panel(drawing, panel, frame, (x, y), scale, hatch, with_titles=found.effect.size <= MAX_TITLES)
    _draw_legend(drawing, MARGIN, end, scale, _unit(found), hatch)
    if not found.too_few:
        _draw_dot_of_legend(drawing, MARGIN, end, is_marked=frame.cell[0] >= MARKED_FROM)
    drawing.lines(MARGIN, end + 52, notes, size=SMALL_SIZE, fill=QUIET)
    return drawing.to_string()


# -- which axis goes where ---------------------------------------------------------------------------------------------


def _panels(found: PatchMap) -> tuple[Side, Side, list[Panel]]:
    """Rows, columns, and a panel for each place of all other axes."""
    sides = [Side(axis.name, axis.labels) for axis in found.axes]
    defined = np.broadcast_to(found.cells.defined, found.shape)
    unclear = defined & ~found.clear & (not found.too_few)
    sides, arrays = _folded(sides, [found.effect, found.low, found.high, defined, unclear])
    row, column = _row_and_column([side.name for side in sides])
    if column == len(sides):  # a single axis
        sides, arrays = [*sides, Side("", ("",))], [array[..., None] for array in arrays]
    others = [i for i in range(len(sides)) if i not in (row, column)]
    arrays = [np.transpose(array, (*others, row, column)) for array in arrays]
    panels = []
    for at in np.ndindex(*arrays[0].shape[:-2]):
        names = [
            f"{sides[i].name} {sides[i].labels[k]}" for i, k in zip(others, at, strict=True) if len(sides[i].labels) > 1
        ]
        panels.append(Panel(", ".join(names), found.n_units, *(array[at] for array in arrays)))
    return sides[row], sides[column], panels


def _row_and_column(names: Sequence[str]) -> tuple[int, int]:
    """Of the axes after the metric: layer by head where there are heads, else places by layer, else the last two."""
    own = list(names[1:])
    if "layer" in own and "head" in own:
        return names.index("layer"), names.index("head")
    if "layer" in own and len(own) > 1:
        return len(names) - 1, names.index("layer")
    if len(own) == 1:
        return 1, 2
    return len(names) - 2, len(names) - 1


def _folded(sides: list[Side], arrays: list[Array]) -> tuple[list[Side], list[Array]]:
    """A long axis of single heads, beside a short one, as layer by head: what every head tells the logits is a grid."""
    heads = [i for i, side in enumerate(sides) if len(side.labels) > 1 and all(map(_HEAD.fullmatch, side.labels))]
    if len(heads) != 1 or len(sides) != 3:
        return sides, arrays
    [axis] = heads
    if len(sides[3 - axis].labels) > FOLD_UP_TO:
        return sides, arrays
    at = [tuple(map(int, label.split("."))) for label in sides[axis].labels]
    layers, numbers = sorted({layer for layer, _ in at}), sorted({head for _, head in at})
    places = [(layers.index(layer), numbers.index(head)) for layer, head in at]

    def fold(array: Array) -> Array:
        ahead = np.moveaxis(array, axis, -1)
        grid = np.zeros((*ahead.shape[:-1], len(layers), len(numbers)), dtype=array.dtype)
        for i, place in enumerate(places):
            grid[(..., *place)] = ahead[..., i]
        return grid

    others = [side for i, side in enumerate(sides) if i != axis]
    new = [Side("layer", tuple(map(str, layers))), Side("head", tuple(map(str, numbers)))]
    return [*others, *new], [fold(array) for array in arrays]


def _frame(rows: Side, columns: Side, n_panels: int) -> Frame:
    """Cells as large as the page allows, labels turned where they are wider than their column."""
    n_rows, n_columns = len(rows.labels), len(columns.labels)
    left = 22 + max(text_width(_short(label), SMALL_SIZE) for label in rows.labels)
    beside = 1 if n_columns > 12 else min(n_panels, 4)
    fits = ((WIDTH - (beside - 1) * GAP) / beside - left) / n_columns
    cell = max(SMALLEST_CELL, min(LARGEST_CELL, fits, 900 / n_rows))
    widest = max(text_width(_short(label), SMALL_SIZE) for label in columns.labels)
    upright = widest > cell * _every(cell, widest, n_columns) - 2 and widest > 24
    top = 20 + (widest if upright else SMALL_SIZE) + 6
    return Frame(rows, columns, (cell, cell), left, top, upright)


def _every(cell: float, size: float, n: int) -> int:
    """Every how manyth label is shown, so that they do not overlap; of a few numbers all."""
    return 1 if n <= 2 else max(1, math.ceil((min(size, 24) + 3) / cell))


# -- words -------------------------------------------------------------------------------------------------------------


def _title(found: PatchMap) -> str:
    kind = found.cells.kind.replace("_", " ").capitalize()
    made = found.provenance
    return kind if made is None else f"{kind}: {made.task.name} on {made.model.title}"


def _unit(found: PatchMap) -> str:
    metric = found.cells.metrics[0]
    return f"{metric}, {UNITS[metric]}" if metric in UNITS else metric


def _caption(found: PatchMap) -> list[str]:
    cells = found.cells
    other = "corrupt" if cells.base == "clean" else "clean"
    if cells.kind == "attention_knockout":
        change = "attention is blocked in the clean run"
    else:
        change = f"the {cells.base} run with one thing at a time of the {other} one"
    choices = [f"{key} {value}" for key, value in cells.parameters.items() if isinstance(value, str | int | float)]
    return [
        f"effect of each change on {cells.metrics[0]}: {change}; {', '.join(choices)}",
        f"unchanged: {_unchanged(found)}, over {count(len(cells.groups), 'prompt')}",
    ]


def _unchanged(found: PatchMap) -> str:
    cells, total = found.cells, found.total(found.cells.metrics[0])
    clean, corrupt = (signed(float(run[0].mean())) for run in (cells.clean, cells.corrupt))
    if total is None:
        return f"clean {clean}; {NO_OTHER_RUN}"
    effect = _with_interval(found.n_units, total.effect, total.low, total.high)
    return f"clean {clean}, corrupt {corrupt}; total effect {effect}"


def _strongest(found: PatchMap) -> Iterator[str]:
    """For those who cannot see the picture."""
    names = [axis.name for axis in found.axes[1:]]
    for row in found.strongest(5):
        where = ", ".join(f"{name} {row[name]}" for name in names)
        yield f"{where}: {_with_interval(found.n_units, *(_float(row[name]) for name in ('effect', 'low', 'high')))}"


def _with_interval(n_units: int, effect: float, low: float, high: float) -> str:
    """Of one prompt there is none."""
    return f"{signed(effect)} [{signed(low)}, {signed(high)}]" if n_units > 1 else signed(effect)


def _notes(found: PatchMap) -> Iterator[str]:
    n, n_clear = int(found.cells.defined.sum()) * len(found.cells.metrics), int(found.clear.sum())
    if found.too_few:
        yield f"No cell is marked: {found.too_few}."
    else:
        yield (
            f"{n_clear:,} of {count(n, 'cell')} have a 95 % interval without 0, drawn over "
            f"{count(found.n_units, found.unit)}; of many cells 5 % leave it out by chance."
        )
    if found.effect.size > MAX_TITLES:
        yield f"More than {MAX_TITLES:,} cells: their numbers are in the file and the CSV, not in tooltips."
    if (~found.cells.defined).any():
        yield "White: there is no such cell."


def _float(value: str | float | None) -> float:
    return float(value or 0)


def _short(label: str) -> str:
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"


# -- cells -------------------------------------------------------------------------------------------------------------


def _hatch(drawing: Drawing) -> str:
    """The pattern that lies over negative cells; returns how to fill with it."""
    name = f"below-{drawing.key}"
    pattern = drawing.define("pattern", id=name, width="6", height="6", patternUnits="userSpaceOnUse")
    drawing.path("M-1.5 1.5 L1.5 -1.5 M0 6 L6 0 M4.5 7.5 L7.5 4.5", parent=pattern, stroke=PAGE, stroke_width="1.3")
    return f"url(#{name})"


def _colour(share: float) -> str:
    """share: of the largest effect, in [-1, 1]."""
    end = POSITIVE if share > 0 else NEGATIVE
    mixed = (round(a + (b - a) * min(abs(share), 1.0)) for a, b in zip(NEUTRAL, end, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _draw_panel(
    drawing: Drawing,
    panel: Panel,
    frame: Frame,
    corner: tuple[float, float],
    scale: float,
    hatch: str,
    *,
    with_titles: bool,
) -> None:
    left, top = corner[0], corner[1] + 22
    if panel.title:
        drawing.text(left, corner[1] + 12, panel.title, size=TEXT_SIZE, font_weight="600")
    _draw_labels(drawing, frame, left, top)
    (wide, high), x0, y0 = frame.cell, left + frame.left, top + frame.top
    group = drawing.group(stroke=PAGE, stroke_width=number(min(1.0, wide / 12)))
    marks = drawing.group(fill=INK)
    for i, j in np.argwhere(panel.defined):
        effect = float(panel.effect[i, j])
        share = effect / scale if scale else 0.0
        x, y = x0 + j * wide, y0 + i * high
        title = _cell_title(panel, frame, int(i), int(j)) if with_titles else None
        drawing.rect(x, y, wide, high, parent=group, fill=_colour(share), title=title)
        if share < HATCHED_BELOW:
            drawing.rect(x, y, wide, high, parent=group, fill=hatch, pointer_events="none")
        text = _value(effect, scale) if wide >= NUMBER_FROM else ""
        _mark(drawing, (x, y), wide, text, share, is_unclear=bool(panel.unclear[i, j]), parent=marks)
    size = len(frame.columns.labels) * wide, len(frame.rows.labels) * high
    drawing.rect(x0, y0, *size, fill="none", stroke=RULE)


def _value(effect: float, scale: float) -> str:
    """With as many decimals as give the largest effect of the map two digits or three."""
    decimals = min(max(1 - math.floor(math.log10(scale)), 0), 4) if scale else 0
    text = f"{effect:+.{decimals}f}".replace("-", "\u2212")
    return text if any(digit in text for digit in "123456789") else "0"


def _cell_title(panel: Panel, frame: Frame, i: int, j: int) -> str:
    places = ((frame.rows, i), (frame.columns, j))
    where = [panel.title, *(f"{side.name} {side.labels[k]}" for side, k in places if side.name)]
    numbers = (float(array[i, j]) for array in (panel.effect, panel.low, panel.high))
    return f"{', '.join(filter(None, where))}: {_with_interval(panel.n_units, *numbers)}"


def _mark(
    drawing: Drawing,
    at: tuple[float, float],
    cell: float,
    text: str,
    share: float,
    *,
    is_unclear: bool,
    parent: ET.Element,
) -> None:
    """The value where there is room, and a dot where it is not sure that there is an effect."""
    x, y = at
    ink = PAGE if abs(share) > 0.5 else INK
    if text:
        if share < HATCHED_BELOW:  # the hatching ends where the number begins
            room = text_width(text, NUMBER_SIZE)
            drawing.rect(x + (cell - room) / 2, y + cell / 2 - 6, room, 12, fill=_colour(share))
        drawing.text(x + cell / 2, y + cell / 2 + 3.5, text, size=NUMBER_SIZE, anchor="middle", fill=ink)
    if is_unclear and cell >= MARKED_FROM:
        r = max(0.9, min(2.0, cell / 9))
        cy = y + cell - 2.5 * r if text else y + cell / 2
        drawing.circle(x + cell / 2, cy, r, parent=parent, fill=PAGE if ink == PAGE else DOT, pointer_events="none")


def _draw_labels(drawing: Drawing, frame: Frame, left: float, top: float) -> None:
    (wide, high), x0, y0 = frame.cell, left + frame.left, top + frame.top
    drawing.text(
        x0 + len(frame.columns.labels) * wide / 2,
        top + 8,
        frame.columns.name,
        size=SMALL_SIZE,
        anchor="middle",
        fill=QUIET,
    )
    middle = y0 + len(frame.rows.labels) * high / 2
    turn = f"rotate(-90 {number(left + 8)} {number(middle)})"
    drawing.text(left + 8, middle, frame.rows.name, size=SMALL_SIZE, anchor="middle", fill=QUIET, transform=turn)
    for i in range(0, len(frame.rows.labels), _every(high, SMALL_SIZE, len(frame.rows.labels))):
        drawing.text(x0 - 5, y0 + (i + 0.5) * high + 3.5, _short(frame.rows.labels[i]), size=SMALL_SIZE, anchor="end")
    widest = SMALL_SIZE if frame.upright else max(text_width(_short(c), SMALL_SIZE) for c in frame.columns.labels)
    for j in range(0, len(frame.columns.labels), _every(wide, widest, len(frame.columns.labels))):
        x, y, text = x0 + (j + 0.5) * wide, y0 - 6, _short(frame.columns.labels[j])
        if frame.upright:
            turn = f"rotate(-90 {number(x + 3.5)} {number(y)})"
            drawing.text(x + 3.5, y, text, size=SMALL_SIZE, transform=turn)
        else:
            drawing.text(x, y, text, size=SMALL_SIZE, anchor="middle")


def _draw_legend(drawing: Drawing, x: float, y: float, scale: float, unit: str, hatch: str) -> None:
    step = BAR_WIDTH / STEPS
    for i in range(STEPS):
        drawing.rect(x + i * step, y, step + 0.3, BAR_HEIGHT, fill=_colour(2 * (i + 0.5) / STEPS - 1))
    drawing.rect(x, y, BAR_WIDTH / 2, BAR_HEIGHT, fill=hatch)
    drawing.rect(x, y, BAR_WIDTH, BAR_HEIGHT, fill="none", stroke=RULE)
    for share, anchor in ((-1, "start"), (0, "middle"), (1, "end")):
        at = x + BAR_WIDTH * (share + 1) / 2
        text = "0" if not share else signed(share * scale)
        drawing.text(at, y + BAR_HEIGHT + 13, text, size=SMALL_SIZE, anchor=anchor)
    drawing.text(x + BAR_WIDTH + 12, y + 10, f"effect ({unit}); hatched: below 0", size=SMALL_SIZE)


def _draw_dot_of_legend(drawing: Drawing, x: float, y: float, *, is_marked: bool) -> None:
    if is_marked:
        drawing.circle(x + BAR_WIDTH + 15, y + BAR_HEIGHT + 9.5, 2.0, fill=DOT)
    unsure = "95 % interval contains 0, or effect is rounding"
    said = unsure if is_marked else "too small to mark where the interval contains 0"
    drawing.text(x + BAR_WIDTH + 24, y + BAR_HEIGHT + 13, said, size=SMALL_SIZE)
