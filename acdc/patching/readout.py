"""From last residuals to a metric, as cheaply as the metric allows, for many circuits on all prompts at once.

A difference of single-token logits needs the unembedding at those tokens only. KL to the clean run,
    KL(P || Q) = sum_v P log P  -  <sum_v P_v W_v, h>  +  log sum_v exp <W_v, h>,    h the normalised last residual,
needs the full unembedding for its last term alone, and one product with it serves all prompts of all candidates: read
from memory once, the unembedding is half as dear. Everything else is computed from all logits, prompt batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.metrics import METRICS, Metric
from acdc.models.transformer import Transformer, Unembed
from acdc.patching.batches import Alternatives, Batch
from acdc.patching.circuits import Prompts

VOCAB_BLOCK = 8192  # tokens whose unembedding is held in float64 at a time

Readout = Callable[[Sequence[Tensor]], Tensor]
"""Last residuals of each batch [row, read, d] -> the metric [row, example], examples batch after batch, float64."""


def make_readout(t: Transformer, prompts: Sequence[Prompts], metric: Metric) -> Readout:
    if metric is METRICS["logit_diff"] and all(p.batch.single_token for p in prompts):
        return _batch_by_batch([_of_few_tokens(t.unembed, p.batch, metric) for p in prompts])
    exact_enough = t.dtype in (torch.float32, torch.float64)
    if metric is METRICS["kl_divergence"] and t.unembed.softcap is None and exact_enough:
        return _of_kl(t.unembed, prompts)
    return _batch_by_batch([_of_all_logits(t.unembed, p, metric) for p in prompts])


def _batch_by_batch(readers: Sequence[Callable[[Tensor], Tensor]]) -> Readout:
    def read(residuals: Sequence[Tensor]) -> Tensor:
        parts = [torch.stack([reader(row) for row in rows]) for reader, rows in zip(readers, residuals, strict=True)]
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


def _of_kl(unembed: Unembed, prompts: Sequence[Prompts]) -> Readout:
    logprobs = torch.cat([p.clean_logprobs for p in prompts]).double()  # [example, vocab]
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).sum(-1)  # [example]
    blocks = zip(probabilities.split(VOCAB_BLOCK, 1), unembed.weight.split(VOCAB_BLOCK), strict=True)
    expected = torch.stack([p @ w.double() for p, w in blocks]).sum(0)  # [example, d]
    bias = 0.0 if unembed.bias is None else probabilities @ unembed.bias.double()

    def read(residuals: Sequence[Tensor]) -> Tensor:
        ends = [rows[:, p.batch.first_read] for p, rows in zip(prompts, residuals, strict=True)]
        h = unembed.norm(torch.cat(ends, 1))  # [row, example, d]
        logits = F.linear(h, unembed.weight, unembed.bias)
        top = logits.amax(-1, keepdim=True)
        normalizer = top.squeeze(-1).double() + logits.sub_(top).exp_().sum(-1).double().log()
        return (h.double() * expected).sum(-1) + bias + entropy - normalizer

    return read
