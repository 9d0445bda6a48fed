"""Programs that tracr compiled (Lindner et al. 2023, arXiv 2301.05062), run as GPT-2-shaped Hugging Face models.

The weights of every program lie beside this file, as `benchmarks/truth/compile_tracr.py` wrote them. They are put into
a GPT2LMHeadModel without norms, to the last bit what tracr computes: all widths are filled up with zeros to whole
heads, queries are scaled to undo the changed width of a head, and the logits are read by a layer of its own.
The vocabulary is the program's tokens, then what it may say.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from acdc.tasks.prompts import Pair, Tokens

DATA = Path(__file__).parent / "data" / "tracr"
ABLATIONS = ("resample", "zero", "mean")
PER_LENGTH = 32  # prompts, before those are left out of which a program says nothing
CLEAR = 3.0  # nats between what is said and what is next; of an average of two answers there are none
NEVER = -20.0  # the logit of what is no answer

Weights = Mapping[str, npt.NDArray[np.floating]]


@dataclass(frozen=True)
class Program:
    """One compiled program. tokens: what it reads, BOS first. says: what it may say. n_heads: of every layer."""

    name: str
    about: str
    tokens: tuple[str, ...]
    says: tuple[str, ...]
    longest: int
    n_layers: int
    n_heads: int


@functools.cache
def programs() -> dict[str, Program]:
    """All that were compiled, by name."""
    rows = json.loads((DATA / "programs.json").read_text())
    return {row["name"]: Program(**{**row, "tokens": tuple(row["tokens"]), "says": tuple(row["says"])}) for row in rows}


def model_of(program: Program) -> GPT2LMHeadModel:
    with np.load(DATA / f"{program.name}.npz") as file:
        weights = dict(file)
    n_vocab = len(program.tokens) + len(program.says)
    width, key_size = weights["tokens"].shape[1], weights["q0"].shape[1] // program.n_heads
    d_head = max(key_size, -(-width // program.n_heads))
    config = GPT2Config(
        vocab_size=n_vocab,
        n_positions=len(weights["positions"]),
        n_embd=program.n_heads * d_head,
        n_layer=program.n_layers,
        n_head=program.n_heads,
        n_inner=max(weights[f"up{i}"].shape[1] for i in range(program.n_layers)),
        activation_function="relu",
        bos_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = GPT2LMHeadModel(config).eval()
    model.lm_head = nn.Linear(config.n_embd, n_vocab)
    model.transformer.ln_f = nn.Identity()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _put(model.transformer.wte.weight, weights["tokens"])
        _put(model.transformer.wpe.weight, weights["positions"])
        for index, block in enumerate(model.transformer.h):
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
            _fill(block, {name: weights[f"{name}{index}"] for name in _PARTS}, program.n_heads, key_size)
        n_tokens = len(program.tokens)
        model.lm_head.bias[:n_tokens] = NEVER
        _put(model.lm_head.weight[n_tokens:], weights["unembed"])
        model.lm_head.bias[n_tokens:] = torch.from_numpy(weights["unembed_bias"])
    return model


_PARTS = ("q", "k", "v", "out", "up", "down")  # of a layer; tracr makes no biases


def _fill(block: Any, weights: Weights, n_heads: int, key_size: int) -> None:
    """One layer. Conv1D keeps [in, out], as the file does."""
    d_model = block.attn.c_proj.weight.shape[0]
    d_head = d_model // n_heads
    scale = {"q": (d_head / key_size) ** 0.5, "k": 1.0, "v": 1.0}
    for place, (name, by) in enumerate(scale.items()):
        for head in range(n_heads):
            start = place * d_model + head * d_head
            own = weights[name][:, head * key_size : (head + 1) * key_size]
            _put(block.attn.c_attn.weight[:, start : start + key_size], by * own)
    for head in range(n_heads):
        own = weights["out"][head * key_size : (head + 1) * key_size]
        _put(block.attn.c_proj.weight[head * d_head : (head + 1) * d_head], own)
    _put(block.mlp.c_fc.weight, weights["up"])
    _put(block.mlp.c_proj.weight, weights["down"])


def _put(where: Tensor, values: npt.NDArray[np.floating]) -> None:
    """Into the first rows and columns."""
    where[tuple(slice(size) for size in values.shape)] = torch.from_numpy(values)


def pairs_of(program: Program) -> list[Pair]:
    """Prompts of two tokens and more (BOS first) of which the program says something, beside such a prompt of equal
    length of which it says something else. Of prompts of one length, all, or as many drawn ones."""
    rng = Random(program.name)
    pairs: list[Pair] = []
    model = model_of(program)
    for length in range(2, program.longest + 1):
        prompts = [(0, *prompt) for prompt in _prompts(len(program.tokens) - 1, length, rng)]
        said = _said(model, prompts)
        for clean, right in said.items():
            others = [prompt for prompt, answer in said.items() if answer != right]
            if others:
                corrupt = rng.choice(others)
                pairs.append(Pair(clean, corrupt, ((right,),), ((said[corrupt],),), f"{length} tokens"))
    return pairs


def _prompts(n_tokens: int, length: int, rng: Random) -> list[Tokens]:
    """Without BOS."""
    if n_tokens**length <= PER_LENGTH:
        return list(itertools.product(range(1, n_tokens + 1), repeat=length))
    drawn: dict[Tokens, None] = {}
    while len(drawn) < PER_LENGTH:
        drawn[tuple(rng.randint(1, n_tokens) for _ in range(length))] = None
    return list(drawn)


@torch.no_grad()
def _said(model: GPT2LMHeadModel, prompts: list[Tokens]) -> dict[Tokens, int]:
    """What the model says at the end of each prompt, of which it says one thing clearly."""
    best = model(torch.tensor(prompts)).logits[:, -1].topk(2)
    is_clear = best.values[:, 0] - best.values[:, 1] > CLEAR
    rows = zip(prompts, best.indices[:, 0].tolist(), is_clear.tolist(), strict=True)
    return {prompt: answer for prompt, answer, clear in rows if clear}
