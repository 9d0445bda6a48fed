"""Dataclasses again, from the plain data that `dataclasses.asdict` and JSON made of them."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_plain(kind: type[T], data: Mapping[str, Any]) -> T:
    """The dataclass whose fields `data` holds; fields that it lacks take their defaults.

    Nested dataclasses, tuples, mappings and `X | None` are read; whatever else stays as it is. Raises TypeError or
    ValueError where the data has another shape.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{kind.__name__} is read from a mapping, not from {type(data).__name__}")
    hints = _hints(cast(Any, kind))
    if unknown := sorted(set(data) - set(hints)):
        raise TypeError(f"{kind.__name__} has no {', '.join(unknown)}")
    return kind(**{name: _value(hints[name], value) for name, value in data.items()})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(hint: Any, value: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not type(None))
        return None if value is None else _value(inner, value)
    if is_dataclass(hint):
        return from_plain(cast(type[Any], hint), value)
    if origin is tuple:
        of_each = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_value(inner, item) for inner, item in zip(of_each, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return {key: _value(args[1], item) for key, item in value.items()}
    return value
