"""A number of edges or a share of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

ALL = 1.0
"""The share that is all edges. A number without a point counts: 1 is one edge."""


def _size(value: object) -> int | float | None:
    """A number of edges as an int, a share of them as a float; None for what is neither. JSON and YAML keep 1 and 1.0
    apart and some languages do not, so all edges have a word besides."""
    match value:
        case bool():
            return None
        case "all":
            return ALL
        case int() if value >= 1:
            return value
        case float() if 0 < value <= ALL:
            return value
        case float() if value > ALL and value.is_integer():
            return int(value)
    return None


def _as_size(value: object) -> object:
    if (size := _size(value)) is None:
        raise ValueError(
            f"give a number of edges (100), a share of them (0.01) or all, not {value!r}; 1 is one edge and 1.0 is all"
        )
    return size


def _as_part(value: object) -> object:
    size = _size(value)
    if size is None or (isinstance(size, float) and size == ALL):
        raise ValueError(
            f"give a number of edges (100) or a share of them below 1.0 (0.01), not {value!r}; 1 is one edge and 1.0 "
            "would be all"
        )
    return size


def _as_count(value: object) -> object:
    size = _size(value)
    if not isinstance(size, int):
        raise ValueError(f"give a number of edges (100), not {value!r}; 1 is one edge")
    return size


_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(gt=0, lt=ALL)]
# However it is written, one thing reads it: all edges, a part of them, a number of them.
Size = Annotated[int | float, BeforeValidator(_as_size, json_schema_input_type=_Count | _Share | Literal["all"])]
Part = Annotated[int | float, BeforeValidator(_as_part, json_schema_input_type=_Count | _Share)]
Count = Annotated[int, BeforeValidator(_as_count, json_schema_input_type=_Count)]
