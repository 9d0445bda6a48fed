"""The checkpoints of a job that searches and then evaluates: the search's last one, and beside it what was measured."""

from __future__ import annotations

from acdc.evaluation.memory import Memory
from acdc.progress import Checkpoint, Part, Progress

_SEARCH, _MEASURED = "search/", "measured/"


class Stages:
    """search: the progress that the search is given. memory: what the evaluation is given; it saves as it grows."""

    def __init__(self, progress: Progress) -> None:
        saved = progress.resume()
        self._progress = progress
        self._searched = _part(saved, _SEARCH)
        self.search: Progress = _Search(self, progress)
        self.memory = Memory(on_change=self._save)
        if saved is not None:
            measured = {name: array for name, array in saved.arrays.items() if name.startswith(_MEASURED)}
            self.memory.restore({name.removeprefix(_MEASURED): array for name, array in measured.items()})

    @property
    def searched(self) -> Checkpoint | None:
        return self._searched

    def save_search(self, checkpoint: Checkpoint) -> None:
        self._searched = checkpoint
        self._save()

    def _save(self) -> None:
        search = self._searched or Checkpoint(0)
        arrays = {f"{_SEARCH}{name}": array for name, array in search.arrays.items()}
        arrays |= {f"{_MEASURED}{name}": array for name, array in self.memory.arrays().items()}
        facts = {} if self._searched is None else {"search": {"step": search.step, "facts": dict(search.facts)}}
        self._progress.save(Checkpoint(search.step + self.memory.n_measured, facts, arrays))


def _part(saved: Checkpoint | None, prefix: str) -> Checkpoint | None:
    """The search's own checkpoint, as it handed it over."""
    if saved is None or "search" not in saved.facts:
        return None
    kept = saved.facts["search"]
    assert isinstance(kept, dict)
    arrays = {name.removeprefix(prefix): array for name, array in saved.arrays.items() if name.startswith(prefix)}
    return Checkpoint(kept["step"], kept["facts"], arrays)


class _Search(Part):
    """The job's progress, but for its checkpoints."""

    def __init__(self, stages: Stages, progress: Progress) -> None:
        super().__init__(progress)
        self._stages = stages

    def save(self, checkpoint: Checkpoint) -> None:
        self._stages.save_search(checkpoint)

    def resume(self) -> Checkpoint | None:
        return self._stages.searched
