"""Changing a circuit by hand: its complement, and edges or nodes added or removed by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from acdc.errors import Fault, GraphMismatch
from acdc.graph import BoolMatrix, Graph

T = TypeVar("T")


def complement(graph: Graph, mask: BoolMatrix) -> BoolMatrix:
    """Every legal edge that the circuit has not."""
    return graph.legal & ~mask


def edited(
    graph: Graph,
    mask: BoolMatrix,
    *,
    add_edges: Sequence[str] = (),
    remove_edges: Sequence[str] = (),
    add_nodes: Sequence[str] = (),
    remove_nodes: Sequence[str] = (),
) -> BoolMatrix:
    """The circuit with edges (`5.5->9.6.q`) and nodes (`9.6`, `mlp0`) added, then others removed. Dead edges stay.

    A node is added with every edge between it and the nodes that the circuit then has, embed and the logits among them.
    A node is removed with every edge out of it and into it; a key or value input goes only where all heads that read it
    are removed. Raises GraphMismatch with every name that this graph has not, or that is both added and removed.
    """
    faults: list[Fault] = []
    edges_in = _collect(graph.edge, add_edges, "add_edges", faults)
    edges_out = _collect(graph.edge, remove_edges, "remove_edges", faults)
    _collect(graph.sender_index, add_nodes, "add_nodes", faults)
    _collect(graph.sender_index, remove_nodes, "remove_nodes", faults)
    for what, added, removed in (("edges", add_edges, remove_edges), ("nodes", add_nodes, remove_nodes)):
        both = sorted({name.strip() for name in added} & {name.strip() for name in removed})
        faults += [Fault(f"add_{what}", f"{name!r} is both added and removed; leave out one") for name in both]
    if faults:
        raise GraphMismatch(f"{len(faults)} faults in the edit of a circuit", faults)
    result = mask.copy()
    if add_nodes:
        result |= _edges_of_nodes(graph, mask, [name.strip() for name in add_nodes])
    for edge in edges_in:
        result[edge.sender, edge.receiver] = True
    result &= ~_touching_only(graph, {name.strip() for name in remove_nodes})
    for edge in edges_out:
        result[edge.sender, edge.receiver] = False
    return result


def _collect(parse: Callable[[str], T], names: Sequence[str], where: str, faults: list[Fault]) -> list[T]:
    found = []
    for name in names:
        try:
            found.append(parse(name.strip()))
        except GraphMismatch as error:
            faults.append(Fault(where, error.message))
    return found


def _edges_of_nodes(graph: Graph, mask: BoolMatrix, added: Sequence[str]) -> BoolMatrix:
    """Edges with an added node at one end at least, and a node of the circuit or an added one at the other."""
    present = {graph.senders[s].name for s in np.flatnonzero(mask.any(1))}
    for r in np.flatnonzero(mask.any(0)):
        present |= set(graph.nodes_read_by(int(r)))
    among = graph.mask_of_nodes((present | set(added)) - {"logits"})
    return among & _touching(graph, set(added))


def _touching(graph: Graph, nodes: set[str]) -> BoolMatrix:
    """Edges out of or into any of the nodes."""
    rows = np.array([sender.name in nodes for sender in graph.senders])
    columns = np.array([bool(nodes & set(graph.nodes_read_by(r))) for r in range(graph.n_receivers)])
    touching: BoolMatrix = graph.legal & (rows[:, None] | columns[None, :])
    return touching


def _touching_only(graph: Graph, nodes: set[str]) -> BoolMatrix:
    """Edges out of any of the nodes, or into a receiver that only they read."""
    rows = np.array([sender.name in nodes for sender in graph.senders])
    columns = np.array([set(graph.nodes_read_by(r)) <= nodes for r in range(graph.n_receivers)])
    touching: BoolMatrix = graph.legal & (rows[:, None] | columns[None, :])
    return touching
