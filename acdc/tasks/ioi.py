"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593): who receives what somebody gives.

Every sentence exists in both orders, ABBA (the receiver is named first) and BABA (the giver is); both orders of a
sentence are one group, so that a held-out sentence was never searched on in either.
"""

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

NAME = "ioi"
CORRUPTIONS = ("abc", "s2_io_flip")
ROLES = ("IO", "S1", "S2")
MIN_NAMES = 8

# A and B are the two names as they are first mentioned.
SENTENCES = {
    "went": "Then, {A} and {B} went to the {PLACE}. {S2} gave a {OBJECT} to",
    "when": "When {A} and {B} went to the {PLACE}, {S2} gave a {OBJECT} to",
    "fun": "Then, {A} and {B} had a lot of fun at the {PLACE}. {S2} gave a {OBJECT} to",
    "working": "Then, {A} and {B} were working at the {PLACE}. {S2} decided to give a {OBJECT} to",
    "thinking": "Then, {A} and {B} were thinking about going to the {PLACE}. {S2} wanted to give a {OBJECT} to",
    "argument": "Then, {A} and {B} had a long argument, and afterwards {S2} gave a {OBJECT} to",
    "after": "After {A} and {B} went to the {PLACE}, {S2} handed a {OBJECT} to",
    "friends": "Friends {A} and {B} found a {OBJECT} at the {PLACE}. {S2} gave it to",
    "while": "While {A} and {B} were walking to the {PLACE}, {S2} passed a {OBJECT} to",
    "today": "Today {A} and {B} met at the {PLACE}, where {S2} offered a {OBJECT} to",
}
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station", "park", "market")
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack", "book", "letter")


def build(tokenizer: Tokenizer, *, n_search: int, n_held_out: int, corruption: str, seed: int) -> PromptSet:
    check_corruption(NAME, corruption, CORRUPTIONS)
    encoder, faults = Encoder(tokenizer), list[Fault]()
    names = fitting(encoder, (*MEN, *WOMEN), what="first names", at_least=MIN_NAMES, faults=faults)
    refuse(NAME, tokenizer, faults)

    def stream(group: str, rng: Random) -> Iterator[Candidate]:
        for order in cycle(("ABBA", "BABA")):
            yield _candidate(encoder, group, order, names, corruption, rng)

    return fill(NAME, corruption, tuple(SENTENCES), stream, n_search=n_search, n_held_out=n_held_out, seed=seed)


def _candidate(
    encoder: Encoder, group: str, order: str, names: tuple[str, ...], corruption: str, rng: Random
) -> Candidate:
    first, second = ("IO", "S1") if order == "ABBA" else ("S1", "IO")
    template = SENTENCES[group].replace("{A}", f"{{{first}}}").replace("{B}", f"{{{second}}}")
    io, subject, *others = rng.sample(names, 5)  # drawn whole under every corruption: clean prompts stay the same
    common = {"PLACE": rng.choice(PLACES), "OBJECT": rng.choice(OBJECTS)}
    clean = render(template, {"IO": io, "S1": subject, "S2": subject, **common})
    if corruption == "abc":
        corrupt = render(template, {**dict(zip(ROLES, others, strict=True)), **common})
    else:
        corrupt = render(template, {"IO": io, "S1": subject, "S2": io, **common})
    answers = answer_tokens(encoder, clean.text, (f" {io}", f" {subject}"))
    if isinstance(answers, Misfit):
        return answers
    changed = ROLES if corruption == "abc" else ("S2",)
    return assemble(encoder, Draft(group, clean, corrupt, answers[:1], answers[1:], ROLES, changed))


IOI = TaskDescription(
    name=NAME,
    summary="Indirect object identification: name the one who receives, not the one who gives.",
    example="Then, Mary and John went to the store. John gave a drink to → Mary (not John)",
    corruptions=CORRUPTIONS,
    roles=(*ROLES, "end"),
    build=build,
)
