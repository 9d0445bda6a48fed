"""A challenge's picture, read back from its SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest
from test_drawing_circuit import SVG, overlap, text_boxes

from acdc.challenge import Challenge, Control, Survivor, Tried
from acdc.drawing import draw_challenge

FULL = Challenge(
    40,
    (
        Tried("as it was found", "own", 1.01, 0.1, 1.0, 64, 40, 1.0, 1.01),
        Tried("ablation zero", "one", -3.0, 0.9, 0.5, 64, 38, 0.21, 0.4),
        Tried("corruption s2_io_flip <b>", "one", 7.0, 0.2, 1.0, 64, 40, 0.7, 1.0),
        Tried("metric prob_diff", "one", skipped="no wrong answers"),
        Tried("group after", "group", 0.8, 0.1, 1.0, 8),
        Tried("zero, kl_divergence", "factorial", 1.21, 0.3, 0.9, 64, 30, 0.3, 0.9),
    ),
    (
        Control("matched random circuits", tuple(i / 20 for i in range(20)), (40,) * 20, 0.02),
        Control("model with random weights", skipped="out of memory"),
    ),
    (Survivor("embed->0.0.v", 1.0), Survivor("0.0->logits", 0.4)),
    12,
    1,
)
CASES = {
    "full": FULL,
    "no controls": Challenge(40, FULL.tried),
    "nothing": Challenge(0, ()),
    "many": Challenge(9, tuple(Tried(f"setting {i}", "one", i / 30) for i in range(60))),
}


@pytest.mark.parametrize("challenge", CASES.values(), ids=CASES.keys())
def test_labels_are_legible_and_everything_lies_inside(challenge):
    svg = draw_challenge(challenge)
    root = ET.fromstring(svg)
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    boxes = text_boxes(root)
    assert [(a, b) for (a, box_a), (b, box_b) in combinations(boxes, 2) if overlap(box_a, box_b)] == []
    assert all(0 <= x <= width and 0 <= y <= height for _, (a, b, c, d) in boxes for x, y in ((a, b), (c, d)))
    for mark in root.iter(f"{SVG}circle"):
        assert 0 <= float(mark.get("cx")) <= width
    assert not re.search(r"\b(nan|inf|None)\b", svg)


def marks():
    root = ET.fromstring(draw_challenge(FULL))
    found = {}
    for group in root.iter(f"{SVG}g"):
        name, is_row, _ = group.find(f"{SVG}title").text.rpartition(": f ")
        if is_row:
            found.setdefault(name, []).append(group[1])
    return found


def test_what_holds_is_filled_and_what_fails_is_open():
    found = marks()
    filled = {name for name, circles in found.items() if circles[0].get("fill") != "#ffffff"}
    assert filled == {"as it was found", "group after"}
    assert [c.get("fill") != "#ffffff" for c in found["matched random circuits"]] == [i >= 16 for i in range(20)]


def test_a_control_that_fails_looks_unlike_a_setting_that_fails():
    """It should fail: red is what should not be."""
    found = marks()
    settings, controls = found["ablation zero"], found["matched random circuits"]
    assert {mark.tag for mark in settings} == {f"{SVG}circle"}
    assert {mark.tag for mark in controls} == {f"{SVG}path"}
    red = settings[0].get("stroke")
    assert [mark.get("stroke") == red for mark in controls] == [i >= 16 for i in range(20)]


@pytest.mark.parametrize(("case", "n"), [("full", 4), ("no controls", 2)])
def test_a_legend_tells_the_marks_that_can_be_there(case, n):
    texts = [text.text for text in ET.fromstring(draw_challenge(CASES[case])).iter(f"{SVG}text")]
    assert texts[-n:] == ["holds", "fails", "control that fails, as it should", "control that holds"][:n]


def test_marks_stand_in_the_order_of_f_and_stop_at_the_rim():
    x = {name: float(found[0].get("cx")) for name, found in marks().items() if found[0].tag == f"{SVG}circle"}
    assert x["ablation zero"] < x["group after"] < x["as it was found"] < x["zero, kl_divergence"]
    assert x["corruption s2_io_flip <b>"] - x["ablation zero"] == pytest.approx(380, abs=0.2)


def test_what_could_not_be_told_has_no_mark_and_says_so():
    assert "metric prob_diff" not in marks()
    texts = [text.text for text in ET.fromstring(draw_challenge(FULL)).iter(f"{SVG}text")]
    assert texts.count("not told") == 2
    assert "4 of 20 hold" in texts


def test_the_answer_in_a_sentence():
    assert FULL.sentence == (
        "f in [0.8, 1.2] in 2 of 5 settings (1 more could not be told); fails under ablation zero, corruption "
        "s2_io_flip <b>; 1 of 40 edges survive in at least 90 % of 12 searches; 4 of 20 controls hold"
    )
    assert CASES["no controls"].sentence.endswith("corruption s2_io_flip <b>")
    drawn = [Tried(f"prompts drawn again, {i}", "one", f, factor="resample") for i, f in enumerate((0.5, 1.0, 3.0))]
    weak = Challenge(3, (Tried("as it was found", "own", 0.37), *drawn))
    assert weak.sentence == (
        "f in [0.8, 1.2] in 1 of 4 settings; it does not hold in its own setting (f 0.37); fails under 2 of 3 draws of "
        "the same prompts"
    )
    withheld = Tried("as it was found", "own", skipped="m(M) - m(empty) is too small to divide by")
    assert Challenge(3, (withheld, Tried("ablation zero", "one", 1.0))).sentence == (
        "f in [0.8, 1.2] in 1 of 1 setting (1 more could not be told); in its own setting it could not be told: m(M) "
        "- m(empty) is too small to divide by; no single change makes it fail"
    )
    assert Challenge(3, FULL.tried[:1]).sentence == "f in [0.8, 1.2] in 1 of 1 setting", "nothing was changed"
    unchanged = (Tried("as it was found", "own", 1.0), Tried("ablation zero", "one", 1.1))
    assert Challenge(3, unchanged).sentence.endswith("2 of 2 settings; no single change makes it fail")
    few = Challenge(3, unchanged, edges=FULL.edges, n_searches=9)
    assert "9 searches are too few to tell what survives" in few.sentence
    one = Challenge(3, unchanged, edges=FULL.edges, n_searches=1)
    assert "1 search is too few to tell what survives" in one.sentence


def test_controls_whose_f_is_withheld_are_not_counted_as_failing():
    silent = Control("answers", (None, None), (3, 3), 0.1, "m(M) - m(empty) is too small to divide by")
    told = Control("random", (0.1, None, 1.0), (3, 3, 3), 0.1)
    assert (silent.told, silent.n_hold) == ((), 0)
    assert Challenge(3, FULL.tried[:1], (silent,)).sentence == "f in [0.8, 1.2] in 1 of 1 setting"
    assert Challenge(3, FULL.tried[:1], (silent, told)).sentence.endswith("1 of 2 controls hold")


def test_a_challenge_survives_its_json():
    assert Challenge.from_dict(FULL.to_dict()) == FULL
