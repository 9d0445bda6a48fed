"""Inner states of a transformer: each can be taken from one run and put into another, at any positions.

residual_before and residual_after: the stream a layer starts from and ends with. residual_between: after attention,
before the MLP (not where they are parallel). attention, mlp: what these add to the stream, biases and post-norms
included. head: z, what a head hands to the output projection, before any post-norm, so that the norm sees the change.
q, k, v: projections, before head norms and rotation; k and v per key/value head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.metrics import Metric
from acdc.models.transformer import Transformer
from acdc.patching.batches import Batch
from acdc.patching.reruns import (
    Begin,
    Change,
    Run,
    attention_output,
    bytes_of_rerun,
    bytes_of_run,
    finish_layer,
    record_run,
    rerun,
)
from acdc.tracing.measuring import Reader, make_reader
from acdc.tracing.subjects import Patch

RESIDUALS = ("residual_before", "residual_after")
_BY_PLACE = ("residual_between", "residual_after", "attention", "mlp", "head")  # a change stays at its positions


@dataclass(frozen=True)
class TransformerStates:
    """A transformer as a subject of activation patching."""

    t: Transformer

    @property
    def kinds(self) -> tuple[str, ...]:
        kinds = [*RESIDUALS, "attention", "head", "q", "k", "v"]
        if self.t.graph.shape.has_mlp:
            kinds += ["mlp"] if self.t.is_parallel else ["mlp", "residual_between"]
        return tuple(kinds)

    @property
    def n_layers(self) -> int:
        return self.t.n_layers

    @property
    def is_causal(self) -> bool:
        return self.t.is_causal

    @property
    def device(self) -> torch.device:
        return self.t.device

    def components(self, kind: str) -> tuple[str, ...]:
        count = {"head": self.t.n_heads, "q": self.t.n_heads, "k": self.t.n_kv_heads, "v": self.t.n_kv_heads}
        return tuple(map(str, range(count.get(kind, 0))))

    @torch.no_grad()
    def record(self, tokens: Tensor) -> Run:
        return record_run(self.t, self.t.embed(tokens))

    def last(self, run: Run) -> Tensor:
        return run.last

    def reader(self, batch: Batch, metrics: Sequence[Metric], clean: Run) -> Reader:
        return make_reader(self.t, batch, metrics, clean)

    def bytes_of_runs(self, batch: Batch) -> int:
        return 2 * bytes_of_run(self.t, batch.n_rows * batch.length)

    def bytes_of_row(self, m: int, length: int) -> int:
        return bytes_of_rerun(self.t, m, length)

    @torch.no_grad()
    def patched(self, base: Run, other: Run, patch: Patch) -> tuple[Tensor, int]:
        t, layer, where = self.t, patch.layer, patch.where[:, patch.start :]
        rows, start = patch.rows, patch.start
        change = Change()
        if patch.kind in _BY_PLACE:
            x = base.after(layer)[rows, start:]
            x[where] = self._ends(base, other, patch)
            layer += 1
        else:
            x = base.before[layer][rows, start:]
            if patch.kind == "residual_before":
                x[where] = other.before[layer][rows, start:][where]
            else:
                change = self._projection(other, patch)
        begin = Begin(layer, start, patch.first_read, base, rows)
        return rerun(t, x, begin, change), begin.first_returned

    def _ends(self, base: Run, other: Run, patch: Patch) -> Tensor:
        """What the layer ends with at the changed places, one by one: [places, d]."""
        t, index, layer = self.t, patch.layer, self.t.layers[patch.layer]
        n, at = patch.where.nonzero(as_tuple=True)
        row = patch.rows[n]
        if patch.kind == "residual_after":
            return other.after(index)[row, at]
        if patch.kind == "residual_between":
            between = other.before[index][row, at] + attention_output(t, layer, other.z[index][row, at])
            assert layer.mlp is not None
            return between + layer.mlp(between)
        z = base.z[index][row, at]
        before = base.before[index][row, at]
        if patch.kind == "head":
            by_head = z.unflatten(-1, (t.n_heads, t.d_head))
            theirs = other.z[index][row, at].unflatten(-1, (t.n_heads, t.d_head))
            places, head = torch.arange(len(row), device=z.device), patch.components[n]
            by_head[places, head] = theirs[places, head]
        elif patch.kind == "attention":
            z = other.z[index][row, at]
        attention = attention_output(t, layer, z)
        if patch.kind == "mlp":
            return before + attention + other.mlp[index][row, at]
        return finish_layer(t, index, before, attention)

    def _projection(self, other: Run, patch: Patch) -> Change:
        first = {"q": 0, "k": self.t.n_heads, "v": self.t.n_heads + self.t.n_kv_heads}[patch.kind]
        n, at = patch.where.nonzero(as_tuple=True)
        which = first + patch.components[n]
        theirs = other.projected[patch.layer][patch.rows[n], at, which]
        return _PutProjection(patch.layer, (n, at - patch.start, which), theirs)


class _PutProjection(Change):
    def __init__(self, layer: int, places: tuple[Tensor, Tensor, Tensor], values: Tensor) -> None:
        self.layer, self.places, self.values = layer, places, values

    def read(self, layer: int, x: Tensor, projected: Tensor) -> Tensor:
        if layer == self.layer:
            projected[self.places] = self.values
        return projected
