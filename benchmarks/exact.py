"""make bench-exact: what exact ACDC costs next to bare forwards, to the plain oracle and to auto-circuit's ACDC.

    python benchmarks/exact.py [--part ioi|oracle|staged|small|gpt2-kl|gpt2-logit-diff] [--runs 3] [--out FILE]

Each part runs alone and puts its rows into build/bench_exact.json, where those of the others stay; without --part all
run, one after the other. runs: of our search, their median counts. Two threads; set OMP_WAIT_POLICY=PASSIVE to keep
waiting threads of both sides from spinning where other work shares the cores. The parts with auto-circuit need
`make peers`. On a machine with a GPU the parts ioi and oracle run there, the others never do.

ioi: smollm2-135m-instruct-q4 as the demo takes it, 8 IOI prompts of one length, KL, tau 0.01. The bare forward is the
Hugging Face model called on the same tokens, as a user would: model(tokens), logits at all positions. Before the first
search it is rehearsed, as by `acdc plan --measure`.
oracle: a sample of that search's decisions, taken again by the plain form of ACDC; it needs the part ioi to have run.
staged: how many edges a staged search decides otherwise than the exact one, on the small model and 64 prompts.
small: end to end against auto-circuit, on a trained model of 4 layers x 8 heads, d 256 (benchmarks/small_model.py).
gpt2-*: per tested edge against auto-circuit, on GPT-2 small's shape with random weights (see `gpt2_model`).
Both sides get the same weights, prompts, objective, tau and order; see benchmarks/peers/auto_circuit_acdc.py for how.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from against_auto_circuit import gpt2, small
from figures import Figure, Lines, clocks, engine_hash, environment, ioi_of_one_length, write
from peer import THEIR_HOME
from searching import make_problem, timed_search
from small_model import small_model, small_pairs
from transformers.utils import logging

from acdc.circuit import Scores
from acdc.discovery.acdc import search_acdc
from acdc.discovery.oracle import decide_again
from acdc.discovery.rehearsal import rehearse_acdc
from acdc.discovery.walk import Rule
from acdc.graph import BoolMatrix, Graph
from acdc.models.architectures import wrap
from acdc.models.cache import ModelCache
from acdc.models.loading import Loaded
from acdc.models.transformer import as_found
from acdc.settings import load_settings
from acdc.spec import reference_of
from acdc.tasks.prompts import Pair

THREADS = 2
MODEL, TAU, N_PROMPTS = "smollm2-135m-instruct-q4", 0.01, 8
FORWARDS = 5  # timed before, in the middle of and after the search
PER_LAYER = 6  # edges that the oracle decides on again
STAGE, STAGED_PROMPTS, STAGED_TAUS = 16, 64, (0.1, 0.01, 0.001)
SEARCH = Path("build/exact/ioi.npz")  # the search found, for the oracle


class Midway(Lines):
    """Measures bare forwards once, in the middle of a search, and counts the time that took."""

    def __init__(self, what: str, measure: Callable[[], None]) -> None:
        super().__init__(what)
        self.measure, self.is_done, self.seconds = measure, False, np.zeros(2)

    def step(self, done: int, note: str = "") -> None:
        super().step(done, note)
        if not self.is_done and done > self.total / 2:
            begin = clocks()
            self.measure()
            self.is_done, self.seconds = True, clocks() - begin


def load() -> tuple[Loaded, list[Pair], str]:
    """The model, its prompts, and words for both."""
    loaded = ModelCache(load_settings().cache_dir).load(reference_of(MODEL))
    pairs = ioi_of_one_length(loaded.tokenizer, N_PROMPTS)
    length = len(pairs[0].clean)
    return loaded, pairs, f"{MODEL}, IOI (seed 0), {N_PROMPTS} prompts of {length} tokens, KL, tau {TAU}"


def ioi(runs: int) -> list[Figure]:
    loaded, pairs, shape = load()
    tokens = torch.tensor([pair.clean for pair in pairs], device=loaded.model.device)
    forwards: list[float] = []

    def measure() -> None:
        for _ in range(FORWARDS):
            begin = clocks()[0]
            loaded.model(tokens)
            forwards.append(clocks()[0] - begin)

    taken = []
    with as_found(loaded.model), torch.no_grad():
        loaded.model(tokens)  # what only the first call needs
        problem = make_problem(wrap(loaded.model), pairs, "kl_divergence")
        planned = rehearse_acdc(problem, Lines("rehearsal"), thresholds=[TAU], rule="signed")
        measure()
        for run in range(runs):
            lines = Midway(f"ioi, run {run + 1}", measure)
            ours = timed_search(wrap(loaded.model), pairs, "kl_divergence", TAU, lines)
            measure()
            taken.append(ours.seconds - lines.seconds)
            print(f"ioi, run {run + 1}: {taken[-1][0]:.0f} s", flush=True)
    seconds, cores = np.median(taken, axis=0)
    per_edge, forward = seconds / ours.tested, statistics.median(forwards)
    SEARCH.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"kept": ours.kept, "costs": ours.found.scores, "tested": ours.found.tested}
    np.savez(SEARCH, per_edge=per_edge, engine=engine_hash(), **found)
    over = (
        f"{shape}; {per_edge * 1e3:.2f} ms per tested edge over {forward * 1e3:.0f} ms, the median of {len(forwards)} "
        f"model(tokens) before, in the middle and after each run; {ours.story()}"
    )
    foretold = f"{shape}; {planned.seconds / 60:.1f} minutes and {planned.edges} tested edges were foretold"
    whole = f"{shape}; model loading not included; {cores / 60:.1f} minutes of core time"
    return [
        Figure("acdc-edge-over-hf-forward", per_edge / forward, "forwards", 0.06, "lower", runs, over),
        Figure("acdc-ioi-minutes", seconds / 60, "minutes", 6.0, "lower", runs, whole),
        Figure("acdc-plan-over-search", planned.seconds / seconds, "x", None, "lower", 1, foretold),
    ]


def oracle() -> list[Figure]:
    if not SEARCH.exists() or str(np.load(SEARCH)["engine"]) != engine_hash():
        raise SystemExit("the oracle follows the decisions of the part ioi, of the same code: run that first")
    loaded, pairs, shape = load()
    with np.load(SEARCH) as arrays:
        kept, costs, tested = arrays["kept"], arrays["costs"], arrays["tested"]
        per_edge = float(arrays["per_edge"])
    with as_found(loaded.model), torch.no_grad():
        problem = make_problem(wrap(loaded.model), pairs, "kl_divergence")
        graph = problem.t.graph
        only = sample_of_all_depths(graph, costs, tested)
        lines = Lines("oracle")
        lines.phase("", int(only.sum()))
        differing, largest, n, begin = 0, 0.0, 0, clocks()
        for n, again in enumerate(decide_again(problem, graph.legal, kept, Rule(TAU), only=only), start=1):
            largest = max(largest, abs(again.cost - float(costs[again.sender, again.receiver])))
            differing += again.is_cut == bool(kept[again.sender, again.receiver])
            lines.step(n)
        # Sampled edges are not neighbours, so each took two masked forwards; a whole walk takes one.
        forward_s = float((clocks() - begin)[0]) / n / 2
    assert n == only.sum()
    sampled = f"{shape}; of {n} edges at all depths, half nearest to tau; largest difference in cost {largest:.1e}"
    beside = f"{shape}; one masked forward {forward_s * 1e3:.0f} ms over our {per_edge * 1e3:.2f} ms per tested edge"
    return [
        Figure("acdc-decisions-differing", float(differing), "edges", 0.0, "lower", 1, sampled),
        Figure("acdc-vs-oracle-per-edge", forward_s / per_edge, "x", None, "higher", 1, beside),
    ]


def sample_of_all_depths(graph: Graph, costs: Scores, tested: BoolMatrix) -> BoolMatrix:
    """Of every layer's tested edges, and those into the logits: half at random, half those that cost nearest to tau."""
    rng = random.Random(0)
    only = np.zeros_like(graph.legal)
    distance = np.abs(costs - TAU)
    for layer in range(graph.shape.n_layers + 1):
        columns = [r for r, receiver in enumerate(graph.receivers) if receiver.layer == layer]
        here = [(s, r) for r in columns for s in np.flatnonzero(tested[:, r])]
        nearest = sorted(here, key=lambda edge: float(distance[edge]))[: PER_LAYER // 2]
        others = [edge for edge in here if edge not in set(nearest)]
        for edge in nearest + rng.sample(others, min(len(others), PER_LAYER - len(nearest))):
            only[edge] = True
    return only


def staged() -> list[Figure]:
    model, _ = small_model()
    pairs, rows = small_pairs(STAGED_PROMPTS), []
    with as_found(model), torch.no_grad():
        problem = make_problem(wrap(model), pairs, "kl_divergence")
        for tau in STAGED_TAUS:
            begin = clocks()
            (exact,) = search_acdc(problem, Lines("exact"), thresholds=[tau], rule="signed")
            between = clocks()
            (found,) = search_acdc(problem, Lines("staged"), thresholds=[tau], rule="signed", stages=[STAGE])
            ratio = ((between - begin) / (clocks() - between))[0]
            assert exact.kept is not None
            assert found.kept is not None
            differing = float((exact.kept != found.kept).sum() / exact.facts["edges_tested"])
            early = found.facts["edges_decided_early"] / found.facts["edges_tested"]
            story = (
                f"tau {tau:g}: {differing:.2%} of {exact.facts['edges_tested']:.0f}, kept {int(exact.kept.sum())} and "
                f"{int(found.kept.sum())}, {early:.0%} decided on {STAGE}, {ratio:.1f}x as fast"
            )
            print(f"staged: {story}", flush=True)
            rows.append((differing, story))
    how = (
        f"worst of {len(rows)}; edges in one of the circuits of a staged ({STAGE}, {STAGED_PROMPTS} prompts) and an "
        f"exact search and not in the other, over edges tested; small model, KL; "
        + "; ".join(story for _, story in rows)
    )
    return [Figure("acdc-staged-decisions-differing", max(rows)[0], "of edges", None, "lower", 1, how)]


PARTS: dict[str, Callable[[int], list[Figure]]] = {
    "ioi": ioi,
    "oracle": lambda _: oracle(),
    "staged": lambda _: staged(),
    "small": small,
    "gpt2-kl": lambda runs: gpt2("kl_divergence", runs),
    "gpt2-logit-diff": lambda runs: gpt2("logit_diff", runs),
}


ON_GPU = ("ioi", "oracle")  # where there is one
NEED_PEER = ("small", "gpt2-kl", "gpt2-logit-diff")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench_exact.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    logging.disable_progress_bar()
    for name in [arguments.part] if arguments.part else list(PARTS):
        if name in NEED_PEER and not (THEIR_HOME / ".ready").exists():
            print(f"{name}: left out, auto-circuit is not installed: make peers")
            continue
        before = os.getloadavg()[0]
        begin = time.perf_counter()
        figures = PARTS[name](arguments.runs)
        device = torch.device("cuda" if name in ON_GPU and torch.cuda.is_initialized() else "cpu")
        facts = environment(
            device,
            wait_policy=os.environ.get("OMP_WAIT_POLICY", "default"),
            load_before_and_after=[round(before, 1), round(os.getloadavg()[0], 1)],
            minutes=round((time.perf_counter() - begin) / 60, 1),
        )
        write(arguments.out, figures, {name: facts}, into=True)  # parts of one file may have run different code


if __name__ == "__main__":
    main()
