"""The oracle of patching: the Hugging Face model itself, run once for a cell, with one hook that replaces one state.

Also: its arithmetic in float64 throughout, since many families take norms and softmax through float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from acdc.models.architectures import describe
from acdc.models.transformer import Transformer

State = tuple[str, int, int]  # kind, layer, head


@contextmanager
def exact_arithmetic(model: nn.Module) -> Iterator[None]:
    """Inside: RMS norms and attention weights of the model in the dtype of what enters them."""
    norms = [part for part in model.modules() if type(part).__name__.endswith("RMSNorm")]
    softmax = nn.functional.softmax

    def plainly(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(x, dim=dim)

    nn.functional.softmax = plainly  # type: ignore[assignment]
    for norm in norms:
        norm.forward = _rms_norm(norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.functional.softmax = softmax
        for norm in norms:
            del norm.forward


def _rms_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
    return lambda x: x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * (norm.weight + offset)


@contextmanager
def hooked(t: Transformer, state: State, see: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Inside: `see` gets the state [row, pos, width] as the model computes it; what it returns takes its place."""
    kind, layer, head = state
    row = describe(t.module)
    block = attrgetter(row.blocks)(t.module)[layer]

    def at_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = see(args[0] if args else kwargs["hidden_states"])
        if found is None:
            return None
        return ((found, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": found})

    def at_output(_: nn.Module, args: Any, out: Any) -> Any:
        found = see(out[0] if isinstance(out, tuple) else out)
        if found is None:
            return None
        return (found, *out[1:]) if isinstance(out, tuple) else found

    def at_columns(columns: list[int], of: Callable[..., Any]) -> Callable[..., Any]:
        """The hook on a part of what it sees."""

        def hook(module: nn.Module, args: Any, *rest: Any) -> Any:
            whole = args[0] if of is at_input else rest[0]
            found = see(whole[..., columns])
            if found is None:
                return None
            whole = whole.clone()
            whole[..., columns] = found
            return (whole, *args[1:]) if of is at_input else whole

        return hook

    match kind:
        case "residual_before":
            handle = block.register_forward_pre_hook(at_input, with_kwargs=True)
        case "residual_after":
            handle = block.register_forward_hook(at_output)
        case "residual_between":
            handle = attrgetter(row.mlp_norm)(block).register_forward_pre_hook(at_input, with_kwargs=True)
            # the stream passes the norm by: what is put in has to be added to it as well, see `replace_between`
        case "attention":
            path = row.post_attention_norm or row.out
            handle = attrgetter(path)(block).register_forward_hook(at_output)
        case "mlp":
            path = row.post_mlp_norm or row.mlp
            handle = attrgetter(path)(block).register_forward_hook(at_output)
        case "head":
            columns = list(range(head * t.d_head, (head + 1) * t.d_head))
            handle = attrgetter(row.out)(block).register_forward_pre_hook(at_columns(columns, at_input))
        case _:
            module, columns = _projection(t, row, block, kind, head)
            handle = module.register_forward_hook(at_columns(columns, at_output))
    try:
        yield
    finally:
        handle.remove()


def _projection(t: Transformer, row: Any, block: nn.Module, kind: str, head: int) -> tuple[nn.Module, list[int]]:
    """The module that makes a projection, and which of its outputs are the head's."""
    e = t.d_head
    number = "qkv".index(kind)
    if not row.fused:
        return attrgetter(row.qkv[number])(block), list(range(head * e, (head + 1) * e))
    first = number * t.n_heads * e + head * e if row.fused == "blocks" else (3 * head + number) * e
    return attrgetter(row.qkv[0])(block), list(range(first, first + e))


@torch.no_grad()
def see_state(t: Transformer, tokens: Tensor, state: State) -> Tensor:
    seen: list[Tensor] = []
    with hooked(t, state, seen.append):
        t.module(tokens)
    return seen[0].clone()


@torch.no_grad()
def logits_with(t: Transformer, tokens: Tensor, state: State, value: Tensor, where: Tensor) -> Tensor:
    """Logits [row, pos, vocab] of the model with `value` [row, pos, width] in the state's place where `where`
    [row, pos] is true."""

    def put(x: Tensor) -> Tensor:
        return torch.where(where[..., None], value, x)

    if state[0] == "residual_between":  # stream = before + attention: put in an attention that makes it so
        kind = ("attention", state[1], 0)
        value = value - see_state(t, tokens, ("residual_before", state[1], 0))
        return logits_with(t, tokens, kind, value, where)
    with hooked(t, state, put):
        logits: Tensor = t.module(tokens).logits
    return logits
