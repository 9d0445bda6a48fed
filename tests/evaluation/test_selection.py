from __future__ import annotations

import time

import numpy as np
import pytest
from analytic_measure import MEDIUM, SHAPES, SMALL, TINY, random_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.errors import GraphMismatch
from acdc.graph import Graph, GraphShape
from acdc.selection import Kept, rank, size_of


def brute_force_greedy(graph, scores, tested):
    """The definition, one edge at a time: of all edges not yet taken into a receiver that is the logits or that feeds
    what an edge taken carries, the one of highest |score|, first in canonical order."""
    taken = []
    while True:
        carried = {graph.output(edge.sender, edge.receiver) for edge in taken}
        open_edges = [
            edge
            for edge in graph.edges()
            if tested[edge.sender, edge.receiver]
            and edge not in taken
            and (edge.receiver == graph.n_receivers - 1 or any(graph.feeds[edge.receiver, o] for o in carried))
        ]
        if not open_edges:
            return taken
        taken.append(max(open_edges, key=lambda edge: abs(scores[edge.sender, edge.receiver])))  # max keeps the first


@given(SHAPES, st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_greedy_takes_what_its_definition_takes_edge_by_edge(shape, seed):
    graph = Graph(shape)
    scores = random_scores(graph, seed)
    tested = graph.legal & (np.random.default_rng(seed).random(graph.legal.shape) < 0.8)
    expected = [e.sender * graph.n_receivers + e.receiver for e in brute_force_greedy(graph, scores, tested)]
    assert rank(graph, scores, tested, "greedy").order.tolist() == expected


@pytest.mark.parametrize(("rule", "merit"), [("signed", lambda x: x), ("absolute", abs)])
def test_top_n_is_sorted_by_merit_with_ties_in_canonical_order(rule, merit):
    scores = random_scores(SMALL, 3)
    expected = sorted(SMALL.edges(), key=lambda edge: -merit(float(scores[edge.sender, edge.receiver])))  # stable
    order = rank(SMALL, scores, SMALL.legal, rule).order
    assert order.tolist() == [edge.sender * SMALL.n_receivers + edge.receiver for edge in expected]


@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from(["signed", "absolute", "greedy"]), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_selection_is_connected_tested_and_counts_what_it_holds(shape, seed, rule, fraction):
    graph = Graph(shape)
    tested = graph.legal & (np.random.default_rng(seed).random(graph.legal.shape) < 0.7)
    n = size_of(fraction, graph.n_edges)
    kept = rank(graph, random_scores(graph, seed), tested, rule).select(n)
    assert not (kept.mask & ~tested).any()
    assert (graph.connected(kept.mask) == kept.mask).all()
    assert (kept.selected.rule, kept.selected.asked_for, kept.selected.connected) == (rule, n, kept.mask.sum())


def test_dead_edges_are_dropped_and_both_counts_are_kept():
    scores = np.zeros_like(TINY.legal, dtype=np.float32)
    for name, score in (("embed->logits", 3.0), ("0.0->logits", 2.0), ("embed->0.1.q", -1.0)):
        edge = TINY.edge(name)
        scores[edge.sender, edge.receiver] = score
    kept = rank(TINY, scores, TINY.legal, "absolute").select(3)
    assert kept.mask.sum() == kept.selected.connected == 1
    assert kept.selected.asked_for == 3
    assert kept.mask[0, -1]


def test_signed_and_absolute_differ_in_what_they_do_with_a_negative_edge():
    scores = np.full(TINY.legal.shape, 0.1, dtype=np.float32)
    scores[0, -1] = -1.0
    assert not rank(TINY, scores, TINY.legal, "signed").select(TINY.n_edges - 1).mask[0, -1]
    assert rank(TINY, scores, TINY.legal, "absolute").select(1).mask[0, -1]


def test_a_set_without_a_ranking_is_connected_too():
    kept = Kept.of(TINY, TINY.mask_of_edges(["embed->logits", "0.0->logits"]), "decisions")
    assert (kept.selected.asked_for, kept.selected.connected, int(kept.mask.sum())) == (2, 1, 1)


def test_arrays_of_another_graph_and_unknown_rules_are_refused():
    scores = random_scores(SMALL, 0)
    with pytest.raises(GraphMismatch, match="do not fit"):
        rank(TINY, scores, SMALL.legal, "signed")
    with pytest.raises(ValueError, match="known rules: signed, absolute, greedy"):
        rank(SMALL, scores, SMALL.legal, "best")


def test_a_share_written_in_decimals_means_what_it_says():
    assert [size_of(share, 100) for share in (0.29, 0.57, 0.58, 1.0, 0.001)] == [29, 57, 58, 100, 0]
    assert size_of(0.001, 32_491) == 32


def test_ranking_a_large_graph_takes_no_python_loop_over_its_edges():
    graph = Graph(GraphShape(30, 9, 3))
    scores = random_scores(graph, 1)
    start = time.process_time()
    kept = rank(graph, scores, graph.legal, "greedy").select(graph.n_edges)
    assert kept.mask.sum() == graph.n_edges  # everything is reached from the logits
    assert time.process_time() - start < 5  # a loop over the frontier for every edge takes minutes


def test_two_rankings_of_equal_scores_are_equal():
    scores = random_scores(MEDIUM, 5)
    first, second = (rank(MEDIUM, scores.copy(), MEDIUM.legal, "greedy").order for _ in range(2))
    assert (first == second).all()
