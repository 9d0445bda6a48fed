"""An engine process without torch: it counts instead of searching, with everything around it as in the real one.

The spec's notes say how: a JSON object, see `Play`. It counts one up per step and checkpoints each count, so that a
resumed run is known by the counts that it did not do again (`counted` in the result).
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from acdc.circuit import Circuit
from acdc.errors import Fault, ServiceError, TaskError
from acdc.patch_map import PatchMap
from acdc.progress import Checkpoint, Progress
from acdc.spec import JobSpec
from workers.child import main


@dataclass(frozen=True)
class Play:
    """gates: count n waits until the file of that name is there. marks: directory where every count leaves a file.
    die_at: the process kills itself before that count; die_after: having counted so many itself. fail: how the run ends
    instead of with a result."""

    to: int = 5
    gates: Mapping[str, str] = field(default_factory=dict)
    marks: str | None = None
    die_at: int | None = None
    die_after: int | None = None
    fail: str | None = None
    is_stubborn: bool = False
    is_silent: bool = False


@dataclass(frozen=True)
class Sum:
    key: str
    data: Mapping[str, Any]
    circuit: Circuit | None = None
    patch_map: PatchMap | None = None


def count(spec: JobSpec, *, progress: Progress, source: Circuit | None) -> Iterator[Sum]:
    play = Play(**json.loads(spec.notes or "{}"))
    checkpoint = progress.resume()
    counted = [] if checkpoint is None else list(map(int, checkpoint.arrays["counted"]))
    start = len(counted)
    if not play.is_silent:
        print("counting")  # noqa: T201 - goes to the job's log
    progress.phase("count", play.to)
    if play.fail:
        fail(play.fail)
    for n in range(start + 1, play.to + 1):
        if n == play.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        wait_at(play, n, progress)
        counted.append(n)
        progress.save(Checkpoint(n, {"n": n}, {"counted": np.array(counted)}))
        progress.step(n)
        if n - start == play.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if play.marks:
            (Path(play.marks) / f"{n}.{os.getpid()}").touch()
    progress.log(f"counted to {play.to}")
    yield Sum("sum", {"sum": sum(counted), "counted": counted, "resumed_from": start}, source)


def wait_at(play: Play, n: int, progress: Progress) -> None:
    """Until the gate is open: what a long step is in a real search."""
    gate = play.gates.get(str(n))
    if gate is None:
        return
    if play.marks:
        (Path(play.marks) / f"gate-{n}.{os.getpid()}").touch()
    while not Path(gate).exists():
        time.sleep(0.01)
        if not play.is_stubborn:
            progress.step(n - 1)


def fail(how: str) -> None:
    match how:
        case "task":
            raise TaskError("two rows are bad", [Fault("row 1", "too long"), Fault("row 2", "too short")])
        case "memory":
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "hub":
            raise ServiceError("the hub gives no answer; try again later")
        case "surprise":
            raise ZeroDivisionError("secret detail")
        case "abort":
            os.abort()


if __name__ == "__main__":
    main(make_engine=lambda: count)
