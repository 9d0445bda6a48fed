"""Greater-than (Hanna et al. 2023, arXiv 2305.00586): a war that began in 1732 ends later.

What the model has to add to the prompt depends on how its tokenizer splits years:

- "17" "32" (two-digit tokens, as in GPT-2): the prompt ends with the century; endings above 32 are right.
- "1" "7" "3" "2", or "173" "2" (the last digit apart): the prompt ends with century and tens digit; right are the ones
  digits above 2. To reward a tens digit of 3 or more would reward copying it.

The corrupt prompt starts as low as a year of its century (or decade) can, so that every ending but its own is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from acdc.errors import Fault
from acdc.tasks.assembling import Candidate, Draft, Misfit, assemble, check_corruption, fill, refuse
from acdc.tasks.description import TaskDescription
from acdc.tasks.encoding import Encoder
from acdc.tasks.prompts import PromptSet, Tokenizer, Tokens
from acdc.tasks.templates import render

NAME = "greater_than"
CORRUPTIONS = ("low_start",)
ROLES = ("noun", "century", "start")
CENTURIES = tuple(str(century) for century in range(11, 18))

# CENTURY: what both years share, and what the prompt ends with; START: the rest of the first year.
SENTENCES = {
    "lasted": "The {noun} lasted from the year {century}{start} to the year {century}",
    "began": "The {noun} began in the year {century}{start} and ended in the year {century}",
    "started": "The {noun} started in {century}{start} and finished in {century}",
    "continued": "The {noun}, which began in the year {century}{start}, continued until the year {century}",
    "ran": "The {noun} ran from {century}{start} to {century}",
    "went": "We read that the {noun} went on from the year {century}{start} until the year {century}",
}
NOUNS = (
    "war", "campaign", "conflict", "expedition", "famine", "project", "reign", "siege", "rebellion", "trial",
    "struggle", "study", "work", "journey", "dispute", "crisis", "program", "partnership", "plan", "operation",
)  # fmt: skip


@dataclass(frozen=True)
class Notation:
    """How the tokenizer writes the end of a year: `endings` in rising order, each one token."""

    endings: tuple[str, ...]
    tokens: tuple[Tokens, ...]
    lowest: int  # index of the corrupt prompt's ending; clean ones lie above it and below the last

    @property
    def is_digits(self) -> bool:
        return len(self.endings) == 10


def build(tokenizer: Tokenizer, *, n_search: int, n_held_out: int, corruption: str, seed: int) -> PromptSet:
    check_corruption(NAME, corruption, CORRUPTIONS)
    encoder = Encoder(tokenizer)
    notation = _notation(encoder)
    if notation is None:
        refuse(NAME, tokenizer, _year_faults(encoder))
    assert notation is not None

    def stream(group: str, rng: Random) -> Iterator[Candidate]:
        while True:
            yield _candidate(encoder, group, notation, rng)

    return fill(NAME, corruption, tuple(SENTENCES), stream, n_search=n_search, n_held_out=n_held_out, seed=seed)


def _candidate(encoder: Encoder, group: str, notation: Notation, rng: Random) -> Candidate:
    century = rng.choice(CENTURIES) + (str(rng.randrange(10)) if notation.is_digits else "")
    start = rng.randrange(notation.lowest + 1, len(notation.endings) - 1)  # an ending above it always exists
    words = {"noun": rng.choice(NOUNS), "century": century}
    clean = render(SENTENCES[group], {**words, "start": notation.endings[start]})
    corrupt = render(SENTENCES[group], {**words, "start": notation.endings[notation.lowest]})
    for prompt, ending in ((clean, start), (corrupt, notation.lowest)):
        before = prompt.text[: prompt.ranges["start"][0]]
        if encoder.continuation(before, notation.endings[ending]) != notation.tokens[ending]:
            return Misfit(f"the year {century}{notation.endings[ending]} does not split as others do")
    answers, wrong = notation.tokens[start + 1 :], notation.tokens[: start + 1]
    return assemble(encoder, Draft(group, clean, corrupt, answers, wrong, ROLES, ("start",)))


def _notation(encoder: Encoder) -> Notation | None:
    """Ones digits where they are tokens apart, else two-digit tokens, else None."""
    digits = tuple(str(digit) for digit in range(10))
    tokens = _endings(encoder, digits, ["the year 174"])
    if tokens is not None:
        return Notation(digits, tokens, lowest=0)
    pairs = tuple(f"{year:02}" for year in range(100))
    tokens = _endings(encoder, pairs, [f"the year {century}" for century in CENTURIES])
    return None if tokens is None else Notation(pairs, tokens, lowest=1)


def _endings(encoder: Encoder, endings: tuple[str, ...], stems: list[str]) -> tuple[Tokens, ...] | None:
    """The token of each ending, after the first stem from which it splits; None where one never does."""
    found = []
    for ending in endings:
        splits = (encoder.continuation(stem, ending) for stem in stems)
        single = next((s for s in splits if s and len(s) == 1 and encoder.decode(s).strip() == ending), None)
        if single is None:
            return None
        found.append(single)
    return tuple(found)


def _year_faults(encoder: Encoder) -> list[Fault]:
    split = {year: list(encoder.pieces(encoder.ids(f"the year {year}"))) for year in ("1743", "1732")}
    need = "neither its last digit nor its last two digits are a token apart"
    return [Fault(f"the year {year}", f"{need}: {pieces}") for year, pieces in split.items()]


GREATER_THAN = TaskDescription(
    name=NAME,
    summary="Greater-than: a year that comes after the one mentioned.",
    example="The war lasted from the year 1743 to the year 174 → 4 to 9 (not 0 to 3); or …to the year 17 → 44 to 99",
    corruptions=CORRUPTIONS,
    roles=(*ROLES, "end"),
    build=build,
)
