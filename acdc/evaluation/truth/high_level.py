"""Programs over nodes that a model is trained to hold: which head or MLP says what, and what it hears it from.

Strict interchange intervention training (Gupta et al. 2024, arXiv 2407.14494) makes a transformer compute such a
program in the very nodes named here: exchanging what a node writes between two prompts must change the answer just as
exchanging its value in the program does, and exchanging what any other node writes must change nothing. The circuit is
then known, head by head (not by query, key and value).

A value is an integer per prompt and position, [batch, pos]; the answer is read at the last position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

Exchanged = Mapping[tuple[str, str], Tensor]
Prompts = Callable[[int, int, int, torch.Generator], Tensor]  # n, n_tokens, length, generator -> [n, length]


@dataclass(frozen=True)
class Node:
    """where: the head or MLP that says it (`0.1`, `mlp0`). hears: nodes whose values it is computed from, `embed` for
    the tokens. says: their values, in this order -> its own, also of values that no one prompt puts together."""

    where: str
    hears: tuple[str, ...]
    says: Callable[..., Tensor]


@dataclass(frozen=True)
class HighLevel:
    """A program. nodes: in the order in which a transformer runs; what the last one says at the last position is the
    answer. n_tokens, length: of its prompts. n_layers: of the model that is to hold it."""

    name: str
    about: str
    nodes: tuple[Node, ...]
    prompts: Prompts
    n_tokens: int
    n_answers: int
    length: int = 5
    n_layers: int = 2

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Prompts: [n, length]."""
        return self.prompts(n, self.n_tokens, self.length, generator)

    @property
    def answer(self) -> str:
        """The node that says it."""
        return self.nodes[-1].where

    @property
    def edges(self) -> set[tuple[str, str]]:
        """The circuit: (sender, the node that hears it)."""
        return {(of, node.where) for node in self.nodes for of in node.hears} | {(self.answer, "logits")}

    def edges_from(self, node: str) -> set[tuple[str, str]]:
        return {edge for edge in self.edges if edge[0] == node}

    def values(self, tokens: Tensor, exchanged: Exchanged = MappingProxyType({})) -> dict[str, Tensor]:
        """What every node says of prompts [batch, pos]; "logits" says the answer at every place. exchanged: edges along
        which something else is heard instead."""
        values = {"embed": tokens}

        def heard(by: str, names: Sequence[str]) -> list[Tensor]:
            return [exchanged.get((name, by), values[name]) for name in names]

        for node in self.nodes:
            values[node.where] = node.says(*heard(node.where, node.hears))
        (values["logits"],) = heard("logits", [self.answer])
        return values

    def answers(self, tokens: Tensor, exchanged: Exchanged = MappingProxyType({})) -> Tensor:
        """[batch]"""
        return self.values(tokens, exchanged)["logits"][:, -1]


# -- what nodes say ----------------------------------------------------------------------------------------------------


def before(by: int = 1) -> Callable[[Tensor], Tensor]:
    """The value so many places earlier; at the beginning, that of the first place."""

    def says(x: Tensor) -> Tensor:
        return torch.cat((x[:, :1].expand(-1, by), x[:, :-by]), 1)

    return says


def first(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x)


def equal(x: Tensor, y: Tensor) -> Tensor:
    return (x == y).long()


def so_far(token: int) -> Callable[[Tensor], Tensor]:
    """How often a token has stood."""
    return lambda x: (x == token).long().cumsum(1)


def largest(x: Tensor) -> Tensor:
    return x.cummax(1).values


def key_of_pair(x: Tensor) -> Tensor:
    """At odd places the token before, elsewhere -1: what a value belongs to, where tokens come in pairs."""
    odd = torch.arange(x.shape[1]) % 2 == 1
    return torch.where(odd, before()(x), -1)


def again(x: Tensor) -> Tensor:
    """The token where it has stood before, else -1."""
    has_stood = ((x[:, :, None] == x[:, None, :]) & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(-1)).any(
        2
    )
    return torch.where(has_stood, x, -1)


def last_said(x: Tensor) -> Tensor:
    """The last value so far that is not -1; -1 where there is none."""
    place = ((x >= 0) * torch.arange(1, x.shape[1] + 1)).cummax(1).values - 1
    return torch.where(place >= 0, x.gather(1, place.clamp(min=0)), -1)


def other_of_two(x: Tensor, name: Tensor) -> Tensor:
    """Of the first two tokens the one that is not this; the first where neither is."""
    return torch.where(x[:, :1] == name, x[:, 1:2].expand_as(x), x[:, :1].expand_as(x))


def look_up(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The value at the last place so far whose key is the query; where there is none, the first place's."""
    length = query.shape[1]
    fits = (query[:, :, None] == key[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    place = (fits * torch.arange(1, length + 1)).amax(2) - 1
    return value.gather(1, place.clamp(min=0))


# -- prompts -----------------------------------------------------------------------------------------------------------


def any_tokens(n: int, n_tokens: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(n_tokens, (n, length), generator=generator)


def distinct_then_again(n: int, n_tokens: int, length: int, generator: torch.Generator) -> Tensor:
    """Distinct tokens, then one of them again that is not the last of them."""
    tokens = torch.rand(n, n_tokens, generator=generator).argsort(1)[:, : length - 1]
    again = torch.randint(length - 2, (n, 1), generator=generator)
    return torch.cat((tokens, tokens.gather(1, again)), 1)


def two_pairs_then_key(n: int, n_tokens: int, _: int, generator: torch.Generator) -> Tensor:
    """A B, B C in one order or the other, then A: five tokens."""
    a, b, c = torch.rand(n, n_tokens, generator=generator).argsort(1)[:, :3].unbind(1)
    swapped = torch.rand(n, generator=generator) < 0.5
    pairs = torch.stack((a, b, b, c, a), 1)
    pairs[swapped] = torch.stack((b, c, a, b, a), 1)[swapped]
    return pairs


def two_names_one_again(n: int, n_tokens: int, _: int, generator: torch.Generator) -> Tensor:
    """Two names, a token that is none, one of the names again, and another token that is none: five tokens."""
    names = torch.rand(n, n_tokens - 2, generator=generator).argsort(1)[:, :2]
    again = names.gather(1, torch.randint(2, (n, 1), generator=generator))
    between, end = torch.tensor([[n_tokens - 2], [n_tokens - 1]]).expand(2, n).unsqueeze(-1)
    return torch.cat((names, between, again, end), 1)


# -- the programs ------------------------------------------------------------------------------------------------------

_PROGRAMS = (
    HighLevel(
        name="equals-the-last",
        about="whether the token is that before",
        nodes=(Node("0.1", ("embed",), before()), Node("mlp0", ("embed", "0.1"), equal)),
        prompts=any_tokens,
        n_tokens=6,
        n_answers=2,
    ),
    HighLevel(
        name="equals-the-first",
        about="whether the token is that of the first place",
        nodes=(Node("0.3", ("embed",), first), Node("mlp1", ("embed", "0.3"), equal)),
        prompts=any_tokens,
        n_tokens=6,
        n_answers=2,
    ),
    HighLevel(
        name="induction",
        about="what followed the token before",
        nodes=(
            Node("0.2", ("embed",), before()),
            Node("1.1", ("embed", "0.2"), lambda x, last: look_up(x, last, x)),
        ),
        prompts=distinct_then_again,
        n_tokens=8,
        n_answers=8,
        length=6,
    ),
    HighLevel(
        name="successor-of-induction",
        about="what followed the token before, plus one modulo 8",
        nodes=(
            Node("0.0", ("embed",), before()),
            Node("1.2", ("embed", "0.0"), lambda x, last: look_up(x, last, x)),
            Node("mlp1", ("1.2",), lambda x: (x + 1) % 8),
        ),
        prompts=distinct_then_again,
        n_tokens=8,
        n_answers=8,
        length=6,
    ),
    HighLevel(
        name="sum-of-two",
        about="the tokens one and two places back, added modulo 5",
        nodes=(
            Node("0.0", ("embed",), before()),
            Node("0.2", ("embed",), before(2)),
            Node("mlp1", ("0.0", "0.2"), lambda x, y: (x + y) % 5),
        ),
        prompts=any_tokens,
        n_tokens=5,
        n_answers=5,
    ),
    HighLevel(
        name="parity",
        about="whether the token 0 stood an odd number of times",
        nodes=(Node("0.1", ("embed",), so_far(0)), Node("mlp0", ("0.1",), lambda x: x % 2)),
        prompts=any_tokens,
        n_tokens=3,
        n_answers=2,
        length=6,
    ),
    HighLevel(
        name="more-of-which",
        about="whether 0 stood more often than 1",
        nodes=(
            Node("0.0", ("embed",), so_far(0)),
            Node("0.2", ("embed",), so_far(1)),
            Node("mlp0", ("0.0", "0.2"), lambda x, y: (x > y).long()),
        ),
        prompts=any_tokens,
        n_tokens=4,
        n_answers=2,
        length=6,
    ),
    HighLevel(
        name="how-far-below",
        about="how far the token is below the largest so far",
        nodes=(
            Node("0.2", ("embed",), largest),
            Node("mlp1", ("embed", "0.2"), lambda x, most: (most - x).clamp(min=0)),
        ),
        prompts=any_tokens,
        n_tokens=6,
        n_answers=6,
    ),
    HighLevel(
        name="first-or-last",
        about="the first token where it is even, else the one before",
        nodes=(
            Node("0.3", ("embed",), first),
            Node("0.1", ("embed",), before()),
            Node("mlp0", ("0.3", "0.1"), lambda start, last: torch.where(start % 2 == 0, start, last)),
        ),
        prompts=any_tokens,
        n_tokens=6,
        n_answers=6,
    ),
    HighLevel(
        name="two-hops",
        about="A B, B C in any order, then A: C",
        nodes=(
            Node("0.0", ("embed",), key_of_pair),
            Node("1.3", ("embed", "0.0"), lambda x, key: look_up(x, key, x)),
            Node("2.1", ("embed", "0.0", "1.3"), lambda x, key, hop: look_up(hop, key, x)),
        ),
        prompts=two_pairs_then_key,
        n_tokens=8,
        n_answers=8,
        n_layers=3,
    ),
    HighLevel(
        name="table-then-copy",
        about="the first token, doubled modulo 7",
        nodes=(Node("mlp0", ("embed",), lambda x: 2 * x % 7), Node("1.0", ("mlp0",), first)),
        prompts=any_tokens,
        n_tokens=7,
        n_answers=7,
    ),
    HighLevel(
        name="indirect-object",
        about="of two names, the one that does not stand again",
        nodes=(
            Node("0.1", ("embed",), again),
            Node("1.2", ("0.1",), last_said),
            Node("2.0", ("embed", "1.2"), other_of_two),
        ),
        prompts=two_names_one_again,
        n_tokens=8,
        n_answers=8,
        n_layers=3,
    ),
)
HIGH_LEVEL = {program.name: program for program in _PROGRAMS}
