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
    assert names(SMALL, result.mask) == {"mlp0->logits", "embed->logits"}
    assert names(SMALL, mask) == {"embed->mlp0", "mlp0->logits"}


def test_a_node_is_added_with_its_edges_to_the_circuits_nodes_alone():
    mask = SMALL.mask_of_edges(["embed->mlp0", "mlp0->logits"])
    added = names(SMALL, edited(SMALL, mask, add_nodes=["1.0"]).mask) - names(SMALL, mask)
    into = {f"{sender}->1.0.{kind}" for sender in ("embed", "mlp0") for kind in "qkv"}
    assert added == into | {"1.0->logits"}


def test_adding_nodes_to_nothing_is_the_hypothesis_of_those_nodes():
    result = edited(SMALL, EMPTY, add_nodes=["0.0", "mlp1"]).mask
    direct = SMALL.mask_of_edges(["embed->logits"])  # touches no added node
    assert (result == (SMALL.mask_of_nodes(["0.0", "mlp1"]) & ~direct)).all()


def test_a_removed_node_takes_all_its_edges_but_not_its_siblings_key_and_value():
    result = edited(SMALL, SMALL.legal, remove_nodes=["1.0"]).mask
    gone = names(SMALL, SMALL.legal & ~result)
    assert "1.0->logits" in gone
    assert "embed->1.0.q" in gone
    assert "embed->1.0.k" not in gone  # head 1.1 reads the same key
    both = names(SMALL, SMALL.legal & ~edited(SMALL, SMALL.legal, remove_nodes=["1.0", "1.1"]).mask)
    assert {"embed->1.0.k", "embed->1.0.v"} <= both


def test_without_shared_keys_nothing_of_a_removed_node_is_left():
    graph = Graph(GraphShape(2, 2, 2))
    left = names(graph, edited(graph, graph.legal, remove_nodes=["1.0", "mlp0"]).mask)
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
    assert "6 faults in the edit" in str(error.value)


def test_one_fault_is_told_in_the_singular():
    with pytest.raises(GraphMismatch, match="1 fault in the edit"):
        edited(TINY, TINY.legal, add_nodes=["9.9"])


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"remove_nodes": ["1.0"]}, "'1.0' has no edge in the circuit"),
        ({"remove_edges": ["embed->logits"]}, "'embed->logits' is not in the circuit"),
        ({"add_edges": ["mlp0 -> logits"]}, "'mlp0->logits' is in the circuit already"),
        ({"add_edges": ["embed->1.0.q"]}, "no path from embed to the logits"),
    ],
)
def test_an_edit_that_leaves_the_circuit_as_it_is_is_refused(edit, told):
    mask = SMALL.mask_of_edges(["embed->mlp0", "mlp0->logits"])
    with pytest.raises(GraphMismatch, match="leaves the circuit as it is") as error:
        edited(SMALL, mask, **edit)
    (fault,) = error.value.faults
    assert told in fault.message


def test_a_node_that_has_all_its_edges_is_not_added_again():
    with pytest.raises(GraphMismatch, match="'mlp0' is in the circuit already, with all its edges"):
        edited(SMALL, SMALL.legal, add_nodes=["mlp0"])


def test_names_that_change_nothing_beside_others_that_do_are_told():
    mask = SMALL.mask_of_edges(["embed->mlp0", "mlp0->logits"])
    result = edited(
        SMALL,
        mask,
        add_edges=["embed->mlp0", "embed->logits"],
        remove_edges=["mlp1->logits"],
        remove_nodes=["1.0", "mlp0"],
    )
    assert names(SMALL, result.mask) == {"embed->logits"}
    assert [(fault.where, fault.message.split()[0]) for fault in result.idle] == [
        ("add_edges", "'embed->mlp0'"),
        ("remove_edges", "'mlp1->logits'"),
        ("remove_nodes", "'1.0'"),
    ]


def test_an_edge_that_comes_with_an_added_node_can_be_removed_from_it():
    mask = SMALL.mask_of_edges(["embed->mlp0", "mlp0->logits"])
    result = edited(SMALL, mask, add_nodes=["1.0"], remove_edges=["embed->1.0.q"])
    assert result.idle == ()
    assert "embed->1.0.q" not in names(SMALL, result.mask)
    assert "mlp0->1.0.q" in names(SMALL, result.mask)


def test_idle_names_and_no_others_can_be_left_out_of_an_edit():
    """Oracle: without them the edit gives the same circuit; each other edge is one that came or went."""
    rng = np.random.default_rng(0)
    nodes = [sender.name for sender in SMALL.senders if sender.kind != "embed"]
    everything = [SMALL.edge_name(edge) for edge in SMALL.edges()]
    for _ in range(100):
        mask = SMALL.legal & (rng.random(SMALL.legal.shape) < 0.3)
        key = ("add_edges", "remove_edges", "add_nodes", "remove_nodes")[rng.integers(4)]
        given = [str(name) for name in rng.choice(everything if "edges" in key else nodes, 2, replace=False)]
        try:
            result = edited(SMALL, mask, **{key: given})
        except GraphMismatch:
            continue
        idle = [name for name in given if any(f"'{name}'" in fault.message for fault in result.idle)]
        busy = [name for name in given if name not in idle]
        assert (edited(SMALL, mask, **{key: busy}).mask == result.mask).all()
        if len(given) - len(idle) == 2 and "edges" in key:
            assert (result.mask != mask).sum() == 2


def test_an_edge_that_is_split_goes_at_one_role_or_at_all():
    graph = Graph(GraphShape(2, 2, 1).split_by(("S2",)))
    at_one = edited(graph, graph.legal, remove_edges=["embed->1.0.k@S2"]).mask
    assert names(graph, graph.legal & ~at_one) == {"embed->1.0.k@S2"}
    at_all = edited(graph, graph.legal, remove_edges=["embed->1.0.k"]).mask
    assert names(graph, graph.legal & ~at_all) == {f"embed->1.0.k@{role}" for role in ("S2", "end", "other")}
    back = edited(graph, at_all, add_edges=["embed->1.0.k"], remove_edges=["embed->1.0.k@S2"]).mask
    assert (back == at_one).all()


def test_a_node_goes_and_comes_at_every_role():
    graph = Graph(GraphShape(2, 2, 1).split_by(("S2",)))
    left = edited(graph, graph.legal, remove_nodes=["mlp0"]).mask
    assert not [name for name in names(graph, left) if "mlp0" in name]
    assert (edited(graph, left, add_nodes=["mlp0"]).mask == graph.legal).all()
