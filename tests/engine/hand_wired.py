"""A two-layer attention-only induction model wired by hand, whose circuit is known exactly.

The residual stream has four blocks: token (one-hot), position (one-hot), previous (the token before), answer.
Head 0.0 looks one position back (q and k read positions) and copies that token into `previous`. Head 1.0 matches its
own token (q) with `previous` (k) and copies the token found (v) into `answer`, which is all that the logits read.
Heads 0.1 and 1.1 are busy but write where nobody reads: into `position` in the last layer and into nothing at all.
"""

from __future__ import annotations

import torch

from acdc.models.toy import ToyConfig, ToyTransformer
from acdc.tasks.prompts import Pair

VOCAB, LENGTH, SHARP = 8, 6, 60.0
# With resample ablation position paths carry the same value in both runs, so only these matter:
RESAMPLE_CIRCUIT = {"embed->0.0.v", "0.0->1.0.k", "embed->1.0.q", "embed->1.0.v", "1.0->logits"}
# With zero ablation the previous-token head needs its positions as well:
ZERO_CIRCUIT = RESAMPLE_CIRCUIT | {"embed->0.0.q", "embed->0.0.k"}


def induction_model() -> ToyTransformer:
    size = max(VOCAB, LENGTH)
    d = 4 * size
    token, position, previous, answer = (slice(i * size, (i + 1) * size) for i in range(4))
    config = ToyConfig(
        vocab_size=VOCAB,
        n_positions=LENGTH,
        d_model=d,
        n_layers=2,
        n_heads=2,
        d_head=size,
        attention_only=True,
        no_norm=True,
        attention_scale=SHARP,
    )
    model = ToyTransformer(config).double().eval()
    eye = torch.eye(size, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.weight[:, token] = eye[:VOCAB]
        model.position.weight[:, position] = eye[:LENGTH]
        model.unembed.weight[:, answer] = eye[:VOCAB]
        first, second = (layer.attention for layer in model.layers)
        own, other = slice(0, size), slice(size, 2 * size)
        first.q.weight[own, position] = torch.roll(eye, 1, 1)  # position i asks for i - 1
        first.k.weight[own, position] = eye
        first.v.weight[own, token] = eye
        first.out.weight[previous, own] = eye
        second.q.weight[own, token] = eye
        second.k.weight[own, previous] = eye
        second.v.weight[own, token] = eye
        second.out.weight[answer, own] = eye
        for attention in (first, second):  # the idle heads: look at tokens, write nothing that is read
            attention.v.weight[other, token] = eye
        second.out.weight[position, other] = eye
    return model


def induction_pairs() -> list[Pair]:
    """... A B ... A -> B; in the corrupt prompt every token is another one, so that the answer is C."""
    pairs = []
    for a, b, c, x, y in ((0, 1, 2, 3, 4), (5, 2, 7, 0, 1), (3, 6, 1, 7, 2)):
        filler = next(i for i in range(VOCAB) if i not in (a, b, c, x, y))
        clean = (x, a, b, y, filler, a)
        corrupt = (a, x, c, filler, y, x)
        pairs.append(Pair(clean, corrupt, ((b,),), ((c,),), f"{a}{b}{c}"))
    return pairs
