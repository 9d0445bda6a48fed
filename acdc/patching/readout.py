"""From last residuals to a metric, as cheaply as the metric allows, for many circuits on all prompts at once.

A difference of single-token logits needs the unembedding at those tokens only. KL to the clean run,
    KL(P || Q) = sum_v P log P  -  <sum_v P_v W_v, h>  +  log sum_v exp <W_v, h>,    h the normalised last residual,
needs the full unembedding for its last term alone, and one product with it serves all prompts of all candidates: read
from memory once, the unembedding is half as dear. Everything else is computed from all logits, prompt batch by batch.
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
    bytes_per_read: what that takes for a row's read, beside the residual."""

    read: _Read
    bytes_per_read: int

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
        return Readout(_of_kl(t.unembed, prompts), copies + min(VOCAB_BLOCK, t.vocab_size) * 2 * t.dtype.itemsize)
    logits = t.vocab_size * (t.dtype.itemsize + 3 * max(4, t.dtype.itemsize))  # as they are, and normalised
    return Readout(_batch_by_batch([_of_all_logits(t.unembed, p, metric) for p in prompts]), copies + logits)


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
    logprobs = torch.cat([p.clean_logprobs for p in prompts]).double()  # [example, vocab]
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).sum(-1)  # [example]
    blocks = zip(probabilities.split(VOCAB_BLOCK, 1), unembed.weight.split(VOCAB_BLOCK), strict=True)
    expected = torch.stack([p @ w.double() for p, w in blocks]).sum(0)  # [example, d]
    bias = 0.0 if unembed.bias is None else probabilities @ unembed.bias.double()

    def read(residuals: Sequence[Tensor]) -> Tensor:
        ends = [rows[:, p.batch.first_read] for p, rows in zip(prompts, residuals, strict=True)]
        h = unembed.norm(torch.cat(ends, 1))  # [row, example, d]
        normalizer = _normalizer(unembed, h.flatten(0, 1)).view(h.shape[:-1])
        return (h.double() * expected).sum(-1) + bias + entropy - normalizer

    return read


def _normalizer(unembed: Unembed, h: Tensor) -> Tensor:
    """log sum_v exp(logit_v) of normalised residuals [place, d], in float64. Block by block of the vocabulary, tokens
    first, so that a block's logits are used up while they are in the cache."""
    turned = h.T.contiguous()
    top = h.new_full((len(h),), float("-inf"))
    total = torch.zeros(len(h), dtype=torch.float64, device=h.device)
    for first in range(0, len(unembed.weight), VOCAB_BLOCK):
        logits = unembed.weight[first : first + VOCAB_BLOCK] @ turned  # [token, place]
        if unembed.bias is not None:
            logits += unembed.bias[first : first + VOCAB_BLOCK, None]
        higher = torch.maximum(top, logits.amax(0))
        total = total * (top - higher).double().exp() + logits.sub_(higher).exp_().sum(0).double()
        top = higher
    return top.double() + total.log()
