"""Hugging Face models with their nonlinear parts replaced by locally linear ones, for ordinary autograd: what methods
with a modified backward are judged by. Nothing of the engine's own forward or backward takes part."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from acdc.discovery.problem import Problem
from acdc.models.architectures import describe
from acdc.patching.batches import Batch

Softmax = Callable[[Tensor], Tensor]


class LinearNorm(nn.Module):
    """A norm divided by a number."""

    def __init__(self, norm: Any, offset: float) -> None:
        super().__init__()
        self.norm, self.offset = norm, offset
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            x = x - x.mean(-1, keepdim=True)
        size = (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt().detach()
        out: Tensor = x / size * (self.norm.weight + self.offset)
        return out + self.norm.bias if isinstance(self.norm, nn.LayerNorm) else out


class LinearActivation(nn.Module):
    """An activation as a factor."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.activation(x) / x).nan_to_num(0.0).detach()


def frozen(scores: Tensor) -> Tensor:
    """A softmax that is a constant."""
    return _softmax(scores).detach()


def tempered(temperature: float) -> Softmax:
    """The softmax's value and, as an explicit matrix for each query, its Jacobian at scores / temperature."""

    def softmax(scores: Tensor) -> Tensor:
        p = _softmax(scores.detach() / temperature)
        jacobian = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        change = scores - scores.detach()
        change = torch.where(scores.isinf(), 0.0, change)
        return _softmax(scores.detach()) + (jacobian @ change.unsqueeze(-1)).squeeze(-1)

    return softmax


def _softmax(scores: Tensor) -> Tensor:
    """Without the functions that a test replaces."""
    return (scores - scores.logsumexp(-1, keepdim=True)).exp()


@contextlib.contextmanager
def softmax_replaced(softmax: Softmax | None) -> Iterator[None]:
    """In both places where the models of transformers and our own call it."""
    kept = nn.functional.softmax, torch.Tensor.softmax
    try:
        if softmax is not None:
            nn.functional.softmax = lambda x, *_, **__: softmax(x)  # type: ignore[assignment]
            torch.Tensor.softmax = lambda x, *_, **__: softmax(x)  # type: ignore[assignment]
        yield
    finally:
        nn.functional.softmax, torch.Tensor.softmax = kept  # type: ignore[assignment]


def linearised(model: PreTrainedModel, *, activations: bool, divided: bool) -> PreTrainedModel:
    """A copy with linear norms and half of each gate. activations: linear as well. divided: gradients of queries and
    keys by 4, of values by 2."""
    model, row = copy.deepcopy(model), describe(model)
    if model.config.model_type != "acdc-toy":
        model.set_attn_implementation("eager")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm) or type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, LinearNorm(child, row.norm_offset))
    for block in attrgetter(row.blocks)(model):
        mlp = getattr(block, row.mlp)
        if activations and mlp is not None:
            setattr(mlp, row.activation, LinearActivation(getattr(mlp, row.activation)))
        if row.mlp_gate:
            for name in (row.mlp_gate, row.mlp_up):
                getattr(mlp, name).register_forward_hook(_scaled_by(torch.tensor(0.5)))
        if divided:
            parts = [attrgetter(path)(block) for path in row.qkv]
            for part, scale in zip(parts, _division(parts, row.fused, model.config), strict=True):
                part.register_forward_hook(_scaled_by(scale))
    return model


def _division(parts: list[Any], fused: str, config: Any) -> list[Tensor]:
    by = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    if not fused:
        return list(by)
    width = parts[0].bias.shape[0]
    if fused == "blocks":
        return [by.repeat_interleave(width // 3)]
    d_head = width // 3 // config.num_attention_heads
    return [by.repeat_interleave(d_head).repeat(config.num_attention_heads)]


def _scaled_by(scale: Tensor) -> Callable[..., Tensor]:
    return lambda module, inputs, out: out * scale + (out * (1 - scale)).detach()


# -- what each node is worth -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What the embedding, and the attention and the MLP of every layer, add to the residual stream, in that order:
    [row, pos, d] each."""

    values: list[Tensor]
    logits: Tensor


def run(model: PreTrainedModel, tokens: Tensor) -> Written:
    row, values = describe(model), []
    blocks = attrgetter(row.blocks)(model)

    def embedded(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values.append(inputs[0].detach().requires_grad_(True))
        return (values[-1], *inputs[1:])

    def added(module: nn.Module, inputs: object, out: Tensor) -> None:
        out.requires_grad_(True) if out.is_leaf else out.retain_grad()
        values.append(out)

    handles = [blocks[0].register_forward_pre_hook(embedded)]
    for block in blocks:
        for path in (row.post_attention_norm or row.out, row.post_mlp_norm or row.mlp):
            if attrgetter(path)(block) is not None:
                handles.append(attrgetter(path)(block).register_forward_hook(added))
    try:
        return Written(values, model(tokens).logits)
    finally:
        for handle in handles:
            handle.remove()


def worth_of_nodes(problem: Problem, model: PreTrainedModel, softmax: Softmax | None) -> Tensor:
    """<what a node writes - what it writes in the corrupt run, gradient there>, of all examples together: [node]."""
    total: Tensor | float = 0.0
    for p in problem.prompts:
        with softmax_replaced(softmax):
            clean, corrupt = run(model, p.batch.clean), run(model, p.batch.corrupt)
        value = problem.objective(_at_reads(clean.logits, p.batch), p.batch, p.clean_logprobs).sum()
        gradients = torch.autograd.grad(value / problem.n_examples, clean.values)
        changes = [a.detach() - b.detach() for a, b in zip(clean.values, corrupt.values, strict=True)]
        total = total + torch.stack([(d * g).sum() for d, g in zip(changes, gradients, strict=True)])
    assert isinstance(total, Tensor)
    return total


def _at_reads(logits: Tensor, batch: Batch) -> Tensor:
    return logits[batch.read_row, batch.read_pos]
