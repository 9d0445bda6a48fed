"""What an evaluation says of the kept circuit besides its curve, on models whose metric is a known function."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from analytic_measure import MEDIUM, SMALL, Additive, split_of
from test_judging import GRID, Notes, case, run

from acdc.errors import Cancelled
from acdc.evaluation.groups import MIN_PROMPTS
from acdc.evaluation.hypotheses import FEWEST_CIRCUITS
from acdc.evaluation.judging import Plan, judge, n_evaluations
from acdc.evaluation.minimality import random_paths
from acdc.evaluation.statistics import ALPHA
from acdc.graph import Graph, GraphShape
from acdc.report import Report
from acdc.selection import Kept, rank

FULL = Plan(GRID, random_circuits=2, band_circuits=1, knock_outs=6, minimality=1000, tests=40, other_ablations=1)


def judged(graph, plan, size=30, progress=None, elsewhere=None, seed=0):
    scores, search, held_out = case(graph, seed)
    kept = rank(graph, scores, graph.legal, "signed").select(size)
    report = judge(
        graph,
        scores,
        graph.legal,
        search=search,
        held_out=held_out,
        plan=plan,
        progress=progress or Notes(),
        kept=kept,
        elsewhere=elsewhere,
    ).report
    return scores.astype(np.float64) / scores.sum(dtype=np.float64), kept, report


def test_what_an_edge_costs_is_its_weight():
    weights, kept, report = judged(SMALL, FULL)
    part = report.minimality
    assert len(part.removals) == part.n_edges == kept.selected.connected
    for one in part.removals:
        edge = SMALL.edge(one.edge)
        assert one.cost_f == pytest.approx(weights[edge.sender, edge.receiver], abs=1e-5)
        assert one.cost_kl == pytest.approx(one.cost_f, abs=1e-5)
        assert one.moved == pytest.approx(abs(one.cost), abs=1e-5)
    assert {one.edge for one in part.removals} == set(SMALL.names_of(kept.mask))


def test_superfluous_edges_are_told_at_five_per_cent_over_all_edges_tested():
    """Of a circuit drawn at random some edges are rejected by themselves and not among sixty (Bonferroni)."""
    scores, search, held_out = case(SMALL)
    noise = np.random.default_rng(2).standard_normal(SMALL.legal.shape).astype(np.float32)
    drawn = rank(SMALL, noise, SMALL.legal, "signed").select(60)
    part = run(SMALL, scores, search, held_out, replace(FULL, tests=100), drawn).report.minimality
    n = part.n_random
    tails = np.cumsum([comb(n, k) * 0.9**k * 0.1 ** (n - k) for k in range(n + 1)])
    p = {one.edge: tails[one.exceeds] for one in part.removals}
    rejected = {edge for edge in p if p[edge] * len(p) < ALPHA}
    assert {one.edge for one in part.removals if one.superfluous} == rejected
    assert part.n_superfluous == len(rejected) > 0
    assert any(p[edge] < ALPHA <= p[edge] * len(p) for edge in p)


def test_an_edge_that_moves_the_circuit_by_rounding_alone_is_superfluous():
    """Though no edge outside the circuit does as much."""
    scores, *_ = case(SMALL)
    kept = rank(SMALL, scores, SMALL.legal, "signed").select(20)
    of_rounding = kept.mask & (np.cumsum(kept.mask).reshape(kept.mask.shape) % 2 == 0)
    weights = np.where(of_rounding, 1e-5, kept.mask)
    splits = {name: split_of(Additive(weights, np.ones(12)), name) for name in ("search", "held_out")}
    part = run(SMALL, scores, splits["search"], splits["held_out"], replace(FULL, tests=100), kept).report.minimality
    assert all(one.moved > 0 for one in part.removals)
    assert {one.edge for one in part.removals if one.superfluous} == set(SMALL.names_of(of_rounding)) != set()


def test_of_many_edges_as_many_are_drawn_as_were_asked_for():
    _, kept, report = judged(MEDIUM, replace(FULL, minimality=7, tests=0), 300)
    part = report.minimality
    assert (len(part.removals), part.n_edges, part.n_random) == (7, kept.selected.connected, 0)
    assert {one.superfluous for one in part.removals} == {None}
    assert part.n_superfluous is None
    assert {one.edge for one in part.removals} <= set(MEDIUM.names_of(kept.mask))


@pytest.mark.parametrize("graph", [SMALL, MEDIUM, Graph(GraphShape(3, 4, 2, is_parallel=True, split_position=True))])
def test_random_paths_lead_from_the_embedding_to_the_logits(graph):
    nothing = np.zeros_like(graph.legal)
    paths = list(random_paths(graph, nothing, 200, np.random.default_rng(0)))
    assert len(paths) == 200
    for path in paths:
        mask = nothing.copy()
        mask[tuple(np.array(path).T)] = True
        assert (graph.connected(mask) == mask).all()
        assert mask.sum() == len(path)
        assert mask[:, -1].sum() == 1
        assert mask[: graph.n_inputs].sum() == 1
    assert len({frozenset(path) for path in paths}) > 20


def test_a_path_adds_only_what_the_circuit_has_not_and_a_full_graph_has_none_to_add():
    rng = np.random.default_rng(0)
    half = SMALL.legal & (rng.random(SMALL.legal.shape) < 0.8)
    assert all(not half[s, r] for path in random_paths(SMALL, half, 50, rng) for s, r in path)
    assert list(random_paths(SMALL, SMALL.legal, 5, rng)) == []


def test_knock_outs_cut_the_same_nodes_from_circuit_and_model():
    weights, kept, report = judged(SMALL, FULL)
    part = report.completeness
    rest = weights[SMALL.connected(SMALL.legal & ~kept.mask)].sum()
    assert part.complement.f == pytest.approx(rest, abs=1e-5)
    assert {one.how for one in part.knock_outs} == {"random", "layer", "greedy"}
    for one in part.knock_outs:
        cut = np.array([sender.name in one.nodes for sender in SMALL.senders])
        assert one.f_circuit == pytest.approx(weights[kept.mask & ~cut[:, None]].sum(), abs=1e-5)
        assert one.f_model == pytest.approx(weights[~cut].sum(), abs=1e-5)
        assert one.gap == pytest.approx(abs(one.f_circuit - one.f_model))
    greedy = [one for one in part.knock_outs if one.how == "greedy"]
    assert [len(one.nodes) for one in greedy] == list(range(1, len(greedy) + 1))
    assert part.worst.metric_gap == max(one.metric_gap for one in part.knock_outs)


def test_a_random_set_to_be_cut_has_each_node_of_the_circuit_with_even_odds():
    _, kept, report = judged(MEDIUM, replace(FULL, knock_outs=40, minimality=0, tests=0), 300)
    sets = [one.nodes for one in report.completeness.knock_outs if one.how == "random"]
    n_nodes = int(kept.mask.any(1)[MEDIUM.n_inputs :].sum())
    assert len(sets) == 40
    share = sum(map(len, sets)) / (40 * n_nodes)
    assert abs(share - 0.5) < 3 * 0.5 / np.sqrt(40 * n_nodes)


def test_only_the_complement_is_measured_where_no_knock_outs_are_asked_for():
    _, _, report = judged(SMALL, Plan(GRID))
    assert report.completeness.knock_outs == ()
    assert report.completeness.worst is None
    assert report.minimality is None
    assert [test.name for test in report.tests] == ["equivalence", "claimed equivalence", "independence"]


def test_the_best_circuit_of_unequal_weights_is_sufficient_and_necessary():
    _, _, report = judged(MEDIUM, FULL, 300)
    found = {test.name: test for test in report.tests}
    assert found["sufficiency"].rejected
    assert found["partial necessity"].rejected
    assert found["sufficiency"].n == 40
    assert report.kept_random.n_circuits == 2
    assert found["equivalence"].rejected, "it is below the model on every prompt"
    assert "above the model on 0% of" in found["equivalence"].says


def test_a_random_circuit_is_neither_sufficient_nor_necessary():
    scores, search, held_out = case(MEDIUM)
    rng = np.random.default_rng(3)
    mask = rank(MEDIUM, rng.standard_normal(MEDIUM.legal.shape).astype(np.float32), MEDIUM.legal, "signed").select(200)
    report = run(MEDIUM, scores, search, held_out, FULL, mask).report
    found = {test.name: test.rejected for test in report.tests}
    assert (found["sufficiency"], found["partial necessity"]) == (False, False)


def test_each_group_is_judged_in_its_own_scale():
    """Of the examples, every fourth is of one group; each group's metric is the same function at another height."""
    scores, search, held_out = case(SMALL)
    kept = rank(SMALL, scores, SMALL.legal, "signed").select(10)
    report = run(SMALL, scores, search, held_out, Plan(GRID), kept).report
    assert [g.group for g in report.groups] == [f"search-{i}" for i in range(4)]  # held out, a group has but three
    share = next(p.f for p in report.kept if p.split == "search")
    for i, group in enumerate(report.groups):
        assert group.n_examples == 6 >= MIN_PROMPTS
        assert group.f == pytest.approx(share, abs=1e-5)
        own = search.measure.shares[i::4].mean()
        assert group.metric_full == pytest.approx(1 + own, rel=1e-5)
        assert group.metric == pytest.approx(1 + own * share, rel=1e-4)


def test_the_circuit_is_run_under_another_ablation_in_that_ones_scale_and_only_when_its_turn_comes():
    weights = np.zeros(SMALL.legal.shape)
    weights[0] = SMALL.legal[0]  # there, only what the embedding sends counts
    order = []

    def other():
        order.append("made")
        return split_of(Additive(weights, np.ones(12), base=-3.0), "held_out")

    _, kept, report = judged(SMALL, Plan(GRID, other_ablations=1), elsewhere={"zero": other})
    (found,) = report.elsewhere
    assert order == ["made"]
    assert (found.ablation, found.metric_full, found.metric_empty) == ("zero", pytest.approx(-2), pytest.approx(-3))
    assert found.kept.f == pytest.approx((weights * kept.mask).sum() / weights.sum(), abs=1e-5)


def test_what_is_asked_for_besides_moves_no_other_figure():
    _, _, plain = judged(MEDIUM, Plan(GRID, random_circuits=2, band_circuits=1), 300)
    _, _, more = judged(MEDIUM, replace(FULL, random_circuits=2, tests=40, other_ablations=0), 300)
    assert plain.bands
    assert {test.name for test in more.tests} > {test.name for test in plain.tests}
    assert replace(more, completeness=plain.completeness, minimality=None, tests=plain.tests) == plain


def test_a_circuit_without_edges_has_no_closer_look():
    scores, search, held_out = case(SMALL)
    nothing = Kept.of(SMALL, np.zeros_like(SMALL.legal), "hypothesis")
    report = run(SMALL, scores, search, held_out, FULL, nothing).report
    assert (report.groups, report.completeness, report.minimality, report.tests) == ((), None, None, ())


@pytest.mark.parametrize("graph", [SMALL, MEDIUM])
@pytest.mark.parametrize("tests", [0, FEWEST_CIRCUITS - 1, FEWEST_CIRCUITS])
def test_the_cost_of_every_part_is_told_before_and_not_exceeded(graph, tests):
    scores, search, held_out = case(graph)
    other = Additive(scores.astype(np.float64), np.ones(12))
    plan = replace(FULL, tests=tests, minimality=10)
    kept = rank(graph, scores, graph.legal, "greedy").select(20)
    judge(
        graph,
        scores,
        graph.legal,
        search=search,
        held_out=held_out,
        plan=plan,
        progress=Notes(),
        kept=kept,
        elsewhere={"zero": lambda: split_of(other, "held_out")},
    )
    told = n_evaluations(graph, plan, with_k_star=False)
    done = sum(held_out.measure.calls) + sum(other.calls)
    assert told.held_out / 3 < done <= told.held_out


def test_a_full_report_is_the_same_for_the_same_seed_and_survives_its_file():
    (_, _, first), (_, _, second) = (judged(SMALL, FULL) for _ in range(2))
    assert first == second
    assert Report.from_dict(json.loads(json.dumps(first.to_dict(), allow_nan=False))) == first


def test_a_report_from_before_there_was_a_closer_look_can_still_be_read():
    _, _, report = judged(SMALL, FULL)
    data = report.to_dict()
    for part in ("elsewhere", "groups", "completeness", "minimality", "tests", "stability"):
        del data[part]
    for point in data["kept"]:
        del point["kl_quantiles"], point["answer_logprob"]
    old = Report.from_dict(json.loads(json.dumps(data)))
    assert (old.completeness, old.minimality, old.tests, old.kept[0].answer_logprob) == (None, None, (), None)


@pytest.mark.parametrize("phase", ["completeness", "minimality", "hypothesis tests"])
def test_every_part_names_its_phase_and_can_be_stopped(phase):
    class Stopping(Notes):
        def step(self, done, note=""):
            super().step(done, note)
            if self.phases[-1] == phase and done > 1:
                raise Cancelled("stopped")

    progress = Stopping()
    with pytest.raises(Cancelled):
        judged(SMALL, FULL, progress=progress)
    assert progress.phases[-1] == phase


def test_random_circuits_that_are_the_circuit_itself_are_no_comparison():
    """The whole graph has no other circuit of its size and layer profile."""
    scores, search, held_out = case(SMALL)
    whole = Kept.of(SMALL, SMALL.legal, "hypothesis")
    report = run(SMALL, scores, search, held_out, FULL, whole).report
    told = {test.name: test for test in report.tests}
    for name in ("sufficiency", "partial necessity"):
        assert (told[name].statistic, told[name].p, told[name].rejected) == (None, None, None)
        assert "40 of the 40 random circuits drawn are the circuit itself" in told[name].says
    assert "do the same on every prompt" in told["equivalence"].says


def alike(n):
    """The tests of a circuit of a model whose metric is the same on each of n prompts, unlike the circuit's."""
    weights = case(SMALL)[0].astype(np.float64)
    shares = np.random.default_rng(0).uniform(0.8, 1.2, n)
    splits = {}
    for name in ("search", "held_out"):
        measure = Additive(weights, shares, base=0.0, g=lambda kept: kept - 1.0 + 1e-9)
        splits[name] = split_of(measure, name)
    scores = weights.astype(np.float32)
    kept = rank(SMALL, scores, SMALL.legal, "signed").select(40)
    report = judge(SMALL, scores, SMALL.legal, **splits, plan=Plan(GRID), progress=Notes(), kept=kept).report
    return {test.name: test for test in report.tests}


def test_of_a_model_that_is_alike_on_every_prompt_only_independence_cannot_be_told():
    """KL to the model itself is zero everywhere, up to rounding. The circuit is below it on every prompt."""
    told = alike(12)
    assert (told["independence"].p, told["independence"].rejected) == (None, None)
    assert "the model itself does the same" in told["independence"].says
    assert (told["equivalence"].n, told["equivalence"].rejected) == (12, True)
    assert told["claimed equivalence"].rejected is False


@pytest.mark.parametrize("n", [1, 3])
def test_few_prompts_are_the_reason_given_where_they_are_too_few(n):
    told = alike(n)
    assert told["independence"].says == "cannot be told of fewer than 4 prompts"
    assert (told["equivalence"].n, told["equivalence"].statistic) == (n, 0.0)
