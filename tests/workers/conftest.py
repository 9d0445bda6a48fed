"""The store's databases, and worker processes on them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from workers_kit import Service

from acdc.store import Artefacts, Store

_file = Path(__file__).parents[1] / "store" / "conftest.py"
_spec = importlib.util.spec_from_file_location("databases_of_the_store", _file)
assert _spec is not None
assert _spec.loader is not None
_databases = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _databases
_spec.loader.exec_module(_databases)

postgres = _databases.postgres
postgres_url = _databases.postgres_url
postgres_template = _databases.postgres_template
sqlite_template = _databases.sqlite_template
database_url = _databases.database_url
store = _databases.store


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """SQLite, but for the tests that ask for both (`both_databases`)."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def service(database_url: str, store: Store, tmp_path: Path) -> Iterator[Service]:
    running = Service(store, Artefacts.open(str(tmp_path / "artefacts")), database_url, tmp_path)
    yield running
    running.stop()
