"""Metrics: pure functions (logits, targets) -> one number per example, higher is better.

logit_diff: logsumexp over the right answers minus logsumexp over the wrong ones, of logits where every answer is one
token, of teacher-forced sequence log-probabilities otherwise (the difference of logits is that of log-probabilities).
prob_diff: P(right) - P(wrong). answer_logprob: log P(right). kl_divergence: -KL(model on clean || this run) at the
place right after the prompt, in nats. accuracy: P(right) > P(wrong), or the right token ranked first where no wrong
answers are given; it has no gradient. Patching maps take one more, answer_probability: P(right).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.errors import TaskError
from acdc.patching.batches import Alternatives, Batch


@dataclass(frozen=True)
class Metric:
    """function: (logits [..., read, vocab], batch, clean log-probabilities [example, vocab]) -> [..., example]; what
    stands before are circuits, each by itself."""

    name: str
    function: Callable[[Tensor, Batch, Tensor | None], Tensor]
    needs_wrong: bool
    needs_clean: bool
    has_gradient: bool

    def __call__(self, logits: Tensor, batch: Batch, clean_logprobs: Tensor | None = None) -> Tensor:
        if self.needs_wrong and not batch.all_have_wrong:
            raise TaskError(f"metric {self.name} compares right with wrong answers and some prompts have no wrong ones")
        logits = in_full_precision(logits)
        if self.needs_clean and clean_logprobs is None:
            raise TaskError(f"metric {self.name} needs the clean run's predictions")
        return self.function(logits, batch, clean_logprobs)


def in_full_precision(logits: Tensor) -> Tensor:
    """float64, as a sum over a vocabulary needs: in float32 probabilities over 50,000 tokens add up to 1 + 2e-5."""
    return logits.double()


def _scores(logits: Tensor, batch: Batch, alternatives: Alternatives, *, normalised: bool) -> Tensor:
    """log P of each alternative (or its plain logit), -inf where there is none: [..., example, alternative]."""
    values = logits[..., alternatives.read, alternatives.token]
    if normalised or not batch.single_token:
        values = values - logits.logsumexp(-1)[..., alternatives.read]
    total = (values * alternatives.real).sum(-1)
    return total.masked_fill(~alternatives.exists, float("-inf"))


def _logit_diff(logits: Tensor, batch: Batch, _: Tensor | None) -> Tensor:
    right = _scores(logits, batch, batch.right, normalised=False).logsumexp(-1)
    return right - _scores(logits, batch, batch.wrong, normalised=False).logsumexp(-1)


def _prob_diff(logits: Tensor, batch: Batch, _: Tensor | None) -> Tensor:
    right = _scores(logits, batch, batch.right, normalised=True).exp().sum(-1)
    return right - _scores(logits, batch, batch.wrong, normalised=True).exp().sum(-1)


def _answer_logprob(logits: Tensor, batch: Batch, _: Tensor | None) -> Tensor:
    return _scores(logits, batch, batch.right, normalised=True).logsumexp(-1)


def _negative_kl(logits: Tensor, batch: Batch, clean_logprobs: Tensor | None) -> Tensor:
    assert clean_logprobs is not None
    here = logits[..., batch.first_read, :].log_softmax(-1)
    return -F.kl_div(here, clean_logprobs.expand_as(here), reduction="none", log_target=True).sum(-1)


def _accuracy(logits: Tensor, batch: Batch, _: Tensor | None) -> Tensor:
    right = _scores(logits, batch, batch.right, normalised=True).logsumexp(-1)
    wrong = _scores(logits, batch, batch.wrong, normalised=True).logsumexp(-1)
    best = logits.amax(-1)[..., batch.right.read]
    is_best = logits[..., batch.right.read, batch.right.token] >= best
    first = (is_best | ~batch.right.real).all(-1) & batch.right.exists
    return torch.where(batch.wrong.exists.any(-1), right > wrong, first.any(-1)).to(logits.dtype)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", _logit_diff, needs_wrong=True, needs_clean=False, has_gradient=True),
        Metric("prob_diff", _prob_diff, needs_wrong=True, needs_clean=False, has_gradient=True),
        Metric("kl_divergence", _negative_kl, needs_wrong=False, needs_clean=True, has_gradient=True),
        Metric("answer_logprob", _answer_logprob, needs_wrong=False, needs_clean=False, has_gradient=True),
        Metric("accuracy", _accuracy, needs_wrong=False, needs_clean=False, has_gradient=False),
    )
}


def chance_level(batches: list[Batch], vocab_size: int) -> float:
    """The accuracy that guessing would reach, averaged over examples: with wrong answers the chance that random logits
    (standard normal, independent) put more probability on the right ones; without, one in the vocabulary."""
    chances: list[float] = []
    for batch in batches:
        counts = zip(batch.right.exists.sum(-1).tolist(), batch.wrong.exists.sum(-1).tolist(), strict=True)
        chances += [_chance(right, wrong) if wrong else right / vocab_size for right, wrong in counts]
    return sum(chances) / len(chances)


@functools.cache
def _chance(n_right: int, n_wrong: int, draws: int = 20_000) -> float:
    if n_right == n_wrong:
        return 0.5
    logits = torch.randn(draws, n_right + n_wrong, generator=torch.Generator().manual_seed(0))
    return (logits[:, :n_right].logsumexp(-1) > logits[:, n_right:].logsumexp(-1)).double().mean().item()
