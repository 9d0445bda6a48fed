"""Tables that are results themselves: what `try` found, and any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from rich.console import RenderableType

from acdc.card import Section, challenge_sections
from acdc.challenge import Challenge
from acdc.cli.console import number, table

COLUMNS = ("model", "circuit", "complement", "random")


def tables(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A `try` as four columns side by side, a challenge as on its card; anything else key by key."""
    if isinstance(data.get("challenge"), Mapping):
        for section in challenge_sections(Challenge.from_dict(data["challenge"])):
            yield from as_text(section)
        return
    columns = data.get("columns", data)
    if isinstance(columns, Mapping) and isinstance(columns.get("model"), list):
        yield from tried(data)
        return
    yield table(("field", "value"), [[key, _short(value)] for key, value in data.items()])


def as_text(section: Section) -> Iterator[RenderableType]:
    """A section of a card."""
    yield "\n".join([section.title.lower(), *(f"           {line}" for line in section.text)])
    if section.table is not None:
        yield table(section.table.columns, section.table.written)


def tried(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The likeliest next tokens of model, circuit, complement and random circuit, with their probabilities."""
    columns = data.get("columns", data)
    shown_columns = [key for key in COLUMNS if key in columns]  # an empty circuit has no random twin
    rows = zip_longest(*(columns[key] for key in shown_columns))
    shown = [[rank, *map(_token, row)] for rank, row in enumerate(rows, start=1)]
    if isinstance(data.get("prompt"), str):
        yield f"prompt     {data['prompt']!r}; cut edges carry: {data.get('ablation')}"
    yield table(("#", *shown_columns), shown)
    for note in data.get("notes", ()):
        yield f"note       {note}"


def _token(cell: Mapping[str, Any] | None) -> str:
    return "" if cell is None else f"{cell['probability']:6.3f} {cell['token']!r}"


def _short(value: Any) -> str:
    text = number(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
