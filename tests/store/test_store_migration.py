"""The schema: up from nothing, by two at once, and refused where it is not ours."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from store_samples import circuit, claimed, sql, submit

from acdc.errors import BadDatabase, DatabaseError, SchemaMismatch
from acdc.store import CircuitFilter, State, Store, migrate
from acdc.store.database import Database
from acdc.store.migration import alembic_config
from acdc.store.tables import metadata
from acdc.store.transitions import lock_own


def tables(url: str) -> set[str]:
    database = Database(url)
    try:
        with database.read() as connection:
            return set(inspect(connection).get_table_names())
    finally:
        database.close()


def test_migrations_make_the_tables_of_this_code(empty_url: str) -> None:
    migrate(empty_url)
    database = Database(empty_url)
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_first_tables_come_and_go(empty_url: str) -> None:
    migrate(empty_url)
    database = Database(empty_url)
    with database.write() as connection:
        command.downgrade(alembic_config(connection), "base")
    database.close()
    assert tables(empty_url) == {"alembic_version"}
    migrate(empty_url)
    assert tables(empty_url) == {"alembic_version", *metadata.tables}


def test_migrating_again_keeps_what_is_there(empty_url: str) -> None:
    migrate(empty_url)
    with Store.open(empty_url) as store:
        job = submit(store)
    migrate(empty_url)
    with Store.open(empty_url) as store:
        assert store.jobs.get(job.id) == job


def test_nodes_that_no_kept_edge_leaves_are_taken_out(empty_url: str) -> None:
    migrate(empty_url)
    with Store.open(empty_url) as store:
        row = store.circuits.add(circuit(), "d" * 64, user="ada")
        sql(store, "INSERT INTO circuit_nodes (circuit_id, node) VALUES (:id, '1.0')", id=row.id)
    database = Database(empty_url)
    with database.write() as connection:
        command.downgrade(alembic_config(connection), "0002")
    database.close()
    migrate(empty_url)
    with Store.open(empty_url) as store:
        assert store.circuits.list(CircuitFilter(nodes=("1.0",))).items == ()
        assert [found.id for found in store.circuits.list(CircuitFilter(nodes=("1.1", "mlp0"))).items] == [row.id]


def test_two_processes_migrate_at_once(empty_url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        processes.map(migrate, [empty_url] * 4, chunksize=1)
    assert tables(empty_url) == {"alembic_version", *metadata.tables}


def test_database_without_a_schema_is_refused_with_the_way_out(empty_url: str) -> None:
    assert tables(empty_url) == set()
    with pytest.raises(SchemaMismatch, match=r"has schema none .* migrate"):
        Store.open(empty_url)


def test_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    database = Database(database_url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    for open_it in (Store.open, migrate):
        with pytest.raises(SchemaMismatch, match=r"schema 9999 by a newer version .* upgrade acdc") as caught:
            open_it(database_url)
        assert not caught.value.is_retryable


def test_opening_does_not_make_a_file(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match="no database there"):
        Store.open(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


def test_migrating_makes_the_directory(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a b' / '50%' / 'acdc.db'}"
    migrate(url)
    with Store.open(url) as store:
        store.ping()


def test_impossible_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadDatabase, match="no directory"):
        migrate(f"sqlite:///{tmp_path / 'file' / 'acdc.db'}")


def test_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("dear diary, " * 100)
    for open_it in (Store.open, migrate):
        with pytest.raises(BadDatabase, match=r"notes\.db: file is not a database") as caught:
            open_it(f"sqlite:///{file}")
        assert not caught.value.is_retryable


def test_database_of_another_program_is_named_and_left_alone(empty_url: str) -> None:
    database = Database(empty_url)
    with database.write() as connection:
        connection.execute(text("CREATE TABLE jobs (title TEXT)"))
    database.close()
    with pytest.raises(BadDatabase, match=r"jobs.* already exists.*another program") as caught:
        migrate(empty_url)
    assert not caught.value.is_retryable
    assert tables(empty_url) == {"jobs"}


def test_table_that_is_gone_is_no_outage(store: Store) -> None:
    sql(store, "DROP TABLE job_logs")
    with pytest.raises(BadDatabase, match="job_logs"):
        store.jobs.logs(submit(store).id)


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://host/db", "redis://x"])
def test_other_urls_are_refused_with_the_two_that_work(url: str) -> None:
    for open_it in (Store.open, migrate):
        with pytest.raises(BadDatabase, match=r"sqlite:///file\.db or postgresql://"):
            open_it(url)


def test_unreachable_server_is_retryable_and_keeps_its_password_to_itself() -> None:
    url = "postgresql://ada:secret@127.0.0.1:1/none"
    for open_it in (Store.open, migrate):
        with pytest.raises(DatabaseError, match=r"127\.0\.0\.1:1") as caught:
            open_it(url)
        assert caught.value.is_retryable
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("backend", ["postgresql"])
def test_lost_connection_is_a_retryable_error_and_the_next_one_works(store: Store, backend: str) -> None:
    claim = claimed(store)
    suicide = text("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(DatabaseError, match="terminating connection") as caught, store._database.write() as connection:
        connection.execute(suicide)
    assert caught.value.is_retryable
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
    with ThreadPoolExecutor(4) as threads:  # fill the pool
        list(threads.map(store.jobs.get, [claim.job.id] * 16))
    sql(store, others + "pg_backend_pid()")
    with ThreadPoolExecutor(4) as threads:
        assert {job.state for job in threads.map(store.jobs.get, [claim.job.id] * 16)} == {State.RUNNING}
    assert not store.claims.heartbeat(claim).lost


@pytest.mark.parametrize("backend", ["postgresql"])
def test_held_job_survives_a_server_that_goes_down_and_comes_back(store: Store, backend: str, postgres: Any) -> None:
    claim = claimed(store)
    store.reaper.sweep()
    postgres.control("-m", "immediate", "stop")
    try:
        for ask in (store.ping, lambda: store.claims.heartbeat(claim), lambda: store.claims.succeed(claim, [])):
            with pytest.raises(DatabaseError) as caught:
                ask()
            assert caught.value.is_retryable
    finally:
        postgres.start()
    assert not store.claims.heartbeat(claim).lost
    assert store.claims.succeed(claim, []).state is State.SUCCEEDED


@pytest.mark.parametrize("backend", ["postgresql"])
def test_server_ends_the_transaction_of_a_process_that_stopped_in_it(
    database_url: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(database_url) as other:
        claim = claimed(other)
        monkeypatch.setattr("acdc.store.database._IDLE_TIMEOUT_S", 1)
        with Store.open(database_url) as stopped:

            def stop_inside() -> None:
                with stopped._database.write() as connection:
                    lock_own(connection, claim)
                    assert not other.claims.heartbeat(claim).lost  # it waits until the lock is free
                    connection.execute(text("SELECT 1"))

            with pytest.raises(DatabaseError, match="idle-in-transaction") as caught:
                stop_inside()
        assert caught.value.is_retryable


def test_sqlite_writers_wait_for_each_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'acdc.db'}"
    migrate(url)
    with Store.open(url) as store, store._database.read() as connection:
        pragma = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "foreign_keys")
        }
        assert pragma == {"journal_mode": "wal", "foreign_keys": 1}
    with Store.open(url) as store, store._database.write() as connection:
        other = sqlite3.connect(tmp_path / "acdc.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == 0


def test_store_imports_no_torch() -> None:
    code = "import sys, acdc.store; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
