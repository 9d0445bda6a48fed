"""Path patching: what one set of nodes tells another, apart from everything else that either of them does.

Sender set S, receiver set R (inputs of heads, of MLPs, the logits). Think of the computation as the sum of all paths
through it. Changed are the paths that begin at a node of S with its value from the other run, go on to a receiver of R
through no frozen node, and from there to the logits through anything; all other paths carry the base run
(Goldowsky-Dill et al. 2023, arXiv 2304.05969). What lies between S and R is

  frozen  everything: only direct edges S -> R. The same as cutting these edges under resample ablation.
  heads   the heads; MLPs between are recomputed and count as part of the direct path (Wang et al. 2022,
          arXiv 2211.00593).
  free    nothing: all paths from S to R. With R = logits this is activation patching of S, but for single heads under a
          post-norm, of which a path carries the share (below) and activation patching what enters the norm; of all
          heads of a layer together both are the attention's output.

A head as a receiver is its own q, k and v: other heads of its group go on to read what they read. A graph receiver k
or v is that of the whole group (see acdc.tracing.ends).

Computed as two streams side by side. The open one is what a receiver of R would see: nodes of S write their other value
there, nodes that are not frozen read it. The closed one is what everything else sees: there only R's nodes differ,
since they read the open stream. Where nothing is frozen a receiver in R sees only the open stream. Where R has
receivers in a row, what one of them tells the next is part of both, by the definition above; Wang et al. note what all
of them read in one pass, in which none of them has reacted yet.

Under a post-norm a head's value is its share of the normalised sum (see acdc.models.transformer), with the norm as the
run had it that the value is of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acdc.errors import TaskError
from acdc.graph import Graph
from acdc.metrics import Metric
from acdc.models.transformer import Layer, Rope, Transformer
from acdc.patch_map import Axis, Cells, Flags, Numbers
from acdc.patching.batches import Batch
from acdc.patching.forward import read_all
from acdc.patching.reruns import Run, bytes_of_rerun, bytes_of_run, record_run
from acdc.progress import Progress
from acdc.tasks.prompts import Pair
from acdc.tracing.activation import base_of, memory_left
from acdc.tracing.collecting import Collected, Outline
from acdc.tracing.ends import Ints, inputs_named, inputs_of_layer, receiver_of_input, senders_named
from acdc.tracing.measuring import make_reader
from acdc.tracing.places import first_changes
from acdc.tracing.sweeping import Sweep
from acdc.tracing.tiles import Tile

BETWEEN = ("frozen", "heads", "free")


@dataclass(frozen=True)
class NodeSet:
    """Nodes that change together, under one label of the map."""

    label: str
    names: tuple[str, ...]


def each(names: Iterable[str]) -> tuple[NodeSet, ...]:
    """A set of its own for every name."""
    return tuple(NodeSet(name, (name,)) for name in names)


def patch_paths(
    t: Transformer,
    pairs: Sequence[Pair],
    batches: Sequence[Batch],
    metrics: Sequence[Metric],
    *,
    senders: Sequence[NodeSet],
    receivers: Sequence[NodeSet],
    between: str,
    direction: str,
    memory_bytes: int,
    progress: Progress,
) -> Cells:
    """Axes: metric, sender, receiver. A cell is defined where some sender of its set comes before some receiver.

    between: frozen, heads or free, as above. direction: noising (other values come from the corrupt run) or denoising.
    Raises TaskError, also where no cell is defined; GraphMismatch, OutOfMemory, ModelError, Cancelled.
    """
    if between not in BETWEEN:
        raise TaskError(f"between {between!r} is unknown; known are: {', '.join(BETWEEN)}")
    base = base_of(direction)
    wanted = _Wanted.of(t.graph, senders, receivers)
    if not wanted.defined.any():
        raise TaskError("no sender comes before any receiver: are they swapped?")
    groups = wanted.by_reach(t.graph, between)
    axes = Axis("sender", tuple(s.label for s in senders)), Axis("receiver", tuple(r.label for r in receivers))
    parameters = {
        "between": between,
        "direction": direction,
        "senders": [[s.label, *s.names] for s in senders],
        "receivers": [[r.label, *r.names] for r in receivers],
    }
    outline = Outline("path_patching", axes, base, parameters, len(groups))
    collected = Collected(outline, pairs, batches, metrics, memory_bytes, progress)

    def fill(work: _Work, batch: Batch, step: int) -> None:
        group = groups[step]
        values = work.measure(wanted, group, collected.stop_if_cancelled)
        collected.note_cells(batch, (group.senders, group.receivers), values)

    collected.run(lambda batch: _Work(t, batch, metrics, base, between, memory_bytes), fill)
    return collected.cells(wanted.defined)


# -- what is asked for -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Cells that are computed over the same layers. senders, receivers: [cell], indices into the sets asked for.

    opens: the first layer at which the open stream has to be computed. first, last: the first and the last layer with a
    receiver; n_layers stands for the logits.
    """

    senders: Ints
    receivers: Ints
    opens: int
    first: int
    last: int


@dataclass(frozen=True)
class _Wanted:
    """senders: [sender set, senders]; inputs: [receiver set, inputs]; defined: [sender set, receiver set]."""

    senders: Flags
    inputs: Flags
    defined: Flags

    @classmethod
    def of(cls, graph: Graph, senders: Sequence[NodeSet], receivers: Sequence[NodeSet]) -> _Wanted:
        if not senders or not receivers or not all(s.names for s in (*senders, *receivers)):
            raise TaskError("path patching needs senders and receivers, and at least one node in each set")
        s = np.stack([senders_named(graph, one.names) for one in senders])
        r = np.stack([inputs_named(graph, one.names) for one in receivers])
        legal = graph.legal[:, receiver_of_input(graph)]
        return cls(s, r, (s.astype(int) @ legal.astype(int) @ r.T.astype(int)) > 0)

    def by_reach(self, graph: Graph, between: str) -> list[_Group]:
        """Defined cells, those that span the same layers together."""
        layer_of_sender = np.array([max(sender.layer, 0) for sender in graph.senders])
        layer_of_input = np.array([graph.receivers[r].layer for r in receiver_of_input(graph)])
        opens = np.array([layer_of_sender[row].min() for row in self.senders])
        first = np.array([layer_of_input[row].min() for row in self.inputs])
        last = np.array([layer_of_input[row].max() for row in self.inputs])
        found: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for s, r in np.argwhere(self.defined):
            begin = first[r] if between == "frozen" else min(opens[s], first[r])
            found.setdefault((int(begin), int(first[r]), int(last[r])), []).append((int(s), int(r)))
        cells = {reach: np.array(members) for reach, members in sorted(found.items())}
        return [_Group(both[:, 0], both[:, 1], *reach) for reach, both in cells.items()]


# -- the two streams ---------------------------------------------------------------------------------------------------


class _Work:
    """One batch: its two runs recorded, then patched group by group."""

    def __init__(
        self, t: Transformer, batch: Batch, metrics: Sequence[Metric], base: str, between: str, memory_bytes: int
    ) -> None:
        self.t, self.batch, self.between, self.base_name = t, batch, between, base
        runs = 2 * bytes_of_run(t, batch.n_rows * batch.length)
        left = memory_left(runs, memory_bytes)
        with torch.no_grad():
            self.clean, self.corrupt = (record_run(t, t.embed(tokens)) for tokens in (batch.clean, batch.corrupt))
        self.base, self.other = (self.clean, self.corrupt) if base == "clean" else (self.corrupt, self.clean)
        length = batch.length
        reader = make_reader(t, batch, metrics, self.clean)
        self.sweep = Sweep(reader, lambda m: _bytes_of_row(t, m, length), left, t.device)
        self.starts = first_changes(batch) if t.is_causal else np.zeros(batch.n_rows, dtype=np.int64)

    def unchanged(self) -> dict[str, Numbers]:
        """The metrics of both runs: [metric, example]."""
        runs = {"clean": self.clean, "corrupt": self.corrupt}
        return {name: self.sweep.reader.measure_run(run.last) for name, run in runs.items()}

    def measure(self, wanted: _Wanted, group: _Group, step: Callable[[], None]) -> Numbers:
        """[metric, cell, example]"""

        @torch.no_grad()
        def run(tile: Tile, rows: Tensor) -> tuple[Tensor, int]:
            sends, listens = wanted.senders[group.senders[tile.cells]], wanted.inputs[group.receivers[tile.cells]]
            streams = _Streams(
                self.t,
                self.base,
                self.other,
                rows,
                tile.start,
                torch.from_numpy(sends).to(rows.device),
                torch.from_numpy(listens).to(rows.device),
                self.between,
            )
            return streams.run(group.opens, group.first, group.last), tile.start

        starts = np.tile(self.starts, (len(group.senders), 1))
        return self.sweep(self.base.last, starts, run, step)


def _bytes_of_row(t: Transformer, m: int, length: int) -> int:
    """Two streams, and beside them k and v of every head apart: three copies of the projections, keys and values of all
    positions."""
    apart = 9 * m * t.n_heads * t.d_head + 4 * length * t.n_heads * t.d_head
    return 2 * bytes_of_rerun(t, m, length) + apart * t.dtype.itemsize


class _Streams:
    """n rows at m positions. sends: [n, senders], true where the sender's other value enters the open stream.
    listens: [n, inputs], true where the input is read from it."""

    def __init__(
        self,
        t: Transformer,
        base: Run,
        other: Run,
        rows: Tensor,
        start: int,
        sends: Tensor,
        listens: Tensor,
        between: str,
    ) -> None:
        self.t, self.base, self.other, self.rows, self.start = t, base, other, rows, start
        self.sends, self.listens, self.between = sends, listens, between
        self.length = base.last.shape[1]

    def run(self, opens: int, first: int, last: int) -> Tensor:
        """Last residuals [n, m, d]. opens, first, last: as in _Group."""
        t = self.t
        rope = t.rope(self.base.last[:1])
        opened, closed = self._begin(opens)
        for index in range(opens, t.n_layers):
            if index > last:
                opened = closed  # nobody listens any more
            opened, closed = self._layer(index, opened, closed, rope, is_base=index < first)
        return torch.where(self.listens[:, -1, None, None], opened, closed) if last == t.n_layers else closed

    def _begin(self, opens: int) -> tuple[Tensor, Tensor]:
        """Both streams before a layer: nothing in between has been changed but the senders themselves."""
        closed = self._at(self.base.before[opens] if opens < self.t.n_layers else self.base.last)
        opened = closed + sum(
            self.sends[:, i, None, None] * (self._at(self.other.inputs[i]) - self._at(self.base.inputs[i]))
            for i in range(self.t.graph.n_inputs)
        )
        for index in range(opens):
            opened = opened + self._heads_written(index) + self._mlp_written(index)
        return opened, closed

    def _layer(self, index: int, opened: Tensor, closed: Tensor, rope: Rope, *, is_base: bool) -> tuple[Tensor, Tensor]:
        """is_base: no receiver so far, so that the closed stream is the base run."""
        t, layer = self.t, self.t.layers[index]
        both = opened is not closed
        listens = self.listens[:, inputs_of_layer(t.graph, index)]
        before = opened, closed
        if is_base:
            share = self._share(self.base, index)
        else:
            share = self._attend(index, opened, closed, listens if both else None, rope)
        free = share
        if both and self.between == "free":
            free = self._attend(index, opened, opened, None, rope)
        closed = closed + self._written(index, share)
        opened = opened + self._written(index, free) + self._heads_written(index, free) if both else closed
        if layer.mlp is None:
            return opened, closed
        inputs = before if t.is_parallel else (opened, closed)
        if is_base:
            out = self._at(self.base.mlp[index])
        else:
            out = layer.mlp(torch.where(listens[:, -1, None, None], *inputs) if both else inputs[1])
        free = layer.mlp(inputs[0]) if both and self.between != "frozen" else out
        closed = closed + out
        return (opened + free + self._mlp_written(index, free) if both else closed), closed

    def _attend(self, index: int, opened: Tensor, closed: Tensor, listens: Tensor | None, rope: Rope) -> Tensor:
        """z', shared out, of heads whose q, k, v read the open stream where they listen: [n, m, H * e]."""
        t, layer, start = self.t, self.t.layers[index], self.start
        if listens is None or not bool(listens[:, : 3 * t.n_heads].any()):
            projected, each = read_all(layer, closed), 1
        else:
            projected, each = self._by_head(layer, opened, closed, listens), t.n_heads // t.n_kv_heads
        n_kv = t.n_kv_heads * each
        q, k, v = projected.transpose(1, 2).split((t.n_heads, n_kv, n_kv), dim=1)
        q, k = t.turn(layer, layer.head_norm_q, q, rope, start), t.turn(layer, layer.head_norm_k, k, rope, start)
        if start:
            earlier = self.base.projected[index][self.rows, :start, -t.n_kv_heads :].transpose(1, 2)
            k = torch.cat((_repeated(self.base.keys[index][self.rows, :, :start], each, 1), k), 2)
            v = torch.cat((_repeated(earlier, each, 1), v), 2)
        return t.share(layer, t.attend_late(layer, q, k, v).transpose(1, 2).flatten(2))

    def _by_head(self, layer: Layer, opened: Tensor, closed: Tensor, listens: Tensor) -> Tensor:
        """q, k, v of each head apart, as they listen: [n, m, 3 * H, e]."""
        t, each = self.t, self.t.n_heads // self.t.n_kv_heads

        def read(stream: Tensor) -> Tensor:
            projected = read_all(layer, stream)
            if each == 1:
                return projected
            q, shared = projected[:, :, : t.n_heads], projected[:, :, t.n_heads :]
            return torch.cat((q, _repeated(shared, each, 2)), 2)

        return torch.where(listens[:, None, : 3 * t.n_heads, None], read(opened), read(closed))

    # -- what senders write --------------------------------------------------------------------------------------------

    def _at(self, x: Tensor) -> Tensor:
        """[row, pos, ...] -> [n, m, ...]"""
        return x[self.rows, self.start :]

    def _share(self, run: Run, index: int) -> Tensor:
        return self.t.share(self.t.layers[index], self._at(run.z[index]))

    def _written(self, index: int, share: Tensor) -> Tensor:
        layer = self.t.layers[index]
        out = share @ layer.w_out.flatten(0, 1)
        return out if layer.b_out is None else out + layer.b_out

    def _heads_written(self, index: int, share: Tensor | None = None) -> Tensor | float:
        """What heads of S add to the open stream beyond their own output there; that is the base run's by default."""
        sends = self.sends[:, self.t.graph.heads_of_layer(index)]
        if not bool(sends.any()):
            return 0.0
        mine = self._share(self.base, index) if share is None else share
        change = (self._share(self.other, index) - mine).unflatten(-1, (self.t.n_heads, self.t.d_head))
        written: Tensor = (change * sends[:, None, :, None]).flatten(2) @ self.t.layers[index].w_out.flatten(0, 1)
        return written

    def _mlp_written(self, index: int, out: Tensor | None = None) -> Tensor | float:
        """The same of the MLP."""
        sends = self.sends[:, self.t.graph.heads_of_layer(index).stop] if self.base.mlp else None
        if sends is None or not bool(sends.any()):
            return 0.0
        mine = self._at(self.base.mlp[index]) if out is None else out
        return (self._at(self.other.mlp[index]) - mine) * sends[:, None, None]


def _repeated(x: Tensor, n: int, dim: int) -> Tensor:
    """What a group of n heads shares, once for each of them."""
    return x if n == 1 else x.repeat_interleave(n, dim)
