"""Real processes, real signals: what must hold whatever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from workers_kit import Service, both_databases, is_alive, until

from acdc.store import State

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


def test_deaths_with_a_new_checkpoint_between_them_poison_nothing(service: Service) -> None:
    service.worker()
    job = service.ended(service.submit(die_after=1))
    assert (job.state, job.attempt) == (State.SUCCEEDED, 6)
    assert service.data(job.id)["counted"] == ALL


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
    service.at_gate()
    service.checkpointed(job_id)
    service.freeze(first, job_id)
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


def test_job_that_runs_too_long_times_out_and_the_next_one_runs(service: Service) -> None:
    service.worker()
    job_id, other = service.gated(is_stubborn=True, limits={"max_runtime_s": 1}), service.submit()
    [engine] = service.at_gate()
    job = service.ended(job_id)
    assert job.error is not None
    assert job.error.code == "timeout"
    assert service.ended(other).state is State.SUCCEEDED
    assert not is_alive(engine)


@pytest.mark.parametrize("content", [b"dear diary, " * 100, None])
def test_database_that_can_never_work_ends_the_worker(service: Service, tmp_path: Path, content: bytes | None) -> None:
    """A file that is no database, and one of another program."""
    file = tmp_path / "other.db"
    if content is not None:
        file.write_bytes(content)
    else:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE jobs (title TEXT)")
    assert service.worker(ACDC_DATABASE_URL=f"sqlite:///{file}").wait(30) == 1


# -- a database that goes away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_database_that_was_away_costs_time_and_no_job(service: Service, postgres: Any) -> None:
    service.worker()
    job_id, other = service.gated(), service.submit()
    service.at_gate()
    postgres.control("-m", "immediate", "stop")
    try:
        service.gate.touch()
        until("the engine's last count", lambda: list(service.marks.glob("5.*")))
    finally:
        until("PostgreSQL's start", lambda: comes_up(postgres))
    job = service.ended(job_id)
    assert (job.state, job.attempt, job.deaths) == (State.SUCCEEDED, 1, 0)
    assert service.data(job_id)["counted"] == ALL
    assert service.ended(other).state is State.SUCCEEDED


def comes_up(postgres: Any) -> bool:
    with contextlib.suppress(Exception):  # the dead one may still be a zombie for a second or two
        postgres.start()
        return True
    return False
