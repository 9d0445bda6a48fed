from __future__ import annotations

import numpy as np
import pytest
from analytic_measure import SMALL, TINY

from acdc.errors import GraphMismatch
from acdc.evaluation.editing import complement, edited
from acdc.graph import Graph, GraphShape

EMPTY = np.zeros_like(SMALL.legal)


def names(graph, mask):
    return {graph.edge_name(edge) for edge in graph.edges() if mask[edge.sender, edge.receiver]}


def test_circuit_and_complement_share_nothing_and_make_the_graph():
    mask = SMALL.mask_of_edges(["embed->mlp0", "mlp0->logits"])
    assert not (mask & complement(SMALL, mask)).any()
    assert ((mask | complement(SMALL, mask)) == SMALL.legal).all()


def test_edges_are_added_and_removed_by_name():
    mask = SMALL.mask_of_edges(["embed->mlp0", "mlp0->logits"])
    result = edited(SMALL, mask, add_edges=["embed->logits"], remove_edges=["embed->mlp0"])
    assert names(SMALL, result) == {"mlp0->logits", "embed->logits"}
    assert names(SMALL, mask) == {"embed->mlp0", "mlp0->logits"}


def test_a_node_is_added_with_its_edges_to_the_circuits_nodes_alone():
    mask = SMALL.mask_of_edges(["embed->mlp0", "mlp0->logits"])
    added = names(SMALL, edited(SMALL, mask, add_nodes=["1.0"])) - names(SMALL, mask)
    into = {f"{sender}->1.0.{kind}" for sender in ("embed", "mlp0") for kind in "qkv"}
    assert added == into | {"1.0->logits"}


def test_adding_nodes_to_nothing_is_the_hypothesis_of_those_nodes():
    result = edited(SMALL, EMPTY, add_nodes=["0.0", "mlp1"])
    direct = SMALL.mask_of_edges(["embed->logits"])  # touches no added node
    assert (result == (SMALL.mask_of_nodes(["0.0", "mlp1"]) & ~direct)).all()


def test_a_removed_node_takes_all_its_edges_but_not_its_siblings_key_and_value():
    result = edited(SMALL, SMALL.legal, remove_nodes=["1.0"])
    gone = names(SMALL, SMALL.legal & ~result)
    assert "1.0->logits" in gone
    assert "embed->1.0.q" in gone
    assert "embed->1.0.k" not in gone  # head 1.1 reads the same key
    both = names(SMALL, SMALL.legal & ~edited(SMALL, SMALL.legal, remove_nodes=["1.0", "1.1"]))
    assert {"embed->1.0.k", "embed->1.0.v"} <= both


def test_without_shared_keys_nothing_of_a_removed_node_is_left():
    graph = Graph(GraphShape(2, 2, 2))
    left = names(graph, edited(graph, graph.legal, remove_nodes=["1.0", "mlp0"]))
    assert not [name for name in left if "1.0" in name or "mlp0" in name]


def test_every_fault_of_an_edit_is_told_at_once():
    with pytest.raises(GraphMismatch) as error:
        edited(
            TINY,
            TINY.legal,
            add_edges=["7.7->logits", "embed->logits"],
            remove_edges=["mlp0->0.0.q", "embed->logits"],
            add_nodes=["9.9", "mlp0"],
            remove_nodes=["mlp0", "head"],
        )
    assert sorted(fault.where for fault in error.value.faults) == sorted(
        ["add_edges", "remove_edges", "add_nodes", "remove_nodes", "add_edges", "add_nodes"]
    )
    assert "'7.7'" in str(error.value)
    assert "both added and removed" in str(error.value)
