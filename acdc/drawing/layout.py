"""Where the parts of a circuit's picture stand, and which way its edges take. Pixels, origin at the upper left.

1. Rows. embed is a bar at the bottom, logits a bar at the top. Between them every layer with a drawn node has a row of
   heads and, above it, a row for its MLP (one row for both where they run in parallel). All other layers are left out.
2. Columns. A head's column is its number, in every layer; the MLPs have the last column. Unused columns are left out.
   Where positions are split off the embedding, pos is a box above the bar, in a first column of its own.
3. Routes. An edge with nothing in its way goes straight. Any other takes a lane in a gutter between two columns, so no
   edge runs behind a node. Edges of one sender and one sign share a lane until they part; so do edges into logits.
4. Tracks. Lanes of a gutter that overlap in height lie side by side (interval colouring by left edge).
5. Sizes. Gutters are as wide as their tracks ask for, gaps between rows as high as the curves in them ask for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from acdc.circuit import Circuit
from acdc.drawing.svg import number
from acdc.graph import Edge, Graph, Receiver

BOX_WIDTH, BOX_HEIGHT = 54.0, 22.0
PORT_WIDTH, PORT_HEIGHT = 17.0, 13.0
BAR_HEIGHT = 24.0
PORT_OFFSET = {"q": -18.0, "k": 0.0, "v": 18.0, "mlp": 0.0}
MIN_WIDTH = 160.0  # of the bars
TRACK = 6.0  # between two lanes
GUTTER_MARGIN = 8.0  # between a lane and a node
GAP, GAP_PER_CURVE, MAX_GAP = 30.0, 1.6, 110.0
FAR = 2  # rows that a straight edge may climb when it also changes columns

BAR = -1  # the column of what has none


@dataclass(frozen=True)
class Place:
    """Where a drawn node stands: its row from the bottom and its column (BAR for embed and logits)."""

    name: str
    kind: str
    row: int
    column: int


@dataclass(frozen=True)
class Link:
    """A drawn edge. `column` and `offset` say where its port is: k and v are ports of the first head of their group."""

    edge: Edge
    name: str
    score: float
    is_tested: bool
    start: Place
    end: Place
    column: int
    offset: float


@dataclass(frozen=True)
class Bundle:
    """Links that share a lane: in which gutter, from which row to which."""

    gutter: int
    first_row: int
    last_row: int


class Layout:
    """All coordinates of a picture. `links` are in the order of the edges given."""

    def __init__(self, circuit: Circuit, edges: Sequence[Edge], left: float, top: float) -> None:
        graph = circuit.graph
        self.rows = _rows(graph, _drawn_nodes(graph, edges))
        heads = sorted({_head_number(name) for row in self.rows for name in row if "." in name})
        has_pos = any("pos" in row for row in self.rows)
        self.columns = {head: int(has_pos) + i for i, head in enumerate(heads)}
        self.mlp_column = int(has_pos) + len(heads)
        has_mlp = any(name.startswith("mlp") for row in self.rows for name in row)
        self.n_columns = self.mlp_column + has_mlp
        self.places = {name: self._place(name, r) for r, row in enumerate(self.rows) for name in row}
        self._occupied = {(place.row, place.column) for place in self.places.values()}
        self.links = [self._link(circuit, edge) for edge in edges]
        gutters = self._routes()
        tracks, n_tracks = _tracks(self._bundles(gutters))
        self._set_columns(left, n_tracks)
        self._set_rows(top, gutters)
        self.paths = [self._path(link, gutters.get(i), tracks) for i, link in enumerate(self.links)]

    # -- rows, columns, ports --------------------------------------------------------------------------------------

    def _place(self, name: str, row: int) -> Place:
        if "." in name:
            return Place(name, "head", row, self.columns[_head_number(name)])
        if name.startswith("mlp"):
            return Place(name, "mlp", row, self.mlp_column)
        if name == "pos":
            return Place(name, "pos", row, 0)
        return Place(name, "bar", row, BAR)

    def _link(self, circuit: Circuit, edge: Edge) -> Link:
        graph = circuit.graph
        receiver = graph.receivers[edge.receiver]
        end = self.places[self.host(graph, receiver)]
        return Link(
            edge,
            graph.edge_name(edge),
            float(circuit.scores[edge.sender, edge.receiver]),
            bool(circuit.tested[edge.sender, edge.receiver]),
            self.places[graph.senders[edge.sender].name],
            end,
            end.column,
            PORT_OFFSET.get(receiver.kind, 0.0),
        )

    def host(self, graph: Graph, receiver: Receiver) -> str:
        """The drawn node that carries a receiver's port."""
        readers = graph.nodes_read_by(graph.receiver_index(receiver.name))
        return next(name for name in readers if name in self.places)

    # -- routes ----------------------------------------------------------------------------------------------------

    def _is_free(self, link: Link) -> bool:
        """Whether a straight edge meets no node between its ends."""
        start, end = link.start.column, link.column
        ends = [column for column in (start, end) if column != BAR]
        climb = link.end.row - link.start.row
        if not ends or (len(set(ends)) == 2 and climb > FAR):
            return False
        between = range(link.start.row + 1, link.end.row)
        crossed = range(min(ends), max(ends) + 1)
        return not any((row, column) in self._occupied for row in between for column in crossed)

    def _routes(self) -> dict[int, int]:
        """Gutter per link that needs one; gutter g lies left of column g. Strong edges choose first."""
        gutters: dict[int, int] = {}
        senders_there: dict[int, set[tuple[str, bool]]] = defaultdict(set)
        for i, link in enumerate(self.links):
            if self._is_free(link):
                continue
            ends = [2 * column + 1 for column in (link.start.column, link.column) if column != BAR]
            who = _lane_owner(link)

            def cost(g: int, ends: list[int] = ends, who: tuple[str, bool] = who) -> tuple[int, bool, int, int]:
                detour = sum(abs(2 * g - end) for end in ends)
                return detour, who not in senders_there[g], len(senders_there[g]), g

            gutters[i] = min(range(self.n_columns + 1), key=cost)
            senders_there[gutters[i]].add(who)
        return gutters

    def _bundles(self, gutters: dict[int, int]) -> dict[tuple[int, tuple[str, bool]], Bundle]:
        members: dict[tuple[int, tuple[str, bool]], list[Link]] = defaultdict(list)
        for i, gutter in gutters.items():
            members[gutter, _lane_owner(self.links[i])].append(self.links[i])
        return {
            key: Bundle(key[0], min(link.start.row for link in links), max(link.end.row for link in links))
            for key, links in members.items()
        }

    # -- coordinates -----------------------------------------------------------------------------------------------

    def _set_columns(self, left: float, n_tracks: Counter[int]) -> None:
        self.left = left
        n_lanes = sum(max(n_tracks[column] - 1, 1) for column in range(self.n_columns + 1))
        needed = self.n_columns * BOX_WIDTH + (self.n_columns + 1) * 2 * GUTTER_MARGIN + n_lanes * TRACK
        spare = max(MIN_WIDTH - needed, 0.0) / 2  # the bars must hold their names
        x = left + spare
        self.gutter_left: list[float] = []
        self.column_x: list[float] = []
        for column in range(self.n_columns + 1):
            self.gutter_left.append(x)
            x += 2 * GUTTER_MARGIN + TRACK * max(n_tracks[column] - 1, 1)
            if column < self.n_columns:
                self.column_x.append(x + BOX_WIDTH / 2)
                x += BOX_WIDTH
        self.right = x + spare

    def _set_rows(self, top: float, gutters: dict[int, int]) -> None:
        """`row_top` is where edges leave a row, `row_bottom` where they enter it."""
        curves: Counter[int] = Counter()
        for i, link in enumerate(self.links):
            if i in gutters or link.end.row == link.start.row + 1:
                curves.update({link.start.row, link.end.row - 1})
        self.row_top, self.row_bottom = [0.0] * len(self.rows), [0.0] * len(self.rows)
        y = top
        for row in reversed(range(len(self.rows))):
            self.row_top[row] = y
            self.row_bottom[row] = y = y + self._height(row)
            y += min(GAP + GAP_PER_CURVE * curves[row - 1], MAX_GAP) if row else 0.0
        self.bottom = y

    def _height(self, row: int) -> float:
        kinds = {self.places[name].kind for name in self.rows[row]}
        if kinds == {"bar"}:
            return BAR_HEIGHT
        return BOX_HEIGHT + (PORT_HEIGHT if "head" in kinds else 0.0)

    def _path(self, link: Link, gutter: int | None, tracks: dict[tuple[int, tuple[str, bool]], int]) -> str:
        y_start = self.row_top[link.start.row]
        y_end = self.row_bottom[link.end.row] - (0 if link.end.kind != "mlp" else self._slack(link.end.row))
        x_end = self.column_x[link.column] + link.offset if link.column != BAR else None
        x_start = self.column_x[link.start.column] if link.start.column != BAR else None
        if gutter is None:
            begin, finish = x_start if x_start is not None else x_end, x_end if x_end is not None else x_start
            assert begin is not None, "two bars are never joined without a lane"
            assert finish is not None
            return f"M{number(begin)} {number(y_start)}" + _bend(begin, y_start, finish, y_end)
        x = self.gutter_left[gutter] + GUTTER_MARGIN + TRACK * tracks[gutter, _lane_owner(link)]
        begin, finish = x if x_start is None else x_start, x if x_end is None else x_end
        y_up, y_off = self.row_bottom[link.start.row + 1], self.row_top[link.end.row - 1]
        return (
            f"M{number(begin)} {number(y_start)}"
            + _bend(begin, y_start, x, y_up)
            + f" V{number(y_off)}"
            + _bend(x, y_off, finish, y_end)
        )

    def _slack(self, row: int) -> float:
        """How much higher than its row an MLP ends: it has no ports below its box."""
        return self._height(row) - BOX_HEIGHT


def _bend(x: float, y: float, x_to: float, y_to: float) -> str:
    if number(x) == number(x_to):
        return f" V{number(y_to)}"
    middle = number((y + y_to) / 2)
    return f" C{number(x)} {middle} {number(x_to)} {middle} {number(x_to)} {number(y_to)}"


def _lane_owner(link: Link) -> tuple[str, bool]:
    """Edges into logits from nodes merge on their way there; all others part on their way from the sender."""
    is_merging = link.end.kind == "bar" and link.start.kind != "bar"
    return (link.end if is_merging else link.start).name, link.score < 0


def _tracks(
    bundles: dict[tuple[int, tuple[str, bool]], Bundle],
) -> tuple[dict[tuple[int, tuple[str, bool]], int], Counter[int]]:
    """Track of every lane, and how many tracks each gutter has."""
    free_from: dict[int, list[int]] = defaultdict(list)  # gutter -> per track, the row from which it is free
    tracks: dict[tuple[int, tuple[str, bool]], int] = {}
    for key, bundle in sorted(bundles.items(), key=lambda item: (item[1].first_row, item[1].last_row, item[0])):
        ends = free_from[bundle.gutter]
        track = next((t for t, row in enumerate(ends) if row <= bundle.first_row), len(ends))
        ends[track : track + 1] = [bundle.last_row]
        tracks[key] = track
    return tracks, Counter({gutter: len(ends) for gutter, ends in free_from.items()})


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


def _head_number(name: str) -> int:
    return int(name.partition(".")[2])
