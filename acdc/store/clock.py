"""The database's clock, the only one that a lease or a time-out is measured by.

Times are whole milliseconds since 1970. A worker whose own clock is an hour off behaves like any other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now_ms(FunctionElement[int]):  # noqa: N801  reads as the SQL function it is
    """The moment the statement runs at, not the one its transaction began at."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"


@compiles(now_ms, "postgresql")
def _postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


def in_seconds(seconds: float) -> ColumnElement[int]:
    """The moment `seconds` from now."""
    return now_ms() + milliseconds(seconds)


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def moment_or_none(ms: int | None) -> datetime | None:
    return None if ms is None else moment(ms)
