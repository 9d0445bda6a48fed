"""Where the nodes of a circuit of whole edges stand.

1. Rows. embed is a bar at the bottom, logits a bar at the top. Between them every layer with a drawn node has a row of
   heads and, above it, a row for its MLP (one row for both where they run in parallel). All other layers are left out.
2. Columns. A head's column is its number, in every layer; the MLPs have the last column. Unused columns are left out.
   Where positions are split off the embedding, pos is a box above the bar, in a first column of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from acdc.circuit import Circuit
from acdc.drawing.placing import BAR, PORT_OFFSET, Group, Link, Place, Placement, link_of
from acdc.graph import Edge, Graph


def place_whole(circuit: Circuit, edges: Sequence[Edge]) -> Placement:
    """`links` are in the order of the edges given."""
    graph = circuit.graph
    names = _rows(graph, _drawn_nodes(graph, edges))
    columns = _columns(names)
    rows = [
        [Place(name, _kind(name), r, columns.get(_column_key(name), BAR)) for name in row]
        for r, row in enumerate(names)
    ]
    places = {place.name: place for row in rows for place in row}
    links = [_link(circuit, edge, places) for edge in edges]
    layers = [-1 if row[0] == "logits" else graph.senders[graph.sender_index(row[0])].layer for row in names]
    return Placement(rows, layers, [Group("", range(len(columns)))], links, _joined(graph, links))


def _drawn_nodes(graph: Graph, edges: Sequence[Edge]) -> set[str]:
    """Every node that writes, or has an input of its own. A key or value edge alone brings no head of its group, unless
    none of them is drawn anyway."""
    names = {"embed", "logits"}
    names |= {graph.senders[edge.sender].name for edge in edges}
    shared = []
    for edge in edges:
        readers = graph.nodes_read_by(edge.receiver)
        if len(readers) == 1:
            names.add(readers[0])
        else:
            shared.append(readers)
    for readers in shared:
        if not names & set(readers):
            names |= set(readers)
    return names


def _rows(graph: Graph, names: set[str]) -> list[list[str]]:
    rows = [[sender.name] for sender in graph.senders[: graph.n_inputs] if sender.name in names]
    for layer in range(graph.shape.n_layers):
        heads = [s.name for s in graph.senders[graph.heads_of_layer(layer)] if s.name in names]
        mlp = [f"mlp{layer}"] if f"mlp{layer}" in names else []
        rows += [heads + mlp] if graph.shape.is_parallel else [heads, mlp]
    return [row for row in [*rows, ["logits"]] if row]


def _kind(name: str) -> str:
    if "." in name:
        return "head"
    return "mlp" if name.startswith("mlp") else "pos" if name == "pos" else "bar"


def _column_key(name: str) -> tuple[str, int]:
    """What shares a column: pos, heads of one number, MLPs."""
    kind = _kind(name)
    return kind, int(name.partition(".")[2]) if kind == "head" else -1


def _columns(names: Sequence[Sequence[str]]) -> dict[tuple[str, int], int]:
    keys = {_column_key(name) for row in names for name in row if _kind(name) != "bar"}
    order = ("pos", "head", "mlp")
    return {key: i for i, key in enumerate(sorted(keys, key=lambda key: (order.index(key[0]), key[1])))}


def _link(circuit: Circuit, edge: Edge, places: dict[str, Place]) -> Link:
    receiver = circuit.graph.receivers[edge.receiver]
    ends = [places[name] for name in circuit.graph.nodes_read_by(edge.receiver) if name in places]
    start = places[circuit.graph.senders[edge.sender].name]
    return link_of(circuit, edge, start, ends, PORT_OFFSET.get(receiver.kind, 0.0))


def _joined(graph: Graph, links: Sequence[Link]) -> list[tuple[Place, ...]]:
    """The drawn heads of every key/value group whose k or v an edge enters."""
    groups = {link.ends for link in links if graph.receivers[link.edge.receiver].kind in ("k", "v")}
    return sorted(groups, key=lambda places: tuple(place.name for place in places))
