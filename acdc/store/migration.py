"""Bring a database to this code's schema, and refuse one of another version."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import migrations
from acdc.errors import BadDatabase, SchemaMismatch
from acdc.store.database import Database, parse_url

_LOCK = 0x61636463  # any number that no other program locks


def migrate(url: str) -> None:
    """Create or upgrade the schema; nothing happens where it is up to date. Safe with several processes at once.

    Raises SchemaMismatch for a database that a newer version has migrated, BadDatabase for what is none or another
    program's, DatabaseError for one that is unreachable.
    """
    _make_directory(url)
    database = Database(url, enforces_foreign_keys=False)
    try:
        with database.write() as connection:
            if not database.is_sqlite:  # SQLite's writers are alone anyway
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            refuse_newer(connection, database.label)
            command.upgrade(alembic_config(connection), "head")
            if database.is_sqlite and (broken := connection.execute(text("PRAGMA foreign_key_check")).first()):
                raise BadDatabase(f"{database.label}: the migration left a broken reference {tuple(broken)}; undone")
    finally:
        database.close()


def check_schema(connection: Connection, label: str) -> None:
    """Raises SchemaMismatch unless the database is exactly at this code's schema."""
    refuse_newer(connection, label)
    current, head = _current(connection), _scripts().get_current_head()
    if current != head:
        raise SchemaMismatch(
            f"{label} has schema {current or 'none'} and this version needs {head}; back it up and migrate it: "
            "acdc serve does that when it starts, and so does acdc.store.migrate(url)"
        )


def refuse_newer(connection: Connection, label: str) -> None:
    """Raises SchemaMismatch for a schema that this code has never heard of."""
    current = _current(connection)
    known = {script.revision for script in _scripts().walk_revisions()}
    if current is not None and current not in known:
        raise SchemaMismatch(
            f"{label} was migrated to schema {current} by a newer version of acdc, and this one knows none above "
            f"{_scripts().get_current_head()}; upgrade acdc, or use another database"
        )


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration, without a file: the scripts lie in the package `migrations`."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(migrations.__file__).parent))


def _make_directory(url: str) -> None:
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        directory = Path(parsed.database).parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadDatabase(f"no directory {directory} for the database: {error.strerror}") from None
