"""One database behind one URL: connections, transactions, and what its errors are called here."""

from __future__ import annotations


class Database:
    """SQLite or PostgreSQL."""
