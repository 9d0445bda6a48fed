"""A circuit's card: what is known of it and what the numbers depend on, as Markdown for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from acdc.report import Report
from acdc.store import CircuitDetail


def card_markdown(detail: CircuitDetail) -> str:
    row = detail.row
    sections = [
        f"# {_plain(row.name or row.id)}",
        f"{row.n_edges} of {row.n_edges_total} edges ({row.fraction:.2%}), chosen by rule `{row.rule}`. "
        f"Id `{row.id}`, stored {row.created_at:%Y-%m-%d %H:%M} UTC.",
        _plain(row.notes) if row.notes else "",
        _judgement(detail.report),
        *(_table(part.capitalize(), detail.provenance[part]) for part in ("model", "task", "choices", "run")),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _judgement(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "## Judgement\n\nNot evaluated yet."
    behaviour = report["behaviour"]
    low, high = behaviour["interval"]
    lines = [
        "## Judgement",
        f"The behaviour is **{behaviour['verdict']}**: metric {_number(behaviour['metric_clean'])} on clean prompts, "
        f"{_number(behaviour['metric_corrupt'])} on corrupt ones (interval of the difference {_number(low)} to "
        f"{_number(high)}), accuracy {_number(behaviour['accuracy_clean'])} where chance is "
        f"{_number(behaviour['chance'])}, {behaviour['n_examples']} examples.",
        _points("The circuit itself", report["kept"]),
    ]
    if star := report["k_star"]:
        title = (
            "k*, the smallest circuit that meets both conditions" if star["met"] else "No size met both; the nearest"
        )
        lines.append(_points(title, [star["point"]] if star["met"] else star["nearest"]))
    lines.append(f"### Stability under resampling\n\n{_plain(Report.from_dict(report).stability.sentence)}.")
    return "\n\n".join(lines)


def _points(title: str, points: Iterable[Mapping[str, Any]]) -> str:
    head = ("split", "rule", "connected", "f", "kl", "kl_share", "accuracy")
    rows = [f"| {' | '.join(_number(point[key]) for key in head)} |" for point in points]
    if not rows:
        return ""
    return "\n".join([f"### {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])


def _table(title: str, facts: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {_plain(_number(value))} |" for key, value in facts.items() if key != "spec"]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *rows])


def _number(value: Any) -> str:
    if value is None:
        return "not defined"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_number(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_number, value)) or "none"
    return str(value)


def _plain(text: str) -> str:
    """Text from people and files, so that no viewer reads it as HTML, a link or the end of a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", " ".join(text.split()))
