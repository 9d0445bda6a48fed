from __future__ import annotations

import numpy as np
import pytest
from analytic_measure import MEDIUM, SMALL, Additive, random_scores, split_of
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.evaluation.curve import Judge, sizes_of
from acdc.evaluation.faithfulness import scale_of
from acdc.evaluation.k_star import find_k_star, meets, most_trials, shortfall, sizes_between
from acdc.evaluation.measuring import Ledger
from acdc.graph import Graph, GraphShape
from acdc.progress import Quiet
from acdc.report import Point
from acdc.selection import GRID, rank


def judge_of(graph, search, held_out):
    ledgers = {name: Ledger(split_of(m, name), Quiet()) for name, m in (("search", search), ("held_out", held_out))}
    empty = np.zeros_like(graph.legal)
    scales = {
        name: scale_of(ledger(graph.legal), ledger(empty), ledger.split.groups, 0) for name, ledger in ledgers.items()
    }
    return Judge(graph, ledgers, scales)


def measures(graph, seed, **how):
    """Two models that weigh the edges nearly alike: what was searched, and what was held out."""
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=graph.legal.shape) ** 3 * graph.legal
    shifted = weights * rng.uniform(0.6, 1.4, graph.legal.shape)
    return weights.astype(np.float32), Additive(weights, np.ones(5), **how), Additive(shifted, np.ones(5), **how)


def a_point(f, kl_share):
    return Point("held_out", "signed", 0.1, 1, 1, 0.0, f, 0.0, kl_share, 1.0, (0.0,) * 5)


@pytest.mark.parametrize(
    ("f", "kl_share", "expected"),
    [(0.8, 0.5, 0), (1.2, 0.0, 0), (0.7, 0.5, 0.5), (1.4, 0.5, 1.0), (1.0, 0.75, 0.5), (0.6, 1.0, 2.0), (1.0, None, 0)],
)
def test_shortfall_adds_what_f_and_kl_lack(f, kl_share, expected):
    assert shortfall(a_point(f, kl_share)) == pytest.approx(expected, abs=1e-9)
    assert meets(a_point(f, kl_share)) == (expected == 0)


def test_a_point_without_f_meets_nothing():
    assert shortfall(a_point(None, 0.0)) == np.inf


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_on_a_graph_of_few_edges_k_star_is_the_smallest_of_all_sizes(seed):
    # f rises, falls and rises again with size, so that no bisection could find the smallest
    scores, search, held_out = measures(SMALL, seed, g=lambda x: x + 0.6 * np.sin(9 * x) * (1 - x))
    rankings = [rank(SMALL, scores, SMALL.legal, rule) for rule in ("absolute", "greedy")]
    judge = judge_of(SMALL, search, held_out)
    star = find_k_star(judge, rankings, sizes_of(GRID, SMALL.n_edges))
    every = [ranking.select(n) for ranking in rankings for n in range(SMALL.n_edges + 1)]
    good = [one for one in every if all(meets(judge.point(split, one, 0)) for split in ("search", "held_out"))]
    assert star.met
    assert star.chosen_on == "search"
    assert star.point.connected == min(one.selected.connected for one in good)
    assert star.point.split == "held_out"


def test_between_grid_points_a_smaller_circuit_is_found_by_bisection():
    scores, search, held_out = measures(MEDIUM, 0)
    ranking = rank(MEDIUM, scores, MEDIUM.legal, "absolute")
    judge = judge_of(MEDIUM, search, held_out)
    sizes = sizes_of(GRID, MEDIUM.n_edges)
    star = find_k_star(judge, [ranking], sizes)

    def good(n):
        return all(meets(judge.point(split, ranking.select(n), 0)) for split in ("search", "held_out"))

    smallest = next(n for n in range(MEDIUM.n_edges + 1) if good(n))  # additive and positive: f rises with size
    on_grid = next(size.n for size in sizes if good(size.n))
    assert smallest <= star.point.asked_for <= 1.05 * smallest
    assert star.point.asked_for < on_grid


def test_beyond_the_curve_a_circuit_that_fails_on_the_searched_prompts_is_not_looked_at_held_out():
    scores, search, held_out = measures(MEDIUM, 1)
    judge = judge_of(MEDIUM, search, held_out)
    sizes = sizes_of(GRID, MEDIUM.n_edges)
    star = find_k_star(judge, [rank(MEDIUM, scores, MEDIUM.legal, "absolute")], sizes)
    on_curve = len(sizes) + 1  # and the empty circuit; the whole model is the last size
    in_search, in_held_out = (judge.ledgers[split].measured - on_curve for split in ("search", "held_out"))
    assert in_held_out < in_search <= most_trials(sizes, MEDIUM.n_edges, 1)
    assert star.looks >= in_held_out


def test_a_small_size_that_meets_held_out_alone_counts_where_no_small_one_meets_both():
    scores = np.abs(random_scores(MEDIUM, 2)) + (MEDIUM.legal * 0.01).astype(np.float32)
    ranking = rank(MEDIUM, scores, MEDIUM.legal, "greedy")
    sizes = sizes_of(GRID, MEDIUM.n_edges)
    too_much = Additive(scores, np.ones(5), g=lambda x: np.where((x > 0) & (x < 0.9), 2.0, x))  # overshoots in sample
    enough = Additive(
        scores, np.ones(5), g=lambda x: np.where((x > 0) & (x < 0.9), 1.1, x), kl=lambda x: 0.1 + (x == 0)
    )
    star = find_k_star(judge_of(MEDIUM, too_much, enough), [ranking], sizes)
    smallest = next(size for size in sizes if ranking.select(size.n).selected.connected)
    assert (star.met, star.chosen_on, star.nearest) == (True, "held_out", ())
    assert star.point.asked_for == smallest.n
    fair = find_k_star(judge_of(MEDIUM, enough, enough), [ranking], sizes)
    assert fair.chosen_on == "search"
    assert fair.point.asked_for == smallest.n


def test_where_no_small_size_meets_the_nearest_are_told_best_first():
    scores, search, held_out = measures(MEDIUM, 3)
    rankings = [rank(MEDIUM, scores, MEDIUM.legal, rule) for rule in ("signed", "absolute")]
    judge = judge_of(MEDIUM, search, held_out)
    sizes = sizes_of(GRID, MEDIUM.n_edges)
    star = find_k_star(judge, rankings, sizes)
    assert star.met
    assert star.point.fraction > 0.02
    assert len(star.nearest) == 3
    assert all(point.fraction <= 0.02 and point.split == "held_out" for point in star.nearest)
    assert [shortfall(point) for point in star.nearest] == sorted(shortfall(point) for point in star.nearest)


def test_where_no_size_meets_at_all_k_star_is_missed_and_its_point_is_the_nearest():
    scores, search, held_out = measures(MEDIUM, 4)
    judge = judge_of(MEDIUM, search, held_out)
    ranking = rank(MEDIUM, scores, MEDIUM.legal, "absolute")
    star = find_k_star(judge, [ranking], sizes_of((0.01, 0.02, 0.05), MEDIUM.n_edges))
    assert not star.met
    assert star.point == star.nearest[0]
    assert star.point.fraction == pytest.approx(0.05, rel=0.01), "the nearest of all sizes, not of small ones alone"


def test_there_is_no_k_star_where_f_is_withheld_or_nothing_is_ranked():
    scores, search, _ = measures(SMALL, 5)
    flat = Additive(SMALL.legal * 1.0, np.zeros(5))
    ranking = rank(SMALL, scores, SMALL.legal, "signed")
    sizes = sizes_of(GRID, SMALL.n_edges)
    assert find_k_star(judge_of(SMALL, search, flat), [ranking], sizes) is None
    assert find_k_star(judge_of(SMALL, search, search), [], sizes) is None


def test_sizes_between_are_even_in_the_logarithm_and_end_at_two_percent():
    assert [size.n for size in sizes_between(sizes_of(GRID, 100_000), 100_000)] == [
        *[119, 141, 168],  # between 100 and 200
        *[251, 316, 398],
        *[595, 707, 841],
        *[1189, 1414, 1682],
    ]


def test_sizes_up_to_two_percent_are_swept_more_finely_where_the_grid_steps_over_the_band():
    # f leaps over the band from one grid size to the next and comes back only much later
    graph = Graph(GraphShape(12, 8, 4))
    weights = graph.legal * 1.0
    scores = (graph.legal * np.random.default_rng(0).uniform(1, 2, graph.legal.shape)).astype(np.float32)
    ranking = rank(graph, scores, graph.legal, "greedy")
    shares = {n: ranking.select(n).selected.connected / graph.n_edges for n in range(1, int(0.021 * graph.n_edges))}
    low, high = (shares[size.n] for size in sizes_of((0.01, 0.02), graph.n_edges))
    assert low < high

    def leap(x):
        return np.where(x <= low, 0.3, np.where(x < high, 1.0, np.where(x < 0.5, 1.9, 1.0))) * (x > 0)

    model = Additive(weights, np.ones(5), g=leap, kl=lambda kept: 0.1 if kept > 0 else 1.0)
    star = find_k_star(judge_of(graph, model, model), [ranking], sizes_of((0.01, 0.02, 0.9), graph.n_edges))
    assert star.met
    assert 0.01 < star.point.fraction < 0.02
