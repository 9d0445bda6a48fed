"""The state table, move by move, then in long random walks against a model."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy.exc import IntegrityError
from store_samples import claimed, job_in, let_lease_run_out, move_by_name, sql, submit

from acdc.errors import Conflict
from acdc.store import MAX_DEATHS, CheckpointRef, Claim, Move, State, Store
from acdc.store.ids import new_id
from acdc.store.states import HELD, TERMINAL, TRANSITIONS


def test_table_leads_out_of_every_state_but_the_terminal_ones() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State) - TERMINAL
    assert {state for (state, move) in TRANSITIONS if move is Move.SUCCEED} == {State.RUNNING}


@pytest.mark.parametrize("state", State)
def test_every_move_does_what_the_table_says_or_nothing(store: Store, state: State) -> None:
    for move in Move:
        job, claim = job_in(store, state)
        stranger = Claim(job, "lease_nobody", 30.0)
        expected = TRANSITIONS.get((state, move), state)
        with contextlib.suppress(Conflict):
            move_by_name(store, job, claim or stranger)[move]()
        after = store.jobs.get(job.id)
        assert (move, after.state) == (move, expected)
        assert after.last_event == job.last_event + ((state, move) in TRANSITIONS), move
        events = store.jobs.events(job.id)
        assert [event.number for event in events] == list(range(1, after.last_event + 1))
        assert events[-1].data["state"] == expected
        # leave nothing that the next move could take for its own
        sql(store, "UPDATE jobs SET resource_class = 'done with' WHERE id = :id", id=job.id)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_illegal_moves_of_an_ended_job_raise_conflict(store: Store, state: State) -> None:
    job, claim = job_in(store, state)
    assert claim is not None
    by_name = move_by_name(store, job, claim)
    fenced = {Move.SUCCEED, Move.FAIL, Move.FINISH_CANCELLED, Move.RELEASE, Move.CHILD_DIED, Move.POISON}
    for move in fenced:
        with pytest.raises(Conflict, match=job.id):
            by_name[move]()


def test_success_is_refused_while_cancelling_and_nothing_of_it_is_kept(store: Store) -> None:
    claim = claimed(store)
    store.jobs.cancel(claim.job.id)
    with pytest.raises(Conflict, match="cancelling: succeed is refused"):
        store.claims.succeed(claim, [])
    assert store.jobs.results(claim.job.id) == ()
    assert store.claims.finish_cancelled(claim).state is State.CANCELLED


def test_finish_cancelled_needs_somebody_who_asked(store: Store) -> None:
    with pytest.raises(Conflict, match="running: finish_cancelled is refused"):
        store.claims.finish_cancelled(claimed(store))


def test_cancelling_twice_is_as_good_as_once(store: Store) -> None:
    claim = claimed(store)
    first = store.jobs.cancel(claim.job.id)
    assert store.jobs.cancel(claim.job.id) == first
    ended = store.claims.finish_cancelled(claim)
    assert store.jobs.cancel(claim.job.id) == ended


@pytest.mark.parametrize(
    "change",
    ["state = 'lost'", "state = 'running'", "state = 'failed'", "error_code = 'internal'", "lease_token = 'x'"],
)
def test_database_itself_refuses_impossible_rows(store: Store, change: str) -> None:
    job = submit(store)
    with pytest.raises(IntegrityError, match=r"(?i)check constraint"):
        sql(store, f"UPDATE jobs SET {change} WHERE id = :id", id=job.id)


class Walk(RuleBasedStateMachine):
    """One job, two workers, a user and a reaper, in any order; beside it a model of a few lines."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.job = submit(store, resource_class=new_id("class"))
        self.state, self.attempt, self.deaths, self.step, self.n_events = State.QUEUED, 0, 0, None, 1
        self.claims: list[Claim] = []  # the last one may be good, the others are stale

    def _moves(self, to: State) -> None:
        self.state, self.n_events = to, self.n_events + 1
        if to in TERMINAL:
            self.step = None

    @rule()
    def claim(self) -> None:
        claim = self.store.claims.claim("worker", self.job.resource_class)
        assert (claim is not None) == (self.state is State.QUEUED)
        if claim is not None:
            self.claims.append(claim)
            self.attempt += 1
            self._moves(State.RUNNING)

    @rule()
    def cancel(self) -> None:
        try:
            self.store.jobs.cancel(self.job.id)
        except Conflict:
            assert self.state in (State.SUCCEEDED, State.FAILED)
        else:
            if (self.state, Move.CANCEL) in TRANSITIONS:
                self._moves(TRANSITIONS[self.state, Move.CANCEL])

    @precondition(lambda self: self.claims)
    @rule(which=st.sampled_from([0, 0, 0, 1]), n=st.integers(0, 3))
    def beat(self, which: int, n: int) -> None:
        claim = self.claims[-1 - which % len(self.claims)]
        before = self.store.jobs.get(self.job.id).progress
        beat = self.store.claims.heartbeat(claim, {"n": n})
        assert beat.lost == (claim is not self.claims[-1] or self.state not in HELD)
        assert beat.cancel == (not beat.lost and self.state is State.CANCELLING)
        self.n_events += not beat.lost and before != {"n": n}

    @precondition(lambda self: self.claims)
    @rule(which=st.sampled_from([0, 0, 0, 1]), step=st.integers(1, 4))
    def checkpoint(self, which: int, step: int) -> None:
        good = which % len(self.claims) == 0 and self.state in HELD
        with contextlib.nullcontext() if good else pytest.raises(Conflict):
            ref = CheckpointRef(f"digest {step}", step, 1)
            self.store.claims.save_checkpoint(self.claims[-1 - which % len(self.claims)], ref)
        if good:
            self.deaths = self.deaths if step == self.step else 0
            self.step = step

    @precondition(lambda self: self.claims)
    @rule(
        which=st.sampled_from([0, 0, 0, 1]),
        move=st.sampled_from([Move.SUCCEED, Move.FAIL, Move.RELEASE, Move.FINISH_CANCELLED, Move.CHILD_DIED]),
    )
    def finish(self, which: int, move: Move) -> None:
        claim = self.claims[-1 - which % len(self.claims)]
        good = claim is self.claims[-1] and self.state in HELD and (self.state, move) in TRANSITIONS
        with contextlib.nullcontext() if good else pytest.raises(Conflict):
            move_by_name(self.store, self.job, claim)[move]()
        if not good:
            return
        self.attempt -= move is Move.RELEASE
        self.deaths += move is Move.CHILD_DIED
        poisoned = move is Move.CHILD_DIED and self.deaths == MAX_DEATHS
        self._moves(TRANSITIONS[self.state, Move.POISON if poisoned else move])

    @rule()
    def lose(self) -> None:
        let_lease_run_out(self.store, self.job.id)
        self.store.reaper.sweep(sweep_s=3600)
        if self.state in HELD:
            self._moves(TRANSITIONS[self.state, Move.LOSE])

    @invariant()
    def agrees_with_the_model(self) -> None:
        job = self.store.jobs.get(self.job.id)
        assert (job.state, job.attempt, job.deaths) == (self.state, self.attempt, self.deaths)
        assert (job.checkpoint and job.checkpoint.step) == self.step
        assert job.last_event == self.n_events
        assert (job.finished_at is not None) == (self.state in TERMINAL)

    def teardown(self) -> None:
        events = self.store.jobs.events(self.job.id)
        assert [event.number for event in events] == list(range(1, self.n_events + 1))
        ends = [event.number for event in events if event.data.get("state") in TERMINAL]
        assert ends == [self.n_events] * (self.state in TERMINAL), "one end, and nothing after it"


def test_any_order_of_moves_agrees_with_the_model(store: Store) -> None:
    run_state_machine_as_test(
        lambda: Walk(store),
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
