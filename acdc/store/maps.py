"""Patching maps as something to ask questions of. Their cells are in their files, see `acdc.patch_map`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, or_, select
from sqlalchemy.sql.selectable import Exists

from acdc.errors import NotFound
from acdc.store.clock import moment
from acdc.store.database import Database
from acdc.store.paging import newest_first
from acdc.store.rows import MapDetail, MapFilter, MapRow, Page
from acdc.store.tables import map_tags, maps

EVERY_MAP = MapFilter()


class Maps:
    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, filter: MapFilter = EVERY_MAP, *, cursor: str | None = None, limit: int = 50) -> Page[MapRow]:
        """Newest first; pages as those of jobs do. Raises SpecError for a cursor that is none."""
        query = _light().where(*_conditions(filter))
        with self._database.read() as connection:
            rows, next_cursor = newest_first(connection, query, maps, cursor, limit)
            return Page(_map_rows(connection, rows), next_cursor)

    def get(self, map_id: str) -> MapDetail:
        """Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(select(maps).where(maps.c.id == map_id)).first()
            if row is None:
                raise NotFound(f"no map {map_id!r}")
            return MapDetail(_map_rows(connection, [row])[0], row.provenance)


def _light() -> Select[Any]:
    return select(*(column for column in maps.c if column.name != "provenance"))


def _conditions(filter: MapFilter) -> list[ColumnElement[bool] | Exists]:
    equal = {"owner": filter.user, "job_id": filter.job_id, "kind": filter.kind, "task": filter.task}
    equal |= {"metric": filter.metric}
    conditions: list[ColumnElement[bool] | Exists] = [maps.c[k] == v for k, v in equal.items() if v is not None]
    if filter.model is not None:
        conditions.append(or_(maps.c.model_reference == filter.model, maps.c.model_fingerprint == filter.model))
    for tag in filter.tags:
        conditions.append(exists().where(map_tags.c.map_id == maps.c.id, map_tags.c.tag == tag))
    return conditions


def _map_rows(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[MapRow, ...]:
    tags: dict[str, list[str]] = {row.id: [] for row in rows}
    query = select(map_tags).where(map_tags.c.map_id.in_(tags)).order_by(map_tags.c.tag)
    for tag in connection.execute(query):
        tags[tag.map_id].append(tag.tag)
    return tuple(_map_row(row, tuple(tags[row.id])) for row in rows)


def _map_row(row: Row[Any], tags: tuple[str, ...]) -> MapRow:
    return MapRow(
        id=row.id,
        user=row.owner,
        job_id=row.job_id,
        result_key=row.result_key,
        name=row.name,
        tags=tags,
        notes=row.notes,
        kind=row.kind,
        model_reference=row.model_reference,
        model_fingerprint=row.model_fingerprint,
        task=row.task,
        task_sha256=row.task_sha256,
        metric=row.metric,
        base=row.base,
        n_cells=row.n_cells,
        n_clear=row.n_clear,
        n_examples=row.n_examples,
        clean=row.clean,
        corrupt=row.corrupt,
        axes=tuple(row.axes),
        strongest=tuple(row.strongest),
        artefact=row.artefact,
        created_at=moment(row.created_ms),
    )
