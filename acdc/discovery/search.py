"""One exact ACDC search at one threshold: the sequential search's decisions, many edges tested at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from acdc.discovery.candidates import Candidates
from acdc.discovery.chain import ChainLength
from acdc.discovery.problem import Problem
from acdc.discovery.walk import Rule, Walk, receiver_order, sender_order
from acdc.graph import BoolMatrix
from acdc.patching.circuits import PerExample
from acdc.patching.needs import Needs

STAGE_ERRORS = 3.0  # standard errors that a subset's mean cost must lie from the threshold to decide


@dataclass(frozen=True)
class Order:
    """In which order the senders of a receiver are tested: reverse (late to early), normal or random."""

    name: str = "reverse"
    seed: int = 0


class Search:
    """Walks the receivers, deciding on every edge into each.

    stages: the prompts to decide on; more than one (each with more prompts) makes the search a staged one: an edge goes
    on to the next stage where its mean cost lies within STAGE_ERRORS standard errors of the threshold.
    walk: where the search stands. start: the edges it began with, no others are tested. predicted: those expected to
    stay.
    Counts in walk.counts: edges_tested, batched_evaluations, rows, node_recomputations, borderline_edges, and
    edges_decided_early where there are stages.
    """

    def __init__(
        self,
        stages: Sequence[Problem],
        rule: Rule,
        walk: Walk,
        start: BoolMatrix,
        predicted: BoolMatrix,
        order: Order | None = None,
    ) -> None:
        self.rule, self.walk, self.predicted, self.order = rule, walk, predicted, order or Order()
        self.graph = stages[-1].t.graph
        self.length = ChainLength()
        self.start = start
        self.kept = start.copy()  # the standing circuit
        self.needs = Needs(self.graph)
        self.stages = [Candidates(problem, self.kept, self.needs) for problem in stages]
        self._open(self.graph.n_receivers - 1, self._senders(self.graph.n_receivers - 1))
        self.current = [stage.value() for stage in self.stages]  # the objective now, per stage and example

    @property
    def metric(self) -> float:
        """The objective of the standing circuit on all prompts."""
        return float(self.current[-1].mean())

    def run(self, step: Callable[[int, str], None], save: Callable[[], None]) -> None:
        """step(edges done, receiver) often, save() after every receiver. Decisions taken before are committed again
        one by one, so that the search stands to the bit where it would have stood."""
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

    def _replay(self, receiver: int) -> None:
        if self.needs.of_receiver(receiver):
            senders = self._senders(receiver)
            self._open(receiver, senders)
            self._decide([not self.walk.kept[sender, receiver] for sender in senders])
            self._leave(receiver)
        else:
            self.kept[:, receiver] = self.walk.kept[:, receiver]

    def _visit(self, receiver: int, before: int, step: Callable[[int, str], None]) -> None:
        senders = self._senders(receiver)
        if not self.needs.of_receiver(receiver):
            self.walk.kept[senders, receiver] = not self.rule.cuts(0.0)
            self.kept[:, receiver] = self.walk.kept[:, receiver]
            return
        self._open(receiver, senders)
        done = 0
        while done < len(senders):
            done += self._chain(receiver, senders[done : done + self.length.best()])
            step(before + done, self.graph.receivers[receiver].name)
        self._leave(receiver)

    def _open(self, receiver: int, senders: Sequence[int]) -> None:
        self.expected = {sender: not self.predicted[sender, receiver] for sender in senders}
        for stage in self.stages:
            stage.open(receiver, senders)

    def _decide(self, goes: Sequence[bool]) -> None:
        for stage in self.stages:
            stage.decide(goes)

    def _leave(self, receiver: int) -> None:
        """Make the decisions on a receiver part of the standing circuit."""
        is_changed = bool((self.kept[:, receiver] & ~self.walk.kept[:, receiver]).any())
        self.kept[:, receiver] = self.walk.kept[:, receiver]
        self.needs.decide(receiver, self.kept[:, receiver])
        if is_changed:
            before = self._node_runs
            self.current = [stage.commit() for stage in self.stages]
            self.walk.count("node_recomputations", self._node_runs - before)

    @property
    def _node_runs(self) -> int:
        return sum(stage.node_runs for stage in self.stages)

    def _chain(self, receiver: int, senders: Sequence[int]) -> int:
        """Test edges in one batch, on the prediction of what becomes of those before; how many are decided."""
        before = self._node_runs
        will_go = [self.expected[sender] for sender in senders]
        values = self.stages[0].values(len(senders), will_go)
        self._expect(senders, will_go, values)
        self.walk.count("batched_evaluations")
        self.walk.count("rows", len(senders))
        goes: list[bool] = []  # decided, and not yet told to the stages
        decided = wrong = 0
        for sender, is_expected, value in zip(senders, will_go, values, strict=True):
            cost = self._cost_at_once(value)
            if cost is None:
                self._decide(goes)
                goes = []
                cost = self._cost_alone()
            is_cut = self.rule.cuts(cost)
            self.walk.record(sender, receiver, cost, is_cut)
            goes.append(is_cut)
            decided += 1
            if is_cut:
                self.current[0] = value
            if is_cut != is_expected:
                wrong = 1
                break
        self._decide(goes)
        self.walk.count("edges_tested", decided)
        self.walk.count("node_recomputations", self._node_runs - before)
        self.length.saw(decided - wrong, wrong)
        return decided

    def _expect(self, senders: Sequence[int], will_go: Sequence[bool], values: PerExample) -> None:
        """What a row says is at once the best guess for its edge, should its chain break before it."""
        standing = self.current[0].mean()
        for sender, goes, value in zip(senders, will_go, values.mean(1), strict=True):
            self.expected[sender] = self.rule.cuts(float(standing - value))
            standing = value if goes else standing

    def _cost_at_once(self, value: PerExample) -> float | None:
        """The mean cost of a candidate, unless it lies too near the threshold for its row to say."""
        costs = self.current[0] - value
        if self._is_open(0, costs, self.current[0]):
            return None
        if len(self.stages) > 1:
            self.walk.count("edges_decided_early")
        return float(costs.mean())

    def _cost_alone(self) -> float:
        """What the next edge costs, by a run of its own: on the next stage's prompts, at last on all."""
        first = min(1, len(self.stages) - 1)
        for number, stage in list(enumerate(self.stages))[first:]:
            standing, without = stage.with_and_without_next()
            costs = standing - without
            if not self._is_open(number, costs, standing):
                self.walk.count("edges_decided_early", int(number < len(self.stages) - 1))
                return float(costs.mean())
        self.walk.count("borderline_edges")
        return float(costs.mean())

    def _is_open(self, number: int, costs: PerExample, metric: PerExample) -> bool:
        """Whether a stage's costs leave the decision open: to rounding, and before the last stage to more prompts."""
        cost = float(costs.mean())
        if self.rule.is_borderline(cost, float(metric.mean())):
            return True
        if number == len(self.stages) - 1:
            return False
        error = float(costs.std(ddof=1)) / math.sqrt(len(costs))
        return abs(self.rule.margin(cost)) <= STAGE_ERRORS * error
