from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from workers_kit import HERE, counting, marks, until


class Local:
    """A local run as a process of its own, as the command line starts it."""

    def __init__(self, directory: Path) -> None:
        self.out = directory / "out"
        self._spec = directory / "spec.json"
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, spec: Any, *options: str) -> subprocess.Popen[str]:
        self._spec.write_text(spec if isinstance(spec, str) else json.dumps(spec))
        command = [sys.executable, str(HERE / "local_for_tests.py"), str(self._spec), "--out", str(self.out), *options]
        environment = {**os.environ, "ACDC_CHILD_GRACE_S": "0.5"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.processes.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
        output, _ = process.communicate(timeout=60)
        return process.returncode, [json.loads(line) for line in output.splitlines()]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    local = Local(tmp_path)
    yield local
    for process in local.processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def of_kind(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(event for event in events if event["event"] == kind)


def test_local_run_tells_its_way_and_leaves_results(local: Local) -> None:
    status, events = local.finish(local.start(counting(to=4)))
    assert status == 0
    assert kinds(events)[0] == "started"
    assert events[-1] == {"event": "finished", "state": "succeeded"}
    assert {"event": "phase", "name": "count", "total": 4} in events
    assert {"event": "log", "text": "counted to 4"} in events
    result = of_kind(events, "result")
    assert (result["key"], result["circuit"]) == ("sum", None)
    assert json.loads(Path(result["data"]).read_text())["sum"] == 10
    assert sorted(path.name for path in local.out.iterdir()) == ["log.txt", "spec.json", "sum.json"]
    assert (local.out / "log.txt").read_text().splitlines() == ["counting", "counted to 4"]


def test_spec_with_faults_is_refused_with_all_of_them(local: Local) -> None:
    status, events = local.finish(local.start({"task": "nonsense", "metric": "beauty", "colour": 1}))
    assert status == 2
    assert kinds(events) == ["error", "finished"]
    assert {fault["where"] for fault in events[0]["faults"]} == {"task.name", "metric", "colour"}
    assert not local.out.exists()


def test_spec_that_is_no_json_is_refused(local: Local) -> None:
    status, events = local.finish(local.start("{"))
    assert (status, events[0]["code"]) == (2, "invalid_spec")


def test_job_on_a_stored_circuit_needs_its_file(local: Local) -> None:
    status, events = local.finish(local.start({"kind": "try", "circuit": "circuit_1", "prompt": "a"}))
    assert status == 2
    assert "--source" in events[0]["message"]


@pytest.mark.parametrize(
    ("how", "code", "job_code"),
    [
        ("task", "invalid_task", "invalid_task"),
        ("memory", "out_of_memory", "out_of_memory"),
        ("disk", "storage", "storage"),
        ("hub", "service", "storage"),
        ("surprise", "internal", "internal"),
        ("abort", "internal", "internal"),
    ],
)
def test_errors_of_the_engine_are_told_by_their_codes(local: Local, how: str, code: str, job_code: str) -> None:
    status, events = local.finish(local.start(counting(fail=how)))
    error = of_kind(events, "error")
    assert (status, error["code"], error["job_code"]) == (1, code, job_code)
    assert events[-1]["state"] == "failed"


def test_unforeseen_error_shows_its_traceback_in_the_log_only(local: Local) -> None:
    _, events = local.finish(local.start(counting(fail="surprise")))
    assert "secret detail" not in json.dumps(events)
    assert "ZeroDivisionError: secret detail" in (local.out / "log.txt").read_text()
    assert of_kind(events, "error")["message"].endswith(f"log has the traceback: {local.out / 'log.txt'}")


def test_crash_in_c_leaves_its_trace_in_the_log(local: Local) -> None:
    _, events = local.finish(local.start(counting(fail="abort")))
    assert "SIGABRT" in of_kind(events, "error")["message"]
    assert "Fatal Python error: Aborted" in (local.out / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_cancels_and_resume_goes_on(local: Local, tmp_path: Path, number: signal.Signals) -> None:
    spec = counting(to=5, gates={"4": str(tmp_path / "gate")}, marks=str(tmp_path))
    process = local.start(spec)
    until("the gate", lambda: marks(tmp_path, "gate-4.*"))
    process.send_signal(number)
    status, events = local.finish(process)
    assert (status, events[-1]["state"]) == (130, "cancelled")
    kept = [event["step"] for event in events if event["event"] == "checkpoint"][-1]
    (tmp_path / "gate").touch()
    status, events = local.finish(local.start(spec, "--resume"))
    assert status == 0
    assert of_kind(events, "resumed")["step"] == kept
    data = json.loads((local.out / "sum.json").read_text())
    assert data == {"sum": 15, "counted": [1, 2, 3, 4, 5], "resumed_from": kept}
    assert not (local.out / "checkpoint.safetensors").exists()


def test_work_of_a_stopped_job_is_not_deleted_without_a_word(local: Local) -> None:
    job = counting(die_at=3)
    local.finish(local.start(job))
    kept, spec = (local.out / "checkpoint.safetensors").read_bytes(), (local.out / "spec.json").read_bytes()
    status, events = local.finish(local.start(job))
    assert (status, kinds(events)) == (2, ["error", "finished"])
    error = of_kind(events, "error")
    assert error["code"] == "invalid_state"
    assert all(way in error["message"] for way in ("--resume", "--out", str(local.out / "checkpoint.safetensors")))
    assert (local.out / "checkpoint.safetensors").read_bytes() == kept
    assert (local.out / "spec.json").read_bytes() == spec


def test_stubborn_engine_is_killed_after_the_grace(local: Local, tmp_path: Path) -> None:
    spec = counting(gates={"3": str(tmp_path / "gate")}, marks=str(tmp_path), is_stubborn=True)
    process = local.start(spec)
    [engine] = until("the gate", lambda: marks(tmp_path, "gate-3.*"))
    process.send_signal(signal.SIGINT)
    status, events = local.finish(process)
    assert (status, events[-1]["state"]) == (130, "cancelled")
    assert not psutil.pid_exists(engine)


def test_resuming_another_job_is_refused(local: Local) -> None:
    local.finish(local.start(counting(die_at=3)))
    kept = (local.out / "checkpoint.safetensors").read_bytes()
    status, events = local.finish(local.start(counting(to=3), "--resume"))
    assert (status, kinds(events)) == (2, ["error", "finished"])
    assert "another job" in of_kind(events, "error")["message"]
    assert (local.out / "checkpoint.safetensors").read_bytes() == kept


def test_whose_work_is_kept_is_told_by_the_checkpoint_itself(local: Local) -> None:
    job = counting(die_at=3)
    local.finish(local.start(job))
    (local.out / "spec.json").write_text("no JSON")
    status, events = local.finish(local.start(job))
    assert (status, of_kind(events, "error")["code"]) == (2, "invalid_state")
    assert "of this job" in of_kind(events, "error")["message"]


def test_results_of_another_job_are_not_replaced_without_a_word(local: Local) -> None:
    local.finish(local.start(counting(to=2)))
    status, events = local.finish(local.start(counting(to=3)))
    assert (status, of_kind(events, "error")["code"]) == (2, "invalid_state")
    assert "holds the results of another job" in of_kind(events, "error")["message"]
    assert json.loads((local.out / "sum.json").read_text())["sum"] == 3
    assert local.finish(local.start(counting(to=2)))[0] == 0  # the same once more


def test_resume_without_a_checkpoint_says_that_it_begins(local: Local) -> None:
    status, events = local.finish(local.start(counting(to=2), "--resume"))
    assert status == 0
    assert any("keeps no work" in event.get("text", "") for event in events)


def test_an_engine_that_said_nothing_leaves_no_empty_log(local: Local) -> None:
    local.finish(local.start(counting(die_at=1, is_silent=True)))
    assert not (local.out / "log.txt").exists()


def test_a_damaged_checkpoint_is_told_and_started_over(local: Local) -> None:
    job = counting(to=4)
    local.out.mkdir()
    (local.out / "checkpoint.safetensors").write_bytes(b"no checkpoint")
    status, events = local.finish(local.start(job, "--resume"))
    assert (status, "resumed" in kinds(events)) == (0, False)
    assert any("damaged" in event.get("text", "") for event in events)


def test_dead_engine_is_told_with_the_way_to_go_on(local: Local) -> None:
    status, events = local.finish(local.start(counting(die_at=3)))
    error = of_kind(events, "error")
    assert status == 1
    assert "SIGKILL" in error["message"]
    assert "--resume" in error["message"]


def test_engine_dies_with_its_killed_owner(local: Local, tmp_path: Path) -> None:
    process = local.start(counting(gates={"2": str(tmp_path / "gate")}, marks=str(tmp_path), is_stubborn=True))
    [engine] = until("the gate", lambda: marks(tmp_path, "gate-2.*"))
    process.kill()
    until("the engine's end", lambda: not is_alive(engine))


def test_reader_that_goes_away_cancels(local: Local, tmp_path: Path) -> None:
    process = local.start(counting(to=10**9, marks=str(tmp_path)))
    [engine, *_] = until("a count", lambda: marks(tmp_path, "1.*"))
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 130
    assert not is_alive(engine)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
