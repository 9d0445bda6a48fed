"""A circuit as a picture: layers from bottom to top, one box per head or MLP, one line per edge.

Width says how large a score is (square root, so that small ones stay visible), dashes say that it is negative: colour
only repeats what black and white already shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from acdc.circuit import Choices, Circuit
from acdc.drawing import role_marks
from acdc.drawing.layout import BOX_HEIGHT, BOX_WIDTH, PORT_HEIGHT, PORT_WIDTH, Layout
from acdc.drawing.place_by_role import place_by_role, reading_order
from acdc.drawing.place_whole import place_whole
from acdc.drawing.placing import BAR, Link, Place
from acdc.drawing.svg import (
    INK,
    LINE_HEIGHT,
    MONO,
    PAGE,
    QUIET,
    RULE,
    STRIPE,
    Drawing,
    number,
    polyline,
    signed,
    text_width,
    wrap,
)
from acdc.graph import Edge
from acdc.numerals import count

POSITIVE, NEGATIVE, UNSCORED = "#14497f", "#c2410c", "#6b7280"
DASH, SOLID = "6 4", "none"
MIN_STROKE, MAX_STROKE = 0.9, 6.0
MARGIN = 20.0
LABELS = 62.0  # the layers' names, left of the picture
MIN_WIDTH = 680.0
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 16.0, 12.0, 10.5
LEGEND_HEIGHT = 54.0
# Comfort where the picture is looked at in a browser: the edge under the pointer stands out.
HOVER = ".acdc-edge:hover{stroke:#000;stroke-opacity:1}.acdc-edge{pointer-events:visibleStroke}"


def draw_circuit(circuit: Circuit, *, max_edges: int = 300) -> str:
    """SVG text of the kept edges, at most `max_edges` of them, the largest |score| first.

    What is left out is counted in the picture. Raises ValueError where max_edges is below 1.
    """
    if max_edges < 1:
        raise ValueError(f"max_edges is {max_edges}; it must be at least 1")
    kept = circuit.edges()
    shown = kept[:max_edges]
    largest = max((abs(float(circuit.scores[e.sender, e.receiver])) for e in shown), default=0.0)
    placement = place_by_role(circuit, shown) if circuit.graph.shape.roles else place_whole(circuit, shown)
    layout = Layout(placement, MARGIN + LABELS, 0.0)
    width = max(layout.right + MARGIN, MIN_WIDTH)
    room = width - 2 * MARGIN
    title = f"{circuit.provenance.task.name} circuit of {circuit.provenance.model.title}"
    head = wrap(title, TITLE_SIZE, room)
    caption = [line for part in _caption(circuit) for line in wrap(part, TEXT_SIZE, room)]
    notes = [line for part in _notes(circuit, kept, shown) for line in wrap(part, SMALL_SIZE, room)]
    top = MARGIN + (len(head) * TITLE_SIZE + len(caption) * TEXT_SIZE) * LINE_HEIGHT + 16
    shift = (width - layout.right - MARGIN) / 2
    layout = Layout(placement, MARGIN + LABELS + shift, top)
    legend_height = LEGEND_HEIGHT + (role_marks.LEGEND_HEIGHT if placement.attention else 0.0)
    height = layout.bottom + 16 + legend_height + len(notes) * SMALL_SIZE * LINE_HEIGHT + MARGIN

    drawing = Drawing(width, height, title, _description(circuit, shown, largest))
    drawing.style(HOVER)
    y = drawing.lines(MARGIN, MARGIN, head, size=TITLE_SIZE, fill=INK, weight="600")
    drawing.lines(MARGIN, y, caption, size=TEXT_SIZE, fill=QUIET)
    _draw_layers(drawing, layout)
    if circuit.graph.shape.roles:
        role_marks.draw_roles(drawing, layout)
        role_marks.draw_attention(drawing, layout)
    _draw_edges(drawing, layout, largest)
    _draw_nodes(drawing, circuit, layout)
    if not shown:
        middle = (layout.row_bottom[-1] + layout.row_top[0]) / 2
        x = (layout.left + layout.right) / 2
        drawing.text(x, middle + 4, "no edge is kept", size=TEXT_SIZE, anchor="middle", fill=QUIET)
    _draw_legend(drawing, layout, layout.bottom + 16, largest)
    drawing.lines(MARGIN, layout.bottom + 16 + legend_height, notes, size=SMALL_SIZE, fill=QUIET)
    return drawing.to_string()


# -- words -------------------------------------------------------------------------------------------------------------


def _caption(circuit: Circuit) -> list[str]:
    """The choices that the picture depends on, and how good the circuit is on prompts that the search did not see."""
    task, choices, selected = circuit.provenance.task, circuit.provenance.choices, circuit.selected
    objective = f", searched by {choices.objective}" if choices.objective != choices.metric else ""
    return [
        f"task {task.name} ({task.corruption}), {task.n_search} prompts searched, {task.n_held_out} held out · "
        f"method {choices.method}{_parameters(choices)} · metric {choices.metric}{objective} · "
        f"ablation {choices.ablation}",
        f"selection {selected.rule}: {count(selected.asked_for, 'edge')} asked for, {selected.connected:,} connected, "
        f"of {circuit.graph.n_edges:,}{_split(circuit)} · {_judgement(circuit)}",
    ]


def _split(circuit: Circuit) -> str:
    return f", split at {', '.join(reading_order(circuit))}" if circuit.graph.shape.roles else ""


def _parameters(choices: Choices) -> str:
    """As (rule signed; steps 10)."""
    said = sorted(choices.said.items())
    words = (f"{k} {', '.join(map(str, v)) if isinstance(v, list | tuple) else v}" for k, v in said)
    return f" ({'; '.join(words)})" if said else ""


def _judgement(circuit: Circuit) -> str:
    point = circuit.report.kept_held_out if circuit.report else None
    if point is None:
        return "not evaluated on held-out prompts"
    f = "f withheld (the full and the empty circuit differ too little)" if point.f is None else f"f {point.f:.2f}"
    kl = "KL share unknown" if point.kl_share is None else f"KL(C)/KL(∅) {point.kl_share:.2f}"
    return f"held out: {f}, {kl}"


def _notes(circuit: Circuit, kept: Sequence[Edge], shown: Sequence[Edge]) -> list[str]:
    notes = []
    if hidden := len(kept) - len(shown):
        last = abs(float(circuit.scores[shown[-1].sender, shown[-1].receiver]))
        drawn = f"only the {len(shown):,} strongest, |score| ≥ {last:.3g}, are drawn"
        notes.append(f"{count(hidden, 'edge')} hidden by the threshold: {drawn}.")
    notes.append(
        "Edges run upwards. Those of one sender share a lane until they part, those into logits share one too. "
        "Layers and columns without a drawn node are left out."
    )
    if circuit.graph.shape.roles:
        notes.append(role_marks.note_on_roles(circuit.graph))
    elif circuit.graph.shape.n_kv_heads < circuit.graph.shape.n_heads:
        notes.append("Heads joined by a double line share a key/value head: its k and v stand at the first of them.")
    return notes


def _description(circuit: Circuit, shown: Sequence[Edge], largest: float) -> str:
    """For screen readers: the caption, the nodes, and the strongest edges."""
    strongest = ", ".join(
        f"{circuit.graph.edge_name(e)} {signed(float(circuit.scores[e.sender, e.receiver]))}" for e in shown[:10]
    )
    parts = [*_caption(circuit), f"{count(len(shown), 'edge')} drawn, largest |score| {largest:.3g}"]
    parts += [f"nodes: {', '.join(circuit.nodes()) or 'none'}"]
    parts += [f"strongest edges: {strongest}"] if shown else []
    return ". ".join(parts) + "."


# -- shapes ------------------------------------------------------------------------------------------------------------


def stroke_width(score: float, largest: float) -> float:
    """Pixels for a score, given the largest |score| of the picture."""
    share = abs(score) / largest if largest > 0 else 0.0
    return MIN_STROKE + (MAX_STROKE - MIN_STROKE) * math.sqrt(share)


def _draw_layers(drawing: Drawing, layout: Layout) -> None:
    """A stripe and a name for every drawn layer."""
    spans: dict[int, tuple[float, float]] = {}
    for row, layer in enumerate(layout.placement.layers):
        if layer >= 0:
            bottom = spans.get(layer, (0.0, layout.row_bottom[row]))[1]
            spans[layer] = (layout.row_top[row], bottom)
    for layer, (top, bottom) in spans.items():
        box = (layout.left - LABELS, top - 5, layout.right - layout.left + LABELS, bottom - top + 10)
        drawing.rect(*box, fill=STRIPE, rx="4")
        x, y = layout.left - LABELS + 8, (top + bottom) / 2 + 4
        drawing.text(x, y, f"layer {layer}", size=11, fill=QUIET)


def _draw_edges(drawing: Drawing, layout: Layout, largest: float) -> None:
    group = drawing.group(fill="none", stroke_linecap="butt")
    for link, d in reversed(list(zip(layout.placement.links, layout.paths, strict=True))):  # the strongest on top
        colour, dash = _pen(link)
        share = abs(link.score) / largest if largest else 0.0
        drawing.path(
            d,
            title=f"{link.name}  {signed(link.score) if link.is_tested else 'not tested'}",
            parent=group,
            class_="acdc-edge",
            stroke=colour,
            stroke_width=f"{stroke_width(link.score, largest):.2f}",
            stroke_opacity=f"{0.6 + 0.35 * math.sqrt(share):.2f}",
            stroke_dasharray=dash,
        )


def _pen(link: Link) -> tuple[str, str]:
    if not link.is_tested:
        return UNSCORED, SOLID
    return (NEGATIVE, DASH) if link.score < 0 else (POSITIVE, SOLID)


def _draw_nodes(drawing: Drawing, circuit: Circuit, layout: Layout) -> None:
    _draw_joined(drawing, layout)
    ports: dict[Place, dict[str, Link]] = {}
    for link in layout.placement.links:
        receiver = circuit.graph.receivers[link.edge.receiver]
        if receiver.kind in "qkv":
            ports.setdefault(link.end, {})[receiver.kind] = link
    for place in layout.placement.places:
        group = drawing.group(title=f"{role_marks.name_of(place)}: {_traffic(layout, place)}", font_family=MONO)
        y = layout.box_top[place.row]
        if place.column == BAR:
            left, right = layout.extent(place)
            drawing.rect(left, y, right - left, layout.row_bottom[place.row] - y, parent=group, fill=INK, rx="3")
            middle = left + (right - left) / 2
            drawing.text(middle, y + 16, place.name, parent=group, anchor="middle", fill=PAGE, font_weight="600")
            continue
        x = layout.column_x[place.column]
        box = (x - BOX_WIDTH / 2, y, BOX_WIDTH, BOX_HEIGHT)
        corner = "11" if place.kind == "mlp" else "4"
        colour = role_marks.COLOUR if place.kind == "kv" else INK
        drawing.rect(*box, parent=group, fill=PAGE, stroke=colour, stroke_width="1.2", rx=corner)
        drawing.text(x, y + 15.5, place.name, parent=group, anchor="middle", font_weight="600")
        for kind, link in sorted(ports.get(place, {}).items()):
            _draw_port(drawing, circuit, layout, x + link.offset, y + BOX_HEIGHT, kind, link)


def _draw_port(drawing: Drawing, circuit: Circuit, layout: Layout, x: float, y: float, kind: str, link: Link) -> None:
    r = link.edge.receiver
    name, readers = circuit.graph.receivers[r].name, circuit.graph.nodes_read_by(r)
    n = sum(link.edge.receiver == r for link in layout.placement.links)
    shared = f", read by heads {', '.join(readers)}" if len(readers) > 1 else ""
    group = drawing.group(title=f"{name}: {count(n, 'edge')} in{shared}", font_family=MONO)
    drawing.rect(
        x - PORT_WIDTH / 2, y, PORT_WIDTH, PORT_HEIGHT, parent=group, fill=STRIPE, stroke=INK, stroke_width="0.8"
    )
    drawing.text(x, y + 9.8, kind, size=10.5, parent=group, anchor="middle")


def _draw_joined(drawing: Drawing, layout: Layout) -> None:
    """A double line between the drawn heads of a key/value group whose k or v an edge enters."""
    for places in layout.placement.joined:
        for one, other in pairwise(places):
            start = layout.column_x[one.column] + BOX_WIDTH / 2
            stop = layout.column_x[other.column] - BOX_WIDTH / 2
            y = layout.box_top[one.row] + BOX_HEIGHT / 2
            for dy in (-1.5, 1.5):
                drawing.path(polyline([(start, y + dy), (stop, y + dy)]), stroke=INK, stroke_width="1")


def _traffic(layout: Layout, place: Place) -> str:
    into = [link.score for link in layout.placement.links if place in link.ends]
    out = [link.score for link in layout.placement.links if link.start == place]
    sums = [f"{len(scores)} {word}" for scores, word in ((into, "in"), (out, "out")) if scores]
    if not sums:
        return "no edge"
    largest = max(map(abs, into + out))
    return f"edges {', '.join(sums)}; largest |score| {largest:.3g}, scores sum to {signed(float(np.sum(into + out)))}"


def _draw_legend(drawing: Drawing, layout: Layout, y: float, largest: float) -> None:
    """Line samples of what the picture holds, then what a line's width and the ports mean."""
    drawing.path(f"M{number(MARGIN)} {number(y - 4)} H{number(drawing.width - MARGIN)}", stroke=RULE)
    line, x = y + 14, MARGIN
    for score, label, colour, dash in _samples(layout, largest):
        width = f"{stroke_width(score, largest):.2f}"
        drawing.path(f"M{number(x)} {number(line)} h34", stroke=colour, stroke_width=width, stroke_dasharray=dash)
        drawing.text(x + 40, line + 4, label, size=SMALL_SIZE)
        x += 40 + text_width(label, SMALL_SIZE) + 14
    if not layout.placement.links:
        return
    scale = "width grows with the square root of |score|" if largest else "no edge has a score: all are drawn alike"
    drawing.text(MARGIN, line + 26, f"{scale}; q k v: query, key and value input of a head", size=SMALL_SIZE)
    if layout.placement.attention:
        role_marks.draw_attention_legend(drawing, MARGIN, line + 26 + role_marks.LEGEND_HEIGHT, SMALL_SIZE)


def _samples(layout: Layout, largest: float) -> list[tuple[float, str, str, str]]:
    """score, label, colour, dashes of every kind of line; two widths for each sign."""
    faint = largest / 9  # a third of the widest
    samples = []
    if any(link.is_tested and link.score >= 0 for link in layout.placement.links):
        samples.append((largest, signed(largest), POSITIVE, SOLID))
        samples.append((faint, f"{signed(faint)} positive (helps)", POSITIVE, SOLID))
    if any(link.is_tested and link.score < 0 for link in layout.placement.links):
        samples.append((-largest, signed(-largest), NEGATIVE, DASH))
        samples.append((-faint, f"{signed(-faint)} negative (hurts)", NEGATIVE, DASH))
    if any(not link.is_tested for link in layout.placement.links):
        samples.append((0.0, "not tested", UNSCORED, SOLID))
    return samples if largest else samples[-1:]
