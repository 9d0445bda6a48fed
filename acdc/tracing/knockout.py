"""Attention knockout (Geva et al. 2023, arXiv 2304.14767): positions that may not look at others.

In a window of layers the attention of every query of one place to every key of another is forbidden before the softmax,
in all heads or in given ones, and the rest of the model runs on. What it costs shows whether information flows there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acdc.errors import Fault, GraphMismatch, TaskError
from acdc.metrics import Metric
from acdc.models.transformer import Transformer
from acdc.patch_map import Axis, Cells, Flags, Numbers
from acdc.patching.batches import Batch
from acdc.patching.reruns import Begin, Change, bytes_of_rerun, bytes_of_run, record_run, rerun
from acdc.progress import Progress
from acdc.tasks.prompts import Pair
from acdc.tracing.activation import memory_left
from acdc.tracing.collecting import Collected, Outline, layer_axis
from acdc.tracing.faults import faults_raised
from acdc.tracing.measuring import make_reader
from acdc.tracing.places import pair_of_row, role_places
from acdc.tracing.sweeping import Sweep
from acdc.tracing.tiles import Tile
from acdc.tracing.windows import window_around


def knock_out_attention(
    t: Transformer,
    pairs: Sequence[Pair],
    batches: Sequence[Batch],
    metrics: Sequence[Metric],
    *,
    blocked: Sequence[tuple[str, str]],
    window: int,
    heads: Sequence[str] | None,
    memory_bytes: int,
    progress: Progress,
) -> Cells:
    """Axes: metric, layer (the middle of the window), blocked (from, to).

    blocked: (role that looks, role that it may not look at); `all` is every position. heads: as layer.head; None
    for all. The other run is that of the corrupt prompts; where not every prompt has one there is none, since the mean
    over some of them is no scale for all.
    Raises TaskError where nothing is to be blocked, a position would be left with nothing to look at, or a role is
    missing; GraphMismatch where only heads are; OutOfMemory, ModelError, Cancelled.
    """
    _check(t, pairs, batches, blocked, heads)
    of_heads = None if heads is None else _heads_named(t, heads)
    all_have_corrupt = all(pair.clean != pair.corrupt for pair in pairs)
    windows = [window_around(layer, window, t.n_layers) for layer in range(t.n_layers)]
    edges = Axis("blocked", tuple(f"{query} -> {key}" for query, key in blocked))
    parameters = {"window": window, "heads": None if heads is None else list(heads)}
    outline = Outline("attention_knockout", (layer_axis(t.n_layers), edges), "clean", parameters, t.n_layers)
    collected = Collected(outline, pairs, batches, metrics, memory_bytes, progress)

    def begin(batch: Batch) -> _Work:
        forbidden = _forbidden(pairs, blocked, batch)
        return _Work(t, batch, metrics, forbidden, of_heads, memory_bytes, has_corrupt=all_have_corrupt)

    def fill(work: _Work, batch: Batch, layer: int) -> None:
        collected.note(batch, (layer,), work.measure(windows[layer], collected.stop_if_cancelled))

    collected.run(begin, fill)
    return collected.cells(has_other_run=all_have_corrupt)


def _check(
    t: Transformer,
    pairs: Sequence[Pair],
    batches: Sequence[Batch],
    blocked: Sequence[tuple[str, str]],
    heads: Sequence[str] | None,
) -> None:
    """Before anything is computed. Raises TaskError with all that is wrong, unknown heads too; if these are all, it is
    left to `_heads_named`."""
    unknown = () if heads is None else faults_raised(lambda: _heads_named(t, heads))
    if not blocked:
        nothing = "the prompts have no role to look at but their end: give spans, or say who may not look at what"
        faults: Sequence[Fault] = [Fault("blocked", nothing)]
    elif not (faults := faults_raised(lambda: role_places(pairs, _roles(blocked)))):
        faults = _blinded(t, pairs, batches, blocked)
    if faults:
        raise TaskError("this cannot be blocked", [*faults, *unknown])


def _heads_named(t: Transformer, names: Sequence[str]) -> Tensor:
    """[layer, head]. Raises GraphMismatch with every unknown name."""
    chosen = torch.zeros(t.n_layers, t.n_heads, dtype=torch.bool, device=t.device)
    known = {sender.name: sender for sender in t.graph.senders if sender.kind == "head"}
    if unknown := [name for name in names if name not in known]:
        faults = [Fault(name, "no such head; heads are layer.head (9.6)") for name in unknown]
        raise GraphMismatch(f"{len(unknown)} of the heads named are not in this model", faults)
    for name in names:
        chosen[known[name].layer, known[name].head] = True
    return chosen


def _roles(blocked: Sequence[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(role for pair in blocked for role in pair))


def _forbidden(pairs: Sequence[Pair], blocked: Sequence[tuple[str, str]], batch: Batch) -> Flags:
    """[blocked, row, query, key]. Raises TaskError for a role that is missing."""
    roles = _roles(blocked)
    at = dict(zip(roles, role_places(pairs, roles).in_batch(batch), strict=True))
    return np.stack([at[query][:, :, None] & at[key][:, None, :] for query, key in blocked])


def _may_look(t: Transformer, length: int, window: int | None) -> Flags:
    """[query, key]"""
    at = np.arange(length)
    distance = at[:, None] - at
    return np.ones((length, length), bool) if not t.is_causal else (distance >= 0) & (distance < (window or length))


def _blinded(
    t: Transformer, pairs: Sequence[Pair], batches: Sequence[Batch], blocked: Sequence[tuple[str, str]]
) -> list[Fault]:
    """What would leave some position with nothing to look at, and where first. Flags of one batch are held at a time:
    they grow with the square of the length."""
    faults: dict[str, Fault] = {}
    for batch in batches:
        for edge, row, query in _blind_places(t, batch, _forbidden(pairs, blocked, batch)):
            name = " -> ".join(blocked[edge])
            where = f"prompt {pair_of_row(batch)[row] + 1}, position {query}"
            faults.setdefault(name, Fault(name, f"{where} could look at nothing any more: block less"))
    return list(faults.values())


def _blind_places(t: Transformer, batch: Batch, forbidden: Flags) -> npt.NDArray[np.int64]:
    """[n, 3]: blocked, row and query that have no key left in some layer."""
    windows = {layer.window for layer in t.layers}
    left = [(_may_look(t, batch.length, window) & ~forbidden).any(-1) for window in windows]
    return np.argwhere(~np.logical_and.reduce(left))


class _Work:
    """One batch: its clean run recorded, then run again with attention blocked."""

    def __init__(
        self,
        t: Transformer,
        batch: Batch,
        metrics: Sequence[Metric],
        forbidden: Flags,
        of_heads: Tensor | None,
        memory_bytes: int,
        *,
        has_corrupt: bool,
    ) -> None:
        self.t, self.batch, self.of_heads, self.has_corrupt = t, batch, of_heads, has_corrupt
        left = memory_left(bytes_of_run(t, batch.n_rows * batch.length), memory_bytes)
        with torch.no_grad():
            self.clean = record_run(t, t.embed(batch.clean))
        length = batch.length

        def bytes_of_row(m: int) -> int:
            return bytes_of_rerun(t, m, length) + length * length * (1 + t.n_heads)

        self.sweep = Sweep(make_reader(t, batch, metrics, self.clean), bytes_of_row, left, t.device)
        self.forbidden = forbidden
        concerned = (forbidden & _may_look(t, batch.length, None)).any(-1)  # [blocked, row, query]
        begins = concerned.argmax(-1) if t.is_causal else np.zeros(concerned.shape[:2], dtype=np.int64)
        self.starts = np.where(concerned.any(-1), begins, batch.length)

    def unchanged(self) -> dict[str, Numbers]:
        """The metrics of both runs: [metric, example]. Without corrupt prompts the other run is the clean one."""
        last = {"clean": self.clean.last, "corrupt": self.clean.last}
        if self.has_corrupt:
            with torch.no_grad():
                last["corrupt"] = rerun(self.t, self.t.embed(self.batch.corrupt).sum(0), Begin())
        return {name: self.sweep.reader.measure_run(x) for name, x in last.items()}

    def measure(self, layers: range, step: Callable[[], None]) -> Numbers:
        """[metric, blocked, example]"""
        starts = self.starts
        if self.of_heads is not None and not bool(self.of_heads[layers.start : layers.stop].any()):
            starts = np.full_like(starts, self.batch.length)  # no head of these layers is concerned
        first_read = self.sweep.reader.first_read

        def run(tile: Tile, rows: Tensor) -> tuple[Tensor, int]:
            forbidden = torch.from_numpy(self.forbidden[tile.cells, tile.rows]).to(rows.device)
            begin = Begin(layers.start, tile.start, first_read, self.clean, rows)
            x = self.clean.before[layers.start][rows, tile.start :]
            return rerun(self.t, x, begin, _Block(layers, forbidden, self.of_heads)), begin.first_returned

        return self.sweep(self.clean.last, starts, run, step)


class _Block(Change):
    """forbidden: [n, query, key]; of_heads: [layer, head], None for all."""

    def __init__(self, layers: range, forbidden: Tensor, of_heads: Tensor | None) -> None:
        self.layers, self.forbidden, self.of_heads = layers, forbidden.unsqueeze(1), of_heads

    def blocked(self, layer: int) -> Tensor | None:
        if layer not in self.layers:
            return None
        return self.forbidden if self.of_heads is None else self.forbidden & self.of_heads[layer][:, None, None]
