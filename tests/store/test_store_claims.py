"""Who gets a job, who may write to it, and what becomes of those who may not any more."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from store_samples import all_jobs, circuit, claimed, let_lease_run_out, sql, submit

from acdc.errors import Conflict
from acdc.store import Beat, CheckpointRef, NewCircuit, NewTable, State, Store
from acdc.store.transitions import lock_job


def drain(url: str, worker_id: str, resource_class: str) -> list[str]:
    """Claim and finish until nothing is left; what was claimed."""
    mine = []
    with Store.open(url) as store:
        while claim := store.claims.claim(worker_id, resource_class):
            mine.append(claim.job.id)
            store.claims.succeed(claim, [NewTable("who", {"worker": worker_id})])
    return mine


def test_threads_claim_each_job_exactly_once(store: Store, database_url: str) -> None:
    submitted = {submit(store).id for _ in range(60)}
    with ThreadPoolExecutor(8) as threads:
        claims = list(threads.map(lambda i: drain(database_url, f"worker-{i}", "default"), range(8)))
    assert sorted(job for mine in claims for job in mine) == sorted(submitted)
    assert {(job.state, job.attempt) for job in all_jobs(store)} == {(State.SUCCEEDED, 1)}


def test_processes_claim_each_job_exactly_once(store: Store, database_url: str) -> None:
    submitted = {submit(store).id for _ in range(40)}
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        arguments = [(database_url, f"worker-{i}", "default") for i in range(2)]
        claims = processes.starmap(drain, arguments)
    assert sorted(job for mine in claims for job in mine) == sorted(submitted)
    assert {len(store.jobs.results(job)) for job in submitted} == {1}


def test_claim_takes_the_oldest_of_its_class(store: Store) -> None:
    submit(store, resource_class="gpu")
    jobs = [submit(store) for _ in range(3)]
    assert [claim.job.id for _ in jobs if (claim := store.claims.claim("w", "default"))] == [job.id for job in jobs]
    assert store.claims.claim("w", "default") is None


@pytest.mark.parametrize("backend", ["postgresql"])
def test_claim_does_not_wait_for_a_job_that_somebody_is_writing(store: Store, backend: str) -> None:
    busy, free = submit(store), submit(store)
    with store._database.write() as connection, ThreadPoolExecutor(1) as thread:
        lock_job(connection, busy.id)
        claim = thread.submit(store.claims.claim, "w", "default").result(timeout=20)
    assert claim is not None
    assert claim.job.id == free.id


def test_priority_goes_before_age(store: Store) -> None:
    submit(store)
    urgent = submit(store, priority=5)
    claim = store.claims.claim("w", "default")
    assert claim is not None
    assert claim.job.id == urgent.id


def test_user_with_fewer_held_jobs_goes_first(store: Store) -> None:
    greedy = [submit(store, user="ada") for _ in range(3)]
    modest = submit(store, user="bob")
    order = [claim.job.id for _ in range(4) if (claim := store.claims.claim("w", "default"))]
    assert order == [greedy[0].id, modest.id, greedy[1].id, greedy[2].id]


def test_claim_carries_what_the_worker_needs(store: Store) -> None:
    job = submit(store, fields={"name": "mine", "seed": 7})
    claim = store.claims.claim("worker-1", "default", lease_s=12.0)
    assert claim is not None
    assert (claim.job.spec["seed"], claim.job.attempt, claim.job.worker_id) == (7, 1, "worker-1")
    assert claim.job.state is State.RUNNING
    assert claim.job.started_at is not None
    assert claim.job.lease_until is not None
    assert 11 < (claim.job.lease_until - claim.job.started_at).total_seconds() < 13
    assert job.lease_until is None


def test_lost_worker_changes_nothing_after_another_took_the_job(store: Store) -> None:
    old = claimed(store)
    let_lease_run_out(store, old.job.id)
    assert store.reaper.sweep().requeued == (old.job.id,)
    new = store.claims.claim("worker-2", old.job.resource_class)
    assert new is not None
    store.claims.save_checkpoint(new, CheckpointRef("new", 3, 1))
    before = everything(store)
    assert store.claims.heartbeat(old, {"step": 99}).lost
    for write in (
        lambda: store.claims.add_log(old, ["from the dead"]),
        lambda: store.claims.save_checkpoint(old, CheckpointRef("old", 2, 1)),
        lambda: store.claims.succeed(old, [NewCircuit("circuit", circuit(), "c" * 64)]),
        lambda: store.claims.fail(old, "internal", "late"),
        lambda: store.claims.child_died(old, "late"),
        lambda: store.claims.release(old),
        lambda: store.claims.finish_cancelled(old),
    ):
        with pytest.raises(Conflict, match="no longer held"):
            write()
    assert everything(store) == before
    assert store.claims.succeed(new, []).state is State.SUCCEEDED


def everything(store: Store) -> dict[str, list[object]]:
    tables = ("jobs", "job_events", "job_logs", "results", "circuits", "circuit_edges", "models")
    return {table: sorted(map(repr, sql(store, f"SELECT * FROM {table}"))) for table in tables}


def test_heartbeat_revives_a_lease_that_ran_out_and_that_nobody_took(store: Store) -> None:
    claim = claimed(store)
    let_lease_run_out(store, claim.job.id)
    assert not store.claims.heartbeat(claim).lost
    assert store.reaper.sweep().requeued == ()
    assert store.claims.succeed(claim, []).state is State.SUCCEEDED


def test_heartbeat_brings_the_wish_to_cancel(store: Store) -> None:
    claim = claimed(store)
    assert not store.claims.heartbeat(claim).cancel
    store.jobs.cancel(claim.job.id)
    assert store.claims.heartbeat(claim).cancel


def test_only_changed_progress_is_an_event(store: Store) -> None:
    claim = claimed(store)
    for progress in ({"phase": "search", "done": (1, 2)}, {"phase": "search", "done": (1, 2)}, None, {"done": 3}):
        store.claims.heartbeat(claim, progress)
    events = [event.data for event in store.jobs.events(claim.job.id) if event.kind == "progress"]
    assert events == [{"phase": "search", "done": [1, 2]}, {"done": 3}]
    assert store.jobs.get(claim.job.id).progress == {"done": 3}


def test_lease_does_not_depend_on_this_machines_clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    true_time, true_ns = time.time, time.time_ns
    for off in (-3600, 3600):
        monkeypatch.setattr(time, "time", lambda off=off: true_time() + off)
        monkeypatch.setattr(time, "time_ns", lambda off=off: true_ns() + off * 10**9)
        claim = claimed(store)
        assert store.claims.heartbeat(claim).lost is False
        until = store.jobs.get(claim.job.id).lease_until
        assert until is not None
        assert abs(until.timestamp() - true_time() - 30) < 10
        assert store.reaper.sweep().requeued == ()
        store.claims.succeed(claim, [])


def test_database_tells_the_time(store: Store) -> None:
    job = submit(store)
    assert abs((job.created_at - datetime.now(UTC)).total_seconds()) < 5


def test_drained_worker_gives_back_job_checkpoint_and_attempt(store: Store) -> None:
    claim = claimed(store)
    store.claims.save_checkpoint(claim, CheckpointRef("digest", 4, 1))
    back = store.claims.release(claim)
    assert (back.state, back.attempt, back.worker_id) == (State.QUEUED, 0, None)
    again = store.claims.claim("worker-2", claim.job.resource_class)
    assert again is not None
    assert (again.job.checkpoint, again.job.attempt) == (CheckpointRef("digest", 4, 1), 1)


def test_job_is_poison_after_three_deaths_without_a_new_checkpoint(store: Store) -> None:
    claim = claimed(store)
    for deaths in (1, 2):
        assert store.claims.child_died(claim, "signal 11").deaths == deaths
        claim = store.claims.claim("w", claim.job.resource_class)  # type: ignore[assignment]
    job = store.claims.child_died(claim, "signal 11")
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == "poison"
    assert "signal 11" in job.error.message


def test_new_checkpoint_and_lost_workers_do_not_count_as_deaths(store: Store) -> None:
    claim = claimed(store)
    for step in (1, 2, 2, 3, 3):
        store.claims.save_checkpoint(claim, CheckpointRef(f"digest {step}", step, 1))
        assert store.claims.child_died(claim, "signal 9").state is State.QUEUED
        claim = store.claims.claim("w", claim.job.resource_class)  # type: ignore[assignment]
        let_lease_run_out(store, claim.job.id)
        store.reaper.sweep()
        claim = store.claims.claim("w", claim.job.resource_class)  # type: ignore[assignment]
    assert claim.job.deaths == 2


def test_look_answers_as_a_heartbeat_and_writes_nothing(store: Store) -> None:
    claim = claimed(store)
    before = store.jobs.get(claim.job.id)
    assert store.claims.look(claim) == Beat(cancel=False, lost=False)
    assert store.jobs.get(claim.job.id) == before
    store.jobs.cancel(claim.job.id)
    assert store.claims.look(claim) == store.claims.heartbeat(claim) == Beat(cancel=True, lost=False)
    store.claims.finish_cancelled(claim)
    assert store.claims.look(claim) == store.claims.heartbeat(claim) == Beat(cancel=False, lost=True)


def test_log_lines_are_numbered_kept_and_made_storable(store: Store) -> None:
    claim = claimed(store)
    store.claims.add_log(claim, ["one", "two\x00", "half \ud800"])
    store.claims.add_log(claim, [])
    store.claims.add_log(claim, ["x" * 20_000])
    lines = store.jobs.logs(claim.job.id)
    assert [line.number for line in lines] == [1, 2, 3, 4]
    assert [line.line for line in lines[:3]] == [
        "one",
        "two\N{REPLACEMENT CHARACTER}",
        "half \N{REPLACEMENT CHARACTER}",
    ]
    assert len(lines[3].line) == 10_000
    assert [line.number for line in store.jobs.logs(claim.job.id, after=2, limit=1)] == [3]


def test_cancel_racing_with_success_has_one_winner(store: Store) -> None:
    winners = set()
    for _ in range(20):
        claim = claimed(store)
        start = threading.Barrier(2)

        def tried(act: object, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                act()  # type: ignore[operator]
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(2) as threads:
            cancel = threads.submit(tried, lambda claim=claim: store.jobs.cancel(claim.job.id))
            success = threads.submit(tried, lambda claim=claim: store.claims.succeed(claim, []))
            assert cancel.result() is not success.result()
        job = store.jobs.get(claim.job.id)
        assert job.state is (State.CANCELLING if cancel.result() else State.SUCCEEDED)
        winners.add(job.state)
        if job.state is State.CANCELLING:
            store.claims.finish_cancelled(claim)
    assert winners <= {State.CANCELLING, State.SUCCEEDED}
