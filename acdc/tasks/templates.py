"""Sentences with named places for words, and the characters at which the words end up."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

from acdc.tasks.prompts import Span


@dataclass(frozen=True)
class Rendered:
    """ranges: the characters [start, stop) of each field. A field that occurs twice keeps its first place."""

    text: str
    ranges: Mapping[str, Span]


def render(template: str, words: Mapping[str, str]) -> Rendered:
    """Put `words` into `template`, whose fields are written {NAME}."""
    text = ""
    ranges: dict[str, Span] = {}
    for literal, field, _, _ in string.Formatter().parse(template):
        text += literal
        if field is not None:
            ranges.setdefault(field, (len(text), len(text) + len(words[field])))
            text += words[field]
    return Rendered(text, ranges)
