"""Numbers of one batch after the other, put together to the cells of a map.

Making a map is a row of steps, the same number on every batch, each of which fills some cells. What is done is handed
over as a checkpoint after every step; started with one, a map goes on at the first step that is left, and ends with the
same numbers to the bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from acdc.errors import ModelError, OutOfMemory
from acdc.metrics import Metric
from acdc.patch_map import Axis, Cells, Numbers, measured_axis
from acdc.patching.batches import Batch
from acdc.progress import Checkpoint, Progress
from acdc.tasks.prompts import Pair

COPIES = 3  # of all numbers: as collected, as differences, and on their way into a file


@dataclass(frozen=True)
class Outline:
    """What a map will be, known before anything is computed. axes: all but the metric's. base: the run that is changed.
    parameters: every choice that its numbers depend on. steps: on each batch."""

    kind: str
    axes: Sequence[Axis]
    base: str
    parameters: Mapping[str, Any]
    steps: int


class Work(Protocol):
    """What the steps on one batch need."""

    def unchanged(self) -> Mapping[str, Numbers]:
        """Metrics of runs without a change, clean or corrupt, that are known from the beginning: [metric, example]"""
        ...


W = TypeVar("W", bound=Work)


class Collected:
    """found: [metric, *axes, example]; clean, corrupt: [metric, example]. Zeros to begin with, or what the checkpoint
    of the same map holds. done: steps that are in them."""

    def __init__(
        self,
        outline: Outline,
        pairs: Sequence[Pair],
        batches: Sequence[Batch],
        metrics: Sequence[Metric],
        memory_bytes: int,
        progress: Progress,
    ) -> None:
        """Raises OutOfMemory, Cancelled."""
        self.outline, self.batches, self.progress, self.done = outline, batches, progress, 0
        self.axes = (measured_axis([metric.name for metric in metrics]), *outline.axes)
        self.groups = tuple(pair.group for pair in pairs)
        shape = tuple(len(axis.labels) for axis in self.axes)
        _check_memory(shape, len(pairs), memory_bytes)
        self.found = np.zeros((*shape, len(pairs)))
        self.clean, self.corrupt = (np.zeros((len(metrics), len(pairs))) for _ in range(2))
        self._belongs_to = _sha256(self.axes, outline, pairs, batches)
        progress.phase(outline.kind.replace("_", " "), len(batches) * outline.steps)
        self._resume()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def run(self, begin: Callable[[Batch], W], fill: Callable[[W, Batch, int], None]) -> None:
        """Do what is left. begin: make what the steps on a batch need; one of them is there at a time. fill: note the
        cells of a step. Raises ModelError, Cancelled."""
        n = self.outline.steps
        for number, batch in enumerate(self.batches):
            steps = range(max(0, self.done - number * n), n)
            if not steps:
                continue
            work = begin(batch)
            if steps.start == 0:
                for name, values in work.unchanged().items():
                    self.note_run(batch, name, values)
            for step in steps:
                fill(work, batch, step)
                self.done += 1
                self.progress.save(Checkpoint(self.done, {"map": self._belongs_to}, self._arrays))
                self.progress.step(self.done)
            del work  # its runs would stay beside those of the next batch

    def stop_if_cancelled(self) -> None:
        """To be called often within a step. Raises Cancelled."""
        self.progress.step(self.done)

    @property
    def _arrays(self) -> dict[str, Numbers]:
        return {"found": self.found, "clean": self.clean, "corrupt": self.corrupt}

    def _resume(self) -> None:
        saved = self.progress.resume()
        if saved is None:
            return
        if saved.facts.get("map") != self._belongs_to:
            self.progress.log("the checkpoint is of another map: starting over")
            return
        for name, array in self._arrays.items():
            array[...] = saved.arrays[name]
        self.done = saved.step
        self.progress.step(self.done)

    # -- numbers -------------------------------------------------------------------------------------------------------

    def note(self, batch: Batch, at: tuple[int, ...], values: Numbers, weight: float = 1.0) -> None:
        """Add weight * values [metric, *axes after `at`, example of the batch] at these places of the first axes.

        Raises ModelError for a value that is not a finite number.
        """
        self._check_finite(batch, values, "with a change in it")
        here = np.moveaxis(self.found, 0, len(at))[at]  # a view: [metric, ..., example]
        here[..., list(batch.examples)] += weight * values

    def note_cells(self, batch: Batch, at: tuple[npt.NDArray[np.int64], ...], values: Numbers) -> None:
        """The same at single cells, none of them twice. at: [cell] for each axis; values: [metric, cell, example]."""
        self._check_finite(batch, values, "with a change in it")
        here: Any = (slice(None), *(places[:, None] for places in at), list(batch.examples))
        self.found[here] += values

    def note_run(self, batch: Batch, name: str, values: Numbers, weight: float = 1.0) -> None:
        """The same for an unchanged run, clean or corrupt. values: [metric, example of the batch]"""
        self._check_finite(batch, values, f"in the {name} run")
        ends = {"clean": self.clean, "corrupt": self.corrupt}[name]
        ends[:, list(batch.examples)] += weight * values

    def _check_finite(self, batch: Batch, values: Numbers, where: str) -> None:
        if np.isfinite(values).all():
            return
        at = np.argwhere(~np.isfinite(values))[0]
        metric, prompt = self.axes[0].labels[at[0]], batch.examples[at[-1]] + 1
        raise ModelError(
            f"{metric} of prompt {prompt} {where} is {values[tuple(at)]}, which is no finite number: use dtype "
            "float32, check the weights, or leave the prompt out"
        )

    def cells(
        self,
        defined: npt.NDArray[np.bool_] | None = None,
        facts: Mapping[str, float] | None = None,
        *,
        has_other_run: bool = True,
    ) -> Cells:
        """defined: where there is a cell; everywhere by default."""
        return Cells(
            kind=self.outline.kind,
            axes=self.axes,
            per_example=self.found,
            defined=np.ones(self.found.shape[1:-1], dtype=bool) if defined is None else defined,
            clean=self.clean,
            corrupt=self.corrupt,
            base=self.outline.base,
            groups=self.groups,
            parameters=self.outline.parameters,
            facts=facts or {},
            has_other_run=has_other_run,
        )


def layer_axis(n_layers: int) -> Axis:
    return Axis("layer", tuple(map(str, range(n_layers))))


def _check_memory(shape: tuple[int, ...], n_prompts: int, memory_bytes: int) -> None:
    n_cells = int(np.prod(shape))
    needed = COPIES * n_cells * n_prompts * np.dtype(np.float64).itemsize
    if needed > memory_bytes:
        raise OutOfMemory(
            f"the numbers of {n_cells:,} cells on {n_prompts:,} prompts need {needed:,} bytes and "
            f"compute.memory_bytes is {memory_bytes:,}: ask for fewer nodes or places, take fewer prompts, or raise it"
        )


def _sha256(axes: Sequence[Axis], outline: Outline, pairs: Sequence[Pair], batches: Sequence[Batch]) -> str:
    """Of all that says which number belongs where; a checkpoint with another one is of no use."""
    prompts = [[pair.clean, pair.corrupt, pair.answers, pair.wrong] for pair in pairs]
    labels = [[axis.name, *axis.labels] for axis in axes]
    order = [batch.examples for batch in batches]
    told = [outline.kind, labels, outline.base, outline.parameters, outline.steps, prompts, order]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
