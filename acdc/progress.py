"""How a search says where it is, asks whether to stop, and hands over a checkpoint. It never sees a database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Checkpoint:
    """All that a search needs to go on: a step number, small facts as JSON, arrays as safetensors."""

    step: int
    facts: Mapping[str, object] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)


class Progress(Protocol):
    """One per run. A search calls `step` often: it is cheap, and it is where cancelling takes effect."""

    def phase(self, name: str, total: int) -> None:
        """Begin a phase of `total` steps (0: unknown)."""

    def step(self, done: int, note: str = "") -> None:
        """Say that `done` steps of the phase are done. Raises `Cancelled` when the run is to stop."""

    def log(self, message: str) -> None:
        """Keep a line for the job's log."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Hand over a checkpoint: the latest one replaces those before it."""

    def resume(self) -> Checkpoint | None:
        """The checkpoint that this run was started with, if any."""


class Quiet:
    """The null progress: for library calls and tests."""

    def phase(self, name: str, total: int) -> None: ...

    def step(self, done: int, note: str = "") -> None: ...

    def log(self, message: str) -> None: ...

    def save(self, checkpoint: Checkpoint) -> None: ...

    def resume(self) -> Checkpoint | None:
        return None


class Part:
    """The progress of a part of a run: its phases may carry the part's name, and its checkpoints are not the run's, so
    they are neither kept nor resumed from."""

    def __init__(self, progress: Progress, title: str = "") -> None:
        self._progress, self._title = progress, title

    def phase(self, name: str, total: int) -> None:
        self._progress.phase(f"{self._title}: {name}" if self._title else name, total)

    def step(self, done: int, note: str = "") -> None:
        self._progress.step(done, note)

    def log(self, message: str) -> None:
        self._progress.log(message)

    def save(self, checkpoint: Checkpoint) -> None: ...

    def resume(self) -> Checkpoint | None:
        return None
