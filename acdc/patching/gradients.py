"""Gradients at every receiver's input, contracted with every sender's difference: scores of all edges at once.

    score[s, r] = sum over batch and pos of <out_s - a_s, dm / d input_r>

which is dm/dM[s, r] at M = 1 when the gradient is taken at the clean run (attribution patching, Syed et al. 2023).

Neither side is ever stored per head over layers. Backward gives the gradient at the projections' outputs (the size of
R * e per token); per tile of tokens it is pulled back through W and the norm's Jacobian to each q/k/v input, while the
senders' differences are formed from z, and one matrix product per layer scores all its edges. Besides what autograd
keeps, a layer holds: the residual stream read (x), two differences (z, MLP) and the ablation values they came from,
R * e <= 3 H e of projections' gradients and one at the MLP input: at most eight residual streams.

The scores of every example apart, and those of every position role where edges are split by them, come from the same
products: with tokens sorted into one block for each, they are as many multiplications, and only their results take more
room (`bytes_per_example`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acdc.graph import Graph
from acdc.models.transformer import Transformer
from acdc.patching.batches import Batch
from acdc.patching.forward import NOTHING_BEFORE, Ignore, NodeOutputs, Prefix, Watcher, run_plain

TILE = 64  # tokens in a product; more does not make them faster, only larger


@dataclass
class ReceiverGradients:
    """x: per layer, the residual that q, k, v read [batch, pos, d]. projected: per layer, gradient at their projections
    [batch, pos, R, e]. mlp: per layer, gradient at the MLP's input [batch, pos, d]. last: at the logits' input."""

    x: list[Tensor]
    projected: list[Tensor]
    mlp: list[Tensor]
    last: Tensor


class _Tap(Ignore):
    """Notes the tensors whose gradients are wanted, and passes everything on to `inner`."""

    def __init__(self, inner: Watcher) -> None:
        self.inner = inner
        self.x: list[Tensor] = []
        self.projected: list[Tensor] = []
        self.mlp_inputs: list[Tensor] = []

    def read(self, layer: int, x: Tensor, projected: Tensor) -> Tensor:
        self.x.append(x.detach())
        self.projected.append(projected)
        return self.inner.read(layer, x, projected)

    def heads(self, layer: int, z: Tensor) -> Tensor:
        return self.inner.heads(layer, z)

    def mlp_input(self, layer: int, x: Tensor) -> Tensor:
        x = x.view_as(x)  # a node of its own: the gradient through the MLP apart from that of the stream
        self.mlp_inputs.append(x)
        return self.inner.mlp_input(layer, x)

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        return self.inner.mlp(layer, out)


def gradients_at_receivers(
    t: Transformer,
    inputs: Tensor,
    objective: Callable[[Tensor], Tensor],
    watcher: Watcher | None = None,
    prefix: Prefix = NOTHING_BEFORE,
) -> tuple[ReceiverGradients, Tensor]:
    """One forward and backward of the positions after the prefix: gradients at others would meet differences of 0.

    inputs: [n_inputs, batch, pos, d]. objective: last residual [batch, pos, d] -> a scalar. watcher: may put in others
    outputs. Returns gradients, and the objective's value. Receivers that the objective cannot see get gradient 0.
    """
    tap = _Tap(watcher if watcher is not None else Ignore())
    with torch.enable_grad():
        last = run_plain(t, inputs.detach().requires_grad_(True), tap, prefix)
        last = last.view_as(last)
        value = objective(last)
        wanted = [*tap.projected, *tap.mlp_inputs, last]
        found = torch.autograd.grad(value, wanted, allow_unused=True)
    grads = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
    n = len(tap.projected)
    return ReceiverGradients(tap.x, grads[:n], grads[n:-1], grads[-1]), value.detach()


def written(t: Transformer, outputs: NodeOutputs, tokens: slice | Tensor, senders: slice = slice(None)) -> Tensor:
    """What each chosen sender writes (or changes), for a tile of the tokens of all rows: [S, n, d]."""
    first, last, _ = senders.indices(t.graph.n_senders)
    parts = []
    if first < t.graph.n_inputs:
        parts.append(outputs.inputs[first:last].flatten(1, 2)[:, tokens])
    for index, layer in enumerate(t.layers):
        heads = t.graph.heads_of_layer(index)
        if heads.start >= last or heads.start + t.graph.senders_per_layer <= first:
            continue
        if first < heads.stop and last > heads.start:
            own = slice(max(0, first - heads.start), min(t.n_heads, last - heads.start))
            z = _tokens(outputs.z[index], tokens).unflatten(-1, (t.n_heads, t.d_head)).transpose(0, 1)
            parts.append(torch.bmm(z[own], layer.w_out[own]))
        if outputs.mlp and first <= heads.stop < last:
            parts.append(_tokens(outputs.mlp[index], tokens).unsqueeze(0))
    return torch.cat(parts)


def bytes_per_example(graph: Graph) -> int:
    """What `EdgeScores` holds for each example whose own scores are kept: one float32 per edge."""
    return graph.n_edges * 4


class EdgeScores:
    """Adds up scores over batches and steps, in float32 (float64 for float64 models).

    n_examples: how many examples all batches together have, to keep each one's own scores as well; 0 for their sum
    alone.
    """

    def __init__(self, t: Transformer, memory_bytes: int, n_examples: int = 0) -> None:
        self.t, self.graph = t, t.graph
        self.dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
        self.scores = torch.zeros(t.graph.legal.shape, dtype=self.dtype, device=t.device)
        shape = n_examples, t.graph.n_edges
        self.parts = torch.zeros(shape, dtype=torch.float32, device=t.device) if n_examples else None
        widest = t.graph.n_senders + 3 * t.graph.whole.receivers_per_layer
        self.tile = max(1, memory_bytes // (widest * t.d_model * self.dtype.itemsize))
        self.tile = min(self.tile, TILE)
        self._cells: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self._columns = torch.from_numpy(t.graph.parts_of.T.copy()).to(t.device)  # [role, receiver of the whole graph]

    @torch.no_grad()
    def add(
        self,
        batch: Batch,
        differences: NodeOutputs,
        gradients: ReceiverGradients,
        weight: float,
        senders: slice = slice(None),
    ) -> None:
        """scores += weight * <difference, gradient>, for the given senders only. batch: whose both are, at the same of
        its positions."""
        if len(differences.z) and differences.z[0].shape[:2] != gradients.x[0].shape[:2]:
            raise ValueError("differences and gradients are of different batches")
        rows = range(*senders.indices(self.graph.n_senders))
        blocks = self._cut(batch, gradients.last.shape[1])
        for tile in _tiles(blocks.n_tokens, self.tile):
            update = weight * self._products(differences, gradients, tile, blocks.order, rows)
            for role, own in blocks.of_roles(tile):
                self.scores[senders].index_add_(1, self._columns[role], update[own].sum(0))
                if self.parts is not None:
                    examples = blocks.examples[tile.first + own.start : tile.first + own.stop].to(self.parts.device)
                    edges, cells = self._cells_of(rows, role)
                    self.parts[examples[:, None], edges] += update[own].flatten(1)[:, cells].to(self.parts)

    @torch.no_grad()
    def add_effects(self, batch: Batch, effects: Tensor, senders: slice, receivers: slice) -> None:
        """scores += effects of edges that were found another way: [row of the batch, sender, receiver], all of these
        senders' edges into all of these receivers, each example's share of the objective's mean."""
        self.scores[senders, receivers] += effects.sum(0).to(self.dtype)
        if self.parts is not None:
            device = self.parts.device
            edges = self.t.graph.matrix_of(np.arange(self.t.graph.n_edges))[senders, receivers].ravel()
            n_rows = torch.tensor(_tokens_of_examples(batch, 1), device=device)
            of_row = torch.arange(len(n_rows), device=device).repeat_interleave(n_rows)
            own = torch.zeros(len(n_rows), len(edges), device=device).index_add_(0, of_row, effects.flatten(1).float())
            examples = torch.tensor(batch.examples, device=device)
            self.parts[examples[:, None], torch.from_numpy(edges).to(device)] += own

    def _cut(self, batch: Batch, n_pos: int) -> _Blocks:
        """The tokens of the last positions, cut by whatever is summed apart: roles, and examples if each one's own
        scores are kept."""
        n_rows = torch.tensor(_tokens_of_examples(batch, 1) if self.parts is not None else [batch.n_rows])
        block_of = torch.arange(len(n_rows)).repeat_interleave(n_rows)[:, None].expand(-1, n_pos)  # [row, pos]
        examples = torch.tensor(batch.examples)
        if not self.graph.shape.roles:
            return _Blocks(None, (n_rows * n_pos).tolist(), examples, [0] * len(n_rows))
        roles = batch.numbered_roles(self.graph.shape.roles)[:, -n_pos:].cpu()
        keys = (roles * len(n_rows) + block_of).flatten()
        blocks, n_tokens = torch.unique(keys, return_counts=True)
        of_blocks = (blocks // len(n_rows)).tolist()
        order = torch.argsort(keys, stable=True).to(self.t.device)
        return _Blocks(order, n_tokens.tolist(), examples[blocks % len(n_rows)], of_blocks)

    def _products(
        self,
        differences: NodeOutputs,
        gradients: ReceiverGradients,
        tile: _Tile,
        order: Tensor | None,
        rows: range,
    ) -> Tensor:
        """<difference, gradient> over a tile's tokens: [block, chosen senders, receivers of the whole graph]. One sum
        per block."""
        graph = self.graph.whole
        tokens = slice(tile.start, tile.stop) if order is None else order[tile.start : tile.stop]
        chosen = slice(rows.start, rows.stop)
        d = _blocks(written(self.t, differences, tokens, chosen).to(self.dtype), tile)  # [b, S, n * d]
        update = torch.zeros(tile.count, len(rows), graph.n_receivers, dtype=self.dtype, device=self.t.device)
        for layer in range(self.t.n_layers):
            columns = graph.receivers_of_layer(layer)
            known = int(graph.n_senders_before[columns.stop - 1])  # the most that any receiver here sees
            used = max(0, min(rows.stop, known) - rows.start)
            if used:
                g = _blocks(self._at_receivers(gradients, layer, tokens), tile)  # [b, R, n * d]
                update[:, :used, columns] = torch.bmm(d[:, :used], g.mT)
        last = _blocks(_tokens(gradients.last, tokens).to(self.dtype).unsqueeze(0), tile)
        update[..., -1] = torch.bmm(d, last.mT).squeeze(-1)
        return update

    def _cells_of(self, rows: range, role: int) -> tuple[Tensor, Tensor]:
        """The legal edges that leave these senders at a role: their numbers in the graph's order, and where `update`
        has them."""
        key = (rows.start, rows.stop, role)
        if key not in self._cells:
            graph = self.graph
            columns = graph.parts_of[:, role]
            numbers = graph.matrix_of(np.arange(graph.n_edges))[rows.start : rows.stop, columns]
            at_role = graph.role_of[columns] == role  # the logits are read at one role
            cells = np.flatnonzero(graph.legal[rows.start : rows.stop, columns] & at_role)
            both = numbers.ravel()[cells], cells
            self._cells[key] = tuple(torch.from_numpy(one).to(self.t.device) for one in both)  # type: ignore[assignment]
        return self._cells[key]

    def _at_receivers(self, gradients: ReceiverGradients, index: int, tokens: slice | Tensor) -> Tensor:
        """Gradient at the input of each receiver of a layer: [R (+ 1), n, d]."""
        layer = self.t.layers[index]
        g = _tokens(gradients.projected[index], tokens).transpose(0, 1)  # [R, n, e]
        u = torch.bmm(g, layer.w_read)
        pulled = layer.read_scale.pull_back(_tokens(gradients.x[index], tokens), u)
        if gradients.mlp:
            pulled = torch.cat((pulled, _tokens(gradients.mlp[index], tokens).unsqueeze(0)))
        return pulled.to(self.dtype)

    def result(self) -> Tensor:
        """[senders, receivers], 0 where no edge is."""
        return self.scores * torch.from_numpy(self.t.graph.legal.copy()).to(self.scores)

    def per_example(self) -> Tensor | None:
        """[example, edge], edges in the graph's order: the scores that each example has by itself, None if not kept.

        What was added is each example's share of the gradient of a mean over n examples, which holds a factor 1/n. It
        is taken out here, once: so the mean of these rows is `result` (within 1e-5 of the largest), and each row is
        what the method gives for that example alone with the same ablation values.
        """
        return None if self.parts is None else self.parts * len(self.parts)


@dataclass(frozen=True)
class _Blocks:
    """Tokens in blocks whose products are summed apart, those of one role next to each other. order: the tokens, block
    by block; None: as they stand. examples: the number of each block's example. roles: of each block."""

    order: Tensor | None
    n_tokens: list[int]
    examples: Tensor
    roles: list[int]

    def of_roles(self, tile: _Tile) -> Iterator[tuple[int, slice]]:
        """Each role in a tile, and its blocks there."""
        start = 0
        for role, equal in itertools.groupby(self.roles[tile.first : tile.first + tile.count]):
            stop = start + len(list(equal))
            yield role, slice(start, stop)
            start = stop


@dataclass(frozen=True)
class _Tile:
    """Some tokens, in `count` blocks of equally many: block number `first` and those after it."""

    start: int
    stop: int
    first: int
    count: int


def _tiles(n_tokens: Sequence[int], most: int) -> Iterator[_Tile]:
    """Cut blocks of so many tokens each, one after the other, into tiles of at most `most` tokens: whole neighbours of
    equal size where they fit, and a block longer than that in pieces."""
    first = start = 0
    for n, equal in itertools.groupby(n_tokens):
        left = len(list(equal))
        while left:
            count = min(left, max(1, most // n))
            stop = start + count * n
            for piece in range(start, stop, most):
                yield _Tile(piece, min(piece + most, stop), first, count)
            first, start, left = first + count, stop, left - count


def _tokens_of_examples(batch: Batch, n_pos: int) -> list[int]:
    """Of each example of a batch, n_pos a row; an answer of several tokens gives it several rows."""
    first = [*batch.first_row.tolist(), batch.n_rows]
    return [(stop - start) * n_pos for start, stop in itertools.pairwise(first)]


def _blocks(x: Tensor, tile: _Tile) -> Tensor:
    """[node, n tokens, d] -> [block, node, tokens of a block * d]"""
    blocks: Tensor = x.flatten(1).unflatten(1, (tile.count, -1)).transpose(0, 1)
    return blocks


def _tokens(x: Tensor, chosen: slice | Tensor) -> Tensor:
    """[batch, pos, ...] -> [n, ...], a tile of the tokens of all rows."""
    return x.flatten(0, 1)[chosen]
