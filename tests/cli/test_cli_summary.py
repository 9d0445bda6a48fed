"""The line on stability in what `acdc run`, `submit --wait`, `demo` and `circuits show` print."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from store_samples import GRAPH, circuit

from acdc.cli.summary import heads_of, summarise, summary_data
from acdc.graph import Graph, GraphShape
from acdc.report import Stability


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
    assert any("heads      2 kept, with 0 MLPs: 0.1 1.2" in part for part in summarise(one) if isinstance(part, str))


def test_a_summary_tells_what_the_search_did() -> None:
    one = circuit()
    facts = {"edges_tested": 25858.0, "acceptance_rate": 0.9371, "row_error": 6.3e-08}
    run = replace(one.provenance.run, facts=facts)
    one = replace(one, provenance=replace(one.provenance, run=run))
    said = [part for part in summarise(one) if isinstance(part, str)]
    assert "the search edges tested 25,858; acceptance rate 0.9371; row error 6.3e-08" in said
