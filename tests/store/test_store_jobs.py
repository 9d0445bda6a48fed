"""Submitting, listing, reading and retrying jobs."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from store_samples import all_jobs, claimed, job_in, spec, sql, submit

from acdc.errors import Conflict, Fault, IdempotencyConflict, NotFound, SpecError
from acdc.spec import parse_job
from acdc.store import NewTable, State, Store
from acdc.store import jobs as jobs_module


def test_submitted_job_is_its_spec(store: Store) -> None:
    asked = spec(name="first", tags=["b", "a", "b"], notes="why", limits={"max_runtime_s": 5, "max_queue_s": 7.5})
    job = store.jobs.submit(asked, user="ada", resource_class="gpu", priority=-2).job
    assert job == store.jobs.get(job.id)
    assert (job.state, job.kind, job.user, job.attempt) == (State.QUEUED, "discover", "ada", 0)
    assert (job.name, job.tags, job.notes) == ("first", ("a", "b"), "why")
    assert (job.max_runtime_s, job.max_queue_s, job.resource_class, job.priority) == (5.0, 7.5, "gpu", -2)
    assert parse_job(job.spec) == asked
    assert job.spec_sha256 == asked.sha256


@pytest.mark.parametrize("threshold", [float("inf"), float("-inf")])
def test_infinite_threshold_comes_back_from_the_database(store: Store, threshold: float) -> None:
    asked = spec(method={"name": "acdc", "thresholds": [threshold]})
    assert "Infinity" not in re.sub('"-?Infinity"', "", asked.canonical_json)  # which JSON has not, but as a text
    assert parse_job(store.jobs.submit(asked, user="ada").job.spec) == asked


def test_text_that_no_database_holds_is_refused_with_its_place(store: Store) -> None:
    pairs = [{"clean": "a\x00", "corrupt": "b", "answers": ["ok", "\ud800"]}]
    with pytest.raises(SpecError) as caught:
        store.jobs.submit(spec(task={"name": "custom", "pairs": pairs}, notes="\x00"), user="ada")
    places = {fault.where for fault in caught.value.faults}
    assert places == {"spec.notes", "spec.task.pairs.0.clean", "spec.task.pairs.0.answers.1"}
    assert all_jobs(store) == []


def test_unknown_job_is_not_found_whatever_is_asked(store: Store) -> None:
    for job_id in ("job_nothing", "", "\x00", "'; DROP TABLE jobs; --"):
        for ask in (store.jobs.get, store.jobs.events, store.jobs.logs, store.jobs.results, store.jobs.cancel):
            with pytest.raises(NotFound):
                ask(job_id)
        with pytest.raises(NotFound):
            store.jobs.retry(job_id)


def test_same_key_and_body_replays_the_job(store: Store) -> None:
    first = store.jobs.submit(spec(), user="ada", idempotency_key="k")
    again = store.jobs.submit(spec(), user="ada", idempotency_key="k")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.job == first.job
    assert len(all_jobs(store)) == 1


def test_same_key_with_another_body_is_refused(store: Store) -> None:
    store.jobs.submit(spec(), user="ada", idempotency_key="k")
    with pytest.raises(IdempotencyConflict, match="'k'"):
        store.jobs.submit(spec(seed=1), user="ada", idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        store.jobs.submit(spec(), user="ada", idempotency_key="k", body_hash="other")
    assert len(all_jobs(store)) == 1


def test_keys_belong_to_a_user_and_live_a_day(store: Store) -> None:
    ours = store.jobs.submit(spec(), user="ada", idempotency_key="k").job
    theirs = store.jobs.submit(spec(), user="bob", idempotency_key="k")
    assert not theirs.replayed
    sql(store, "UPDATE idempotency_keys SET created_ms = created_ms - 86300000")
    assert store.jobs.submit(spec(), user="ada", idempotency_key="k").job.id == ours.id
    sql(store, "UPDATE idempotency_keys SET created_ms = created_ms - 200000")
    assert not store.jobs.submit(spec(seed=1), user="ada", idempotency_key="k").replayed
    store.reaper.sweep()
    assert sql(store, "SELECT owner FROM idempotency_keys") == [("ada",)]


def test_fifty_submits_at_once_make_one_job(store: Store) -> None:
    start = threading.Barrier(10)

    def go(i: int) -> list[tuple[str, bool]]:
        start.wait()
        answers = [store.jobs.submit(spec(), user="ada", idempotency_key="k") for _ in range(5)]
        return [(answer.job.id, answer.replayed) for answer in answers]

    with ThreadPoolExecutor(10) as threads:
        answers = [answer for batch in threads.map(go, range(10)) for answer in batch]
    assert len(answers) == 50
    assert len({job_id for job_id, _ in answers}) == 1
    assert [replayed for _, replayed in answers].count(False) == 1
    assert len(all_jobs(store)) == 1


def test_key_is_not_taken_by_a_submit_that_failed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs_module, "insert_job", crash)
        with pytest.raises(KeyboardInterrupt):
            store.jobs.submit(spec(), user="ada", idempotency_key="k")
    assert not store.jobs.submit(spec(seed=1), user="ada", idempotency_key="k").replayed


def test_filters_restrict_and_combine(store: Store) -> None:
    one = submit(store, user="ada", fields={"tags": ["x", "y"]})
    two = submit(store, user="ada", fields={"tags": ["x"]}, resource_class="gpu")
    three = submit(store, user="bob")
    store.jobs.cancel(three.id)

    def found(**filters: object) -> set[str]:
        return {job.id for job in all_jobs(store, **filters)}

    assert found() == {one.id, two.id, three.id}
    assert found(user="ada") == {one.id, two.id}
    assert found(tags=("x", "y")) == {one.id}
    assert found(tags=("x",), resource_class="gpu") == {two.id}
    assert found(states=(State.CANCELLED, State.FAILED)) == {three.id}
    assert found(kind="evaluate") == set()
    assert store.jobs.counts() == {state: {"queued": 2, "cancelled": 1}.get(state, 0) for state in State}


def test_jobs_are_listed_newest_first(store: Store) -> None:
    ids = [submit(store).id for _ in range(5)]
    assert [job.id for job in all_jobs(store, limit=2)] == ids[::-1]


def test_pages_repeat_and_skip_nothing_while_rows_come(store: Store) -> None:
    before = {submit(store).id for _ in range(25)}
    stop = threading.Event()

    def keep_submitting() -> int:
        n = 0
        while not stop.is_set() and n < 500:
            submit(store, user="other")
            n += 1
        return n

    with ThreadPoolExecutor(2) as threads:
        writers = [threads.submit(keep_submitting) for _ in range(2)]
        try:
            seen = [job.id for job in all_jobs(store, limit=3)]
        finally:
            stop.set()
    assert sum(writer.result() for writer in writers) > 0
    assert len(seen) == len(set(seen))
    assert before <= set(seen)


def test_pages_are_whole_where_many_rows_share_a_moment(store: Store) -> None:
    ids = {submit(store).id for _ in range(9)}
    sql(store, "UPDATE jobs SET created_ms = 1000")
    seen = [job.id for job in all_jobs(store, limit=2)]
    assert (len(seen), set(seen)) == (9, ids)


@pytest.mark.parametrize("cursor", ["", "nonsense", "bnVsbA", "WzEsMl0", "ÿ", "W251bGwsIngiXQ", "WzFlNTAsIngiXQ"])
def test_foreign_cursor_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(SpecError, match="no cursor"):
        store.jobs.list(cursor=cursor)


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_limit_out_of_range_is_refused(store: Store, limit: int) -> None:
    job = submit(store)
    for ask in (store.jobs.list, lambda limit: store.jobs.events(job.id, limit=limit)):
        with pytest.raises(SpecError, match=f"limit {limit}"):
            ask(limit=limit)


def test_events_resume_after_a_number(store: Store) -> None:
    claim = claimed(store)
    for n in range(5):
        store.claims.heartbeat(claim, {"n": n})
    events = store.jobs.events(claim.job.id)
    assert [event.number for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert store.jobs.events(claim.job.id, after=3, limit=2) == events[3:5]
    assert store.jobs.events(claim.job.id, after=7) == ()


def test_failure_is_told_with_all_its_faults(store: Store) -> None:
    claim = claimed(store)
    faults = (Fault("row 3", "no answer"), Fault("row 9", "zero\x00"))
    job = store.claims.fail(claim, "invalid_task", "2 rows do not work", faults)
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("invalid_task", "2 rows do not work")
    assert job.error.faults == (faults[0], Fault("row 9", "zero\N{REPLACEMENT CHARACTER}"))
    last = store.jobs.events(job.id)[-1]
    assert last.data["code"] == "invalid_task"


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_retry_makes_a_new_job_of_the_same_spec(store: Store, state: State) -> None:
    old, _ = job_in(store, state)
    new = store.jobs.retry(old.id, user="bob").job
    assert (new.retry_of, new.state, new.user, new.attempt) == (old.id, State.QUEUED, "bob", 0)
    assert (new.spec, new.resource_class, new.max_runtime_s) == (old.spec, old.resource_class, old.max_runtime_s)
    assert store.jobs.get(old.id) == old
    assert store.jobs.retry(old.id).job.user == old.user


def test_retry_with_the_same_key_gives_the_same_job(store: Store) -> None:
    old, _ = job_in(store, State.FAILED)
    other, _ = job_in(store, State.CANCELLED)
    first = store.jobs.retry(old.id, idempotency_key="k")
    again = store.jobs.retry(old.id, idempotency_key="k")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.job == first.job
    with pytest.raises(IdempotencyConflict):
        store.jobs.retry(other.id, idempotency_key="k")


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.CANCELLING, State.SUCCEEDED])
def test_only_failed_and_cancelled_jobs_are_retried(store: Store, state: State) -> None:
    job, _ = job_in(store, state)
    with pytest.raises(Conflict, match=f"is {state}"):
        store.jobs.retry(job.id)


def test_results_are_listed_by_key(store: Store) -> None:
    claim = claimed(store)
    store.claims.succeed(claim, [NewTable("b", {"x": float("inf")}), NewTable("a", {"tokens": ["\x00"]})])
    rows = store.jobs.results(claim.job.id)
    assert [(row.key, row.kind, row.circuit_id) for row in rows] == [("a", "table", None), ("b", "table", None)]
    assert [row.data for row in rows] == [{"tokens": ["\N{REPLACEMENT CHARACTER}"]}, {"x": "Infinity"}]
