"""Numbers of one batch after the other, put together to the cells of a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from acdc.metrics import Metric
from acdc.patch_map import Axis, Cells, measured_axis
from acdc.patching.batches import Batch
from acdc.tasks.prompts import Pair
from acdc.tracing.measuring import Numbers


class Collected:
    """found: [metric, *axes, example]; clean, corrupt: [metric, example]. Zeros to begin with."""

    def __init__(self, metrics: Sequence[Metric], axes: Sequence[Axis], pairs: Sequence[Pair]) -> None:
        self.axes = (measured_axis([metric.name for metric in metrics]), *axes)
        self.groups = tuple(pair.group for pair in pairs)
        self.found = np.zeros((*(len(axis.labels) for axis in self.axes), len(pairs)))
        self.clean = np.zeros((len(metrics), len(pairs)))
        self.corrupt = np.zeros((len(metrics), len(pairs)))

    def note(self, batch: Batch, at: tuple[int, ...], values: Numbers, weight: float = 1.0) -> None:
        """Add weight * values [metric, *axes after `at`, example of the batch] at these places of the first axes."""
        here = np.moveaxis(self.found, 0, len(at))[at]  # a view: [metric, ..., example]
        here[..., list(batch.examples)] += weight * values

    def note_run(self, batch: Batch, name: str, values: Numbers, weight: float = 1.0) -> None:
        """The same for an unchanged run, clean or corrupt. values: [metric, example of the batch]"""
        ends = {"clean": self.clean, "corrupt": self.corrupt}[name]
        ends[:, list(batch.examples)] += weight * values

    def cells(
        self,
        kind: str,
        base: str,
        parameters: Mapping[str, Any],
        defined: npt.NDArray[np.bool_] | None = None,
        facts: Mapping[str, float] | None = None,
    ) -> Cells:
        """defined: where there is a cell; everywhere by default."""
        return Cells(
            kind=kind,
            axes=self.axes,
            per_example=self.found,
            defined=np.ones(self.found.shape[1:-1], dtype=bool) if defined is None else defined,
            clean=self.clean,
            corrupt=self.corrupt,
            base=base,
            groups=self.groups,
            parameters=parameters,
            facts=facts or {},
        )


def layer_axis(n_layers: int) -> Axis:
    return Axis("layer", tuple(map(str, range(n_layers))))
