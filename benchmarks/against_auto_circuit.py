"""The parts of bench-exact that put our search next to auto-circuit's: a small trained model, and GPT-2's shape."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from figures import Figure, Lines, clocks
from peer import Ask, ask_auto_circuit
from searching import Seconds, make_problem, timed_search, times
from small_model import N_PROMPTS, small_model, small_pairs
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from acdc.circuit import Scores
from acdc.discovery.acdc import guessed_costs, search_acdc
from acdc.discovery.eap import score_eap_ig_inputs
from acdc.discovery.problem import Found, Problem
from acdc.discovery.search import Search
from acdc.discovery.walk import Rule, Walk, receiver_order, sender_order
from acdc.graph import BoolMatrix, Graph
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer, as_found
from acdc.progress import Quiet
from acdc.tasks.prompts import Pair

SHARES = (0.01, 0.05, 0.30)  # of the edges, that the three thresholds keep, about
GPT2_LAYERS = (11, 7, 3, 0)  # where both sides are timed, for GPT-2 small's shape
STRETCH = 7  # edges in a row, of whose 6 gaps the median is taken

# -- auto-circuit, end to end ------------------------------------------------------------------------------------------


def whole_order(t: Transformer) -> list[tuple[int, int]]:
    graph = t.graph
    return [(s, r) for r in receiver_order(graph) for s in sender_order(graph, r, "reverse", 0)]


def small(runs: int) -> list[Figure]:
    """runs: of our side before theirs, and as many after."""
    model, accuracy = small_model()
    pairs = small_pairs()
    with as_found(model), torch.no_grad():
        t = wrap(model)
        problem = make_problem(t, pairs, "kl_divergence")
        clean = float(problem.measure(problem.full_mask()[None])[0].mean())
        assert abs(clean) < 1e-4
        taus = [tau_keeping(problem, share) for share in SHARES]
        lines = Lines("small")
        before = [[timed_search(t, pairs, "kl_divergence", tau, lines) for tau in taus] for _ in range(runs)]
        theirs = ask_auto_circuit(t, pairs, "kl_divergence", [Ask(tau, whole_order(t)) for tau in taus])
        after = [[timed_search(t, pairs, "kl_divergence", tau, lines) for tau in taus] for _ in range(runs)]
    rows = []
    for number, (tau, answer) in enumerate(zip(taus, theirs.answers, strict=True)):
        ours = [searches[number] for searches in before + after]
        seconds = np.median([run.seconds for run in ours], axis=0)
        kept = np.array([ours[0].kept[edge] for edge in whole_order(t)])
        rows.append(
            (
                answer.seconds / seconds,
                f"tau {tau:.3g}: {answer.seconds[0]:.1f} s for {answer.tested} edges over {seconds[0]:.3f} s, "
                f"kept {int(kept.sum())} and {int(answer.kept.sum())}, {parting(t, ours[0].found, tau, answer.kept)}",
            )
        )
        print(f"small: {rows[-1][1]}, {times(rows[-1][0])}; ours: {ours[0].story()}", flush=True)
    how = (
        f"worst of three; trained 4 x 8 heads, d 256 (accuracy {accuracy:.2f}), {N_PROMPTS} prompts of "
        f"{len(pairs[0].clean)} tokens, KL; same order on both sides; parity {theirs.parity:.1e}; "
        + "; ".join(f"{times(ratio)} at {story}" for ratio, story in rows)
    )
    return [
        Figure(
            "acdc-vs-auto-circuit-small", min(float(ratio[0]) for ratio, _ in rows), "x", 100.0, "higher", 2 * runs, how
        ),
    ]


def parting(t: Transformer, ours: Found, tau: float, theirs: npt.NDArray[np.bool_]) -> str:
    """How many decisions differ, and at what edge the two searches part: after it they walk through different circuits.
    theirs: kept, in the order of the walk."""
    assert ours.kept is not None
    order = whole_order(t)
    differing = [edge for edge, is_kept in zip(order, theirs, strict=True) if ours.kept[edge] != is_kept]
    if not differing:
        return "0 decisions differ"
    off = abs(float(ours.scores[differing[0]]) - tau)
    return f"{len(differing)} decisions differ, the first where the cost is {off:.1e} off tau"


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
    seconds: dict[int, Seconds]


def sampled_receivers(graph: Graph, kept: BoolMatrix) -> list[int]:
    """Of some layers the MLP and the q, k and v of one head that is part of the circuit, in the search's order."""
    rng = random.Random(0)
    reaches = graph.reaches_logits(kept)
    chosen: set[int] = set()
    for layer in GPT2_LAYERS:
        here = [(r, at) for r, at in enumerate(graph.receivers) if at.layer == layer and reaches[r]]
        heads = sorted({at.head for _, at in here if at.kind == "q"})
        head = rng.choice(heads) if heads else None
        chosen |= {r for r, at in here if at.kind == "mlp" or at.head == head}
    return [r for r in receiver_order(graph) if r in chosen]


def visit_some(problem: Problem, kept: BoolMatrix, tau: float, guess: Scores, what: str) -> Sampled:
    """Our search, which decides at the sampled receivers and takes `kept` for granted at all others. guess: what it
    expects edges to cost, made once for tens of thousands of them and not timed here."""
    graph, lines = problem.t.graph, Lines(what)
    order = list(receiver_order(graph))
    places = [order.index(r) for r in sampled_receivers(graph, kept)]
    walk = Walk.begin(graph.legal, problem.t.dtype)
    walk.kept[:], walk.position = kept, places[0]
    search = Search([[problem]], Rule(tau), walk, graph.legal, guess)
    began = [clocks()]
    seconds: dict[int, Seconds] = {}

    def step(done: int, note: str) -> None:
        lines.step(done, note)
        if note == graph.receivers[order[walk.position - 1]].name:  # replayed: the visit begins when the last one is
            began[0] = clocks()

    def save() -> None:
        place = walk.position - 1
        seconds[order[place]] = clocks() - began[0]
        following = [other for other in places if other > place]
        if not following:
            raise StopIteration
        walk.position = following[0]  # those between are replayed as walk.kept has them
        began[0] = clocks()

    with contextlib.suppress(StopIteration):
        search.run(step, save)
    tested = {r: [(s, r) for s in sender_order(graph, r, "reverse", 0) if walk.tested[s, r]] for r in seconds}
    return Sampled(tau, walk.kept, walk.costs, {r: edges for r, edges in tested.items() if edges}, seconds)


def gpt2(objective: str, runs: int) -> list[Figure]:
    model = gpt2_model()
    name = {"kl_divergence": "kl", "logit_diff": "logit-diff"}[objective]
    rows = []
    with as_found(model), torch.no_grad():
        t = wrap(model)
        pairs = gpt2_pairs(t)
        problem = make_problem(t, pairs, objective)
        (found,) = score_eap_ig_inputs(problem, Quiet(), steps=5)
        scores = np.where(t.graph.legal, found.scores, -np.inf)  # signed, as the rule is
        begin = clocks()
        expected = guessed_costs(problem, Quiet())
        guess_s = (clocks() - begin)[0]
        for share in SHARES:
            guess = float(np.sort(scores, axis=None)[-round(share * t.graph.n_edges)])
            kept = scores >= guess
            what = f"gpt2 {name}, {share:.0%}"
            first = visit_some(problem, kept, guess, expected, f"{what}, choosing tau")
            costs = [first.costs[edge] for edges in first.tested.values() for edge in edges]
            tau = float(np.quantile(costs, 1 - share))
            again = [visit_some(problem, kept, tau, expected, what) for _ in range(runs)]
            median = {r: np.median([one.seconds[r] for one in again], axis=0) for r in again[0].seconds}
            ours = replace(again[0], seconds=median)
            rows.append(compared(t, pairs, objective, ours))
            print(f"{what}: {times(rows[-1][0])} at {rows[-1][1]}", flush=True)
    how = (
        "per tested edge, worst of three; 12 x 12 heads, d 768, vocabulary 50257, random weights (std 0.09), 8 prompts "
        "of 14 tokens; sampled: at layers "
        f"{', '.join(map(str, GPT2_LAYERS))} the MLP and a head's q, k and v, in a circuit of so many edges by "
        f"eap-ig-inputs, tau the quantile of their costs; auto-circuit on {STRETCH - 1} edges of each layer from the "
        f"same state; layers between interpolated; our guess of all costs, {guess_s:.1f} s a search, not counted; "
        f"{'; '.join(f'{times(ratio)} at {story}' for ratio, story in rows)}"
    )
    target = 50.0 if objective == "kl_divergence" else 100.0
    return [
        Figure(
            f"acdc-vs-auto-circuit-gpt2-{name}",
            min(float(ratio[0]) for ratio, _ in rows),
            "x",
            target,
            "higher",
            runs,
            how,
        )
    ]


def compared(t: Transformer, pairs: Sequence[Pair], objective: str, ours: Sampled) -> tuple[Seconds, str]:
    layers = [layer for layer in GPT2_LAYERS if long_enough(t.graph, ours, layer)]
    asks = [stretch(t, ours, layer) for layer in layers]
    theirs = ask_auto_circuit(t, pairs, objective, asks)
    asked = sum(len(ask.order) for ask in asks)
    differing = sum(
        int((np.array([ours.kept[edge] for edge in ask.order]) != answer.kept).sum())
        for ask, answer in zip(asks, theirs.answers, strict=True)
    )
    their_s = over_all_layers(t.graph, layers, [np.median(answer.gaps, axis=0) for answer in theirs.answers])
    our_s = over_all_layers(t.graph, layers, [seconds_per_edge(t.graph, ours, layer) for layer in layers])
    n_tested = sum(map(len, ours.tested.values()))
    n_kept = sum(int(ours.kept[edge]) for edges in ours.tested.values() for edge in edges)
    story = (
        f"tau {ours.tau:.2g}: {their_s[0] * 1e3:.0f} ms over {our_s[0] * 1e3:.2f} ms, {n_tested} tested, {n_kept} kept "
        f"({n_kept / n_tested:.1%}), {differing} of {asked} decisions differ, parity {theirs.parity:.1e}"
    )
    return their_s / our_s, story


def seconds_per_edge(graph: Graph, ours: Sampled, layer: int) -> Seconds:
    """Of our search at a layer: heads' receivers count as often as there are heads."""
    seconds, edges = np.zeros(2), 0
    for receiver, tested in ours.tested.items():
        at = graph.receivers[receiver]
        if at.layer == layer:
            weight = graph.shape.n_heads if at.kind in ("q", "k", "v") else 1
            seconds += weight * ours.seconds[receiver]
            edges += weight * len(tested)
    return seconds / edges


def over_all_layers(graph: Graph, at: Sequence[int], seconds: Sequence[Seconds]) -> Seconds:
    """The mean over all edges of the graph of the seconds at some layers, descending; layers between interpolated."""
    n_layers = graph.shape.n_layers
    layers = [min(receiver.layer, n_layers - 1) for receiver in graph.receivers]
    edges = np.bincount(layers, weights=graph.n_senders_before, minlength=n_layers)
    means = [
        np.interp(np.arange(n_layers), list(at)[::-1], list(column)[::-1]) @ edges / edges.sum()
        for column in np.stack(list(seconds)).T
    ]
    return np.array(means)


def long_enough(graph: Graph, ours: Sampled, layer: int) -> list[list[tuple[int, int]]]:
    """By receiver of a layer, the edges tested, where they are enough to time."""
    found = [edges for r, edges in ours.tested.items() if graph.receivers[r].layer == layer]
    return [edges for edges in found if len(edges) >= STRETCH]


def stretch(t: Transformer, ours: Sampled, layer: int) -> Ask:
    """Edges in a row into one receiver of the layer that our search tested, and what it had cut by then."""
    rng = random.Random(layer)
    edges = rng.choice(long_enough(t.graph, ours, layer))
    first = rng.randrange(len(edges) - STRETCH + 1)
    asked = edges[first : first + STRETCH]
    cut = np.zeros_like(t.graph.legal)
    for edge in whole_order(t):
        if edge == asked[0]:
            break
        cut[edge] = not ours.kept[edge]
    return Ask(ours.tau, asked, cut)
