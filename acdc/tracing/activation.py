"""Activation patching: one inner state at a time is taken from the other run, and the metric measured.

Noising puts states of the corrupt run into the clean one: what is needed shows. Denoising puts states of the clean run
into the corrupt one: what suffices shows. They differ where parts stand in for each other (Zhang & Nanda 2024,
arXiv 2309.16042; Heimersheim & Nanda 2024, arXiv 2404.15255).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from acdc.errors import OutOfMemory, TaskError
from acdc.metrics import Metric
from acdc.models.transformer import Transformer
from acdc.patch_map import Axis, Cells, Numbers
from acdc.patching.batches import Batch
from acdc.progress import Progress
from acdc.tasks.prompts import Pair
from acdc.tracing.blocks import BlockModel
from acdc.tracing.collecting import Collected, Outline, layer_axis
from acdc.tracing.places import Places, first_changes, starts_of
from acdc.tracing.states import TransformerStates
from acdc.tracing.subjects import Patch, Subject
from acdc.tracing.sweeping import Sweep
from acdc.tracing.tiles import Tile

BASES = {"noising": "clean", "denoising": "corrupt"}


def patch_activations(
    model: Transformer | BlockModel,
    pairs: Sequence[Pair],
    batches: Sequence[Batch],
    metrics: Sequence[Metric],
    *,
    kind: str,
    places: Places,
    direction: str,
    memory_bytes: int,
    progress: Progress,
) -> Cells:
    """Axes: metric, layer, (head,) place.

    batches: of `pairs`. kind: a state of acdc.tracing.states. direction: noising or denoising. memory_bytes: for the
    recorded runs of one batch and the rows computed at a time. Raises TaskError, OutOfMemory, ModelError, Cancelled.
    """
    subject: Subject = TransformerStates(model) if isinstance(model, Transformer) else model
    if kind not in subject.kinds:
        raise TaskError(f"this model has no state {kind!r} to patch; it has: {', '.join(sorted(subject.kinds))}")
    base = base_of(direction)
    parts = subject.components(kind)
    heads = (Axis("head", parts),) if parts else ()
    axes = layer_axis(subject.n_layers), *heads, Axis("place", places.labels)
    parameters = {"state": kind, "places": places.kind, "direction": direction}
    outline = Outline("activation_patching", axes, base, parameters, subject.n_layers)
    collected = Collected(outline, pairs, batches, metrics, memory_bytes, progress)

    def fill(work: _Work, batch: Batch, layer: int) -> None:
        found = work.layer(layer, collected.stop_if_cancelled)
        collected.note(batch, (layer,), found if parts else found[:, 0])

    collected.run(lambda batch: _Work(subject, batch, kind, places, base, metrics, memory_bytes), fill)
    return collected.cells()


def base_of(direction: str) -> str:
    """Which run is changed. Raises TaskError."""
    if direction not in BASES:
        raise TaskError(f"direction {direction!r} is unknown; known are: {', '.join(BASES)}")
    return BASES[direction]


def memory_left(needed_by_runs: int, memory_bytes: int) -> int:
    """What recorded runs leave. Raises OutOfMemory where they do not fit."""
    if needed_by_runs >= memory_bytes:
        raise OutOfMemory(
            f"the recorded runs of one batch need {needed_by_runs:,} bytes and compute.memory_bytes is "
            f"{memory_bytes:,}: raise it or lower compute.batch_tokens"
        )
    return memory_bytes - needed_by_runs


@dataclass
class _Work:
    """One batch: its two runs recorded, then patched layer by layer."""

    subject: Subject
    batch: Batch
    kind: str
    places: Places
    base_name: str
    metrics: Sequence[Metric]
    memory_bytes: int

    def __post_init__(self) -> None:
        subject, batch = self.subject, self.batch
        memory_left(subject.bytes_of_runs(batch), self.memory_bytes)  # before they are made
        self.clean, self.corrupt = subject.record(batch.clean), subject.record(batch.corrupt)
        self.where = self.places.in_batch(batch)
        self.starts = starts_of(self.where, first_changes(batch), is_causal=subject.is_causal)
        self.n_parts = max(1, len(subject.components(self.kind)))

        length = batch.length
        self.sweep = Sweep(
            subject.reader(batch, self.metrics, self.clean),
            lambda m: subject.bytes_of_row(m, length),
            memory_left(subject.bytes_of_runs(batch), self.memory_bytes),
            subject.device,
        )

    def unchanged(self) -> dict[str, Numbers]:
        """The metrics of both runs: [metric, example]."""
        runs = {"clean": self.clean, "corrupt": self.corrupt}
        return {name: self.sweep.reader.measure_run(self.subject.last(run)) for name, run in runs.items()}

    def layer(self, layer: int, step: Callable[[], None]) -> Numbers:
        """[metric, part, place, example]"""
        base, other = (self.clean, self.corrupt) if self.base_name == "clean" else (self.corrupt, self.clean)
        device, reader = self.subject.device, self.sweep.reader

        def run(tile: Tile, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
            part, place = np.divmod(tile.cells, len(self.places.labels))
            where = torch.from_numpy(self.where[place, tile.rows]).to(device)
            where[:, : tile.start] = False  # the runs agree there
            parts = torch.from_numpy(part).to(device)
            patch = Patch(self.kind, layer, rows, parts, where, tile.start, reader.first_read)
            return self.subject.patched(base, other, patch)

        starts = np.tile(self.starts, (self.n_parts, 1))
        values = self.sweep(self.subject.last(base), starts, run, step)
        return values.reshape(values.shape[0], self.n_parts, len(self.places.labels), -1)
