from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.exc import ProgrammingError
from store_samples import circuit
from workers_kit import ENGINE, WITHIN_S, Service, both_databases, counting, until

from acdc.errors import SchemaMismatch
from acdc.progress import Checkpoint
from acdc.settings import Settings, load_settings
from acdc.spec import parse_job
from acdc.store import CheckpointRef, State, Store
from acdc.store.claims import Claims
from acdc.store.reaper import Reaper
from acdc.version import ENGINE_VERSION
from workers.beat import Heart
from workers.checkpoints import read_checkpoint, write_checkpoint
from workers.executor import EngineChild
from workers.logs import LogTail
from workers.wire import Done, Failed, Phase, Run, decode_message, decode_order, encode
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


def quick_settings(service: Service) -> Settings:
    home = service.marks.parent
    return load_settings(
        database_url=service.url,
        artefacts_url=str(home / "artefacts"),
        data_dir=home,
        poll_s=0.05,
        reap_s=0.05,
        beat_s=0.1,
    )


@contextlib.contextmanager
def worker_in_thread(service: Service, *engine: str) -> Iterator[None]:
    """Where a test has to break something inside a worker. It has ended, with all its threads, when the block has."""
    worker = Worker(quick_settings(service))
    thread = threading.Thread(target=worker.run, args=(engine,))
    thread.start()
    try:
        yield
    finally:
        worker.drain()
        thread.join(30)
    assert not thread.is_alive()


def test_job_that_breaks_its_worker_fails_and_the_next_one_is_taken(service: Service, tmp_path: Path) -> None:
    with worker_in_thread(service, str(tmp_path / "no program")):
        for job in [service.ended(service.submit()) for _ in range(2)]:
            assert job.error is not None
            assert job.error.code == "storage"
            assert "FileNotFoundError" in job.error.message


def at_the_usual_pace(service: Service) -> None:
    """A worker that beats as one does where nothing was set."""
    fields = Settings.model_fields
    service.worker(**{f"ACDC_{name.upper()}": str(fields[name].default) for name in ("lease_s", "beat_s", "reap_s")})


def test_phases_steps_and_cancel_are_told_within_a_second_or_two(service: Service) -> None:
    at_the_usual_pace(service)
    quick, job_id = service.submit(), service.gated(at=4)
    service.ended(quick)
    told = [event.data for event in service.store.jobs.events(quick) if event.kind == "progress"]
    assert list(dict.fromkeys(data["phase"] for data in told)) == ["starting the engine", "count"]
    assert told[-1]["done"] > 0
    service.at_gate()
    until("a step", lambda: (service.job(job_id).progress or {}).get("done"), within_s=4)
    service.store.jobs.cancel(job_id)
    until("the end", lambda: service.job(job_id).state is State.CANCELLED, within_s=4)


def test_every_phase_is_told_however_short_and_of_its_steps_the_latest(store: Store, tmp_path: Path) -> None:
    job_id = store.jobs.submit(parse_job(counting()), user="ada").job.id
    claim = store.claims.claim("w", "default")
    assert claim is not None
    heart = Heart(store, claim, LogTail(tmp_path / "log.txt"), beat_s=10)
    for phase in ("load", "search"):
        for done in range(3):
            heart.tell({"phase": phase, "done": done})
    heart.send_rest()
    told = [event.data for event in store.jobs.events(job_id) if event.kind == "progress"]
    assert told == [{"phase": "load", "done": 2}, {"phase": "search", "done": 2}]


def test_log_that_cannot_be_read_costs_no_heartbeat_and_no_job(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(_self: LogTail, *, is_over: bool = False) -> list[str]:
        raise OSError("input/output error")

    monkeypatch.setattr(LogTail, "lines", torn)
    with worker_in_thread(service, *ENGINE):
        job_id = service.gated()
        service.at_gate()
        lease = service.job(job_id).lease_until
        until("a later lease", lambda: service.job(job_id).lease_until != lease)
        service.gate.touch()
        assert service.ended(job_id).state is State.SUCCEEDED


def test_error_that_nobody_foresaw_ends_no_thread_of_a_worker(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a heartbeat, a look for work and a sweep may meet: here a statement that the database refuses, once each."""
    broken = {(Claims, "claim"), (Claims, "heartbeat"), (Reaper, "sweep")}
    met: set[str] = set()

    def breaking(name: str, real: Any) -> Any:
        def method(self: Any, *args: Any, **options: Any) -> Any:
            if name not in met:
                met.add(name)
                raise ProgrammingError("SELECT", {}, Exception("no such function"))
            return real(self, *args, **options)

        return method

    for owner, name in broken:
        monkeypatch.setattr(owner, name, breaking(name, getattr(owner, name)))
    with worker_in_thread(service, *ENGINE):
        until("a sweep", lambda: "sweep" in met)
        job_id = service.gated()
        service.at_gate()
        until("a beat", lambda: (service.job(job_id).progress or {}).get("done"))
        service.gate.touch()
        assert service.ended(job_id).state is State.SUCCEEDED
    assert met == {"claim", "heartbeat", "sweep"}


def test_database_that_is_of_no_more_use_ends_the_worker(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def hopeless(*_args: Any, **_options: Any) -> None:
        raise SchemaMismatch("the database was replaced")

    monkeypatch.setattr(Claims, "claim", hopeless)
    with pytest.raises(SchemaMismatch, match="was replaced"):
        Worker(quick_settings(service)).run(ENGINE)


def test_late_message_of_one_run_never_touches_the_next(tmp_path: Path) -> None:
    """An engine that goes on talking about its first run while it is asked for the second."""
    program = tmp_path / "late.py"
    program.write_text(
        "import json, os, sys\n"
        "orders, messages = (int(word) for word in sys.argv[2:])\n"
        "for line in os.fdopen(orders, 'rb'):\n"
        "    run = json.loads(line)['run']\n"
        "    for kind, number in (('done', run - 1), ('phase', run), ('done', run)):\n"
        "        more = {'name': 'new', 'total': 1} if kind == 'phase' else {}\n"
        "        os.write(messages, json.dumps({'kind': kind, 'run': number, **more}).encode() + b'\\n')\n"
    )
    child = EngineChild(grace_s=1, command=(sys.executable, str(program)))
    try:
        for run in (1, 2):
            child.begin({}, scratch=tmp_path, log=tmp_path / "log.txt")
            heard = []
            while not heard or heard[-1] != Done(run):
                if message := child.hear(WITHIN_S):
                    heard.append(message)
                assert len(heard) < 3
            assert heard == [Phase(run, "new", 1), Done(run)]
    finally:
        child.close()


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
    spec = json.loads(parse_job({"method": {"name": "acdc", "thresholds": ["inf"]}}).canonical_json)
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
