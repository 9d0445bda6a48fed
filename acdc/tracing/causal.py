"""Causal tracing (Meng et al. 2022, arXiv 2202.05262): the subject is made unreadable, then single states are restored.

The base is a corrupted run: Gaussian noise is added to the embeddings of the subject's tokens, or these tokens, or all,
come from the pair's corrupt prompt. A cell restores one kind of state, the mediator, to its clean value in a window of
layers at one place. With m the metric, a mean over prompts and noise samples:

  total effect     TE = m(clean) - m(corrupted), the difference of the map's two runs.
  indirect effect  IE = m(restored) - m(corrupted), the map's effect: the mediator's share. Vig et al. 2020
                   (arXiv 2004.12265) call it natural indirect effect, of going from the corrupted to the clean value.
  direct effect    DE = m(clean) - m(restored) = TE - IE: what corrupting does while the mediator is held at its clean
                   value. It is Vig et al.'s natural direct effect of the corruption, with its sign turned.

With MLPs or attention severed, their outputs at the restored place stay what they were in the corrupted run, in every
layer. That is the modified graph of Meng et al.: the effect is that part of the indirect effect which does not pass
through later MLPs (or attention) at that place. It is no direct effect.

The paper restores single layers of the stream and windows of ten layers of MLP and attention outputs; its metric is the
probability of the answer (`ANSWER_PROBABILITY`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from acdc.errors import Fault, TaskError
from acdc.metrics import METRICS, Metric
from acdc.models.transformer import Transformer
from acdc.patch_map import Axis, Cells, Numbers
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
from acdc.tracing.collecting import Collected, Outline, layer_axis
from acdc.tracing.faults import faults_raised
from acdc.tracing.measuring import make_reader
from acdc.tracing.places import EVERYWHERE, Places, first_changes, pair_of_row, role_places, starts_of
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
    """A row of the map: a state, restored in `window` layers.

    severed: what stays, at the restored place, as the corrupted run had it in every layer. The effect is then that part
    of the indirect one which does not pass through it.
    """

    state: str
    window: int
    severed: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        window = [] if self.window == 1 else [f"{self.window} layers"]
        severed = [f"{' and '.join(self.severed)} severed"] if self.severed else []
        return ", ".join((self.state, *window, *severed))


@dataclass(frozen=True)
class Corruption:
    """How the subject is made unreadable.

    role: of the subject's tokens; None for the whole prompt, and only without noise. sigma: standard deviation of the
    noise, in standard deviations of the embeddings; None for the tokens of the pair's corrupt prompt instead. samples:
    of the noise. seed: of the first of them.
    """

    role: str | None
    sigma: float | None
    samples: int
    seed: int


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

    Raises TaskError with all of `faults_of_trace`, OutOfMemory, ModelError, Cancelled.
    """
    if faults := faults_of_trace(t, pairs, corruption, restored):
        raise TaskError("this cannot be traced", faults)
    subject = None if corruption.role is None else role_places(pairs, [corruption.role])
    std = embedding_std(t) if corruption.sigma is not None else 0.0
    n_samples = corruption.samples if corruption.sigma is not None else 1
    kinds = Axis("restored", tuple(one.label for one in restored))
    axes = kinds, layer_axis(t.n_layers), Axis("place", places.labels)
    cells = list(np.ndindex(n_samples, len(restored), t.n_layers))
    outline = Outline(
        "causal_tracing", axes, "corrupt", _parameters(corruption, restored, places, n_samples), len(cells)
    )
    collected = Collected(outline, pairs, batches, metrics, memory_bytes, progress)

    def fill(work: _Work, batch: Batch, step: int) -> None:
        sample, index, layer = cells[step]
        is_first = (index, layer) == (0, 0)
        if is_first or work.corrupted is work.clean:  # a map that goes on may do so within a sample
            work.corrupt(corruption, sample, std)
        if is_first:
            collected.note_run(batch, "corrupt", work.metric_of(work.corrupted), 1 / n_samples)
        values = work.measure(restored[index], layer, collected.stop_if_cancelled)
        collected.note(batch, (index, layer), values, 1 / n_samples)

    collected.run(lambda batch: _Work(t, batch, metrics, places, subject, memory_bytes), fill)
    return collected.cells(facts={"noise_standard_deviation": (corruption.sigma or 0.0) * std})


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


def faults_of_trace(
    t: Transformer, pairs: Sequence[Pair], corruption: Corruption, restored: Sequence[Restored]
) -> list[Fault]:
    """All that is wrong with what `trace_causes` is asked for, but for its places."""
    return [*_faults_of_states(t, restored), *_faults_of_corruption(pairs, corruption)]


def _faults_of_states(t: Transformer, restored: Sequence[Restored]) -> list[Fault]:
    has_mlp = t.graph.shape.has_mlp
    known, cuttable = ([kind for kind in kinds if has_mlp or kind != "mlp"] for kinds in (STATES, SEVERED))
    way_out = f"what can be severed in this model: {', '.join(cuttable)}, and only while the stream is restored"
    faults = [
        Fault(one.label, f"no such state to restore in this model; it has: {', '.join(known)}")
        for one in restored
        if one.state not in known
    ]
    faults += [
        Fault(one.label, way_out)
        for one in restored
        if one.severed and not (set(one.severed) <= set(cuttable) and one.state.startswith("residual"))
    ]
    labels = Counter(one.label for one in restored)
    faults += [Fault(label, "is asked for twice") for label, n in sorted(labels.items()) if n > 1]
    return faults if restored else [Fault("restored", "nothing is asked for")]


def _faults_of_corruption(pairs: Sequence[Pair], corruption: Corruption) -> list[Fault]:
    role, sigma, faults = corruption.role, corruption.sigma, []
    if corruption.samples < 1 or (sigma is not None and sigma < 0):
        faults.append(Fault("corruption", "needs one sample or more, and a sigma of 0 or more"))
    if role is None:
        return faults if sigma is None else [*faults, Fault("corruption", "noise needs a subject: name a role")]
    if missing := faults_raised(lambda: role_places(pairs, [role])):
        return [*faults, *missing]
    return faults if sigma is not None else [*faults, *_same_at(pairs, role)]


def _same_at(pairs: Sequence[Pair], role: str) -> list[Fault]:
    """Prompts of which the corrupt one has the clean one's tokens at a role that all have."""
    faults = []
    for number, pair in enumerate(pairs, start=1):
        spans = {**pair.roles, EVERYWHERE: (0, len(pair.clean))}
        differ = [name for name, at in spans.items() if pair.clean[slice(*at)] != pair.corrupt[slice(*at)]]
        if role not in differ:
            others = ", ".join(name for name in differ if name != EVERYWHERE) or "none"
            same = f"the corrupt prompt has the same tokens at {role!r}; roles at which it differs: {others}"
            faults.append(Fault(f"prompt {number}", same))
    return faults


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
        subject: Places | None,
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
        self.subject = None if subject is None else subject.in_prompts(batch)[0]

    def unchanged(self) -> dict[str, Numbers]:
        """Of the clean run alone: the corrupt one depends on the sample."""
        return {"clean": self.metric_of(self.clean)}

    def metric_of(self, run: Run) -> Numbers:
        """[metric, example]"""
        return self.sweep.reader.measure_run(run.last)

    @torch.no_grad()
    def corrupt(self, corruption: Corruption, sample: int, std: float) -> None:
        """Record a corrupted run."""
        self.corrupted = self.clean  # lets go of the last sample's run: three would not fit
        if corruption.sigma is None:
            replaced = self._with_tokens_replaced()
            inputs, first_change = self.t.embed(replaced.corrupt), first_changes(replaced)
        else:
            assert self.subject is not None
            inputs, first_change = self._noised(corruption, sample, std), self.subject.argmax(-1)
        self.corrupted = record_run(self.t, inputs)
        self.starts = starts_of(self.where, first_change, is_causal=self.t.is_causal)

    def _with_tokens_replaced(self) -> Batch:
        """The batch with the corrupt tokens of the subject alone, and with all of them where there is no subject."""
        batch = self.batch
        if self.subject is None:
            return batch
        is_subject = torch.from_numpy(self.subject).to(batch.clean.device)
        return replace(batch, corrupt=torch.where(is_subject, batch.corrupt, batch.clean))

    def _noised(self, corruption: Corruption, sample: int, std: float) -> Tensor:
        """Inputs [n_inputs, row, pos, d]. The noise of a prompt depends on seed, sample and its number alone."""
        assert self.subject is not None
        assert corruption.sigma is not None
        inputs = self.clean.inputs.clone()
        for row, pair in enumerate(pair_of_row(self.batch)):
            at = np.flatnonzero(self.subject[row])
            rng = np.random.default_rng([corruption.seed, sample, pair])
            noise = torch.from_numpy(rng.standard_normal((len(at), self.t.d_model))).to(inputs)
            inputs[0, row, at] += corruption.sigma * std * noise
        return inputs

    def measure(self, one: Restored, layer: int, step: Callable[[], None]) -> Numbers:
        """[metric, place, example]"""
        layers = window_around(layer, one.window, self.t.n_layers)
        first_read = self.sweep.reader.first_read

        def run(tile: Tile, rows: Tensor) -> tuple[Tensor, int]:
            where = torch.from_numpy(self.where[tile.cells, tile.rows]).to(rows.device)
            change = _Restore(self.t, one, layers, self.clean, self.corrupted, rows, where)
            x = change.begin(layers.start, self.corrupted.before[layers.start][rows, tile.start :])
            begin = Begin(layers.start, tile.start, first_read, self.corrupted, rows)
            return rerun(self.t, x, begin, change), begin.first_returned

        return self.sweep(self.corrupted.last, self.starts, run, step)


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
        if kind in self.one.severed:
            return self.corrupted
        return self.clean if self.one.state == kind and layer in self.layers else None

    def _put_attention(self, layer: int, out: Tensor, run: Run) -> Tensor:
        m = out.shape[1]
        theirs = attention_output(self.t, self.t.layers[layer], run.z[layer][self.rows, -m:])
        return torch.where(self.where[:, -m:, None], theirs, out)

    def _put(self, x: Tensor, theirs: Tensor) -> Tensor:
        m = x.shape[1]
        return torch.where(self.where[:, -m:, None], theirs[self.rows, -m:], x)
