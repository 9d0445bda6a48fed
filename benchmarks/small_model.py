"""A small trained model with circuits to find: GPT-2-shaped, 4 layers x 8 heads, d 256, that repeats what it saw.

Its text is a random sequence over and over, in which a quarter of all tokens have a fixed successor: so it learns to
look up what followed a token before (induction) and a table. Trained in a minute or two on two cores, once, and kept.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from acdc.tasks.prompts import Pair

KEPT = Path("build/exact/small_model")
VOCAB, LENGTH, TABLE_SHARE = 256, 24, 0.25
STEPS, BATCH, PEAK_RATE, WARM_UP = 600, 64, 1e-3, 50
PERIODS = (6, 12)  # from, below
N_PROMPTS, PERIOD, CHANGED = 8, 11, 3  # of the prompts to search on; the place that a corrupt prompt changes
SAY_EVERY = 25


class Language:
    """successor: of every token; is_fixed: whether that always follows it. Both [vocab], the same for all seeds."""

    def __init__(self, seed: int) -> None:
        table = torch.Generator().manual_seed(0)
        self.successor = torch.randperm(VOCAB, generator=table)
        self.is_fixed = torch.rand(VOCAB, generator=table) < TABLE_SHARE
        self.generator = torch.Generator().manual_seed(seed)

    def sequences(self, n: int, period: int) -> Tensor:
        """[n, period]"""
        drawn = torch.rand(n, VOCAB, generator=self.generator).argsort(1)[:, :period]
        for place in range(1, period):
            before = drawn[:, place - 1]
            drawn[:, place] = torch.where(self.is_fixed[before], self.successor[before], drawn[:, place])
        return drawn

    def text(self, n: int) -> tuple[Tensor, int]:
        """[n, LENGTH], and after how many tokens it repeats itself."""
        period = int(torch.randint(*PERIODS, (1,), generator=self.generator))
        return self.sequences(n, period).repeat(1, -(-LENGTH // period))[:, :LENGTH], period


def small_model() -> tuple[GPT2LMHeadModel, float]:
    """The model, trained now or before, and its accuracy on new text where the answer can be known."""
    if not KEPT.exists():
        _train().save_pretrained(KEPT)
    model = GPT2LMHeadModel.from_pretrained(KEPT, attn_implementation="eager").eval()
    tokens, period = Language(seed=1).text(256)
    with torch.no_grad():
        found = model(tokens).logits[:, :-1].argmax(-1)
    return model, float((found == tokens[:, 1:])[:, period:].float().mean())


def _train() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=LENGTH,
        n_embd=256,
        n_layer=4,
        n_head=8,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model, language = GPT2LMHeadModel(config), Language(seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    with torch.enable_grad():
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * min((step + 1) / WARM_UP, (STEPS - step) / (STEPS / 3), 1.0)
            tokens, period = language.text(BATCH)
            loss = _loss(model(tokens).logits[:, :-1], tokens[:, 1:], language.is_fixed[tokens[:, :-1]], period)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % SAY_EVERY == 0:
                print(f"small model: step {step} of {STEPS}, loss {loss.item():.3f}", flush=True)
    return model


def _loss(logits: Tensor, wanted: Tensor, is_fixed: Tensor, period: int) -> Tensor:
    """Only where the next token can be known: in what repeats, or after a token of the table."""
    can_be_known = is_fixed.clone()
    can_be_known[:, period:] = True
    return F.cross_entropy(logits[can_be_known], wanted[can_be_known])


def small_pairs(n: int = N_PROMPTS) -> list[Pair]:
    """Induction: a sequence, then its beginning again; the corrupt prompt had another token at the place asked for."""
    language = Language(seed=2)
    pairs: list[Pair] = []
    while len(pairs) < n:
        clean = language.sequences(1, PERIOD)[0].tolist()
        other = int(torch.randint(VOCAB, (1,), generator=language.generator))
        if language.is_fixed[clean[CHANGED - 1]] or other in clean:
            continue
        corrupt = [other if place == CHANGED else token for place, token in enumerate(clean)]
        again = clean[:CHANGED]
        answers = ((clean[CHANGED],),), ((other,),)
        pairs.append(Pair((*clean, *again), (*corrupt, *again), *answers, "induction"))
    return pairs
