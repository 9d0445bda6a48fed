"""Where the nodes of a circuit whose edges are split by position role stand.

1. Groups. Every role at which an edge is drawn has its columns, in the order of the roles in the prompts: `other`
   first, `end` last. An edge lies within one token, so it stays in the group of its role; embed is a bar in each,
   logits in that of `end`.
2. Rows. As for whole edges, the same ones in all groups: layers are level with each other.
3. Boxes. At a role stand the heads and MLPs that an edge leaves or enters there. A key or value input of which no
   head does more there has a paler box of its own, named after the head or, where several share it, after the first and
   the last of them (12.0–3). In a row the boxes stand side by side from the left, MLPs in a last column of their own.
4. Attention. Key and value inputs are joined to the heads that look at them, wherever these are drawn: within the row,
   from group to group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from acdc.circuit import Circuit
from acdc.drawing.placing import BAR, PORT_OFFSET, Attention, Group, Link, Place, Placement, link_of
from acdc.graph import END, OTHER, Edge, Graph, Receiver

PALE_PORT_OFFSET = {"k": -9.0, "v": 9.0}

Spot = tuple[str, str]  # a box's name and role
Row = tuple[int, bool]  # layer, and whether it is that of an MLP above the heads


@dataclass(frozen=True, order=True)
class Box:
    """A drawn head, MLP, pos or key and value input at a role, ordered from left to right within a row. first: the
    number of its first head."""

    layer: int
    is_mlp: bool
    first: int
    is_head: bool  # a key and value input stands left of the heads that share it
    name: str
    role: str
    readers: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        if self.name == "pos":
            return "pos"
        return "kv" if self.readers else "head" if self.is_head else "mlp"


def place_by_role(circuit: Circuit, edges: Sequence[Edge]) -> Placement:
    """`links` are in the order of the edges given."""
    graph = circuit.graph
    boxes = _boxes(graph, edges)
    used = {box.role for box in boxes} | {_role(graph, edge) for edge in edges} | {END}
    roles = [role for role in reading_order(circuit) if role in used]
    rows = sorted({_row(graph, box) for box in boxes})
    columns, groups = _columns(graph, boxes, roles)
    bars = [[Place("embed", "bar", 0, BAR, role) for role in roles]]
    drawn = [
        [Place(b.name, b.kind, r, columns[b], b.role, b.readers) for b in _in_row(graph, boxes, row, roles)]
        for r, row in enumerate(rows, 1)
    ]
    placed = [*bars, *drawn, [Place("logits", "bar", len(rows) + 1, BAR, END)]]
    places = {(place.name, place.role): place for row in placed for place in row}
    links = [_link(circuit, edge, places) for edge in edges]
    attention = [one for row in drawn for one in _attention(row, links, graph)]
    return Placement(placed, [-1, *(layer for layer, _ in rows), -1], groups, links, attention=attention)


def reading_order(circuit: Circuit) -> list[str]:
    """The graph's roles as they follow each other in the prompts, where that was noted; `other` first, `end` last."""
    known = circuit.provenance.task.roles
    place = {role: i for i, role in enumerate(known)}
    return sorted(circuit.graph.shape.roles, key=lambda r: (r == END, r != OTHER, place.get(r, len(known)), r))


def _role(graph: Graph, edge: Edge) -> str:
    return graph.receivers[edge.receiver].role or END


# -- boxes -------------------------------------------------------------------------------------------------------------


def _boxes(graph: Graph, edges: Sequence[Edge]) -> list[Box]:
    """From left to right in every row."""
    boxes = set()
    for edge in edges:
        sender, role = graph.senders[edge.sender], _role(graph, edge)
        if sender.kind != "embed":
            boxes.add(Box(sender.layer, sender.kind == "mlp", sender.head, sender.kind == "head", sender.name, role))
        receiver = graph.receivers[edge.receiver]
        if receiver.kind in ("q", "mlp"):
            (name,) = graph.nodes_read_by(edge.receiver)
            boxes.add(Box(receiver.layer, receiver.kind == "mlp", receiver.head, receiver.kind == "q", name, role))
    active = {(box.name, box.role) for box in boxes}
    return sorted(boxes | {box for edge in edges for box in _pale_box(graph, edge, active)})


def _pale_box(graph: Graph, edge: Edge, active: set[Spot]) -> Iterable[Box]:
    """The box of a key or value input that has no other: of every one that heads share, and of one whose head neither
    writes nor has its query read at this role."""
    receiver = graph.receivers[edge.receiver]
    readers = graph.nodes_read_by(edge.receiver)
    name = _host(graph, receiver, readers)
    if receiver.kind in ("k", "v") and (name, receiver.role) not in active:
        first = receiver.head * len(readers)
        yield Box(receiver.layer, False, first, False, name, receiver.role, readers)


def _host(graph: Graph, receiver: Receiver, readers: Sequence[str]) -> str:
    """The name of the box that carries a receiver's port."""
    if len(readers) == 1:
        return readers[0]
    return f"{readers[0]}–{readers[-1].partition('.')[2]}"


# -- rows and columns --------------------------------------------------------------------------------------------------


def _row(graph: Graph, box: Box) -> Row:
    return box.layer, box.is_mlp and not graph.shape.is_parallel


def _in_row(graph: Graph, boxes: Sequence[Box], row: Row, roles: Sequence[str]) -> list[Box]:
    """Its boxes, role by role, from left to right."""
    here = [box for box in boxes if _row(graph, box) == row]
    return sorted(here, key=lambda box: roles.index(box.role))


def _columns(graph: Graph, boxes: Sequence[Box], roles: Sequence[str]) -> tuple[dict[Box, int], list[Group]]:
    """The column of every box, and the groups of the roles. pos has the first of its group, MLPs the last."""
    columns: dict[Box, int] = {}
    groups, start = [], 0
    for role in roles:
        here = [box for box in boxes if box.role == role]
        first_head = start + any(box.kind == "pos" for box in here)
        in_row: dict[Row, int] = defaultdict(int)
        for box in here:
            if box.kind in ("head", "kv"):
                columns[box] = first_head + in_row[_row(graph, box)]
                in_row[_row(graph, box)] += 1
        mlps = first_head + max(in_row.values(), default=0)
        columns |= {box: mlps for box in here if box.kind == "mlp"}
        columns |= {box: start for box in here if box.kind == "pos"}
        groups.append(Group(role, range(start, mlps + any(box.kind == "mlp" for box in here))))
        start = groups[-1].columns.stop + 1
    return columns, groups


# -- what joins them ---------------------------------------------------------------------------------------------------


def _link(circuit: Circuit, edge: Edge, places: Mapping[Spot, Place]) -> Link:
    graph = circuit.graph
    receiver, role = graph.receivers[edge.receiver], _role(graph, edge)
    end = places[_host(graph, receiver, graph.nodes_read_by(edge.receiver)), role]
    offsets = PALE_PORT_OFFSET if end.kind == "kv" else PORT_OFFSET
    start = places[graph.senders[edge.sender].name, role]
    return link_of(circuit, edge, start, [end], offsets.get(receiver.kind, 0.0))


def _attention(row: Sequence[Place], links: Sequence[Link], graph: Graph) -> list[Attention]:
    """Of every key/value head of a row: from what is read at roles before `end` to all heads that look at it, and from
    what is read at `end`, which nothing comes after, to those at `end`."""
    read = {
        (link.end, graph.nodes_read_by(link.edge.receiver))
        for link in links
        if graph.receivers[link.edge.receiver].kind in ("k", "v")
    }
    found = []
    for readers in sorted({readers for place, readers in read if place in row}):
        sources = [place for place in row if (place, readers) in read]
        heads = [place for place in row if place.kind == "head" and place.name in readers]
        for is_end in (False, True):
            own = [place for place in sources if (place.role == END) == is_end]
            looking = [place for place in heads if place.role == END or not is_end]
            targets = [place for place in looking if set(own) - {place}]
            if targets:
                found.append(Attention(tuple(own), tuple(targets)))
    return found
