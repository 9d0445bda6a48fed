"""What a card says of a circuit: its summary, and every part of its evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from acdc import numerals
from acdc.card.challenges import challenge_sections, mean_and_range
from acdc.card.edges import circuit_section, edges_section, nodes_in_words
from acdc.card.origin import choices_sentence, origin_of, provenance_tables, title_of
from acdc.card.parts import FACTS, Card, Cell, Section, Table
from acdc.card.parts import yes as _yes
from acdc.challenge import Challenge
from acdc.circuit import Circuit
from acdc.drawing import draw_curve, draw_removals
from acdc.numerals import figure, two_digits
from acdc.report import (
    Band,
    Behaviour,
    Completeness,
    GroupFigures,
    HypothesisTest,
    KnockOut,
    KStar,
    Minimality,
    Point,
    Report,
    Stability,
)
from acdc.selection import RULES
from acdc.swept import Swept

COSTLIEST = 15  # removed edges that a card lists
WIDEST = 5  # gaps of completeness
CONDITIONS = "these numbers hold for"
SPLITS = {"search": "searched", "held_out": "held out"}


def card_of(
    circuit: Circuit,
    name: str | None = None,
    notes: str = "",
    *,
    id: str | None = None,
    derived_from: str | None = None,
) -> Card:
    """A circuit's whole card; `also` adds later evaluations, `challenged` a challenge. name: what people call it. id,
    derived_from: its own in a store, and that of the circuit that it was made of."""
    made = circuit.provenance
    titled = f"{title_of(made)}." if name else ""
    lead = (titled, _size(circuit, id), origin_of(circuit, derived_from) or "", _emptiness(circuit), notes)
    unjudged = [Section("Judgement", ("Not evaluated yet.",))]
    judged = unjudged if circuit.report is None else judgement(circuit.report)
    return Card(
        name or title_of(made),
        tuple(line for line in lead if line),
        Section("Summary", table=Table(FACTS, tuple(_summary(circuit)))),
        circuit_section(circuit),
        edges_section(circuit),
        (*judged, *provenance_tables(made)),
    )


def _size(circuit: Circuit, id: str | None) -> str:
    kept = circuit.selected
    return (
        f"{f'Circuit {id}' if id else 'Kept'}: {kept.connected:,} of {circuit.graph.n_edges:,} "
        f"{circuit.edges_in_words} ({numerals.percent(kept.connected / circuit.graph.n_edges)}), chosen by rule "
        f"{kept.rule}: {kept.asked_for:,} asked for, {kept.connected:,} of them on a path to the logits."
    )


def _emptiness(circuit: Circuit) -> str:
    return f"Note: {circuit.selected.emptiness}." if circuit.selected.emptiness else ""


def _summary(circuit: Circuit) -> Iterable[tuple[str, str]]:
    kept, report = circuit.selected, circuit.report
    nodes = nodes_in_words(circuit) if circuit.n_edges else "the circuit is empty"
    yield "edges kept", f"{kept.connected:,} of {circuit.graph.n_edges:,}; {nodes}"
    if report is not None:
        yield from _verdicts(report)
    yield CONDITIONS, choices_sentence(circuit.provenance, kept.rule)
    if circuit.provenance.run.notes:
        yield "notes", "; ".join(circuit.provenance.run.notes)


def _verdicts(report: Report) -> Iterable[tuple[str, str]]:
    own, b = report.kept_held_out, report.behaviour
    if own is not None:
        yield "f, held out", two_digits(own.f)
        yield "KL share, held out", two_digits(own.kl_share)
        yield "accuracy, held out", f"{two_digits(own.accuracy)}, where chance is {two_digits(b.chance)}"
    if report.kept_random is not None:
        mean, least, most = map(two_digits, mean_and_range(report.kept_random.f))
        yield "f of random circuits of its size", f"{mean} on average, {least} to {most}"
    yield "behaviour", f"{b.verdict}, its interval {b.drawn_over}"
    stability = report.stability
    why = f" ({stability.reason})" if stability.reason else ""
    yield (
        "stability",
        stability.verdict + why + (f", its resamples {stability.drawn_over}" if stability.drawn_over else ""),
    )
    if report.k_star is not None:
        yield "k*", _verdict_on(report.k_star, own)


def _verdict_on(star: KStar, own: Point | None) -> str:
    if not star.met:
        return f"missed: no size tried has {WANTED}"
    if own is not None and _is_the_circuit(star, own):
        return "met: this circuit is the smallest of the sizes tried"
    of = "" if _is_ranked(own) else ", by the scores and not of this circuit"
    return f"met with {numerals.count(star.point.connected, 'edge')}{of}"


def also(card: Card, title: str, said: str, report: Report) -> Card:
    """The card with an evaluation that was made later. said: what its numbers hold for."""
    parts = [replace(section, is_part=True) for section in judgement(report)]
    return replace(card, sections=(*card.sections, Section(title, (said,)), *parts))


def challenged(card: Card, challenge: Challenge, by: str = "") -> Card:
    """The card of a circuit with a challenge of it before its own judgement. by: which job made it."""
    n_held, settings = sum(bool(one.holds) for one in challenge.told), numerals.count(len(challenge.told), "setting")
    assert card.summary.table is not None
    rows = card.summary.table.rows
    at = [row[0] for row in rows].index(CONDITIONS)
    verdict = ("challenge", f"holds in {n_held:,} of {settings}")
    summary = replace(card.summary, table=replace(card.summary.table, rows=(*rows[:at], verdict, *rows[at:])))
    return replace(card, summary=summary, sections=(*challenge_sections(challenge, by), *card.sections))


def judgement(report: Report) -> list[Section]:
    """Everything that the evaluation says, most important first."""
    sections = [_behaviour(report.behaviour)]
    if report.kept:
        sections += [Section("The circuit's figures", table=_points(report.kept)), _spread(report.kept)]
    of_scores = () if _is_ranked(report.kept_held_out) else (OF_SCORES,)
    if report.k_star is not None:
        sections.append(_k_star(report.k_star, report.kept_held_out, of_scores))
    if report.points:
        sections.append(Section("Faithfulness over size", of_scores, picture=functools.partial(draw_curve, report)))
    if report.kept_random or report.bands:
        sections.append(_random(report))
    sections += closer_look(report)
    sections.append(_stability(report.stability))
    if report.areas:
        sections.append(_areas(report))
    return sections


OF_SCORES = "These sizes are cut from the scores: none of them is this circuit, which no ranking made."
WANTED = "f in 0.8 to 1.2 and a KL share of at most 0.5, held out"


def closer_look(report: Report) -> list[Section]:
    """The parts that speak of the kept circuit alone, those that were asked for."""
    sections = []
    if report.elsewhere:
        sections.append(_elsewhere(report))
    if report.groups:
        sections.append(_groups(report.groups))
    if report.completeness:
        sections.append(_completeness(report.completeness))
    if report.minimality:
        sections.append(_minimality(report.minimality))
    if report.tests:
        sections.append(_tests(report.tests))
    return sections


# -- the parts ---------------------------------------------------------------------------------------------------------


def _behaviour(b: Behaviour) -> Section:
    low, high = map(figure, b.interval)
    said = (
        f"The behaviour is {b.verdict}: metric {figure(b.metric_clean)} on clean prompts, {figure(b.metric_corrupt)} "
        f"on corrupt ones, accuracy {figure(b.accuracy_clean)} where chance is {figure(b.chance)}, "
        f"{numerals.count(b.n_examples, 'prompt')}. The difference is {low} to {high} (95 % interval, {b.drawn_over})."
    )
    return Section("Behaviour", (said,))


_POINT = ("prompts", "rule", "#edges", "#f", "#KL share", "#metric", "#KL", "#accuracy", "#log P of the answer")


def _points(points: Iterable[Point]) -> Table:
    return Table.of(_POINT, map(_point, points))


def _point(p: Point) -> tuple[Cell, ...]:
    split = SPLITS.get(p.split, p.split)
    return split, p.rule, p.connected, p.f, p.kl_share, p.metric, p.kl, p.accuracy, p.answer_logprob


def _spread(points: Iterable[Point]) -> Section:
    """Over examples."""
    rows = [
        (SPLITS.get(p.split, p.split), name, *quantiles)
        for p in points
        for name, quantiles in (("metric", p.quantiles), ("KL", p.kl_quantiles))
        if quantiles is not None
    ]
    columns = ("prompts", "of", "#5 %", "#25 %", "#50 %", "#75 %", "#95 %")
    return Section(
        "Spread over prompts",
        ("What 5 % to 95 % of the prompts do not exceed.",),
        Table.of(columns, rows),
        is_part=True,
    )


def _k_star(star: KStar, own: Point | None, of_scores: tuple[str, ...]) -> Section:
    if not star.met:
        said = f"No size tried has {WANTED}; these came nearest."
        return Section("No size met both conditions", (said, *of_scores), _points(star.nearest or (star.point,)))
    title = "k*, the smallest circuit that meets both conditions"
    chosen = (
        "and on the searched prompts before" if star.chosen_on == "search" else "though not on the searched prompts"
    )
    said = f"Of the sizes tried, the smallest with {WANTED}, {chosen}."
    if own is not None and _is_the_circuit(star, own):
        return Section(title, (f"{said} It is this circuit.",))
    return Section(title, (said, *of_scores), _points((star.point,)))


def _is_the_circuit(star: KStar, own: Point) -> bool:
    found = star.point
    return (found.rule, found.connected, found.metric) == (own.rule, own.connected, own.metric)


def _is_ranked(own: Point | None) -> bool:
    """Whether the circuit is the first edges of a ranking, as the circuits of the curve are."""
    return own is None or own.rule in RULES


def _random(report: Report) -> Section:
    own = [("the circuit", report.kept_random)] if report.kept_random else []
    bands = [*own, *((f"the curve at {numerals.percent(band.fraction)}", band) for band in report.bands)]
    said = "Connected random circuits, held out: of as many edges as what they stand beside, in the same layers."
    return Section("Random circuits", (said,), Table.of(_BAND, (_band(beside, band) for beside, band in bands)))


_BAND = (
    *("beside", "rule", "#edges", "#circuits", "#f mean", "#f least", "#f most"),
    *("#KL share mean", "#KL share least", "#KL share most"),
)


def _band(beside: str, b: Band) -> tuple[Cell, ...]:
    return beside, b.rule, b.connected, b.n_circuits, *mean_and_range(b.f), *mean_and_range(b.kl_share)


def _elsewhere(report: Report) -> Section:
    own = report.kept_held_out
    rows: list[tuple[Cell, ...]] = []
    if own is not None:
        ends = report.metric_full["held_out"], report.metric_empty["held_out"]
        rows.append(("its own", own.f, own.kl_share, own.metric, *ends, own.accuracy, own.answer_logprob))
    for one in report.elsewhere:
        p = one.kept
        ends = one.metric_full, one.metric_empty
        rows.append((one.ablation, p.f, p.kl_share, p.metric, *ends, p.accuracy, p.answer_logprob))
    columns = (
        *("ablation", "#f", "#KL share", "#metric", "#metric of the model", "#metric of the empty circuit"),
        *("#accuracy", "#log P of the answer"),
    )
    said = "The same circuit, held out, where cut edges carry something else; each f is in its own ablation's scale."
    return Section("Under other ablations", (said,), Table.of(columns, rows))


def _groups(groups: Sequence[GroupFigures]) -> Section:
    rows = (
        (SPLITS.get(g.split, g.split), g.group, g.n_examples, g.f, g.kl_share, g.metric, g.metric_full, g.accuracy)
        for g in groups
    )
    columns = ("prompts", "group", "#how many", "#f", "#KL share", "#metric", "#metric of the model", "#accuracy")
    held_out = [g.f for g in groups if g.split == "held_out" and g.f is not None]
    said: list[str] = []
    if held_out:
        low, high = two_digits(min(held_out)), two_digits(max(held_out))
        said = [f"f on the held-out groups, each in its own scale: {low} to {high}."]
    return Section("Groups of prompts", tuple(said), Table.of(columns, rows))


def _completeness(part: Completeness) -> Section:
    rest = part.complement
    said = [
        f"The model without the circuit, held out: {rest.figures}, accuracy {two_digits(rest.accuracy)}. f is near 0 "
        "where nothing of the behaviour is left outside the circuit."
    ]
    if not part.knock_outs:
        return Section("Completeness", tuple(said))
    once = _each_set_once(part.knock_outs)
    sets = numerals.count(len(once), "set")
    verb = "was" if len(once) == 1 else "were"
    said.append(f"{sets} of the circuit's nodes {verb} cut from it and from the model; the widest gaps:")
    widest = sorted(once, key=lambda one: -one.metric_gap)[:WIDEST]
    rows = ((one.how, _names(one.nodes), one.f_circuit, one.f_model, one.gap, one.metric_gap) for one in widest)
    columns = ("drawn", "nodes cut", "#f of the circuit", "#f of the model", "#gap", "#gap of the metric")
    return Section("Completeness", tuple(said), Table.of(columns, rows))


def _each_set_once(knock_outs: Iterable[KnockOut]) -> list[KnockOut]:
    """A set that was drawn in several ways says so."""
    by_set: dict[frozenset[str], list[KnockOut]] = {}
    for one in knock_outs:
        by_set.setdefault(frozenset(one.nodes), []).append(one)
    return [replace(same[0], how=", ".join(dict.fromkeys(one.how for one in same))) for same in by_set.values()]


def _names(nodes: Sequence[str], most: int = 12) -> str:
    more = f" and {len(nodes) - most} more" if len(nodes) > most else ""
    return " ".join(nodes[:most]) + more


def _minimality(part: Minimality) -> Section:
    n = len(part.removals)
    of = (
        f"all {numerals.count(n, 'edge')}"
        if n == part.n_edges
        else f"{numerals.count(n, 'edge')} drawn from its {part.n_edges:,}"
    )
    idle = sum(one.cost <= 0 for one in part.removals)
    said = [
        f"Each of {of} was removed from the circuit alone, held out. {idle:,} of them cost the metric nothing or less. "
        "Edges that stand in for each other do not show this way."
    ]
    if part.n_superfluous is not None:
        said.append(
            f"Superfluous: {part.n_superfluous:,}. The removal of such an edge exceeds clearly fewer than nine in ten "
            f"removals of an edge from a path added at random ({numerals.count(part.n_random, 'path')}, 5 % over all "
            "edges tested)."
        )
    costliest = sorted(part.removals, key=lambda one: -abs(one.cost))[:COSTLIEST]
    rows = ((o.edge, o.cost, o.cost_f, o.cost_kl, o.moved, o.exceeds, _yes(o.superfluous)) for o in costliest)
    columns = ("edge", "#cost", "#cost in f", "#cost in KL", "#moved", "#random edges exceeded", "superfluous")
    return Section("Minimality", tuple(said), Table.of(columns, rows), functools.partial(draw_removals, part))


def _tests(tests: Sequence[HypothesisTest]) -> Section:
    rows = tuple((t.name, t.says, t.statistic, t.n, t.p, _yes(t.rejected)) for t in tests)
    said = (
        "Shi et al. (2024), at 5 %. Prompts of one template are alike, so p-values are too small by what that matters."
    )
    if not any(t.name == "sufficiency" for t in tests):
        said += " Sufficiency and partial necessity need more random circuits: ask with evaluation.tests of 100."
    columns = ("test", "what it says", "#statistic", "#n", "#p", "null rejected")
    return Section("Hypothesis tests", (said,), Table(columns, rows))


def _stability(stability: Stability) -> Section:
    said = [f"{stability.sentence}."]
    said += [f"Drawn {stability.drawn_over}."] if stability.drawn_over else []
    return Section("Stability under resampling", tuple(said))


_AREAS = {
    "cpr": "CPR",
    "cmd": "CMD",
    "cmd_guarded": "CMD guarded",
    "kl_area": "KL area",
    "cpr_log": "CPR log",
    "cmd_log": "CMD log",
}


def _areas(report: Report) -> Section:
    swept = Swept.of(report)
    rows = ((SPLITS.get(a.split, a.split), a.rule, *(getattr(a, name) for name in _AREAS)) for a in report.areas)
    columns = ("prompts", "rule", *(f"#{title}" for title in _AREAS.values()))
    return Section(f"Areas over {swept.span}", swept.sentences, Table.of(columns, rows))
