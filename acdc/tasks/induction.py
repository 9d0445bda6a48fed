"""Induction (Olsson et al. 2022, arXiv 2209.11895): random tokens, then their beginning again: what comes next?

The prompt is B0 B1 ... B(L-1) B0 ... B(k-1) and the answer is Bk. `A1` is where the last token stood before, `B1` the
answer's first place. Tokens come straight from the vocabulary, so any tokenizer with enough words in it will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from acdc.errors import Fault
from acdc.tasks.assembling import Candidate, check_corruption, fill, refuse
from acdc.tasks.description import TaskDescription
from acdc.tasks.encoding import Encoder
from acdc.tasks.prompts import Pair, PromptSet, Tokenizer

NAME = "induction"
CORRUPTIONS = ("break_match", "other_tokens")
ROLES = ("A1", "B1")
POOL = 1000  # as many words to draw from, fewer in a small vocabulary
MIN_POOL = 40

# (length of the sequence, tokens of it that are repeated)
SHAPES = {f"{length} tokens, {k} repeated": (length, k) for length in (8, 10, 12) for k in (3, 4, 6)}


def build(tokenizer: Tokenizer, *, n_search: int, n_held_out: int, corruption: str, seed: int) -> PromptSet:
    check_corruption(NAME, corruption, CORRUPTIONS)
    encoder = Encoder(tokenizer)
    pool = _word_tokens(encoder, Random(f"{seed}/{NAME}/pool"))
    if len(pool) < MIN_POOL:
        fault = Fault(
            "vocabulary", f"only {len(pool)} tokens are words of two Latin letters or more, needed: {MIN_POOL}"
        )
        refuse(NAME, tokenizer, [fault])

    def stream(group: str, rng: Random) -> Iterator[Candidate]:
        while True:
            yield _pair(encoder, group, rng.sample(pool, 2 * SHAPES[group][0]), corruption, rng)

    return fill(NAME, corruption, tuple(SHAPES), stream, n_search=n_search, n_held_out=n_held_out, seed=seed)


def _word_tokens(encoder: Encoder, rng: Random) -> list[int]:
    """Tokens that are words or parts of words, in random order: the same for the same vocabulary and seed."""
    ids = list(range(len(encoder.tokenizer)))
    rng.shuffle(ids)
    pool: list[int] = []
    special = set(getattr(encoder.tokenizer, "all_special_ids", ()))
    for token in ids:
        text = encoder.decode((token,)).strip()
        if len(text) > 1 and text.isascii() and text.isalpha() and token not in special:
            pool.append(token)
            if len(pool) == POOL:
                break
    return pool


def _pair(encoder: Encoder, group: str, drawn: list[int], corruption: str, rng: Random) -> Pair:
    length, k = SHAPES[group]
    first, others = drawn[:length], drawn[length:]
    again = first[:k]
    # break_match: the last token has no earlier place from which to look one ahead
    changed = [*first[: k - 1], others[0], *first[k:]] if corruption == "break_match" else others
    clean, corrupt = ((*encoder.prefix, *copy, *again) for copy in (first, changed))
    start = len(encoder.prefix)
    return Pair(
        clean=clean,
        corrupt=corrupt,
        answers=((first[k],),),
        wrong=((rng.choice(first[k + 1 :]),),),  # a token seen once, as the answer is
        group=group,
        roles={
            "A1": (start + k - 1, start + k),
            "B1": (start + k, start + k + 1),
            "end": (len(clean) - 1, len(clean)),
        },
        clean_text=encoder.decode(clean[start:]),
        corrupt_text=encoder.decode(corrupt[start:]),
    )


INDUCTION = TaskDescription(
    name=NAME,
    summary="Induction: what followed the last token where it stood before, in random tokens.",
    example="cat tree moon salt door ring lamp wolf cat tree moon → salt",
    corruptions=CORRUPTIONS,
    roles=(*ROLES, "end"),
    build=build,
)
