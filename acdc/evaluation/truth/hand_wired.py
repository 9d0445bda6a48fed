"""Models wired by hand, whose circuit follows from how they are wired: induction, a copy over two hops, and gates.

The residual stream is cut into blocks of equal width, a one-hot code in each. A head is told which block its queries,
keys and values are read from, and where it writes. There are no norms, so what is wired is what happens, to rounding.

Gates are where methods are known to fail. Of an OR whose two inputs are both on, neither matters by itself: cutting one
edge at a time sees none of them, a greedy search keeps one, and a gradient is zero. Of an AND each is all that matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from acdc.models.toy import ToyConfig, ToyTransformer
from acdc.tasks.prompts import Pair

VOCAB, LENGTH, SHARP = 8, 6, 60.0
N_PAIRS = 64  # of the two-hop copy

Code = tuple[str, Tensor]  # a block of the residual stream, and what its code is multiplied by


class Wiring:
    """A model of zeros, and heads to be put into it. blocks: names of parts of the residual stream. d_mlp: neurons of a
    layer; without any it has attention only."""

    def __init__(self, blocks: Sequence[str], n_layers: int, n_heads: int, length: int, d_mlp: int = 0) -> None:
        self.width = max(VOCAB, length)
        self.at = {name: slice(i * self.width, (i + 1) * self.width) for i, name in enumerate(blocks)}
        config = ToyConfig(
            vocab_size=VOCAB,
            n_positions=length,
            d_model=len(blocks) * self.width,
            n_layers=n_layers,
            n_heads=n_heads,
            d_head=self.width,
            d_mlp=d_mlp,
            attention_only=not d_mlp,
            no_norm=True,
            attention_scale=SHARP,
        )
        self.model: Any = ToyTransformer(config).double().eval()
        self.same = torch.eye(self.width, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
            self.model.embed.weight[:, self.at["token"]] = self.same[:VOCAB]
            self.model.position.weight[:, self.at["position"]] = self.same[:length]

    @property
    def one_back(self) -> Tensor:
        """From the code of a position to that of the one before."""
        return torch.roll(self.same, 1, 1)

    def always(self, position: int) -> Tensor:
        """From the code of any position to that of one."""
        return self.same[:, position : position + 1].expand_as(self.same)

    @torch.no_grad()
    def head(self, layer: int, head: int, *, q: Code | None, k: Code | None, v: str, to: str) -> None:
        """Wire a head: it looks where its keys fit its query (everywhere alike without them) and copies."""
        attention = self.model.layers[layer].attention
        own = slice(head * self.width, (head + 1) * self.width)
        for part, code in ((attention.q, q), (attention.k, k), (attention.v, (v, self.same))):
            if code is not None:
                part.weight[own, self.at[code[0]]] = code[1]
        attention.out.weight[self.at[to], own] = self.same

    @torch.no_grad()
    def read(self, block: str) -> ToyTransformer:
        """Let the logits be the code in a block."""
        self.model.unembed.weight[:, self.at[block]] = self.same[:VOCAB]
        wired: ToyTransformer = self.model
        return wired


# -- induction: head 0.0 copies the token before; head 1.0 looks for the place before which its own token stands -------

INDUCTION_RESAMPLE = ("embed->0.0.v", "0.0->1.0.k", "embed->1.0.q", "embed->1.0.v", "1.0->logits")
# Under zero ablation the previous-token head needs positions as well, which are the same in both runs.
INDUCTION_ZERO = (*INDUCTION_RESAMPLE, "embed->0.0.q", "embed->0.0.k")


def induction_model() -> ToyTransformer:
    """Heads 0.1 and 1.1 are busy, but write where nobody reads."""
    wiring = Wiring(("token", "position", "previous", "answer"), n_layers=2, n_heads=2, length=LENGTH)
    same = wiring.same
    wiring.head(0, 0, q=("position", wiring.one_back), k=("position", same), v="token", to="previous")
    wiring.head(1, 0, q=("token", same), k=("previous", same), v="token", to="answer")
    wiring.head(1, 1, q=None, k=None, v="token", to="position")
    with torch.no_grad():
        wiring.model.layers[0].attention.v.weight[wiring.width :, wiring.at["token"]] = same
    return wiring.read("answer")


def induction_pairs() -> list[Pair]:
    """x A B y f A -> B; in the corrupt prompt every token is another one, so that the answer is C."""
    pairs = []
    for a, b, c, x, y in ((0, 1, 2, 3, 4), (5, 2, 7, 0, 1), (3, 6, 1, 7, 2)):
        filler = next(i for i in range(VOCAB) if i not in (a, b, c, x, y))
        clean = (x, a, b, y, filler, a)
        corrupt = (a, x, c, filler, y, x)
        pairs.append(Pair(clean, corrupt, ((b,),), ((c,),), f"{a}{b}{c}"))
    return pairs


# -- two hops: A B, B C, A -> C ----------------------------------------------------------------------------------------

TWO_HOPS_RESAMPLE = (
    "embed->0.0.v",
    "0.0->1.0.k",
    "embed->1.0.q",
    "embed->1.0.v",
    "1.0->2.0.q",
    "0.0->2.0.k",
    "embed->2.0.v",
    "2.0->logits",
)
TWO_HOPS_ZERO = (*TWO_HOPS_RESAMPLE, "embed->0.0.q", "embed->0.0.k")


def two_hop_model() -> ToyTransformer:
    """Head 0.0 copies the token before into the places of values, BOS into others; head 1.0 looks up the value of the
    last token, head 2.0 the value of that. Head 2.1 is busy, but writes where nobody reads."""
    wiring = Wiring(("token", "position", "previous", "hop", "answer"), n_layers=3, n_heads=2, length=LENGTH)
    same = wiring.same
    key_of_value = torch.zeros_like(same)  # [position looked at, position]
    for at in range(LENGTH):
        key_of_value[at - 1 if at in (2, 4) else 0, at] = 1
    wiring.head(0, 0, q=("position", key_of_value), k=("position", same), v="token", to="previous")
    wiring.head(1, 0, q=("token", same), k=("previous", same), v="token", to="hop")
    wiring.head(2, 0, q=("hop", same), k=("previous", same), v="token", to="answer")
    wiring.head(2, 1, q=None, k=None, v="token", to="position")
    return wiring.read("answer")


def two_hop_pairs() -> list[Pair]:
    """BOS, then A B and B C in one order or the other, then A; the corrupt prompt is another of these."""
    rng = Random("two hops")
    pairs: list[Pair] = []
    while len(pairs) < N_PAIRS:
        (clean, right), (corrupt, wrong) = _hops(rng), _hops(rng)
        if right != wrong:
            pairs.append(Pair(clean, corrupt, ((right,),), ((wrong,),), f"pair {len(pairs)}"))
    return pairs


def _hops(rng: Random) -> tuple[tuple[int, ...], int]:
    a, b, c = rng.sample(range(1, VOCAB), 3)
    hops = [(a, b), (b, c)]
    rng.shuffle(hops)
    return (0, *hops[0], *hops[1], a), c


# -- gates -------------------------------------------------------------------------------------------------------------

ON, OFF, ASK, NO, YES = 1, 0, 2, 3, 4
GATE_RESAMPLE = ("embed->0.0.v", "embed->0.1.v", "0.0->mlp0", "0.1->mlp0", "mlp0->logits")
GATE_ZERO = (*GATE_RESAMPLE, "embed->0.0.q", "embed->0.0.k", "embed->0.1.q", "embed->0.1.k")


def gate_model(threshold: float) -> ToyTransformer:
    """Says YES where more than `threshold` of its two inputs, the tokens at positions 0 and 1, are ON.

    Head 0.0 copies the first token, head 0.1 the second; the MLP counts them. Head 0.2 copies the second as well, to
    where nobody reads.
    """
    wiring = Wiring(("token", "position", "first", "second", "unread", "said"), 1, n_heads=3, length=3, d_mlp=2)
    for head, (looks_at, to) in enumerate(((0, "first"), (1, "second"), (1, "unread"))):
        looks = ("position", wiring.always(looks_at))
        wiring.head(0, head, q=looks, k=("position", wiring.same), v="token", to=to)
    mlp, yes = wiring.model.layers[0].mlp, wiring.at["said"].start + YES
    with torch.no_grad():
        for block in ("first", "second"):
            mlp.up.weight[:, wiring.at[block].start + ON] = 1
        mlp.up.bias[:] = -torch.tensor([threshold, threshold + 0.5])
        mlp.down.weight[yes] = torch.tensor([2.0, -2.0])  # min(1, 2 * how far the count is above the threshold)
    return wiring.read("said")


def gate_pairs() -> list[Pair]:
    """Both inputs on; both off where corrupt."""
    return [Pair((ON, ON, ASK), (OFF, OFF, ASK), ((YES,),), ((NO,),), "gate")]
