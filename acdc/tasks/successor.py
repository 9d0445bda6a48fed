"""Successor (Gould et al. 2023, arXiv 2312.09230): the next day, month or number of a sequence.

The corrupt prompt holds members of the same class in no order; the wrong answer is what would follow its last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, pairwise
from random import Random

from acdc.errors import Fault
from acdc.tasks.assembling import Candidate, Draft, Misfit, answer_tokens, assemble, check_corruption, fill, refuse
from acdc.tasks.description import TaskDescription
from acdc.tasks.encoding import Encoder
from acdc.tasks.prompts import PromptSet, Tokenizer
from acdc.tasks.templates import render
from acdc.tasks.vocabulary import fitting

NAME = "successor"
CORRUPTIONS = ("no_order",)
ROLES = ("first", "second", "third")

SENTENCES = {
    "list": "The list goes on: {first}, {second}, {third},",
    "order": "In the right order: {first}, {second}, {third},",
    "then": "First {first}, then {second}, then {third}, then",
    "and": "They called out {first} and {second} and {third} and",
    "next": "It went {first}, {second}, {third}, and next",
    "followed": "There was {first}, followed by {second}, followed by {third}, followed by",
    "arrow": "The sequence is {first} -> {second} -> {third} ->",
    "semicolon": "Here they are: {first}; {second}; {third};",
    "after": "It said {first}, after that {second}, after that {third}, after that",
}


@dataclass(frozen=True)
class WordClass:
    """Words in their order; a cyclic class begins again after its last word."""

    name: str
    words: tuple[str, ...]
    is_cyclic: bool

    def after(self, word: str) -> str | None:
        i = self.words.index(word) + 1
        if i == len(self.words) and not self.is_cyclic:
            return None
        return self.words[i % len(self.words)]

    def run(self, start: str, length: int) -> tuple[str, ...] | None:
        """`length` words in order from `start`, or None where the class ends before."""
        words: list[str] = [start]
        while len(words) < length:
            following = self.after(words[-1])
            if following is None:
                return None
            words.append(following)
        return tuple(words)


CLASSES = (
    WordClass("days", ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"), is_cyclic=True),
    WordClass(
        "months",
        (
            "January", "February", "March", "April", "May", "June",
            "July", "August", "September", "October", "November", "December",
        ),
        is_cyclic=True,
    ),
    WordClass(
        "numbers",
        (
            "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
            "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
        ),
        is_cyclic=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Sequence:
    """Three words in order, the one that follows, and the words of its class that a corrupt prompt may use."""

    of: WordClass
    words: tuple[str, ...]
    fits: tuple[str, ...]


def build(tokenizer: Tokenizer, *, n_search: int, n_held_out: int, corruption: str, seed: int) -> PromptSet:
    check_corruption(NAME, corruption, CORRUPTIONS)
    encoder, faults = Encoder(tokenizer), list[Fault]()
    sequences = [s for word_class in CLASSES for s in _sequences(encoder, word_class, faults)]
    if not sequences:  # one class is enough
        refuse(NAME, tokenizer, faults)

    def stream(group: str, rng: Random) -> Iterator[Candidate]:
        shuffled = list(sequences)
        rng.shuffle(shuffled)
        for sequence in cycle(shuffled):  # every sequence once before one comes again
            yield _candidate(encoder, group, sequence, rng)

    return fill(NAME, corruption, tuple(SENTENCES), stream, n_search=n_search, n_held_out=n_held_out, seed=seed)


def _sequences(encoder: Encoder, word_class: WordClass, faults: list[Fault]) -> list[Sequence]:
    """The runs of four whose words are one token each. Seven words that fit leave enough for the corrupt prompts."""
    before = len(faults)
    fits = fitting(encoder, word_class.words, what=word_class.name, at_least=7, faults=faults)
    if len(faults) > before:
        return []
    runs = (word_class.run(word, len(ROLES) + 1) for word in fits)
    found = [Sequence(word_class, run, fits) for run in runs if run is not None and set(run) <= set(fits)]
    if not found:
        faults.append(Fault(word_class.name, "no four in a row are one token each"))
    return found


def _candidate(encoder: Encoder, group: str, sequence: Sequence, rng: Random) -> Candidate:
    *shown, following = sequence.words
    scattered = rng.sample([word for word in sequence.fits if word != following], len(shown))
    other = sequence.of.after(scattered[-1])
    in_order = any(sequence.of.after(a) == b for a, b in pairwise(scattered))
    in_place = any(a == b for a, b in zip(shown, scattered, strict=True))
    if other is None or other not in sequence.fits or other in {*sequence.words, *scattered} or in_order or in_place:
        return Misfit("the corrupt words came out in order, or what follows them is in the prompt")
    clean = render(SENTENCES[group], dict(zip(ROLES, shown, strict=True)))
    corrupt = render(SENTENCES[group], dict(zip(ROLES, scattered, strict=True)))
    answers = answer_tokens(encoder, clean.text, (f" {following}", f" {other}"))
    if isinstance(answers, Misfit):
        return answers
    return assemble(encoder, Draft(group, clean, corrupt, answers[:1], answers[1:], ROLES, ROLES))


SUCCESSOR = TaskDescription(
    name=NAME,
    summary="Successor: the next day, month or number.",
    example="The list goes on: Monday, Tuesday, Wednesday, → Thursday (not Sunday)",
    corruptions=CORRUPTIONS,
    roles=(*ROLES, "end"),
    build=build,
)
