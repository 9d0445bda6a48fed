"""The smallest circuit that reaches a faithfulness, on a model whose f is the share of weight kept."""

from __future__ import annotations

import numpy as np
import pytest
from analytic_measure import MEDIUM, SMALL, Additive, split_of
from test_judging import GRID, Notes, case

from acdc.errors import SpecError
from acdc.evaluation.judging import Plan, judge, n_evaluations
from acdc.selection import rank
from acdc.spec import parse_job


def reached(graph, wanted, rule="signed", share=1.0, progress=None):
    scores, search, held_out = case(graph, share=share)
    plan = Plan(GRID, rules=(rule,), k_star_rules=(rule,), random_circuits=0, band_circuits=0, reach=wanted)
    result = judge(
        graph, scores, graph.legal, search=search, held_out=held_out, plan=plan, progress=progress or Notes()
    )
    return scores, result, search, plan


def f_of(graph, scores, n, rule="signed"):
    mask = rank(graph, scores, graph.legal, rule).select(n).mask
    return scores[mask].sum(dtype=np.float64) / scores.sum(dtype=np.float64)


@pytest.mark.parametrize("rule", ["signed", "absolute", "greedy"])
@pytest.mark.parametrize("wanted", [0.1, 0.5, 0.9, 0.97])
def test_on_a_small_graph_it_is_the_smallest_of_all(rule, wanted):
    scores, result, *_ = reached(SMALL, wanted, rule)
    smallest = next(n for n in range(SMALL.n_edges + 1) if f_of(SMALL, scores, n, rule) >= wanted)
    assert result.kept.selected.asked_for == smallest
    assert result.kept.selected.rule == rule
    assert result.report.k_star is None


def test_where_no_rule_was_given_the_smallest_by_any_rule_is_kept():
    scores, search, held_out = case(MEDIUM)
    signs = np.where(np.random.default_rng(1).random(scores.shape) < 0.5, -1, 1).astype(np.float32)
    plan = Plan(GRID, rules=("signed", "absolute"), random_circuits=0, band_circuits=0, reach=0.5)
    splits = {"search": search, "held_out": held_out}  # an edge matters by its size, whatever the sign it was given
    result = judge(MEDIUM, scores * signs, MEDIUM.legal, **splits, plan=plan, progress=Notes())
    assert result.kept.selected.rule == "absolute"
    assert sum(search.measure.calls) <= n_evaluations(MEDIUM, plan, with_k_star=True).search


@pytest.mark.parametrize("wanted", [0.05, 0.3, 0.77, 0.99])
def test_on_a_large_graph_a_slightly_smaller_one_does_not_reach_it(wanted):
    scores, result, search, plan = reached(MEDIUM, wanted)
    n = result.kept.selected.asked_for
    assert f_of(MEDIUM, scores, n) >= wanted
    assert f_of(MEDIUM, scores, int(0.93 * n)) < wanted
    assert sum(search.measure.calls) <= n_evaluations(MEDIUM, plan, with_k_star=True).search


def test_where_it_cannot_be_told_k_star_is_looked_for_and_that_is_said():
    progress = Notes()
    reached(SMALL, 0.5, share=0.0, progress=progress)
    assert any("no size tried has f of 0.5" in line for line in progress.lines)
    assert any("k* cannot be told; keeping 2 %" in line for line in progress.lines)


def test_a_metric_that_overshoots_is_still_reached_at_the_first_size():
    scores, search, held_out = case(MEDIUM)
    overshooting = Additive(scores.astype(np.float64), search.measure.shares, 1.0, g=lambda kept: 2 * kept - kept**2)
    plan = Plan(GRID, rules=("signed",), random_circuits=0, band_circuits=0, reach=0.5)
    kept = judge(
        MEDIUM,
        scores,
        MEDIUM.legal,
        search=split_of(overshooting, "search"),
        held_out=held_out,
        plan=plan,
        progress=Notes(),
    ).kept
    now, smaller = (f_of(MEDIUM, scores, n) for n in (kept.selected.asked_for, int(0.93 * kept.selected.asked_for)))
    assert 2 * now - now**2 >= 0.5 > 2 * smaller - smaller**2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"selection": {"size": 3, "faithfulness": 0.5}}, "either `size` or `faithfulness`"),
        ({"selection": {"faithfulness": 1.5}}, "less than or equal to 1"),
        ({"method": "acdc", "selection": {"faithfulness": 0.5}}, "several `thresholds`"),
        ({"kind": "evaluate", "hypothesis": {"nodes": ["0.0"]}, "selection": {"faithfulness": 0.5}}, "leave it out"),
        (
            {"kind": "evaluate", "circuit": "c", "edit": {"add_nodes": ["0.0"]}, "selection": {"faithfulness": 0.5}},
            "leave it out",
        ),
    ],
)
def test_what_makes_no_sense_with_a_faithfulness_is_refused(data, said):
    with pytest.raises(SpecError) as error:
        parse_job(data)
    assert said in " ".join(fault.message for fault in error.value.faults)


def test_acdc_over_several_thresholds_is_a_ranking_that_can_be_cut():
    spec = parse_job({"method": {"name": "acdc", "thresholds": [0.1, 0.01]}, "selection": {"faithfulness": 0.5}})
    assert spec.selection.faithfulness == 0.5
