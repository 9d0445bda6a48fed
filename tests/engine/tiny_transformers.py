"""Tiny random models of every described architecture, and random prompt pairs for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from acdc.models.toy import ToyConfig, ToyTransformer
from acdc.tasks.prompts import Pair

VOCAB = 50
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **_IDS,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 24, "n_layer": 3, "n_head": 4, **_IDS}
_GEMMA = {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}

MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED)),
    "llama-with-biases": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED, attention_bias=True, mlp_bias=True)),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(**_GROUPED, sliding_window=4)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_GROUPED, head_dim=8)),
    # Eager attention, as models are loaded: the fused one of some transformers versions leaves out the softcap.
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_GEMMA, attn_implementation="eager")),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_GEMMA)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES)),
    "gpt-neox-sequential": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES, use_parallel_residual=False)),
    "toy": lambda: ToyTransformer(ToyConfig(vocab_size=VOCAB)),
    "toy-attention-only": lambda: ToyTransformer(ToyConfig(vocab_size=VOCAB, attention_only=True)),
    "toy-no-norm": lambda: ToyTransformer(ToyConfig(vocab_size=VOCAB, no_norm=True)),
    "toy-bidirectional": lambda: ToyTransformer(ToyConfig(vocab_size=VOCAB, bidirectional=True)),
}


def tiny(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """Random weights everywhere, biases and norm weights too, so that no part can be forgotten unseen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MAKERS[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def random_pairs(n: int, lengths: tuple[int, ...] = (6,), seed: int = 0, vocab: int = VOCAB) -> list[Pair]:
    """Random tokens; one right and one wrong answer each; one group a pair."""
    rng = random.Random(seed)
    pairs = []
    for index in range(n):
        length = lengths[index % len(lengths)]
        clean = tuple(rng.randrange(vocab) for _ in range(length))
        corrupt = tuple(rng.randrange(vocab) for _ in range(length))
        right, wrong = rng.sample(range(vocab), 2)
        roles = {"first": (0, 1), "end": (length - 1, length)}
        pairs.append(Pair(clean, corrupt, ((right,),), ((wrong,),), f"group {index}", roles))
    return pairs
