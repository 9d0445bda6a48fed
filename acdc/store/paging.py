"""Pages by key, never by offset: rows that come or go between two pages neither repeat nor hide others."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, literal, tuple_

from acdc.errors import SpecError

MAX_LIMIT = 1000


def newest_first(
    connection: Connection, query: Select[Any], table: Table, cursor: str | None, limit: int
) -> tuple[Sequence[Row[Any]], str | None]:
    """Rows of `query` over a table with `created_ms` and `id`, which never change, and the cursor of the next page."""
    check_limit(limit)
    if cursor is not None:
        created_ms, row_id = read_cursor(cursor, int, str)
        query = query.where(
            tuple_(table.c.created_ms, table.c.id)
            < tuple_(literal(created_ms, table.c.created_ms.type), literal(row_id, table.c.id.type))
        )
    query = query.order_by(table.c.created_ms.desc(), table.c.id.desc()).limit(limit + 1)
    rows = connection.execute(query).all()
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], write_cursor(last.created_ms, last.id)


def check_limit(limit: int) -> None:
    """Raises SpecError."""
    if not 1 <= limit <= MAX_LIMIT:
        raise SpecError(f"limit {limit} is out of range; ask for 1 to {MAX_LIMIT} rows")


def write_cursor(*key: int | str) -> str:
    return base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(cursor: str, *types: type) -> list[Any]:
    """Raises SpecError for anything that `write_cursor` did not write for such a list."""
    try:
        key = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, list) or [type(part) for part in key] != list(types):
        raise SpecError(f"{cursor[:100]!r} is no cursor of this list; pass `next_cursor` of the page before, or none")
    if any(isinstance(part, int) and abs(part) >= 2**63 for part in key):
        raise SpecError(f"{cursor[:100]!r} is no cursor of this list; pass `next_cursor` of the page before, or none")
    return key
