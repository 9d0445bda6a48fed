"""Models known only from outside: a list of blocks between which a residual stream runs, and nothing about heads.

What enters and leaves a block is read and replaced by forward hooks, which are gone after every run. That is enough to
patch residuals by layer and position in recurrent models and in families that have no description.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from acdc.errors import UnsupportedModel
from acdc.metrics import Metric, in_full_precision
from acdc.models.parity import TOLERANCE
from acdc.patching.batches import Batch
from acdc.tracing.measuring import Reader, ReadMetric
from acdc.tracing.subjects import Patch

PROBE_LENGTH = 8


@dataclass
class BlockRun:
    """before: what each block starts from, after: what the last one ends with, both [row, pos, d]; logits
    [row, pos, vocab]."""

    tokens: Tensor
    before: list[Tensor]
    after: Tensor
    logits: Tensor


@dataclass(frozen=True)
class BlockModel:
    """A causal language model of transformers, as blocks. Made by `find_blocks`. The module is never changed."""

    module: nn.Module
    blocks: Sequence[nn.Module]
    vocab_size: int
    max_positions: int | None
    d_model: int

    kinds = ("residual_before", "residual_after")
    is_causal = True  # found to be so by `find_blocks`

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def components(self, kind: str) -> tuple[str, ...]:
        return ()

    @torch.no_grad()
    def record(self, tokens: Tensor) -> BlockRun:
        before: list[Tensor] = []
        after: list[Tensor] = []
        with contextlib.ExitStack() as hooks:
            for block in self.blocks:
                hooks.enter_context(_at_input(block, before.append))
            hooks.enter_context(_at_output(self.blocks[-1], after.append))
            logits = self._run(tokens)
        if (len(before), len(after)) != (self.n_layers, 1):
            raise UnsupportedModel(
                f"{type(self.module).__name__} does not run its {self.n_layers} blocks once each, one after the other, "
                "so there is no residual stream between them to patch"
            )
        return BlockRun(tokens, before, after[0], logits)

    def last(self, run: BlockRun) -> Tensor:
        return run.logits

    def reader(self, batch: Batch, metrics: Sequence[Metric], clean: BlockRun) -> Reader:
        logprobs = in_full_precision(batch.take(clean.logits)[batch.first_read]).log_softmax(-1)

        def readout(metric: Metric) -> ReadMetric:
            return lambda logits: torch.stack([metric(row, batch, logprobs) for row in logits])

        return Reader(batch, [readout(metric) for metric in metrics], self.vocab_size)

    @torch.no_grad()
    def patched(self, base: BlockRun, other: BlockRun, patch: Patch) -> tuple[Tensor, int]:
        ends = [*other.before[1:], other.after]
        theirs = (other.before if patch.kind == "residual_before" else ends)[patch.layer]

        def put(x: Tensor) -> Tensor:
            return torch.where(patch.where[..., None], theirs[patch.rows], x)

        at = _at_input if patch.kind == "residual_before" else _at_output
        with at(self.blocks[patch.layer], put):
            logits = self._run(base.tokens[patch.rows], base.tokens.shape[1] - patch.first_read)
        return logits, patch.first_read

    def bytes_of_runs(self, batch: Batch) -> int:
        width = (self.n_layers + 1) * self.d_model + self.vocab_size
        return 2 * batch.n_rows * batch.length * width * self.dtype.itemsize

    def bytes_of_row(self, m: int, length: int) -> int:
        """The whole prompt, from wherever it is changed: logits, and a few of the widest states of one block."""
        return length * (2 * self.vocab_size + 40 * self.d_model) * self.dtype.itemsize

    def _run(self, tokens: Tensor, n_last: int | None = None) -> Tensor:
        """Logits [row, the last n_last positions, vocab]."""
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in self._arguments else {}
        if n_last is not None and "logits_to_keep" in self._arguments:
            options["logits_to_keep"] = n_last
        logits: Tensor = self.module(tokens, **options).logits
        return logits if n_last is None else logits[:, logits.shape[1] - n_last :]

    @cached_property
    def _arguments(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.module.forward).parameters)


def find_blocks(module: nn.Module) -> BlockModel:
    """Find a model's blocks, of one kind or of several, and check that they are what they seem.

    Raises UnsupportedModel where there is no list of blocks, or they take and give something else than a residual;
    where later tokens change earlier logits, or these are no numbers; or where putting another run's residual into a
    block, at all positions, does not give that run's logits (then something passes the blocks by).
    """
    config: Any = getattr(module, "config", None)
    wanted = getattr(config, "num_hidden_layers", None)
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part)]
    fitting = [part for part in lists if wanted is None or len(part) == wanted]
    if not fitting:
        raise UnsupportedModel(
            f"{type(module).__name__} has no list of {wanted or 'some'} blocks, so nothing can be patched in it"
        )
    embeddings: Any = module.get_input_embeddings()  # type: ignore[operator]
    found = BlockModel(
        module=module,
        blocks=max((list(part) for part in fitting), key=len),
        vocab_size=int(getattr(config, "vocab_size", embeddings.weight.shape[0])),
        max_positions=getattr(config, "max_position_embeddings", None),
        d_model=int(embeddings.weight.shape[1]),
    )
    _check(found)
    return found


def _check(model: BlockModel) -> None:
    name, tolerance = type(model.module).__name__, TOLERANCE[model.dtype]
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, min(PROBE_LENGTH, model.max_positions or PROBE_LENGTH))
    clean, corrupt = torch.randint(model.vocab_size, shape, generator=generator).to(model.device)
    ours, other = model.record(clean), model.record(corrupt)
    if not bool(torch.isfinite(ours.logits).all() and torch.isfinite(other.logits).all()):
        raise UnsupportedModel(f"{name}: logits that are no finite numbers; use dtype float32 or check the weights")
    spread = float(other.logits.max() - other.logits.min())
    changed = torch.cat((clean[:, :-1], corrupt[:, -1:]), 1)
    if not _largest(model.record(changed).logits[:, :-1] - ours.logits[:, :-1]) <= tolerance * spread:
        raise UnsupportedModel(f"{name}: a later token changes earlier predictions; only causal models can be patched")
    everywhere = torch.ones_like(clean, dtype=torch.bool)
    first = torch.zeros(1, dtype=torch.long, device=model.device)
    for layer in range(model.n_layers):
        for kind in model.kinds:
            logits, _ = model.patched(ours, other, Patch(kind, layer, first, first, everywhere, 0, 0))
            if not _largest(logits - other.logits) <= tolerance * spread:
                raise UnsupportedModel(
                    f"{name}: what enters and leaves block {layer} does not determine what follows, so its residual "
                    "stream cannot be patched between blocks"
                )


def _largest(difference: Tensor) -> float:
    """Not a number where a difference is, and then it is not within any tolerance."""
    return float(difference.abs().max()) if difference.numel() else 0.0


_Look = Callable[[Tensor], Tensor | None]


def _residual(block: nn.Module, does: str, x: object) -> Tensor:
    """What is taken for the stream at one end of a block. Raises UnsupportedModel where it cannot be."""
    if not isinstance(x, Tensor):
        raise UnsupportedModel(
            f"a block of type {type(block).__name__} {does} {type(x).__name__} where a tensor was looked for: as its "
            "first argument or hidden_states, and as what it returns or the first part of that"
        )
    return x


@contextlib.contextmanager
def _at_input(block: nn.Module, look: _Look) -> Iterator[None]:
    """Inside: `look` sees what enters the block, and what it returns (if anything) takes its place."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found = look(_residual(block, "takes", args[0] if args else kwargs.get("hidden_states")))
        if found is None:
            return args, kwargs
        return ((found, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": found})

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _at_output(block: nn.Module, look: _Look) -> Iterator[None]:
    """The same for what leaves the block."""

    def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        found = look(_residual(block, "gives", out[0] if isinstance(out, tuple) and out else out))
        if found is None:
            return out
        return (found, *out[1:]) if isinstance(out, tuple) else found

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
