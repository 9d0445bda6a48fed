"""Jobs as workers see them: claim, beat, keep, finish. Every write here is fenced by the claim's token.

All but `claim`, `heartbeat` and `look` raise Conflict when the claim is no longer good. Then ask `heartbeat`: `lost`
means stop and drop everything, `cancel` means that the job is being cancelled and waits for `finish_cancelled`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, func, insert, select, update

from acdc.errors import Fault
from acdc.store.clock import in_seconds, now_ms
from acdc.store.columns import dump_json, storable
from acdc.store.database import Database
from acdc.store.ids import new_id
from acdc.store.results import insert_results
from acdc.store.rows import Beat, CheckpointRef, Claim, JobError, JobRow, NewResult
from acdc.store.states import HELD, Move, State, target
from acdc.store.tables import job_logs, jobs
from acdc.store.transitions import lock_held, lock_job, lock_own, move_job, read_job, taken, write_event

LEASE_S = 30.0
MAX_DEATHS = 3  # of the engine child, in a row, without a new checkpoint
MAX_LINE = 10_000  # characters


class Claims:
    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, worker_id: str, resource_class: str, *, lease_s: float = LEASE_S) -> Claim | None:
        """The best queued job of the class, None where there is none.

        Highest priority first, then the user with the fewest held jobs in the class, then the oldest.
        """
        token = new_id("lease")
        with self._database.write() as connection:
            job_id = connection.execute(_best_queued(resource_class)).scalar()
            if job_id is None:
                return None
            job = lock_job(connection, job_id)
            detail = {"worker": worker_id, "attempt": job.attempt + 1}
            move_job(connection, job, Move.CLAIM, changes=taken(worker_id, token, lease_s), detail=detail)
            return Claim(read_job(connection, job.id), token, lease_s)

    def heartbeat(self, claim: Claim, progress: Mapping[str, Any] | None = None) -> Beat:
        """Extend the lease by `claim.lease_s` from now, also one that has run out and that nobody has taken.

        progress: replaces what is stored; a change of it is an event.
        """
        with self._database.write() as connection:
            job = lock_held(connection, claim)
            if job is None:
                return Beat(cancel=False, lost=True)
            values: dict[str, Any] = {"lease_until_ms": in_seconds(claim.lease_s)}
            if progress is not None and _as_read(progress) != job.progress:
                values["progress"] = dict(progress)
                write_event(connection, job.id, "progress", progress)
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(values))
            return Beat(cancel=job.state == State.CANCELLING, lost=False)

    def look(self, claim: Claim) -> Beat:
        """What `heartbeat` would answer; writes nothing, so it may be asked often."""
        query = select(jobs.c.state).where(
            jobs.c.id == claim.job.id, jobs.c.lease_token == claim.token, jobs.c.state.in_(HELD)
        )
        with self._database.read() as connection:
            state = connection.execute(query).scalar()
        return Beat(cancel=state == State.CANCELLING, lost=state is None)

    def add_log(self, claim: Claim, lines: Iterable[str]) -> None:
        """Append to the job's log; a line of more than 10,000 characters is cut."""
        with self._database.write() as connection:
            job = lock_own(connection, claim)
            rows = [
                {"job_id": job.id, "number": number, "line": line[:MAX_LINE]}
                for number, line in enumerate(lines, job.last_log + 1)
            ]
            if rows:
                connection.execute(insert(job_logs).values(at_ms=now_ms()), rows)
                connection.execute(update(jobs).where(jobs.c.id == job.id).values(last_log=rows[-1]["number"]))

    def save_checkpoint(self, claim: Claim, checkpoint: CheckpointRef) -> None:
        """Point at the job's latest checkpoint, already in the artefact store. A new one clears the count of deaths."""
        with self._database.write() as connection:
            job = lock_own(connection, claim)
            values: dict[str, Any] = {
                "checkpoint_digest": checkpoint.digest,
                "checkpoint_step": checkpoint.step,
                "checkpoint_engine_version": checkpoint.engine_version,
            }
            if checkpoint.digest != job.checkpoint_digest:
                values["deaths"] = 0
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(values))

    def release(self, claim: Claim) -> JobRow:
        """Give the job back, the worker being drained: the checkpoint is kept and the attempt not counted."""
        return self._end(claim, Move.RELEASE, changes={"attempt": jobs.c.attempt - 1})

    def child_died(self, claim: Claim, reason: str) -> JobRow:
        """The engine child ended without an answer: queued again, or failed `poison` the third time in a row."""
        with self._database.write() as connection:
            job = lock_own(connection, claim)
            deaths = job.deaths + 1
            move = Move.POISON if deaths >= MAX_DEATHS else Move.CHILD_DIED
            error = JobError("poison", f"the engine died {deaths} times without a new checkpoint, last: {reason}")
            detail = {"deaths": deaths, "reason": reason}
            move_job(connection, job, move, changes={"deaths": deaths}, error=error, detail=detail)
            return read_job(connection, job.id)

    def succeed(self, claim: Claim, results: Sequence[NewResult]) -> JobRow:
        """Store the results and end the job, in one transaction. Raises Conflict while cancelling, NotFound when a
        circuit that was evaluated has been deleted."""
        with self._database.write() as connection:
            job = lock_own(connection, claim)
            target(job.id, State(job.state), Move.SUCCEED)  # refuse before anything is written
            insert_results(connection, read_job(connection, job.id), results)
            move_job(connection, job, Move.SUCCEED, detail={"results": [result.key for result in results]})
            return read_job(connection, job.id)

    def fail(self, claim: Claim, code: str, message: str, faults: Sequence[Fault] = ()) -> JobRow:
        """End the job as failed; as cancelled if it was being cancelled. code: an error's `job_code`."""
        return self._end(claim, Move.FAIL, error=JobError(code, message, tuple(faults)))

    def finish_cancelled(self, claim: Claim) -> JobRow:
        """End a job that is being cancelled. Raises Conflict when nobody asked for that."""
        return self._end(claim, Move.FINISH_CANCELLED)

    def _end(
        self, claim: Claim, move: Move, *, changes: Mapping[str, Any] | None = None, error: JobError | None = None
    ) -> JobRow:
        with self._database.write() as connection:
            job = lock_own(connection, claim)
            move_job(connection, job, move, changes=changes, error=error)
            return read_job(connection, job.id)


def _best_queued(resource_class: str) -> Select[Any]:
    held = (
        select(jobs.c.owner, func.count().label("n"))
        .where(jobs.c.resource_class == resource_class, jobs.c.state.in_(HELD))
        .group_by(jobs.c.owner)
        .subquery()
    )
    return (
        select(jobs.c.id)
        .outerjoin(held, held.c.owner == jobs.c.owner)
        .where(
            jobs.c.state == State.QUEUED,
            jobs.c.resource_class == resource_class,
            jobs.c.queued_ms + jobs.c.max_queue_ms > now_ms(),  # the rest is the reaper's
        )
        .order_by(jobs.c.priority.desc(), func.coalesce(held.c.n, 0), jobs.c.created_ms, jobs.c.id)
        .limit(1)
        .with_for_update(of=jobs, skip_locked=True)
    )


def _as_read(document: Mapping[str, Any]) -> Any:
    """A document as the database will give it back."""
    return json.loads(storable(dump_json(document)))
