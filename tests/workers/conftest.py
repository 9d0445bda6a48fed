"""Worker processes on the databases that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from workers_kit import Service

from acdc.store import Artefacts, Store


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """SQLite, but for the tests that ask for both (`both_databases`)."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def service(database_url: str, store: Store, tmp_path: Path) -> Iterator[Service]:
    running = Service(store, Artefacts.open(str(tmp_path / "artefacts")), database_url, tmp_path)
    yield running
    running.stop()
