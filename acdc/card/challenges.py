"""A challenge on the card of the circuit that was challenged."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from acdc import numerals
from acdc.card.parts import Cell, Section, Table, yes
from acdc.challenge import Challenge, Control, Tried
from acdc.drawing import draw_challenge

MOST_SURVIVORS = 50
KINDS = {"own": "its own", "one": "one change", "group": "one group", "factorial": "several changes"}


def challenge_sections(challenge: Challenge, by: str = "") -> list[Section]:
    """by: which job made it."""
    draw = functools.partial(draw_challenge, challenge)
    sections = [Section("Challenge", tuple(_said(challenge, by)), _tried(challenge.tried), draw)]
    if challenge.controls:
        sections.append(Section("Controls", table=_controls(challenge.controls), is_part=True))
    if challenge.edges:
        sections.append(_survivors(challenge))
    return sections


def _said(challenge: Challenge, by: str) -> list[str]:
    said = [f"The circuit has {challenge.sentence}."]
    said += [by] if by else []
    if challenge.core_edges:
        edges = numerals.count(challenge.core_edges, "connected edge")
        said.append(f"The surviving core has {edges}, stored as a circuit of its own.")
    if challenge.n_searches:
        said.append("Jaccard and the f beside it are of the circuit that the same search finds in that setting.")
    if challenge.not_varied:
        left_out = "; ".join(f"{one.factor} ({one.why})" for one in challenge.not_varied)
        said.append(f"Asked for and not varied: {left_out}.")
    return said


def _tried(tried: Sequence[Tried]) -> Table:
    rows = (
        (
            KINDS[t.kind],
            t.name,
            t.f,
            yes(t.holds),
            t.kl_share,
            t.accuracy,
            t.n_examples,
            t.jaccard,
            t.found_f,
            _remark_on(t),
        )
        for t in tried
    )
    columns = (
        *(
            "what differs",
            "setting",
            "#f",
            "holds",
            "#KL share",
            "#accuracy",
            "#prompts",
            "#Jaccard",
            "#f of the one found",
        ),
        "remark",
    )
    return Table.of(columns, rows)


def _remark_on(one: Tried) -> str:
    shared = f"same search as in: {one.shares_search_with}" if one.shares_search_with else ""
    return "; ".join(part for part in (one.skipped, shared) if part)


def _controls(controls: Sequence[Control]) -> Table:
    columns = (
        "control",
        "#circuits",
        "#hold",
        "#f mean",
        "#f least",
        "#f most",
        "edges",
        "#Jaccard",
        "not told because",
    )
    return Table.of(columns, map(_control, controls))


def _control(one: Control) -> tuple[Cell, ...]:
    edges = ", ".join(f"{n:,}" for n in sorted(set(one.edges)))
    return one.name, len(one.told), one.n_hold, *mean_and_range(one.f), edges, one.jaccard, one.skipped


def _survivors(challenge: Challenge) -> Section:
    listed = challenge.edges[:MOST_SURVIVORS]
    more = len(challenge.edges) - len(listed)
    searches = numerals.count(challenge.n_searches, "search", "searches")
    told = f"Share of {searches} that found the edge again" + (f"; {more:,} more edges." if more else ".")
    rows = tuple((one.edge, one.share) for one in listed)
    return Section("Edges found again", (told,), Table(("edge", "#share"), rows), is_part=True)


def mean_and_range(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Mean, least and most of those that are known."""
    known = [value for value in values if value is not None]
    return (sum(known) / len(known), min(known), max(known)) if known else (None, None, None)
