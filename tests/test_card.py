"""A circuit's card: that every part stands on it, with its numbers, in Markdown and as a page."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import fields, replace
from html import escape
from pathlib import Path

import numpy as np
import pytest

from acdc.card import (
    Table,
    also,
    card_of,
    challenged,
    conditions_of,
    in_words,
    nodes_in_words,
    origin_of,
    shared_inputs,
    to_markdown,
    to_page,
)
from acdc.card.edges import MOST_EDGES
from acdc.card.origin import CHOICES, MODEL, PROMPTS, RUN
from acdc.challenge import Challenge, Survivor, Tried
from acdc.circuit import Choices, ModelCard, Run, Selected, TaskCard
from acdc.drawing import draw_circuit
from acdc.report import Completeness, Elsewhere, GroupFigures, HypothesisTest, KnockOut, Minimality, Removal, Stability
from acdc.spec import parse_job

sys.path.insert(0, str(Path(__file__).parent / "drawing"))
from drawing_samples import SMOLLM2, TOY, make_circuit, make_point, make_report

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
    "these numbers hold for",
    "ioi on SmolLM2-135M-Instruct; edges; q, k and v of each head apart",
    "positions all",
    "kept edges carry the clean run",
    "ablation resample",
    "metric logit_diff",
    "Under other ablations",
    "0.123",
    "f on the held-out groups, each in its own scale: 0.77 to 0.77",
    "The model without the circuit, held out: f 0.04",
    "1 set of the circuit's nodes was cut",
    "0.6",
    "Each of 2 edges drawn from its 5 was removed",
    "1 of them cost the metric nothing or less",
    "Superfluous: 1.",
    "nearer than nine in ten",
    "0.002",
    "Stability under resampling",
    "parity",
)


def test_every_part_stands_on_the_card_in_markdown(circuit):
    text = to_markdown(card_of(circuit, "a title", "a note")).replace("\\", "")
    assert [part for part in (*EXPECTED, "a title", "a note") if part not in text] == []


def test_the_page_has_every_part_and_its_pictures(circuit):
    page = to_page(card_of(circuit, "a title"), draw_circuit(circuit))
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
    card = card_of(circuit, HOSTILE, HOSTILE)
    page, text = to_page(card, ""), to_markdown(card)
    assert "<img" not in page
    assert page.count("&lt;img src=x") == 4  # title twice, note, group
    assert not re.search(r"(?<!\\)<img|(?<!\\)\[a\]", text)
    rows = [line for line in text.splitlines() if "onerror" in line and line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [9]  # its own bar ends no cell


def test_a_circuit_that_was_not_evaluated_says_so(circuit):
    card = card_of(replace(circuit, report=None))
    assert "Not evaluated yet." in to_markdown(card)
    assert "Not evaluated yet." in to_page(card, draw_circuit(circuit))


def test_a_later_evaluation_stands_below_with_its_own_conditions(circuit):
    spec = parse_job({"ablation": {"kind": "mean"}, "metric": "prob_diff"}).model_dump(mode="json")
    card = also(card_of(circuit), "Evaluation evl_1", f"{conditions_of(spec)}.", full_report())
    text = to_markdown(card).replace("\\", "")
    assert "ablation mean per role; metric prob_diff; task ioi" in text
    assert text.count("evl_1") == 1
    below = text[text.index("\n## Evaluation evl_1") :]
    assert "\n### Minimality" in below
    assert "\n## " not in below[1:]


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
    text = to_markdown(card_of(replace(circuit, report=report))).replace("\\", "")
    assert re.findall(r"^\| embed->0\.(\d+)\.v", text, re.MULTILINE) == [str(i) for i in range(19, 4, -1)]


def test_more_random_circuits_are_advised_only_where_too_few_were_asked_for(circuit):
    """Where enough were drawn and could not be used, the test's own row says why."""

    def text(*tests):
        report = replace(full_report(), tests=tests)
        return to_markdown(card_of(replace(circuit, report=report)))

    equivalence = HypothesisTest("equivalence", 0.5, 8, 0.9, False, "no evidence")
    untold = HypothesisTest("sufficiency", None, 0, None, None, "cannot be told: all are the circuit itself")
    assert "ask with evaluation.tests of 100" in text(equivalence)
    assert "ask with evaluation.tests" not in text(equivalence, untold)
    assert "all are the circuit itself" in text(equivalence, untold)


def as_text(card):
    return to_markdown(card).replace("\\", "")


def rows_of(section):
    return [dict(zip(section.table.columns, row, strict=True)) for row in section.table.written]


def part(card, title):
    return next(section for section in card.all_sections if section.title.startswith(title))


def test_the_verdicts_stand_before_the_picture(circuit):
    page = to_page(card_of(circuit), "<svg>the picture</svg>")
    summary = page[: page.index("the picture")]
    told = [row["value"] for row in rows_of(card_of(circuit).summary)]
    assert told[0] == f"{circuit.n_edges} of {circuit.graph.n_edges:,}; {nodes_in_words(circuit)}"
    assert told[1:4] == ["0.91", "0.20", "0.90, where chance is 0.50"]
    assert all(escape(one) in summary for one in told)
    verdicts = {row["what"]: row["value"] for row in rows_of(card_of(circuit).summary)}
    assert verdicts["behaviour"].startswith("shown, its interval over prompts")
    assert verdicts["stability"] == "not measured (its report is from before it was)"
    assert verdicts["k*"].startswith("met with")


def test_a_card_without_a_name_is_titled_as_its_picture(circuit):
    card = card_of(circuit, id="cir_1")
    assert card.title == "ioi circuit of SmolLM2-135M-Instruct"
    assert card.title in draw_circuit(circuit)
    assert card.lead[0].startswith("Circuit cir_1: ")
    named = card_of(circuit, "mine", id="cir_1")
    assert (named.title, named.lead[0]) == ("mine", f"{card.title}.")


@pytest.mark.parametrize("unit", ["example", "group"])
def test_verdicts_say_what_was_drawn_for_them(circuit, unit):
    report = full_report()
    stability = Stability("stable", "", 0.9, 0.9, 200, 40, unit, 20, 5, 0)
    report = replace(report, behaviour=replace(report.behaviour, clustered_by=unit), stability=stability)
    card = card_of(replace(circuit, report=report))
    said = "over templates" if unit == "group" else "over prompts"
    for title in ("Behaviour", "Stability"):
        text = " ".join(part(card, title).text)
        assert said in text
        assert ("nothing is said of other templates" in text) == (unit == "example")


def test_the_strongest_edges_are_listed_and_the_rest_counted():
    circuit = make_circuit(TOY, 50)
    section = card_of(circuit).edges
    listed = rows_of(section)
    assert [row["edge"] for row in listed] == [circuit.graph.edge_name(edge) for edge in circuit.edges()[:MOST_EDGES]]
    assert f"{circuit.n_edges - MOST_EDGES} more in the file" in section.text[0]
    sizes = [abs(float(row["#score"])) for row in listed]
    assert sizes == sorted(sizes, reverse=True)
    assert len({len(row["#score"].partition(".")[2]) for row in listed}) == 1, "as many digits after the point"
    assert "more in the file" not in " ".join(card_of(make_circuit(TOY, 10)).edges.text)


def test_edges_without_scores_and_without_resamples_have_no_column_for_them():
    circuit = make_circuit(TOY, 10)
    none = np.zeros_like(circuit.scores)
    by_hand = replace(circuit, scores=none, tested=np.zeros_like(circuit.tested))
    assert card_of(by_hand).edges.table.columns == ("#rank", "edge")
    assert "None has a score" in card_of(by_hand).edges.text[0]
    seen = replace(circuit, inclusion=circuit.kept.astype(np.float32))
    assert card_of(seen).edges.table.columns == ("#rank", "edge", "#score", "#share of resamples")


def test_shared_key_and_value_inputs_say_which_heads_read_them():
    shared = make_circuit(SMOLLM2, 200)
    card = card_of(shared)
    assert "numbered by key/value head, 3 in a layer of 9 heads" in card.edges.text[1]
    for row in rows_of(card.edges):
        reader = row["edge"].partition("->")[2]
        heads = row["read by"].split()
        if reader[-2:] in (".k", ".v"):
            layer, head = map(int, reader[:-2].split("."))
            assert heads == [f"{layer}.{3 * head + i}" for i in range(3)]
        else:
            assert heads == ["-"]
    assert {row["read by"] for row in rows_of(card.edges)} != {"-"}
    assert shared_inputs(make_circuit(TOY, 10)) is None


def edited_circuit(circuit, **edit):
    spec = {"kind": "evaluate", "circuit": "cir_source", "edit": edit}
    made = replace(circuit.provenance, run=replace(circuit.provenance.run, spec=spec))
    report = replace(circuit.report, kept=tuple(replace(point, rule="edited") for point in circuit.report.kept))
    return replace(circuit, selected=replace(circuit.selected, rule="edited"), provenance=made, report=report)


def test_an_edited_circuit_says_what_it_was_made_of(circuit):
    card = card_of(edited_circuit(circuit, remove_nodes=["0.1", "mlp0"], add_edges=["0.0->logits"]))
    assert "Circuit cir_source, edited: removed 0.1 and mlp0; added 0.0->logits." in card.lead
    assert "none of them is this circuit" in as_text(card)
    assert (
        as_text(also(card, "Evaluation", "", edited_circuit(circuit).report)).count("none of them is this circuit") == 4
    )
    assert "none of them is this circuit" not in as_text(card_of(circuit))


def test_a_circuit_derived_in_another_way_names_its_source(circuit):
    assert "Derived from circuit cir_source." in card_of(circuit, derived_from="cir_source").lead
    resized = edited_circuit(circuit)
    resized = replace(resized, selected=circuit.selected)
    assert "Cut anew from the scores of circuit cir_source." in card_of(resized, derived_from="cir_source").lead
    assert origin_of(circuit) is None


def test_an_empty_circuit_is_called_empty(circuit):
    nothing = Selected("edited", 7, 0)
    empty = replace(edited_circuit(circuit, remove_nodes=["0.1"]), kept=np.zeros_like(circuit.kept), selected=nothing)
    card = card_of(empty)
    assert "the circuit is empty: none of 7 edges asked for lies on a path" in as_text(card)
    assert rows_of(card.summary)[0]["value"].endswith("the circuit is empty")
    assert "the circuit is empty" not in as_text(card_of(circuit))


def test_random_circuits_say_what_they_stand_beside(circuit):
    report = full_report()
    own = replace(report.bands[0], fraction=0.0123)
    beside = [row["beside"] for row in rows_of(part(card_of(replace(circuit, report=report)), "Random"))]
    assert beside[0] == "the curve at 0.1 %"
    assert "the circuit" not in beside
    with_own = card_of(replace(circuit, report=replace(report, kept_random=own)))
    assert [row["beside"] for row in rows_of(part(with_own, "Random"))] == ["the circuit", *beside]


def test_areas_say_their_range_and_that_other_sizes_do_not_compare(circuit):
    swept = part(card_of(circuit), "Areas")
    assert swept.title == "Areas over 0.1 % to 100 % of the edges"
    assert "compare" not in " ".join(swept.text)
    few = replace(circuit, report=make_report(grid=(0.01, 0.1)))
    swept = part(card_of(few), "Areas over 1 % to 10 % of the edges")
    assert "a CPR of 0.090" in swept.text[0]
    assert "do not compare with published ones" in swept.text[1]


def test_k_star_that_is_the_circuit_is_not_listed_twice(circuit):
    report = make_report()
    own = card_of(replace(circuit, report=report))
    assert part(own, "k*").table is None
    assert part(own, "k*").text[0].endswith("It is this circuit.")
    other = replace(report, kept=(replace(report.kept[0], metric=0.5),))
    assert len(part(card_of(replace(circuit, report=other)), "k*").table.rows) == 1


def test_a_set_of_nodes_that_was_drawn_twice_is_shown_once(circuit):
    same = [KnockOut(how, nodes, 0.5, 2.5, 0.1, 0.7) for how, nodes in (("random", ("a", "b")), ("greedy", ("b", "a")))]
    other = KnockOut("layer", ("a",), 0.5, 2.0, 0.1, 0.7)
    report = replace(full_report(), completeness=replace(full_report().completeness, knock_outs=(*same, other)))
    section = part(card_of(replace(circuit, report=report)), "Completeness")
    assert [(row["drawn"], row["nodes cut"]) for row in rows_of(section)] == [("random, greedy", "a b"), ("layer", "a")]
    assert section.text[1].startswith("2 sets of")


def test_columns_that_say_nothing_are_left_out():
    table = Table.of(("a", "#b", "c"), [("x", None, ""), ("y", None, "")])
    assert (table.columns, table.rows) == (("a",), (("x",), ("y",)))
    assert Table.of(("a", "#b"), [("x", None), ("y", 0.0)]).columns == ("a", "#b")
    assert Table.of(("a", "#b"), []).columns == ("a", "#b")


def test_numbers_of_a_column_have_the_same_digits_and_zero_has_no_sign():
    table = Table(("#f", "#n", "#p", "#score"), ((-4.1e-07, 1234, 1e-5, 17.2), (1.0, 1, 0.5, -0.031)))
    assert table.written == [["0.000", "1,234", "< 0.001", "17.20"], ["1.000", "1", "0.500", "-0.03"]]


def test_every_field_of_the_provenance_has_a_name():
    for names, kind in ((CHOICES, Choices), (MODEL, ModelCard), (PROMPTS, TaskCard), (RUN, Run)):
        assert {field.name for field in fields(kind)} - {"spec"} == set(names)
        assert not any("_" in name for name in names.values())


def test_a_challenge_is_told_in_sentences_without_empty_columns(circuit):
    tried = (Tried("as it was found", "own", 1.0, 0.1, 1.0, 8), Tried("ablation zero", "one", 0.3, 0.9, 0.5, 8))
    card = challenged(card_of(circuit), Challenge(9, tried, edges=(Survivor("a->b", 1.0),), n_searches=1))
    section = part(card, "Challenge")
    assert section.text[0].startswith("The circuit has f in [0.8, 1.2] in 1 of 2 settings")
    assert "1 search is too few" in section.text[0]
    assert section.table.columns == ("what differs", "setting", "#f", "holds", "#KL share", "#accuracy", "#prompts")
    assert part(card, "Edges found again").text == ("Share of 1 search that found the edge again.",)
    assert {"what": "challenge", "value": "holds in 1 of 2 settings"} in rows_of(card.summary)


def test_cells_are_written_for_people():
    values = (None, True, 1234567, 0.123456, 1e-9, (), ("a", 2), {"k": 1.5}, "text")
    assert [in_words(value) for value in values] == [
        "-", "yes", "1,234,567", "0.1235", "1e-09", "none", "a, 2", "k 1.5", "text",
    ]  # fmt: skip
