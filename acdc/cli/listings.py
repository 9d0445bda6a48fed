"""`acdc models`, `acdc tasks`, `acdc methods`: what this version knows, without a service."""

from __future__ import annotations

from typing import Any

from acdc.cli.console import Json, answer, table


def models(as_json: Json = False) -> None:
    """Short names for models; any hub:, path:, gguf: or pypi: reference works too."""
    from dataclasses import asdict

    from acdc.models.catalogue import CATALOGUE

    rows = [[name, e.title, e.quantisation, e.tuning, e.download_mb, e.licence] for name, e in CATALOGUE.items()]
    columns = ("name", "title", "weights", "tuning", "#MB", "licence")
    answer([{"name": name, **asdict(e)} for name, e in CATALOGUE.items()], lambda: table(columns, rows))


def tasks(as_json: Json = False) -> None:
    """The built-in tasks, with their corruptions; the first of these is the default."""
    from acdc.tasks import TASKS

    rows = [[t.name, t.summary, ", ".join(t.corruptions), t.example] for t in TASKS.values()]
    data = [
        {"name": t.name, "summary": t.summary, "example": t.example, "corruptions": t.corruptions, "roles": t.roles}
        for t in TASKS.values()
    ]
    answer(data, lambda: table(("task", "what", "corruptions", "example"), rows))


def methods(as_json: Json = False) -> None:
    """The search methods, with their parameters as `--set method.NAME=VALUE` takes them."""
    from acdc.spec import METHOD_SPECS

    data = [
        {"name": name, "summary": _one_line(kind.__doc__), "parameters": kind.model_json_schema()}
        for name, kind in METHOD_SPECS.items()
    ]
    rows = [[item["name"], item["summary"], _parameters(item["parameters"])] for item in data]
    answer(data, lambda: table(("method", "what", "parameters"), rows))


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _parameters(schema: Any) -> str:
    own = {key: value for key, value in schema["properties"].items() if key != "name"}
    return ", ".join(f"{key}={value.get('default')}" for key, value in own.items())
