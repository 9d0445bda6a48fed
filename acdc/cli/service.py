"""`acdc serve`: database, API and worker processes on one machine; they start and end together."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acdc.cli.console import Json, answer, errors, remark
from acdc.cli.processes import sigterm_as_interrupt, spawn, stop
from acdc.errors import ServiceError

if TYPE_CHECKING:
    import socket

    from acdc.settings import Settings

LOOK_S = 0.5  # between two looks at the workers
RESTART_PAUSE_S = 2.0  # so that a worker that cannot start does not spin
_WORKER = ("workers.worker",)


class Workers:
    """Worker processes that are started again when they die, until the block ends."""

    def __init__(self, count: int, environment: Mapping[str, str], grace_s: float) -> None:
        self._environment = dict(environment)
        self._grace_s = grace_s
        self._stopping = threading.Event()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._count = count
        self._thread = threading.Thread(target=self._keep, name="workers", daemon=True)

    def __enter__(self) -> Workers:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        try:
            self._thread.join()
        except KeyboardInterrupt:  # again: no more patience
            for process in self._processes:
                process.kill()
            self._thread.join()

    def _keep(self) -> None:
        """Start, restart and stop, all in this one thread: the kernel tells a child when the thread that started it
        ends, and a worker takes a second SIGTERM for impatience."""
        self._processes = [self._start() for _ in range(self._count)]
        while not self._stopping.wait(LOOK_S):
            for place, process in enumerate(self._processes):
                if process.poll() is not None and not self._stopping.wait(RESTART_PAUSE_S):
                    errors().print(f"a worker ended with {process.returncode}; starting another one")
                    self._processes[place] = self._start()
        stop(self._processes, self._grace_s)

    def _start(self) -> subprocess.Popen[bytes]:
        return spawn(_WORKER, stdout=sys.stderr.fileno(), env=self._environment)


def serve(
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="0: any free one")] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="where database and artefacts are kept")] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="worker processes, each running one job")] = 1,
    as_json: Json = False,
) -> None:
    """Start the service on this machine: API, explorer and workers. Ctrl-C stops all of it."""
    from acdc.settings import as_environment, load_settings

    given = {"port": port, "data_dir": data_dir}
    settings = load_settings(**{key: value for key, value in given.items() if value is not None})
    with contextlib.suppress(KeyboardInterrupt), sigterm_as_interrupt():
        listener = _bind(settings)
        try:
            _serve(settings, listener, Workers(workers, as_environment(settings), 2 * settings.child_grace_s + 5))
        finally:
            listener.close()
    remark("stopped")


def _bind(settings: Settings) -> socket.socket:
    """Before the database is touched: a second service on the same data would be told here."""
    from acdc.api.server import bind

    try:
        return bind(settings)
    except ServiceError as error:
        raise ServiceError(f"{error.message}, here as --port (0: any free one)") from None


def _serve(settings: Settings, listener: socket.socket, workers: Workers) -> None:
    import acdc.api.server
    from acdc.api import create_app
    from acdc.cli.data_dir import serving
    from acdc.store import Artefacts, Store, migrate

    migrate(settings.database_url)
    with serving(settings.data_dir), Store.open(settings.database_url) as store:
        app = create_app(settings, store, Artefacts.open(settings.artefacts_url))
        with workers:
            url = _url(listener)
            answer({"url": url, "data_dir": str(settings.data_dir)}, lambda: _welcome(url, settings))
            acdc.api.server.serve(app, listener)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown: Any = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _welcome(url: str, settings: Settings) -> str:
    return (
        f"serving {url} (data in {settings.data_dir}); Ctrl-C stops it\n"
        f"open it in a browser, or: acdc --url {url} submit ioi --wait"
    )
