"""The application: routes, door and error shape put together."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from acdc.api import catalogue, circuits, events, explorer, health, jobs, maps, problems
from acdc.api.guard import Guard, check_binding
from acdc.api.schema import finish_schema
from acdc.api.services import Services
from acdc.settings import Settings
from acdc.store import Artefacts, Store
from acdc.version import __version__


def create_app(settings: Settings, store: Store, artefacts: Artefacts) -> FastAPI:
    """An ASGI app over an open store. `app.state.services.closing` ends its event streams when set.

    Raises SpecError for a server that others can reach and that has no key.
    """
    check_binding(settings)
    app = build_routes()
    app.state.services = Services(settings, store, artefacts)
    app.add_middleware(Guard, settings=settings)
    return app


def build_routes() -> FastAPI:
    """The routes without anything behind them: enough for the OpenAPI file."""
    app = FastAPI(
        title="acdc",
        version=__version__,
        summary="Automated circuit discovery for transformer language models",
        docs_url=None,  # the built-in pages load scripts from other hosts
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    for room in (jobs, events, circuits, maps, catalogue, health, explorer):
        app.include_router(room.router)
    problems.install(app)
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = finish_schema(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
