"""A circuit on one batch of prompts as it stands during a search: what its nodes write, and what that is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.graph import BoolMatrix
from acdc.models.transformer import Layer, Transformer
from acdc.patching.circuits import Prompts
from acdc.patching.needs import WIDE, Positions
from acdc.patching.roles import at_tokens

BLOCK = 32  # senders whose differences are formed together


class Standing:
    """Tensors of one circuit's run, at the positions from `at.wide` to `at.end`; keys and values from 0 on.

    q, z_raw: per layer [H, B, n, e]; k, v: per layer [K, B, at.end, e], turned (normed, rotated). z_raw is what heads
    make before a post-norm. a_z: the ablation value of z [H, B or 1, n or 1, e]; a_mlp: per layer [B or 1, n or 1, d].
    """

    def __init__(self, t: Transformer, prompts: Prompts, at: Positions, start: BoolMatrix) -> None:
        self.t, self.graph, self.at = t, t.graph.whole, at
        self.roles = None if prompts.roles is None else prompts.roles[:, : at.end]
        self.rope = t.rope(prompts.inputs[0])
        self.q: list[Tensor] = []
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []
        self.z_raw: list[Tensor] = []
        self.a_z = [
            self._of_range(z).unflatten(-1, (t.n_heads, t.d_head)).permute(2, 0, 1, 3) for z in prompts.ablation.z
        ]
        self.a_mlp = [self._of_range(out) for out in prompts.ablation.mlp]
        self._z_off: list[Tensor] = []  # out - a of senders, as z and as residuals, before any decision
        self._mlp_off: list[Tensor] = []
        self._bases = self._ablated_streams(prompts)
        self._run(prompts, None if np.array_equal(start, t.graph.legal) else start)

    def base(self, receiver: int, level: int) -> Tensor:
        """What a receiver of the whole graph reads when every edge into it is cut: [B or 1, n or 1, d]"""
        r = self.graph.receivers[receiver]
        base = self._bases[2 * r.layer + int(r.kind == "mlp" and not self.t.is_parallel)]
        return base[:, self.at.first(level) - self.at.wide :] if base.shape[1] > 1 else base

    def read(self, receiver: int, level: int, kept: BoolMatrix) -> Tensor:
        """What a receiver of the whole graph reads through the edges kept, of senders that no decision has touched yet:
        [B, n, d]"""
        base = self.base(receiver, level)
        shape = self._inputs_off.shape[1], self.at.count(level), self.t.d_model
        found = base.expand(shape).clone()
        parts = kept[:, self.t.graph.parts_of[receiver]]  # [senders, roles]
        senders = np.flatnonzero(parts.any(1))
        for first in range(0, len(senders), BLOCK):
            block = senders[first : first + BLOCK]
            differences = self.differences(block.tolist(), level)
            if self.roles is not None:
                differences *= at_tokens(parts[block], self.roles[:, self.at.first(level) :], differences)
            found += differences.sum(0)
        return found

    @torch.no_grad()
    def differences(self, senders: Sequence[int], level: int = WIDE) -> Tensor:
        """out - a of senders that no decision has touched yet: [sender, B, n, d]"""
        graph, places = self.graph, np.asarray(senders)
        first = self.at.first(level) - self.at.wide
        shape = (len(senders), self._inputs_off.shape[1], self.at.count(level), self.t.d_model)
        found = torch.empty(shape, dtype=self.t.dtype, device=self.t.device)
        rows = np.flatnonzero(places < graph.n_inputs)
        found[rows] = self._inputs_off[places[rows], :, first:]
        for index in sorted({graph.senders[s].layer for s in senders} - {-1}):
            heads = graph.heads_of_layer(index)
            rows = np.flatnonzero((places >= heads.start) & (places < heads.stop))
            if len(rows):
                chosen = places[rows] - heads.start
                off = self._z_off[index][chosen][:, :, first:]
                found[rows] = torch.bmm(off.flatten(1, 2), self.t.layers[index].w_out[chosen]).view(-1, *shape[1:])
            rows = np.flatnonzero(places == heads.stop)
            if graph.shape.has_mlp and len(rows):
                found[rows] = self._mlp_off[index][:, first:]
        return found

    def share(self, layer: Layer, z: Tensor) -> Tensor:
        """z of all heads [H, ..., e], scaled by the post-norm of their total where there is one."""
        if layer.share_scale is None:
            return z
        by_place = self.t.share(layer, z.movedim(0, -2).flatten(-2))
        shared: Tensor = by_place.unflatten(-1, (len(z), -1)).movedim(-2, 0)
        return shared

    @staticmethod
    def bytes_needed(t: Transformer, at: Positions, n_rows: int) -> int:
        """What all of it holds for so many rows, ablation values that belong to the prompts left out."""
        of_heads = 3 * t.n_heads * at.count(WIDE) + 2 * t.n_kv_heads * at.end  # q, z, its difference; k, v
        streams = (3 if t.graph.shape.has_mlp else 2) * at.count(WIDE)  # two ablated streams, an MLP's difference
        layer = of_heads * t.d_head + streams * t.d_model
        ends = (t.graph.n_inputs + 1) * at.count(WIDE) * t.d_model
        return (t.n_layers * layer + ends) * n_rows * t.dtype.itemsize

    @property
    def n_bytes(self) -> int:
        own = (*self.q, *self.k, *self.v, *self.z_raw, *self._z_off, *self._mlp_off, *self._bases, self._inputs_off)
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in own}.values())

    # -- the first run -------------------------------------------------------------------------------------------------

    def _ablated_streams(self, prompts: Prompts) -> list[Tensor]:
        """The stream with every edge cut, before each layer's attention and MLP, and at the end."""
        stream = self._of_range(prompts.ablation.inputs).sum(0)
        bases = []
        for index, layer in enumerate(self.t.layers):
            bases.append(stream)
            stream = stream + self._of_range(prompts.ablation.z[index]) @ layer.w_out.flatten(0, 1)
            stream = stream if layer.b_out is None else stream + layer.b_out
            bases.append(stream)
            if layer.mlp is not None:
                stream = stream + self.a_mlp[index]
        return [*bases, stream]

    @torch.no_grad()
    def _run(self, prompts: Prompts, start: BoolMatrix | None) -> None:
        """Run the circuit (None: the full graph), layer by layer, and keep what its nodes make."""
        t, graph = self.t, self.graph
        total = prompts.inputs[:, :, : self.at.end].sum(0)  # what a receiver with all its edges reads
        self._inputs_off = prompts.inputs[:, :, self.at.wide : self.at.end] - self._of_range(prompts.ablation.inputs)
        for index, layer in enumerate(t.layers):
            reads = graph.receivers_of_layer(index)
            attention = range(reads.start, reads.start + t.n_heads + 2 * t.n_kv_heads)
            before = total
            total = total + self._heads(index, layer, self._read(total, attention, start))
            if layer.mlp is not None:
                mlp = reads.stop - 1
                (x,) = self._read(before if t.is_parallel else total, range(mlp, mlp + 1), start)
                out = layer.mlp(x)
                total = total + out
                self._mlp_off.append(out[:, self.at.wide :] - self.a_mlp[index])

    def _read(self, total: Tensor, receivers: range, start: BoolMatrix | None) -> Tensor:
        """What each receiver reads [receiver or 1, B, at.end, d]; the same for all where nothing is cut."""
        if start is None:
            return total.unsqueeze(0)
        x = total.repeat(len(receivers), 1, 1, 1)
        for place, receiver in enumerate(receivers):
            x[place, :, self.at.wide :] = self.read(receiver, WIDE, start)
        return x

    def _heads(self, index: int, layer: Layer, x: Tensor) -> Tensor:
        """x: [R or 1, B, at.end, d] -> what the attention block adds [B, at.end, d]"""
        t, wide = self.t, self.at.wide
        flat = x.flatten(1, 2).expand(len(layer.w_read), -1, -1)
        reads = torch.bmm(flat, layer.w_read.transpose(1, 2)) * layer.read_scale(flat) + layer.b_read.unsqueeze(1)
        q, k, v = reads.unflatten(1, x.shape[1:3]).split((t.n_heads, t.n_kv_heads, t.n_kv_heads))
        q, k = t.turn(layer, layer.head_norm_q, q, self.rope), t.turn(layer, layer.head_norm_k, k, self.rope)
        raw = t.attend_late(layer, *(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)  # [H, B, pos, e]
        shared = self.share(layer, raw)
        # Copies: a part of a tensor would keep all of it.
        self.q.append(q[:, :, wide:].clone())
        self.k.append(k.clone())
        self.v.append(v.clone())
        self.z_raw.append(raw[:, :, wide:].clone())
        self._z_off.append(shared[:, :, wide:] - self.a_z[index])
        out = torch.einsum("hbne,hed->bnd", shared, layer.w_out)
        return out if layer.b_out is None else out + layer.b_out

    def _of_range(self, values: Tensor) -> Tensor:
        """[..., B or 1, pos or 1, n] at the positions kept."""
        return values[..., self.at.wide : self.at.end, :] if values.shape[-2] > 1 else values
