"""make bench-exact: what exact ACDC costs next to bare forwards, to the plain oracle and to auto-circuit's ACDC.

    python benchmarks/exact.py [--part ioi|small|gpt2-kl|gpt2-logit-diff] [--out FILE]

Each part runs alone and puts its rows into build/bench_exact.json, where those of the others stay; without --part all
run, one after the other. Two threads. OMP_WAIT_POLICY=PASSIVE keeps waiting threads of both sides from spinning where
other work shares the cores. The parts with auto-circuit need `make peers`.

ioi: smollm2-135m-instruct-q4 as the demo takes it, 8 IOI prompts of one length, KL, tau 0.01. The bare forward is the
Hugging Face model called on the same tokens, as a user would: model(tokens), logits at all positions.
small: end to end against auto-circuit, on a trained model of 4 layers x 8 heads, d 256 (benchmarks/small_model.py).
gpt2-*: per tested edge against auto-circuit, on GPT-2 small's shape with random weights (see `gpt2_model`).
Both sides get the same weights, prompts, objective, tau and order; see benchmarks/peers/auto_circuit_acdc.py for how.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from figures import Figure, Lines, environment, ioi_of_one_length, write
from peer import THEIR_HOME, Ask, ask_auto_circuit
from small_model import N_PROMPTS, small_model, small_pairs
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.utils import logging

from acdc.discovery.acdc import search_acdc
from acdc.discovery.attribution import score_eap_ig_inputs
from acdc.discovery.oracle import decide_again
from acdc.discovery.problem import Found, Problem
from acdc.discovery.search import Search
from acdc.discovery.walk import Rule, Walk, receiver_order, sender_order
from acdc.graph import BoolMatrix, Graph
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.cache import ModelCache
from acdc.models.transformer import Transformer, as_found
from acdc.patching.ablation import Resample
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.progress import Quiet
from acdc.settings import load_settings
from acdc.spec import reference_of
from acdc.tasks.prompts import Pair

MEMORY = 2**30
THREADS = 2
IOI_MODEL, IOI_TAU = "smollm2-135m-instruct-q4", 0.01
SHARES = (0.01, 0.05, 0.30)  # of the edges, that the three thresholds keep, about
RUNS = 3  # of our side, where it takes seconds
GPT2_LAYERS = (11, 9, 6, 3, 0)  # where both sides are timed, for GPT-2 small's shape
STRETCH = 7  # edges in a row, of whose 6 gaps the median is taken


def make_problem(t: Transformer, pairs: Sequence[Pair], objective: str) -> Problem:
    batches = make_batches(t, pairs, 2**20, MEMORY)
    return Problem(t, prepare(t, batches, Resample()), METRICS[objective], MEMORY)


@dataclass(frozen=True)
class Timed:
    """A search with its preparation (clean and corrupt runs), in seconds of the clock."""

    found: Found
    problem: Problem
    seconds: float

    @property
    def kept(self) -> BoolMatrix:
        assert self.found.kept is not None
        return self.found.kept

    @property
    def tested(self) -> int:
        return int(self.found.facts["edges_tested"])

    def story(self) -> str:
        facts = self.found.facts
        return (
            f"{self.tested} edges tested, {int(self.kept.sum())} kept, acceptance {facts['acceptance_rate']:.3f}, "
            f"{int(facts.get('borderline_edges', 0))} borderline, objective {facts['objective']:.6f} "
            f"(masked forward {facts['objective_by_masked_forward']:.6f})"
        )


def timed_search(t: Transformer, pairs: Sequence[Pair], objective: str, tau: float, lines: Lines) -> Timed:
    begin = time.perf_counter()
    problem = make_problem(t, pairs, objective)
    (found,) = search_acdc(problem, lines, thresholds=[tau], rule="signed")
    return Timed(found, problem, time.perf_counter() - begin)


# -- ioi ---------------------------------------------------------------------------------------------------------------


class Midway(Lines):
    """Measures bare forwards once, in the middle of a search, and counts the time that took."""

    def __init__(self, what: str, measure: Callable[[], None]) -> None:
        super().__init__(what)
        self.measure, self.is_done, self.seconds = measure, False, 0.0

    def step(self, done: int, note: str = "") -> None:
        super().step(done, note)
        if not self.is_done and done > self.total / 2:
            begin = time.perf_counter()
            self.measure()
            self.is_done, self.seconds = True, time.perf_counter() - begin


def ioi() -> list[Figure]:
    loaded = ModelCache(load_settings().cache_dir).load(reference_of(IOI_MODEL))
    pairs = ioi_of_one_length(loaded.tokenizer, 8)
    forwards: list[float] = []
    with as_found(loaded.model), torch.no_grad():
        t = wrap(loaded.model)
        tokens = torch.tensor([pair.clean for pair in pairs])

        def measure() -> None:
            for _ in range(5):
                begin = time.perf_counter()
                loaded.model(tokens)
                forwards.append(time.perf_counter() - begin)

        loaded.model(tokens)  # what only the first call needs
        measure()
        lines = Midway("ioi", measure)
        ours = timed_search(t, pairs, "kl_divergence", IOI_TAU, lines)
        measure()
        seconds = ours.seconds - lines.seconds
        n, differing, largest, oracle_s = against_oracle(ours)
    forward = statistics.median(forwards)
    shape = f"{IOI_MODEL}, IOI (seed 0), 8 prompts of {tokens.shape[1]} tokens, KL, tau {IOI_TAU}"
    per_edge = seconds / ours.tested
    print(f"ioi: {ours.story()}; {int(ours.found.facts['batched_evaluations'])} batched evaluations")
    return [
        Figure(
            "acdc-edge-over-hf-forward",
            per_edge / forward,
            "forwards",
            0.06,
            "lower",
            1,
            f"{shape}; {per_edge * 1e3:.2f} ms per tested edge over {forward * 1e3:.0f} ms, the median of "
            f"{len(forwards)} model(tokens) before, in the middle and after; {ours.story()}",
        ),
        Figure("acdc-ioi-minutes", seconds / 60, "minutes", 6.0, "lower", 1, f"{shape}; model loading not included"),
        Figure(
            "acdc-decisions-differing",
            differing,
            "edges",
            0.0,
            "lower",
            1,
            f"{shape}; of {n} edges at all depths, half nearest to tau; largest difference in cost {largest:.1e}",
        ),
        Figure(
            "acdc-vs-oracle-per-edge",
            oracle_s / per_edge,
            "x",
            None,
            "higher",
            1,
            f"{shape}; one masked forward {oracle_s * 1e3:.0f} ms over our time per tested edge",
        ),
    ]


def against_oracle(ours: Timed) -> tuple[int, int, float, float]:
    """Edges sampled, decisions that differ, the largest difference in cost, seconds of one masked forward."""
    graph, rule = ours.problem.t.graph, Rule(IOI_TAU)
    only = sample_of_all_depths(ours)
    wanted, done, differing, largest = int(only.sum()), 0, 0, 0.0
    lines = Lines("oracle")
    lines.phase("", wanted)
    begin = time.perf_counter()
    for again in decide_again(ours.problem, graph.legal, ours.kept, rule, only=only):
        cost = float(ours.found.scores[again.sender, again.receiver])
        largest = max(largest, abs(again.cost - cost))
        differing += again.is_cut == bool(ours.kept[again.sender, again.receiver])
        done += 1
        lines.step(done)
    assert done == wanted
    # Sampled edges are not neighbours, so each took two masked forwards; a whole walk takes one.
    return done, differing, largest, (time.perf_counter() - begin) / done / 2


def sample_of_all_depths(ours: Timed, per_layer: int = 6) -> BoolMatrix:
    """Of every layer's tested edges, and those into the logits: half at random, half those that cost nearest to tau."""
    graph, rng = ours.problem.t.graph, random.Random(0)
    only = np.zeros_like(graph.legal)
    distance = np.abs(ours.found.scores - IOI_TAU)
    for layer in range(graph.shape.n_layers + 1):
        columns = [r for r, receiver in enumerate(graph.receivers) if receiver.layer == layer]
        tested = [(s, r) for r in columns for s in np.flatnonzero(ours.found.tested[:, r])]
        nearest = sorted(tested, key=lambda edge: float(distance[edge]))[: per_layer // 2]
        others = [edge for edge in tested if edge not in set(nearest)]
        for edge in nearest + rng.sample(others, min(len(others), per_layer - len(nearest))):
            only[edge] = True
    return only


# -- auto-circuit, end to end ------------------------------------------------------------------------------------------


def whole_order(t: Transformer) -> list[tuple[int, int]]:
    graph = t.graph
    return [(s, r) for r in receiver_order(graph) for s in sender_order(graph, r, "reverse", 0)]


def small() -> list[Figure]:
    model, accuracy = small_model()
    pairs = small_pairs()
    with as_found(model), torch.no_grad():
        t = wrap(model)
        problem = make_problem(t, pairs, "kl_divergence")
        clean = float(problem.measure(problem.full_mask()[None])[0].mean())
        assert abs(clean) < 1e-4
        taus = [tau_keeping(problem, share) for share in SHARES]
        lines = Lines("small")
        before = [[timed_search(t, pairs, "kl_divergence", tau, lines) for tau in taus] for _ in range(RUNS)]
        theirs = ask_auto_circuit(t, pairs, "kl_divergence", [Ask(tau, whole_order(t)) for tau in taus])
        after = [[timed_search(t, pairs, "kl_divergence", tau, lines) for tau in taus] for _ in range(RUNS)]
    rows = []
    for number, (tau, answer) in enumerate(zip(taus, theirs.answers, strict=True)):
        ours = [runs[number] for runs in before + after]
        seconds = statistics.median(run.seconds for run in ours)
        kept = np.array([ours[0].kept[edge] for edge in whole_order(t)])
        differing = int((kept != answer.kept).sum())
        rows.append(
            (
                answer.seconds / seconds,
                f"tau {tau:.3g}: {answer.seconds:.1f} s for {answer.tested} edges over {seconds:.3f} s, "
                f"kept {int(kept.sum())} and {int(answer.kept.sum())}, {differing} decisions differ",
            )
        )
        print(f"small: {rows[-1][1]}, ratio {rows[-1][0]:.1f}; ours: {ours[0].story()}", flush=True)
    how = (
        f"worst of three; trained 4 x 8 heads, d 256 (accuracy {accuracy:.2f}), {N_PROMPTS} prompts of "
        f"{len(pairs[0].clean)} tokens, KL; same order on both sides; parity {theirs.parity:.1e}; "
        + "; ".join(f"{ratio:.1f}x at {story}" for ratio, story in rows)
    )
    return [
        Figure("acdc-vs-auto-circuit-small", min(r for r, _ in rows), "x", 100.0, "higher", 2 * RUNS, how),
    ]


def tau_keeping(problem: Problem, share: float) -> float:
    edges = max(1, round(share * problem.t.graph.n_edges))
    (found,) = search_acdc(problem, Lines(f"tau for {share:.0%}"), thresholds=[], rule="signed", edges=edges)
    return float(found.facts["threshold"])


# -- auto-circuit, per edge --------------------------------------------------------------------------------------------


def gpt2_model() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(initializer_range=0.09)).eval()


def gpt2_pairs(t: Transformer, n: int = 8, length: int = 14) -> list[Pair]:
    """Random tokens; the corrupt prompt has others at three places, as an IOI prompt with other names has."""
    rng = random.Random(0)
    pairs = []
    for _ in range(n):
        clean = [rng.randrange(t.vocab_size) for _ in range(length)]
        corrupt = [rng.randrange(t.vocab_size) if place in (2, 4, 10) else v for place, v in enumerate(clean)]
        right, wrong = clean[2], corrupt[2]
        pairs.append(Pair(tuple(clean), tuple(corrupt), ((right,),), ((wrong,),), "all"))
    return pairs


@dataclass
class Sampled:
    """Our search's visits to some receivers, and the circuit it stood in: kept [senders, receivers], final.

    tested: edges tested by receiver; seconds: of each of those visits.
    """

    tau: float
    kept: BoolMatrix
    costs: npt.NDArray[np.float32]
    tested: dict[int, list[tuple[int, int]]]
    seconds: dict[int, float]


def sampled_receivers(graph: Graph) -> list[int]:
    """The logits, and of some layers the MLP and one head's q, k and v, in the search's order."""
    rng = random.Random(0)
    chosen = {graph.n_receivers - 1}
    for layer in GPT2_LAYERS:
        head = rng.randrange(graph.shape.n_heads)
        chosen |= {
            r for r, at in enumerate(graph.receivers) if at.layer == layer and (at.kind == "mlp" or at.head == head)
        }
    return [r for r in receiver_order(graph) if r in chosen]


def visit_some(problem: Problem, kept: BoolMatrix, tau: float, predicted: BoolMatrix, what: str) -> Sampled:
    """Our search, which decides at the sampled receivers and takes `kept` for granted at all others."""
    graph, lines = problem.t.graph, Lines(what)
    order = list(receiver_order(graph))
    places = [order.index(r) for r in sampled_receivers(graph)]
    walk = Walk.begin(graph.legal)
    walk.kept[:] = kept
    search = Search([problem], Rule(tau), walk, graph.legal, predicted)
    began = [time.perf_counter()]
    seconds: dict[int, float] = {}

    def step(done: int, note: str) -> None:
        lines.step(done, note)
        if note == graph.receivers[order[walk.position - 1]].name:  # replayed: the visit begins when the last one is
            began[0] = time.perf_counter()

    def save() -> None:
        place = walk.position - 1
        seconds[order[place]] = time.perf_counter() - began[0]
        following = [other for other in places if other > place]
        if not following:
            raise StopIteration
        walk.position = following[0]  # those between are replayed as walk.kept has them
        began[0] = time.perf_counter()

    assert places[0] == 0
    with contextlib.suppress(StopIteration):
        search.run(step, save)
    tested = {r: [(s, r) for s in sender_order(graph, r, "reverse", 0) if walk.tested[s, r]] for r in seconds}
    return Sampled(tau, walk.kept, walk.costs, {r: edges for r, edges in tested.items() if edges}, seconds)


def gpt2(objective: str) -> list[Figure]:
    model = gpt2_model()
    name = {"kl_divergence": "kl", "logit_diff": "logit-diff"}[objective]
    rows = []
    with as_found(model), torch.no_grad():
        t = wrap(model)
        pairs = gpt2_pairs(t)
        problem = make_problem(t, pairs, objective)
        (found,) = score_eap_ig_inputs(problem, Quiet(), steps=5)
        sizes = np.where(t.graph.legal, np.abs(found.scores), -1.0)
        for share in SHARES:
            kept = sizes >= np.sort(sizes, axis=None)[-round(share * t.graph.n_edges)]
            what = f"gpt2 {name}, {share:.0%}"
            alone = visit_some(problem, kept, -math.inf, t.graph.legal, f"{what}, choosing tau")
            costs = [alone.costs[edge] for edges in alone.tested.values() for edge in edges]
            tau = float(np.quantile(costs, 1 - share))
            ours = visit_some(problem, kept, tau, np.zeros_like(kept), what)
            rows.append(compared(t, pairs, objective, ours))
            print(f"{what}: {rows[-1][0]:.1f}x at {rows[-1][1]}", flush=True)
    how = (
        "per tested edge, worst of three; 12 x 12 heads, d 768, vocabulary 50257, random weights (std 0.09), 8 prompts "
        "of 14 tokens; sampled: the logits, and at layers "
        f"{', '.join(map(str, GPT2_LAYERS))} the MLP and a head's q, k and v, in a circuit of so many edges by "
        f"eap-ig-inputs, tau the quantile of their costs; auto-circuit on {STRETCH - 1} edges of each layer from the "
        "same state; layers between interpolated; " + "; ".join(f"{ratio:.1f}x at {story}" for ratio, story in rows)
    )
    target = 50.0 if objective == "kl_divergence" else 100.0
    return [Figure(f"acdc-vs-auto-circuit-gpt2-{name}", min(r for r, _ in rows), "x", target, "higher", 1, how)]


def compared(t: Transformer, pairs: Sequence[Pair], objective: str, ours: Sampled) -> tuple[float, str]:
    asks = [stretch(t, ours, layer) for layer in GPT2_LAYERS]
    theirs = ask_auto_circuit(t, pairs, objective, asks)
    asked = sum(len(ask.order) for ask in asks)
    differing = sum(
        int((np.array([ours.kept[edge] for edge in ask.order]) != answer.kept).sum())
        for ask, answer in zip(asks, theirs.answers, strict=True)
    )
    their_s = over_all_layers(t.graph, [statistics.median(answer.gaps) for answer in theirs.answers])
    our_s = over_all_layers(t.graph, [seconds_per_edge(t.graph, ours, layer) for layer in GPT2_LAYERS])
    n_tested = sum(map(len, ours.tested.values()))
    n_kept = sum(int(ours.kept[edge]) for edges in ours.tested.values() for edge in edges)
    story = (
        f"tau {ours.tau:.2g}: {their_s * 1e3:.0f} ms over {our_s * 1e3:.2f} ms, {n_tested} tested, {n_kept} kept "
        f"({n_kept / n_tested:.1%}), {differing} of {asked} decisions differ, parity {theirs.parity:.1e}"
    )
    return their_s / our_s, story


def seconds_per_edge(graph: Graph, ours: Sampled, layer: int) -> float:
    """Of our search at a layer: heads' receivers count as often as there are heads. The logits go with the last."""
    seconds = edges = 0.0
    for receiver, tested in ours.tested.items():
        at = graph.receivers[receiver]
        if min(at.layer, graph.shape.n_layers - 1) == layer:
            weight = graph.shape.n_heads if at.kind in ("q", "k", "v") else 1
            seconds += weight * ours.seconds[receiver]
            edges += weight * len(tested)
    if not edges:
        raise SystemExit(f"our search at tau {ours.tau:g} tested nothing in layer {layer}")
    return seconds / edges


def over_all_layers(graph: Graph, seconds: Sequence[float]) -> float:
    """The mean over all edges of the graph of seconds per edge at GPT2_LAYERS, layers between interpolated."""
    n_layers = graph.shape.n_layers
    layers = [min(receiver.layer, n_layers - 1) for receiver in graph.receivers]
    edges = np.bincount(layers, weights=graph.n_senders_before, minlength=n_layers)
    each = np.interp(np.arange(n_layers), GPT2_LAYERS[::-1], list(seconds)[::-1])
    return float(each @ edges / edges.sum())


def stretch(t: Transformer, ours: Sampled, layer: int) -> Ask:
    """Edges in a row into one receiver of the layer that our search tested, and what it had cut by then."""
    long_enough = [
        edges for r, edges in ours.tested.items() if t.graph.receivers[r].layer == layer and len(edges) >= STRETCH
    ]
    rng = random.Random(layer)
    edges = rng.choice(long_enough)
    first = rng.randrange(len(edges) - STRETCH + 1)
    asked = edges[first : first + STRETCH]
    cut = np.zeros_like(t.graph.legal)
    for edge in whole_order(t):
        if edge == asked[0]:
            break
        cut[edge] = not ours.kept[edge]
    return Ask(ours.tau, asked, cut)


PARTS: dict[str, Callable[[], list[Figure]]] = {
    "ioi": ioi,
    "small": small,
    "gpt2-kl": lambda: gpt2("kl_divergence"),
    "gpt2-logit-diff": lambda: gpt2("logit_diff"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("build/bench_exact.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    logging.disable_progress_bar()
    for name in [arguments.part] if arguments.part else list(PARTS):
        if name != "ioi" and not (THEIR_HOME / ".ready").exists():
            print(f"{name}: left out, auto-circuit is not installed: make peers")
            continue
        load = os.getloadavg()[0]
        begin = time.perf_counter()
        figures = PARTS[name]()
        facts = environment(torch.device("cpu"), wait_policy=os.environ.get("OMP_WAIT_POLICY", "default"))
        facts[f"{name} load before, after"] = [round(load, 1), round(os.getloadavg()[0], 1)]
        facts[f"{name} minutes"] = round((time.perf_counter() - begin) / 60, 1)
        write(arguments.out, figures, facts, into=True)


if __name__ == "__main__":
    main()
