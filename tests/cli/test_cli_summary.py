"""What `acdc run`, `submit --wait`, `demo` and `circuits show` print of a circuit."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from store_samples import GRAPH, circuit

from acdc.card import heads_of
from acdc.circuit import Circuit, Selected
from acdc.cli.summary import summarise, summary_data
from acdc.graph import Graph, GraphShape
from acdc.report import Areas, Band, Stability


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            Stability("unstable", "", 0.706, 0.8, 200, 64, "example", 64, 1200, 3),
            "unstable: mean Jaccard 0.71 over 200 resamples of 64 prompts, 0.80 with the circuit itself; more than "
            "half of them have 1,200 of its edges and 3 others",
        ),
        (
            Stability("stable", "", 0.9, 0.95, 200, 64, "group", 12, 1200, 3, 0.852, (0.8, 0.899)),
            "stable: mean Jaccard 0.90 over 200 resamples of 12 groups (64 prompts), 0.95 with the circuit itself; "
            "more than half of them have 1,200 of its edges and 3 others; circuits from disjoint halves of the groups "
            "overlap by 0.85 (95 % interval 0.80 to 0.90)",
        ),
        (
            Stability("no verdict", "8 search prompts are fewer than 32", 1.0, 1.0, 200, 8, "example", 8, 5, 0),
            "no verdict (8 search prompts are fewer than 32): mean Jaccard 1.00 over 200 resamples of 8 prompts",
        ),
        (Stability("not measured", "too little memory"), "not measured: too little memory"),
        (Stability(), "not measured: its report is from before it was"),
    ],
)
def test_a_summary_says_whether_the_circuit_stays_when_prompts_are_drawn_again(found: Stability, said: str) -> None:
    one = circuit()
    assert one.report is not None
    one = replace(one, report=replace(one.report, stability=found))
    text = io.StringIO()
    console = Console(file=text, width=400)
    for part in summarise(one):
        console.print(part)
    assert f"stability  {said}" in text.getvalue()
    assert summary_data(one)["report"]["stability"]["verdict"] == found.verdict


def test_a_summary_says_that_edges_are_split_by_role() -> None:
    whole, graph = circuit(), Graph(GRAPH.shape.split_by(("S2",)))
    split = circuit(("embed->mlp0@S2", "mlp0->1.0.v@S2", "1.0->logits"), graph=graph)
    lines = {one: next(part for part in summarise(one) if isinstance(part, str)) for one in (whole, split)}
    assert f"kept       3 of {graph.n_edges:,} edges split by role (" in lines[split]
    assert f"kept       5 of {whole.graph.n_edges:,} edges (" in lines[whole]
    assert summary_data(whole)["positions"] == "all"


@pytest.mark.parametrize("shares", [False, True])
def test_the_heads_told_are_those_that_send_on_a_kept_path(shares: bool) -> None:
    """Not those that share a key or value, or a norm, with one that does."""
    graph = Graph(GraphShape(n_layers=2, n_heads=4, n_kv_heads=1, heads_share_norm=shares))
    one = circuit(("embed->0.0.v", "0.1->1.0.k", "0.1->1.2.q", "1.2->logits"), graph=graph)
    assert np.array_equal(graph.connected(one.kept), one.kept)
    assert heads_of(one) == summary_data(one)["heads"] == ["0.1", "1.2"]
    assert any("heads      2 heads and 0 MLPs: 0.1 1.2" in part for part in summarise(one) if isinstance(part, str))


def test_a_summary_tells_what_the_search_did() -> None:
    one = circuit()
    facts = {"edges_tested": 25858.0, "acceptance_rate": 0.9371, "row_error": 6.3e-08}
    run = replace(one.provenance.run, facts=facts)
    one = replace(one, provenance=replace(one.provenance, run=run))
    said = [part for part in summarise(one) if isinstance(part, str)]
    assert "the search edges tested 25,858; acceptance rate 0.9371; row error 6.3e-08" in said


def said_of(one: Circuit) -> str:
    text = io.StringIO()
    console = Console(file=text, width=400)
    for part in summarise(one):
        console.print(part)
    return text.getvalue()


def test_an_edited_circuit_that_is_empty_says_both() -> None:
    one = circuit()
    spec = {"kind": "evaluate", "circuit": "cir_1", "edit": {"remove_nodes": ["mlp0"], "add_edges": []}}
    made = replace(one.provenance, run=replace(one.provenance.run, spec=spec))
    kept, selected = np.zeros_like(one.kept), Selected("edited", 3, 0)
    said = said_of(replace(one, kept=kept, selected=selected, provenance=made))
    assert "origin     Circuit cir_1, edited: removed mlp0." in said
    assert "EMPTY      the circuit is empty: none of 3 edges asked for lies on a path" in said
    assert "origin" not in said_of(one)
    assert "EMPTY" not in said_of(one)


def test_the_summary_says_what_areas_are_over_and_what_random_circuits_stand_beside() -> None:
    one = circuit()
    assert one.report is not None
    points = tuple(replace(p, fraction=fraction) for p in one.report.points for fraction in (0.01, 0.1))
    own = Band("signed", 0.0123, 5, 2, (-1e-9, 0.2), (1.0, 0.9))
    report = replace(
        one.report,
        points=points,
        areas=(Areas("held_out", "signed", 0.05, 0.04, 0.6, 0.4),),
        bands=(replace(own, fraction=0.1),),
        kept_random=own,
    )
    lines = said_of(replace(one, report=report)).splitlines()
    assert "areas over 1 % to 10 % of the edges" in [line.strip() for line in lines]
    assert any("f = 1 at every size gives a CPR of 0.090" in line for line in lines)
    assert any("do not compare with published ones" in line for line in lines)
    assert any(line.startswith("the circuit ") and "0.100 (0.000 to 0.200)" in line for line in lines)
    assert any(line.startswith("the curve at 10 % ") for line in lines)


def test_the_summary_counts_nodes_and_says_what_the_verdict_is_drawn_over() -> None:
    said = said_of(circuit())
    assert "heads      2 heads and 1 MLP: 0.0 1.1" in said
    assert "           the interval is drawn over prompts, as there are fewer than ten templates" in said
