"""Jobs as their users see them: submit, read, cancel, retry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, exists, func, select
from sqlalchemy.sql.selectable import Exists

from acdc.errors import Conflict, IdempotencyConflict, NotFound
from acdc.spec import JobSpec
from acdc.store.clock import milliseconds, moment, now_ms
from acdc.store.columns import refuse_unstorable
from acdc.store.database import Database, insert_or
from acdc.store.ids import new_id
from acdc.store.paging import check_limit, newest_first
from acdc.store.rows import EventRow, JobFilter, JobRow, LogRow, Page, ResultRow, Submitted
from acdc.store.states import Move, State
from acdc.store.tables import idempotency_keys, job_events, job_logs, job_tags, jobs, results
from acdc.store.transitions import insert_job, job_rows, limits, lock_job, move_job, read_job

DEFAULT_CLASS = "default"
KEY_LIFE_S = 24 * 3600.0
EVERY_JOB = JobFilter()
_COPIED_BY_RETRY = (
    *("kind", "spec", "spec_sha256", "name", "notes", "resource_class", "priority"),
    *("max_runtime_ms", "max_queue_ms"),
)


class Jobs:
    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(
        self,
        spec: JobSpec,
        *,
        user: str,
        resource_class: str = DEFAULT_CLASS,
        priority: int = 0,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
    ) -> Submitted:
        """Queue a job; kind, name, tags, notes and limits are the spec's.

        An idempotency key lives for 24 h, per user, in the job's own transaction. body_hash: what the key stands for,
        by default `spec.sha256`. Raises IdempotencyConflict for the same key with another body, SpecError for text that
        no database can hold.
        """
        data = json.loads(spec.canonical_json)
        refuse_unstorable({"spec": data, "user": user, "idempotency key": idempotency_key})
        job_id, sha256 = new_id("job"), spec.sha256
        values = {
            "owner": user,
            "kind": spec.kind,
            "spec": data,
            "spec_sha256": sha256,
            "name": spec.name,
            "notes": spec.notes,
            "resource_class": resource_class,
            "priority": priority,
            **limits(spec.limits.max_runtime_s, spec.limits.max_queue_s),
        }
        with self._database.write() as connection:
            if idempotency_key is not None:
                known = _take_key(connection, user, idempotency_key, body_hash or sha256, job_id)
                if known is not None:
                    return Submitted(read_job(connection, known), replayed=True)
            insert_job(connection, job_id, values, spec.tags)
            return Submitted(read_job(connection, job_id), replayed=False)

    def get(self, job_id: str) -> JobRow:
        """Raises NotFound."""
        with self._database.read() as connection:
            return read_job(connection, job_id)

    def list(self, filter: JobFilter = EVERY_JOB, *, cursor: str | None = None, limit: int = 50) -> Page[JobRow]:
        """Newest first. A job that was there before page one appears exactly once. Raises SpecError for a cursor that
        is none."""
        query = select(jobs).where(*_conditions(filter))
        with self._database.read() as connection:
            rows, next_cursor = newest_first(connection, query, jobs, cursor, limit)
            return Page(job_rows(connection, rows), next_cursor)

    def counts(self) -> Mapping[State, int]:
        """Jobs in each state, zeros too."""
        with self._database.read() as connection:
            query = select(jobs.c.state, func.count().label("n")).group_by(jobs.c.state)
            found: dict[str, int] = {row.state: row.n for row in connection.execute(query)}
        return {state: found.get(state, 0) for state in State}

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> tuple[EventRow, ...]:
        """Events numbered above `after`, in order. Raises NotFound."""
        check_limit(limit)
        query = select(job_events).where(job_events.c.job_id == job_id, job_events.c.number > after)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(job_events.c.number).limit(limit)).all()
            _must_exist(connection, job_id, rows)
        return tuple(EventRow(row.number, moment(row.at_ms), row.kind, row.data) for row in rows)

    def logs(self, job_id: str, *, after: int = 0, limit: int = 1000) -> tuple[LogRow, ...]:
        """Log lines numbered above `after`, in order. Raises NotFound."""
        check_limit(limit)
        query = select(job_logs).where(job_logs.c.job_id == job_id, job_logs.c.number > after)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(job_logs.c.number).limit(limit)).all()
            _must_exist(connection, job_id, rows)
        return tuple(LogRow(row.number, moment(row.at_ms), row.line) for row in rows)

    def results(self, job_id: str) -> tuple[ResultRow, ...]:
        """By key; empty until the job has succeeded. Raises NotFound."""
        query = select(results).where(results.c.job_id == job_id).order_by(results.c.result_key)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            _must_exist(connection, job_id, rows)
        return tuple(
            ResultRow(row.job_id, row.result_key, row.kind, row.circuit_id, row.evaluation_id, row.map_id, row.data)
            for row in rows
        )

    def cancel(self, job_id: str) -> JobRow:
        """Ask for the end of a job: queued -> cancelled, running -> cancelling; cancelling and cancelled stay so.

        Raises Conflict for one that succeeded or failed, NotFound.
        """
        with self._database.write() as connection:
            job = lock_job(connection, job_id)
            if job.state not in (State.CANCELLING, State.CANCELLED):
                move_job(connection, job, Move.CANCEL)
            return read_job(connection, job_id)

    def retry(self, job_id: str, *, user: str | None = None, idempotency_key: str | None = None) -> Submitted:
        """A new job with the same spec (`retry_of`), for a job that failed or was cancelled. user: its owner, by
        default the old one's. idempotency_key: as for `submit`; it stands for retrying this job.

        Raises Conflict for any other state, NotFound, IdempotencyConflict.
        """
        refuse_unstorable({"idempotency key": idempotency_key})
        with self._database.write() as connection:
            old, new = lock_job(connection, job_id), new_id("job")
            owner = user or old.owner
            if idempotency_key is not None:
                known = _take_key(connection, owner, idempotency_key, f"retry of {job_id}", new)
                if known is not None:
                    return Submitted(read_job(connection, known), replayed=True)
            if old.state not in (State.FAILED, State.CANCELLED):
                raise Conflict(f"job {job_id} is {old.state}: only a failed or cancelled job can be retried")
            values = {column: old._mapping[column] for column in _COPIED_BY_RETRY}
            values |= {"owner": owner, "retry_of": job_id}
            insert_job(connection, new, values, read_job(connection, job_id).tags)
            return Submitted(read_job(connection, new), replayed=False)


def drop_expired_keys(connection: Connection, *which: ColumnElement[bool]) -> None:
    connection.execute(
        delete(idempotency_keys).where(idempotency_keys.c.created_ms < now_ms() - milliseconds(KEY_LIFE_S), *which)
    )


def _take_key(connection: Connection, user: str, key: str, body_hash: str, job_id: str) -> str | None:
    """None if the key is now `job_id`'s, else the job that it made before. Raises IdempotencyConflict.

    Of two requests at once the second waits here until the first one's transaction has ended.
    """
    mine = (idempotency_keys.c.owner == user, idempotency_keys.c.key == key)
    drop_expired_keys(connection, *mine)
    new = {"owner": user, "key": key, "body_hash": body_hash, "job_id": job_id, "created_ms": now_ms()}
    insertion = insert_or(connection, idempotency_keys).values(new).on_conflict_do_nothing()
    if connection.execute(insertion.returning(idempotency_keys.c.key)).first() is not None:
        return None
    known = connection.execute(select(idempotency_keys).where(*mine)).one()
    if known.body_hash != body_hash:
        raise IdempotencyConflict(
            f"idempotency key {key!r} was used for another request, which made job {known.job_id}; use a new key"
        )
    return str(known.job_id)


def _conditions(filter: JobFilter) -> list[ColumnElement[bool] | Exists]:
    equal = {"owner": filter.user, "kind": filter.kind, "resource_class": filter.resource_class}
    conditions: list[ColumnElement[bool] | Exists] = [jobs.c[k] == v for k, v in equal.items() if v is not None]
    if filter.states:
        conditions.append(jobs.c.state.in_(filter.states))
    for tag in filter.tags:
        conditions.append(exists().where(job_tags.c.job_id == jobs.c.id, job_tags.c.tag == tag))
    return conditions


def _must_exist(connection: Connection, job_id: str, rows: Sequence[Row[Any]]) -> None:
    """Raises NotFound; rows that were found are proof enough."""
    if not rows and connection.execute(select(jobs.c.id).where(jobs.c.id == job_id)).first() is None:
        raise NotFound(f"no job {job_id!r}")
