"""What can be asked for: models, tasks, methods; and what it would cost."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from acdc.api.admission import admitted
from acdc.api.bodies import RequestBody
from acdc.api.services import Deps
from acdc.api.views import MethodsView, MethodView, ModelsView, ModelView, TasksView, TaskView
from acdc.models.catalogue import CATALOGUE
from acdc.plan import Speed, cached_directory, doubts_now, estimate, facts_of, measure_speed
from acdc.spec import MAP_SPECS, METHOD_SPECS
from acdc.tasks import TASKS

router = APIRouter(prefix="/v1", tags=["what can be asked for"])


@router.get("/models", summary="List models")
def list_models(services: Deps) -> ModelsView:
    """The catalogue's short names, then whatever else this service has met. Others can be asked for by reference: hub:,
    path:, gguf: and pypi:."""
    seen = {row.reference: row for row in services.store.models.list()}
    views = []
    for name, entry in CATALOGUE.items():
        row = seen.pop(name, None)
        facts = {key: value for key, value in asdict(entry).items() if key != "reference"}
        views.append(ModelView(reference=name, in_catalogue=True, **facts, **_met(row)))
    for row in seen.values():
        card = row.card
        about = {key: card.get(key) for key in ("quantisation", "tuning")}
        title = str(card.get("title", row.reference))
        views.append(ModelView(reference=row.reference, title=title, in_catalogue=False, **about, **_met(row)))
    return ModelsView(items=views)


def _met(row: Any) -> dict[str, Any]:
    return {"fingerprint": row.fingerprint, "card": dict(row.card), "last_used": row.last_used} if row else {}


@router.get("/tasks", summary="List tasks")
def list_tasks() -> TasksView:
    """Built-in tasks; your own prompts are `{"name": "custom", "pairs": […]}`."""
    return TasksView(items=[TaskView.model_validate(task) for task in TASKS.values()])


@router.get("/methods", summary="List search methods and patching maps")
def list_methods() -> MethodsView:
    """With the JSON schema of each one's parameters."""
    return MethodsView(items=_described(METHOD_SPECS), maps=_described(MAP_SPECS))


def _described(specs: Mapping[str, type[BaseModel]]) -> list[MethodView]:
    return [
        MethodView(name=name, summary=" ".join((spec.__doc__ or "").split()), parameters=spec.model_json_schema())
        for name, spec in specs.items()
    ]


@router.post("/plan", summary="Seconds, memory and disk of a job, before it is submitted")
def post_plan(services: Deps, body: RequestBody) -> dict[str, Any]:
    """The body is a job spec, as for `POST /v1/jobs`."""
    spec, measured = admitted(services, body.json())
    cached = cached_directory(services.settings.cache_dir, measured.model)
    return estimate(spec, facts_of(measured.model, cached), _speed(), measured, doubts_now()).to_dict()


@functools.cache
def _speed() -> Speed:
    """Of this machine, measured when somebody first asks: plans must not take the workers' time."""
    return measure_speed()
