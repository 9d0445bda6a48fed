from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_samples import Connect, make_settings
from fastapi.testclient import TestClient

from acdc.api import create_app
from acdc.api.server import Server, bind
from acdc.store import Artefacts, Store, migrate


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("template") / "acdc.db"
    migrate(f"sqlite:///{path}")
    return path.read_bytes()


@pytest.fixture
def store(tmp_path: Path, empty_database: bytes) -> Iterator[Store]:
    path = tmp_path / "acdc.db"
    path.write_bytes(empty_database)
    with Store.open(f"sqlite:///{path}") as opened:
        yield opened


@pytest.fixture
def artefacts(tmp_path: Path) -> Artefacts:
    return Artefacts.open(f"file://{tmp_path / 'artefacts'}")


@pytest.fixture
def connect(tmp_path: Path, store: Store, artefacts: Artefacts) -> Iterator[Connect]:
    """A client of an app with the given settings. Errors of the server are answers here, as to real clients."""
    with ExitStack() as stack:

        def make(**settings: Any) -> TestClient:
            app = create_app(make_settings(tmp_path, **settings), store, artefacts)
            client = TestClient(app, base_url="http://127.0.0.1:8420", raise_server_exceptions=False)
            return stack.enter_context(client)

        yield make


@pytest.fixture
def client(connect: Connect) -> TestClient:
    return connect()


@pytest.fixture
def served(tmp_path: Path, store: Store, artefacts: Artefacts) -> Iterator[str]:
    """The URL of a real server on a free port of the loopback address."""
    settings = make_settings(tmp_path, port=0)
    listener = bind(settings)
    url = "http://{}:{}".format(*listener.getsockname())
    server = Server(create_app(settings, store, artefacts))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        yield url
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
