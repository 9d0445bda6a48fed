"""From last residuals of many cells to metrics per example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acdc.metrics import Metric, in_full_precision
from acdc.models.transformer import Transformer
from acdc.patch_map import Numbers
from acdc.patching.batches import Batch
from acdc.patching.circuits import Prompts
from acdc.patching.forward import NodeOutputs
from acdc.patching.readout import make_readout
from acdc.patching.reruns import Run

ReadMetric = Callable[[Tensor], Tensor]  # [cell, read, d] -> a metric [cell, example]
COPIES = 3  # of the logits that a metric may make


@dataclass(frozen=True)
class Reader:
    """Metrics of one batch, read where its answers are. readouts: one per metric, [cell, read, d] -> [cell, example].
    d is the width of what is read: residuals, or logits of a model that is only known from outside. vocab_size: of the
    logits that a readout may need."""

    batch: Batch
    readouts: Sequence[ReadMetric]
    vocab_size: int

    @property
    def first_read(self) -> int:
        return int(self.batch.read_pos.min())

    def all_as(self, last: Tensor, n_cells: int) -> Tensor:
        """Every cell as a run [row, pos, d] has it: [cell, read, d], to be filled with what differs."""
        return self.batch.take(last).expand(n_cells, -1, -1).clone()

    def put(self, read: Tensor, cells: Tensor, rows: Tensor, last: Tensor, first: int) -> None:
        """Note what rows [n] of cells [n] ended with. last: [n, positions from `first` on, d]."""
        i, at = (rows[:, None] == self.batch.read_row[None]).nonzero(as_tuple=True)
        read[cells[i], at] = last[i, self.batch.read_pos[at] - first]

    def measure(self, read: Tensor, memory_bytes: int) -> Numbers:
        """[cell, read, d] -> [metric, cell, example]. memory_bytes: for logits, of at least one cell."""
        logits = read.shape[1] * self.vocab_size * 8  # in full precision
        most = max(1, memory_bytes // (COPIES * logits))
        with torch.no_grad():
            parts = [[readout(part).double() for part in read.split(most)] for readout in self.readouts]
        return np.stack([torch.cat(of_metric).cpu().numpy() for of_metric in parts])

    def measure_run(self, last: Tensor) -> Numbers:
        """The metrics of a run [row, pos, d] as it is: [metric, example]."""
        return self.measure(self.all_as(last, 1), 0)[:, 0]


def make_reader(t: Transformer, batch: Batch, metrics: Sequence[Metric], clean: Run) -> Reader:
    """clean: the clean run, for metrics that compare with its predictions."""
    with torch.no_grad():
        logits = t.unembed(batch.take(clean.last)[batch.first_read])
        logprobs = in_full_precision(logits).log_softmax(-1)
    prompts = Prompts(batch, clean.inputs, NodeOutputs(clean.inputs, [], []), logprobs)  # nothing is cut here

    def readout(metric: Metric) -> ReadMetric:
        read = make_readout(t, [prompts], metric)
        return lambda residual: read([residual])

    return Reader(batch, [readout(metric) for metric in metrics], t.vocab_size)
