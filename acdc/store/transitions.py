"""The only place where a job's state is written: one conditional update and its event row, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from acdc.errors import Conflict, Fault, NotFound
from acdc.store.clock import in_seconds, milliseconds, moment, moment_or_none, now_ms
from acdc.store.rows import CheckpointRef, Claim, JobError, JobRow
from acdc.store.states import HELD, Move, State, target
from acdc.store.tables import job_events, job_tags, jobs

JobRecord = Row[Any]  # a row of `jobs`, locked until the end of the transaction


def lock_job(connection: Connection, job_id: str) -> JobRecord:
    """Raises NotFound."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).first()
    if row is None:
        raise NotFound(f"no job {job_id!r}")
    return row


def lock_held(connection: Connection, claim: Claim) -> JobRecord | None:
    """The claim's job if its token is still the job's: the fence before every write of a worker."""
    query = select(jobs).where(jobs.c.id == claim.job.id, jobs.c.lease_token == claim.token, jobs.c.state.in_(HELD))
    return connection.execute(query.with_for_update()).first()


def lock_own(connection: Connection, claim: Claim) -> JobRecord:
    """As `lock_held`; raises Conflict when the claim is no longer good."""
    row = lock_held(connection, claim)
    if row is None:
        raise Conflict(
            f"job {claim.job.id} is no longer held by this claim: its lease ran out and was taken, or it has ended"
        )
    return row


def move_job(
    connection: Connection,
    job: JobRecord,
    move: Move,
    *,
    changes: Mapping[str, Any] | None = None,
    error: JobError | None = None,
    detail: Mapping[str, Any] | None = None,
) -> State:
    """Make `move`; returns the new state. Raises Conflict when the table of transitions has no such move.

    changes: columns beside those that the new state implies. error: stored if the job fails by this. detail: what the
    event says beside state and move.
    """
    before = State(job.state)
    after = target(job.id, before, move)
    values = {"state": after, **_implied(job, move, before, after), **(changes or {})}
    if after is State.FAILED:
        assert error is not None, f"{move} fails a job without a reason"
        values |= {"error_code": error.code, "error_message": error.message}
        values["error_faults"] = [asdict(fault) for fault in error.faults]
        detail = {**(detail or {}), "code": error.code, "message": error.message}
    changed = connection.execute(
        update(jobs)
        .where(jobs.c.id == job.id, jobs.c.state == before, jobs.c.lease_token.is_not_distinct_from(job.lease_token))
        .values(values)
    )
    assert changed.rowcount == 1, f"job {job.id} was moved without its row being locked"
    write_event(connection, job.id, "state", {"state": after, "move": move, **(detail or {})})
    return after


def write_event(connection: Connection, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
    """The next event of a job whose row is locked, so that numbers have no gap and become visible in order."""
    number = connection.execute(
        update(jobs).where(jobs.c.id == job_id).values(last_event=jobs.c.last_event + 1).returning(jobs.c.last_event)
    ).scalar_one()
    event = {"job_id": job_id, "number": number, "at_ms": now_ms(), "kind": kind, "data": dict(data)}
    connection.execute(insert(job_events).values(event))


def taken(worker_id: str, token: str, lease_s: float) -> dict[str, Any]:
    """The columns that a claim writes."""
    return {
        "worker_id": worker_id,
        "lease_token": token,
        "lease_until_ms": in_seconds(lease_s),
        "claimed_ms": now_ms(),
        "started_ms": func.coalesce(jobs.c.started_ms, now_ms()),
        "attempt": jobs.c.attempt + 1,
    }


def _implied(job: JobRecord, move: Move, before: State, after: State) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if before.is_held and not after.is_held:
        # A lost worker ran at least until its lease did; what came after was not the job's time.
        until = job.lease_until_ms if move is Move.LOSE else now_ms()
        values |= {"lease_token": None, "lease_until_ms": None, "claimed_ms": None}
        values["ran_before_ms"] = jobs.c.ran_before_ms + until - job.claimed_ms
    if after is State.QUEUED:
        values |= {"queued_ms": now_ms(), "worker_id": None}
    if after.is_terminal:
        values |= {"finished_ms": now_ms()}
        values |= {"checkpoint_digest": None, "checkpoint_step": None, "checkpoint_engine_version": None}
    return values


# -- rows out ----------------------------------------------------------------------------------------------------------


def read_job(connection: Connection, job_id: str) -> JobRow:
    """Raises NotFound."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
    if row is None:
        raise NotFound(f"no job {job_id!r}")
    return job_rows(connection, [row])[0]


def job_rows(connection: Connection, rows: Sequence[JobRecord]) -> tuple[JobRow, ...]:
    tags: dict[str, list[str]] = {row.id: [] for row in rows}
    query = select(job_tags).where(job_tags.c.job_id.in_(tags)).order_by(job_tags.c.tag)
    for tag in connection.execute(query):
        tags[tag.job_id].append(tag.tag)
    return tuple(_job_row(row, tuple(tags[row.id])) for row in rows)


def _job_row(row: JobRecord, tags: tuple[str, ...]) -> JobRow:
    checkpoint = error = None
    if row.checkpoint_digest is not None:
        checkpoint = CheckpointRef(row.checkpoint_digest, row.checkpoint_step, row.checkpoint_engine_version)
    if row.error_code is not None:
        error = JobError(row.error_code, row.error_message, tuple(Fault(**fault) for fault in row.error_faults))
    return JobRow(
        id=row.id,
        kind=row.kind,
        state=State(row.state),
        user=row.owner,
        spec=row.spec,
        spec_sha256=row.spec_sha256,
        name=row.name,
        tags=tags,
        notes=row.notes,
        resource_class=row.resource_class,
        priority=row.priority,
        max_runtime_s=row.max_runtime_ms / 1000,
        max_queue_s=row.max_queue_ms / 1000,
        attempt=row.attempt,
        deaths=row.deaths,
        retry_of=row.retry_of,
        worker_id=row.worker_id,
        lease_until=moment_or_none(row.lease_until_ms),
        progress=row.progress,
        checkpoint=checkpoint,
        error=error,
        last_event=row.last_event,
        created_at=moment(row.created_ms),
        started_at=moment_or_none(row.started_ms),
        finished_at=moment_or_none(row.finished_ms),
    )


# -- rows in -----------------------------------------------------------------------------------------------------------


def insert_job(connection: Connection, job_id: str, values: Mapping[str, Any], tags: Iterable[str]) -> None:
    """A new queued job and its first event. values: what the state of a new job does not imply."""
    new = {
        "id": job_id,
        "state": State.QUEUED,
        "attempt": 0,
        "deaths": 0,
        "ran_before_ms": 0,
        "last_event": 0,
        "last_log": 0,
        "created_ms": now_ms(),
        "queued_ms": now_ms(),
    }
    connection.execute(insert(jobs).values({**values, **new}))
    if labels := [{"job_id": job_id, "tag": tag} for tag in dict.fromkeys(tags)]:
        connection.execute(insert(job_tags), labels)
    write_event(connection, job_id, "state", {"state": State.QUEUED, "move": "submit"})


def limits(max_runtime_s: float, max_queue_s: float) -> dict[str, int]:
    return {"max_runtime_ms": milliseconds(max_runtime_s), "max_queue_ms": milliseconds(max_queue_s)}
