"""Programs in RASP (Weiss et al. 2021, arXiv 2106.06981) whose compiled circuit is known. Read by tracr alone.

All are causal: at each position they say something about the tokens up to there, so that every prefix of a prompt is
an example of its own, read at its last position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tracr.rasp import rasp

LETTERS = ("a", "b", "c")


@dataclass(frozen=True)
class Program:
    """about: what it says at each position. tokens: its alphabet. longest: tokens of its longest prompt, BOS apart."""

    name: str
    about: str
    make: Callable[[], rasp.SOp]
    tokens: tuple[str | int, ...]
    longest: int


def before(sop: rasp.SOp, by: int = 1) -> rasp.SOp:
    """What stands so many places earlier."""
    selector = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - by)
    return rasp.Aggregate(selector, sop)


def first(sop: rasp.SOp) -> rasp.SOp:
    return rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == 0), sop)


def same(key: object, query: object) -> bool:
    """Unlike rasp.Comparison.EQ, also where one of them says nothing."""
    return key is not None and key == query


def share_of(token: str) -> rasp.SOp:
    """Of all tokens so far."""
    everywhere = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
    is_token = rasp.numerical(rasp.Map(lambda t: float(t == token), rasp.tokens))
    return rasp.numerical(rasp.Aggregate(everywhere, is_token, default=0))


def count_of_own() -> rasp.SOp:
    """How often the current token has stood so far, itself included."""
    return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ))


def count_of(token: str) -> rasp.SOp:
    return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == token))


def previous_token() -> rasp.SOp:
    return before(rasp.tokens)


def share_of_x() -> rasp.SOp:
    return share_of("x")


def repeats_the_last() -> rasp.SOp:
    return rasp.SequenceMap(lambda now, then: "again" if now == then else "new", rasp.tokens, before(rasp.tokens))


def two_back() -> rasp.SOp:
    return before(before(rasp.tokens))


def same_as_first() -> rasp.SOp:
    return rasp.SequenceMap(lambda now, then: "same" if now == then else "other", rasp.tokens, first(rasp.tokens))


def histogram() -> rasp.SOp:
    return count_of_own()


def seen_before() -> rasp.SOp:
    return rasp.Map(lambda count: "seen" if count > 1 else "new", count_of_own())


def parity_of_x() -> rasp.SOp:
    return rasp.Map(lambda count: "odd" if count % 2 else "even", count_of("x"))


def induction() -> rasp.SOp:
    """What followed the current token when it last stood; of several, tracr would mix what followed each."""
    follows_own = rasp.Select(before(rasp.tokens), rasp.tokens, same)
    return rasp.Aggregate(follows_own, rasp.tokens)


def sum_with_last() -> rasp.SOp:
    return rasp.SequenceMap(lambda now, then: (now + then) % 3, rasp.tokens, before(rasp.tokens))


def two_hops() -> rasp.SOp:
    """Tokens are places: the token at the place that the token at the place named here names."""
    named = rasp.Aggregate(rasp.Select(rasp.indices, rasp.tokens, same), rasp.tokens)
    return rasp.Aggregate(rasp.Select(rasp.indices, named, same), rasp.tokens)


def more_opened() -> rasp.SOp:
    difference = rasp.numerical(rasp.LinearSequenceMap(share_of("("), share_of(")"), 1, -1))
    return rasp.Map(lambda x: "open" if x > 0 else "shut", difference)


PROGRAMS = (
    Program("previous-token", "the token before", previous_token, LETTERS, 5),
    Program("share-of-x", "the share of x among all tokens so far", share_of_x, ("x", "y", "z"), 5),
    Program("repeats-the-last", "whether the token is that before", repeats_the_last, LETTERS, 5),
    Program("two-back", "the token two places back, by two steps of one", two_back, LETTERS, 5),
    Program("same-as-first", "whether the token is that of the first place", same_as_first, LETTERS, 5),
    Program("histogram", "how often the token has stood so far", histogram, LETTERS, 5),
    Program("seen-before", "whether the token has stood before", seen_before, LETTERS, 5),
    Program("parity-of-x", "whether x stood an odd number of times", parity_of_x, ("x", "y"), 6),
    Program("induction", "what followed the token before", induction, ("a", "b", "c", "d", "e"), 5),
    Program("sum-with-last", "the sum with the token before, modulo 3", sum_with_last, (0, 1, 2), 5),
    Program("two-hops", "the token that is pointed to by the token pointed to", two_hops, (0, 1, 2, 3), 5),
    Program("more-opened", "whether more brackets were opened than shut", more_opened, ("(", ")", "-"), 5),
)
