"""Heat maps, read back from their SVG."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from store_samples import patch_map
from test_drawing_circuit import SVG, overlap, text_boxes

from acdc.drawing import draw_map
from acdc.drawing.heatmap import LARGEST_CELL, MAX_TITLES, SMALLEST_CELL
from acdc.patch_map import Axis, Cells, PatchMap, measured_axis

Box = tuple[float, float, float, float]
N = 12


def numbers(n: int) -> tuple[str, ...]:
    return tuple(map(str, range(n)))


def heads(n_layers: int, n_heads: int) -> tuple[str, ...]:
    return tuple(f"{layer}.{head}" for layer in range(n_layers) for head in range(n_heads))


def make(kind: str, *axes: Axis, seed: int = 0, late: bool = False) -> PatchMap:
    """Random effects, a few of them large. late: without the cells on and below the diagonal."""
    draw = np.random.default_rng(seed)
    shape = tuple(len(axis.labels) for axis in axes)
    effect = draw.normal(0, 0.1, shape)
    effect.flat[draw.integers(0, effect.size, 5)] = draw.normal(0, 1.5, 5)
    defined = np.triu(np.ones(shape, dtype=bool), 1) if late else np.ones(shape, dtype=bool)
    clean, corrupt = draw.normal(2, 0.3, (1, N)), draw.normal(-2, 0.3, (1, N))
    changed = corrupt[0] + effect[..., None] + draw.normal(0, 0.2, (*shape, N))
    cells = Cells(
        kind=kind,
        axes=(measured_axis(["logit_diff"]), *axes),
        per_example=(changed * defined[..., None])[None],
        defined=defined,
        clean=clean,
        corrupt=corrupt,
        base="corrupt",
        groups=numbers(N),
        parameters={"state": "head", "places": "role", "direction": "denoising", "senders": [["a", "a"]]},
    )
    return PatchMap.of(cells, seed=0, provenance=patch_map().provenance)


ROLES = Axis("place", ("IO", "S1", "S2", "end"))
BACK = Axis("place", tuple(f"-{i}" for i in range(40, 0, -1)))
RESTORED = Axis("restored", ("residual_after", "residual_after, attention severed", "mlp"))
LONG = ("9.6.q+9.9.q+10.0.q", "name movers and everything that writes to them", "logits")
MAPS = {
    "the smallest": patch_map(),
    "3 x 3": make("activation_patching", Axis("layer", numbers(3)), replace(ROLES, labels=("IO", "S1", "S2"))),
    "30 x 40": make("activation_patching", Axis("layer", numbers(30)), BACK),
    "heads by role": make("activation_patching", Axis("layer", numbers(12)), Axis("head", numbers(12)), ROLES),
    "causal tracing": make("causal_tracing", RESTORED, Axis("layer", numbers(30)), replace(ROLES, labels=("a", "b"))),
    "blocked": make("attention_knockout", Axis("layer", numbers(6)), Axis("blocked", ("end -> IO", "end -> S2"))),
    "heads to the logits": make("path_patching", Axis("sender", heads(6, 8)), Axis("receiver", ("logits",))),
    "pairs of heads": make("path_patching", Axis("sender", heads(4, 8)), Axis("receiver", heads(4, 8)), late=True),
    "long names": make("path_patching", Axis("sender", LONG), Axis("receiver", LONG)),
    "one cell": make("path_patching", Axis("sender", ("embed",)), Axis("receiver", ("logits",))),
}
every_map = pytest.mark.parametrize("found", MAPS.values(), ids=MAPS.keys())


def parse(found: PatchMap) -> ET.Element:
    return ET.fromstring(draw_map(found))


def turned_boxes(root: ET.Element) -> list[tuple[str, Box]]:
    """As text_boxes, with those that stand upright turned about their anchor."""
    boxes = []
    upright = [element.get("transform") for element in root.iter(f"{SVG}text")]
    for (text, (left, top, right, bottom)), turn in zip(text_boxes(root), upright, strict=True):
        if turn is None:
            boxes.append((text, (left, top, right, bottom)))
            continue
        _, x, y = map(float, re.findall(r"-?[\d.]+", turn))
        boxes.append((text, (x + top - y, y - (right - x), x + bottom - y, y - (left - x))))
    return boxes


def cells(root: ET.Element) -> dict[str, ET.Element]:
    """The rect of each cell by its tooltip."""
    found = {}
    for rect in root.iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None:
            found[title.text or ""] = rect
    return found


def darkness(fill: str) -> float:
    red, green, blue = (int(fill[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 1 - (0.2126 * red + 0.7152 * green + 0.0722 * blue)


def effects(titles: Sequence[str]) -> list[float]:
    said = [title.rpartition(": ")[2].split(" ")[0] for title in titles]
    return [float(text.replace("\N{MINUS SIGN}", "-").replace(",", "")) for text in said]


@every_map
def test_labels_do_not_overlap_and_everything_lies_inside(found: PatchMap) -> None:
    root = parse(found)
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    boxes = turned_boxes(root)
    assert [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if overlap(one, other)] == []
    for rect in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(key, "0")) for key in ("x", "y", "width", "height"))
        boxes.append(("", (x, y, x + w, y + h)))
    assert all(0 <= a <= c <= width + 0.2 and 0 <= b <= d <= height for _, (a, b, c, d) in boxes)
    assert min(float(text.get("font-size", "0")) for text in root.iter(f"{SVG}text")) >= 10
    assert not re.search(r"\b(nan|inf|None)\b", draw_map(found))


@every_map
def test_every_cell_is_drawn_once_and_none_that_is_not_there(found: PatchMap) -> None:
    drawn = cells(parse(found))
    assert len(drawn) == found.cells.defined.sum()
    wanted = sorted(found.effect[0][found.cells.defined])
    assert sorted(effects(list(drawn))) == pytest.approx(wanted, rel=1e-2, abs=1e-3)
    sizes = {float(rect.get("width", "0")) for rect in drawn.values()}
    assert all(SMALLEST_CELL <= size <= LARGEST_CELL for size in sizes)


@every_map
def test_larger_effects_are_darker_whatever_their_sign(found: PatchMap) -> None:
    drawn = cells(parse(found))
    sizes = np.abs(effects(list(drawn)))
    dark = np.array([darkness(rect.get("fill", "")) for rect in drawn.values()])
    order = np.argsort(sizes)
    assert (np.diff(dark[order]) > -0.06).all()  # blue and red of one size differ by no more than that
    assert dark[order[-1]] > 0.6


@every_map
def test_negative_cells_are_hatched_and_no_others(found: PatchMap) -> None:
    root = parse(found)
    drawn = cells(root)
    scale = max(map(abs, effects(list(drawn))))
    negative = {
        (rect.get("x"), rect.get("y"))
        for (title, rect), effect in zip(drawn.items(), effects(list(drawn)), strict=True)
        if effect < -0.03 * scale and title
    }
    positive = {
        (rect.get("x"), rect.get("y"))
        for rect, effect in zip(drawn.values(), effects(list(drawn)), strict=True)
        if effect >= 0
    }
    hatched = {
        (rect.get("x"), rect.get("y")) for rect in root.iter(f"{SVG}rect") if rect.get("fill", "").startswith("url(")
    }
    assert negative <= hatched
    assert not positive & hatched
    [pattern] = root.iter(f"{SVG}pattern")
    assert all(
        rect.get("fill") == f"url(#{pattern.get('id')})"
        for rect in root.iter(f"{SVG}rect")
        if rect.get("fill", "").startswith("url(")
    )


@every_map
def test_cells_with_zero_in_their_interval_have_a_dot(found: PatchMap) -> None:
    dots = list(parse(found).iter(f"{SVG}circle"))
    unclear = found.cells.defined & ~found.clear[0]
    assert len(dots) == unclear.sum() + 1  # and the one of the legend


def of_prompts(found: PatchMap, n: int) -> PatchMap:
    """The map of the first n prompts."""
    cells = found.cells
    arrays = {name: getattr(cells, name)[..., :n].copy() for name in ("per_example", "clean", "corrupt")}
    return PatchMap.of(replace(cells, **arrays, groups=cells.groups[:n]), seed=0)


def test_of_too_few_prompts_no_cell_has_a_dot_and_the_picture_says_why() -> None:
    root = parse(of_prompts(MAPS["3 x 3"], 5))
    assert not list(root.iter(f"{SVG}circle"))
    texts = " ".join(element.text or "" for element in root.iter(f"{SVG}text"))
    assert "No cell is marked: intervals over fewer than 6 prompts tell no effect from chance" in texts
    assert "the 95 % interval contains 0" not in texts
    assert list(parse(of_prompts(MAPS["3 x 3"], 6)).iter(f"{SVG}circle"))


def test_caption_tells_the_total_effect_with_its_interval() -> None:
    found = MAPS["3 x 3"]
    total = found.total("logit_diff")
    assert total is not None
    texts = " ".join(element.text or "" for element in parse(found).iter(f"{SVG}text"))
    assert f"total effect +{total.effect:.3g} [+{total.low:.3g}, +{total.high:.3g}]" in texts
    alone = replace(found.cells, clean=found.cells.corrupt.copy(), has_other_run=False)
    texts = " ".join(element.text or "" for element in parse(PatchMap.of(alone, seed=0)).iter(f"{SVG}text"))
    assert "the prompts have no corrupt run to compare with" in texts
    assert "total effect" not in texts


def test_heads_are_a_grid_of_layer_by_head_with_a_panel_for_each_place() -> None:
    texts = [element.text for element in parse(MAPS["heads by role"]).iter(f"{SVG}text")]
    assert [text for text in texts if (text or "").startswith("place ")] == [f"place {r}" for r in ROLES.labels]
    assert (texts.count("layer"), texts.count("head")) == (4, 4)


def test_what_heads_tell_the_logits_is_a_grid_too() -> None:
    root = parse(MAPS["heads to the logits"])
    found = MAPS["heads to the logits"]
    assert {"layer", "head"} <= {element.text for element in root.iter(f"{SVG}text")}
    [title] = [title for title in cells(root) if title.startswith("layer 2, head 5:")]
    at = found.axes[1].labels.index("2.5")
    assert effects([title]) == pytest.approx([found.effect[0, at, 0]], rel=1e-2)


def test_colour_bar_names_the_unit_and_both_ends() -> None:
    found = MAPS["3 x 3"]
    texts = [element.text or "" for element in parse(found).iter(f"{SVG}text")]
    assert any("effect (logit_diff, logits)" in text for text in texts)
    largest = float(np.abs(found.effect).max())
    assert {f"+{largest:.3g}", f"\N{MINUS SIGN}{largest:.3g}"} <= set(texts)


def test_map_of_no_effect_is_drawn() -> None:
    made = patch_map()
    still = replace(made.cells, per_example=np.broadcast_to(made.cells.corrupt[:, None, None], (1, 2, 2, 8)).copy())
    root = parse(PatchMap.of(still, seed=0))
    assert len(cells(root)) == 3
    assert not re.search("nan", draw_map(PatchMap.of(still, seed=0)))


def test_picture_too_large_for_tooltips_says_where_the_numbers_are() -> None:
    found = make("path_patching", Axis("sender", heads(16, 12)), Axis("receiver", heads(16, 12)))
    assert found.effect.size > MAX_TITLES
    root = parse(found)
    assert not cells(root)
    assert not list(root.iter(f"{SVG}circle"))  # dots would be all that is seen
    assert any("too small to mark" in (element.text or "") for element in root.iter(f"{SVG}text"))
    assert any("tooltips" in (element.text or "") for element in root.iter(f"{SVG}text"))


def test_strange_labels_stay_text() -> None:
    odd = make("activation_patching", Axis("layer", ("0",)), Axis("place", ("<b>&", "\x00", "日本語")))
    assert "<b>&" in [element.text for element in parse(odd).iter(f"{SVG}text")]


def test_notebook_shows_the_same_picture() -> None:
    found = MAPS["3 x 3"]
    assert found._repr_svg_() == draw_map(found) == draw_map(found)


def test_drawing_a_map_imports_no_torch() -> None:
    code = "import sys, acdc.drawing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
