"""The same forward with another backward: rules for what a gradient becomes on its way through a transformer.

`with_rules` gives a Transformer that computes what the given one computes, to the bit. Only its gradients differ, so
whatever differentiates a Transformer (attribution, the gradient of a mask) can be run with other rules as it stands.
The rules, each on the parts that the model's description names:

    norms         the scale 1 / sqrt(mean square + eps) counts as a constant; LayerNorm still centres
    activations   "secant": f(x) / x in place of f'(x)
    gates         of a product of two branches each gets half of its gradient, so that both together get it once
    attention     "frozen": the pattern counts as a constant, so nothing reaches queries and keys
                  "tempered": the softmax's gradient is taken at scores / temperature, without the factor
                  1 / temperature that it would have; each factor of pattern times value and of query times key gets
                  half

Softcaps keep their own gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from acdc.errors import UnsupportedModel
from acdc.models.transformer import Layer, Mlp, MlpParts, Norm, Scale, Transformer, for_each_head

TOLERANCE = 1e-4  # of an MLP's largest output, between what it gives and what its described parts give


@dataclass(frozen=True)
class Rules:
    """activation: "gradient" or "secant". attention: "gradient", "frozen" or "tempered". temperature: of the latter."""

    activation: str = "gradient"
    attention: str = "gradient"
    temperature: float = 1.0


def with_rules(t: Transformer, rules: Rules) -> Transformer:
    """The transformer with these rules; norms and gates always follow theirs.

    Raises UnsupportedModel where an MLP is not made of the parts that its description says.
    """
    fields = {name: getattr(t, name) for name in Transformer.__dataclass_fields__}
    fields["layers"] = tuple(_layer(t, index, rules) for index in range(t.n_layers))
    fields["unembed"] = replace(t.unembed, norm=_frozen(t.unembed.norm))
    return _Ruled(**fields, rules=rules)


def seen_as(value: Tensor, stand_in: Tensor) -> Tensor:
    """`value`, with the gradient of `stand_in`."""
    if not torch.is_grad_enabled():
        return value
    found: Tensor = _SeenAs.apply(value.detach(), stand_in)  # type: ignore[no-untyped-call]
    return found


class _SeenAs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def _half(x: Tensor) -> Tensor:
    return seen_as(x, x / 2)


# -- norms -------------------------------------------------------------------------------------------------------------


class _FrozenScale(Scale):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x).detach()

    def pull_back(self, x: Tensor, u: Tensor) -> Tensor:
        return u * self(x)


@dataclass(frozen=True)
class _FrozenNorm(Norm):
    def __call__(self, x: Tensor) -> Tensor:
        linear = x - x.mean(-1, keepdim=True) if self.scale.kind == "layer" else x
        linear = linear * self.scale(x)
        return seen_as(self.module(x), linear if self.weight is None else linear * self.weight)


def _frozen(norm: Norm) -> Norm:
    return _FrozenNorm(norm.module, _FrozenScale(norm.scale.kind, norm.scale.eps), norm.weight, norm.bias)


# -- MLPs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RuledMlp:
    """down(activation(up)), or down(activation(gate) * up), as the module computes it."""

    parts: MlpParts
    secant: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.parts.gate is None:
            return self.parts.down(self._activation(self.parts.up(x)))
        return self.parts.down(_half(self._activation(self.parts.gate(x))) * _half(self.parts.up(x)))

    def _activation(self, x: Tensor) -> Tensor:
        out = self.parts.activation(x)
        return seen_as(out, x * _secant(x.detach(), out.detach())) if self.secant else out


def _secant(x: Tensor, out: Tensor) -> Tensor:
    """f(x) / x; where x is 0 nothing is passed on, as nothing comes of it."""
    return torch.where(x == 0, torch.zeros_like(x), out / x)


def _mlp(t: Transformer, mlp: Mlp, index: int, rules: Rules) -> Mlp:
    name = f"the MLP of layer {index} of this {t.architecture} model"
    if mlp.parts is None:
        raise UnsupportedModel(f"{name} has not the parts that its description names, and this method needs them")
    ruled = _RuledMlp(mlp.parts, rules.activation == "secant")
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(2, t.d_model, generator=generator).to(t.device, t.dtype)
    with torch.no_grad():
        wanted, found = mlp.module(probe), ruled(probe)
    if not bool((wanted - found).abs().max() <= TOLERANCE * wanted.abs().max()):
        raise UnsupportedModel(
            f"{name} computes something else than its described parts do, and this method needs them"
        )
    return Mlp(_frozen(mlp.before), ruled, None if mlp.after is None else _frozen(mlp.after), mlp.parts)


# -- attention ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ruled(Transformer):
    rules: Rules

    def attend_late(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None = None) -> Tensor:
        if self.rules.attention == "gradient" or not torch.is_grad_enabled():
            return super().attend_late(layer, q, k, v, blocked)
        with torch.no_grad():
            z = super().attend_late(layer, q, k, v, blocked)
        return seen_as(z, _ATTENTION[self.rules.attention](self, layer, q, k, v, blocked))

    def _frozen_pattern(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None) -> Tensor:
        return self.compare(layer, q, k, blocked).softmax(-1).detach() @ for_each_head(v, q)

    def _tempered_pattern(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None) -> Tensor:
        scores = self.compare(layer, _half(q), _half(k), blocked)
        temperature = self.rules.temperature
        pattern = seen_as(scores.softmax(-1), temperature * (scores / temperature).softmax(-1))
        return _half(pattern) @ for_each_head(_half(v), q)


_ATTENTION: dict[str, Callable[..., Tensor]] = {
    "frozen": _Ruled._frozen_pattern,
    "tempered": _Ruled._tempered_pattern,
}


def _layer(t: Transformer, index: int, rules: Rules) -> Layer:
    layer = t.layers[index]
    scale, share = layer.read_scale, layer.share_scale
    return replace(
        layer,
        read_scale=_FrozenScale(scale.kind, scale.eps),
        share_scale=None if share is None else _FrozenScale(share.kind, share.eps),
        head_norm_q=None if layer.head_norm_q is None else _frozen(layer.head_norm_q),
        head_norm_k=None if layer.head_norm_k is None else _frozen(layer.head_norm_k),
        mlp=None if layer.mlp is None else _mlp(t, layer.mlp, index, rules),
    )
