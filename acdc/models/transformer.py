"""A transformer as the executor sees it: weights arranged by sender and receiver, whatever the family.

The arithmetic is folded so that a head's input norm costs one number per token instead of a normalised copy:
    norm(x) @ W.T + b  =  rstd(x) * (x @ W'.T) + b',   W' = W diag(w) (I - 11'/d),  b' = b + W norm_bias
(without the centring for RMS norms). A post-norm is folded into the output projection in the same way: with
z' = rstd(total) * z a head's share of the normalised total is exactly W_O'^h z'_h.

Names: d = d_model, H heads, K key/value heads, e = d_head, R = H + 2K projections in the order q, k, v.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acdc.errors import TaskError
from acdc.graph import Graph

Rope = Mapping[str, tuple[Tensor, Tensor]]  # layer type -> cos, sin [1, 1, pos, rotary_dim]


@dataclass(frozen=True)
class Scale:
    """The data-dependent part of a norm: x -> 1 / sqrt(mean square + eps), after centring for LayerNorm."""

    kind: str  # rms, layer or none
    eps: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., 1]"""
        if self.kind == "none":
            return x.new_ones(()).expand(*x.shape[:-1], 1)
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)  # several times faster than x.var, and as exact
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # one pass, no temporary of x's size
        return (norm * norm / x.shape[-1] + self.eps).rsqrt()

    def pull_back(self, x: Tensor, u: Tensor) -> Tensor:
        """Gradient at x of <u, rstd(x) * centred(x)>, for u in the centred space. x: [n, d], u: [..., n, d]."""
        if self.kind == "none":
            return u
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        rstd = self(x)  # [n, 1]; the variance of centred x is that of x
        along = torch.einsum("nd,...nd->...n", x, u).unsqueeze(-1) * (rstd**3 / x.shape[-1])
        return torch.addcmul(u * rstd, along, x, value=-1.0)


@dataclass(frozen=True)
class Norm:
    """A norm as the model has it, called as it is, and what it is made of: centred(x) * scale(x) * weight + bias."""

    module: Callable[[Tensor], Tensor]
    scale: Scale
    weight: Tensor | None
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)


@dataclass(frozen=True)
class MlpParts:
    """down(activation(up(x))), or with a gate down(activation(gate(x)) * up(x))."""

    up: Callable[[Tensor], Tensor]
    gate: Callable[[Tensor], Tensor] | None
    activation: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Mlp:
    """Residual in -> what the MLP adds, norms included. module: between its norms, called as the model has it.
    parts: what the module is made of, None where it has not what its description says."""

    before: Norm
    module: Callable[[Tensor], Tensor]
    after: Norm | None
    parts: MlpParts | None

    def __call__(self, x: Tensor) -> Tensor:
        out = self.module(self.before(x))
        return out if self.after is None else self.after(out)


@dataclass(frozen=True)
class Layer:
    """One block.

    w_read: [R, e, d] folded q, k, v weights; b_read: [R, e]. w_out: [H, e, d], folded with the post-norm's weight.
    w_total: [H * e, d], the same without the fold, where there is a post-norm: its scale is taken of z @ w_total.
    b_out: [d] or None, what the block adds that belongs to no sender. head_norm_q/k: norms on q and k, per head.
    mlp: None without MLP.
    """

    read_scale: Scale
    w_read: Tensor
    b_read: Tensor
    w_out: Tensor
    w_total: Tensor | None
    b_out: Tensor | None
    share_scale: Scale | None
    head_norm_q: Norm | None
    head_norm_k: Norm | None
    attention_scale: float
    softcap: float | None
    window: int | None
    rope_type: str
    mlp: Mlp | None


@dataclass(frozen=True)
class Unembed:
    """Residual [..., d] -> logits [..., vocab]: the final norm, weight [vocab, d], bias [vocab], a softcap."""

    norm: Norm
    weight: Tensor
    bias: Tensor | None
    softcap: float | None

    def __call__(self, x: Tensor) -> Tensor:
        return self.capped(F.linear(self.norm(x), self.weight, self.bias))

    def capped(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@dataclass(frozen=True)
class Transformer:
    """module: the loaded model, never changed. embed: tokens [batch, pos] -> input senders [n_inputs, batch, pos, d].
    unembed: residual -> logits."""

    module: nn.Module
    architecture: str
    graph: Graph
    layers: tuple[Layer, ...]
    embed: Callable[[Tensor], Tensor]
    unembed: Unembed
    rope: Callable[[Tensor], Rope]
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    vocab_size: int
    max_positions: int | None
    is_causal: bool

    @property
    def device(self) -> torch.device:
        return self.layers[0].w_out.device

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0].w_out.dtype

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def is_parallel(self) -> bool:
        return self.graph.shape.is_parallel

    def split_by(self, roles: Sequence[str]) -> Transformer:
        """The same with every edge split by position role: these, `end`, and `other`. Raises TaskError for a model that
        looks ahead: which heads read keys and values at `end` rests on its being the last."""
        if not self.is_causal:
            raise TaskError("edges cannot be split by position role in a model whose attention looks ahead")
        return replace(self, graph=Graph(self.graph.shape.split_by(roles)))

    def kv_of(self, heads: Sequence[int]) -> list[int]:
        """The key/value head that each head reads."""
        return [head * self.n_kv_heads // self.n_heads for head in heads]

    def attend(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor, rope: Rope) -> Tensor:
        """q: [n, H, pos, e], k and v: [n, K, pos, e] as projected -> z: [n, pos, H * e], before any post-norm."""
        q, k = self.turn(layer, layer.head_norm_q, q, rope), self.turn(layer, layer.head_norm_k, k, rope)
        return self.attend_late(layer, q, k, v).transpose(1, 2).flatten(2)

    def turn(self, layer: Layer, head_norm: Norm | None, x: Tensor, rope: Rope, first: int = 0) -> Tensor:
        """A query or key as projected -> as attention compares it: normed and rotated. x: [..., pos, e], from position
        `first` on."""
        if head_norm is not None:
            x = head_norm(x)
        if layer.rope_type in rope:
            cos, sin = (part[0, 0, first : first + x.shape[-2]] for part in rope[layer.rope_type])
            x = _rotate(x, cos, sin)
        return x

    def attend_late(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Attention of the last m positions' queries. q: [n, H, m, e], k and v: [n, K, pos, e], turned. blocked: [n, 1
        or H, pos, pos], true where a query (first) may not look at a key. Returns z [n, H, m, e]."""
        m, length = q.shape[2], k.shape[2]
        if layer.softcap is not None:
            return self.compare(layer, q, k, blocked).softmax(-1) @ for_each_head(v, q)
        is_plain = self.is_causal and m == length and layer.window is None and blocked is None
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if is_plain else self._allowed(layer, m, length, q.device, blocked),
            is_causal=is_plain and m > 1,
            scale=layer.attention_scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    def compare(self, layer: Layer, q: Tensor, k: Tensor, blocked: Tensor | None = None) -> Tensor:
        """The same attention's scores, before the softmax: [n, H, m, pos], -inf where a query may not look."""
        scale, cap = layer.attention_scale, layer.softcap
        products = q @ for_each_head(k, q).transpose(-1, -2)
        scores = products * scale if cap is None else torch.tanh(products * (scale / cap)) * cap
        allowed = self._allowed(layer, q.shape[2], k.shape[2], q.device, blocked)
        return scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))

    def _allowed(
        self, layer: Layer, m: int, length: int, device: torch.device, blocked: Tensor | None = None
    ) -> Tensor | None:
        """[m, pos], or [n, 1 or H, m, pos] with `blocked`: where the queries of the last m positions may look; None:
        everywhere."""
        free = None if blocked is None else ~blocked[:, :, length - m :]
        needs_window = layer.window is not None and length > layer.window
        if not self.is_causal or (m == 1 and not needs_window):
            return free
        at = torch.arange(length, device=device)
        distance = at[length - m :, None] - at
        allowed = distance >= 0
        if layer.window is not None:
            allowed = allowed & (distance < layer.window)
        return allowed if free is None else allowed & free

    def share(self, layer: Layer, z: Tensor) -> Tensor:
        """z -> z', scaled by the post-norm of the layer's total where there is one. [..., H * e]"""
        if layer.share_scale is None or layer.w_total is None:
            return z
        return z * layer.share_scale(z @ layer.w_total)


def for_each_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values [n, K, pos, e], one of them for every head of q [n, H, m, e]: [n, H, pos, e]."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first `cos.shape[-1]` channels (Su et al. 2021), halves layout."""
    turned, passed = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    turned = turned * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((turned, passed), -1) if passed.shape[-1] else turned


@contextlib.contextmanager
def as_found(module: nn.Module) -> Iterator[None]:
    """Inside: evaluation mode, no parameter gradients, TF32 off. Afterwards all is as before, also after an error."""
    modes = [(part, part.training) for part in module.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        module.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        torch.backends.cuda.matmul.allow_tf32 = False
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for part, mode in modes:
            part.training = mode
