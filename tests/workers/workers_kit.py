"""What the tests of this folder share: specs for the counting engine, waiting with a deadline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from acdc.spec import parse_job
from acdc.store import Artefacts, JobRow, Store

HERE = Path(__file__).parent
ENGINE = (sys.executable, "-u", str(HERE / "engine_for_tests.py"))
WITHIN_S = 30.0

Found = TypeVar("Found")


def counting(**play: Any) -> dict[str, Any]:
    return {"task": "ioi", "notes": json.dumps(play)}


def until(what: str, look: Callable[[], Found], within_s: float = WITHIN_S) -> Found:
    """What `look` gives, once that is true."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.01)
    return found


def marks(directory: Path, pattern: str) -> list[int]:
    """Pids of the engine processes that left such marks."""
    return [int(path.suffix[1:]) for path in directory.glob(pattern)]


both_databases = pytest.mark.parametrize("backend", ["sqlite", "postgresql"], indirect=True)


class Service:
    """Worker processes over one database, with leases short enough for tests."""

    def __init__(self, store: Store, artefacts: Artefacts, database_url: str, directory: Path) -> None:
        self.store = store
        self.artefacts = artefacts
        self.url = database_url
        self.marks = directory / "marks"
        self.marks.mkdir()
        self.gate = directory / "gate"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "ACDC_DATABASE_URL": database_url,
            "ACDC_ARTEFACTS_URL": str(directory / "artefacts"),
            "ACDC_DATA_DIR": str(directory),
            "ACDC_LEASE_S": "1.5",
            "ACDC_BEAT_S": "0.1",
            "ACDC_POLL_S": "0.05",
            "ACDC_REAP_S": "0.5",
            "ACDC_CHILD_GRACE_S": "1",
        }

    def worker(self, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(HERE / "worker_for_tests.py")]
        process = subprocess.Popen(command, env={**self._environment, **environment})
        self.processes.append(process)
        return process

    def submit(self, **play: Any) -> str:
        limits = play.pop("limits", {})
        return self.submit_spec({**counting(marks=str(self.marks), **play), "limits": limits})

    def submit_spec(self, spec: dict[str, Any]) -> str:
        return self.store.jobs.submit(parse_job(spec), user="ada").job.id

    def gated(self, at: int = 4, **play: Any) -> str:
        """A job that waits before its count `at`, until `gate` is there."""
        return self.submit(gates={str(at): str(self.gate)}, **play)

    def at_gate(self, at: int = 4, n_engines: int = 1) -> list[int]:
        """The engines that wait there."""
        return until(f"gate {at}", lambda: len(found := marks(self.marks, f"gate-{at}.*")) >= n_engines and found)

    def job(self, job_id: str) -> JobRow:
        return self.store.jobs.get(job_id)

    def checkpointed(self, job_id: str) -> int:
        return until("a checkpoint", lambda: self.job(job_id).checkpoint).step

    def ended(self, job_id: str) -> JobRow:
        until("the job's end", lambda: self.job(job_id).state.is_terminal)
        return self.job(job_id)

    def data(self, job_id: str) -> dict[str, Any]:
        [result] = self.store.jobs.results(job_id)
        return dict(result.data)

    def log(self, job_id: str) -> list[str]:
        return [row.line for row in self.store.jobs.logs(job_id)]

    def freeze(self, worker: subprocess.Popen[bytes], job_id: str) -> None:
        """Stop a worker outside its transactions: one that is stopped inside blocks the others, on SQLite for ever, on
        PostgreSQL (whose server may not have read its last words yet) until the server ends its transaction."""

        def is_frozen() -> bool:
            worker.send_signal(signal.SIGSTOP)
            until("a worker that stands still", lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
            if self._is_writable(job_id):
                return True
            worker.send_signal(signal.SIGCONT)
            return False

        until("a moment between two transactions", is_frozen)

    def _is_writable(self, job_id: str) -> bool:
        is_sqlite = self.url.startswith("sqlite")
        options = {"timeout": 0.2} if is_sqlite else {"options": "-c lock_timeout=200"}
        engine = create_engine(self.url, connect_args=options)
        try:
            with engine.begin() as connection:
                connection.execute(text("UPDATE jobs SET id = id WHERE id = :id"), {"id": job_id})
            return True
        except OperationalError:
            return False
        finally:
            engine.dispose()

    def stop(self) -> None:
        self.gate.touch()
        for process in self.processes:
            process.kill()
            process.wait()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
