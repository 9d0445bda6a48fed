"""Changing a circuit by hand: its complement, and edges or nodes added or removed by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from acdc.errors import Fault, GraphMismatch
from acdc.graph import BoolMatrix, Edge, Graph

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Edited:
    """mask: bool [senders, receivers], the changed circuit. idle: of each name that changed nothing, why."""

    mask: BoolMatrix
    idle: tuple[Fault, ...]


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
) -> Edited:
    """The circuit with edges (`5.5->9.6.q`) and nodes (`9.6`, `mlp0`) added, then others removed. Dead edges stay.
    Where edges are split by role, `5.5->9.6.q` is its parts at all roles and `5.5->9.6.q@S2` one of them.

    A node is added with every edge between it and the nodes that the circuit then has, embed and the logits among them.
    A node is removed with every edge out of it and into it; a key or value input goes only where all heads that read it
    are removed. Raises GraphMismatch with every name that this graph has not, or that is both added and removed, and
    where the connected edges stay the same: whoever asks for a change must not take the old figures for those of a new
    circuit. Of several names, some may be idle, as in a sweep over a list of heads.
    """
    edges_in, edges_out = _read_names(graph, add_edges, remove_edges, add_nodes, remove_nodes)
    nodes_in, nodes_out = _names(add_nodes), _names(remove_nodes)
    entering = _edges_of_nodes(graph, mask, nodes_in) if nodes_in else np.zeros_like(mask)
    largest = mask | entering | graph.mask_of(edges_in)
    leaving = _touching_only(graph, set(nodes_out))
    result = largest & ~leaving & ~graph.mask_of(edges_out)
    idle = [
        *_idle_edges(graph, edges_in, mask, "add_edges", "is in the circuit already"),
        *_idle_nodes(graph, nodes_in, entering & ~mask, "add_nodes", "is in the circuit already, with all its edges"),
        *_idle_edges(graph, edges_out, ~largest, "remove_edges", "is not in the circuit"),
        *_idle_nodes(graph, nodes_out, leaving & largest, "remove_nodes", "has no edge in the circuit that could go"),
    ]
    if (graph.connected(result) == graph.connected(mask)).all():
        raise GraphMismatch(
            "the edit leaves the circuit as it is; evaluate it without an edit, or name other edges or nodes",
            idle or [Fault("edit", "what changes lies on no path from embed to the logits")],
        )
    return Edited(result, tuple(idle))


def _read_names(
    graph: Graph,
    add_edges: Sequence[str],
    remove_edges: Sequence[str],
    add_nodes: Sequence[str],
    remove_nodes: Sequence[str],
) -> tuple[list[Edge], list[Edge]]:
    """The edges to add and to remove. Raises GraphMismatch with every fault."""
    faults: list[Fault] = []
    edges_in = [edge for parts in _collect(graph.parts, add_edges, "add_edges", faults) for edge in parts]
    edges_out = [edge for parts in _collect(graph.parts, remove_edges, "remove_edges", faults) for edge in parts]
    _collect(graph.sender_index, add_nodes, "add_nodes", faults)
    _collect(graph.sender_index, remove_nodes, "remove_nodes", faults)
    for what, added, removed in (("edges", add_edges, remove_edges), ("nodes", add_nodes, remove_nodes)):
        both = sorted({name.strip() for name in added} & {name.strip() for name in removed})
        faults += [Fault(f"add_{what}", f"{name!r} is both added and removed; leave out one") for name in both]
    if faults:
        raise GraphMismatch(f"{len(faults)} fault{'s' * (len(faults) != 1)} in the edit of a circuit", faults)
    return edges_in, edges_out


def _names(given: Sequence[str]) -> list[str]:
    return [name.strip() for name in given]


def _idle_edges(graph: Graph, edges: Sequence[Edge], done: BoolMatrix, where: str, why: str) -> Iterator[Fault]:
    """done: the edges with which nothing is left to do."""
    for edge in edges:
        if done[edge.sender, edge.receiver]:
            yield Fault(where, f"{graph.edge_name(edge)!r} {why}")


def _idle_nodes(graph: Graph, nodes: Sequence[str], changed: BoolMatrix, where: str, why: str) -> Iterator[Fault]:
    """changed: the edges that come or go with any of the nodes."""
    for name in nodes:
        if not (changed & _touching(graph, {name})).any():
            yield Fault(where, f"{name!r} {why}")


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
