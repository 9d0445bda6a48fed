"""Bring a database to this code's schema, and refuse one of another version."""

from __future__ import annotations


def migrate(url: str) -> None:
    """Create or upgrade the schema; nothing happens where it is up to date. Safe with several processes at once.

    Raises SchemaMismatch for a database that a newer version has migrated, DatabaseError for one that is unreachable.
    """
    raise NotImplementedError
