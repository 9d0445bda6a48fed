"""Causal tracing (Meng et al. 2022, arXiv 2202.05262): the subject is made unreadable, then single states are restored.

The base is a corrupted run: Gaussian noise is added to the embeddings of the subject's tokens, or the pair's corrupt
prompt is run. Its total effect is metric(clean) - metric(corrupted), the difference of the map's two runs. A cell
restores one kind of state to its clean value, in a window of layers at one place; its indirect effect is
metric(restored) - metric(corrupted), the map's effect. With MLPs (or attention) severed, their outputs at the restored
place stay what they were in the corrupted run in every layer: what is left is the direct effect, along paths that avoid
them there. Values are means over the noise samples.

The paper restores single layers of the stream and windows of ten layers of MLP and attention outputs; its metric is the
probability of the answer (`ANSWER_PROBABILITY`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acdc.errors import Fault, TaskError
from acdc.metrics import METRICS, Metric
from acdc.models.transformer import Transformer
from acdc.patch_map import Axis, Cells
from acdc.patching.batches import Batch
from acdc.patching.reruns import (
    Begin,
    Change,
    Run,
    attention_output,
    bytes_of_rerun,
    bytes_of_run,
    record_run,
    rerun,
)
from acdc.progress import Progress
from acdc.tasks.prompts import Pair
from acdc.tracing.activation import memory_left
from acdc.tracing.collecting import Collected, layer_axis
from acdc.tracing.measuring import Numbers, make_reader
from acdc.tracing.places import Places, first_changes, pair_of_row, role_places, starts_of
from acdc.tracing.sweeping import Sweep
from acdc.tracing.tiles import Tile
from acdc.tracing.windows import window_around

STATES = ("residual_before", "residual_after", "attention", "mlp")
SEVERED = ("mlp", "attention")
CHUNK = 4096  # tokens whose embeddings are held at a time


def _answer_probability(logits: Tensor, batch: Batch, clean_logprobs: Tensor | None) -> Tensor:
    return METRICS["answer_logprob"].function(logits, batch, clean_logprobs).exp()


ANSWER_PROBABILITY = Metric(
    "answer_probability", _answer_probability, needs_wrong=False, needs_clean=False, has_gradient=True
)


@dataclass(frozen=True)
class Restored:
    """A row of the map: a state, restored in `window` layers. severed: what stays corrupted at the restored place."""

    state: str
    window: int
    severed: str | None = None

    @property
    def label(self) -> str:
        return self.state if self.severed is None else f"{self.state}, {self.severed} severed"


PAPER = (
    Restored("residual_after", 1),
    Restored("residual_after", 1, "mlp"),
    Restored("residual_after", 1, "attention"),
    Restored("mlp", 10),
    Restored("attention", 10),
)


@dataclass(frozen=True)
class Corruption:
    """How the subject is made unreadable. role: of the subject's tokens. sigma: standard deviation of the noise, in
    standard deviations of the embeddings; None for the pair's corrupt prompt instead. samples: of the noise. seed: of
    the first of them."""

    role: str
    sigma: float | None = 3.0
    samples: int = 10
    seed: int = 0


def trace_causes(
    t: Transformer,
    pairs: Sequence[Pair],
    batches: Sequence[Batch],
    metrics: Sequence[Metric],
    *,
    corruption: Corruption,
    restored: Sequence[Restored],
    places: Places,
    memory_bytes: int,
    progress: Progress,
) -> Cells:
    """Axes: metric, restored, layer (the middle of the window), place.

    Raises TaskError for unknown states and roles, OutOfMemory, Cancelled.
    """
    _check(t, corruption, restored)
    subject = role_places(pairs, [corruption.role])
    std = embedding_std(t) if corruption.sigma is not None else 0.0
    n_samples = corruption.samples if corruption.sigma is not None else 1
    kinds = Axis("restored", tuple(one.label for one in restored))
    collected = Collected(metrics, (kinds, layer_axis(t.n_layers), Axis("place", places.labels)), pairs)
    progress.phase("causal tracing", len(batches) * n_samples * len(restored) * t.n_layers)
    done = 0
    for batch in batches:
        work = _Work(t, batch, metrics, places, subject, memory_bytes)
        collected.note_run(batch, "clean", work.metric_of(work.clean))
        for sample in range(n_samples):
            work.corrupt(corruption, sample, std)
            collected.note_run(batch, "corrupt", work.metric_of(work.corrupted), 1 / n_samples)
            for index, layer in np.ndindex(len(restored), t.n_layers):
                values = work.measure(restored[index], layer, progress, done)
                collected.note(batch, (index, layer), values, 1 / n_samples)
                done += 1
                progress.step(done)
    facts = {"noise_standard_deviation": (corruption.sigma or 0.0) * std}
    parameters = _parameters(corruption, restored, places, n_samples)
    return collected.cells("causal_tracing", "corrupt", parameters, facts=facts)


def _parameters(
    corruption: Corruption, restored: Sequence[Restored], places: Places, n_samples: int
) -> dict[str, object]:
    return {
        "subject": corruption.role,
        "corruption": "corrupt prompt" if corruption.sigma is None else "noise",
        "sigma": corruption.sigma,
        "samples": n_samples,
        "seed": corruption.seed,
        "windows": {one.label: one.window for one in restored},
        "places": places.kind,
    }


def _check(t: Transformer, corruption: Corruption, restored: Sequence[Restored]) -> None:
    known = [state for state in STATES if t.graph.shape.has_mlp or state != "mlp"]
    faults = [
        Fault(one.label, f"no such state to restore in this model; it has: {', '.join(known)}")
        for one in restored
        if one.state not in known
    ]
    faults += [
        Fault(one.label, f"what can be severed: {', '.join(SEVERED)}, and only while the stream is restored")
        for one in restored
        if one.severed is not None and (one.severed not in SEVERED or not one.state.startswith("residual"))
    ]
    labels = [one.label for one in restored]
    faults += [Fault(label, "is asked for twice") for label in sorted({x for x in labels if labels.count(x) > 1})]
    if not restored:
        faults.append(Fault("restored", "nothing is asked for"))
    if corruption.samples < 1 or (corruption.sigma is not None and corruption.sigma < 0):
        faults.append(Fault("corruption", "needs one sample or more, and a sigma of 0 or more"))
    if faults:
        raise TaskError("this cannot be traced", faults)


@torch.no_grad()
def embedding_std(t: Transformer) -> float:
    """Standard deviation of all numbers of the token embeddings, as they enter the stream (scaled where a model scales
    them)."""
    embeddings = t.module.get_input_embeddings()  # type: ignore[operator]
    total = square = 0.0
    for first in range(0, t.vocab_size, CHUNK):
        ids = torch.arange(first, min(first + CHUNK, t.vocab_size), device=t.device)
        x = embeddings(ids).double()
        total, square = total + float(x.sum()), square + float((x * x).sum())
    n = t.vocab_size * t.d_model
    return float(max(square / n - (total / n) ** 2, 0.0) ** 0.5)


class _Work:
    """One batch: its clean run, a corrupted run, and rows that restore states of the first in the second."""

    def __init__(
        self,
        t: Transformer,
        batch: Batch,
        metrics: Sequence[Metric],
        places: Places,
        subject: Places,
        memory_bytes: int,
    ) -> None:
        self.t, self.batch = t, batch
        left = memory_left(2 * bytes_of_run(t, batch.n_rows * batch.length), memory_bytes)
        with torch.no_grad():
            self.clean = record_run(t, t.embed(batch.clean))
        self.corrupted = self.clean
        length = batch.length
        reader = make_reader(t, batch, metrics, self.clean)
        self.sweep = Sweep(reader, lambda m: bytes_of_rerun(t, m, length), left, t.device)
        self.where = places.in_batch(batch)
        self.subject = subject.in_batch(batch)[0]

    def metric_of(self, run: Run) -> Numbers:
        """[metric, example]"""
        return self.sweep.reader.measure_run(run.last)

    @torch.no_grad()
    def corrupt(self, corruption: Corruption, sample: int, std: float) -> None:
        """Record a corrupted run. The noise of a prompt depends on the seed, the sample and its number alone."""
        t, batch = self.t, self.batch
        if corruption.sigma is None:
            self.corrupted = record_run(t, t.embed(batch.corrupt))
            first_change = first_changes(batch)
        else:
            inputs = self.clean.inputs.clone()
            for row, pair in enumerate(pair_of_row(batch)):
                at = np.flatnonzero(self.subject[row])
                rng = np.random.default_rng([corruption.seed, sample, pair])
                noise = torch.from_numpy(rng.standard_normal((len(at), t.d_model))).to(inputs)
                inputs[0, row, at] += corruption.sigma * std * noise
            self.corrupted = record_run(t, inputs)
            first_change = self.subject.argmax(-1)
        self.starts = starts_of(self.where, first_change, is_causal=t.is_causal)

    def measure(self, one: Restored, layer: int, progress: Progress, done: int) -> Numbers:
        """[metric, place, example]"""
        layers = window_around(layer, one.window, self.t.n_layers)
        first_read = self.sweep.reader.first_read

        def run(tile: Tile, rows: Tensor) -> tuple[Tensor, int]:
            where = torch.from_numpy(self.where[tile.cells, tile.rows]).to(rows.device)
            change = _Restore(self.t, one, layers, self.clean, self.corrupted, rows, where)
            x = change.begin(layers.start, self.corrupted.before[layers.start][rows, tile.start :])
            begin = Begin(layers.start, tile.start, first_read, self.corrupted, rows)
            return rerun(self.t, x, begin, change), begin.first_returned

        return self.sweep(self.corrupted.last, self.starts, run, lambda: progress.step(done))


class _Restore(Change):
    """where: [n, pos], the places to restore in the layers of the window."""

    def __init__(
        self, t: Transformer, one: Restored, layers: range, clean: Run, corrupted: Run, rows: Tensor, where: Tensor
    ) -> None:
        self.t, self.one, self.layers, self.clean, self.corrupted = t, one, layers, clean, corrupted
        self.rows, self.where = rows, where

    def begin(self, layer: int, x: Tensor) -> Tensor:
        """What the first layer of the window starts from."""
        return self._put(x, self.clean.before[layer]) if self.one.state == "residual_before" else x

    def attention(self, layer: int, out: Tensor) -> Tensor:
        run = self._source("attention", layer)
        return out if run is None else self._put_attention(layer, out, run)

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        run = self._source("mlp", layer)
        return out if run is None else self._put(out, run.mlp[layer])

    def after(self, layer: int, x: Tensor) -> Tensor:
        state = self.one.state
        if (state == "residual_after" and layer in self.layers) or (
            state == "residual_before" and layer + 1 in self.layers
        ):
            return self._put(x, self.clean.after(layer))
        return x

    def _source(self, kind: str, layer: int) -> Run | None:
        """Which run the output of a sublayer is taken from at the restored places; None leaves it as it is."""
        if self.one.severed == kind:
            return self.corrupted
        return self.clean if self.one.state == kind and layer in self.layers else None

    def _put_attention(self, layer: int, out: Tensor, run: Run) -> Tensor:
        m = out.shape[1]
        theirs = attention_output(self.t, self.t.layers[layer], run.z[layer][self.rows, -m:])
        return torch.where(self.where[:, -m:, None], theirs, out)

    def _put(self, x: Tensor, theirs: Tensor) -> Tensor:
        m = x.shape[1]
        return torch.where(self.where[:, -m:, None], theirs[self.rows, -m:], x)
