"""Which moves a job may make: the one table of them.

    queued ──claim──▶ running ──succeed──▶ succeeded
      │  │               │ │ ──fail, poison, run_out_of_time──▶ failed
      │  │               │ └──release, lose, child_died──▶ queued
      │  │               └──cancel──▶ cancelling ─finish_cancelled, fail, poison, release, lose, child_died──▶ cancelled
      │  └──run_out_of_time──▶ failed
      └──cancel──▶ cancelled

Whatever ends a job that is being cancelled ends it as cancelled; success alone is refused. What is not in the table is
an illegal move and raises `Conflict`.
"""

from __future__ import annotations

from enum import StrEnum

from acdc.errors import Conflict


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL

    @property
    def is_held(self) -> bool:
        """A worker holds the job: it has a lease."""
        return self in HELD


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
HELD = frozenset({State.RUNNING, State.CANCELLING})


class Move(StrEnum):
    CLAIM = "claim"
    CANCEL = "cancel"
    SUCCEED = "succeed"
    FAIL = "fail"
    FINISH_CANCELLED = "finish_cancelled"
    RELEASE = "release"  # the worker is drained
    LOSE = "lose"  # the lease ran out
    CHILD_DIED = "child_died"
    POISON = "poison"  # the child died too often without a new checkpoint
    RUN_OUT_OF_TIME = "run_out_of_time"


TRANSITIONS: dict[tuple[State, Move], State] = {
    (State.QUEUED, Move.CLAIM): State.RUNNING,
    (State.QUEUED, Move.CANCEL): State.CANCELLED,
    (State.QUEUED, Move.RUN_OUT_OF_TIME): State.FAILED,
    (State.RUNNING, Move.CANCEL): State.CANCELLING,
    (State.RUNNING, Move.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Move.FAIL): State.FAILED,
    (State.RUNNING, Move.RELEASE): State.QUEUED,
    (State.RUNNING, Move.LOSE): State.QUEUED,
    (State.RUNNING, Move.CHILD_DIED): State.QUEUED,
    (State.RUNNING, Move.POISON): State.FAILED,
    (State.RUNNING, Move.RUN_OUT_OF_TIME): State.FAILED,
    (State.CANCELLING, Move.FINISH_CANCELLED): State.CANCELLED,
    (State.CANCELLING, Move.FAIL): State.CANCELLED,
    (State.CANCELLING, Move.RELEASE): State.CANCELLED,
    (State.CANCELLING, Move.LOSE): State.CANCELLED,
    (State.CANCELLING, Move.CHILD_DIED): State.CANCELLED,
    (State.CANCELLING, Move.POISON): State.CANCELLED,
}


def target(job_id: str, state: State, move: Move) -> State:
    """Where `move` takes a job that is in `state`. Raises Conflict when the table has no such move."""
    try:
        return TRANSITIONS[state, move]
    except KeyError:
        allowed = sorted(str(m) for s, m in TRANSITIONS if s == state) or ["nothing: it has ended"]
        raise Conflict(f"job {job_id} is {state}: {move} is refused; possible now: {', '.join(allowed)}") from None
