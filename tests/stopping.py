"""Progress that keeps the latest checkpoint as a file gives it back, and stops a run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from acdc.errors import Cancelled
from acdc.progress import Checkpoint, Quiet
from workers.checkpoints import read_checkpoint, write_checkpoint


class Keeps(Quiet):
    """Goes on from `saved`, and replaces it by every new checkpoint."""

    def __init__(self, saved: Checkpoint | None = None) -> None:
        self.saved = saved

    def save(self, checkpoint: Checkpoint) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "checkpoint"
            write_checkpoint(path, checkpoint, "a spec")
            self.saved = read_checkpoint(path, "a spec")

    def resume(self) -> Checkpoint | None:
        return self.saved


class StopsAt(Keeps):
    """Stops a run at its n-th call of `step`; -1 never does."""

    def __init__(self, stop: int = -1, saved: Checkpoint | None = None) -> None:
        super().__init__(saved)
        self.stop, self.calls = stop, 0

    def step(self, done: int, note: str = "") -> None:
        self.calls += 1
        if self.calls == self.stop:
            raise Cancelled("stopped by the test")
