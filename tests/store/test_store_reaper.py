"""Leases that ran out, jobs that took too long, and the sweep after a silence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from store_samples import claimed, let_lease_run_out, sql, submit

from acdc.store import CheckpointRef, Reaped, State, Store


def fall_silent(store: Store, seconds: float) -> None:
    sql(store, "UPDATE reaper SET last_sweep_ms = last_sweep_ms - :ms", ms=int(seconds * 1000))


def test_job_of_a_lost_worker_is_queued_again_with_its_checkpoint(store: Store) -> None:
    claim = claimed(store)
    store.claims.save_checkpoint(claim, CheckpointRef("digest", 1, 1))
    assert store.reaper.sweep() == Reaped()
    let_lease_run_out(store, claim.job.id)
    assert store.reaper.sweep() == Reaped(requeued=(claim.job.id,))
    job = store.jobs.get(claim.job.id)
    assert (job.state, job.attempt, job.checkpoint) == (State.QUEUED, 1, CheckpointRef("digest", 1, 1))


def test_lost_worker_of_a_job_being_cancelled_ends_it(store: Store) -> None:
    claim = claimed(store)
    store.jobs.cancel(claim.job.id)
    let_lease_run_out(store, claim.job.id)
    assert store.reaper.sweep() == Reaped(cancelled=(claim.job.id,))
    assert store.jobs.get(claim.job.id).state is State.CANCELLED


def test_after_a_silence_leases_get_one_more_lease(store: Store) -> None:
    claim = claimed(store)
    store.reaper.sweep()
    let_lease_run_out(store, claim.job.id)
    fall_silent(store, 11)
    assert store.reaper.sweep(sweep_s=5, lease_s=30) == Reaped(waiting=True)
    assert store.reaper.sweep(sweep_s=5, lease_s=30) == Reaped(waiting=True)
    sql(store, "UPDATE reaper SET wait_until_ms = wait_until_ms - 30000")
    assert store.reaper.sweep(sweep_s=5, lease_s=30) == Reaped(requeued=(claim.job.id,))


def test_a_sweep_that_is_a_little_late_is_no_silence(store: Store) -> None:
    claim = claimed(store)
    store.reaper.sweep()
    let_lease_run_out(store, claim.job.id)
    fall_silent(store, 8)
    assert store.reaper.sweep(sweep_s=5, lease_s=30).requeued == (claim.job.id,)


def test_job_that_waits_beyond_max_queue_s_fails_as_timeout(store: Store) -> None:
    patient = submit(store)
    job = submit(store, fields={"limits": {"max_queue_s": 60}})
    sql(store, "UPDATE jobs SET queued_ms = queued_ms - 61000")
    assert store.reaper.sweep() == Reaped(timed_out=(job.id,))
    failed = store.jobs.get(job.id)
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert (failed.error.code, "max_queue_s of 60 seconds" in failed.error.message) == ("timeout", True)
    assert store.jobs.get(patient.id).state is State.QUEUED


def test_job_beyond_max_queue_s_is_not_claimed_before_the_sweep(store: Store) -> None:
    submit(store, fields={"limits": {"max_queue_s": 60}})
    sql(store, "UPDATE jobs SET queued_ms = queued_ms - 61000")
    assert store.claims.claim("w", "default") is None


def test_job_that_runs_beyond_max_runtime_s_fails_and_its_worker_is_told(store: Store) -> None:
    claim = claimed(store, fields={"limits": {"max_runtime_s": 60}})
    sql(store, "UPDATE jobs SET claimed_ms = claimed_ms - 61000")
    assert store.reaper.sweep() == Reaped(timed_out=(claim.job.id,))
    error = store.jobs.get(claim.job.id).error
    assert error is not None
    assert error.code == "timeout"
    assert store.claims.heartbeat(claim).lost


def test_running_time_adds_up_over_claims(store: Store) -> None:
    claim = claimed(store, fields={"limits": {"max_runtime_s": 60}})
    sql(store, "UPDATE jobs SET claimed_ms = claimed_ms - 40000")
    store.claims.release(claim)
    assert store.claims.claim("w", claim.job.resource_class) is not None
    assert store.reaper.sweep() == Reaped()
    sql(store, "UPDATE jobs SET claimed_ms = claimed_ms - 21000")
    assert store.reaper.sweep() == Reaped(timed_out=(claim.job.id,))


def test_time_after_a_lost_lease_is_not_running_time(store: Store) -> None:
    claim = claimed(store, fields={"limits": {"max_runtime_s": 60}})
    sql(store, "UPDATE jobs SET claimed_ms = claimed_ms - 7200000, lease_until_ms = claimed_ms - 7170000")
    assert store.reaper.sweep() == Reaped(requeued=(claim.job.id,))
    assert sql(store, "SELECT ran_before_ms FROM jobs") == [(30_000,)]


def test_sweeps_at_once_take_back_each_job_once(store: Store) -> None:
    claims = [claimed(store, resource_class=f"class-{i}") for i in range(20)]
    for claim in claims:
        let_lease_run_out(store, claim.job.id)
    with ThreadPoolExecutor(4) as threads:
        sweeps = list(threads.map(lambda _: store.reaper.sweep(), range(8)))
    requeued = [job for sweep in sweeps for job in sweep.requeued]
    assert sorted(requeued) == sorted(claim.job.id for claim in claims)
    assert {store.jobs.get(job).last_event for job in requeued} == {3}
