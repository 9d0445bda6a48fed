"""Jobs as their users see them: submit, read, cancel, retry."""

from __future__ import annotations

from collections.abc import Mapping

from acdc.spec import JobSpec
from acdc.store.database import Database
from acdc.store.rows import EventRow, JobFilter, JobRow, LogRow, Page, ResultRow, Submitted
from acdc.store.states import State

DEFAULT_CLASS = "default"


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
        raise NotImplementedError

    def get(self, job_id: str) -> JobRow:
        """Raises NotFound."""
        raise NotImplementedError

    def list(self, filter: JobFilter = JobFilter(), *, cursor: str | None = None, limit: int = 50) -> Page[JobRow]:
        """Newest first. A job that was there before page one appears exactly once. Raises SpecError for a cursor that
        is none."""
        raise NotImplementedError

    def counts(self) -> Mapping[State, int]:
        """Jobs in each state, zeros too."""
        raise NotImplementedError

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> tuple[EventRow, ...]:
        """Events numbered above `after`, in order. Raises NotFound."""
        raise NotImplementedError

    def logs(self, job_id: str, *, after: int = 0, limit: int = 1000) -> tuple[LogRow, ...]:
        """Log lines numbered above `after`, in order. Raises NotFound."""
        raise NotImplementedError

    def results(self, job_id: str) -> tuple[ResultRow, ...]:
        """By key; empty until the job has succeeded. Raises NotFound."""
        raise NotImplementedError

    def cancel(self, job_id: str) -> JobRow:
        """Ask for the end of a job: queued -> cancelled, running -> cancelling; cancelling and cancelled stay as they are.

        Raises Conflict for one that succeeded or failed, NotFound.
        """
        raise NotImplementedError

    def retry(self, job_id: str, *, user: str | None = None) -> JobRow:
        """A new job with the same spec (`retry_of`), for a job that failed or was cancelled. user: its owner, by default
        the old one's. Raises Conflict for any other state, NotFound."""
        raise NotImplementedError
