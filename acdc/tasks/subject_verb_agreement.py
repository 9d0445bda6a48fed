"""Subject-verb agreement (after Linzen et al. 2016, arXiv 1611.01368): the verb follows the subject's number, whatever
the number of the noun in between."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from acdc.errors import Fault
from acdc.tasks.assembling import Candidate, Draft, Misfit, answer_tokens, assemble, check_corruption, fill, refuse
from acdc.tasks.description import TaskDescription
from acdc.tasks.encoding import Encoder
from acdc.tasks.prompts import PromptSet, Tokenizer
from acdc.tasks.templates import render
from acdc.tasks.vocabulary import fitting, is_one_token

NAME = "subject_verb_agreement"
CORRUPTIONS = ("other_number",)
ROLES = ("subject", "attractor")
MIN_NOUNS = 4

Forms = tuple[str, str]  # singular, plural

SENTENCES = {
    "near": "The {subject} near the {attractor} over there",
    "behind": "The {subject} behind the {attractor} in this picture",
    "saw": "The {subject} that the {attractor} saw yesterday",
    "liked": "The {subject} who the {attractor} liked so much",
    "knows": "Everyone knows that the {subject} next to the {attractor} now",
    "report": "According to the report, the {subject} with the {attractor} always",
    "think": "I think that the {subject} beside the {attractor} still",
    "called": "The {subject} that the {attractor} called last week",
}
NOUNS: tuple[Forms, ...] = (
    ("doctor", "doctors"), ("teacher", "teachers"), ("student", "students"), ("friend", "friends"),
    ("artist", "artists"), ("author", "authors"), ("manager", "managers"), ("driver", "drivers"),
    ("writer", "writers"), ("lawyer", "lawyers"), ("farmer", "farmers"), ("child", "children"),
    ("man", "men"), ("woman", "women"), ("boy", "boys"), ("girl", "girls"),
    ("king", "kings"), ("soldier", "soldiers"), ("officer", "officers"), ("worker", "workers"),
    ("player", "players"), ("leader", "leaders"), ("visitor", "visitors"), ("parent", "parents"),
)  # fmt: skip
VERBS: tuple[Forms, ...] = (("is", "are"), ("was", "were"), ("has", "have"))


def build(tokenizer: Tokenizer, *, n_search: int, n_held_out: int, corruption: str, seed: int) -> PromptSet:
    check_corruption(NAME, corruption, CORRUPTIONS)
    encoder, faults = Encoder(tokenizer), list[Fault]()
    nouns = _fitting_forms(encoder, NOUNS, "nouns, singular and plural", MIN_NOUNS, faults)
    verbs = _fitting_forms(encoder, VERBS, "verbs, singular and plural", 1, faults)
    refuse(NAME, tokenizer, faults)

    def stream(group: str, rng: Random) -> Iterator[Candidate]:
        while True:
            subject, between = rng.sample(nouns, 2)
            yield _candidate(encoder, group, subject, rng.choice(between), rng.randrange(2), verbs)

    return fill(NAME, corruption, tuple(SENTENCES), stream, n_search=n_search, n_held_out=n_held_out, seed=seed)


def _candidate(
    encoder: Encoder, group: str, subject: Forms, attractor: str, number: int, verbs: tuple[Forms, ...]
) -> Candidate:
    clean = render(SENTENCES[group], {"subject": subject[number], "attractor": attractor})
    corrupt = render(SENTENCES[group], {"subject": subject[1 - number], "attractor": attractor})
    answers = answer_tokens(encoder, clean.text, [f" {forms[number]}" for forms in verbs])
    wrong = answer_tokens(encoder, clean.text, [f" {forms[1 - number]}" for forms in verbs])
    for found in (answers, wrong):
        if isinstance(found, Misfit):
            return found
    assert not isinstance(answers, Misfit)
    assert not isinstance(wrong, Misfit)
    return assemble(encoder, Draft(group, clean, corrupt, answers, wrong, ROLES, ("subject",)))


def _fitting_forms(
    encoder: Encoder, words: tuple[Forms, ...], what: str, at_least: int, faults: list[Fault]
) -> tuple[Forms, ...]:
    """Those of which both forms are one token."""
    fits = tuple(forms for forms in words if all(is_one_token(encoder, form) for form in forms))
    if len(fits) < at_least:
        fitting(encoder, [form for forms in words for form in forms], what=what, at_least=2 * at_least, faults=faults)
        if not faults or faults[-1].where != what:  # enough words fit, but not both forms of one
            faults.append(Fault(what, f"both forms are one token for {len(fits)} of {len(words)}, needed: {at_least}"))
    return fits


SUBJECT_VERB_AGREEMENT = TaskDescription(
    name=NAME,
    summary="Subject-verb agreement: singular or plural verb, across a noun in between.",
    example="The doctors near the teacher over there → are, were, have (not is, was, has)",
    corruptions=CORRUPTIONS,
    roles=(*ROLES, "end"),
    build=build,
)
