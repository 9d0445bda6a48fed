"""The plain forward, and what every sender wrote in it.

Head outputs are never stored as [batch, pos, heads, d]: a head writes W_O^h z_h, so z ([batch, pos, H * e], the size of
one residual stream) is kept instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from acdc.models.transformer import Layer, Rope, Transformer


@dataclass
class NodeOutputs:
    """What every sender wrote. inputs: [n_inputs, batch, pos, d]; z: per layer [batch, pos, H * e], scaled by the
    post-norm where there is one; mlp: per layer [batch, pos, d], empty without MLPs. Batch and pos may be 1 (means)."""

    inputs: Tensor
    z: list[Tensor]
    mlp: list[Tensor]

    def of_rows(self, rows: Tensor) -> NodeOutputs:
        """Only some rows of the batch (all of them share a batch of 1)."""

        def chosen(x: Tensor) -> Tensor:  # [..., batch, pos, n]
            return x if x.shape[-3] == 1 else x[..., rows, :, :]

        return self.mapped(chosen)

    def mapped(self, part: Callable[[Tensor], Tensor]) -> NodeOutputs:
        """The same part of every tensor."""
        return NodeOutputs(part(self.inputs), [part(z) for z in self.z], [part(out) for out in self.mlp])

    def minus(self, other: NodeOutputs) -> NodeOutputs:
        """What changes when `other` is put in: this - other, sender by sender."""
        return NodeOutputs(
            self.inputs - other.inputs,
            [a - b for a, b in zip(self.z, other.z, strict=True)],
            [a - b for a, b in zip(self.mlp, other.mlp, strict=True)],
        )


@dataclass(frozen=True)
class Prefix:
    """What later positions see of those at the beginning of a batch, which need not be run again.

    start: the first position that a circuit may change, at most the first that is read. keys (turned), values: per
    layer, of the positions before it, [row, K, start, e]; none where it is 0.
    """

    start: int = 0
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def of_rows(self, rows: Tensor) -> Prefix:
        return Prefix(self.start, [k[rows] for k in self.keys], [v[rows] for v in self.values])

    def later(self, values: Tensor) -> Tensor:
        """[..., pos or 1, n] from `start` on."""
        return values[..., self.start :, :] if values.shape[-2] > 1 else values


class Watcher(Protocol):
    """Sees the tensors of a plain forward as they arise, and may return others in their place."""

    def read(self, layer: int, x: Tensor, projected: Tensor) -> Tensor:
        """x: residual [batch, pos, d] that q, k, v read; projected: [batch, pos, R, e]. Returns `projected`."""

    def heads(self, layer: int, z: Tensor) -> Tensor:
        """z: [batch, pos, H * e], post-norm scale included."""

    def mlp_input(self, layer: int, x: Tensor) -> Tensor:
        """x: residual [batch, pos, d] that the MLP reads."""

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        """out: [batch, pos, d]"""


class Ignore:
    """The watcher that changes nothing; others derive their blanks from it."""

    def read(self, layer: int, x: Tensor, projected: Tensor) -> Tensor:
        return projected

    def heads(self, layer: int, z: Tensor) -> Tensor:
        return z

    def mlp_input(self, layer: int, x: Tensor) -> Tensor:
        return x

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        return out


class Recorder(Ignore):
    """Keeps what heads and MLPs write."""

    def __init__(self) -> None:
        self.z: list[Tensor] = []
        self.mlps: list[Tensor] = []

    def heads(self, layer: int, z: Tensor) -> Tensor:
        self.z.append(z)
        return z

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        self.mlps.append(out)
        return out

    def outputs(self, inputs: Tensor) -> NodeOutputs:
        return NodeOutputs(inputs, self.z, self.mlps)


NOTHING_BEFORE = Prefix()


def run_plain(t: Transformer, inputs: Tensor, watcher: Watcher, prefix: Prefix = NOTHING_BEFORE) -> Tensor:
    """inputs: [n_inputs, batch, pos, d], of the positions after the prefix -> the last residual [batch, pos, d] there,
    before the final norm."""
    x = inputs.sum(0)
    rope = t.rope(x.new_empty(1, prefix.start + x.shape[1], 1))
    for index, layer in enumerate(t.layers):
        projected = watcher.read(index, x, read_all(layer, x))
        z = watcher.heads(index, t.share(layer, _attend(t, index, projected, rope, prefix)))
        attention = z @ layer.w_out.flatten(0, 1)
        if layer.b_out is not None:
            attention = attention + layer.b_out
        if layer.mlp is None:
            x = x + attention
        elif t.is_parallel:
            x = x + attention + watcher.mlp(index, layer.mlp(watcher.mlp_input(index, x)))
        else:
            x = x + attention
            x = x + watcher.mlp(index, layer.mlp(watcher.mlp_input(index, x)))
    return x


def record(t: Transformer, tokens: Tensor) -> tuple[NodeOutputs, Tensor]:
    """tokens: [batch, pos] -> what every sender wrote, and the last residual [batch, pos, d]."""
    return record_from(t, t.embed(tokens))


@torch.no_grad()
def record_from(t: Transformer, inputs: Tensor, prefix: Prefix = NOTHING_BEFORE) -> tuple[NodeOutputs, Tensor]:
    """The same from what the input senders wrote [n_inputs, batch, pos, d] at the positions after the prefix."""
    watcher = Recorder()
    last = run_plain(t, inputs, watcher, prefix)
    return watcher.outputs(inputs), last


def read_all(layer: Layer, x: Tensor) -> Tensor:
    """All projections of one common input. x: [batch, pos, d] -> [batch, pos, R, e]"""
    flat = x @ layer.w_read.flatten(0, 1).T
    projected: Tensor = (flat * layer.read_scale(x)).unflatten(-1, layer.b_read.shape) + layer.b_read
    return projected


def _attend(t: Transformer, index: int, projected: Tensor, rope: Rope, prefix: Prefix) -> Tensor:
    layer, by_head = t.layers[index], projected.transpose(1, 2)  # [batch, R, pos, e]
    q, k, v = by_head.split((t.n_heads, t.n_kv_heads, t.n_kv_heads), dim=1)
    if not prefix.start:
        return t.attend(layer, q, k, v, rope)
    q = t.turn(layer, layer.head_norm_q, q, rope, prefix.start)
    k = torch.cat((prefix.keys[index], t.turn(layer, layer.head_norm_k, k, rope, prefix.start)), 2)
    v = torch.cat((prefix.values[index], v), 2)
    return t.attend_late(layer, q, k, v).transpose(1, 2).flatten(2)
