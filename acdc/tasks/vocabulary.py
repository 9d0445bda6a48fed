"""Which words a tokenizer holds in one token, in the middle of a sentence and at its end."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from acdc.errors import Fault
from acdc.tasks.encoding import Encoder

_BEFORE = "Then it was"
_AFTER = ", and"


def is_one_token(encoder: Encoder, word: str) -> bool:
    """Whether " word" is one token of its own, and the same one before punctuation. An unknown token is none."""
    end = encoder.continuation(_BEFORE, f" {word}")
    middle = encoder.continuation(_BEFORE, f" {word}{_AFTER}")
    if end is None or middle is None or len(end) != 1 or middle[:1] != end:
        return False
    return encoder.decode(end).strip().casefold() == word.casefold()  # casefold: some tokenizers know no capitals


def fitting(
    encoder: Encoder, words: Sequence[str], *, what: str, at_least: int, faults: list[Fault]
) -> tuple[str, ...]:
    """The words of one token each, in their order. Adds a fault where they are fewer than `at_least`."""
    fits = tuple(word for word in words if is_one_token(encoder, word))
    if len(fits) < at_least:
        faults.append(Fault(what, _shortage(encoder, words, fits, at_least)))
    return fits


def _shortage(encoder: Encoder, words: Sequence[str], fits: Collection[str], at_least: int) -> str:
    misfit = next(word for word in words if word not in fits)
    pieces = encoder.pieces(encoder.ids(f" {misfit}"))
    return (
        f"{len(fits)} of {len(words)} are one token each, {at_least} are needed; "
        f"for example {misfit!r} becomes {list(pieces)}"
    )
