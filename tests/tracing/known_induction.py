"""Prompts for the hand-wired induction model that differ in one token, so that its maps can be told by hand.

Positions: x a b y f a -> b. Head 0.0 writes the token before into each place; head 1.0 at the end looks for its own
token there and copies what stands in that place."""

from __future__ import annotations

from acdc.tasks.prompts import Pair

ROLES = {"a": (1, 2), "b": (2, 3), "end": (5, 6)}
CHANGED = {"broken match": 1, "other answer": 2, "other question": 5}


def induction_with(corruption: str) -> list[Pair]:
    """Clean and corrupt differ at one position, in a token that stands nowhere else; but for another question in y, and
    then what follows y is wanted."""
    pairs = []
    for x, a, b, y, f, new in ((3, 0, 1, 4, 2, 7), (0, 5, 2, 1, 6, 3), (7, 3, 6, 2, 5, 0)):
        clean = [x, a, b, y, f, a]
        corrupt = list(clean)
        corrupt[CHANGED[corruption]] = y if corruption == "other question" else new
        wrong = new if corruption == "other answer" else f
        pairs.append(Pair(tuple(clean), tuple(corrupt), ((b,),), ((wrong,),), f"{a}{b}", ROLES))
    return pairs
