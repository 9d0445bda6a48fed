"""The edge-masked forward: any set of edges, in one pass, many circuits at a time.

    input_r = c_r + sum_s [ a_s + M[s, r] * (out_s - a_s) ]

a_s: the ablation value of sender s; c_r: what reaches r from no sender (attention output biases). Per receiver group
this is one matrix product between the masks [circuit, R, S] and the senders' differences [circuit, S, batch * pos * d].
Those differences live in one buffer shared by all layers, for one tile of prompts and circuits at a time: the callers
take tiles that fit into a budget of bytes, down to one prompt of one circuit.

M all ones gives the clean logits; M all zeros gives, under resample ablation, the corrupt run's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acdc.errors import OutOfMemory
from acdc.models.transformer import Layer, Rope, Transformer
from acdc.patching.forward import NodeOutputs


def run_masked(t: Transformer, inputs: Tensor, ablation: NodeOutputs, masks: Tensor) -> Tensor:
    """The last residual of every circuit on every prompt, before the final norm.

    inputs: [n_inputs, batch, pos, d], what the input senders write in the clean run. ablation: what cut edges carry.
    masks: [circuit, S, R] in [0, 1]. Returns [circuit, batch, pos, d]. Differentiable in masks.
    """
    n_circuits, (_, batch, length, d) = masks.shape[0], inputs.shape
    senders = _Senders(t, masks, batch, length, d)
    base = ablation.inputs.sum(0).expand(batch, length, d)  # what every receiver gets when all edges are cut
    senders.add(inputs.sub(ablation.inputs).unsqueeze(0).expand(n_circuits, -1, -1, -1, -1))
    rope = t.rope(inputs[0])
    for index, layer in enumerate(t.layers):
        reads = t.graph.receivers_of_layer(index)
        n_attention = t.n_heads + 2 * t.n_kv_heads
        x = senders.mix(base, reads.start, reads.start + n_attention)  # [circuit, R, batch, pos, d]
        z = _heads(t, layer, x, rope)  # [circuit, batch, pos, H * e]
        parallel_input = senders.mix(base, reads.stop - 1, reads.stop)[:, 0] if t.is_parallel and layer.mlp else None
        senders.add(_by_head(t, layer, z - ablation.z[index]))
        base = base + ablation.z[index] @ layer.w_out.flatten(0, 1)
        if layer.b_out is not None:
            base = base + layer.b_out
        if layer.mlp is not None:
            mlp_input = (
                senders.mix(base, reads.stop - 1, reads.stop)[:, 0] if parallel_input is None else parallel_input
            )
            senders.add((layer.mlp(mlp_input) - ablation.mlp[index]).unsqueeze(1))
            base = base + ablation.mlp[index]
    return senders.mix(base, t.graph.n_receivers - 1, t.graph.n_receivers)[:, 0]


def circuit_tiles(t: Transformer, n_circuits: int, rows: int, length: int, memory_bytes: int) -> list[slice]:
    """Cut the circuits so that each tile's buffer, for `rows` prompts of `length` tokens, fits into `memory_bytes`."""
    size = max(1, memory_bytes // (bytes_per_token(t) * rows * length))
    return [slice(first, min(first + size, n_circuits)) for first in range(0, n_circuits, size)]


def tokens_that_fit(t: Transformer, longest: int, memory_bytes: int) -> int:
    """Tokens of prompts that one circuit's masked forward can hold. Raises OutOfMemory where no prompt fits."""
    tokens = memory_bytes // bytes_per_token(t)
    if tokens < longest:
        raise OutOfMemory(
            f"one prompt of {longest} tokens needs {longest * bytes_per_token(t):,} bytes in the masked forward and "
            f"compute.memory_bytes is {memory_bytes:,}: raise it or shorten the prompts"
        )
    return tokens


def bytes_per_token(t: Transformer) -> int:
    """What the masked forward holds for one token of one circuit: all senders' differences, one layer's inputs."""
    residuals = t.graph.n_senders + 2 * (t.n_heads + 2 * t.n_kv_heads)
    return residuals * t.d_model * t.dtype.itemsize


class _Senders:
    """The differences out_s - a_s of all senders so far. One buffer without gradients, a list of parts with them."""

    def __init__(self, t: Transformer, masks: Tensor, batch: int, length: int, d: int) -> None:
        self.masks = masks.to(t.dtype).transpose(1, 2)  # [circuit, R, S]
        self.shape = (batch, length, d)
        self.count = 0
        self.parts: list[Tensor] = []
        self.buffer: Tensor | None = None
        if not torch.is_grad_enabled():
            self.buffer = torch.empty(
                masks.shape[0], t.graph.n_senders, batch * length * d, dtype=t.dtype, device=t.device
            )

    def add(self, differences: Tensor) -> None:
        """differences: [circuit, n, batch, pos, d] of the next n senders."""
        n = differences.shape[1]
        if self.buffer is None:
            self.parts.append(differences.flatten(2))
        else:
            self.buffer[:, self.count : self.count + n].unflatten(2, self.shape).copy_(differences)
        self.count += n

    def mix(self, base: Tensor, first: int, last: int) -> Tensor:
        """Inputs of the receivers first..last: [circuit, last - first, batch, pos, d]."""
        known = torch.cat(self.parts, 1) if self.buffer is None else self.buffer[:, : self.count]
        weights = self.masks[:, first:last, : self.count]
        mixed = torch.baddbmm(base.reshape(1, 1, -1), weights, known)
        inputs: Tensor = mixed.unflatten(2, self.shape)
        return inputs


def _heads(t: Transformer, layer: Layer, x: Tensor, rope: Rope) -> Tensor:
    """x: [circuit, R, batch, pos, d], an input for each of q, k, v of each head -> z: [circuit, batch, pos, H * e]."""
    n_circuits, n_reads, batch, length, d = x.shape
    flat = x.transpose(0, 1).reshape(n_reads, -1, d)  # [R, circuit * batch * pos, d]
    projected = torch.bmm(flat, layer.w_read.transpose(1, 2)) * layer.read_scale(flat) + layer.b_read.unsqueeze(1)
    by_head = projected.view(n_reads, n_circuits * batch, length, -1).transpose(0, 1)  # [n, R, pos, e]
    q, k, v = by_head.split((t.n_heads, t.n_kv_heads, t.n_kv_heads), dim=1)
    z = t.share(layer, t.attend(layer, q, k, v, rope))
    return z.view(n_circuits, batch, length, -1)


def _by_head(t: Transformer, layer: Layer, z: Tensor) -> Tensor:
    """z: [circuit, batch, pos, H * e] -> what each head writes: [circuit, H, batch, pos, d]."""
    n_circuits, batch, length, _ = z.shape
    rows = z.unflatten(-1, (t.n_heads, t.d_head)).permute(3, 0, 1, 2, 4).flatten(1, 3)  # [H, rows, e]
    out = torch.bmm(rows, layer.w_out)  # [H, circuit * batch * pos, d]
    return out.view(t.n_heads, n_circuits, batch, length, -1).transpose(0, 1)
