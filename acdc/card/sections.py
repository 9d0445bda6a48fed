"""What a card says, as titles, sentences and tables of plain text: no markup, whoever shows it escapes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from acdc.challenge import Challenge, Tried
from acdc.circuit import Circuit, Provenance
from acdc.drawing import draw_challenge, draw_curve, draw_removals
from acdc.report import (
    Band,
    Behaviour,
    Completeness,
    GroupFigures,
    HypothesisTest,
    KStar,
    Minimality,
    Point,
    Report,
)

COSTLIEST = 15  # removed edges that a card lists
WIDEST = 5  # gaps of completeness
MOST_SURVIVORS = 50
SPLITS = {"search": "searched", "held_out": "held out"}

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A column whose name begins with `#` holds numbers. A cell of None was withheld or not asked for."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Section:
    """picture: draws its SVG, for whoever can show one."""

    title: str
    text: tuple[str, ...] = ()
    table: Table | None = None
    picture: Callable[[], str] | None = None


@dataclass(frozen=True)
class Card:
    """lead: what stands under the title, before any section."""

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


def card_of(title: str, circuit: Circuit, notes: str = "") -> Card:
    """A circuit's whole card; `also` adds later evaluations."""
    kept, n_edges, made = circuit.selected, circuit.graph.n_edges, circuit.provenance
    size = (
        f"{kept.connected:,} of {n_edges:,} {circuit.edges_in_words} ({kept.connected / n_edges:.2%}), "
        f"chosen by rule {kept.rule}: {kept.asked_for:,} asked for, those on a path to the logits kept."
    )
    lead = (size, notes, choices_sentence(made, kept.rule))
    unjudged = [Section("Judgement", ("Not evaluated yet.",))]
    judged = unjudged if circuit.report is None else judgement(circuit.report)
    return Card(title, tuple(line for line in lead if line), (*judged, *provenance_tables(asdict(made))))


def also(card: Card, title: str, said: str, report: Report) -> Card:
    """The card with an evaluation that was made later. said: what its numbers hold for."""
    sections = [replace(section, title=f"{title}: {section.title}") for section in judgement(report)]
    return replace(card, sections=(*card.sections, Section(title, (said,)), *sections))


def challenged(card: Card, challenge: Challenge, by: str = "") -> Card:
    """The card of a circuit with a challenge of it before all else. by: which job made it."""
    return replace(card, sections=(*challenge_sections(challenge, by), *card.sections))


def challenge_sections(challenge: Challenge, by: str = "") -> list[Section]:
    """by: which job made it."""
    said = [f"{challenge.sentence[:1].upper()}{challenge.sentence[1:]}.", by]
    if challenge.core_edges:
        said.append(f"The surviving core has {challenge.core_edges:,} connected edges, stored as a circuit of its own.")
    if challenge.n_searches:
        said.append("Jaccard and the f beside it are of the circuit that the same search finds in that setting.")
    if challenge.not_varied:
        left_out = "; ".join(f"{one.factor} ({one.why})" for one in challenge.not_varied)
        said.append(f"Asked for and not varied: {left_out}.")
    tried = tuple(
        (t.kind, t.name, t.f, _yes(t.holds), t.kl_share, t.accuracy, t.n_examples, t.jaccard, t.found_f, _remark_on(t))
        for t in challenge.tried
    )
    columns = (
        *("kind", "setting", "#f", "holds", "#KL share", "#accuracy", "#prompts", "#Jaccard", "#f of that one"),
        "remark",
    )
    controls = tuple(
        (c.name, len(c.told), c.n_hold, _spread_of(c.f), in_words(sorted(set(c.edges))), c.jaccard, c.skipped)
        for c in challenge.controls
    )
    of_controls = ("control", "#circuits", "#hold", "f", "edges", "#Jaccard", "not told because")
    edges = tuple((one.edge, one.share) for one in challenge.edges[:MOST_SURVIVORS])
    draw = functools.partial(draw_challenge, challenge)
    sections = [Section("Challenge", tuple(line for line in said if line), Table(columns, tried), draw)]
    if controls:
        sections.append(Section("Challenge: controls", table=Table(of_controls, controls)))
    if edges:
        more = len(challenge.edges) - len(edges)
        told = f"Share of {challenge.n_searches} searches that found the edge again" + (
            f"; {more} more." if more else "."
        )
        sections.append(Section("Challenge: edges", (told,), Table(("edge", "#share"), edges)))
    return sections


def _remark_on(one: Tried) -> str:
    shared = f"same search as in: {one.shares_search_with}" if one.shares_search_with else ""
    return "; ".join(part for part in (one.skipped, shared) if part)


def _spread_of(values: Sequence[float | None]) -> str | None:
    mean, least, most = _range(values)
    if mean is None or len(values) == 1:
        return None if mean is None else in_words(mean)
    return f"{in_words(mean)} ({in_words(least)} to {in_words(most)})"


def judgement(report: Report) -> list[Section]:
    """Everything that the evaluation says, most important first."""
    sections = [_behaviour(report.behaviour)]
    if report.kept:
        sections.append(Section("The circuit itself", table=_points(report.kept)))
    if report.k_star is not None:
        sections.append(_k_star(report.k_star))
    if report.points:
        sections.append(Section("Faithfulness over size", picture=functools.partial(draw_curve, report)))
    bands = [*([report.kept_random] if report.kept_random else []), *report.bands]
    if bands:
        sections.append(_random(bands))
    sections += closer_look(report)
    sections.append(Section("Stability under resampling", (f"{report.stability.sentence}.",)))
    if report.areas:
        sections.append(_areas(report))
    return sections


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


def choices_sentence(provenance: Provenance, rule: str) -> str:
    """What the numbers hold for, in one line."""
    made = provenance.choices
    return (
        f"These numbers hold for: {made.granularity}; positions {made.positions}; {made.direction}; ablation "
        f"{made.ablation}; metric {made.metric}; found by {made.method} on {made.objective}; chosen by rule {rule}; "
        f"{provenance.task.n_search} prompts searched, {provenance.task.n_held_out} held out, corruption "
        f"{provenance.task.corruption}."
    )


def provenance_tables(provenance: Mapping[str, Any]) -> list[Section]:
    """Model, prompts, choices and run, field by field. provenance: `asdict` of one."""
    return [
        Section(title, table=Table(("what", "value"), tuple(_facts(provenance[part]))))
        for title, part in (("Choices", "choices"), ("Model", "model"), ("Prompts", "task"), ("Run", "run"))
    ]


def _facts(part: Mapping[str, Any]) -> Iterator[tuple[Cell, Cell]]:
    return ((name.replace("_", " "), in_words(value)) for name, value in part.items() if name != "spec")


def conditions_of(spec: Mapping[str, Any]) -> str:
    """What the numbers of a job hold for, from its spec as JSON."""
    task, ablation, positions = spec["task"], spec["ablation"], spec.get("positions", "all")
    over = f" per {ablation['mean_over']}" if ablation["kind"] == "mean" else ""
    return (
        f"ablation {ablation['kind']}{over}; metric {spec['metric']}; task {task['name']}, corruption "
        f"{task['corruption'] or 'its first'}, prompts of seed {task['seed']}; seed {spec['seed']}"
        f"{'' if positions == 'all' else f'; positions {in_words(positions)}'}"
    )


def in_words(value: Any) -> str:
    """A number to four digits, a collection as its items; nothing is a dash."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case int():
            return f"{value:,}"
        case Mapping():
            return ", ".join(f"{key} {in_words(item)}" for key, item in value.items()) or "none"
        case list() | tuple():
            return ", ".join(map(in_words, value)) or "none"
        case _:
            return str(value)


# -- the parts ---------------------------------------------------------------------------------------------------------


def _behaviour(b: Behaviour) -> Section:
    low, high = map(in_words, b.interval)
    return Section(
        "Behaviour",
        (
            f"The behaviour is {b.verdict}: metric {in_words(b.metric_clean)} on clean prompts, "
            f"{in_words(b.metric_corrupt)} on corrupt ones (interval of the difference {low} to {high}), accuracy "
            f"{in_words(b.accuracy_clean)} where chance is {in_words(b.chance)}, {b.n_examples} prompts.",
        ),
    )


_POINT = ("prompts", "rule", "#connected", "#f", "#KL share", "#metric", "#KL", "#accuracy", "#answer log-prob")


def _points(points: Iterable[Point]) -> Table:
    """With the spread over examples: 5, 50 and 95 % of the metric and of KL."""
    columns = (*_POINT, "metric at 5, 50, 95 %", "KL at 5, 50, 95 %")
    return Table(columns, tuple((*_point(p), _spread(p.quantiles), _spread(p.kl_quantiles)) for p in points))


def _point(p: Point) -> tuple[Cell, ...]:
    split = SPLITS.get(p.split, p.split)
    return split, p.rule, p.connected, p.f, p.kl_share, p.metric, p.kl, p.accuracy, p.answer_logprob


def _spread(quantiles: Sequence[float] | None) -> str | None:
    return None if quantiles is None else " ".join(in_words(quantiles[i]) for i in (0, 2, 4))


def _k_star(star: KStar) -> Section:
    wanted = "f in 0.8 to 1.2 and a KL share of at most 0.5"
    if star.met:
        title = "k*, the smallest circuit that meets both conditions"
        chosen = "and before on the searched ones" if star.chosen_on == "search" else "though not on the searched ones"
        said = f"Of the sizes tried, the smallest with {wanted} on held-out prompts, {chosen}."
        return Section(title, (said,), Table(_POINT, (_point(star.point),)))
    return Section(
        "No size met both conditions",
        (f"No size tried has {wanted} on held-out prompts; these came nearest.",),
        Table(_POINT, tuple(map(_point, star.nearest or (star.point,)))),
    )


def _random(bands: Sequence[Band]) -> Section:
    rows = tuple((b.rule, b.connected, b.n_circuits, *_range(b.f), *_range(b.kl_share)) for b in bands)
    columns = ("rule", "#edges", "#circuits", "#f mean", "#f least", "#f most", "#KL share mean", "#least", "#most")
    said = "Connected random circuits of the same size and layer profile, held out; the first row is the circuit's own."
    return Section("Random circuits", (said,), Table(columns, rows))


def _range(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    known = [value for value in values if value is not None]
    return (sum(known) / len(known), min(known), max(known)) if known else (None, None, None)


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
        "ablation",
        "#f",
        "#KL share",
        "#metric",
        "#of the model",
        "#of nothing",
        "#accuracy",
        "#answer log-prob",
    )
    said = "The same circuit, held out, where cut edges carry something else; each f is in its own ablation's scale."
    return Section("Under other ablations", (said,), Table(columns, tuple(rows)))


def _groups(groups: Sequence[GroupFigures]) -> Section:
    rows = tuple(
        (SPLITS.get(g.split, g.split), g.group, g.n_examples, g.f, g.kl_share, g.metric, g.metric_full, g.accuracy)
        for g in groups
    )
    columns = ("prompts", "group", "#prompts", "#f", "#KL share", "#metric", "#of the model", "#accuracy")
    held_out = [g.f for g in groups if g.split == "held_out" and g.f is not None]
    said = [f"f on the held-out groups, each in its own scale: {min(held_out):.2f} to {max(held_out):.2f}."]
    return Section("Groups of prompts", tuple(said if held_out else []), Table(columns, rows))


def _completeness(part: Completeness) -> Section:
    rest = part.complement
    said = [
        f"The model without the circuit, held out: {rest.figures}, accuracy {in_words(rest.accuracy)}. f is near 0 "
        "where nothing of the behaviour is left outside the circuit."
    ]
    widest = sorted(part.knock_outs, key=lambda one: -one.metric_gap)[:WIDEST]
    if not widest:
        return Section("Completeness", tuple(said))
    said.append(
        f"{len(part.knock_outs)} sets of the circuit's nodes were cut from it and from the model; the widest gaps:"
    )
    rows = tuple((one.how, _names(one.nodes), one.f_circuit, one.f_model, one.gap, one.metric_gap) for one in widest)
    columns = ("drawn", "nodes cut", "#f circuit", "#f model", "#gap", "#gap of the metric")
    return Section("Completeness", tuple(said), Table(columns, rows))


def _names(nodes: Sequence[str], most: int = 12) -> str:
    more = f" and {len(nodes) - most} more" if len(nodes) > most else ""
    return " ".join(nodes[:most]) + more


def _minimality(part: Minimality) -> Section:
    n = len(part.removals)
    of = f"all {n:,} edges" if n == part.n_edges else f"{n:,} edges drawn from its {part.n_edges:,}"
    idle = sum(one.cost <= 0 for one in part.removals)
    said = [
        f"Each of {of} was removed from the circuit alone, held out. {idle:,} of them cost the metric nothing or less. "
        "Edges that stand in for each other do not show this way."
    ]
    if part.n_superfluous is not None:
        said.append(
            f"{part.n_superfluous:,} are superfluous: their removal exceeds clearly fewer than nine in ten removals of "
            f"an edge from a path added at random ({part.n_random} paths, 5 % over all edges tested)."
        )
    rows = tuple(
        (one.edge, one.cost, one.cost_f, one.cost_kl, one.moved, one.exceeds, _yes(one.superfluous))
        for one in sorted(part.removals, key=lambda one: -abs(one.cost))[:COSTLIEST]
    )
    columns = ("edge", "#cost", "#in f", "#in KL", "#moved", "#random edges exceeded", "superfluous")
    return Section("Minimality", tuple(said), Table(columns, rows), functools.partial(draw_removals, part))


def _yes(value: bool | None) -> str | None:
    return None if value is None else in_words(value)


def _tests(tests: Sequence[HypothesisTest]) -> Section:
    rows = tuple((t.name, t.says, t.statistic, t.n, t.p, _yes(t.rejected)) for t in tests)
    said = (
        "Shi et al. (2024), at 5 %. Prompts of one template are alike, so p-values are too small by what that matters."
    )
    if not any(t.name == "sufficiency" for t in tests):
        said += " Sufficiency and partial necessity need more random circuits: ask with evaluation.tests of 100."
    columns = ("test", "what it says", "#statistic", "#n", "#p", "null rejected")
    return Section("Hypothesis tests", (said,), Table(columns, rows))


def _areas(report: Report) -> Section:
    names = [field.name for field in fields(report.areas[0]) if field.name not in ("split", "rule")]
    rows = tuple((SPLITS.get(a.split, a.split), a.rule, *(getattr(a, name) for name in names)) for a in report.areas)
    titles = {"cpr": "CPR", "cmd": "CMD", "cpr_log": "CPR log", "cmd_log": "CMD log", "cmd_guarded": "CMD guarded"}
    columns = (
        "prompts",
        "rule",
        *(f"#{titles.get(name, name.replace('_', ' ').replace('kl', 'KL'))}" for name in names),
    )
    return Section("Areas over all sizes", table=Table(columns, rows))
