"""Is it alive, is it ready, how much is there to do."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio
from fastapi import APIRouter
from starlette.responses import JSONResponse, PlainTextResponse, Response

from acdc.api.services import Deps, Services
from acdc.api.views import Health
from acdc.errors import AcdcError
from acdc.version import __version__

router = APIRouter(tags=["health"])
_LOG = logging.getLogger(__name__)
READY_WITHIN_S = 3.0


@router.get("/healthz", summary="Is the process alive?")
async def get_health() -> Health:
    return Health(status="ok", version=__version__)


@router.get(
    "/readyz", summary="Can it serve?", responses={503: {"model": Health, "description": "names the part that is down"}}
)
async def get_readiness(services: Deps) -> Response:
    """Answers within seconds, also when a part does not answer at all."""
    checks: dict[str, Callable[[], object]] = {
        "database": services.store.ping,
        "artefacts": lambda: services.artefacts.exists("0" * 64),
    }
    parts = dict.fromkeys(checks, f"no answer within {READY_WITHIN_S:g} s")
    with anyio.move_on_after(READY_WITHIN_S):
        async with anyio.create_task_group() as group:
            for name, check in checks.items():
                group.start_soon(_ask, parts, name, check)
    is_ready = all(said == "ok" for said in parts.values())
    health = Health(status="ok" if is_ready else "down", version=__version__, parts=parts)
    return JSONResponse(health.model_dump(), 200 if is_ready else 503)


async def _ask(parts: dict[str, str], name: str, check: Callable[[], object]) -> None:
    try:
        await anyio.to_thread.run_sync(check, abandon_on_cancel=True)
    except (AcdcError, OSError) as error:
        _LOG.warning("%s is down: %s", name, error)  # the log may name hosts and paths; the answer does not
        parts[name] = f"down ({error.code})" if isinstance(error, AcdcError) else "down"
    else:
        parts[name] = "ok"


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
def get_metrics(services: Deps) -> PlainTextResponse:
    """Counts come from the database, so every API process answers the same."""
    return PlainTextResponse(_metrics(services), media_type="text/plain; version=0.0.4; charset=utf-8")


def _metrics(services: Services) -> str:
    lines = [
        "# HELP acdc_info The version that is running.",
        "# TYPE acdc_info gauge",
        f'acdc_info{{version="{__version__}"}} 1',
        "# HELP acdc_jobs Jobs in each state.",
        "# TYPE acdc_jobs gauge",
        *(f'acdc_jobs{{state="{state}"}} {count}' for state, count in services.store.jobs.counts().items()),
    ]
    return "\n".join(lines) + "\n"
