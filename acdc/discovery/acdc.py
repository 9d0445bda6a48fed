"""Automated circuit discovery (Conmy et al. 2023, arXiv 2304.14997), exact and many edges at a time.

1. Start from the full graph (or, with a warm start, from a part of it found before).
2. Walk the receivers from the output to the input: logits; then per layer, from the last, the MLP, the q inputs (heads
   descending), k, v. For each, walk its senders, from late to early.
3. Cut the edge if what it costs, m(circuit as it stands) - m(without it), is below the threshold (under the
   absolute rule: if its size is). A cut edge stays cut, and the circuit without it is the one that stands from then on.

Decision for decision this is the sequential search. It is fast because a run of edges into one receiver is tested in
one batch on a prediction (row i cuts edge i and those before it that are expected to go): decisions are taken in order
up to and including the first that differs from its prediction; the rows after that one are dropped. What makes a row
cheap is told in patching/suffix.py.

Batches of another shape differ in the last bits. Where a row's cost lies as near to the threshold as that (see
discovery/guard.py), whole masked forwards with the edge and without decide, the same ones as of the sequential search,
so that no decision hangs on how many edges were tested together; such edges are counted as borderline.

A receiver with no kept way to the metric cannot change it: its edges cost exactly 0 and count as never tested. Scores
are the costs seen. Over several thresholds there is a further result, whose scores are the largest thresholds survived.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from acdc.circuit import Scores
from acdc.discovery.eap import score_eap_ig_inputs
from acdc.discovery.problem import Found, Problem
from acdc.discovery.search import Order, Search
from acdc.discovery.walk import Rule, Walk
from acdc.errors import Fault, TaskError
from acdc.graph import BoolMatrix, Graph
from acdc.metrics import METRICS
from acdc.progress import Checkpoint, Progress, Quiet
from acdc.selection import rank

RULES = ("signed", "absolute")
ORDERS = ("reverse", "normal", "random")
WARM_STEPS = 5  # of the integrated gradients that choose a warm start
GUESS_PROMPTS = 16  # of which attribution guesses what edges cost,
GRADIENTS_HOLD = 4  # times what a masked forward holds of a prompt
CLOSE_ENOUGH = 0.1  # of the number of edges asked for
MOST_SEARCHES = 12  # of a bisection
SMALLEST, LARGEST = 1e-7, 10.0  # thresholds that a bisection looks between
MANY = 0.1  # of the edges
DRIFT = 256.0  # units of rounding that the objective by rows may be off after a whole search
TOO_NEAR = (
    "a row decided nearer to the threshold (nearest_by_row) than rows were later seen to be off (row_error): some "
    "decisions may differ from those of a sequential search; dtype float64 settles them"
)


def search_acdc(
    problem: Problem,
    progress: Progress,
    *,
    thresholds: Sequence[float],
    rule: str,
    edges: int | None = None,
    sender_order: str = "reverse",
    order_seed: int = 0,
    warm_start: float | None = None,
    stages: Sequence[int] = (),
    validation: int = 0,
    pool: Sequence[Problem] = (),
) -> list[Found]:
    """thresholds: one search each, the largest first, each expecting its neighbour's costs. rule: signed, absolute.

    edges: without thresholds, the one that keeps about so many edges, bisected. sender_order: reverse, normal or
    random (by order_seed). warm_start: search only among this share of the edges, the largest by eap-ig-inputs.
    stages: numbers of prompts to decide on first; see `Search`. validation: so many of the prompts are not searched on;
    of several thresholds, the one whose circuit has the smallest KL there comes first. pool: the same problem on
    further devices, which share the rows of a chain.
    Checkpoints after every receiver; a run that goes on from one takes the same decisions. Raises TaskError for
    arguments that contradict each other, OutOfMemory, ModelError, Cancelled.
    """
    require_sense(problem, thresholds, rule, edges, sender_order, validation)
    searched = without_validation(problem, validation)
    devices = [searched, *(other.of(range(searched.n_examples)) for other in pool)]
    runs = _Runs(devices, progress, rule == "absolute", Order(sender_order, order_seed), warm_start, stages)
    if validation:
        runs.notes.append(f"the search saw {searched.n_examples} of the prompts: the last {validation} were set aside")
    if edges is not None:
        progress.phase("acdc", 0)
        return [_of_about(edges, _found(runs, _bisect(runs, edges), "circuit"), runs.graph)]
    thresholds = sorted(thresholds, reverse=True)
    progress.phase("acdc", problem.t.graph.n_edges * len(thresholds))
    for threshold in thresholds:
        runs.run(threshold)
    found = _results(runs)
    return _best_first(found, problem.of(range(searched.n_examples, problem.n_examples))) if validation else found


def require_sense(
    problem: Problem, thresholds: Sequence[float], rule: str, edges: int | None, sender_order: str, validation: int
) -> None:
    """Raises TaskError for arguments of `search_acdc` that contradict each other, with every fault."""
    faults = []
    if bool(thresholds) == (edges is not None):
        faults.append(Fault("thresholds", "give either thresholds or the number of edges to keep"))
    if rule not in RULES:
        faults.append(Fault("rule", f"{rule!r} is none of {', '.join(RULES)}"))
    if sender_order not in ORDERS:
        faults.append(Fault("sender_order", f"{sender_order!r} is none of {', '.join(ORDERS)}"))
    if validation >= problem.n_examples:
        way_out = f"sets {validation} prompts aside and there are {problem.n_examples}: give fewer"
        faults.append(Fault("validation", way_out))
    if validation and edges is not None:
        faults.append(Fault("validation", "it chooses among thresholds: with edges there is one"))
    if faults:
        raise TaskError("this search cannot be made", faults)


def without_validation(problem: Problem, validation: int) -> Problem:
    """Without the last prompts, which are set aside."""
    return problem.of(range(problem.n_examples - validation)) if validation else problem


def stages_of(devices: Sequence[Problem], stages: Sequence[int]) -> list[list[Problem]]:
    """What `Search` calls stages: the numbers of prompts that are smaller than all, then all. On each device."""
    n = devices[0].n_examples
    return [
        *([device.of(range(few)) for device in devices] for few in sorted({s for s in stages if s < n})),
        [*devices],
    ]


@dataclass
class _Run:
    threshold: float
    walk: Walk
    is_done: bool = False
    metric: float = math.nan


class _Runs:
    """The searches of one job, each at a threshold, in the order they were made."""

    def __init__(
        self,
        devices: Sequence[Problem],
        progress: Progress,
        is_absolute: bool,
        order: Order,
        warm_start: float | None,
        stages: Sequence[int],
    ) -> None:
        problem = devices[0]
        self.problem, self.progress, self.is_absolute, self.order = problem, progress, is_absolute, order
        self.graph = problem.t.graph
        self.stages = stages_of(devices, stages)
        self.label = "-".join(
            ("acdc", *["hierarchical"] * (warm_start is not None), *["staged"] * (len(self.stages) > 1))
        )
        self.runs: list[_Run] = []
        self.notes: list[str] = []
        self._attributed: Scores | None = None
        saved = progress.resume()
        if saved is not None:
            self.start, self.runs = _restored(saved)
        else:
            self.start = self.graph.legal.copy()
            if warm_start is not None:
                self._attributed = attributed(problem, progress)
                self.start = largest_edges(self.graph, self._attributed, warm_start)
        if warm_start is not None:
            self.notes.append(
                f"hierarchical search: only the {int(self.start.sum()):,} edges ({warm_start:.2%}) with the largest "
                "eap-ig-inputs scores were tested, all others were cut from the beginning"
            )
        if len(self.stages) > 1:
            sizes = ", ".join(str(stage[0].n_examples) for stage in self.stages)
            self.notes.append(f"staged search: edges were decided on {sizes} prompts, on more only where it was open")
        if left_out := sorted(n for n in set(stages) if n >= problem.n_examples):
            self.notes.append(f"stages of {left_out} prompts were left out: the search has {problem.n_examples}")
        self._used = 0

    def run(self, threshold: float) -> _Run:
        """The search at a threshold, gone on with where a checkpoint has it."""
        number, self._used = self._used, self._used + 1
        if number == len(self.runs):
            seen = max((run.walk.guard.row_error for run in self.runs), default=0.0)
            self.runs.append(_Run(threshold, Walk.begin(self.start, self.problem.t.dtype, seen)))
        run = self.runs[number]
        if not run.is_done:
            rule = Rule(threshold, self.is_absolute)
            search = Search(self.stages, rule, run.walk, self.start, self._guess(number), self.order)
            before = number * self.graph.n_edges
            search.run(lambda done, name: self.progress.step(before + done, name), self._save)
            run.is_done, run.metric = True, search.objective
            self._save()
        return run

    def _guess(self, number: int) -> Scores:
        """What edges will cost: what they did at the nearest threshold that is done; where that has not tested them,
        what attribution says."""
        if self._attributed is None:
            self._attributed = guessed_costs(self.problem, self.progress)
        done = [run for run in self.runs[:number] if run.is_done]
        if not done:
            return self._attributed
        wanted = math.log(max(self.runs[number].threshold, 1e-300))
        nearest = min(done, key=lambda run: abs(math.log(max(run.threshold, 1e-300)) - wanted)).walk
        return np.where(nearest.tested, nearest.costs, self._attributed)

    def _save(self) -> None:
        facts = [
            {**run.walk.facts(), "threshold": repr(run.threshold), "done": run.is_done, "metric": repr(run.metric)}
            for run in self.runs
        ]
        arrays = {f"{name}.{i}": array for i, run in enumerate(self.runs) for name, array in run.walk.arrays().items()}
        step = sum(run.walk.position for run in self.runs)
        self.progress.save(Checkpoint(step, {"runs": facts}, {**arrays, "start": self.start}))


def _restored(saved: Checkpoint) -> tuple[BoolMatrix, list[_Run]]:
    facts = saved.facts["runs"]
    assert isinstance(facts, Sequence)
    runs = []
    for i, of_run in enumerate(facts):
        arrays = {name: saved.arrays[f"{name}.{i}"] for name in ("kept", "costs", "tested")}
        walk = Walk.restored(of_run, arrays)
        runs.append(_Run(float(of_run["threshold"]), walk, bool(of_run["done"]), float(of_run["metric"])))
    return saved.arrays["start"].astype(bool), runs


def guessed_costs(problem: Problem, progress: Progress) -> Scores:
    """What edges cost on some of the prompts, to first order, [senders, receivers]; 0 where that cannot be had. It
    speeds a search up and decides nothing, so nothing that fails in it ends a search: the log says so."""
    unknown = np.zeros(problem.t.graph.legal.shape, np.float32)
    few = min(GUESS_PROMPTS, problem.n_examples, _prompts_with_room_for_gradients(problem))
    if not problem.objective.has_gradient or not few:
        return unknown
    try:
        return attributed(problem.of(range(few)), Quiet(), steps=1)
    except (RuntimeError, MemoryError) as error:
        progress.log(f"edges are searched without attribution's guess of their costs, which takes longer: {error}")
        return unknown


def _prompts_with_room_for_gradients(problem: Problem) -> int:
    of_prompt = max(-(-problem.bytes_of_forward(p) // len(p.batch.examples)) for p in problem.prompts)
    return problem.memory_bytes // (GRADIENTS_HOLD * of_prompt)


def attributed(problem: Problem, progress: Progress, *, steps: int = WARM_STEPS) -> Scores:
    """Scores by integrated gradients of few steps, [senders, receivers]."""
    (found,) = score_eap_ig_inputs(replace(problem, keep_examples=False), progress, steps=steps)
    return np.nan_to_num(found.scores)


def largest_edges(graph: Graph, scores: Scores, share: float) -> BoolMatrix:
    """[senders, receivers]: the share of all edges with the largest scores."""
    return rank(graph, scores, graph.legal, "absolute").taken(max(1, round(share * graph.n_edges)))


def _bisect(runs: _Runs, edges: int) -> _Run:
    """The search whose number of connected edges comes nearest to the one asked for. That number is not monotone in the
    threshold, so what is found is a threshold, not the only one."""
    most = int(runs.start.sum())
    if edges > most:
        raise TaskError(f"edges asks for {edges:,} and the search has {most:,} to keep: ask for fewer")
    low, high = SMALLEST, LARGEST
    best, best_gap = None, math.inf
    for _ in range(MOST_SEARCHES):
        run = runs.run(math.sqrt(low * high))
        n = int(runs.graph.connected(run.walk.kept).sum())
        runs.progress.log(f"threshold {run.threshold:.3g} keeps {n:,} connected edges; {edges:,} are asked for")
        if abs(n - edges) < best_gap:
            best, best_gap = run, abs(n - edges)
        if best_gap <= CLOSE_ENOUGH * edges:
            break
        low, high = (run.threshold, high) if n > edges else (low, run.threshold)
    assert best is not None
    return best


def _results(runs: _Runs) -> list[Found]:
    if len(runs.runs) == 1:
        return [_found(runs, runs.runs[0], "circuit")]
    found = [_found(runs, run, f"threshold={run.threshold!r}") for run in runs.runs]
    survived = np.zeros(runs.graph.legal.shape, np.float32)
    for run in reversed(runs.runs):  # ascending: the largest last
        survived[run.walk.kept] = run.threshold
    return [
        *found,
        Found(survived, runs.start.copy(), key="thresholds", notes=tuple(runs.notes), label=runs.label),
    ]


def _of_about(edges: int, found: Found, graph: Graph) -> Found:
    """With a note where the bisection came no nearer to the number asked for."""
    assert found.kept is not None
    n = int(graph.connected(found.kept).sum())
    if abs(n - edges) <= CLOSE_ENOUGH * edges:
        return found
    note = (
        f"{edges:,} edges were asked for and no threshold between {SMALLEST:g} and {LARGEST:g} that was tried "
        f"({MOST_SEARCHES} at most) comes nearer than {n:,} connected ones; give thresholds to look elsewhere"
    )
    return replace(found, notes=(*found.notes, note))


def _best_first(found: Sequence[Found], validation: Problem) -> list[Found]:
    """The circuit with the smallest KL on prompts that were not searched on, named `circuit`; then the others."""
    circuits = [one for one in found if one.kept is not None]
    masks = torch.from_numpy(np.stack([one.kept for one in circuits if one.kept is not None]).astype(np.float32))
    values = replace(validation, objective=METRICS["kl_divergence"]).measure(masks).mean(1)
    circuits = [
        replace(one, facts={**one.facts, "validation_kl": -float(value)})
        for one, value in zip(circuits, values, strict=True)
    ]
    best = int(np.argmax(values))
    note = (
        f"threshold {circuits[best].facts['threshold']:g} was chosen among {len(circuits)} by KL on "
        f"{validation.n_examples} prompts that were not searched on"
    )
    chosen = replace(circuits[best], key="circuit", notes=(*circuits[best].notes, note))
    rest = [one for i, one in enumerate(circuits) if i != best]
    return [chosen, *rest, *(one for one in found if one.kept is None)]


def _found(runs: _Runs, run: _Run, key: str) -> Found:
    """With the check of the final circuit by the ordinary masked forward."""
    counts = run.walk.counts
    checked = runs.problem.mean_with(run.walk.kept)
    facts: dict[str, float] = {
        "threshold": run.threshold,
        "objective": run.metric,
        "objective_by_masked_forward": checked,
        "acceptance_rate": counts["edges_tested"] / max(1, counts["rows"]),
        "row_error": run.walk.guard.row_error,
        "nearest_by_row": run.walk.guard.nearest,
        "searches": float(len(runs.runs)),
        **{name: float(n) for name, n in counts.items()},
    }
    facts = {name: value for name, value in facts.items() if math.isfinite(value)}
    notes = list(runs.notes)
    if not run.walk.guard.is_kept:
        notes.append(TOO_NEAR)
    if abs(run.metric - checked) > DRIFT * torch.finfo(runs.problem.t.dtype).eps * max(1.0, abs(checked)):
        notes.append(
            f"the objective by rows ({run.metric:.6g}) and by the ordinary masked forward ({checked:.6g}) differ by "
            "more than rounding should: do not rely on this circuit before dtype float64 gives the same"
        )
    if (share := counts["borderline_edges"] / max(1, counts["edges_tested"])) > MANY:
        notes.append(
            f"{share:.0%} of the edges were decided one at a time: their costs lie within rounding of {run.threshold:g}"
        )
    return Found(run.walk.costs, run.walk.tested, run.walk.kept, key, facts=facts, notes=tuple(notes), label=runs.label)
