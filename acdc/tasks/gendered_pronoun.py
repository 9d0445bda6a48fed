"""Gendered pronoun (after Mathwin et al. 2023): the pronoun that goes with a first name, in a tag question."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from random import Random

from acdc.errors import Fault
from acdc.tasks.assembling import Candidate, Draft, Misfit, answer_tokens, assemble, check_corruption, fill, refuse
from acdc.tasks.description import TaskDescription
from acdc.tasks.encoding import Encoder
from acdc.tasks.people import MEN, WOMEN
from acdc.tasks.prompts import PromptSet, Tokenizer
from acdc.tasks.templates import render
from acdc.tasks.vocabulary import fitting

NAME = "gendered_pronoun"
CORRUPTIONS = ("opposite_gender",)
ROLES = ("name",)
MIN_NAMES = 4

SENTENCES = {
    "is": "So {name} is a really great {noun}, isn't",
    "was": "I think that {name} was the best {noun} in the group, wasn't",
    "has": "Surely {name} has been a good {noun} for years, hasn't",
    "will": "Yes, {name} will be a fine {noun} one day, won't",
    "became": "Last year {name} became a {noun}, didn't",
    "does": "Everyone knows that {name} wants to be a {noun}, doesn't",
    "could": "With some help {name} could be a better {noun}, couldn't",
    "would": "For that price {name} would work as a {noun}, wouldn't",
}
NOUNS = ("friend", "teacher", "doctor", "student", "writer", "singer", "leader", "lawyer", "driver", "player")


def build(tokenizer: Tokenizer, *, n_search: int, n_held_out: int, corruption: str, seed: int) -> PromptSet:
    check_corruption(NAME, corruption, CORRUPTIONS)
    encoder, faults = Encoder(tokenizer), list[Fault]()
    men = fitting(encoder, MEN, what="men's names", at_least=MIN_NAMES, faults=faults)
    women = fitting(encoder, WOMEN, what="women's names", at_least=MIN_NAMES, faults=faults)
    fitting(encoder, ("he", "she"), what="pronouns", at_least=2, faults=faults)
    refuse(NAME, tokenizer, faults)

    def stream(group: str, rng: Random) -> Iterator[Candidate]:
        clean_names = [(name, women, ("he", "she")) for name in men] + [(name, men, ("she", "he")) for name in women]
        rng.shuffle(clean_names)
        for name, others, (right, wrong) in cycle(clean_names):  # every name once before one comes again
            words = (name, rng.choice(others), rng.choice(NOUNS))
            yield _candidate(encoder, group, words, right, wrong)

    return fill(NAME, corruption, tuple(SENTENCES), stream, n_search=n_search, n_held_out=n_held_out, seed=seed)


def _candidate(encoder: Encoder, group: str, words: tuple[str, str, str], right: str, wrong: str) -> Candidate:
    name, other, noun = words
    clean = render(SENTENCES[group], {"name": name, "noun": noun})
    corrupt = render(SENTENCES[group], {"name": other, "noun": noun})
    answers = answer_tokens(encoder, clean.text, (f" {right}", f" {wrong}"))
    if isinstance(answers, Misfit):
        return answers
    return assemble(encoder, Draft(group, clean, corrupt, answers[:1], answers[1:], ROLES, ROLES))


GENDERED_PRONOUN = TaskDescription(
    name=NAME,
    summary="Gendered pronoun: he or she, by the first name mentioned.",
    example="So David is a really great friend, isn't → he (not she)",
    corruptions=CORRUPTIONS,
    roles=(*ROLES, "end"),
    build=build,
)
