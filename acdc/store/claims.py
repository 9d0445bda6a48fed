"""Jobs as workers see them: claim, beat, keep, finish. Every write here is fenced by the claim's token.

All but `claim` and `heartbeat` raise Conflict when the claim is no longer good. Then ask `heartbeat`: `lost` means
stop and drop everything, `cancel` means that the job is being cancelled and waits for `finish_cancelled`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from acdc.errors import Fault
from acdc.store.database import Database
from acdc.store.rows import Beat, CheckpointRef, Claim, JobRow, NewResult

LEASE_S = 30.0
MAX_DEATHS = 3  # of the engine child, in a row, without a new checkpoint


class Claims:
    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, worker_id: str, resource_class: str, *, lease_s: float = LEASE_S) -> Claim | None:
        """The best queued job of the class: highest priority, then the user with the fewest held jobs, then the oldest."""
        raise NotImplementedError

    def heartbeat(self, claim: Claim, progress: Mapping[str, Any] | None = None) -> Beat:
        """Extend the lease by `claim.lease_s` from now, also one that has run out and that nobody has taken.

        progress: replaces what is stored; a change of it is an event.
        """
        raise NotImplementedError

    def add_log(self, claim: Claim, lines: Iterable[str]) -> None:
        """Append to the job's log; a line of more than 10,000 characters is cut."""
        raise NotImplementedError

    def save_checkpoint(self, claim: Claim, checkpoint: CheckpointRef) -> None:
        """Point at the job's latest checkpoint, already in the artefact store. A new one clears the count of deaths."""
        raise NotImplementedError

    def release(self, claim: Claim) -> JobRow:
        """Give the job back, the worker being drained: the checkpoint is kept and the attempt not counted."""
        raise NotImplementedError

    def child_died(self, claim: Claim, reason: str) -> JobRow:
        """The engine child ended without an answer: queued again, or failed `poison` the third time in a row."""
        raise NotImplementedError

    def succeed(self, claim: Claim, results: Sequence[NewResult]) -> JobRow:
        """Store the results and end the job, in one transaction. Raises Conflict while cancelling."""
        raise NotImplementedError

    def fail(self, claim: Claim, code: str, message: str, faults: Sequence[Fault] = ()) -> JobRow:
        """End the job as failed; as cancelled if it was being cancelled. code: an error's `job_code`."""
        raise NotImplementedError

    def finish_cancelled(self, claim: Claim) -> JobRow:
        """End a job that is being cancelled. Raises Conflict when nobody asked for that."""
        raise NotImplementedError
