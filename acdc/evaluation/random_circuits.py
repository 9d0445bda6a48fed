"""Random circuits to compare a found one with: the same number of edges, the same layer profile, fully connected.

Layer profile: the number of edges from each layer to each layer (embed counts as a layer before the first, logits as
one after the last; heads and MLP of a layer are together). Every returned circuit has exactly the profile of the
circuit it is matched to, hence the same number of edges, and each of its edges lies on a path embed -> logits.

How it is drawn:
1. In each (layer, layer) stratum as many edges as the matched circuit has there, uniformly.
2. Repair: edges whose sender is fed by nothing, or whose receiver feeds nothing that is read, and some others, are
   moved to random free cells of their strata, where that does not leave more such edge ends (now and then also if so).
3. Where a repair was needed, mixing: random moves within strata, only such as keep the circuit connected.

What it is drawn from: where step 1 needs no repair the draw is exactly uniform over the circuits wanted. Otherwise
step 3 is a Markov chain with symmetric moves, whose long-run distribution is uniform over the circuits that single
moves can reach; it runs a few moves an edge, so which heads take part still depends on the repair. Where three
repairs find no circuit, the matched circuit itself with the heads of each layer shuffled is where mixing starts;
there, a node that hangs by a single edge cannot leave the circuit, so such a draw is more like the matched one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from acdc.graph import BoolMatrix, Graph

FRESH_STARTS = 3
REPAIR_ROUNDS = 200
MIXING_MOVES_PER_EDGE = 2
OTHERS_PER_ROUND = 20
TEMPERATURE = 0.2  # of the repair, in edge ends: one end worse is taken with probability exp(-1 / .2) = .7 %

Indices = npt.NDArray[np.int64]


def random_circuits(graph: Graph, matched: BoolMatrix, n: int, rng: np.random.Generator) -> list[BoolMatrix]:
    """n random circuits with the size and layer profile of `matched`, which must be connected (Graph.connected)."""
    assert (graph.connected(matched) == matched).all(), "the matched circuit has edges on no path"
    strata = Strata(graph)
    return [_draw(strata, matched, rng) for _ in range(n)]


class Strata:
    """The legal cells of a graph by (sender's layer, receiver's layer), and by role where edges are split."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        layers = graph.shape.n_layers + 2
        sender_layer = np.array([sender.layer + 1 for sender in graph.senders])
        receiver_layer = np.array([receiver.layer + 1 for receiver in graph.receivers])
        code = (sender_layer[:, None] * layers + receiver_layer[None, :]) * graph.n_roles + graph.role_of[None, :]
        cells = np.flatnonzero(graph.legal)
        _, of_cell = np.unique(code.ravel()[cells], return_inverse=True)
        self.of_edge = np.full(graph.legal.size, -1)  # [senders * receivers], -1 where no edge is
        self.of_edge[cells] = of_cell
        order = cells[np.argsort(of_cell, kind="stable")]
        self.cells: list[Indices] = np.split(order, np.cumsum(np.bincount(of_cell))[:-1])
        self.readers = [np.flatnonzero(row).tolist() for row in graph.feeds]  # outputs that a receiver feeds
        self.inputs = [np.flatnonzero(column).tolist() for column in graph.feeds.T]  # receivers that feed an output

    def profile(self, mask: BoolMatrix) -> Indices:
        """Edges of a circuit in each stratum."""
        return np.bincount(self.of_edge[np.flatnonzero(mask)], minlength=len(self.cells)).astype(np.int64)


def _draw(strata: Strata, matched: BoolMatrix, rng: np.random.Generator) -> BoolMatrix:
    profile = strata.profile(matched)
    for _ in range(FRESH_STARTS):
        state = _State(strata, _uniform(strata, profile, rng))
        if not state.loose_ends:
            return state.mask()
        if _repair(state, rng):
            break
    else:
        state = _State(strata, _shuffle_heads(strata.graph, matched, rng))
    _mix(state, MIXING_MOVES_PER_EDGE * int(matched.sum()), rng)
    return state.mask()


def _uniform(strata: Strata, profile: Indices, rng: np.random.Generator) -> BoolMatrix:
    mask = np.zeros(strata.graph.legal.size, dtype=bool)
    for cells, count in zip(strata.cells, profile, strict=True):
        if count:
            mask[rng.choice(cells, size=count, replace=False)] = True
    return mask.reshape(strata.graph.legal.shape)


def _shuffle_heads(graph: Graph, mask: BoolMatrix, rng: np.random.Generator) -> BoolMatrix:
    """The same circuit with the key/value groups of each layer, and the heads in each group, renamed at random."""
    senders, receivers = np.arange(graph.n_senders), np.arange(graph.whole.n_receivers)
    n_groups = graph.shape.n_kv_heads
    size = graph.shape.n_heads // n_groups
    for layer in range(graph.shape.n_layers):
        groups = rng.permutation(n_groups)
        heads = np.concatenate([group * size + rng.permutation(size) for group in groups])
        senders[graph.heads_of_layer(layer)] = graph.heads_of_layer(layer).start + heads
        first = graph.whole.receivers_of_layer(layer).start
        k, v = first + len(heads), first + len(heads) + n_groups
        receivers[first:k] = first + heads
        receivers[k:v] = k + groups
        receivers[v : v + n_groups] = v + groups
    parts = graph.parts_of[receivers].ravel()[: graph.n_receivers]  # the logits, last, have one
    shuffled: BoolMatrix = mask[np.ix_(senders, parts)]
    return shuffled


class _State:
    """A set of edges under single moves, with its loose ends counted.

    An edge end is loose where what the edge carries is no input and no receiver that feeds it has a kept edge, or where
    the edge's receiver is not the logits and no output that it feeds has one. The graph being acyclic, a circuit
    without loose ends is connected: followed back, an edge never stops before embed, and followed on, never before the
    logits.
    """

    def __init__(self, strata: Strata, mask: BoolMatrix) -> None:
        self.strata = strata
        self.n_receivers, self.n_roles = strata.graph.n_receivers, strata.graph.n_roles
        self.role_of = strata.graph.role_of.tolist()
        self.kept = set(np.flatnonzero(mask).tolist())
        graph, feeds = strata.graph, strata.graph.feeds.astype(np.int64)
        out = np.bincount(graph.output_of[mask], minlength=graph.n_outputs)
        self._out = out.tolist()  # edges that carry each output, edges into each receiver
        self._in = mask.sum(0).tolist()
        self._fed = (feeds.T @ mask.sum(0)).tolist()  # edges that feed each output; 1 more for inputs
        self._read = (feeds @ out).tolist()  # edges that each receiver leads to; logits 1 more
        for output in range(graph.n_inputs * graph.n_roles):
            self._fed[output] += 1
        self._read[-1] += 1
        self.loose_ends: int = sum(o for o, f in zip(self._out, self._fed, strict=True) if not f)
        self.loose_ends += sum(i for i, r in zip(self._in, self._read, strict=True) if not r)

    def mask(self) -> BoolMatrix:
        mask = np.zeros(self.strata.graph.legal.size, dtype=bool)
        mask[list(self.kept)] = True
        return mask.reshape(self.strata.graph.legal.shape)

    def is_loose(self, edge: int) -> bool:
        output, receiver = self._ends(edge)
        return not (self._fed[output] and self._read[receiver])

    def swap(self, old: int, new: int) -> int:
        """Move an edge; returns by how much the loose ends changed. `swap(new, old)` undoes it."""
        before = self.loose_ends
        self.kept.remove(old)
        self._change(old, -1)
        self.kept.add(new)
        self._change(new, 1)
        return self.loose_ends - before

    def _change(self, edge: int, by: int) -> None:
        output, receiver = self._ends(edge)
        self._out[output] += by
        self._in[receiver] += by
        self.loose_ends += by * ((not self._fed[output]) + (not self._read[receiver]))
        for other in self.strata.readers[receiver]:
            self._fed[other] += by
            self.loose_ends += _crossing(self._fed[other], by) * self._out[other]
        for other in self.strata.inputs[output]:
            self._read[other] += by
            self.loose_ends += _crossing(self._read[other], by) * self._in[other]

    def _ends(self, edge: int) -> tuple[int, int]:
        """What an edge carries, and the receiver that it ends in."""
        sender, receiver = divmod(edge, self.n_receivers)
        return sender * self.n_roles + self.role_of[receiver], receiver


def _crossing(count: int, by: int) -> int:
    """-1 where a count has just left zero, 1 where it has just come to it."""
    if by > 0:
        return -1 if count == 1 else 0
    return 1 if count == 0 else 0


def _repair(state: _State, rng: np.random.Generator) -> bool:
    """Move edges until no end is loose; False where that does not come about.

    Every round moves the loose edges and some others: a loose edge alone in its stratum can often be mended only by
    another edge that comes to feed or to read it.
    """
    for _ in range(REPAIR_ROUNDS):
        if not state.loose_ends:
            return True
        edges = sorted(state.kept)  # a set's own order is no part of the seed
        loose = [edge for edge in edges if state.is_loose(edge)]
        others = rng.choice(edges, size=min(len(edges), max(OTHERS_PER_ROUND, len(edges) // 10)), replace=False)
        for old, new in _moves(state, rng.permutation(np.concatenate([loose, others]).astype(np.int64)), rng):
            worse = state.swap(old, new)
            if worse > 0 and rng.random() >= math.exp(-worse / TEMPERATURE):
                state.swap(new, old)
    return state.loose_ends == 0


def _mix(state: _State, n_moves: int, rng: np.random.Generator) -> None:
    """Random moves of random edges that leave no loose end."""
    current = sorted(state.kept)
    for pick in rng.integers(len(current), size=n_moves).tolist():
        old = current[pick]
        cells = state.strata.cells[state.strata.of_edge[old]]
        new = int(cells[int(rng.random() * len(cells))])
        if new in state.kept:
            continue
        if state.swap(old, new):
            state.swap(new, old)
        else:
            current[pick] = new


def _moves(state: _State, edges: Indices, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """For each edge that is still kept, a uniformly drawn free cell of its stratum (none where it drew a taken one)."""
    for old, draw in zip(edges.tolist(), rng.random(len(edges)).tolist(), strict=True):
        cells = state.strata.cells[state.strata.of_edge[old]]
        new = int(cells[int(draw * len(cells))])
        if old in state.kept and new not in state.kept:
            yield old, new
