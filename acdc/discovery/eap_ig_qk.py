"""EAP-IG that computes attention anew for edges into queries and keys.

Where attention is sharp the softmax is flat: the gradient says that no query or key matters, though a change as large
as the ablation's moves all attention elsewhere. Attribution patching's QK fix (Kramár et al. 2024, arXiv 2403.00745)
follows such a change through the softmax itself and only then goes on linearly. They do so for nodes, here it is done
for every edge:

    score[s, q_h] = <z_h - z_h with s's difference taken from what the query reads, dm/dz_h>,   the same for keys
    score[s, v], score[s, mlp], score[s, logits]: as `eap-ig-inputs`

z_h is what head h has gathered from the values; its gradient is averaged along the embeddings' path as all others are.
Nothing but attention is computed anew: the read's norm, projections, rotation and softmax, all exactly.

Sign: positive means that the edge helps. Cost over the data: that of `eap-ig-inputs`, and for each sender the
projections and the attention of every later layer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acdc.discovery.attribution import edge_scores, found_by, path_of, require_gradient, run_clean_again
from acdc.discovery.problem import Found, Problem
from acdc.models.transformer import Transformer
from acdc.patching.circuits import Prompts
from acdc.patching.forward import Ignore, NodeOutputs, run_plain
from acdc.patching.gradients import ReceiverGradients, gradients_at_receivers, written
from acdc.patching.masked import circuit_tiles
from acdc.progress import Progress


def score_eap_ig_qk(problem: Problem, progress: Progress, *, steps: int) -> list[Found]:
    require_gradient(problem)
    t = problem.t
    scores = edge_scores(problem)
    progress.phase("attribution", len(problem.prompts) * (steps + t.n_layers))
    done = 0
    for p in problem.prompts:
        clean, ablation, _ = run_clean_again(t, p)
        differences = clean.minus(ablation)
        at_heads = _GradientsAtHeads(t.n_layers, steps)
        for alpha in path_of(problem, steps):
            inputs = ablation.inputs + alpha * differences.inputs
            gradients, _ = gradients_at_receivers(t, inputs, problem.mean_of(p), at_heads, p.prefix)
            scores.add(p.batch, differences, _without_queries_and_keys(t, gradients), 1.0 / steps)
            done += 1
            progress.step(done)
        reads = _Reads()
        with torch.no_grad():
            run_plain(t, clean.inputs, reads, p.prefix)
        for layer in range(t.n_layers):
            attention = _Attention(t, layer, p, reads, at_heads.mean[layer])
            n_senders = int(t.graph.n_senders_before[attention.receivers.start])
            for senders in circuit_tiles(t, n_senders, p.batch.n_rows, p.batch.length, problem.memory_bytes):
                scores.add_effects(p.batch, attention.effects(differences, senders), senders, attention.receivers)
            done += 1
            progress.step(done)
    return [found_by(problem, scores, {"forward": 3, "forward_backward": steps}, {})]


class _GradientsAtHeads(Ignore):
    """The mean over several backward passes of the gradient at what the heads write: per layer [batch, pos, H * e]."""

    def __init__(self, n_layers: int, n_runs: int) -> None:
        self.n_runs = n_runs
        self.mean: list[Tensor] = [torch.zeros(())] * n_layers

    def heads(self, layer: int, z: Tensor) -> Tensor:
        def keep(gradient: Tensor) -> None:
            self.mean[layer] = self.mean[layer] + gradient / self.n_runs

        z.register_hook(keep)
        return z


class _Reads(Ignore):
    """What the projections of each layer read, and what they give."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.projected: list[Tensor] = []

    def read(self, layer: int, x: Tensor, projected: Tensor) -> Tensor:
        self.x.append(x)
        self.projected.append(projected)
        return projected


def _without_queries_and_keys(t: Transformer, gradients: ReceiverGradients) -> ReceiverGradients:
    projected = [torch.cat((g[:, :, : -t.n_kv_heads] * 0, g[:, :, -t.n_kv_heads :]), 2) for g in gradients.projected]
    return replace(gradients, projected=projected)


class _Attention:
    """One layer's attention on a batch, as it is and with a sender's difference taken from its queries or keys."""

    @torch.no_grad()
    def __init__(self, t: Transformer, index: int, p: Prompts, reads: _Reads, gradient: Tensor) -> None:
        self.t, self.layer, self.p, self.index = t, t.layers[index], p, index
        self.x = reads.x[index]
        self.rope = t.rope(self.x.new_empty(1, p.batch.length, 1))
        self.n_projected = t.n_heads + t.n_kv_heads
        first = t.graph.receivers_of_layer(index).start
        self.receivers = slice(first, first + self.n_projected)
        self.q, self.k = self._turned(reads.projected[index][:, :, : self.n_projected])
        self.v = self._after_prefix(reads.projected[index][:, :, self.n_projected :].transpose(1, 2), p.prefix.values)
        self.z = t.attend_late(self.layer, self.q, self._keys(self.k), self.v)  # [row, H, pos, e]
        self.gradient = self._before_post_norm(gradient).unflatten(-1, (t.n_heads, t.d_head)).transpose(1, 2)

    @torch.no_grad()
    def effects(self, differences: NodeOutputs, senders: slice) -> Tensor:
        """<z - z without each sender's difference, gradient>: [row, sender, q of each head and k of each group]."""
        length = self.x.shape[1]
        changes = written(self.t, differences, slice(None), senders)  # [sender, row * pos, d]
        x = (self.x.flatten(0, 1) - changes).view(-1, length, self.t.d_model)  # [sender * row, pos, d]
        weight = self.layer.w_read[: self.n_projected].flatten(0, 1)
        projected = ((x @ weight.T) * self.layer.read_scale(x)).unflatten(-1, (self.n_projected, -1))
        q, k = self._turned(projected + self.layer.b_read[: self.n_projected])
        n = len(changes)
        of_q = self._effect(q, self._repeated(self._keys(self.k), n), n)
        of_k = self._effect(self._repeated(self.q, n), self._keys(k), n)
        return torch.cat((of_q, of_k.unflatten(-1, (self.t.n_kv_heads, -1)).sum(-1)), -1).transpose(0, 1)

    def _effect(self, q: Tensor, k: Tensor, n: int) -> Tensor:
        """[sender, row, H]"""
        z = self.t.attend_late(self.layer, q, k, self._repeated(self.v, n)).unflatten(0, (n, -1))
        effect: Tensor = ((self.z - z) * self.gradient).sum((-2, -1))
        return effect

    def _turned(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """[n, pos, H + K, e] as projected -> queries [n, H, pos, e], keys [n, K, pos, e] for attention to compare."""
        t, layer = self.t, self.layer
        q, k = projected.transpose(1, 2).split((t.n_heads, t.n_kv_heads), 1)
        norms, start = (layer.head_norm_q, layer.head_norm_k), self.p.prefix.start
        q, k = (t.turn(layer, norm, x, self.rope, start) for norm, x in zip(norms, (q, k), strict=True))
        return q, k

    def _keys(self, k: Tensor) -> Tensor:
        return self._after_prefix(k, self.p.prefix.keys)

    def _after_prefix(self, x: Tensor, before: list[Tensor]) -> Tensor:
        """[n, K, pos, e], with those of the positions before it; n may be several times the batch's rows."""
        if not self.p.prefix.start:
            return x
        return torch.cat((self._repeated(before[self.index], len(x) // len(before[self.index])), x), 2)

    def _repeated(self, x: Tensor, n: int) -> Tensor:
        return x.repeat(n, 1, 1, 1)

    def _before_post_norm(self, gradient: Tensor) -> Tensor:
        """From the gradient at the heads' shares to that at z, the post-norm taken as it is at the clean run."""
        if self.layer.share_scale is None:
            return gradient
        with torch.enable_grad():
            z = self.z.transpose(1, 2).flatten(2).requires_grad_(True)
            shares = self.t.share(self.layer, z)
        (found,) = torch.autograd.grad(shares, z, gradient)
        return found
