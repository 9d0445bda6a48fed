"""Docstring (Heimersheim and Janiak 2023): the third documented argument, after the first two.

A function has six arguments: two that are not documented, A, B and C, and one more. The docstring documents A and B
and stops where C is due. The corrupt prompt has other names for A, B and C in the definition, and yet others in the
docstring, so that neither place tells the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from acdc.errors import Fault
from acdc.tasks.assembling import Candidate, Draft, Misfit, answer_tokens, assemble, check_corruption, fill, refuse
from acdc.tasks.description import TaskDescription
from acdc.tasks.encoding import Encoder
from acdc.tasks.prompts import PromptSet, Tokenizer
from acdc.tasks.templates import render
from acdc.tasks.vocabulary import fitting

NAME = "docstring"
CORRUPTIONS = ("random_random",)
DEFINED = ("A_def", "B_def", "C_def")
DOCUMENTED = ("A_doc", "B_doc")
ROLES = (*DEFINED, *DOCUMENTED)
OTHERS = ("other_1", "other_2", "other_3")
FILLERS = ("function", "topic", "w1", "w2", "w3", "w4")
MIN_WORDS = len(ROLES) + len(DEFINED) + len(OTHERS) + len(FILLERS)

# How each documentation style introduces an argument; KEYWORD ends the prompt.
KEYWORDS = {
    "param": ":param",
    "parameter": ":parameter",
    "arg": ":arg",
    "argument": ":argument",
    "keyword": ":keyword",
    "at_param": "@param",
    "backslash_param": "\\param",
    "star": "*",
}
FUNCTION = '''def {function}(self, {other_1}, {other_2}, {A_def}, {B_def}, {C_def}, {other_3}):
    """Find the {topic} here.

    KEYWORD {A_doc}: the {w1} {w2}
    KEYWORD {B_doc}: the {w3} {w4}
    KEYWORD'''
WORDS = (
    "load", "size", "files", "last", "port", "image", "value", "name", "path", "user", "date", "time", "text",
    "color", "width", "height", "speed", "model", "data", "table", "field", "group", "level", "state", "event",
    "order", "price", "number", "code", "page", "line", "point", "range", "result", "source", "target", "test",
    "type", "view", "world", "house", "water", "paper", "music", "market", "office", "record", "report", "school",
    "shape", "signal", "song", "stock", "story", "street", "system", "title", "town", "train", "unit", "week", "year",
)  # fmt: skip


def build(tokenizer: Tokenizer, *, n_search: int, n_held_out: int, corruption: str, seed: int) -> PromptSet:
    check_corruption(NAME, corruption, CORRUPTIONS)
    encoder, faults = Encoder(tokenizer), list[Fault]()
    words = fitting(encoder, WORDS, what="argument names", at_least=MIN_WORDS, faults=faults)
    refuse(NAME, tokenizer, faults)

    def stream(group: str, rng: Random) -> Iterator[Candidate]:
        while True:
            yield _candidate(encoder, group, rng.sample(words, MIN_WORDS))

    return fill(NAME, corruption, tuple(KEYWORDS), stream, n_search=n_search, n_held_out=n_held_out, seed=seed)


def _candidate(encoder: Encoder, group: str, words: list[str]) -> Candidate:
    template = FUNCTION.replace("KEYWORD", KEYWORDS[group])
    drawn = iter(words)
    common = {field: next(drawn) for field in (*OTHERS, *FILLERS)}
    defined = [next(drawn) for _ in DEFINED]
    # zip stops at the documented two: the third argument's line is what the model is to write
    documented = dict(zip(DOCUMENTED, defined, strict=False))
    clean = render(template, {**common, **dict(zip(DEFINED, defined, strict=True)), **documented})
    corrupt = render(template, {**common, **{role: next(drawn) for role in ROLES}})
    wrong = [*defined[:2], *(common[field] for field in OTHERS)]
    answers = answer_tokens(encoder, clean.text, [f" {word}" for word in (defined[2], *wrong)])
    if isinstance(answers, Misfit):
        return answers
    return assemble(encoder, Draft(group, clean, corrupt, answers[:1], answers[1:], ROLES, ROLES))


DOCSTRING = TaskDescription(
    name=NAME,
    summary="Docstring: the next argument to document.",
    example="def port(self, year, unit, load, size, files, last): … :param load: … :param size: … :param → files",
    corruptions=CORRUPTIONS,
    roles=(*ROLES, "end"),
    build=build,
)
