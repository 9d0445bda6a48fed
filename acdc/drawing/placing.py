"""What a circuit's picture is laid out from: who stands in which row and column, and what joins them. No pixels yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acdc.circuit import Circuit
from acdc.graph import Edge

BAR = -1  # the column of what has none: it is as wide as its group
PORT_OFFSET = {"q": -18.0, "k": 0.0, "v": 18.0}  # pixels from the middle of a head


@dataclass(frozen=True)
class Place:
    """Where a drawn node stands: its row from the bottom and its column (BAR for embed and logits).

    kind: head, kv (a key and value input alone), mlp, pos or bar. role: at whose tokens, where edges are split by role.
    readers: for kv, the heads that read it.
    """

    name: str
    kind: str
    row: int
    column: int
    role: str = ""
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Link:
    """A drawn edge. `column` and `offset` say where its port is: k and v are ports of the first head of their group.
    ends: the drawn nodes whose input it enters, several where they share a key or value; its port is at `end`."""

    edge: Edge
    name: str
    score: float
    is_tested: bool
    start: Place
    end: Place
    column: int
    offset: float
    ends: tuple[Place, ...]

    @property
    def lane_owner(self) -> tuple[str, bool]:
        """Edges into logits from nodes merge on their way there; all others part on their way from the sender."""
        is_merging = self.end.kind == "bar" and self.start.kind != "bar"
        return (self.end if is_merging else self.start).name, self.score < 0


@dataclass(frozen=True)
class Group:
    """Columns side by side, first to last, whose edges keep among themselves. The next group's first column is one
    number further on, so that gutter g, left of column g, is of one group only."""

    role: str
    columns: range

    @property
    def gutters(self) -> range:
        return range(self.columns.start, self.columns.stop + 1)


@dataclass(frozen=True)
class Attention:
    """From where in a row to where attention carries something: the places at which a key or value input is read, and
    those of the heads that look at them."""

    sources: tuple[Place, ...]
    targets: tuple[Place, ...]

    @property
    def row(self) -> int:
        return self.sources[0].row


@dataclass(frozen=True)
class Placement:
    """rows: the places of each row, from the bottom. layers: of each row, -1 for those of no layer. joined: heads in a
    row that share a key/value head. Groups, places and links are in drawing order."""

    rows: Sequence[Sequence[Place]]
    layers: Sequence[int]
    groups: Sequence[Group]
    links: Sequence[Link]
    joined: Sequence[Sequence[Place]] = ()
    attention: Sequence[Attention] = ()

    @property
    def places(self) -> list[Place]:
        return [place for row in self.rows for place in row]


def link_of(circuit: Circuit, edge: Edge, start: Place, ends: Sequence[Place], offset: float) -> Link:
    """An edge between places. ends: as in Link, the one with the port first."""
    cell = edge.sender, edge.receiver
    name, score, is_tested = circuit.graph.edge_name(edge), float(circuit.scores[cell]), bool(circuit.tested[cell])
    return Link(edge, name, score, is_tested, start, ends[0], ends[0].column, offset, tuple(ends))
