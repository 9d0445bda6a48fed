"""The edge-masked forward: any set of edges, in one pass, many circuits at a time.

    input_r = c_r + sum_s [ a_s + M[s, r] * (out_s - a_s) ]

a_s: the ablation value of sender s; c_r: what reaches r from no sender (attention output biases). Per receiver group
this is one matrix product between the masks [circuit, R, S] and the senders' differences [circuit, S, batch * pos * d].
Those differences live in one buffer shared by all layers, for one tile of prompts and circuits at a time: the callers
take tiles that fit into a budget of bytes, down to one prompt of one circuit.

Where edges are split by position role, M has a column for every receiver and role, and there is one such product for
the tokens of each role.

A node that no circuit of the tile leads on to the logits is not run: whatever it wrote would be multiplied by zero.
So a sparse circuit costs a part of a full one.

M all ones gives the clean logits; M all zeros gives, under resample ablation, the corrupt run's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.errors import OutOfMemory
from acdc.graph import Graph
from acdc.models.transformer import Layer, Rope, Transformer
from acdc.patching.forward import NOTHING_BEFORE, NodeOutputs, Prefix
from acdc.patching.roles import TokensByRole
from acdc.patching.sizes import masked_streams

ENOUGH_TOKENS = {"cpu": 256}
MOST_TOKENS = 8192  # of other devices


def run_masked(
    t: Transformer,
    inputs: Tensor,
    ablation: NodeOutputs,
    masks: Tensor,
    prefix: Prefix = NOTHING_BEFORE,
    roles: Tensor | None = None,
) -> Tensor:
    """The last residual of every circuit on every prompt, before the final norm.

    inputs: [n_inputs, batch, pos, d], what the input senders write in the clean run. ablation: what cut edges carry.
    masks: [circuit, S, R] in [0, 1]. prefix: the positions that need not be run. roles: of every token [batch, pos], as
    `Batch.numbered_roles` gives them. Returns [circuit, batch, pos, d], of those after the prefix. Differentiable in
    masks.
    """
    graph = t.graph.whole
    rope = t.rope(inputs[0])
    inputs, ablation = prefix.later(inputs), ablation.mapped(prefix.later)
    n_circuits, (_, batch, length, d) = masks.shape[0], inputs.shape
    live = _Live(t.graph, masks)
    by_role = None if roles is None else TokensByRole(roles[:, prefix.start :], t.graph.n_roles)
    senders = _Senders(t, masks, live, (batch, length, d), by_role)
    base = ablation.inputs.sum(0).expand(batch, length, d)  # what every receiver gets when all edges are cut
    from_inputs = inputs.sub(ablation.inputs)[live.inputs]
    senders.add(from_inputs.unsqueeze(0).expand(n_circuits, -1, -1, -1, -1))
    for index, layer in enumerate(t.layers):
        heads, runs_mlp = live.heads[index], layer.mlp is not None and live.mlps[index]
        mlp = graph.receivers_of_layer(index).stop - 1
        parallel_input = senders.mix(base, [mlp])[:, 0] if t.is_parallel and runs_mlp else None
        if heads:
            z = _heads(t, index, heads, senders, base, rope, prefix)  # [circuit, head, batch, pos, e]
            off = z - _of_heads(ablation.z[index], heads, t.d_head)
            senders.add(_written(off, layer.w_out[heads]))
        base = base + ablation.z[index] @ layer.w_out.flatten(0, 1)
        if layer.b_out is not None:
            base = base + layer.b_out
        if layer.mlp is not None:
            if runs_mlp:
                read = senders.mix(base, [mlp])[:, 0] if parallel_input is None else parallel_input
                senders.add((layer.mlp(read) - ablation.mlp[index]).unsqueeze(1))
            base = base + ablation.mlp[index]
    return senders.mix(base, [graph.n_receivers - 1])[:, 0]


class _Live:
    """The senders that some circuit's kept edges lead on to the logits; all of them while masks are learnt. inputs: of
    the input senders; heads, mlps: per layer."""

    def __init__(self, graph: Graph, masks: Tensor) -> None:
        kept = graph.legal if masks.requires_grad else (masks != 0).any(0).cpu().numpy() & graph.legal
        reads = graph.reaches_logits(kept)
        is_live = graph.join_heads(np.asarray((kept & reads[None, :]).any(1)))
        self.inputs = np.flatnonzero(is_live[: graph.n_inputs]).tolist()
        self.heads = [np.flatnonzero(is_live[graph.heads_of_layer(i)]).tolist() for i in range(graph.shape.n_layers)]
        self.mlps = [
            graph.shape.has_mlp and bool(is_live[graph.heads_of_layer(i).stop]) for i in range(graph.shape.n_layers)
        ]
        self.senders = np.flatnonzero(is_live).tolist()


def circuit_tiles(t: Transformer, n_circuits: int, rows: int, length: int, memory_bytes: int) -> list[slice]:
    """Cut the circuits so that each tile's buffer, for `rows` prompts of `length` tokens, fits into `memory_bytes`, and
    no tile is larger than keeps the device busy: what is live in one of its circuits is run for all."""
    tokens = rows * length
    enough = -(-ENOUGH_TOKENS.get(t.device.type, MOST_TOKENS) // tokens)
    size = max(1, min(enough, memory_bytes // (bytes_per_token(t) * tokens)))
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
    """What the masked forward holds for one token of one circuit."""
    return masked_streams(t.graph) * t.d_model * t.dtype.itemsize


class _Senders:
    """The differences out_s - a_s of live senders so far. One buffer without gradients, a list of parts with them."""

    def __init__(
        self, t: Transformer, masks: Tensor, live: _Live, shape: tuple[int, int, int], by_role: TokensByRole | None
    ) -> None:
        if t.graph.shape.roles and by_role is None:
            raise ValueError("edges are split by role: say which token has which")
        self.graph, self.by_role, self.shape = t.graph, by_role, shape
        self.masks = masks.to(t.dtype).transpose(1, 2)[:, :, live.senders]  # [circuit, R, S]
        self.count = 0
        self.parts: list[Tensor] = []
        self.buffer: Tensor | None = None
        if not torch.is_grad_enabled():
            sizes = masks.shape[0], len(live.senders), math.prod(shape)
            self.buffer = torch.empty(sizes, dtype=t.dtype, device=t.device)

    def add(self, differences: Tensor) -> None:
        """differences: [circuit, n, batch, pos, d] of the next n senders."""
        n = differences.shape[1]
        if self.by_role is not None:
            differences = self.by_role.sort(differences).unflatten(2, self.shape[:2])
        if self.buffer is None:
            self.parts.append(differences.flatten(2))
        else:
            self.buffer[:, self.count : self.count + n].unflatten(2, self.shape).copy_(differences)
        self.count += n

    def mix(self, base: Tensor, receivers: Sequence[int]) -> Tensor:
        """Inputs of receivers of the whole graph: [circuit, receiver, batch, pos, d]."""
        known = torch.cat(self.parts, 1) if self.buffer is None else self.buffer[:, : self.count]
        if self.by_role is None:
            weights = self.masks[:, receivers, : self.count]
            mixed = torch.baddbmm(base.reshape(1, 1, -1), weights, known)
        else:
            mixed = self._mix_by_role(self.by_role, base, receivers, known)
        inputs: Tensor = mixed.unflatten(2, self.shape)
        return inputs

    def _mix_by_role(self, by_role: TokensByRole, base: Tensor, receivers: Sequence[int], known: Tensor) -> Tensor:
        tokens = known.unflatten(2, (-1, self.shape[-1]))  # [circuit, S, token, d]
        sums = []
        for part, of_role in zip(self.graph.parts_of[list(receivers)].T, by_role.slices, strict=True):
            weights = self.masks[:, part.tolist(), : self.count]
            sums.append((weights @ tokens[:, :, of_role].flatten(2)).unflatten(2, (-1, self.shape[-1])))
        return (by_role.unsort(torch.cat(sums, 2)) + base.flatten(0, 1)).flatten(2)


def _heads(
    t: Transformer, index: int, heads: list[int], senders: _Senders, base: Tensor, rope: Rope, prefix: Prefix
) -> Tensor:
    """Run heads of a layer, each of their q, k, v on an input of its own: [circuit, head, batch, pos, e]."""
    layer, first = t.layers[index], t.graph.whole.receivers_of_layer(index).start
    kv = t.kv_of(heads)
    groups = sorted(set(kv))
    keys = [t.n_heads + g for g in groups]
    reads = [*heads, *keys, *(t.n_kv_heads + key for key in keys)]  # places among the layer's q, k, v
    x = senders.mix(base, [first + read for read in reads])
    n_circuits, n_reads, batch, length, d = x.shape
    flat = x.transpose(0, 1).reshape(n_reads, -1, d)  # [R, circuit * batch * pos, d]
    w_read, b_read = (layer.w_read, layer.b_read) if len(reads) == len(layer.w_read) else _chosen(layer, reads)
    projected = torch.bmm(flat, w_read.transpose(1, 2)) * layer.read_scale(flat) + b_read.unsqueeze(1)
    by_head = projected.view(n_reads, n_circuits * batch, length, -1).transpose(0, 1)  # [n, R, pos, e]
    q, k, v = by_head.split((len(heads), len(groups), len(groups)), dim=1)
    q, k = (t.turn(layer, norm, x, rope, prefix.start) for norm, x in ((layer.head_norm_q, q), (layer.head_norm_k, k)))
    if prefix.start:
        earlier = (kept[index][:, groups].repeat(n_circuits, 1, 1, 1) for kept in (prefix.keys, prefix.values))
        k, v = (torch.cat((before, x), 2) for before, x in zip(earlier, (k, v), strict=True))
    if len(heads) < t.n_heads:  # groups of unlike size
        of_head = [groups.index(group) for group in kv]
        k, v = k[:, of_head], v[:, of_head]
    z = t.share(layer, t.attend_late(layer, q, k, v).transpose(1, 2).flatten(2))  # a shared norm has all heads here
    return z.view(n_circuits, batch, length, len(heads), -1).permute(0, 3, 1, 2, 4)


def _chosen(layer: Layer, reads: list[int]) -> tuple[Tensor, Tensor]:
    return layer.w_read[reads], layer.b_read[reads]


def _of_heads(z: Tensor, heads: list[int], d_head: int) -> Tensor:
    """[batch, pos, H * e] -> [head, batch, pos, e]"""
    by_head: Tensor = z.unflatten(-1, (-1, d_head)).permute(2, 0, 1, 3)[heads]
    return by_head


def _written(z: Tensor, w_out: Tensor) -> Tensor:
    """z: [circuit, head, batch, pos, e], w_out: [head, e, d] -> what heads write: [circuit, head, batch, pos, d]."""
    rows = z.transpose(0, 1)  # [head, circuit, batch, pos, e]
    out = torch.bmm(rows.flatten(1, 3), w_out)  # [head, circuit * batch * pos, d]
    return out.view(*rows.shape[:-1], -1).transpose(0, 1)
