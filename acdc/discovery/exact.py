"""Every edge alone, cut from the full graph: score[s, r] = m(full) - m(full without the edge).

The measure that attribution approximates. All edges into one receiver are rows of one batch: nothing before the
receiver is computed again, everything after it is, about half a forward an edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acdc.discovery.ledger import Ledger, Tiles
from acdc.discovery.problem import Found, Problem
from acdc.models.transformer import Transformer
from acdc.patching.circuits import PerExample, Prompts
from acdc.patching.needs import NARROW, WIDE, Positions
from acdc.patching.readout import make_readout
from acdc.patching.reruns import Begin, Change, attention_output, bytes_of_rerun, bytes_of_run, record_run, rerun
from acdc.patching.standing import Standing
from acdc.progress import Checkpoint, Progress


@torch.no_grad()
def score_exact(
    problem: Problem, progress: Progress, *, receivers: int | None = None, receiver_seed: int = 0
) -> list[Found]:
    """receivers: only the edges into so many, drawn by the seed; the others stay untested. Checkpoints after every
    receiver."""
    graph = problem.t.graph
    chosen = _chosen(graph.n_receivers, receivers, receiver_seed)
    tested = graph.legal & chosen
    scores, start = np.zeros(graph.legal.shape, dtype=np.float32), 0
    if (saved := progress.resume()) is not None:
        scores, start = np.array(saved.arrays["scores"], dtype=np.float32), saved.step
    progress.phase("exact", int(tested.sum()))
    ledger = Ledger(problem.memory_bytes, problem.n_examples)
    batches = [_Batch(problem, p, ledger) for p in problem.prompts]
    for batch in batches:
        batch.require_room()  # beside what all others hold
    done = 0
    for receiver in np.flatnonzero(chosen).tolist():
        senders = list(range(int(graph.n_senders_before[receiver])))
        if receiver >= start:
            costs = np.sum([batch.costs(receiver, senders) for batch in batches], axis=0)
            problem.require_finite(costs, receiver)
            scores[senders, receiver] = costs / problem.n_examples
            progress.save(Checkpoint(receiver + 1, arrays={"scores": scores}))
        done += len(senders)
        progress.step(done, graph.receivers[receiver].name)
    notes = (
        () if chosen.all() else (f"only edges into {chosen.sum():,} of {graph.n_receivers:,} receivers have a score",)
    )
    return [Found(scores, tested, passes={"half_forward": float(tested.sum())}, notes=notes)]


def _chosen(n: int, wanted: int | None, seed: int) -> npt.NDArray[np.bool_]:
    """[receivers]"""
    chosen = np.full(n, wanted is None or wanted >= n)
    if not chosen.all():
        chosen[np.random.default_rng(seed).choice(n, size=wanted, replace=False)] = True
    return chosen


class _Batch:
    """One batch of prompts: its clean run, and reruns from each receiver on."""

    def __init__(self, problem: Problem, p: Prompts, ledger: Ledger) -> None:
        self.t, self.batch, self.ledger = problem.t, p.batch, ledger
        self.at = Positions.of(self.t, p)
        self.tiles = Tiles(ledger, lambda: None)
        self.readout = make_readout(self.t, [p], problem.objective)
        self.require_room()
        self.standing = Standing(self.t, p, self.at, self.t.graph.legal)
        self.clean = record_run(self.t, p.inputs[:, :, : self.at.end])
        self.full = float(self._measure(self.clean.last[:, self.at.narrow :].unsqueeze(0)).sum())

    def require_room(self) -> None:
        """Raises OutOfMemory."""
        held = Standing.bytes_needed(self.t, self.at, self.batch.n_rows)
        held += bytes_of_run(self.t, self.batch.n_rows * self.at.end) + self.readout.bytes_held
        self.ledger.hold(self, held, self._bytes_of_edge())

    def costs(self, receiver: int, senders: Sequence[int]) -> PerExample:
        """m(full) - m(full without each edge), summed over examples: [sender]"""
        kind = self.t.graph.receivers[receiver].kind
        level = NARROW if kind == "logits" else WIDE

        def tile(first: int, count: int) -> PerExample:
            cut = self.standing.differences(senders[first : first + count], level)  # [row, B, n, d]
            without: PerExample = self._measure(self._without(receiver, cut)).sum(1).cpu().numpy()
            return self.full - without

        return self.tiles.run(range(len(senders)), self._bytes_of_edge(), tile)

    def _without(self, receiver: int, cut: Tensor) -> Tensor:
        """Last residuals [row, B, n, d] when the receiver reads so much less."""
        r, at = self.t.graph.receivers[receiver], self.at
        if r.kind == "logits":
            return self.clean.last[:, at.narrow :] - cut
        rows = torch.arange(cut.shape[1], device=cut.device).repeat(cut.shape[0])
        less = cut.flatten(0, 1)  # [n, m, d]
        if r.kind == "mlp":
            begin = Begin(r.layer + 1, at.wide, at.narrow, self.clean, rows)
            last = rerun(self.t, self._after_mlp(r.layer, less, rows), begin)
        else:
            begin = Begin(r.layer, at.wide, at.narrow, self.clean, rows)
            place = receiver - self.t.graph.receivers_of_layer(r.layer).start
            x = self.clean.before[r.layer][rows, at.wide :]
            last = rerun(self.t, x, begin, _ReadsLess(self.t, r.layer, place, less))
        by_row: Tensor = last.unflatten(0, cut.shape[:2])
        return by_row

    def _after_mlp(self, index: int, less: Tensor, rows: Tensor) -> Tensor:
        layer, wide = self.t.layers[index], self.at.wide
        assert layer.mlp is not None
        before = self.clean.before[index][:, wide:]
        between = before + attention_output(self.t, layer, self.clean.z[index][:, wide:])
        read = (before if self.t.is_parallel else between)[rows] - less
        return between[rows] + layer.mlp(read)

    def _measure(self, last: Tensor) -> Tensor:
        """[row, B, n, d] -> the objective [row, example]"""
        return self.readout([self.batch.take(last, self.at.narrow)])

    def _bytes_of_edge(self) -> int:
        of_rows = self.batch.n_rows * bytes_of_rerun(self.t, self.at.count(WIDE), self.at.end)
        return of_rows + len(self.batch.read_row) * self.readout.bytes_per_read


class _ReadsLess(Change):
    """One of the q, k, v inputs of a layer reads less than the stream."""

    def __init__(self, t: Transformer, layer: int, place: int, less: Tensor) -> None:
        self.of, self.at, self.place, self.less = t.layers[layer], layer, place, less

    def read(self, layer: int, x: Tensor, projected: Tensor) -> Tensor:
        if layer == self.at:
            x = x - self.less
            own = (x @ self.of.w_read[self.place].T) * self.of.read_scale(x) + self.of.b_read[self.place]
            projected = projected.clone()
            projected[:, :, self.place] = own
        return projected
