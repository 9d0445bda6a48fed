"""Killed at any place, the job ends once, with one result, and that is what an undisturbed search finds."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

from acceptance_kit import Stack, assert_same, slow, until

from acdc.circuit import Circuit
from acdc.cli.failures import NO_ANSWER
from acdc.store import migrate


def test_killed_engine_is_replaced_and_the_search_resumes(stack: Stack, model: Path, undisturbed: Circuit) -> None:
    job = stack.in_the_middle(slow(model))
    stack.kill("workers.child")
    job = stack.succeeded(job)
    stack.assert_resumed(job, attempt=2)
    assert_same(stack.circuit(job), undisturbed)


def test_killed_worker_is_replaced_and_the_search_resumes(stack: Stack, model: Path, undisturbed: Circuit) -> None:
    job = stack.in_the_middle(slow(model))
    [engine] = stack.family("workers.child")
    stack.kill("workers.worker")
    until("the engine's end", lambda: engine not in stack.family("workers.child"))
    job = stack.succeeded(job)
    stack.assert_resumed(job, attempt=2)
    assert_same(stack.circuit(job), undisturbed)


def test_killed_service_leaves_no_process_and_the_next_one_goes_on(
    tmp_path: Path, model: Path, undisturbed: Circuit
) -> None:
    stack = Stack(tmp_path)
    stack.start()
    job = stack.in_the_middle(slow(model))
    stack.stop(signal.SIGKILL)
    stack.start()
    job = stack.succeeded(job)
    assert_same(stack.circuit(job), undisturbed)
    stack.stop()


def test_database_of_a_newer_version_is_refused_in_words(tmp_path: Path) -> None:
    migrate(f"sqlite:///{tmp_path / 'acdc.db'}")
    with sqlite3.connect(tmp_path / "acdc.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    stack = Stack(tmp_path)
    with (tmp_path / "said").open("wb") as said:
        assert stack.command("serve", "--port", "0", stderr=said).wait(60) == NO_ANSWER
    text = (tmp_path / "said").read_text()
    assert "newer version of acdc" in text
    assert "Traceback" not in text
    assert not stack.family()
