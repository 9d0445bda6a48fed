"""A circuit's card: that every part stands on it, with its numbers, in Markdown and as a page."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from acdc.card import also, card_of, conditions_of, in_words, to_markdown, to_page
from acdc.drawing import draw_circuit
from acdc.report import Completeness, Elsewhere, GroupFigures, HypothesisTest, KnockOut, Minimality, Removal
from acdc.spec import parse_job

sys.path.insert(0, str(Path(__file__).parent / "drawing"))
from drawing_samples import TOY, make_circuit, make_point, make_report

HOSTILE = '<img src=x onerror=alert(1)> [a](javascript:b) | "quoted" & more'


def full_report():
    held_out = make_point("held_out", "signed", 0.1, 0.91, 0.2)
    knock_out = KnockOut("greedy", ("0.1", "mlp0"), 0.5, 2.5, 0.1, 0.7)
    removals = (
        Removal("embed->0.0.v", 1.25, 0.5, 0.25, 1.25, 100, False),
        Removal("0.0->logits", -0.125, -0.05, -0.01, 0.125, 3, True),
    )
    return replace(
        make_report(),
        kept=(replace(held_out, split="search"), replace(held_out, kl_quantiles=(0, 0.1, 0.2, 0.3, 0.4))),
        elsewhere=(Elsewhere("zero", 3.0, -2.0, 1.5, replace(held_out, f=0.123)),),
        groups=(GroupFigures("held_out", HOSTILE, 8, 1.0, 2.0, 0.77, 0.3, 0.875),),
        completeness=Completeness(replace(held_out, f=0.045), (knock_out,)),
        minimality=Minimality(5, removals, 100),
        tests=(HypothesisTest("sufficiency", 98.0, 100, 0.0024, True, "nearer than nine in ten"),),
    )


@pytest.fixture
def circuit():
    return replace(make_circuit(TOY, 20), report=full_report())


EXPECTED = (
    "chosen by rule signed",
    "These numbers hold for: edges; q, k and v of each head apart",
    "positions all",
    "kept edges carry the clean run",
    "ablation resample",
    "metric logit_diff",
    "Under other ablations",
    "0.123",
    "f on the held-out groups, each in its own scale: 0.77 to 0.77",
    "The model without the circuit, held out: f 0.04",
    "1 sets of the circuit's nodes",
    "0.6",
    "Each of 2 edges drawn from its 5 was removed",
    "1 of them cost the metric nothing or less",
    "1 are superfluous",
    "nearer than nine in ten",
    "0.0024",
    "Stability under resampling",
    "parity",
)


def test_every_part_stands_on_the_card_in_markdown(circuit):
    text = to_markdown(card_of("a title", circuit, "a note")).replace("\\", "")
    assert [part for part in (*EXPECTED, "a title", "a note") if part not in text] == []


def test_the_page_has_every_part_and_its_pictures(circuit):
    page = to_page(card_of("a title", circuit), draw_circuit(circuit))
    text = re.sub(r"<[^>]+>", "", page)
    assert [part for part in EXPECTED if part not in text.replace("&#x27;", "'")] == []
    assert page.count("<svg") == 3  # the circuit, its curve, what removals cost
    ET.fromstring(
        page.replace("<!doctype html>", "")
        .replace('charset="utf-8">', 'charset="utf-8"/>')
        .replace('initial-scale=1">', 'initial-scale=1"/>')
    )  # every tag is closed
    assert not re.search(r"<(script|iframe|link|img)\b|\bhttps?://(?!www\.w3\.org)", page)


def test_what_people_wrote_is_shown_as_text(circuit):
    card = card_of(HOSTILE, circuit, HOSTILE)
    page, text = to_page(card, ""), to_markdown(card)
    assert "<img" not in page
    assert page.count("&lt;img src=x") == 4  # title twice, note, group
    assert not re.search(r"(?<!\\)<img|(?<!\\)\[a\]", text)
    rows = [line for line in text.splitlines() if "onerror" in line and line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [9]  # its own bar ends no cell


def test_a_circuit_that_was_not_evaluated_says_so(circuit):
    card = card_of("bare", replace(circuit, report=None))
    assert "Not evaluated yet." in to_markdown(card)
    assert "Not evaluated yet." in to_page(card, draw_circuit(circuit))


def test_a_later_evaluation_stands_below_with_its_own_conditions(circuit):
    spec = parse_job({"ablation": {"kind": "mean"}, "metric": "prob_diff"}).model_dump(mode="json")
    card = also(card_of("t", circuit), "Evaluation evl_1", f"{conditions_of(spec)}.", full_report())
    text = to_markdown(card).replace("\\", "")
    assert "ablation mean per role; metric prob_diff; task ioi" in text
    assert text.index("## Evaluation evl_1: Minimality") > text.index("## Minimality")


def test_conditions_name_the_roles_that_edges_are_split_by():
    said = {
        positions: conditions_of(parse_job({"positions": positions}).model_dump(mode="json"))
        for positions in ("all", "roles", "S1,S2")
    }
    assert "positions" not in said["all"]
    assert said["roles"].endswith("; positions roles")
    assert said["S1,S2"].endswith("; positions S1, S2")


def test_the_costliest_edges_come_first_whatever_the_sign_and_the_cheapest_of_many_are_left_out(circuit):
    """A report has them in the graph's order."""
    costs = [0.01 * (i + 1) * (-1) ** i for i in range(20)]
    removals = tuple(Removal(f"embed->0.{i}.v", cost, cost, cost, abs(cost)) for i, cost in enumerate(costs))
    report = replace(full_report(), minimality=Minimality(20, removals))
    text = to_markdown(card_of("t", replace(circuit, report=report))).replace("\\", "")
    assert re.findall(r"^\| embed->0\.(\d+)\.v", text, re.MULTILINE) == [str(i) for i in range(19, 4, -1)]


def test_more_random_circuits_are_advised_only_where_too_few_were_asked_for(circuit):
    """Where enough were drawn and could not be used, the test's own row says why."""

    def text(*tests):
        report = replace(full_report(), tests=tests)
        return to_markdown(card_of("t", replace(circuit, report=report)))

    equivalence = HypothesisTest("equivalence", 0.5, 8, 0.9, False, "no evidence")
    untold = HypothesisTest("sufficiency", None, 0, None, None, "cannot be told: all are the circuit itself")
    assert "ask with evaluation.tests of 100" in text(equivalence)
    assert "ask with evaluation.tests" not in text(equivalence, untold)
    assert "all are the circuit itself" in text(equivalence, untold)


def test_cells_are_written_for_people():
    values = (None, True, 1234567, 0.123456, 1e-9, (), ("a", 2), {"k": 1.5}, "text")
    assert [in_words(value) for value in values] == [
        "-", "yes", "1,234,567", "0.1235", "1e-09", "none", "a, 2", "k 1.5", "text",
    ]  # fmt: skip
