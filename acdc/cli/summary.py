"""What people read about a circuit: verdict, k* and its heads, the curve, its areas, the random baseline, the choices.

One renderer for `run`, `submit --wait`, `circuits show` and `demo`, from a Circuit alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from acdc.card import closer_look, conditions_of, heads_of, nodes_in_words, origin_of
from acdc.circuit import Circuit
from acdc.cli.console import number, table
from acdc.cli.tables import as_text
from acdc.numerals import count, figure, percent, significant
from acdc.report import Band, KStar, Point, Report
from acdc.swept import LINEAR, LOG, Swept

BAR = 24  # characters that f = 1 takes in the text curve
_SPLIT = {"search": "search", "held_out": "held out"}


def summarise(circuit: Circuit, pictures: Sequence[str] = (), title: str = "circuit") -> Iterator[RenderableType]:
    """Everything, from top to bottom. pictures: where they are, as files or URLs."""
    yield _headline(circuit, title)
    yield from _warnings(circuit)
    if circuit.report is None:
        yield "not evaluated yet: `acdc circuits evaluate ID` does that"
    else:
        yield from _judgement(circuit, circuit.report)
    yield from _choices(circuit)
    for picture in pictures:
        yield f"picture    {picture}"


def summarise_evaluation(
    circuit: Circuit, report: Report, spec: Mapping[str, Any], title: str
) -> Iterator[RenderableType]:
    """A stored circuit judged again with other choices: the report, and the choices of the job that made it."""
    own = circuit.provenance.choices
    judged = replace(circuit, provenance=replace(circuit.provenance, choices=replace(own, metric=spec["metric"])))
    yield f"{title} was evaluated again; what it was found with has not changed"
    yield _headline(circuit, title)
    yield from _judgement(judged, report)
    yield f"choices    these numbers hold for:\n           {conditions_of(spec)}"


def k_star_data(circuit: Circuit) -> dict[str, Any] | None:
    """k* for programs: None where the circuit was not evaluated, or had nothing to choose from."""
    star = circuit.report and circuit.report.k_star
    if not star:
        return None
    point = star.point
    return {
        "met": star.met,
        "rule": point.rule,
        "edges_connected": point.connected,
        "faithfulness": point.f,
        "kl_share": point.kl_share,
        "nearest": [
            {"edges_connected": p.connected, "faithfulness": p.f, "kl_share": p.kl_share} for p in star.nearest
        ],
    }


def summary_data(circuit: Circuit) -> dict[str, Any]:
    """The summary for programs."""
    return {
        "model": circuit.provenance.model.reference,
        "task": circuit.provenance.task.name,
        "method": circuit.provenance.choices.method,
        "positions": circuit.provenance.choices.positions,
        "edges_total": circuit.graph.n_edges,
        "edges_kept": circuit.n_edges,
        "heads": heads_of(circuit),
        "k_star": k_star_data(circuit),
        "report": circuit.report and circuit.report.to_dict(),
    }


# -- parts -------------------------------------------------------------------------------------------------------------


def _headline(circuit: Circuit, title: str) -> str:
    made = circuit.provenance
    kept = circuit.selected
    return (
        f"{title}: {made.task.name} on {made.model.title}, found with {made.choices.method}\n"
        f"kept       {circuit.n_edges:,} of {circuit.graph.n_edges:,} {circuit.edges_in_words} "
        f"({share(circuit.n_edges, circuit)}), rule {kept.rule}: {kept.asked_for:,} asked for, "
        f"{kept.connected:,} of them on a path to the logits"
    )


def _warnings(circuit: Circuit) -> Iterator[str]:
    """What it was made of, and that it is empty."""
    if (origin := origin_of(circuit)) is not None:
        yield f"origin     {origin}"
    if circuit.selected.emptiness is not None:
        yield f"EMPTY      {circuit.selected.emptiness}"


def share(n_edges: int, circuit: Circuit) -> str:
    return f"{100 * n_edges / circuit.graph.n_edges:.2f} %"


def _judgement(circuit: Circuit, report: Report) -> Iterator[RenderableType]:
    yield _behaviour(circuit, report)
    if report.k_star is not None:
        yield from _k_star(circuit, report.k_star)
    if circuit.n_edges:
        yield _heads(circuit)
    yield f"stability  {report.stability.sentence}"
    if report.stability.drawn_over is not None:
        yield f"           drawn {report.stability.drawn_over}"
    if report.points:
        yield curve(report.points)
    if len({point.fraction for point in report.points}) > 1:
        yield from _areas(report)
    yield from _random(report)
    if report.kept:
        yield _kept(report.kept)
    for section in closer_look(report):
        yield from as_text(section)


def _behaviour(circuit: Circuit, report: Report) -> str:
    b = report.behaviour
    return (
        f"behaviour  {b.verdict}: {circuit.provenance.choices.metric} {figure(b.metric_clean)} clean, "
        f"{figure(b.metric_corrupt)} corrupt (difference {figure(b.interval[0])} to {figure(b.interval[1])}); "
        f"accuracy {figure(b.accuracy_clean)}, chance {figure(b.chance)}, {count(b.n_examples, 'prompt')}\n"
        f"           the interval is drawn {b.drawn_over}"
    )


def _k_star(circuit: Circuit, star: KStar) -> Iterator[str]:
    wanted = "f in [0.8, 1.2] and KL(circuit) at most half of KL(empty), on held-out prompts"
    if star.met:
        point = star.point
        chosen = (
            "met on the searched prompts too" if star.chosen_on == "search" else "met on the held-out prompts alone"
        )
        yield f"k*         {_point(point, circuit)}\n           the smallest size tried with {wanted}; {chosen}"
        return
    yield f"k*         missed: no size tried has {wanted}; the nearest:"
    for point in star.nearest or (star.point,):
        yield f"           {_point(point, circuit)}"


def _point(point: Point, circuit: Circuit) -> str:
    return (
        f"{point.connected:,} connected edges ({share(point.connected, circuit)}, {point.rule}): "
        f"f {number(point.f)}, KL share {number(point.kl_share)}, accuracy {figure(point.accuracy)}"
    )


def _heads(circuit: Circuit) -> str:
    return f"heads      {nodes_in_words(circuit)}: {' '.join(heads_of(circuit)) or 'no heads'}"


def curve(points: Sequence[Point]) -> Table:
    """The faithfulness curve: signed and absolute, searched and held out, with a bar for the held-out f."""
    rows = []
    rules = list(dict.fromkeys(point.rule for point in points))
    by_place = {(p.rule, p.fraction, p.split): p for p in points}
    for rule in rules:
        for fraction in sorted({p.fraction for p in points if p.rule == rule}):
            inside, outside = (by_place.get((rule, fraction, split)) for split in _SPLIT)
            shown = outside or inside
            assert shown is not None  # the fraction came from a point
            rows.append(
                [
                    rule,
                    f"{100 * fraction:g} %",
                    f"{shown.connected:,}",
                    *_cells(inside),
                    *_cells(outside),
                    _bar(outside),
                ]
            )
    columns = (
        "rule",
        "#edges",
        "#connected",
        "#f search",
        "#KL share",
        "#f held out",
        "#KL share",
        "f held out, | is 1",
    )
    return table(columns, rows, title="faithfulness curve")


def _cells(point: Point | None) -> tuple[float | None, float | None]:
    return (None, None) if point is None else (point.f, point.kl_share)


def _bar(point: Point | None) -> str:
    """f from 0 to 1.5 as a bar; what lies outside ends in an arrow."""
    if point is None or point.f is None:
        return ""
    full = round(point.f * BAR)
    longest = BAR * 3 // 2
    cells = "#" * min(max(full, 0), longest)
    arrow = "<" if full < 0 else ">" if full > longest else ""
    return f"{cells:{BAR}}"[:BAR] + "|" + cells[BAR:] + arrow


def _areas(report: Report) -> Iterator[RenderableType]:
    """Area under f (CPR), under |1 - f| (CMD, 0 is best; guarded: at least 1 where KL is no less than the empty
    circuit's) and under the KL share, with the sizes that they are over."""
    rows = [
        [_SPLIT.get(a.split, a.split), a.rule, a.cpr, a.cmd, a.cmd_guarded, a.kl_area, a.cpr_log, a.cmd_log]
        for a in report.areas
    ]
    swept, columns = Swept.of(report), ("prompts", "rule", *(f"#{title}" for title in (*LINEAR, *LOG)))
    yield table(columns, rows, title=f"areas over {swept.span}")
    yield "\n".join(f"           {line}" for line in swept.sentences)


def _random(report: Report) -> Iterator[RenderableType]:
    own = [("the circuit", report.kept_random)] if report.kept_random else []
    bands = [*own, *((f"the curve at {percent(band.fraction)}", band) for band in report.bands)]
    if not bands:
        return
    rows = [[beside, b.rule, f"{b.connected:,}", b.n_circuits, *map(span, (b.f, b.kl_share))] for beside, b in bands]
    columns = ("beside", "rule", "#connected", "#circuits", "f, mean (range)", "KL share, mean (range)")
    yield table(columns, rows, title="random circuits, matched in connected edges and layer profile, held out")


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def span(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{figure(sum(known) / len(known))} ({figure(min(known))} to {figure(max(known))})" if known else "-"


def random_at_k_star(report: Report) -> Band | None:
    """The random circuits as large as k*: the stored selection's own, else the band nearest in size."""
    if report.kept_random is not None or report.k_star is None:
        return report.kept_random
    wanted = report.k_star.point.connected
    return min(report.bands, key=lambda band: abs(band.connected - wanted), default=None)


def _kept(points: Sequence[Point]) -> Table:
    rows = [
        [_SPLIT.get(p.split, p.split), f"{p.connected:,}", p.metric, p.f, p.kl, p.kl_share, p.accuracy] for p in points
    ]
    columns = ("prompts", "#connected", "#metric", "#f", "#KL", "#KL share", "#accuracy")
    return table(columns, rows, title="the stored circuit itself")


def _choices(circuit: Circuit) -> Iterator[RenderableType]:
    made, chosen = circuit.provenance, circuit.provenance.choices
    parameters = ", ".join(f"{name}={value}" for name, value in chosen.said.items())
    yield (
        "choices    these numbers hold for:\n"
        f"           granularity {chosen.granularity}; positions {chosen.positions}; direction: {chosen.direction}\n"
        f"           ablation {chosen.ablation}; metric {chosen.metric}; searched on {chosen.objective}"
        + (f"; {parameters}\n" if parameters else "\n")
        + f"           model {made.model.reference}, weights {made.model.quantisation or 'not quantised'}, "
        f"{made.model.tuning or 'not tuned'}, parity {_parity(made.model.parity)}\n"
        f"           task {made.task.name}; prompts {made.task.n_search} searched, {made.task.n_held_out} held out, "
        f"{made.task.n_dropped} dropped; corruption {made.task.corruption}; seed {made.run.seed}; "
        f"{made.run.wall_time_s:.0f} s"
    )
    if made.run.facts:
        told = (f"{name.replace('_', ' ')} {_fact(value)}" for name, value in made.run.facts.items())
        yield f"the search {'; '.join(told)}"
    for note in made.run.notes:
        yield f"note       {note}"


def _fact(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else significant(value)


def _parity(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1e} of the logits' range"
