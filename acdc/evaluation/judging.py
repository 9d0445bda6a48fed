"""The whole evaluation of a scored circuit: behaviour, curve, areas, k*, the kept circuit and its random controls; and
of the kept circuit what else was asked for: other ablations, groups, completeness, minimality, hypothesis tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from acdc.circuit import Scores
from acdc.evaluation import completeness, minimality, reaching
from acdc.evaluation.areas import areas_of
from acdc.evaluation.behaviour import verdict_on
from acdc.evaluation.curve import Judge, Size, curve, scale_on, sizes_of
from acdc.evaluation.groups import group_figures
from acdc.evaluation.hypotheses import FEWEST_CIRCUITS, hypotheses_of
from acdc.evaluation.k_star import find_k_star, most_trials, target_size
from acdc.evaluation.measuring import Ledger, Split
from acdc.evaluation.memory import Memory
from acdc.evaluation.random_circuits import random_circuits
from acdc.evaluation.stability import stability_of
from acdc.graph import BoolMatrix, Graph
from acdc.progress import Progress
from acdc.report import (
    Areas,
    Band,
    Behaviour,
    Completeness,
    Elsewhere,
    GroupFigures,
    HypothesisTest,
    KStar,
    Minimality,
    Point,
    Report,
    Stability,
)
from acdc.selection import Kept, Ranking, rank, size_of


@dataclass(frozen=True)
class Plan:
    """What to evaluate.

    grid: shares of all edges. rules: of the curve; none for no curve. k_star_rules: among which k* is looked for, those
    of the curve by default. random_circuits: matched to the kept circuit. band_circuits: matched to each grid point, by
    the kept circuit's rule (the curve's first where that is none of them).
    knock_outs: random sets of nodes for completeness, besides those of layers and the greedy ones; 0 leaves it at the
    complement. minimality: edges whose removal is measured. tests: random circuits and paths that the hypothesis tests
    compare with; 0 leaves out those that need any. other_ablations: how many the kept circuit is run under besides.
    reach: a faithfulness; the smallest circuit by any of k_star_rules that has it is kept, instead of k*.
    """

    grid: Sequence[float]
    rules: Sequence[str] = ("signed", "absolute")
    k_star_rules: Sequence[str] | None = None
    random_circuits: int = 20
    band_circuits: int = 5
    knock_outs: int = 0
    minimality: int = 0
    tests: int = 0
    other_ablations: int = 0
    reach: float | None = None
    seed: int = 0

    @property
    def more_for_tests(self) -> int:
        """Random circuits that the tests need beyond those of the controls."""
        return max(0, self.tests - self.random_circuits)

    @property
    def rules_of_k_star(self) -> Sequence[str]:
        return self.rules if self.k_star_rules is None else self.k_star_rules


@dataclass(frozen=True)
class Cost:
    """Circuits to be run over every prompt of a split, at most: one masked forward a prompt each."""

    search: int
    held_out: int


@dataclass(frozen=True, eq=False)
class Judgement:
    """report, and the circuit that it calls kept: the one given, else k*. inclusion: float32 [senders, receivers], the
    share of resampled circuits that have an edge; None where stability was not measured. notes: what was asked for and
    could not be had."""

    report: Report
    kept: Kept
    inclusion: Scores | None = None
    notes: tuple[str, ...] = ()


def n_evaluations(graph: Graph, plan: Plan, *, with_k_star: bool) -> Cost:
    """The cost of `judge`, told before: an upper bound, since equal circuits are run once."""
    sizes = sizes_of(plan.grid, graph.n_edges)
    rules = set(plan.rules) | (set(plan.rules_of_k_star) if with_k_star else set())
    both = 3 + len(rules) * len(sizes)  # the model, the empty circuit, the kept one; then the sizes
    if with_k_star:
        both += most_trials(sizes, graph.n_edges, len(plan.rules_of_k_star))
        both += reaching.most_trials(sizes, len(plan.rules_of_k_star)) if plan.reach is not None else 0
    held_out = len(_band_sizes(plan, graph)) * plan.band_circuits if plan.rules else 0
    held_out += plan.random_circuits + plan.more_for_tests
    held_out += plan.tests if plan.tests >= FEWEST_CIRCUITS else 0  # what is left without each
    held_out += completeness.n_circuits(graph, plan.knock_outs)
    held_out += minimality.n_circuits(min(plan.minimality, graph.n_edges), plan.tests)
    return Cost(both, both + held_out + 3 * plan.other_ablations)


def judge(
    graph: Graph,
    scores: Scores,
    tested: BoolMatrix,
    *,
    search: Split,
    held_out: Split,
    plan: Plan,
    progress: Progress,
    kept: Kept | None = None,
    per_example: Scores | None = None,
    why_no_examples: str = "there are no scores per example",
    elsewhere: Mapping[str, Callable[[], Split]] | None = None,
    memory: Memory | None = None,
) -> Judgement:
    """Evaluate the scores, and the circuit `kept`; without one, look for k* and keep that.

    per_example: float32 [n search examples, n_edges], edges in the graph's order, from which stability is measured;
    without them the report says why_no_examples. elsewhere: the held-out prompts under other ablations, by name; each
    is made when its turn comes. memory: what an earlier run of the same evaluation has measured.
    Where k* cannot be told (f is withheld, nothing is ranked), the first rule's 2 % of the edges are kept. Where no
    edge was tested there is no curve. Raises Cancelled, ModelError for numbers that are not finite.
    """
    memory = memory or Memory()
    judging = _prepare(graph, search, held_out, plan, progress, memory)
    rules = dict.fromkeys([*plan.rules, *(plan.rules_of_k_star if kept is None else ())]) if tested.any() else {}
    rankings = {rule: rank(graph, scores, tested, rule) for rule in rules}
    sizes = sizes_of(plan.grid, graph.n_edges)
    on_curve = [rankings[rule] for rule in plan.rules if rule in rankings]
    points = []
    if on_curve:
        progress.phase("curve", 2 * len(on_curve) * len(sizes))
        points = curve(judging, on_curve, sizes)
    k_star, notes = None, list[str]()
    ranked = [rankings[rule] for rule in plan.rules_of_k_star if rule in rankings]
    if kept is None and plan.reach is not None and ranked:
        progress.phase(f"the smallest circuit with f of {plan.reach:g}", 0)
        kept = reaching.smallest_reaching(judging, ranked, sizes, plan.reach)
        if kept is None:
            notes.append(f"no size tried has f of {plan.reach:g} on the searched prompts: k* was looked for instead")
            progress.log(notes[-1])
    if kept is None:
        progress.phase("k*", 0)
        k_star = find_k_star(judging, ranked, sizes)
        kept = _to_keep(graph, ranked, k_star, progress)
    report = _report(judging, plan, points, k_star, kept, on_curve, progress)
    report = replace(report, elsewhere=_elsewhere(graph, elsewhere or {}, kept, plan.seed, progress, memory))
    stability, inclusion = Stability("not measured", why_no_examples), None
    if per_example is not None:
        stability, inclusion = stability_of(graph, per_example, tested, search.groups, kept, plan.seed, progress)
    return Judgement(replace(report, stability=stability), kept, inclusion, tuple(notes))


def _prepare(graph: Graph, search: Split, held_out: Split, plan: Plan, progress: Progress, memory: Memory) -> Judge:
    progress.phase("model and empty circuit", 4)
    ledgers = {split.name: Ledger(split, progress, memory) for split in (search, held_out)}
    scales = {}
    for i, (name, ledger) in enumerate(ledgers.items()):
        scales[name] = scale_on(ledger, graph, plan.seed, done_before=2 * i)
        if not scales[name].can_divide:
            progress.log(f"f is withheld on the {name} prompts: m(M) - m(empty) may as well be zero")
    return Judge(graph, ledgers, scales)


def _to_keep(graph: Graph, ranked: Sequence[Ranking], k_star: KStar | None, progress: Progress) -> Kept:
    if k_star is not None:
        chosen = next(ranking for ranking in ranked if ranking.rule == k_star.point.rule)
        return chosen.select(k_star.point.asked_for)
    if ranked:
        progress.log(f"k* cannot be told; keeping 2 % of the edges by the rule {ranked[0].rule}")
        return ranked[0].select(target_size(graph.n_edges))
    progress.log("no edge got a score; the circuit kept is empty")
    return Kept.of(graph, np.zeros_like(graph.legal), "decisions")


def _report(
    judging: Judge,
    plan: Plan,
    points: list[Point],
    k_star: KStar | None,
    kept: Kept,
    on_curve: Sequence[Ranking],
    progress: Progress,
) -> Report:
    rng = np.random.default_rng(plan.seed)
    share = kept.selected.asked_for / judging.graph.n_edges
    progress.phase("kept circuit", 2)
    of_kept = tuple(judging.point(split, kept, share) for split in judging.ledgers)
    matched = _matched(judging.graph, kept, plan.random_circuits, rng)
    kept_random = _band(judging, kept, share, matched, progress)
    by_rule = {ranking.rule: ranking for ranking in on_curve}
    ranking = by_rule.get(kept.selected.rule, on_curve[0] if on_curve else None)
    on_grid = [(ranking.select(size.n), size.fraction) for size in _band_sizes(plan, judging.graph)] if ranking else []
    bands = [
        _band(judging, one, fraction, _matched(judging.graph, one, plan.band_circuits, rng), progress)
        for one, fraction in on_grid
    ]
    parts = _Parts()
    if kept.mask.any():
        parts = _parts(judging, kept, matched, plan, progress)
    return Report(
        behaviour=_behaviour(judging, plan.seed),
        metric_full={name: scale.full for name, scale in judging.scales.items()},
        metric_empty={name: scale.empty for name, scale in judging.scales.items()},
        kl_empty={name: scale.kl_empty for name, scale in judging.scales.items()},
        points=tuple(points),
        areas=tuple(_areas(points, judging, plan)),
        bands=tuple(band for band in bands if band),
        k_star=k_star,
        kept=of_kept,
        kept_random=kept_random,
        groups=parts.groups,
        completeness=parts.completeness,
        minimality=parts.minimality,
        tests=parts.tests,
    )


def _areas(points: Sequence[Point], judging: Judge, plan: Plan) -> list[Areas]:
    curves = [[p for p in points if (p.split, p.rule) == (s, rule)] for s in judging.ledgers for rule in plan.rules]
    return [areas_of(one) for one in curves if one]


def _behaviour(judging: Judge, seed: int) -> Behaviour:
    """Over all prompts: nothing was chosen by them yet. The splits share no group."""
    clean = [ledger(judging.graph.legal) for ledger in judging.ledgers.values()]
    splits = [ledger.split for ledger in judging.ledgers.values()]
    sizes = np.array([split.measure.n_examples for split in splits])
    return verdict_on(
        metric_clean=np.concatenate([outcome.metric for outcome in clean]),
        metric_corrupt=np.concatenate([split.metric_corrupt for split in splits]),
        correct=np.concatenate([outcome.correct for outcome in clean]),
        groups=[group for split in splits for group in split.groups],
        chance=float(np.average([split.chance for split in splits], weights=sizes)),
        seed=seed,
    )


def _band_sizes(plan: Plan, graph: Graph) -> list[Size]:
    """The grid's own sizes, also where the curve sweeps every one; the whole graph has no random counterpart."""
    own = {size.n: size for size in sizes_of(plan.grid, graph.n_edges)}
    wanted = {size_of(fraction, graph.n_edges) for fraction in plan.grid}
    return [own[n] for n in sorted(wanted) if 0 < n < graph.n_edges and n in own]


def _matched(graph: Graph, kept: Kept, n: int, rng: np.random.Generator) -> list[BoolMatrix]:
    """None for a circuit without edges."""
    return random_circuits(graph, kept.mask, n, rng) if n and kept.selected.connected else []


def _band(judging: Judge, kept: Kept, fraction: float, masks: Sequence[BoolMatrix], progress: Progress) -> Band | None:
    """masks: random circuits; None without any."""
    if not masks:
        return None
    progress.phase(f"random circuits of {kept.selected.connected} edges", len(masks))
    outcomes = judging.ledgers["held_out"].all_of(masks)
    scale = judging.scales["held_out"]
    return Band(
        rule=kept.selected.rule,
        fraction=fraction,
        connected=kept.selected.connected,
        n_circuits=len(masks),
        f=tuple(scale.f(outcome.mean_metric) for outcome in outcomes),
        kl_share=tuple(scale.kl_share(outcome.mean_kl) for outcome in outcomes),
    )


# -- the kept circuit, more closely ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    groups: tuple[GroupFigures, ...] = ()
    completeness: Completeness | None = None
    minimality: Minimality | None = None
    tests: tuple[HypothesisTest, ...] = ()


def _parts(judging: Judge, kept: Kept, matched: Sequence[BoolMatrix], plan: Plan, progress: Progress) -> _Parts:
    rng = np.random.default_rng((plan.seed, 1))  # of its own: what is asked for besides moves no other figure
    more = _matched(judging.graph, kept, plan.more_for_tests, np.random.default_rng((plan.seed, 2)))
    of_tests = [*matched, *more][: plan.tests]
    return _Parts(
        groups=group_figures(judging, kept, plan.seed),
        completeness=completeness.completeness_of(judging, kept, plan.knock_outs, rng, progress),
        minimality=minimality.minimality_of(judging, kept, plan.minimality, plan.tests, rng, progress),
        tests=hypotheses_of(judging, kept, of_tests, plan.seed, progress),
    )


def _elsewhere(
    graph: Graph,
    splits: Mapping[str, Callable[[], Split]],
    kept: Kept,
    seed: int,
    progress: Progress,
    memory: Memory,
) -> tuple[Elsewhere, ...]:
    """The kept circuit, and the ends of its scale, under every other ablation."""
    found = []
    for ablation, make in splits.items():
        progress.phase(f"the same circuit under {ablation}", 3)
        ledger = Ledger(make(), progress, memory, place=ablation)
        scale = scale_on(ledger, graph, seed)
        judging = Judge(graph, {ledger.split.name: ledger}, {ledger.split.name: scale})
        share = kept.selected.asked_for / graph.n_edges
        (point,) = judging.points(ledger.split.name, [kept], [share], done_before=2)
        found.append(Elsewhere(ablation, scale.full, scale.empty, scale.kl_empty, point))
    return tuple(found)
