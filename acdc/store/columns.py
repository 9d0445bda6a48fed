"""Column types that hold the same values on SQLite and PostgreSQL.

PostgreSQL has no place for U+0000 or half a surrogate pair. Text that a program made (logs, messages, decoded tokens)
gets U+FFFD in their place; text that a user asked for is refused before, by `refuse_unstorable`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import JSON, Dialect, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator

from acdc.errors import Fault, SpecError

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class Words(TypeDecorator[str]):
    """Text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


class Document(TypeDecorator[Any]):
    """JSON; None is SQL's NULL. Numbers are finite: an infinite one is our mistake and raises ValueError."""

    impl = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return _map_text(value)


def dump_json(value: Any) -> str:
    """How every document is written."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def storable(text: str) -> str:
    return str(_UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text))  # str: drivers have their own mind about enums


def refuse_unstorable(value: Mapping[str, Any]) -> None:
    """Raises SpecError that names every place with a character that no database can hold."""
    places = [where for where, text in _texts(value, "") if _UNSTORABLE.search(text)]
    if places:
        faults = [Fault(where, "contains U+0000 or half a surrogate pair; remove it") for where in places]
        raise SpecError(f"{len(faults)} text{'s' * (len(faults) != 1)} in the job spec cannot be stored", faults)


def _map_text(value: Any) -> Any:
    match value:
        case str():
            return storable(value)
        case Mapping():
            return {storable(str(key)): _map_text(item) for key, item in value.items()}
        case list() | tuple():
            return [_map_text(item) for item in value]
        case _:
            return value


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    match value:
        case str():
            yield where, value
        case Mapping():
            for key, item in value.items():
                path = f"{where}.{key}" if where else str(key)
                yield storable(path), str(key)
                yield from _texts(item, storable(path))
        case list() | tuple():
            for i, item in enumerate(value):
                yield from _texts(item, f"{where}.{i}")
