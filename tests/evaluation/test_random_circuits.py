from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from analytic_measure import MEDIUM, SHAPES, SMALL, TINY, random_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.evaluation import random_circuits as sampler
from acdc.evaluation.random_circuits import Strata, random_circuits
from acdc.graph import Graph, GraphShape
from acdc.selection import rank

OTHERS = (
    GraphShape(4, 4, 2, heads_share_norm=True),
    GraphShape(3, 4, 4, is_parallel=True),
    GraphShape(4, 4, 2, roles=("first", "end", "other")),
)


def layer_profile(graph, mask):
    """Edges from layer to layer, at each role where edges are split, counted one by one."""
    edges = (edge for edge in graph.edges() if mask[edge.sender, edge.receiver])
    ends = ((graph.senders[edge.sender], graph.receivers[edge.receiver]) for edge in edges)
    return Counter((sender.layer, receiver.layer, receiver.role) for sender, receiver in ends)


@given(SHAPES, st.integers(0, 2**32 - 1), st.floats(0.05, 1))
@settings(max_examples=40, deadline=None)
def test_a_random_circuit_is_connected_and_has_size_and_layer_profile_of_the_matched_one(shape, seed, fraction):
    graph = Graph(shape)
    matched = rank(graph, random_scores(graph, seed), graph.legal, "greedy").select(int(fraction * graph.n_edges)).mask
    for circuit in random_circuits(graph, matched, 3, np.random.default_rng(seed)):
        assert not (circuit & ~graph.legal).any()
        assert (graph.connected(circuit) == circuit).all()
        assert layer_profile(graph, circuit) == layer_profile(graph, matched)


def test_where_no_repair_is_found_the_shuffled_circuit_serves(monkeypatch):
    monkeypatch.setattr(sampler, "REPAIR_ROUNDS", 0)
    for shape in (MEDIUM.shape, *OTHERS):
        graph = Graph(shape)
        matched = rank(graph, random_scores(graph, 7), graph.legal, "greedy").select(30).mask
        assert matched.any()
        circuits = random_circuits(graph, matched, 10, np.random.default_rng(0))
        assert all((graph.connected(c) == c).all() for c in circuits)
        assert all(layer_profile(graph, c) == layer_profile(graph, matched) for c in circuits)
        assert len({c.tobytes() for c in circuits}) > 1


def test_mixing_moves_what_renaming_heads_alone_would_leave(monkeypatch):
    monkeypatch.setattr(sampler, "REPAIR_ROUNDS", 0)
    chain = MEDIUM.mask_of_edges(["embed->mlp0", "mlp0->mlp5", "mlp5->logits", "embed->mlp5", "mlp0->logits"])
    others = rank(MEDIUM, random_scores(MEDIUM, 8), MEDIUM.legal, "greedy").select(80).mask
    matched = MEDIUM.connected(chain | others)
    edge = MEDIUM.edge("mlp0->mlp5")
    circuits = random_circuits(MEDIUM, matched, 20, np.random.default_rng(0))
    assert not all(circuit[edge.sender, edge.receiver] for circuit in circuits)


def test_every_circuit_of_the_profile_is_drawn_about_equally_often_on_a_tiny_graph():
    matched = TINY.mask_of_edges(["embed->0.0.q", "embed->0.0.v", "0.0->logits", "0.1->logits", "embed->logits"])
    matched = TINY.connected(matched)
    profile = layer_profile(TINY, matched)
    cells = np.flatnonzero(TINY.legal)
    wanted = set()
    for chosen in itertools.combinations(cells.tolist(), int(matched.sum())):
        mask = np.zeros(TINY.legal.size, dtype=bool)
        mask[list(chosen)] = True
        mask = mask.reshape(TINY.legal.shape)
        if (TINY.connected(mask) == mask).all() and layer_profile(TINY, mask) == profile:
            wanted.add(mask.tobytes())
    drawn = Counter(c.tobytes() for c in random_circuits(TINY, matched, 4000, np.random.default_rng(0)))
    assert set(drawn) == wanted
    assert max(drawn.values()) < 3 * min(drawn.values())


def test_loose_ends_are_zero_exactly_where_every_edge_is_on_a_path():
    rng = np.random.default_rng(0)
    strata = Strata(SMALL)
    seen = set()
    for _ in range(300):
        mask = SMALL.legal & (rng.random(SMALL.legal.shape) < rng.random())
        mask = SMALL.connected(mask) if rng.random() < 0.5 else mask
        state = sampler._State(strata, mask)
        is_connected = bool((SMALL.connected(mask) == mask).all())
        assert (state.loose_ends == 0) == is_connected
        seen.add(is_connected)
    assert seen == {True, False}


def test_moving_edges_keeps_the_count_of_loose_ends_true():
    rng = np.random.default_rng(1)
    strata = Strata(SMALL)
    state = sampler._State(strata, SMALL.legal & (rng.random(SMALL.legal.shape) < 0.15))
    cells = np.flatnonzero(SMALL.legal).tolist()
    for _ in range(500):
        old = int(rng.choice(sorted(state.kept)))
        new = int(rng.choice([cell for cell in cells if cell not in state.kept]))
        state.swap(old, new)
        assert state.loose_ends == sampler._State(strata, state.mask()).loose_ends


def test_random_circuits_do_not_resemble_the_one_they_are_matched_to():
    matched = rank(MEDIUM, random_scores(MEDIUM, 2), MEDIUM.legal, "greedy").select(60).mask
    circuits = random_circuits(MEDIUM, matched, 20, np.random.default_rng(3))
    strata = Strata(MEDIUM)
    # what chance gives: in each stratum, edges kept times the share of its cells that are kept
    counts, cells = strata.profile(matched), np.array([len(c) for c in strata.cells])
    by_chance = float((counts**2 / cells).sum())
    overlap = np.mean([(circuit & matched).sum() for circuit in circuits])
    assert overlap < by_chance + 0.15 * matched.sum()


def test_the_same_generator_gives_the_same_circuits():
    matched = rank(MEDIUM, random_scores(MEDIUM, 4), MEDIUM.legal, "greedy").select(100).mask
    first, second = (random_circuits(MEDIUM, matched, 5, np.random.default_rng(9)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_a_circuit_with_dead_edges_is_no_model_to_match():
    with pytest.raises(AssertionError, match="on no path"):
        random_circuits(TINY, TINY.mask_of_edges(["0.0->logits"]), 1, np.random.default_rng(0))


def test_circuits_of_a_thousand_edges_of_a_real_models_graph_are_drawn():
    graph = Graph(GraphShape(30, 9, 3))
    matched = rank(graph, random_scores(graph, 0), graph.legal, "greedy").select(1100).mask
    assert matched.sum() > 500
    drawn = random_circuits(graph, matched, 5, np.random.default_rng(0))
    assert len({one.tobytes() for one in drawn}) == 5
    for one in drawn:
        assert one.sum() == matched.sum()
        assert (graph.connected(one) == one).all()
