"""The circuit's picture, read back from its SVG."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from drawing_samples import (
    BY_ROLE,
    GEMMA_BY_ROLE,
    GPT2,
    PARALLEL,
    PARALLEL_BY_ROLE,
    SMOLLM2,
    SPLIT,
    SPLIT_BY_ROLE,
    TOY,
    make_circuit,
    make_point,
    make_report,
)

from acdc.circuit import Circuit
from acdc.drawing import draw_circuit
from acdc.drawing.layout import BOX_HEIGHT, BOX_WIDTH
from acdc.drawing.svg import GLYPH_WIDTH
from acdc.graph import Graph, GraphShape

SVG = "{http://www.w3.org/2000/svg}"
WHOLE = [(SMOLLM2, 20), (SMOLLM2, 100), (SMOLLM2, 300), (GPT2, 300), (TOY, 15), (PARALLEL, 30), (SPLIT, 40), (TOY, 0)]
SPLIT_UP = [
    (BY_ROLE, 60),
    (BY_ROLE, 300),
    (GEMMA_BY_ROLE, 300),
    (PARALLEL_BY_ROLE, 60),
    (SPLIT_BY_ROLE, 60),
    (BY_ROLE, 0),
]
SAMPLES = [*WHOLE, *SPLIT_UP]
Box = tuple[float, float, float, float]


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def edge_paths(root: ET.Element) -> dict[str, ET.Element]:
    """Edge name -> its path; fails where an edge is drawn twice."""
    paths: dict[str, ET.Element] = {}
    for path in root.iter(f"{SVG}path"):
        if path.get("class") == "acdc-edge":
            name = (path.findtext(f"{SVG}title") or "").split("  ")[0]
            assert name not in paths
            paths[name] = path
    return paths


def text_boxes(root: ET.Element) -> list[tuple[str, Box]]:
    """left, top, right, bottom of every text, at the stated glyph width."""
    boxes = []
    for element in root.iter(f"{SVG}text"):
        size, text = float(element.get("font-size", "0")), element.text or ""
        width = len(text) * size * GLYPH_WIDTH
        x = float(element.get("x", "nan"))
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[element.get("text-anchor", "start")]
        baseline = float(element.get("y", "nan"))
        boxes.append((text, (left, baseline - 0.78 * size, left + width, baseline + 0.22 * size)))
    return boxes


def path_points(d: str) -> list[tuple[float, float]]:
    """Ends and control points of the absolute commands M, L, V, H, C."""
    points = []
    x = y = 0.0
    for command, text in re.findall(r"([A-Za-z])([^A-Za-z]*)", d):
        values = [float(v) for v in text.split()]
        match command:
            case "V":
                y = values[0]
                points.append((x, y))
            case "H":
                x = values[0]
                points.append((x, y))
            case "M" | "L" | "C":
                points += list(zip(values[::2], values[1::2], strict=True))
                x, y = points[-1]
            case _:
                assert command in "hvaZ", command
    return points


def flatten(d: str, n: int = 40) -> list[tuple[float, float]]:
    """Points along an edge's path, close to each other."""
    line: list[tuple[float, float]] = []
    for command, text in re.findall(r"([MVC])([^A-Z]*)", d):
        values = [float(v) for v in text.split()]
        if command == "M":
            line.append((values[0], values[1]))
            continue
        p0 = line[-1]
        p1, p2, p3 = ((p0[0], values[0]),) * 3 if command == "V" else zip(values[::2], values[1::2], strict=True)
        for t in (i / n for i in range(1, n + 1)):
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
            ends = (p0, p0, p3, p3) if command == "V" else (p0, p1, p2, p3)
            line.append(tuple(sum(w * p[i] for w, p in zip(weights, ends, strict=True)) for i in (0, 1)))  # type: ignore[arg-type]
    return line


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize(("shape", "n_edges"), SAMPLES)
def test_every_kept_edge_is_drawn_once_under_its_name(shape: GraphShape, n_edges: int) -> None:
    circuit = make_circuit(shape, n_edges)
    shown = circuit.edges()[:300]
    assert set(edge_paths(parse(draw_circuit(circuit)))) == {circuit.graph.edge_name(edge) for edge in shown}


@pytest.mark.parametrize(("shape", "n_edges"), SAMPLES)
def test_no_two_labels_overlap(shape: GraphShape, n_edges: int) -> None:
    boxes = text_boxes(parse(draw_circuit(make_circuit(shape, n_edges, report=make_report()))))
    clashes = [(a, b) for (a, box_a), (b, box_b) in combinations(boxes, 2) if overlap(box_a, box_b)]
    assert clashes == []


@pytest.mark.parametrize(("shape", "n_edges"), SAMPLES)
def test_everything_lies_inside_the_picture(shape: GraphShape, n_edges: int) -> None:
    root = parse(draw_circuit(make_circuit(shape, n_edges, report=make_report())))
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    points = [corner for _, (a, b, c, d) in text_boxes(root) for corner in ((a, b), (c, d))]
    for rect in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
        points += [(x, y), (x + w, y + h)]
    for path in root.iter(f"{SVG}path"):
        points += path_points(path.get("d") or "")
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


@pytest.mark.parametrize(("shape", "n_edges"), SAMPLES)
def test_no_text_is_smaller_than_ten_pixels_and_no_number_is_nan(shape: GraphShape, n_edges: int) -> None:
    svg = draw_circuit(make_circuit(shape, n_edges, report=make_report()))
    sizes = {float(text.get("font-size", "0")) for text in parse(svg).iter(f"{SVG}text")}
    assert min(sizes) >= 10
    assert not re.search(r"\b(nan|inf)\b", svg, re.IGNORECASE)


@pytest.mark.parametrize(("shape", "n_edges"), SAMPLES)
def test_edges_run_upwards_and_around_every_node(shape: GraphShape, n_edges: int) -> None:
    root = parse(draw_circuit(make_circuit(shape, n_edges)))
    rects = [[float(rect.get(key, "nan")) for key in ("x", "y", "width", "height")] for rect in root.iter(f"{SVG}rect")]
    nodes = [(x, y, x + w, y + h) for x, y, w, h in rects if (w, h) == (BOX_WIDTH, BOX_HEIGHT)]
    assert nodes or not n_edges
    for name, path in edge_paths(root).items():
        line = flatten(path.get("d") or "")
        assert all(above[1] < below[1] for below, above in pairwise(line)), name
        inside = [(x, y) for x, y in line for a, b, c, d in nodes if a + 1 < x < c - 1 and b + 1 < y < d - 1]
        assert inside == [], name


def test_sign_and_size_show_without_colour() -> None:
    circuit = make_circuit(SMOLLM2, 100)
    paths = edge_paths(parse(draw_circuit(circuit)))
    widths = []
    for edge in circuit.edges():
        path = paths[circuit.graph.edge_name(edge)]
        score = circuit.scores[edge.sender, edge.receiver]
        assert (path.get("stroke-dasharray") != "none") == (score < 0)
        widths.append(float(path.get("stroke-width", "nan")))
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]


def test_an_edge_ends_at_the_port_it_enters() -> None:
    graph = Graph(GraphShape(2, 4, 2))
    kept = graph.mask_of_edges(
        ["embed->0.0.q", "embed->0.0.k", "embed->0.0.v", "0.1->1.2.q", "0.0->1.3.q", "0.0->logits"]
    )
    kept |= graph.mask_of_edges(["0.1->logits", "1.2->logits", "1.3->logits", "0.1->1.1.k"])
    sample = make_circuit(GraphShape(2, 4, 2), 5)
    root = parse(draw_circuit(Circuit(graph, sample.scores, sample.tested, kept, sample.selected, sample.provenance)))
    ports = {}
    for group in root.iter(f"{SVG}g"):
        name = (group.findtext(f"{SVG}title") or "").partition(":")[0]
        if re.fullmatch(r"\d+\.\d+\.[qkv]", name):
            rect = group.find(f"{SVG}rect")
            assert rect is not None
            x, y, w, h = (float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
            ports[name] = (x + w / 2, y + h)
    assert set(ports) == {"0.0.q", "0.0.k", "0.0.v", "1.2.q", "1.3.q", "1.1.k"}
    for edge, path in edge_paths(root).items():
        receiver = edge.split("->")[1]
        if receiver != "logits":
            assert path_points(path.get("d") or "")[-1] == pytest.approx(ports[receiver], abs=0.2)


def test_a_shared_key_port_names_all_heads_that_read_it() -> None:
    graph = Graph(GraphShape(2, 4, 2))
    sample = make_circuit(graph.shape, 5)
    kept = graph.mask_of_edges(["embed->1.1.k", "1.2->logits", "1.3->logits"])
    svg = draw_circuit(Circuit(graph, sample.scores, sample.tested, kept, sample.selected, sample.provenance))
    assert "1.1.k: 1 edge in, read by heads 1.2, 1.3" in svg


def test_split_positions_are_a_node_that_no_embedding_edge_runs_behind() -> None:
    circuit = make_circuit(SPLIT, 40)
    names = [circuit.graph.edge_name(edge) for edge in circuit.edges()]
    assert any(name.startswith("pos->") for name in names)
    assert any(name.startswith("embed->") for name in names)
    starts = {
        name: path_points(path.get("d") or "")[0] for name, path in edge_paths(parse(draw_circuit(circuit))).items()
    }
    assert len({start for name, start in starts.items() if name.startswith("pos->")}) == 1
    assert {y for name, (_, y) in starts.items() if name.startswith("embed->")} != {
        y for name, (_, y) in starts.items() if name.startswith("pos->")
    }


def test_the_strongest_edges_into_one_port_keep_their_own_lines() -> None:
    paths = edge_paths(parse(draw_circuit(make_circuit(GPT2, 300))))
    assert len({path.get("d") for path in paths.values()}) == len(paths)


def test_hidden_edges_are_counted_and_the_strongest_stay() -> None:
    circuit = make_circuit(SMOLLM2, 100)
    svg = draw_circuit(circuit, max_edges=30)
    assert f"{circuit.n_edges - 30} edges hidden by the threshold" in svg
    assert set(edge_paths(parse(svg))) == {circuit.graph.edge_name(edge) for edge in circuit.edges()[:30]}
    assert "hidden" not in draw_circuit(circuit, max_edges=circuit.n_edges)
    with pytest.raises(ValueError, match="max_edges is 0"):
        draw_circuit(circuit, max_edges=0)


def test_the_caption_tells_the_choices_and_the_held_out_figures() -> None:
    report = replace(
        make_report(),
        kept=(make_point("search", "signed", 0.01, 0.99, 0.1), make_point("held_out", "signed", 0.01, 0.87, 0.31)),
    )
    circuit = make_circuit(GPT2, 50, report=report)
    text = " ".join(t for t, _ in text_boxes(parse(draw_circuit(circuit))))
    for words in (
        "ioi",
        "SmolLM2-135M-Instruct",
        "eap-ig-inputs (steps 10)",
        "logit_diff",
        "kl_divergence",
        "resample",
        "32,491",
    ):
        assert words in text
    assert f"50 edges asked for, {circuit.selected.connected} connected" in text
    assert "f 0.87, KL(C)/KL(∅) 0.31" in text
    assert "not evaluated on held-out prompts" in draw_circuit(make_circuit(GPT2, 50))


def test_a_withheld_faithfulness_is_said_in_words() -> None:
    report = replace(make_report(), kept=(make_point("held_out", "signed", 0.01, None, None),))
    svg = draw_circuit(make_circuit(TOY, 5, report=report))
    assert "f withheld" in svg
    assert "None" not in svg


def test_markup_and_control_characters_in_names_stay_text() -> None:
    title = 'a <b>&" \x00\x1b model'
    svg = draw_circuit(make_circuit(TOY, 10, title=title))
    assert parse(svg).findtext(f"{SVG}title") == 'ioi circuit of a <b>&" \ufffd\ufffd model'
    assert "<b>" not in svg


def test_a_long_name_without_spaces_is_broken_into_lines() -> None:
    root = parse(draw_circuit(make_circuit(TOY, 10, title="x" * 500)))
    width = float(root.get("width", "0"))
    assert all(box[2] <= width for _, box in text_boxes(root))


def test_a_circuit_without_scores_draws_all_edges_alike() -> None:
    sample = make_circuit(TOY, 10)
    zero = np.zeros_like(sample.scores)
    untested = np.zeros_like(sample.tested)
    svg = draw_circuit(Circuit(sample.graph, zero, untested, sample.kept, sample.selected, sample.provenance))
    paths = edge_paths(parse(svg))
    assert len(paths) == sample.n_edges
    assert len({path.get("stroke-width") for path in paths.values()}) == 1
    assert "no edge has a score" in svg
    assert "not tested" in svg


def test_screen_readers_get_a_name_and_a_description() -> None:
    root = parse(draw_circuit(make_circuit(TOY, 10)))
    assert root.get("role") == "img"
    ids = {element.get("id"): element for element in root if element.get("id")}
    title, desc = (ids[i] for i in (root.get("aria-labelledby") or "").split())
    assert (title.tag, desc.tag) == (f"{SVG}title", f"{SVG}desc")
    assert "strongest edges" in (desc.text or "")


def test_bytes_do_not_depend_on_process_or_hash_seed() -> None:
    program = (
        "from drawing_samples import *; from acdc.drawing import draw_circuit, draw_curve; import hashlib; "
        "text = draw_circuit(make_circuit(SMOLLM2, 200, report=make_report())) + draw_curve(make_report()); "
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    digests = set()
    for seed in ("1", "2"):
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert len(digests) == 1
