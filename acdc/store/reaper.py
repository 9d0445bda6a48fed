"""What nobody else will end: leases that ran out, jobs that waited or ran too long."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, case, select, update

from acdc.store.claims import LEASE_S
from acdc.store.clock import milliseconds, now_ms
from acdc.store.database import Database, insert_or
from acdc.store.jobs import drop_expired_keys
from acdc.store.rows import JobError, Reaped
from acdc.store.states import HELD, Move, State
from acdc.store.tables import jobs
from acdc.store.tables import reaper as memory
from acdc.store.transitions import JobRecord, move_job

SWEEP_S = 5.0


class Reaper:
    def __init__(self, database: Database) -> None:
        self._database = database

    def sweep(self, *, sweep_s: float = SWEEP_S, lease_s: float = LEASE_S) -> Reaped:
        """Requeue (or cancel) jobs whose lease ran out; fail those beyond max_queue_s or max_runtime_s as `timeout`.

        Any number of processes may call it, each about every `sweep_s`. When all of them have been silent for more than
        two sweeps (the database was away, say), leases may have run out with their workers alive: then it leaves them
        alone for one lease.
        """
        with self._database.write() as connection:
            waiting = _remember(connection, milliseconds(sweep_s), milliseconds(lease_s))
            if waiting is None:
                return Reaped()  # another process is at it
            drop_expired_keys(connection)
            timed_out = [
                *_time_out(connection, _queued_too_long(), "max_queue_s", "waited in the queue"),
                *_time_out(connection, _ran_too_long(), "max_runtime_s", "ran"),
            ]
            lost = {} if waiting else _take_back(connection)
            return Reaped(
                requeued=tuple(job_id for job_id, state in lost.items() if state is State.QUEUED),
                cancelled=tuple(job_id for job_id, state in lost.items() if state is State.CANCELLED),
                timed_out=tuple(timed_out),
                waiting=waiting,
            )


def _remember(connection: Connection, sweep_ms: int, lease_ms: int) -> bool | None:
    """Note this sweep; whether it must wait, None when another one is running."""
    first = {"id": 1, "last_sweep_ms": now_ms(), "wait_until_ms": 0}
    connection.execute(insert_or(connection, memory).values(first).on_conflict_do_nothing())
    locked = select(memory, now_ms().label("now_ms")).with_for_update(of=memory, skip_locked=True)
    last = connection.execute(locked).first()
    if last is None:
        return None
    came_late = last.now_ms - last.last_sweep_ms > 2 * sweep_ms
    wait_until_ms = last.now_ms + lease_ms if came_late else last.wait_until_ms
    connection.execute(update(memory).values(last_sweep_ms=last.now_ms, wait_until_ms=wait_until_ms))
    return bool(last.now_ms < wait_until_ms)


def _queued_too_long() -> ColumnElement[bool]:
    return (jobs.c.state == State.QUEUED) & (jobs.c.queued_ms + jobs.c.max_queue_ms <= now_ms())


def _ran_too_long() -> ColumnElement[bool]:
    # Beyond its lease nobody knows that a job ran.
    until = case((jobs.c.lease_until_ms < now_ms(), jobs.c.lease_until_ms), else_=now_ms())
    ran_ms = jobs.c.ran_before_ms + until - jobs.c.claimed_ms
    return (jobs.c.state == State.RUNNING) & (ran_ms >= jobs.c.max_runtime_ms)


def _time_out(connection: Connection, condition: ColumnElement[bool], limit: str, what: str) -> list[str]:
    found = _locked(connection, condition)
    for job in found:
        seconds = job._mapping[limit.removesuffix("_s") + "_ms"] / 1000
        error = JobError("timeout", f"it {what} for its {limit} of {seconds:g} seconds; raise limits.{limit}")
        move_job(connection, job, Move.RUN_OUT_OF_TIME, error=error)
    return [job.id for job in found]


def _take_back(connection: Connection) -> dict[str, State]:
    lost = _locked(connection, jobs.c.state.in_(HELD) & (jobs.c.lease_until_ms < now_ms()))
    return {job.id: move_job(connection, job, Move.LOSE, detail={"worker": job.worker_id}) for job in lost}


def _locked(connection: Connection, condition: ColumnElement[bool]) -> list[JobRecord]:
    """Jobs that somebody else is writing right now are left for the next sweep."""
    query: Any = select(jobs).where(condition).order_by(jobs.c.id).with_for_update(skip_locked=True)
    return list(connection.execute(query))
