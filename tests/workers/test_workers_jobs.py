from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_samples import circuit
from workers_kit import Service, both_databases, counting, until

from acdc.progress import Checkpoint
from acdc.settings import load_settings
from acdc.spec import parse_job
from acdc.store import CheckpointRef, State
from acdc.version import ENGINE_VERSION
from workers.checkpoints import read_checkpoint, write_checkpoint
from workers.logs import LogTail
from workers.wire import Failed, Run, decode_message, decode_order, encode
from workers.worker import Worker


@both_databases
def test_job_runs_from_queue_to_result(service: Service) -> None:
    service.worker()
    job_id = service.submit(to=5)
    job = service.ended(job_id)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
    assert service.data(job_id) == {"sum": 15, "counted": [1, 2, 3, 4, 5], "resumed_from": 0}
    assert service.log(job_id) == ["counting", "counted to 5"]


def test_progress_of_a_running_job_is_told(service: Service) -> None:
    service.worker()
    job_id = service.gated(at=4)
    service.at_gate()
    service.checkpointed(job_id)

    def phases() -> list[Any]:
        events = service.store.jobs.events(job_id)
        return [event.data for event in events if event.kind == "progress" and event.data["phase"] == "count"]

    until("a step", lambda: any(data["done"] > 0 and data["total"] == 5 for data in phases()))


@pytest.mark.parametrize(
    ("how", "code"),
    [("task", "invalid_task"), ("memory", "out_of_memory"), ("disk", "storage"), ("surprise", "internal")],
)
def test_failed_job_carries_the_code_of_its_error(service: Service, how: str, code: str) -> None:
    service.worker()
    job = service.ended(service.submit(fail=how))
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == code
    assert "secret detail" not in job.error.message
    if how == "task":
        assert [fault.where for fault in job.error.faults] == ["row 1", "row 2"]
    if how == "surprise":
        assert "ZeroDivisionError: secret detail" in service.log(job.id)


def stored_circuit(service: Service) -> str:
    stored = circuit()
    return service.store.circuits.add(stored, service.artefacts.put(stored.to_bytes()), user="ada").id


def test_unchanged_circuit_judged_again_is_an_evaluation_of_it(service: Service) -> None:
    circuit_id = stored_circuit(service)
    service.worker()
    job_id = service.submit_spec({**counting(), "kind": "evaluate", "circuit": circuit_id})
    job = service.ended(job_id)
    assert job.error is None
    [result] = service.store.jobs.results(job_id)
    assert (result.kind, result.circuit_id) == ("evaluation", circuit_id)
    assert len(service.store.circuits.evaluations(circuit_id).items) == 1


def test_job_on_a_circuit_that_is_gone_fails_with_the_reason(service: Service) -> None:
    service.worker()
    job = service.ended(service.submit_spec({**counting(), "kind": "evaluate", "circuit": "circuit_gone"}))
    assert job.error is not None
    assert job.error.code == "invalid_task"
    assert "circuit_gone" in job.error.message


def test_checkpoint_that_is_missing_costs_time_and_no_job(service: Service) -> None:
    job_id = service.submit()
    claim = service.store.claims.claim("another", "default")
    assert claim is not None
    service.store.claims.save_checkpoint(claim, CheckpointRef("0" * 64, 3, ENGINE_VERSION))
    service.store.claims.release(claim)
    service.worker()
    assert service.ended(job_id).state is State.SUCCEEDED
    assert service.data(job_id)["resumed_from"] == 0


def test_job_that_breaks_its_worker_fails_and_the_next_one_is_taken(service: Service, tmp_path: Path) -> None:
    settings = load_settings(
        database_url=service.url, artefacts_url=str(tmp_path / "artefacts"), data_dir=tmp_path, poll_s=0.05
    )
    worker = Worker(settings)
    thread = threading.Thread(target=worker.run, args=([str(tmp_path / "no program")],))
    thread.start()
    try:
        for job in [service.ended(service.submit()) for _ in range(2)]:
            assert job.error is not None
            assert job.error.code == "storage"
            assert "FileNotFoundError" in job.error.message
    finally:
        worker.drain()
        thread.join(30)
    assert not thread.is_alive()


def test_worker_and_its_library_import_no_torch() -> None:
    code = (
        "import sys, workers.worker, workers.local; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- files and lines ---------------------------------------------------------------------------------------------------


def test_checkpoint_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    array = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    write_checkpoint(path, Checkpoint(7, {"edge": "embed->mlp0"}, {"scores": array.T}), "s")
    back = read_checkpoint(path, "s")
    assert (back.step, back.facts) == (7, {"edge": "embed->mlp0"})
    assert np.array_equal(back.arrays["scores"], array.T)
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_torn_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, Checkpoint(7, {}, {"scores": np.ones(3)}), "s")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path, "s")


def test_checkpoint_of_another_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("workers.checkpoints.ENGINE_VERSION", ENGINE_VERSION + 1)
        write_checkpoint(path, Checkpoint(7), "s")
    with pytest.raises(ValueError, match="another engine version"):
        read_checkpoint(path, "s")


def test_lines_carry_orders_and_messages_whole() -> None:
    spec = json.loads(parse_job({"method": {"name": "acdc", "thresholds": ["inf", 0.1]}}).canonical_json)
    order = Run(3, spec, "scratch\nwith a line", "log", source="ü")
    assert decode_order(encode(order)) == order
    assert encode(order).count(b"\n") == 1
    failure = Failed(3, "storage", "disk", "storage", [{"where": "a", "message": "b"}])
    assert decode_message(encode(failure)) == failure


def test_log_is_told_line_by_line_and_its_end_is_never_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    tail = LogTail(path)
    assert tail.lines() == []
    path.write_bytes(b"one\ntw")
    assert tail.lines() == ["one"]
    with path.open("ab") as file:
        file.write(b"o\n" + b"x" * 200_000 + b"\nlast")
    told = tail.lines(is_over=True)
    assert told[0].startswith("[")
    assert "left out" in told[0]
    assert told[-1] == "last"
    assert tail.lines(is_over=True) == []
