"""Rankings against a known circuit: hand-worked examples, brute force over pairs, and what ties must not decide."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.evaluation.truth.ranking import (
    at_heads,
    auroc,
    average_precision,
    mib_auroc,
    mib_circuits,
    size_matched_f1,
)
from acdc.graph import Graph, GraphShape
from acdc.selection import GRID, size_of

RANKINGS = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 4), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda true: 0 < sum(true) < len(true)),
    )
)


def arrays(merit, true):
    return np.array(merit, dtype=float), np.array(true, dtype=bool)


@given(RANKINGS)
def test_auroc_is_the_share_of_pairs_that_are_in_order_and_ties_count_half(ranking):
    merit, true = arrays(*ranking)
    pairs = list(itertools.product(merit[true], merit[~true]))
    expected = np.mean([(t > f) + 0.5 * (t == f) for t, f in pairs])
    assert auroc(merit, true) == pytest.approx(expected)


def test_average_precision_of_a_hand_worked_ranking():
    merit, true = arrays([6, 5, 4, 3, 2, 1], [True, False, True, False, False, True])
    assert average_precision(merit, true) == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)


def test_average_precision_of_a_ranking_without_order_is_its_chance_level():
    merit, true = arrays([1] * 10, [True] * 3 + [False] * 7)
    assert average_precision(merit, true) == pytest.approx(0.3)


@given(RANKINGS)
def test_no_figure_depends_on_how_edges_of_equal_merit_are_listed(ranking):
    merit, true = arrays(*ranking)
    order = np.random.default_rng(0).permutation(len(merit))
    for figure in (auroc, average_precision, size_matched_f1):
        assert figure(merit, true) == pytest.approx(figure(merit[order], true[order]))


@given(RANKINGS)
def test_size_matched_f1_is_what_breaking_ties_at_random_gives_on_average(ranking):
    merit, true = arrays(*ranking)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        best = np.lexsort((rng.random(len(merit)), -merit))[: true.sum()]
        found.append(true[best].mean())
    assert size_matched_f1(merit, true) == pytest.approx(np.mean(found), abs=0.05)


def test_a_perfect_ranking_scores_one_and_a_reversed_one_nothing():
    merit, true = arrays([4, 3, 2, 1], [True, True, False, False])
    assert [figure(merit, true) for figure in (auroc, average_precision, size_matched_f1)] == [1, 1, 1]
    assert auroc(-merit, true) == 0
    assert size_matched_f1(-merit, true) == 0


@pytest.mark.parametrize("true", [[True, True], [False, False]])
def test_a_ranking_is_judged_by_both_kinds_of_edges(true):
    for figure in (auroc, average_precision, size_matched_f1):
        with pytest.raises(ValueError, match="of 2 edges are true"):
            figure(*arrays([1, 2], true))


def test_mibs_auroc_of_hand_worked_circuits():
    """(FPR, TPR) runs (0, 1/2), (1/2, 1/2), (1/2, 1), divided by the last FPR."""
    true = np.array([True, True, False, False])
    circuits = [np.array(kept, dtype=bool) for kept in ([1, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0])]
    assert mib_auroc(circuits, true) == pytest.approx(0.5)


def test_mibs_auroc_of_a_ranking_that_is_right_is_one_but_for_the_missing_origin():
    graph = Graph(GraphShape(n_layers=2, n_heads=2, n_kv_heads=2))
    true = graph.mask_of_edges(["embed->0.0.v", "0.0->logits"])
    scores = np.where(true, 2.0, 1.0).astype(np.float32) * graph.legal
    circuits = mib_circuits(graph, scores, graph.legal)
    assert [int(circuit.sum()) for circuit in circuits] == [size_of(share, graph.n_edges) for share in GRID]
    assert all((graph.connected(circuit) == circuit).all() for circuit in circuits)
    assert 0.9 < mib_auroc([circuit[graph.legal] for circuit in circuits], true[graph.legal]) <= 1


def test_at_heads_a_node_gets_the_largest_of_its_inputs():
    graph = Graph(GraphShape(n_layers=1, n_heads=2, n_kv_heads=1))
    scores = np.zeros(graph.legal.shape, np.float32)
    for name, value in {
        "embed->0.0.q": 1,
        "embed->0.1.q": 2,
        "embed->0.0.k": 3,
        "embed->mlp0": 4,
        "0.1->logits": 5,
    }.items():
        edge = graph.edge(name)
        scores[edge.sender, edge.receiver] = value
    by_head = at_heads(graph, scores)
    assert by_head.shape == (graph.n_senders, 4)  # two heads, the MLP, the logits
    assert by_head[0].tolist() == [3, 3, 4, 0]  # both heads share a key
    assert by_head[2].tolist() == [0, 0, 0, 5]
