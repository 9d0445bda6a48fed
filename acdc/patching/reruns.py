"""Running a model again from some layer and position on, with something in it changed.

Nothing before the change is computed a second time: rows start at a layer, from residuals of a recorded run; under a
causal mask they start at a position as well, with the keys and values of earlier positions taken from that run; and in
the last layer only places that are read are finished.

Shapes: n rows (any selection of the recorded run's rows, in any order), m positions from `start` on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from acdc.models.transformer import Layer, Rope, Transformer
from acdc.patching.forward import read_all


@dataclass
class Run:
    """One run of a batch, per layer. before: what the layer starts from [row, pos, d]; projected: q, k, v
    [row, pos, R, e]; keys: as attention compares them [row, K, pos, e]; z: [row, pos, H * e], before any post-norm;
    mlp: what the MLP adds [row, pos, d]. inputs: [n_inputs, row, pos, d]. last: before the final norm [row, pos, d]."""

    inputs: Tensor
    before: list[Tensor] = field(default_factory=list)
    projected: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    mlp: list[Tensor] = field(default_factory=list)
    last: Tensor = field(default_factory=lambda: torch.empty(0))

    def after(self, layer: int) -> Tensor:
        """What a layer ends with [row, pos, d]."""
        return self.before[layer + 1] if layer + 1 < len(self.before) else self.last


class Change:
    """What is put in the place of what a rerun computes; this one leaves everything as it is.

    Tensors are [n, positions, ...]; positions end with the prompt, so where a change knows more of them than a tensor
    has, the last ones are meant.
    """

    def read(self, layer: int, x: Tensor, projected: Tensor) -> Tensor:
        """x: what q, k, v read; projected: [n, m, R, e]"""
        return projected

    def heads(self, layer: int, z: Tensor) -> Tensor:
        """[n, m, H * e], before any post-norm"""
        return z

    def attention(self, layer: int, out: Tensor) -> Tensor:
        """What attention adds to the stream, output bias and post-norm included."""
        return out

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        """What the MLP adds to the stream."""
        return out

    def after(self, layer: int, x: Tensor) -> Tensor:
        """The stream after a layer."""
        return x

    def blocked(self, layer: int) -> Tensor | None:
        """[n, 1 or H, pos, pos], true where a query (first) may not look at a key; None where nothing is blocked."""
        return None


@dataclass(frozen=True)
class Begin:
    """Where a rerun begins. rows: [n], of `base`. Positions from `start` on are computed; in the last layer, and in
    what is returned, those from `first_read` on if that is later. base is None for a run from nothing."""

    layer: int = 0
    start: int = 0
    first_read: int = 0
    base: Run | None = None
    rows: Tensor | None = None

    @property
    def first_returned(self) -> int:
        return max(self.start, self.first_read)


_NOTHING = Change()


@torch.no_grad()
def rerun(t: Transformer, x: Tensor, begin: Begin, change: Change = _NOTHING) -> Tensor:
    """x: what layer `begin.layer` starts from [n, m, d] -> last residuals [n, positions from first_returned on, d]."""
    rope = t.rope(x.new_empty(1, begin.start + x.shape[1], 1))
    for index in range(begin.layer, t.n_layers):
        is_last = index == t.n_layers - 1
        x = _run_layer(t, index, x, rope, begin, change, begin.first_returned if is_last else begin.start)
    return x[:, begin.first_returned - begin.start :] if begin.layer == t.n_layers else x


def _run_layer(t: Transformer, index: int, x: Tensor, rope: Rope, begin: Begin, change: Change, first: int) -> Tensor:
    """first: the position from which on the layer is finished; keys and values are made from `begin.start` on."""
    layer = t.layers[index]
    projected = change.read(index, x, read_all(layer, x)).transpose(1, 2)  # [n, R, m, e]
    q, k, v = projected.split((t.n_heads, t.n_kv_heads, t.n_kv_heads), dim=1)
    skip = first - begin.start
    q = t.turn(layer, layer.head_norm_q, q[:, :, skip:], rope, first)
    k = t.turn(layer, layer.head_norm_k, k, rope, begin.start)
    if begin.start:
        assert begin.base is not None
        assert begin.rows is not None
        k = torch.cat((begin.base.keys[index][begin.rows, :, : begin.start], k), 2)
        earlier = begin.base.projected[index][begin.rows, : begin.start, -t.n_kv_heads :]
        v = torch.cat((earlier.transpose(1, 2), v), 2)
    z = t.attend_late(layer, q, k, v, change.blocked(index)).transpose(1, 2).flatten(2)
    z = change.heads(index, z)
    return finish_layer(t, index, x[:, skip:], attention_output(t, layer, z), change)


def attention_output(t: Transformer, layer: Layer, z: Tensor) -> Tensor:
    """What attention adds to the stream. z: [..., H * e], before any post-norm -> [..., d]"""
    out = t.share(layer, z) @ layer.w_out.flatten(0, 1)
    return out if layer.b_out is None else out + layer.b_out


def finish_layer(t: Transformer, index: int, x: Tensor, attention: Tensor, change: Change = _NOTHING) -> Tensor:
    """From a layer's beginning and what its attention adds to its end; every place by itself. [..., d]"""
    mlp = t.layers[index].mlp
    attention = change.attention(index, attention)
    between = x + attention
    if mlp is not None:
        between = between + change.mlp(index, mlp(x if t.is_parallel else between))
    return change.after(index, between)


# -- recording ---------------------------------------------------------------------------------------------------------


class _Record(Change):
    def __init__(self, t: Transformer, inputs: Tensor) -> None:
        self.t = t
        self.rope = t.rope(inputs[0])
        self.run = Run(inputs)

    def read(self, layer: int, x: Tensor, projected: Tensor) -> Tensor:
        keys = projected[:, :, self.t.n_heads : -self.t.n_kv_heads].transpose(1, 2)
        at = self.t.layers[layer]
        self.run.before.append(x)
        self.run.projected.append(projected)
        self.run.keys.append(self.t.turn(at, at.head_norm_k, keys, self.rope))
        return projected

    def heads(self, layer: int, z: Tensor) -> Tensor:
        self.run.z.append(z)
        return z

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        self.run.mlp.append(out)
        return out


def record_run(t: Transformer, inputs: Tensor) -> Run:
    """inputs: [n_inputs, row, pos, d], what the input senders write."""
    recorder = _Record(t, inputs)
    recorder.run.last = rerun(t, inputs.sum(0), Begin(), recorder)
    return recorder.run


def bytes_of_run(t: Transformer, n_tokens: int) -> int:
    """What a `Run` of so many tokens holds."""
    width = (t.n_heads + 3 * t.n_kv_heads + t.n_heads) * t.d_head + (2 if t.graph.shape.has_mlp else 1) * t.d_model
    return n_tokens * (t.n_layers * width + (t.graph.n_inputs + 1) * t.d_model) * t.dtype.itemsize


def bytes_of_rerun(t: Transformer, m: int, length: int) -> int:
    """The most that one row of m positions takes in a layer: residuals, projections, an MLP of four times the width in
    three copies, keys and values of all positions, attention weights."""
    per_position = 20 * t.d_model + 2 * (t.n_heads + 2 * t.n_kv_heads) * t.d_head + 2 * t.n_heads * length
    return (m * per_position + 4 * length * t.n_kv_heads * t.d_head) * t.dtype.itemsize
