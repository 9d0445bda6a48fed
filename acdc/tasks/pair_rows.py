"""A row of a user's own prompts as written down: text or chat messages, answers, group, spans. Not yet tokenized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from acdc.errors import Fault, TaskError
from acdc.tasks.prompts import Span

ROLES_OF_CHAT = ("system", "user", "assistant")
TAKEN = {
    "all": "every position",
    "end": "the last token of every prompt",
    "other": "all tokens that have no role",
}  # what a span of that name would hide


@dataclass(frozen=True)
class ChatMessage:
    role: str
    content: str


Prompt = str | tuple[ChatMessage, ...]


@dataclass(frozen=True)
class PairRow:
    """The fields of a custom pair.

    corrupt: None where another row's clean prompt is to be swapped in. answers, wrong: texts that may follow the
    prompt, leading space included. spans: characters [start, stop) of the clean text, or of a chat's
    last message, by names of which none is TAKEN.
    """

    clean: Prompt
    corrupt: Prompt | None = None
    answers: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    group: str | None = None
    spans: Mapping[str, Span] = field(default_factory=dict)


_FIELDS = tuple(f.name for f in fields(PairRow))


def parse_rows(rows: Sequence[object]) -> tuple[PairRow, ...]:
    """Rows from mappings as JSON gives them. Raises TaskError with the faults of every row (numbered from 1)."""
    parsed, faults = [], []
    for number, row in enumerate(rows, start=1):
        found = row if isinstance(row, PairRow) else _parse_row(row)
        if isinstance(found, PairRow):
            parsed.append(found)
        else:
            faults += [Fault(f"row {number}", message) for message in found]
    if faults:
        raise TaskError(
            f"{len({fault.where for fault in faults})} of {len(rows)} rows are not written as pairs", faults
        )
    return tuple(parsed)


def refuse_taken_names(names: Iterable[str]) -> None:
    """Raises ValueError for names of spans that mean something already."""
    if taken := [f"{name!r} is {TAKEN[name]}" for name in names if name in TAKEN]:
        raise ValueError(f"has names that are taken: {', '.join(taken)}; take others")


def _parse_row(row: object) -> PairRow | list[str]:
    """A row, or all that is wrong with it."""
    if not isinstance(row, Mapping):
        return [f'a row is an object like {{"clean": …, "corrupt": …, "answers": [" Mary"]}}, this is {_shown(row)}']
    faults = [f"unknown field {key!r}; known fields: {', '.join(_FIELDS)}" for key in row if key not in _FIELDS]
    faults += [f"`{key}` is missing" for key in ("clean", "answers") if row.get(key) is None]
    values: dict[str, Any] = {}
    for key, value in row.items():
        if key not in _READERS or value is None:
            continue
        try:
            values[key] = _READERS[key](value)
        except ValueError as error:
            faults.append(f"`{key}` {error}")
    return faults or PairRow(**values)


def _prompt(value: object) -> Prompt:
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not value:
        raise ValueError(f"is text or a list of chat messages, not {_shown(value)}")
    return tuple(_message(message) for message in value)


def _message(value: object) -> ChatMessage:
    if isinstance(value, ChatMessage):
        return value
    if not isinstance(value, Mapping) or set(value) != {"role", "content"}:
        raise ValueError(f'has a chat message that is not like {{"role": "user", "content": "…"}}: {_shown(value)}')
    if value["role"] not in ROLES_OF_CHAT or not isinstance(value["content"], str):
        raise ValueError(f"has a chat message whose role is none of {', '.join(ROLES_OF_CHAT)}, or without text")
    return ChatMessage(value["role"], value["content"])


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"is text or a list of texts, not {_shown(value)}")
    return tuple(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is text, not {_shown(value)}")
    return value


def _spans(value: object) -> dict[str, Span]:
    if not isinstance(value, Mapping):
        raise ValueError(f'is an object like {{"subject": [4, 9]}}, not {_shown(value)}')
    spans: dict[str, Span] = {}
    for name, ends in value.items():
        if (
            not isinstance(name, str)
            or not isinstance(ends, Sequence)
            or len(ends) != 2
            or not all(type(end) is int for end in ends)
        ):
            raise ValueError(f"gives {name!r} as {_shown(ends)}; a span is two whole numbers [start, stop]")
        spans[name] = (ends[0], ends[1])
    refuse_taken_names(spans)
    return spans


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


_READERS = {
    "clean": _prompt,
    "corrupt": _prompt,
    "answers": _texts,
    "wrong": _texts,
    "group": _text,
    "spans": _spans,
}
