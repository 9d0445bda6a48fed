"""From last residuals to a metric, as cheaply as the metric allows, for many circuits on all prompts at once.

A difference of single-token logits needs the unembedding at those tokens only. KL to the clean run,
    KL(P || Q) = sum_v P log P  -  sum_v P_v <W_v, h>  +  log sum_v exp <W_v, h>,    h the normalised last residual,
needs the full unembedding, and one product with it serves all prompts of all candidates: read from memory once, the
unembedding is half as dear. Everything else is computed from all logits, prompt batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acdc.metrics import METRICS, Metric
from acdc.models.transformer import Transformer, Unembed
from acdc.patching.batches import Alternatives, Batch
from acdc.patching.circuits import Prompts

VOCAB_BLOCK = 8192  # tokens at a time

_Read = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Readout:
    """Last residuals of each batch [row, read, d] -> the metric [row, example], examples batch after batch, float64.
    bytes_per_read: what that takes for a row's read, beside the residual. bytes_held: all the time."""

    read: _Read
    bytes_per_read: int
    bytes_held: int = 0

    def __call__(self, residuals: Sequence[Tensor]) -> Tensor:
        return self.read(residuals)


def make_readout(t: Transformer, prompts: Sequence[Prompts], metric: Metric) -> Readout:
    copies = 4 * t.d_model * 8  # of the residual: normalised, in float64
    if metric is METRICS["logit_diff"] and all(p.batch.single_token for p in prompts):
        few = max(p.batch.right.token.numel() + p.batch.wrong.token.numel() for p in prompts)
        return Readout(
            _batch_by_batch([_of_few_tokens(t.unembed, p.batch, metric) for p in prompts]), copies + few * 32
        )
    exact_enough = t.dtype in (torch.float32, torch.float64)
    if metric is METRICS["kl_divergence"] and t.unembed.softcap is None and exact_enough:
        block = min(VOCAB_BLOCK, t.vocab_size) * 2 * t.dtype.itemsize
        held = sum(len(p.batch.examples) for p in prompts) * t.vocab_size * t.dtype.itemsize
        return Readout(_of_kl(t.unembed, prompts), copies + block, held)
    readers = [_of_all_logits(t.unembed, p, metric) for p in prompts]
    return Readout(_batch_by_batch(readers), copies + bytes_of_logits(t))


def bytes_of_logits(t: Transformer) -> int:
    """What a metric takes of one read: as they are, and in full precision."""
    return t.vocab_size * (t.dtype.itemsize + 3 * 8)


def _batch_by_batch(readers: Sequence[Callable[[Tensor], Tensor]]) -> _Read:
    def read(residuals: Sequence[Tensor]) -> Tensor:
        parts = [reader(rows) for reader, rows in zip(readers, residuals, strict=True)]
        return torch.cat(parts, 1).double()

    return read


def _of_all_logits(unembed: Unembed, p: Prompts, metric: Metric) -> Callable[[Tensor], Tensor]:
    return lambda residual: metric(unembed(residual), p.batch, p.clean_logprobs)


def _of_few_tokens(unembed: Unembed, batch: Batch, metric: Metric) -> Callable[[Tensor], Tensor]:
    tokens = torch.unique(torch.cat((batch.right.token.flatten(), batch.wrong.token.flatten())))
    bias = None if unembed.bias is None else unembed.bias[tokens]
    few = Unembed(unembed.norm, unembed.weight[tokens], bias, unembed.softcap)

    def renumbered(alternatives: Alternatives) -> Alternatives:
        return replace(alternatives, token=torch.searchsorted(tokens, alternatives.token))

    narrowed = replace(batch, right=renumbered(batch.right), wrong=renumbered(batch.wrong))
    return lambda residual: metric(few(residual), narrowed)


def _of_kl(unembed: Unembed, prompts: Sequence[Prompts]) -> _Read:
    entropy = torch.cat([-(p.clean_logprobs.exp() * p.clean_logprobs).sum(-1) for p in prompts])  # [example]
    # [vocab, example], in the order in which blocks of the vocabulary read it
    clean = torch.cat([p.clean_logprobs.exp().T.to(unembed.weight.dtype) for p in prompts], 1)

    def read(residuals: Sequence[Tensor]) -> Tensor:
        ends = [rows[:, p.batch.first_read] for p, rows in zip(prompts, residuals, strict=True)]
        h = unembed.norm(torch.cat(ends, 1))  # [row, example, d]
        return entropy - _cross_entropy(unembed, h, clean)

    return read


def _cross_entropy(unembed: Unembed, h: Tensor, clean: Tensor) -> Tensor:
    """log sum_v exp(logit_v) - sum_v P_v logit_v of normalised residuals [row, example, d], in float64: [row, example].
    clean: P, [vocab, example].

    Both sums are of the same logits, so that their rounding errors cancel where the prediction is near the clean one.
    Block by block of the vocabulary, tokens first, so that a block's logits are used up while they are in the cache;
    all are taken relative to the largest so far, which keeps sums small.
    """
    turned = h.flatten(0, 1).T.contiguous()
    top = h.new_full(h.shape[:-1], float("-inf"))
    total, expected = (torch.zeros(h.shape[:-1], dtype=torch.float64, device=h.device) for _ in range(2))
    seen = torch.zeros(h.shape[1], dtype=torch.float64, device=h.device)  # of P
    for first in range(0, len(unembed.weight), VOCAB_BLOCK):
        p = clean[first : first + VOCAB_BLOCK, None]
        logits = unembed.weight[first : first + VOCAB_BLOCK] @ turned  # [token, place]
        if unembed.bias is not None:
            logits += unembed.bias[first : first + VOCAB_BLOCK, None]
        logits = logits.unflatten(1, h.shape[:-1])  # [token, row, example]
        higher = torch.maximum(top, logits.amax(0))
        rise = (top - higher).double()
        logits.sub_(higher)
        expected = (expected + torch.where(seen > 0, seen * rise, 0.0)) + (logits * p).sum(0).double()
        total = total * rise.exp() + logits.exp_().sum(0).double()
        top, seen = higher, seen + p[:, 0].double().sum(0)
    return total.log() - expected + top.double() * (1 - seen)
