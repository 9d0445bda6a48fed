"""Gradients at every receiver's input, contracted with every sender's difference: scores of all edges at once.

    score[s, r] = sum over batch and pos of <out_s - a_s, dm / d input_r>

which is dm/dM[s, r] at M = 1 when the gradient is taken at the clean run (attribution patching, Syed et al. 2023).

Neither side is ever stored per head over layers. Backward gives the gradient at the projections' outputs (the size of
R * e per token); per tile of tokens it is pulled back through W and the norm's Jacobian to each q/k/v input, while the
senders' differences are formed from z, and one matrix product per layer scores all its edges. Besides what autograd
keeps, a layer holds: the residual stream read (x), two differences (z, MLP) and the ablation values they came from,
R * e <= 3 H e of projections' gradients and one at the MLP input: at most eight residual streams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.models.transformer import Transformer
from acdc.patching.forward import Ignore, NodeOutputs, Watcher, run_plain


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
    t: Transformer, inputs: Tensor, objective: Callable[[Tensor], Tensor], watcher: Watcher | None = None
) -> tuple[ReceiverGradients, Tensor]:
    """One forward and backward.

    inputs: [n_inputs, batch, pos, d]. objective: last residual [batch, pos, d] -> a scalar. watcher: may put in others
    outputs. Returns gradients, and the objective's value. Receivers that the objective cannot see get gradient 0.
    """
    tap = _Tap(watcher if watcher is not None else Ignore())
    with torch.enable_grad():
        last = run_plain(t, inputs.detach().requires_grad_(True), tap)
        last = last.view_as(last)
        value = objective(last)
        wanted = [*tap.projected, *tap.mlp_inputs, last]
        found = torch.autograd.grad(value, wanted, allow_unused=True)
    grads = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
    n = len(tap.projected)
    return ReceiverGradients(tap.x, grads[:n], grads[n:-1], grads[-1]), value.detach()


class EdgeScores:
    """Adds up scores over batches and steps, in float32 (float64 for float64 models)."""

    def __init__(self, t: Transformer, memory_bytes: int) -> None:
        self.t = t
        self.dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
        self.scores = torch.zeros(t.graph.legal.shape, dtype=self.dtype, device=t.device)
        widest = t.graph.n_senders + 3 * t.graph.receivers_per_layer
        self.tile = max(1, memory_bytes // (widest * t.d_model * self.dtype.itemsize))
        self.tile = min(self.tile, 64)  # tokens; more does not make the products faster, only larger

    @torch.no_grad()
    def add(
        self, differences: NodeOutputs, gradients: ReceiverGradients, weight: float, senders: slice = slice(None)
    ) -> None:
        """scores += weight * <difference, gradient>, for the given senders only."""
        t = self.t
        if len(differences.z) and differences.z[0].shape[:2] != gradients.x[0].shape[:2]:
            raise ValueError("differences and gradients are of different batches")
        tokens = gradients.last.shape[0] * gradients.last.shape[1]
        update = torch.zeros_like(self.scores)
        for start in range(0, tokens, self.tile):
            stop = min(start + self.tile, tokens)
            d = self._differences(differences, start, stop, senders)  # [S, n, d]
            flat = d.flatten(1)
            for layer in range(t.n_layers):
                columns = t.graph.receivers_of_layer(layer)
                known = int(t.graph.n_senders_before[columns.stop - 1])  # the most that any receiver here sees
                rows = range(*senders.indices(t.graph.n_senders))
                used = len([s for s in rows if s < known])
                if used:
                    g = self._at_receivers(gradients, layer, start, stop)  # [R, n, d]
                    update[rows.start : rows.start + used, columns] += flat[:used] @ g.flatten(1).T
            last = _tokens(gradients.last, start, stop).to(self.dtype)
            update[senders, -1] += flat @ last.flatten()
        self.scores += weight * update

    def _differences(self, outputs: NodeOutputs, start: int, stop: int, senders: slice) -> Tensor:
        """What each chosen sender changes, for a tile of tokens: [S, n, d]."""
        t = self.t
        first, last, _ = senders.indices(t.graph.n_senders)
        parts = []
        if first < t.graph.n_inputs:
            parts.append(outputs.inputs.flatten(1, 2)[:, start:stop])
        for index, layer in enumerate(t.layers):
            heads = t.graph.heads_of_layer(index)
            if heads.start >= last or heads.start + t.graph.senders_per_layer <= first:
                continue
            if first < heads.stop and last > heads.start:
                z = _tokens(outputs.z[index], start, stop).unflatten(-1, (t.n_heads, t.d_head)).transpose(0, 1)
                parts.append(torch.bmm(z, layer.w_out))
            if outputs.mlp and first <= heads.stop < last:
                parts.append(_tokens(outputs.mlp[index], start, stop).unsqueeze(0))
        return torch.cat(parts).to(self.dtype)

    def _at_receivers(self, gradients: ReceiverGradients, index: int, start: int, stop: int) -> Tensor:
        """Gradient at the input of each receiver of a layer: [R (+ 1), n, d]."""
        layer = self.t.layers[index]
        g = _tokens(gradients.projected[index], start, stop).transpose(0, 1)  # [R, n, e]
        u = torch.bmm(g, layer.w_read)
        pulled = layer.read_scale.pull_back(_tokens(gradients.x[index], start, stop), u)
        if gradients.mlp:
            pulled = torch.cat((pulled, _tokens(gradients.mlp[index], start, stop).unsqueeze(0)))
        return pulled.to(self.dtype)

    def result(self) -> Tensor:
        """[senders, receivers], 0 where no edge is."""
        return self.scores * torch.from_numpy(self.t.graph.legal.copy()).to(self.scores)


def _tokens(x: Tensor, start: int, stop: int) -> Tensor:
    """[batch, pos, ...] -> [n, ...], a tile of the tokens of all rows."""
    return x.flatten(0, 1)[start:stop]
