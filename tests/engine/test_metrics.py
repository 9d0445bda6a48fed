"""Metrics and batches against the model asked one prompt at a time."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from tiny_transformers import random_pairs, tiny
from transformers import GPT2Config, GPT2LMHeadModel

from acdc.errors import TaskError
from acdc.metrics import METRICS, chance_level
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patching.ablation import Resample
from acdc.patching.batches import make_batches
from acdc.patching.circuits import measure, measure_corrupt, prepare
from acdc.patching.readout import make_readout
from acdc.tasks.prompts import Pair, Tokens

MEMORY = 2**30
MANY_TOKENS = [
    Pair((3, 4, 5, 6), (7, 8, 9, 10), ((11,), (12, 13)), ((14, 15, 16),), "a"),
    Pair((3, 4, 5), (7, 8, 9), ((11, 12),), ((11, 13), (14,)), "b"),
    Pair((5, 4, 3, 2, 1), (9, 8, 7, 6, 5), ((20,),), ((21,), (22,)), "c"),
]


@torch.no_grad()
def sequence_logprob(t: Transformer, prompt: Tokens, answer: Tokens) -> float:
    """log P(answer | prompt), from the model itself, one forward."""
    logits = t.module(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def logsumexp(values: list[float]) -> float:
    return math.log(sum(math.exp(value) for value in values))


def values_of(t: Transformer, pairs: list[Pair], name: str) -> np.ndarray:  # type: ignore[type-arg]
    prompts = prepare(t, make_batches(t, pairs, 512, MEMORY), Resample())
    full = torch.from_numpy(t.graph.legal.copy()).double()[None]
    return measure(t, prompts, full, [METRICS[name]], MEMORY)[name][0]


@pytest.mark.parametrize("pairs", [MANY_TOKENS, random_pairs(5, lengths=(4, 6))], ids=["many tokens", "one token"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_metrics_of_the_full_circuit_are_those_of_the_model_prompt_by_prompt(name: str, pairs: list[Pair]) -> None:
    t = wrap(tiny(name))
    right = [[sequence_logprob(t, p.clean, a) for a in p.answers] for p in pairs]
    wrong = [[sequence_logprob(t, p.clean, a) for a in p.wrong] for p in pairs]
    expected = {
        "logit_diff": [logsumexp(r) - logsumexp(w) for r, w in zip(right, wrong, strict=True)],
        "prob_diff": [sum(map(math.exp, r)) - sum(map(math.exp, w)) for r, w in zip(right, wrong, strict=True)],
        "answer_logprob": [logsumexp(r) for r in right],
        "accuracy": [float(logsumexp(r) > logsumexp(w)) for r, w in zip(right, wrong, strict=True)],
        "kl_divergence": [0.0] * len(pairs),
    }
    for metric, values in expected.items():
        assert values_of(t, pairs, metric) == pytest.approx(values, abs=1e-5)


def test_the_empty_circuit_under_resampling_is_the_corrupt_run() -> None:
    t = wrap(tiny("gpt2"))
    prompts = prepare(t, make_batches(t, MANY_TOKENS, 512, MEMORY), Resample())
    metrics = [METRICS["logit_diff"], METRICS["kl_divergence"]]
    empty = measure(t, prompts, torch.zeros(1, *t.graph.legal.shape), metrics, MEMORY)
    corrupt = measure_corrupt(t, prompts, metrics)
    for metric in metrics:
        assert np.allclose(empty[metric.name], corrupt[metric.name], atol=1e-6)
    assert (corrupt["kl_divergence"] < 0).all()


@torch.no_grad()
def test_kl_is_taken_right_after_the_prompt_in_nats() -> None:
    t = wrap(tiny("llama"))
    (pair,) = random_pairs(1)
    prompts = prepare(t, make_batches(t, [pair], 512, MEMORY), Resample())
    value = measure_corrupt(t, prompts, [METRICS["kl_divergence"]])["kl_divergence"][0, 0]
    clean, corrupt = (t.module(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in (pair.clean, pair.corrupt))
    assert -value == pytest.approx(float((clean.exp() * (clean - corrupt)).sum()), rel=1e-5)


def test_without_wrong_answers_accuracy_asks_for_the_first_rank() -> None:
    t = wrap(tiny("llama"))
    (pair,) = random_pairs(1)
    with torch.no_grad():
        best = int(t.module(torch.tensor([pair.clean])).logits[0, -1].argmax())
    for answer, expected in ((best, 1.0), ((best + 1) % 50, 0.0)):
        pairs = [Pair(pair.clean, pair.corrupt, ((answer,),), (), "a")]
        assert values_of(t, pairs, "accuracy") == [expected]
        assert chance_level(make_batches(t, pairs, 512, MEMORY), t.vocab_size) == pytest.approx(1 / 50)


def test_chance_is_what_random_logits_reach_against_several_wrong_answers() -> None:
    t = wrap(tiny("llama"))
    pairs = [Pair((1, 2), (3, 4), ((5,),), tuple((i,) for i in range(6, 6 + n)), "a") for n in (1, 5)]
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((100_000, 6))
    against_five = (np.exp(logits[:, 0]) > np.exp(logits[:, 1:]).sum(1)).mean()
    assert chance_level(make_batches(t, pairs[:1], 512, MEMORY), 50) == 0.5
    assert chance_level(make_batches(t, pairs, 512, MEMORY), 50) == pytest.approx((0.5 + against_five) / 2, abs=0.005)


def test_a_metric_that_needs_wrong_answers_says_so() -> None:
    t = wrap(tiny("llama"))
    pairs = [Pair((1, 2), (3, 4), ((5,),), (), "a")]
    with pytest.raises(TaskError, match="logit_diff compares right with wrong"):
        values_of(t, pairs, "logit_diff")


def test_every_pair_that_a_model_cannot_take_is_named() -> None:
    t = wrap(tiny("gpt2"))
    pairs = [
        Pair((1, 2), (3, 4), ((5,),), ((6,),), "fine"),
        Pair((1, 2), (3, 4, 5), ((5,),), ((6,),), "uneven"),
        Pair((1,) * 65, (2,) * 65, ((5,),), ((6,),), "too long"),
        Pair((1, 2), (3, 400), ((5,),), ((6,),), "not in the vocabulary"),
    ]
    with pytest.raises(TaskError) as caught:
        make_batches(t, pairs, 512, MEMORY)
    assert [fault.where for fault in caught.value.faults] == ["pair 2", "pair 3", "pair 4"]
    bidirectional = wrap(tiny("toy-bidirectional"))
    with pytest.raises(TaskError, match="needs a causal model"):
        make_batches(bidirectional, MANY_TOKENS, 512, MEMORY)


@torch.no_grad()
def test_kl_in_float32_over_a_large_vocabulary_is_right_to_seven_digits() -> None:
    """Summed in float32, 50,000 probabilities miss 1 by 1e-5, and KL with them."""
    torch.manual_seed(0)
    vocab, rng = 50_000, random.Random(0)
    size = {"vocab_size": vocab, "n_positions": 8, "n_embd": 64, "n_layer": 1, "n_head": 2, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=1, eos_token_id=2)).eval()
    prompts = [tuple(rng.randrange(vocab) for _ in range(5)) for _ in range(8)]
    pairs = [Pair(prompts[i], prompts[i + 4], ((3,),), ((4,),), "a") for i in range(4)]
    narrow, wide = wrap(model), wrap(copy.deepcopy(model).double())
    (p,), (q,) = (prepare(t, make_batches(t, pairs, 512, MEMORY), Resample()) for t in (narrow, wide))
    full = torch.from_numpy(wide.graph.legal.copy()).double()
    off = torch.tensor([0.0, 0.01, 0.1, 1.0]).double()[:, None, None]
    residual = q.run(wide, full[None]) + off * torch.randn(4, 4, wide.d_model).double()
    kl = METRICS["kl_divergence"]
    expected = kl(wide.unembed(residual), q.batch, q.clean_logprobs)
    assert expected[0].abs().max() < 1e-12
    assert expected[-1].max() < -0.01
    whole = kl(narrow.unembed(residual.float()), p.batch, p.clean_logprobs)
    rows = make_readout(narrow, [p], kl)([residual.float()])
    for found in (whole, rows):
        assert (found - expected).abs().max() < 5e-7
