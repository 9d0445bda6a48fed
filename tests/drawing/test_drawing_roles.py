"""The picture of a circuit whose edges are split by position role, read back from its SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import replace

import pytest
from drawing_samples import BY_ROLE, GEMMA_BY_ROLE, GPT2, PARALLEL_BY_ROLE, SPLIT_BY_ROLE, make_circuit
from test_drawing_circuit import SVG, Box, edge_paths, flatten, overlap, parse, path_points, text_boxes

from acdc.circuit import Circuit
from acdc.drawing import draw_circuit
from acdc.drawing.layout import BOX_HEIGHT, BOX_WIDTH
from acdc.drawing.svg import INK
from acdc.graph import END, Graph, GraphShape

SAMPLES = [(BY_ROLE, 60), (BY_ROLE, 300), (GEMMA_BY_ROLE, 300), (PARALLEL_BY_ROLE, 60), (SPLIT_BY_ROLE, 60)]


def circuit_of(shape: GraphShape, edges: list[str]) -> Circuit:
    sample = make_circuit(shape, 5)
    kept = Graph(shape).mask_of_edges(edges)
    selected = replace(sample.selected, connected=len(edges))
    return replace(sample, kept=kept, selected=selected)


def titled(root: ET.Element, tag: str = "g") -> dict[str, ET.Element]:
    """What has a tooltip, by the words before its colon."""
    found = {(one.findtext(f"{SVG}title") or "").partition(":")[0]: one for one in root.iter(f"{SVG}{tag}")}
    return {title: one for title, one in found.items() if title}


def box_of(element: ET.Element) -> Box:
    rect = element.find(f"{SVG}rect")
    assert rect is not None
    x, y, w, h = (float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
    return x, y, x + w, y + h


def attention(root: ET.Element) -> dict[str, str]:
    """The lines of attention, by their tooltips."""
    lines = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("class") == "acdc-attention":
            drawn = next(path for path in group.iter(f"{SVG}path") if path.get("stroke-dasharray"))
            lines[group.findtext(f"{SVG}title") or ""] = drawn.get("d") or ""
    return lines


def role_of(circuit: Circuit, edge: str) -> str:
    return circuit.graph.receivers[circuit.graph.edge(edge).receiver].role or END


@pytest.mark.parametrize(("shape", "n_edges"), SAMPLES)
def test_every_edge_stays_between_the_ends_of_its_roles_bar(shape: GraphShape, n_edges: int) -> None:
    circuit = make_circuit(shape, n_edges)
    root = parse(draw_circuit(circuit))
    bars = {title.removeprefix("embed at "): box_of(g) for title, g in titled(root).items() if "embed at" in title}
    for name, path in edge_paths(root).items():
        left, _, right, _ = bars[role_of(circuit, name)]
        assert all(left <= x <= right for x, _ in flatten(path.get("d") or "")), name


@pytest.mark.parametrize(("shape", "n_edges"), SAMPLES)
def test_every_role_with_an_edge_is_named_above_and_below_its_columns(shape: GraphShape, n_edges: int) -> None:
    circuit = make_circuit(shape, n_edges)
    root = parse(draw_circuit(circuit))
    named = defaultdict(list)
    for text, box in text_boxes(root):
        named[text].append(box)
    logits = box_of(titled(root)["logits at end"])
    for role in {role_of(circuit, name) for name in edge_paths(root)}:
        bar = box_of(titled(root)[f"embed at {role}"])
        above, below = named[role]
        assert above[3] <= logits[1] + 1
        assert below[1] >= bar[3]
        assert all(bar[0] <= box[0] and box[2] <= bar[2] for box in (above, below))


def test_roles_stand_as_they_follow_each_other_in_the_prompts() -> None:
    circuit = make_circuit(BY_ROLE, 60)
    assert circuit.provenance.task.roles == ("S2", "IO", "end")
    bars = [title for title in titled(parse(draw_circuit(circuit))) if title.startswith("embed at ")]
    assert bars == [f"embed at {role}" for role in ("other", "S2", "IO", "S1", "end")]
    task = replace(circuit.provenance.task, roles=())
    older = replace(circuit, provenance=replace(circuit.provenance, task=task))
    bars = [title for title in titled(parse(draw_circuit(older))) if title.startswith("embed at ")]
    assert bars == [f"embed at {role}" for role in ("other", "IO", "S1", "S2", "end")]


def test_a_role_without_an_edge_is_left_out() -> None:
    svg = draw_circuit(circuit_of(BY_ROLE, ["embed->mlp0@S1", "mlp0->1.0.v@IO", "1.0->logits"]))
    assert {title for title in titled(parse(svg)) if "embed" in title} == {
        f"embed at {role}" for role in ("IO", "S1", "end")
    }


def test_parts_of_one_edge_are_drawn_apart() -> None:
    names = [f"embed->mlp0@{role}" for role in BY_ROLE.roles]
    paths = edge_paths(parse(draw_circuit(circuit_of(BY_ROLE, names))))
    assert set(paths) == set(names)
    starts = [path_points(path.get("d") or "")[0][0] for path in paths.values()]
    assert len(set(starts)) == len(names)


def test_an_edge_ends_at_the_port_it_enters_at_its_role() -> None:
    shape = GraphShape(2, 4, 2).split_by(("a",))
    names = [f"embed->{port}@{role}" for port in ("0.0.q", "0.0.k", "0.1.v", "mlp0") for role in ("a", "end")]
    root = parse(draw_circuit(circuit_of(shape, [*names, "0.0->logits"])))
    for name, path in edge_paths(root).items():
        receiver = name.partition("->")[2].replace("mlp0@", "mlp0 at ").replace("logits", "logits at end")
        left, _, right, bottom = box_of(titled(root)[receiver])
        x, y = path_points(path.get("d") or "")[-1]
        assert left <= x <= right
        assert y == pytest.approx(bottom, abs=0.2) or receiver == "logits at end"
        if "." in receiver:
            assert x == pytest.approx((left + right) / 2, abs=0.2)


def test_attention_leads_from_what_is_read_to_the_heads_that_look() -> None:
    """A head looks from everywhere at keys and values before `end`, from `end` at its own besides; its box at one role
    is not joined to itself."""
    edges = [
        "embed->1.2.k@S1",
        "embed->1.2.v@S2",
        "embed->1.2.q@end",
        "1.2->mlp1@S2",
        "1.2->logits",
        "embed->1.2.v@end",
    ]
    root = parse(draw_circuit(circuit_of(BY_ROLE, edges)))
    ((title, line),) = attention(root).items()
    assert title == "attention of 1.2 at S2, end to 1.2 at S2, S1"
    boxes = {name: box_of(group) for name, group in titled(root).items() if re.match(r"1\.2 at|key and value", name)}
    assert set(boxes) == {"1.2 at S2", "1.2 at end", "key and value input of 1.2 at S1"}
    ends = [(x, y) for x, y in path_points(line) for box in boxes.values() if y == pytest.approx(box[1], abs=0.2)]
    for left, _, right, _ in boxes.values():
        assert any(left < x < right for x, _ in ends)


def test_heads_that_share_a_key_or_value_look_at_a_box_of_its_own() -> None:
    shape = GraphShape(1, 4, 2).split_by(("a",))
    edges = ["embed->0.1.v@a", "embed->0.1.k@end", "0.2->logits", "0.3->logits", "embed->0.3.q@a", "0.0->logits"]
    root = parse(draw_circuit(circuit_of(shape, edges)))
    assert set(attention(root)) == {
        "attention of 0.3 at a, end; 0.2 at end to 0.2–3 at a",
        "attention of 0.2 at end; 0.3 at end to 0.2–3 at end",
    }
    assert "key and value input of 0.2, 0.3 at a" in titled(root)
    texts = [text for text, _ in text_boxes(root)]
    assert texts.count("0.2–3") == 2
    assert not any("double line" in text for text in texts)


@pytest.mark.parametrize(("shape", "n_edges"), SAMPLES)
def test_attention_runs_around_every_node_and_its_lines_lie_apart(shape: GraphShape, n_edges: int) -> None:
    root = parse(draw_circuit(make_circuit(shape, n_edges)))
    rects = [[float(rect.get(key, "nan")) for key in ("x", "y", "width", "height")] for rect in root.iter(f"{SVG}rect")]
    nodes = [(x, y, x + w, y + h) for x, y, w, h in rects if (w, h) == (BOX_WIDTH, BOX_HEIGHT)]
    bars = []
    for title, line in attention(root).items():
        parts = [path_points(part) for part in re.findall("M[^M]*", line)]
        for (x, y), (x_to, y_to) in parts:
            box = min(x, x_to) - 0.1, min(y, y_to), max(x, x_to) + 0.1, max(y, y_to)
            assert not any(overlap(box, (a, b + 0.1, c, d)) for a, b, c, d in nodes), title
            if y == y_to:
                bars.append((box[0], y - 1, box[2], y + 1))
    assert len(bars) >= 3
    assert not any(overlap(a, b) for i, a in enumerate(bars) for b in bars[:i])


def test_attention_differs_from_edges_without_colour_and_the_legend_says_what_it_is() -> None:
    root = parse(draw_circuit(make_circuit(BY_ROLE, 60)))
    (dots,) = {
        p.get("stroke-dasharray") for g in root.iter(f"{SVG}g") if g.get("class") for p in g.iter(f"{SVG}path")
    } - {None}
    assert dots not in {path.get("stroke-dasharray") for path in edge_paths(root).values()}
    samples = [p for p in root.findall(f"{SVG}path") if p.get("stroke-dasharray") == dots]
    assert len(samples) == 1
    assert any(text.startswith("attention, no edge") for text, _ in text_boxes(root))
    lone = draw_circuit(circuit_of(BY_ROLE, ["embed->mlp0@end", "mlp0->logits"]))
    assert "attention, no edge" not in lone


def test_a_box_of_which_only_keys_are_read_looks_other_than_one_that_writes() -> None:
    root = parse(draw_circuit(circuit_of(BY_ROLE, ["embed->1.2.k@S1", "1.2->logits"])))
    drawn = {name: group.find(f"{SVG}rect") for name, group in titled(root).items()}
    read, writes = drawn["key and value input of 1.2 at S1"], drawn["1.2 at end"]
    assert read is not None
    assert writes is not None
    assert writes.get("stroke") == INK != read.get("stroke")


def test_screen_readers_hear_at_which_roles_the_edges_are_split() -> None:
    root = parse(draw_circuit(make_circuit(BY_ROLE, 60)))
    description = root.findtext(f"{SVG}desc") or ""
    assert "split at other, S2, IO, S1, end" in description
    assert re.search(r"strongest edges: \S+->\S+@\S+", description)


def test_whole_edges_have_no_roles_and_no_attention_drawn() -> None:
    svg = draw_circuit(make_circuit(GPT2, 60))
    assert not re.search("acdc-attention|split at|violet| at end", svg)
