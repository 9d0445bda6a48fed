"""What the picture of a circuit whose edges are split by role has besides: the roles' names, attention, its legend."""

from __future__ import annotations

from collections.abc import Sequence

from acdc.drawing.layout import ATTENTION_TIP, GROUP_GAP, ROLE_HEIGHT, ROLE_SIZE, Layout
from acdc.drawing.placing import Attention, Place
from acdc.drawing.svg import RULE, Drawing, number, polyline
from acdc.graph import Graph

COLOUR = "#7a3e9d"
WIDTH, DOTS = "1.3", "1.3 2.7"  # thinner and more finely broken than any edge
WITHIN_REACH = "9"  # of the pointer: the line itself is too thin to be hit
HOVER = ".acdc-attention:hover path{stroke:#000}"
LEGEND_HEIGHT = 18.0
SAYS = (
    "attention, no edge: what k and v hold where the line starts reaches the heads that it points to, at later tokens"
)


def draw_roles(drawing: Drawing, layout: Layout) -> None:
    """The name of every role, above and below its columns, and a line between the roles."""
    top, bottom = layout.row_top[-1] - ROLE_HEIGHT, layout.row_bottom[0] + ROLE_HEIGHT
    for i, place in enumerate(layout.placement.rows[0]):
        left, right = layout.extent(place)
        for y in (top + ROLE_SIZE, bottom - 6):
            drawing.text((left + right) / 2, y, place.role, size=ROLE_SIZE, anchor="middle", font_weight="600")
        if i:
            x = left - GROUP_GAP / 2
            drawing.path(polyline([(x, top), (x, bottom)]), stroke=RULE)


def draw_attention(drawing: Drawing, layout: Layout) -> None:
    drawing.style(HOVER)
    for one in layout.placement.attention:
        line = layout.line_of(one)
        group = drawing.group(title=_title(one), stroke=COLOUR, class_="acdc-attention")
        drawing.path(line, parent=group, stroke_width=WITHIN_REACH, stroke_opacity="0")
        drawing.path(line, parent=group, stroke_width=WIDTH, stroke_dasharray=DOTS)
        for x, y in layout.tips_of(one):
            tip = [(x - ATTENTION_TIP / 2, y - ATTENTION_TIP), (x, y), (x + ATTENTION_TIP / 2, y - ATTENTION_TIP)]
            drawing.path(f"{polyline(tip)} Z", parent=group, fill=COLOUR, stroke="none")


def draw_attention_legend(drawing: Drawing, x: float, y: float, size: float) -> None:
    """y: the baseline."""
    middle, end = y - 4, x + 34
    drawing.path(
        f"M{number(x)} {number(middle)} H{number(end)}", stroke=COLOUR, stroke_width=WIDTH, stroke_dasharray=DOTS
    )
    tip = [
        (end - ATTENTION_TIP, middle - ATTENTION_TIP / 2),
        (end, middle),
        (end - ATTENTION_TIP, middle + ATTENTION_TIP / 2),
    ]
    drawing.path(f"{polyline(tip)} Z", fill=COLOUR)
    drawing.text(x + 40, y, SAYS, size=size)


def note_on_roles(graph: Graph) -> str:
    """How to read the boxes."""
    note = "Edges stand at the tokens of their role; roles without an edge are left out. A violet box"
    size = graph.shape.n_heads // graph.shape.n_kv_heads
    if size == 1:
        return f"{note} is a head of which only the key or value is used at this role."
    return f"{note} like 0.0–{size - 1} is the key and value input that heads 0.0 to 0.{size - 1} share."


def name_of(place: Place) -> str:
    """For tooltips."""
    if place.kind == "kv":
        return f"key and value input of {', '.join(place.readers)} at {place.role}"
    return f"{place.name} at {place.role}" if place.role else place.name


def _title(one: Attention) -> str:
    return f"attention of {_at_roles(one.targets)} to {_at_roles(one.sources)}"


def _at_roles(places: Sequence[Place]) -> str:
    """11.1 at IO, S1; 11.3 at end."""
    roles: dict[str, list[str]] = {}
    for place in places:
        roles.setdefault(place.name, []).append(place.role)
    return "; ".join(f"{name} at {', '.join(own)}" for name, own in roles.items())
