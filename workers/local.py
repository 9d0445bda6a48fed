"""Run one job spec without a service: no database, no API, the engine in a child process. What `acdc run` starts.

    python -m workers.local SPEC.json --out DIR [--resume] [--source CIRCUIT.safetensors]

SPEC.json is a job spec as JSON, `-` reads it from stdin. --source is the circuit file that a job on a circuit
speaks of. DIR is made if need be and afterwards holds

    spec.json                 the spec, every field written out
    KEY.circuit.safetensors   a circuit, per result that has one (characters of KEY that no file name can have are `_`)
    KEY.map.safetensors       a patching map, per result that has one
    KEY.json                  that result's tables, per result that has some
    log.txt                   what the engine printed, tracebacks included
    checkpoint.safetensors    only while unfinished: --resume goes on from it, and nothing starts without

stdout carries one JSON object a line, flushed, and nothing else. `event` says which:

    {"event": "started",    "out": "DIR", "spec": {...}}      always first, but where nothing is started
    {"event": "resumed",    "step": 12}                       the checkpoint was good for this spec and engine
    {"event": "phase",      "name": "search", "total": 128}   total 0: unknown
    {"event": "step",       "done": 17, "note": "9.6.q"}      about five a second at most
    {"event": "log",        "text": "..."}
    {"event": "checkpoint", "step": 13}                       --resume would go on from here
    {"event": "result",     "key": "circuit", "data": "DIR/circuit.json",
                            "circuit": "DIR/circuit.circuit.safetensors" | null, "map": null}     data may be null too
    {"event": "error",      "code": "invalid_task", "message": "...", "job_code": "invalid_task",
                            "faults": [{"where": "...", "message": "..."}]}
    {"event": "finished",   "state": "succeeded" | "failed" | "cancelled"}      always last

Exit status: 0 succeeded; 1 failed (an `error` came before); 2 the spec has faults, the command line is wrong, or DIR
holds a checkpoint and --resume is missing or the checkpoint is another job's, or holds another job's results: nothing
was started; 130 cancelled. SIGINT and SIGTERM cancel: the engine stops at its next step, or is killed after a grace; a
second signal kills it at once. A reader that goes away (closed stdout) cancels too. The checkpoint stays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError, Conflict, SpecError
from acdc.settings import load_settings
from acdc.spec import EvaluateSpec, JobSpec, OnCircuit, parse_job
from workers.checkpoints import spec_of
from workers.executor import ENGINE, Died, EngineChild, Heard
from workers.wire import Done, Failed, Found, Log, Phase, Resumed, Saved, Step, Stopped

SUCCEEDED, FAILED, REFUSED, CANCELLED = 0, 1, 2, 130
_STATES = {SUCCEEDED: "succeeded", FAILED: "failed", REFUSED: "failed", CANCELLED: "cancelled"}
_LOOK_S = 0.2  # between two looks whether a signal came


def main(argv: Sequence[str] | None = None, *, engine: Sequence[str] = ENGINE) -> int:
    """The exit status. engine: the program of the engine process."""
    options = _parse(argv)
    try:
        spec = _read_spec(options.spec)
        if isinstance(spec, EvaluateSpec | OnCircuit) and spec.circuit is not None and options.source is None:
            raise SpecError(f"a job on circuit {spec.circuit!r} needs its file here: give --source FILE")
        run = _LocalRun(spec, options.out, engine)
        status = run.run(options.source, resume=options.resume)
    except AcdcError as error:
        _tell("error", **error.to_dict(), job_code=error.job_code)
        status = REFUSED if isinstance(error, SpecError | Conflict) else FAILED
    except OSError as error:
        _tell("error", code="storage", message=f"{options.out}: {error.strerror}", faults=[], job_code="storage")
        status = FAILED
    _tell("finished", state=_STATES[status])
    return status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.local", description="Run one job spec without a service.")
    parser.add_argument("spec", metavar="SPEC.json", help="a job spec as JSON; - reads stdin")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    parser.add_argument("--source", type=Path, metavar="FILE", help="the circuit of a job on one")
    return parser.parse_args(argv)


def _read_spec(name: str) -> JobSpec:
    try:
        return parse_job(json.loads(sys.stdin.read() if name == "-" else Path(name).read_text()))
    except OSError as error:
        raise SpecError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SpecError(f"{name}: no JSON: {error}") from None


def _tell(event: str, **facts: object) -> None:
    """One line on stdout; to nobody if the reader has gone."""
    try:
        sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What Python would flush at exit must find an open file; and a reader that has gone wants no more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.kill(os.getpid(), signal.SIGTERM)


class _LocalRun:
    def __init__(self, spec: JobSpec, out: Path, engine: Sequence[str]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._spec = json.loads(spec.canonical_json)
        self._said = json.dumps(self._spec, indent=2) + "\n"
        self._spec_sha256 = spec.sha256
        self._out = out
        self._log = out / "log.txt"
        self._checkpoint = out / "checkpoint.safetensors"
        self._child = EngineChild(grace_s=load_settings().child_grace_s, command=engine)
        self._signals = 0
        self._answered = 0

    def run(self, source: Path | None, *, resume: bool) -> int:
        self._spare_stopped_work(resume)
        self._spare_finished_work()
        (self._out / "spec.json").write_text(self._said)
        checkpoint = self._checkpoint if self._checkpoint.exists() else None
        # On the disk of the results, so that moving a file there is a rename.
        with tempfile.TemporaryDirectory(prefix=".run-", dir=self._out) as scratch, self._signals_counted():
            _tell("started", out=str(self._out), spec=self._spec)  # from now on signals are counted
            if resume and checkpoint is None:
                _tell("log", text=f"{self._out} keeps no work of a stopped job: from the beginning")
            try:
                self._child.begin(
                    self._spec, scratch=Path(scratch), log=self._log, source=source, checkpoint=checkpoint
                )
                return self._follow()
            finally:
                self._child.close()
                if not self._has_log:
                    self._log.unlink(missing_ok=True)

    def _spare_stopped_work(self, resume: bool) -> None:
        """Raises Conflict where a checkpoint would be lost. The engine tells of a damaged one and starts over."""
        if not self._checkpoint.exists():
            return
        spec = spec_of(self._checkpoint)
        is_another = spec not in (None, self._spec_sha256)
        if resume and not is_another:
            return
        holds, go_on = "keeps the work of this job, which was stopped", "--resume goes on with it, "
        if is_another:
            holds, go_on = f"keeps the work of another job ({self._out / 'spec.json'}), which was stopped", ""
        elif spec is None:
            holds, go_on = "holds a damaged checkpoint", "--resume starts over, "
        raise Conflict(
            f"{self._out} {holds}: {go_on}--out with another directory leaves it there; or delete {self._checkpoint}"
        )

    def _spare_finished_work(self) -> None:
        """Raises Conflict where the results of another job would be replaced, or mixed with this one's."""
        said = self._out / "spec.json"
        results = {*self._out.glob("*.json"), *self._out.glob("*.safetensors")} - {said, self._checkpoint}
        if said.exists() and results and said.read_text() != self._said:
            raise Conflict(
                f"{self._out} holds the results of another job ({said}): --out with another directory leaves them there"
            )

    @property
    def _has_log(self) -> bool:
        return self._log.exists() and self._log.stat().st_size > 0

    def _follow(self) -> int:
        while True:
            self._obey_signals()
            heard = self._child.hear(_LOOK_S)
            match heard:
                case Done():
                    self._checkpoint.unlink(missing_ok=True)
                    return SUCCEEDED
                case Stopped():
                    return CANCELLED
                case Failed():
                    facts = asdict(heard)
                    del facts["run"]
                    if heard.code == AcdcError.code and self._has_log:
                        facts["message"] += f": {self._log}"
                    _tell("error", **facts)
                    return FAILED
                case Died():
                    return self._on_death(heard)
                case _:
                    self._pass_on(heard)

    def _on_death(self, died: Died) -> int:
        if self._signals:
            return CANCELLED  # it was killed, having taken too long to stop
        way_out = "--resume goes on from the last checkpoint" if self._checkpoint.exists() else "nothing was kept"
        message = f"the engine process died: {died.reason}; {way_out}"
        if self._has_log:
            message += f"; {self._log} may say more"
        _tell("error", code="internal", message=message, faults=[], job_code="internal")
        return FAILED

    def _pass_on(self, heard: Heard | None) -> None:
        match heard:
            case Resumed(step=step):
                _tell("resumed", step=step)
            case Phase(name=name, total=total):
                _tell("phase", name=name, total=total)
            case Step(done=done, note=note):
                _tell("step", done=done, note=note)
            case Log(text=text):
                _tell("log", text=text)
            case Saved(path=path, step=step):
                Path(path).replace(self._checkpoint)
                _tell("checkpoint", step=step)
            case Found():
                _tell("result", **self._keep(heard))

    def _keep(self, found: Found) -> dict[str, Any]:
        """Move a result's files from scratch to where they stay."""
        stem = re.sub(r"[^\w.=+-]", "_", found.key)
        kept: dict[str, Any] = {"key": found.key, "data": None}
        if json.loads(Path(found.data).read_text()):
            kept["data"] = str(self._out / f"{stem}.json")
            shutil.move(found.data, kept["data"])
        for kind, file in (("circuit", found.circuit), ("map", found.map)):
            kept[kind] = None if file is None else str(self._out / f"{stem}.{kind}.safetensors")
            if file is not None:
                shutil.move(file, kept[kind])
        return kept

    @contextlib.contextmanager
    def _signals_counted(self) -> Iterator[None]:
        """Handlers count and no more: the loop acts on them, between two messages."""

        def count(*_: object) -> None:
            self._signals += 1

        before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _obey_signals(self) -> None:
        if self._signals > self._answered:
            self._answered = self._signals
            if self._signals == 1:
                self._child.cancel()
            else:
                self._child.kill()


if __name__ == "__main__":
    sys.exit(main())
