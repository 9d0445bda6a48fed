"""`acdc task check`: what a model makes of custom pairs. It needs that model, hence a child process:
`python -m workers.check PAIRS --model M`, which answers with one JSON object."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from acdc.cli.console import Json, answer
from acdc.cli.failures import WRONG
from acdc.cli.processes import sigterm_as_interrupt, spawn, stop
from acdc.errors import AcdcError

_GRACE_S = 5.0


def check(
    pairs: Annotated[
        Path, typer.Argument(metavar="PAIRS", help="JSON list or JSONL of clean, corrupt, answers, wrong")
    ],
    model: Annotated[str, typer.Option("--model", help="short name, or hub:… path:… gguf:… pypi:…")],
    corruption: Annotated[str, typer.Option("--corruption", help="given or swap_within_group")] = "given",
    metric: Annotated[str, typer.Option("--metric", help="the one that the job will have")] = "logit_diff",
    as_json: Json = False,
) -> None:
    """Show tokens, answers, alignment and metric of every row as the model sees them, with suggested repairs.

    Refuses what a job with these pairs would be refused for. Ends with status 2 where too few rows can be used.
    """
    from acdc.cli.spec_source import pairs_in
    from acdc.spec import parse_job

    task = {"name": "custom", "pairs": pairs_in(pairs), "corruption": corruption}
    parse_job({"model": model, "metric": metric, "task": task}, is_request=True)  # before anything is fetched
    data = _ask(["workers.check", str(pairs), "--model", model, "--corruption", corruption, "--metric", metric])
    answer(data, lambda: _rows(data))
    if not data["is_enough"]:
        raise typer.Exit(WRONG)


def _ask(command: list[str]) -> dict[str, Any]:
    """Raises the child's error as ours."""
    from acdc.client import error_with_code, faults_of

    with tempfile.TemporaryFile() as log, sigterm_as_interrupt():
        child = spawn(command, stdout=subprocess.PIPE, stderr=log)
        try:
            text, _ = child.communicate()
        finally:
            stop([child], _GRACE_S)
        try:
            data: dict[str, Any] = json.loads(text)
        except ValueError:
            log.seek(0)
            raise AcdcError(
                f"the check ended without an answer:\n{log.read().decode(errors='replace')[-2000:]}"
            ) from None
    if (error := data.get("error")) is not None:
        raise error_with_code(error["code"], error["message"], faults_of(error["faults"]), AcdcError)
    return data


def _rows(data: Mapping[str, Any]) -> Iterator[Any]:
    yield "the model's tokenizer " + ("puts BOS first" if data["tokenizer_adds_bos"] else "adds no BOS")
    for row in data["rows"]:
        yield from _row(row, data["metric"])
    groups = {row["group"] for row in data["rows"] if row["is_usable"]}
    yield f"{data['n_usable']} of {len(data['rows'])} rows can be used, of {_count(len(groups), 'group')}"
    if not data["is_enough"]:
        yield "too few: a search needs two groups, one of them to be held out; `group` of a row says which it is of"


def _row(row: Mapping[str, Any], metric: str) -> Iterator[str]:
    state = f"usable, {row['half'] or 'not needed'}" if row["is_usable"] else "not usable"
    yield f"row {row['row']} ({row['group']}): {state}"
    differs = set(row["differs"])
    for name in ("clean", "corrupt"):
        yield f"  {name:8} {_tokens(row[name], differs)}"
    for form in row["answers"]:
        kind, n = "answer" if form["is_right"] else "wrong", len(form["tokens"])
        pieces = f": {_tokens(form['tokens'], set())}" if n > 1 else ""
        yield f"  {kind:8} {form['text']!r}, {_count(n, 'token') if n else 'no token of its own'}{pieces}"
    for key in ("reasons", "suggestions"):
        for text in row[key]:
            yield f"  {key.removesuffix('s'):8} {text}"
    if row["metric"] is not None:
        yield f"  metric   {metric} {row['metric']:.3f}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _tokens(tokens: list[Mapping[str, Any]], differs: set[int]) -> str:
    """Token by token; those that differ between clean and corrupt stand in brackets."""
    shown = (f"[{token['text']}]" if place in differs else token["text"] for place, token in enumerate(tokens))
    return "|".join(shown).replace("\n", "\\n")
