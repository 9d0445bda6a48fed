"""`acdc models`, `acdc tasks`, `acdc methods`: what this version knows, without a service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from acdc.cli.console import Json, answer, moment, table


def models(as_json: Json = False) -> None:
    """Short names for models, and what this machine's cache holds; any hub:, path:, gguf: or pypi: reference works."""
    from dataclasses import asdict

    from acdc.models.catalogue import CATALOGUE
    from acdc.models.inventory import list_local
    from acdc.settings import load_settings

    data: dict[str, dict[str, Any]] = {
        name: {"name": name, **asdict(entry), "cached": None} for name, entry in CATALOGUE.items()
    }
    for held in list_local(load_settings().cache_dir):  # the one used last first
        model = held.model
        about = {key: getattr(model, key) for key in ("title", "quantisation", "tuning")}
        known = data.setdefault(model.reference, {"name": model.reference, **about, "cached": None})
        last_use = datetime.fromtimestamp(held.last_use, UTC).isoformat(timespec="seconds")
        cached = {
            "size_bytes": model.size_bytes,
            "last_use": last_use,
            "in_use": held.is_in_use,
            "pinned": model.pinned,
        }
        known["cached"] = known["cached"] or cached
    columns = ("name", "title", "weights", "tuning", "#MB to fetch", "licence", "#MB cached", "last use (UTC)")
    answer(list(data.values()), lambda: table(columns, [_model_row(model) for model in data.values()]))


def _model_row(model: dict[str, Any]) -> list[Any]:
    cached = model["cached"]
    here = [None, None] if cached is None else [round(cached["size_bytes"] / 1e6), moment(cached["last_use"])]
    about = [model["name"], model["title"], model["quantisation"], model["tuning"]]
    return [*about, model.get("download_mb"), model.get("licence"), *here]


def tasks(as_json: Json = False) -> None:
    """The built-in tasks, with their corruptions, the default first, and the roles that positions have in them."""
    from acdc.tasks import TASKS

    rows = [[t.name, t.summary, ", ".join(t.corruptions), ", ".join(t.roles), t.example] for t in TASKS.values()]
    data = [
        {"name": t.name, "summary": t.summary, "example": t.example, "corruptions": t.corruptions, "roles": t.roles}
        for t in TASKS.values()
    ]
    answer(data, lambda: table(("task", "what", "corruptions", "roles", "example"), rows))


def methods(as_json: Json = False) -> None:
    """The search methods and the patching maps, with their parameters as `--set method.NAME=VALUE` or `--set
    map.NAME=VALUE` takes them."""
    from acdc.spec import MAP_SPECS, METHOD_SPECS

    data = [
        {"name": name, "of": of, "summary": _one_line(kind.__doc__), "parameters": kind.model_json_schema()}
        for of, kinds in (("method", METHOD_SPECS), ("map", MAP_SPECS))
        for name, kind in kinds.items()
    ]

    def shown(of: str) -> Table:
        rows = [[item["name"], item["summary"], _parameters(item["parameters"])] for item in data if item["of"] == of]
        return table((of, "what", "parameters"), rows)

    answer(data, lambda: [shown("method"), shown("map")])


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _parameters(schema: Any) -> str:
    own = {key: value for key, value in schema["properties"].items() if key != "name"}
    return ", ".join(f"{key}={_default(value.get('default'))}" for key, value in own.items())


def _default(value: Any) -> Any:
    """Of several methods, only their names."""
    if isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value):
        return [one["name"] for one in value]
    return value
