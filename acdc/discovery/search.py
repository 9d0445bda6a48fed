"""One exact ACDC search at one threshold: the sequential search's decisions, many edges tested at a time."""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from acdc.circuit import Scores
from acdc.discovery.candidates import Candidates
from acdc.discovery.chain import LONGEST, Odds, Pace, chain_length
from acdc.discovery.ledger import Ledger
from acdc.discovery.pool import Pool
from acdc.discovery.problem import Problem
from acdc.discovery.walk import Rule, Walk, receiver_order, sender_order
from acdc.graph import BoolMatrix
from acdc.patching.circuits import PerExample
from acdc.patching.needs import Needs
from acdc.patching.suffix import Rooms

STAGE_ERRORS = 3.0  # standard errors of a normal distribution that a subset's mean cost lies off the threshold
DEPTHS = 6  # at each, and at the logits, rows are timed and compared with whole masked forwards
AUDITED_ROWS = 8  # at least, of the batch whose row is compared: how far rows are off is up to a batch's shape
TOLD = 0.98  # how likely an edge goes as a row said whose chain broke before it


@dataclass(frozen=True)
class Order:
    """In which order the senders of a receiver are tested: reverse (late to early), normal or random."""

    name: str = "reverse"
    seed: int = 0


@dataclass(frozen=True)
class _Trial:
    """What an edge costs, and the objective without it: by a row of each stage that was asked, and its mean on all
    prompts by a whole masked forward if there was one."""

    cost: float
    without: Sequence[PerExample]
    whole: float | None = None


class Search:
    """Walks the receivers, deciding on every edge into each.

    stages: the prompts to decide on, each on one device or more, see `Pool`; several stages (each with more prompts)
    make the search a staged one: an edge goes on to the next where its mean cost lies within `standard_errors` of the
    threshold.
    walk: where the search stands. start: the edges it began with, no others are tested. guess: of what edges cost, see
    `Odds`.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[Problem]],
        rule: Rule,
        walk: Walk,
        start: BoolMatrix,
        guess: Scores,
        order: Order | None = None,
    ) -> None:
        self.rule, self.walk, self.order = rule, walk, order or Order()
        self.graph = stages[-1][0].t.graph
        self.odds = Odds(guess, walk.kept, walk.tested)
        self.start = start
        self.kept = start.copy()  # the standing circuit, up to the last receiver left
        self.needs = Needs(self.graph)
        devices = [(Rooms(p.t), Ledger(p.memory_bytes, p.n_examples)) for p in stages[-1]]
        self.stages = [
            Pool([Candidates(problem, start, *device) for problem, device in zip(stage, devices, strict=True)])
            for stage in stages
        ]
        self._open(self.graph.n_receivers - 1, self._senders(self.graph.n_receivers - 1))
        # The objective of the circuit as decided so far, on the first stage's examples; on later stages' where known.
        self.metric, *later = (stage.value() for stage in self.stages)
        self._later = dict(enumerate(later, start=1))
        self._whole: float | None = None  # its mean on all prompts by a whole masked forward, where known
        self._untold: list[bool] = []  # decisions that the stages have not heard of
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)  # see `_kind_of_visit`
        self._tick: Callable[[], None] = lambda: None  # where a search that is to stop stops

    @property
    def objective(self) -> float:
        """Of the standing circuit, on all prompts."""
        return float((self._later[len(self.stages) - 1] if self._later else self.metric).mean())

    def run(self, step: Callable[[int, str], None], save: Callable[[], None]) -> None:
        """step(edges done, receiver) often, save() after every receiver. Decisions taken before are committed again
        one by one, so that the search stands where it would have stood."""
        done = 0
        for position, receiver in enumerate(receiver_order(self.graph)):
            if position < self.walk.position:
                self._replay(receiver)
            else:
                self._visit(receiver, done, step)
                self.walk.position = position + 1
                save()
            done += int(self.graph.n_senders_before[receiver])
            step(done, self.graph.receivers[receiver].name)

    def _senders(self, receiver: int) -> list[int]:
        """Those to decide on, in their order."""
        senders = sender_order(self.graph, receiver, self.order.name, self.order.seed)
        return [sender for sender in senders if self.start[sender, receiver]]

    # -- receivers -----------------------------------------------------------------------------------------------------

    def _replay(self, receiver: int) -> None:
        if self.needs.of_receiver(receiver):
            senders = self._senders(receiver)
            self._open(receiver, senders)
            self._untold = [not self.walk.kept[sender, receiver] for sender in senders]
            self._leave(receiver)
        else:
            self._skip(receiver)

    def _visit(self, receiver: int, before: int, step: Callable[[int, str], None]) -> None:
        senders = self._senders(receiver)
        self.walk.kept[:, receiver] = self.start[:, receiver]  # whole forwards read it while it is being decided on
        if not self.needs.of_receiver(receiver):
            self.walk.kept[senders, receiver] = not self.rule.cuts(0.0)
            self._skip(receiver)
            return
        self._open(receiver, senders)
        done, name = 0, self.graph.receivers[receiver].name
        while done < len(senders):
            self._tick = functools.partial(step, before + done, name)
            done += self._chain(receiver, senders[done : done + LONGEST])
            step(before + done, name)
        runs_before = self._node_runs
        self._leave(receiver)
        self.walk.count("node_recomputations", self._node_runs - runs_before)

    def _open(self, receiver: int, senders: Sequence[int]) -> None:
        self._heard: dict[int, float] = {}  # how likely senders stay whose row was told before their turn
        for stage in self.stages:
            stage.open(receiver, senders)

    def _skip(self, receiver: int) -> None:
        """Nothing leads from it to the metric."""
        kept = self.walk.kept[:, receiver]
        self.kept[:, receiver] = kept
        for stage in self.stages:
            stage.skip(receiver, kept)

    def _leave(self, receiver: int) -> None:
        """Make the decisions on a receiver part of the standing circuit."""
        self._tell()
        kept = self.walk.kept[:, receiver]
        self.kept[:, receiver] = kept
        self.needs.decide(receiver, kept)
        metric, *later = (stage.leave(kept) for stage in self.stages)
        if metric is not None:
            self.metric = metric
            self._later = {number: value for number, value in enumerate(later, start=1) if value is not None}

    def _tell(self) -> None:
        if self._untold:
            for stage in self.stages:
                stage.decide(self._untold)
            self._untold = []

    @property
    def _node_runs(self) -> int:
        return sum(stage.node_runs for stage in self.stages)

    # -- edges ---------------------------------------------------------------------------------------------------------

    def _chain(self, receiver: int, senders: Sequence[int]) -> int:
        """Test some edges in one batch, on the prediction of what becomes of those before; how many are decided.
        senders: the next ones."""
        before = self._node_runs
        kind, stays = self._kind_of_visit(receiver), self._stays(receiver, senders)
        n = chain_length(stays, self._paces[kind].overhead)
        n = min(n if kind in self.walk.audited else max(n, AUDITED_ROWS), self.stages[0].rows_at_once)
        senders, will_go = senders[:n], [stay < 0.5 for stay in stays[:n]]
        values = self._timed_values(kind, will_go)
        costs = self._costs_as_expected(will_go, values)
        if kind not in self.walk.audited:
            self.walk.audited.add(kind)
            self._audit(receiver, senders, will_go, costs)
        self._hear(senders, costs)
        self.walk.count("batched_evaluations")
        self.walk.count("rows", len(senders))
        decided = 0
        for sender, is_expected, value in zip(senders, will_go, values, strict=True):
            trial = self._try(receiver, sender, value)
            is_cut = self.rule.cuts(trial.cost)
            self._record(receiver, sender, trial, is_cut)
            decided += 1
            if is_cut != is_expected:
                break
        self._tell()
        self.walk.count("edges_tested", decided)
        self.walk.count("node_recomputations", self._node_runs - before)
        return decided

    def _stays(self, receiver: int, senders: Sequence[int]) -> list[float]:
        """How likely edges are to stay."""
        odds = self.odds.of(senders, receiver)
        return [self._heard.get(sender, odd) for sender, odd in zip(senders, odds, strict=True)]

    def _record(self, receiver: int, sender: int, trial: _Trial, is_cut: bool) -> None:
        self.walk.record(sender, receiver, trial.cost, is_cut)
        self._untold.append(is_cut)
        self.odds.saw(sender, receiver, not is_cut)
        if is_cut:
            self.metric, *later = trial.without
            self._later = dict(enumerate(later, start=1))
            self._whole = trial.whole

    def _costs_as_expected(self, will_go: Sequence[bool], values: PerExample) -> list[float]:
        """What edges cost by their rows, if all those before them go or stay as expected."""
        standing, costs = float(self.metric.mean()), []
        for goes, value in zip(will_go, values.mean(1).tolist(), strict=True):
            costs.append(standing - value)
            standing = value if goes else standing
        return costs

    def _hear(self, senders: Sequence[int], costs: Sequence[float]) -> None:
        """What a row says is at once the best guess for its edge, should its chain break before it."""
        for sender, cost in zip(senders, costs, strict=True):
            self._heard[sender] = 1 - TOLD if self.rule.cuts(cost) else TOLD

    def _try(self, receiver: int, sender: int, value: PerExample) -> _Trial:
        """The next edge: by its row of the first stage where that decides; else by rows of later stages; at last by
        whole masked forwards. value: the first stage's objective without it."""
        last = len(self.stages) - 1
        standing, tried = self.metric, [value]
        for number in range(last + 1):
            if number:
                standing, without = self._on_stage(number)
                tried.append(without)
                self.walk.count("rows_of_later_stages")
            self.stages[number].require_finite(tried[-1], receiver)
            if self._decides(number, standing, tried[-1]):
                if last:
                    self.walk.count("edges_decided_early", int(number < last))
                return _Trial(float((standing - tried[-1]).mean()), tried)
        metric, whole = self._by_whole_forwards(receiver, sender)
        self.walk.guard.saw(float((standing - tried[-1]).mean()), metric - whole, metric)
        self.walk.count("borderline_edges")
        return _Trial(metric - whole, tried, whole)

    def _on_stage(self, number: int) -> tuple[PerExample, PerExample]:
        """The objective of a later stage as decided so far, and without the next edge."""
        self._tell()
        if number not in self._later:
            self._later[number] = self.stages[number].value()
        return self._later[number], self.stages[number].values([True])[0]

    def _decides(self, number: int, standing: PerExample, without: PerExample) -> bool:
        """Whether a stage's rows do: beyond rounding, and before the last stage beyond chance."""
        costs = standing - without
        margin = self.rule.margin(float(costs.mean()))
        if number < len(self.stages) - 1 and abs(margin) <= standard_errors(costs):
            return False
        return self.walk.guard.trusts(margin, float(standing.mean()))

    def _by_whole_forwards(self, receiver: int, sender: int) -> tuple[float, float]:
        """The objective on all prompts, as decided so far and without the edge, as the oracle computes both."""
        circuit = self._standing(receiver)
        if self._whole is None:
            self._whole = self._whole_forward(-1, circuit)
        circuit[sender, receiver] = False
        return self._whole, self._whole_forward(-1, circuit)

    def _whole_forward(self, number: int, circuit: BoolMatrix) -> float:
        self._tick()
        self.walk.count("masked_forwards")
        return self.stages[number].by_whole_forward(circuit)

    def _standing(self, receiver: int) -> BoolMatrix:
        """The circuit as decided so far, up to an edge into the receiver: [senders, receivers]"""
        circuit = self.kept.copy()
        circuit[:, receiver] = self.walk.kept[:, receiver]
        return circuit

    # -- how rows do ---------------------------------------------------------------------------------------------------

    def _kind_of_visit(self, receiver: int) -> str:
        """Its depth and its range of positions: what the rounding of its rows and their time hang on."""
        layer, n_layers = self.graph.receivers[receiver].layer, self.graph.shape.n_layers
        depth = "logits" if layer == n_layers else str(layer * DEPTHS // n_layers)
        return f"{depth}, range {self.needs.of_receiver(receiver)}"

    def _audit(self, receiver: int, senders: Sequence[int], will_go: Sequence[bool], costs: Sequence[float]) -> None:
        """Once for every kind of visit: how far a row is off. Of the rows up to the first surprise that one is taken
        whose cost lies nearest to the threshold."""
        circuit, pairs = self._standing(receiver), zip(costs, will_go, strict=True)
        surprise = next((i for i, (cost, goes) in enumerate(pairs) if self.rule.cuts(cost) != goes), len(costs) - 1)
        nearest = min(range(surprise + 1), key=lambda i: abs(self.rule.margin(costs[i])))
        gone = [sender for sender, goes in zip(senders[:nearest], will_go, strict=False) if goes]
        circuit[gone, receiver] = False
        metric = self._whole_forward(0, circuit)
        circuit[senders[nearest], receiver] = False
        self.walk.guard.saw(costs[nearest], metric - self._whole_forward(0, circuit), metric)

    def _timed_values(self, kind: str, will_go: Sequence[bool]) -> PerExample:
        """The rows of a chain."""
        begin = time.perf_counter()
        values = self.stages[0].values(will_go)
        if self._heard:  # the first batch at a receiver also computes what the others read
            self._paces[kind].took(len(will_go), time.perf_counter() - begin)
        return values


def standard_errors(costs: PerExample) -> float:
    """The distance from the mean cost of a few prompts beyond which it decides: STAGE_ERRORS standard errors, widened
    as the quantile of Student's distribution is over the normal one's (Abramowitz and Stegun 26.7.5, to second order).
    """
    z, n = STAGE_ERRORS, len(costs) - 1
    quantile = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    return quantile * float(costs.std(ddof=1)) / math.sqrt(len(costs))
