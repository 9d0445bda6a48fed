"""Patching maps over HTTP: list, and read as facts, numbers, picture or file. `POST /v1/jobs` makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from acdc.api import map_values
from acdc.api.bodies import CIRCUIT_FILE, JSON
from acdc.api.files import download, svg
from acdc.api.services import Cursor, Deps, MapId
from acdc.api.views import MapSummary, MapValuesView, MapView, PageView, map_summary, map_view
from acdc.drawing import draw_map
from acdc.patch_map import MapKind, PatchMap
from acdc.store import MapFilter

router = APIRouter(prefix="/v1/maps", tags=["maps"])


class MapQuery(BaseModel):
    """Filters of a list of maps; what is left out does not restrict. model: a reference or a fingerprint. tag may be
    repeated: all of them must be there."""

    model_config = ConfigDict(extra="forbid")

    job: str | None = None
    kind: MapKind | None = None
    model: str | None = None
    task: str | None = None
    metric: str | None = None
    tag: list[str] = []
    cursor: Cursor = None
    limit: int = Field(default=50, ge=1, le=200)


class Slices(BaseModel):
    """Which part of a map: labels of an axis, in the order wanted; an axis that is left out is there as a whole.
    per_example: the metric of every prompt too."""

    model_config = ConfigDict(extra="forbid")

    metric: list[str] = []
    layer: list[str] = []
    head: list[str] = []
    place: list[str] = []
    restored: list[str] = []
    sender: list[str] = []
    receiver: list[str] = []
    blocked: list[str] = []
    per_example: bool = False


@router.get("", summary="List patching maps")
def list_maps(services: Deps, query: Annotated[MapQuery, Query()]) -> PageView[MapSummary]:
    """Newest first. A map that was there before page one appears exactly once."""
    wanted = MapFilter(
        job_id=query.job,
        kind=query.kind,
        model=query.model,
        task=query.task,
        metric=query.metric,
        tags=tuple(query.tag),
    )
    page = services.store.maps.list(wanted, cursor=query.cursor, limit=query.limit)
    return PageView(items=[map_summary(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/{map_id}", summary="Read a map")
def get_map(services: Deps, map_id: MapId) -> MapView:
    """Its axes, its strongest cells, and every choice that its numbers depend on."""
    return map_view(services.store.maps.get(map_id))


@router.get("/{map_id}/values", summary="Its numbers, all or a slice", response_model=MapValuesView)
def get_map_values(services: Deps, map_id: MapId, query: Annotated[Slices, Query()]) -> Response:
    """Nested lists in the order of the axes. `?layer=3&layer=4&place=S2` gives these places of these axes alone;
    `per_example=true` the metric of every prompt as well, for as many cells as go into one answer."""
    slices = query.model_dump(exclude_defaults=True, exclude={"per_example"})
    return JSONResponse(map_values.values(services.patch_map(map_id), slices, per_example=query.per_example))


@router.get("/{map_id}/heatmap.svg", summary="Its picture")
def get_heatmap_svg(services: Deps, map_id: MapId) -> Response:
    return svg(draw_map(services.patch_map(map_id)))


_EXPORTS: dict[str, tuple[str, Callable[[PatchMap, str], bytes]]] = {  # media type, writer
    "json": (JSON, map_values.as_json),
    "csv": ("text/csv; charset=utf-8", map_values.as_csv),
}


@router.get("/{map_id}/export", summary="Export it as a file")
def export_map(
    services: Deps, map_id: MapId, format: Literal["safetensors", "csv", "json"] = "safetensors"
) -> Response:
    """safetensors: everything to the bit, the metric of every example too. csv: a row for every cell. json: the axes
    with nested lists, and the provenance."""
    if format == "safetensors":
        data = services.artefacts.get(services.store.maps.get(map_id).row.artefact)
        return download(data, CIRCUIT_FILE, f"{map_id}.safetensors")
    media_type, write = _EXPORTS[format]
    return download(write(services.patch_map(map_id), map_id), media_type, f"{map_id}.{format}")
