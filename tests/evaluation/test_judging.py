from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from analytic_measure import MEDIUM, SMALL, Additive, split_of

from acdc.errors import Cancelled
from acdc.evaluation.judging import Plan, judge, n_evaluations
from acdc.progress import Quiet
from acdc.report import Report
from acdc.selection import Kept, rank

GRID = (0.01, 0.05, 0.2, 0.5, 1.0)


class Notes(Quiet):
    """Keeps what it is told, and may ask to stop after a number of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.phases: list[str] = []
        self.lines: list[str] = []
        self.steps = 0
        self.total = 0
        self.stop_after = stop_after

    def phase(self, name: str, total: int) -> None:
        self.phases.append(name)
        self.total = total

    def step(self, done: int, note: str = "") -> None:
        self.steps += 1
        assert not self.total or done <= self.total
        if self.stop_after is not None and self.steps > self.stop_after:
            raise Cancelled("stopped")

    def log(self, message: str) -> None:
        self.lines.append(message)


def case(graph, seed=0, n=12, share=1.0):
    """Scores of an additive model that are its true weights, and its two splits."""
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=graph.legal.shape) ** 3 * graph.legal
    search, held_out = (Additive(weights, share * rng.uniform(0.8, 1.2, size), base=1.0) for size in (2 * n, n))
    return weights.astype(np.float32), split_of(search, "search"), split_of(held_out, "held_out")


def run(graph, scores, search, held_out, plan, kept=None, tested=None, progress=None):
    return judge(
        graph,
        scores,
        graph.legal if tested is None else tested,
        search=search,
        held_out=held_out,
        plan=plan,
        progress=progress or Notes(),
        kept=kept,
    )


def test_the_curve_of_an_additive_model_is_the_share_of_weight_kept():
    scores, search, held_out = case(MEDIUM)
    report = run(MEDIUM, scores, search, held_out, Plan(GRID, random_circuits=2, band_circuits=1)).report
    counted = Counter((point.split, point.rule) for point in report.points)
    assert counted == {(split, rule): 5 for split in ("search", "held_out") for rule in ("signed", "absolute")}
    for point in report.points:
        mask = rank(MEDIUM, scores, MEDIUM.legal, point.rule).select(point.asked_for).mask
        expected = scores[mask].sum(dtype=np.float64) / scores.sum(dtype=np.float64)
        assert point.f == pytest.approx(expected, abs=1e-5)
        assert point.kl_share == pytest.approx(1 - expected, abs=1e-5)
        assert point.quantiles == tuple(sorted(point.quantiles))
    assert report.metric_empty == {"search": pytest.approx(1), "held_out": pytest.approx(1)}
    assert report.kl_empty == {"search": pytest.approx(1), "held_out": pytest.approx(1)}
    assert {(area.split, area.rule) for area in report.areas} == set(counted)


def test_without_a_selection_k_star_is_kept_and_judged_on_both_splits_beside_matched_circuits():
    scores, search, held_out = case(MEDIUM)
    result = run(MEDIUM, scores, search, held_out, Plan(GRID, random_circuits=20, band_circuits=3))
    star, kept = result.report.k_star, result.kept
    assert star.met
    assert (kept.selected.rule, kept.selected.asked_for) == (star.point.rule, star.point.asked_for)
    assert [point.split for point in result.report.kept] == ["search", "held_out"]
    assert result.report.kept[1].f == pytest.approx(star.point.f)
    band = result.report.kept_random
    assert (band.connected, band.n_circuits, len(band.f)) == (kept.selected.connected, 20, 20)
    assert max(band.f) < star.point.f  # the weights are very unequal and the circuit has the largest
    assert {b.fraction for b in result.report.bands} <= {0.01, 0.05, 0.2, 0.5}
    assert all(len(b.f) == 3 for b in result.report.bands)


def test_a_given_circuit_is_kept_and_no_k_star_is_looked_for():
    scores, search, held_out = case(SMALL)
    kept = Kept.of(SMALL, SMALL.mask_of_edges(["embed->mlp0", "mlp0->logits", "0.0->logits"]), "hypothesis")
    result = run(SMALL, scores, search, held_out, Plan(GRID, rules=("signed",), random_circuits=3), kept)
    assert result.report.k_star is None
    assert result.kept is kept
    assert (result.report.kept[0].asked_for, result.report.kept[0].connected) == (3, 2)


def test_a_hypothesis_without_scores_has_no_curve_but_is_judged():
    scores, search, held_out = case(SMALL)
    kept = Kept.of(SMALL, SMALL.mask_of_nodes(["mlp0"]), "hypothesis")
    nothing = np.zeros_like(SMALL.legal)
    report = run(SMALL, scores * 0, search, held_out, Plan(GRID), kept, tested=nothing).report
    assert (report.points, report.areas, report.bands, report.k_star) == ((), (), (), None)
    assert len(report.kept) == 2
    assert report.kept_random.n_circuits == 20


def test_nothing_ranked_and_nothing_given_keeps_nothing():
    scores, search, held_out = case(SMALL)
    progress = Notes()
    nothing = np.zeros_like(SMALL.legal)
    result = run(SMALL, scores * 0, search, held_out, Plan(GRID), tested=nothing, progress=progress)
    assert result.kept.mask.sum() == 0
    assert result.report.kept_random is None
    assert any("no edge got a score" in line for line in progress.lines)


def test_where_f_is_withheld_every_other_figure_stays_and_no_nan_leaves():
    scores, search, held_out = case(MEDIUM, share=0.0)
    progress = Notes()
    result = run(MEDIUM, scores, search, held_out, Plan(GRID, random_circuits=2, band_circuits=1), progress=progress)
    report = result.report
    assert {point.f for point in report.points} == {None}
    assert {area.cpr for area in report.areas} == {None}
    assert report.k_star is None
    assert result.kept.selected.asked_for == int(0.02 * MEDIUM.n_edges)
    assert report.behaviour.verdict == "absent"
    assert all(point.kl_share is not None for point in report.points)
    assert sum("f is withheld" in line for line in progress.lines) == 2
    json.dumps(report.to_dict(), allow_nan=False)


def test_k_star_may_be_looked_for_among_rules_that_the_curve_does_not_show():
    scores, search, held_out = case(MEDIUM)
    plan = Plan(GRID, rules=("signed",), k_star_rules=("greedy",), random_circuits=1, band_circuits=1)
    result = run(MEDIUM, scores, search, held_out, plan)
    assert result.report.k_star.point.rule == result.kept.selected.rule == "greedy"
    assert {point.rule for point in result.report.points} == {"signed"}
    assert {band.rule for band in result.report.bands} == {"signed"}


def test_the_behaviour_is_judged_over_the_prompts_of_both_splits():
    scores, search, held_out = case(SMALL)
    behaviour = run(SMALL, scores, search, held_out, Plan(GRID, random_circuits=0, band_circuits=0)).report.behaviour
    assert (behaviour.verdict, behaviour.n_examples, behaviour.chance) == ("shown", 36, 0.5)
    assert behaviour.interval[0] < behaviour.metric_clean - behaviour.metric_corrupt < behaviour.interval[1]


@pytest.mark.parametrize("graph", [SMALL, MEDIUM])
@pytest.mark.parametrize("rules", [("signed", "absolute"), ("signed",), ()])
@pytest.mark.parametrize("with_k_star", [True, False])
def test_the_cost_told_before_is_not_exceeded(graph, rules, with_k_star):
    scores, search, held_out = case(graph)
    plan = Plan(GRID, rules=rules, k_star_rules=("greedy", "signed"), random_circuits=4, band_circuits=2)
    kept = None if with_k_star else rank(graph, scores, graph.legal, "greedy").select(20)
    told = n_evaluations(graph, plan, with_k_star=with_k_star)
    run(graph, scores, search, held_out, plan, kept)
    assert 3 <= sum(search.measure.calls) <= told.search
    assert 3 <= sum(held_out.measure.calls) <= told.held_out


def test_the_same_seed_gives_the_same_report_and_it_survives_its_file():
    scores, search, held_out = case(MEDIUM)
    plan = Plan(GRID, random_circuits=3, band_circuits=2, seed=5)
    first, second = (run(MEDIUM, scores, search, held_out, plan).report for _ in range(2))
    assert first == second
    assert Report.from_dict(json.loads(json.dumps(first.to_dict(), allow_nan=False))) == first


def test_progress_names_its_phases_and_can_stop_the_run_at_any_step():
    scores, search, held_out = case(MEDIUM)
    plan = Plan(GRID, random_circuits=2, band_circuits=1)
    whole = Notes()
    run(MEDIUM, scores, search, held_out, plan, progress=whole)
    assert whole.phases[:4] == ["model and empty circuit", "curve", "k*", "kept circuit"]
    assert whole.phases[4].startswith("random circuits of ")
    for stop_after in range(0, whole.steps, 7):
        with pytest.raises(Cancelled):
            run(MEDIUM, scores, search, held_out, plan, progress=Notes(stop_after))
