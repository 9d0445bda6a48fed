"""Where the parts of a circuit's picture stand in pixels, and which way its edges take. Origin at the upper left.

1. Placement. Rows and columns of the nodes: `place_whole`, or `place_by_role` where edges are split by role.
2. Routes. An edge with nothing in its way goes straight. Any other takes a lane in a gutter between two columns, so no
   edge runs behind a node. Edges of one sender and one sign share a lane until they part; so do edges into logits.
3. Tracks. Lanes of a gutter that overlap in height lie side by side (interval colouring by left edge). So do the lines
   of attention, which run above the boxes of their row.
4. Sizes. Gutters are as wide as their tracks ask for, gaps between rows as high as the curves in them ask for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from acdc.drawing.placing import BAR, Attention, Group, Link, Place, Placement
from acdc.drawing.svg import Point, number, text_width

BOX_WIDTH, BOX_HEIGHT = 54.0, 22.0
PORT_WIDTH, PORT_HEIGHT = 17.0, 13.0
BAR_HEIGHT = 24.0
MIN_WIDTH = 160.0  # of the bars
GROUP_GAP = 26.0
ROLE_SIZE, ROLE_HEIGHT = 14.0, 24.0  # the roles' names above and below their groups
TRACK = 6.0  # between two lanes
GUTTER_MARGIN = 8.0  # between a lane and a node
GAP, GAP_PER_CURVE, MAX_GAP = 30.0, 1.6, 110.0
FAR = 2  # rows that a straight edge may climb when it also changes columns
ATTENTION_TIP = 6.0  # of its arrows
ATTENTION_MARGIN = ATTENTION_TIP + 3.0  # between a line of attention and the boxes below it
STUB = 15.0  # where it leaves and enters a box, from the middle

LaneKey = tuple[int, tuple[str, bool]]  # gutter, who shares the lane


@dataclass(frozen=True)
class Bundle:
    """Links that share a lane: in which gutter, from which row to which."""

    gutter: int
    first_row: int
    last_row: int


class Layout:
    """All coordinates of a picture. `paths` are in the order of the placement's links."""

    def __init__(self, placement: Placement, left: float, top: float) -> None:
        self.placement = placement
        self.group_of = {group.role: group for group in placement.groups}
        self._occupied = {(place.row, place.column) for place in placement.places}
        gutters = self._routes()
        tracks, n_tracks = _tracks(self._bundles(gutters))
        self._set_columns(left, n_tracks)
        self.attention_tracks = self._attention_tracks()
        self._set_rows(top, gutters)
        self.paths = [self._path(link, gutters.get(i), tracks) for i, link in enumerate(placement.links)]

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
        for i, link in enumerate(self.placement.links):
            if self._is_free(link):
                continue
            ends = [2 * column + 1 for column in (link.start.column, link.column) if column != BAR]
            who = link.lane_owner

            def cost(g: int, ends: list[int] = ends, who: tuple[str, bool] = who) -> tuple[int, bool, int, int]:
                detour = sum(abs(2 * g - end) for end in ends)
                return detour, who not in senders_there[g], len(senders_there[g]), g

            gutters[i] = min(self.group_of[link.start.role].gutters, key=cost)
            senders_there[gutters[i]].add(who)
        return gutters

    def _bundles(self, gutters: dict[int, int]) -> dict[LaneKey, Bundle]:
        members: dict[LaneKey, list[Link]] = defaultdict(list)
        for i, gutter in gutters.items():
            link = self.placement.links[i]
            members[gutter, link.lane_owner].append(link)
        return {
            key: Bundle(key[0], min(link.start.row for link in links), max(link.end.row for link in links))
            for key, links in members.items()
        }

    # -- coordinates -----------------------------------------------------------------------------------------------

    def _set_columns(self, left: float, n_tracks: Counter[int]) -> None:
        self.left = x = left
        self.gutter_left: dict[int, float] = {}
        self.column_x: dict[int, float] = {}
        self._extents: dict[str, tuple[float, float]] = {}
        for i, group in enumerate(self.placement.groups):
            start = x = x + (GROUP_GAP if i else 0.0)
            x = self._set_columns_of(group, start, n_tracks)
            self._extents[group.role] = start, x
        self.right = x

    def _set_columns_of(self, group: Group, left: float, n_tracks: Counter[int]) -> float:
        """Returns the right end of the group."""
        n_lanes = sum(max(n_tracks[gutter] - 1, 1) for gutter in group.gutters)
        needed = len(group.columns) * BOX_WIDTH + len(group.gutters) * 2 * GUTTER_MARGIN + n_lanes * TRACK
        spare = max(self._min_width(group) - needed, 0.0) / 2  # the bars must hold their names
        x = left + spare
        for column in group.gutters:
            self.gutter_left[column] = x
            x += 2 * GUTTER_MARGIN + TRACK * max(n_tracks[column] - 1, 1)
            if column in group.columns:
                self.column_x[column] = x + BOX_WIDTH / 2
                x += BOX_WIDTH
        return x + spare

    @staticmethod
    def _min_width(group: Group) -> float:
        return max(BOX_WIDTH, text_width(group.role, ROLE_SIZE)) + 2 * GUTTER_MARGIN if group.role else MIN_WIDTH

    def _set_rows(self, top: float, gutters: dict[int, int]) -> None:
        """`row_top` is where edges leave a row, `row_bottom` where they enter it, `box_top` where its boxes begin."""
        n_rows = len(self.placement.rows)
        self.row_top, self.box_top, self.row_bottom = [0.0] * n_rows, [0.0] * n_rows, [0.0] * n_rows
        curves = self._curves(gutters)
        y = top + self._room_for_roles
        for row in reversed(range(n_rows)):
            self.row_top[row] = y
            self.box_top[row] = y = y + self._height_of_attention(row)
            self.row_bottom[row] = y = y + self._height(row)
            y += min(GAP + GAP_PER_CURVE * curves[row - 1], MAX_GAP) if row else 0.0
        self.bottom = y + self._room_for_roles

    @property
    def _room_for_roles(self) -> float:
        return ROLE_HEIGHT if any(group.role for group in self.placement.groups) else 0.0

    def _curves(self, gutters: dict[int, int]) -> Counter[int]:
        """How many curves there are above each row, in the group that has most."""
        by_group: dict[str, Counter[int]] = defaultdict(Counter)
        for i, link in enumerate(self.placement.links):
            if i in gutters or link.end.row == link.start.row + 1:
                by_group[link.start.role].update({link.start.row, link.end.row - 1})
        most: Counter[int] = Counter()
        for curves in by_group.values():
            most |= curves
        return most

    def _height_of_attention(self, row: int) -> float:
        tracks = [t for one, t in self.attention_tracks.items() if one.row == row]
        return ATTENTION_MARGIN + TRACK * (max(tracks) + 1) if tracks else 0.0

    def _height(self, row: int) -> float:
        kinds = {place.kind for place in self.placement.rows[row]}
        if kinds == {"bar"}:
            return BAR_HEIGHT
        return BOX_HEIGHT + (PORT_HEIGHT if kinds & {"head", "kv"} else 0.0)

    def extent(self, place: Place) -> tuple[float, float]:
        """Left and right end of a bar."""
        return self._extents[place.role]

    # -- lines -----------------------------------------------------------------------------------------------------

    def _path(self, link: Link, gutter: int | None, tracks: dict[LaneKey, int]) -> str:
        y_start = self.row_top[link.start.row]
        y_end = self.row_bottom[link.end.row] - (0 if link.end.kind != "mlp" else self._slack(link.end.row))
        x_end = self.column_x[link.column] + link.offset if link.column != BAR else None
        x_start = self.column_x[link.start.column] if link.start.column != BAR else None
        if gutter is None:
            begin, finish = x_start if x_start is not None else x_end, x_end if x_end is not None else x_start
            assert begin is not None, "two bars are never joined without a lane"
            assert finish is not None
            return self._leave(link.start.row, begin) + _bend(begin, y_start, finish, y_end)
        x = self.gutter_left[gutter] + GUTTER_MARGIN + TRACK * tracks[gutter, link.lane_owner]
        begin, finish = x if x_start is None else x_start, x if x_end is None else x_end
        y_up, y_off = self.row_bottom[link.start.row + 1], self.row_top[link.end.row - 1]
        return (
            self._leave(link.start.row, begin)
            + _bend(begin, y_start, x, y_up)
            + f" V{number(y_off)}"
            + _bend(x, y_off, finish, y_end)
        )

    def _leave(self, row: int, x: float) -> str:
        """From the top of a box straight through the lines of attention above it."""
        through = f" V{number(self.row_top[row])}" if self.box_top[row] > self.row_top[row] else ""
        return f"M{number(x)} {number(self.box_top[row])}{through}"

    def _slack(self, row: int) -> float:
        """How much higher than its row an MLP ends: it has no ports below its box."""
        return self._height(row) - BOX_HEIGHT

    # -- attention -------------------------------------------------------------------------------------------------

    def _attention_tracks(self) -> dict[Attention, int]:
        """Track of every line of attention, from the boxes of its row up."""
        free_from: dict[int, list[float]] = defaultdict(list)  # row -> per track, the x from which it is free
        tracks: dict[Attention, int] = {}
        for one in sorted(self.placement.attention, key=self._span):
            ends, (left, right) = free_from[one.row], self._span(one)
            track = next((t for t, x in enumerate(ends) if x + TRACK < left), len(ends))
            ends[track : track + 1] = [right]
            tracks[one] = track
        return tracks

    def _span(self, one: Attention) -> tuple[float, float]:
        xs = [self._x_out(place) for place in one.sources] + [self._x_in(place) for place in one.targets]
        return min(xs), max(xs)

    def _x_out(self, place: Place) -> float:
        return self.column_x[place.column] + STUB

    def _x_in(self, place: Place) -> float:
        return self.column_x[place.column] - STUB

    def line_of(self, one: Attention) -> str:
        """Up from where keys and values are read, along the row, and down to the heads that look at them."""
        top = number(self.box_top[one.row])
        y = number(self.box_top[one.row] - ATTENTION_MARGIN - TRACK * self.attention_tracks[one])
        left, right = self._span(one)
        up = [f"M{number(self._x_out(place))} {top} V{y}" for place in one.sources]
        down = [f"M{number(self._x_in(place))} {y} V{top}" for place in one.targets]
        return " ".join([*up, f"M{number(left)} {y} H{number(right)}", *down])

    def tips_of(self, one: Attention) -> list[Point]:
        """Where a line of attention meets the heads that look."""
        return [(self._x_in(place), self.box_top[one.row]) for place in one.targets]


def _bend(x: float, y: float, x_to: float, y_to: float) -> str:
    if number(x) == number(x_to):
        return f" V{number(y_to)}"
    middle = number((y + y_to) / 2)
    return f" C{number(x)} {middle} {number(x_to)} {middle} {number(x_to)} {number(y_to)}"


def _tracks(bundles: dict[LaneKey, Bundle]) -> tuple[dict[LaneKey, int], Counter[int]]:
    """Track of every lane, and how many tracks each gutter has."""
    free_from: dict[int, list[int]] = defaultdict(list)  # gutter -> per track, the row from which it is free
    tracks: dict[LaneKey, int] = {}
    for key, bundle in sorted(bundles.items(), key=lambda item: (item[1].first_row, item[1].last_row, item[0])):
        ends = free_from[bundle.gutter]
        track = next((t for t, row in enumerate(ends) if row <= bundle.first_row), len(ends))
        ends[track : track + 1] = [bundle.last_row]
        tracks[key] = track
    return tracks, Counter({gutter: len(ends) for gutter, ends in free_from.items()})
