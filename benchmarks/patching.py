"""make bench-patching: activation patching of every head at every position, next to a loop with one hook per cell.

Prints a table and writes build/bench_patching.json. The model is fetched into the cache if it is not there.
    python benchmarks/patching.py [--model smollm2-135m-instruct-q4] [--prompts 8] [--sample 40] [--out FILE]

patching-vs-hooks: time of the loop over time of the map. The loop is the Hugging Face model, run once per cell on the
same prompts, with logits at the last position alone and without a key/value cache, and one hook that puts the corrupt
run's head output in; a random sample of its cells is timed, and its mean taken for all of them. The map is the whole
map, recording of both runs included. The two take turns, so that a busy machine slows both. The largest difference
of a metric between the two is printed as well: they compute the same.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import Figure, environment, ioi_of_one_length, write
from torch import Tensor, nn

from acdc.metrics import METRICS
from acdc.models.architectures import describe, wrap
from acdc.models.cache import ModelCache
from acdc.models.transformer import Transformer, as_found
from acdc.patch_map import Cells
from acdc.patching.batches import Batch, make_batches
from acdc.progress import Quiet
from acdc.settings import load_settings
from acdc.spec import reference_of
from acdc.tasks.prompts import Pair
from acdc.tracing.activation import patch_activations
from acdc.tracing.places import make_places

MEMORY = 2**30
METRIC = METRICS["logit_diff"]


def make_map(t: Transformer, pairs: Sequence[Pair], batches: Sequence[Batch]) -> Cells:
    return patch_activations(
        t,
        pairs,
        batches,
        [METRIC],
        kind="head",
        places=make_places(pairs, "position"),
        direction="noising",
        memory_bytes=MEMORY,
        progress=Quiet(),
    )


class Loop:
    """One forward and one hook per cell, on the Hugging Face model."""

    def __init__(self, t: Transformer, batch: Batch) -> None:
        self.t, self.batch = t, batch
        row = describe(t.module)
        self.outs = [attrgetter(row.out)(block) for block in attrgetter(row.blocks)(t.module)]
        self.corrupt: list[Tensor] = []
        handles = [out.register_forward_pre_hook(lambda _, args: self.corrupt.append(args[0])) for out in self.outs]
        self._forward(batch.corrupt)
        for handle in handles:
            handle.remove()

    def cell(self, layer: int, head: int, position: int) -> Tensor:
        """The metric [example] with one head's output at one position from the corrupt run."""
        of_head = slice(head * self.t.d_head, (head + 1) * self.t.d_head)

        def put(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].clone()
            z[:, position, of_head] = self.corrupt[layer][:, position, of_head]
            return (z, *args[1:])

        handle = self.outs[layer].register_forward_pre_hook(put)
        try:
            return METRIC(self._forward(self.batch.clean), self.batch)
        finally:
            handle.remove()

    def _forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.t.module(tokens, logits_to_keep=1, use_cache=False).logits[:, 0]
        return logits


def seconds(t: Transformer, begin: float) -> float:
    if t.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def one_run(t: Transformer, pairs: Sequence[Pair], batch: Batch, sample: list[tuple[int, int, int]]) -> dict[str, Any]:
    """The map, between two halves of the sampled loop."""
    loop, half = Loop(t, batch), len(sample) // 2
    expected, loop_s = [], 0.0
    for number, cell in enumerate(sample):
        if number == half:
            begin = time.perf_counter()
            cells = make_map(t, pairs, [batch])
            map_s = seconds(t, begin)
        begin = time.perf_counter()
        expected.append(loop.cell(*cell))
        loop_s += seconds(t, begin)
    found = np.stack([cells.per_example[(0, *cell)] for cell in sample])
    wanted = torch.stack(expected).double().cpu().numpy()
    n_cells = int(np.prod(cells.defined.shape))
    return {
        "ratio": loop_s / len(sample) * n_cells / map_s,
        "map_s": map_s,
        "cell_ms": loop_s / len(sample) * 1e3,
        "n_cells": n_cells,
        "difference": float(np.abs(found - wanted).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct-q4")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--sample", type=int, default=40, help="cells of the loop that are timed in each run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench_patching.json"))
    arguments = parser.parse_args()
    loaded = ModelCache(load_settings().cache_dir).load(reference_of(arguments.model))
    pairs = ioi_of_one_length(loaded.tokenizer, arguments.prompts)
    with as_found(loaded.model), torch.no_grad():
        t = wrap(loaded.model)
        (batch,) = make_batches(t, pairs, 4096, MEMORY)
        rng = random.Random(0)
        runs = []
        Loop(t, batch).cell(0, 0, 0)  # what only the first call needs
        for _ in range(arguments.runs):
            places = (t.n_layers, t.n_heads, batch.length)
            sample = [tuple(rng.randrange(n) for n in places) for _ in range(arguments.sample)]
            runs.append(one_run(t, pairs, batch, sample))  # type: ignore[arg-type]
    report(arguments, t, batch, runs)


def report(arguments: argparse.Namespace, t: Transformer, batch: Batch, runs: list[dict[str, Any]]) -> None:
    def median(key: str) -> float:
        return float(statistics.median(run[key] for run in runs))

    value, target = round(median("ratio"), 2), 5.0
    how = (
        f"{arguments.model}, IOI, {arguments.prompts} prompts of {batch.length} tokens, {runs[0]['n_cells']} cells, "
        f"{str(t.dtype).removeprefix('torch.')}; median of {len(runs)} runs; loop: {arguments.sample} random cells a "
        f"run, {median('cell_ms'):.0f} ms each; map {median('map_s'):.1f} s; largest difference of logit_diff "
        f"{max(run['difference'] for run in runs):.1e}"
    )
    figure = Figure("patching-vs-hooks", value, "x", target, "higher", len(runs), how)
    write(arguments.out, [figure], environment(t.device))


if __name__ == "__main__":
    main()
