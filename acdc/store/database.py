"""One database behind one URL: connections, transactions, and what its errors are called here."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import DatabaseError as SqlDatabaseError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from acdc.errors import BadDatabase, DatabaseError, SchemaMismatch, StorageError
from acdc.store.columns import dump_json

_BUSY_TIMEOUT_MS = 10_000  # how long a SQLite writer waits for another
_CONNECT_TIMEOUT_S = 5
_IDLE_TIMEOUT_S = 10  # after which PostgreSQL ends a transaction whose process says nothing
_DISK_FULL = "53100"  # PostgreSQL's SQLSTATE
_BAD_FILE = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR}
_BAD_TABLES = {"42P01", "42P07", "42703", "42710"}  # PostgreSQL: a table, column or type is missing, or there already


class Database:
    """SQLite or PostgreSQL; safe to share between threads, not across a fork.

    enforces_foreign_keys: off only while a migration rebuilds tables.
    """

    def __init__(self, url: str, *, enforces_foreign_keys: bool = True) -> None:
        parsed = parse_url(url)
        self.label = parsed.set(drivername=parsed.get_backend_name()).render_as_string(hide_password=True)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._file = Path(parsed.database) if self.is_sqlite and parsed.database else None
        self._engine = create_engine(
            parsed, json_serializer=dump_json, pool_pre_ping=not self.is_sqlite, **_connect_options(parsed)
        )
        self._writing = self._engine.execution_options(acdc_writes=True)
        if self.is_sqlite:
            _prepare_sqlite(self._engine, enforces_foreign_keys)
        else:
            _prepare_postgresql(self._engine)

    def must_exist(self) -> None:
        """Raises SchemaMismatch instead of making an empty file where a SQLite database was expected."""
        if self._file is not None and not self._file.exists():
            raise SchemaMismatch(
                f"{self.label}: no database there; acdc serve makes one, and so does acdc.store.migrate"
            )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that changes nothing."""
        with self._translated_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed at the end, rolled back by an exception. On SQLite it has the file to itself."""
        with self._translated_errors(), self._writing.begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise DatabaseError(f"{self.label}: all connections are busy; try again") from error
        except DBAPIError as error:
            if _is_disk_full(error):
                raise StorageError(f"{self.label}: the disk is full; free some space and try again") from error
            if _is_unusable(error):
                raise BadDatabase(
                    f"{self.label}: {_first_line(error)}; it is damaged or of another program: "
                    "restore a backup, or use another database"
                ) from error
            if _is_outage(error):
                raise DatabaseError(f"{self.label}: {_first_line(error)}; is it up and reachable?") from error
            raise


def insert_or(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that has `on_conflict_do_…`, which both databases spell alike."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def parse_url(url: str) -> URL:
    """Raises BadDatabase for anything but a SQLite file or a PostgreSQL server."""
    way_out = "write sqlite:///file.db or postgresql://user@host/name"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise BadDatabase(f"this database URL cannot be read; {way_out}") from None
    match parsed.get_backend_name():
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+psycopg")
        case "sqlite" if parsed.database and parsed.database != ":memory:":
            return parsed.set(drivername="sqlite+pysqlite")
        case _:
            raise BadDatabase(f"no database that jobs survive in: {parsed.render_as_string()}; {way_out}")


def _connect_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {}
    given = {"connect_timeout": _CONNECT_TIMEOUT_S}
    return {"connect_args": {key: value for key, value in given.items() if key not in url.query}, "pool_timeout": 10}


def _prepare_sqlite(engine: Engine, enforces_foreign_keys: bool) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in (
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=NORMAL",
            f"foreign_keys={'ON' if enforces_foreign_keys else 'OFF'}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A reader that turns writer is refused at once, whatever busy_timeout says: writers lock from the start.
        writes = connection.get_execution_options().get("acdc_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # A process that is stopped, or a host that hangs, may hold a lock that every other worker waits for: the
        # reaper's, or a job's. Its connection stays open, so only the server can end it.
        connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_TIMEOUT_S}s'")
        connection.commit()


def _is_disk_full(error: DBAPIError) -> bool:
    return (
        getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(error.orig, "sqlstate", None) == _DISK_FULL
    )


def _is_unusable(error: DBAPIError) -> bool:
    """No database, a damaged one, or one whose tables are not ours: trying again mends nothing."""
    primary = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the rest of an extended code says more precisely why
    return primary in _BAD_FILE or getattr(error.orig, "sqlstate", None) in _BAD_TABLES


def _is_outage(error: DBAPIError) -> bool:
    """Broken connections, locks not got in time, a server that starts or stops: not what is wrong with a statement."""
    return error.connection_invalidated or type(error) in (OperationalError, InterfaceError, SqlDatabaseError)


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().partition("\n")[0].rstrip(".")
