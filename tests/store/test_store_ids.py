"""Ids: unique among threads, in order within a process."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from acdc.store.ids import new_id


def test_ids_are_short_words_that_say_what_they_name() -> None:
    made = new_id("job")
    assert made.startswith("job_")
    assert made.isascii()
    assert len(made) <= 26
    assert made.replace("_", "").isalnum()


def test_ids_of_all_threads_differ() -> None:
    with ThreadPoolExecutor(8) as threads:
        batches = list(threads.map(lambda _: [new_id("x") for _ in range(2000)], range(8)))
    assert len({made for batch in batches for made in batch}) == 16_000
    assert all(batch == sorted(batch) for batch in batches)


def test_ids_keep_their_order_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_id("x")
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert new_id("x") > first
