"""The models that this service has met."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from acdc.circuit import ModelCard
from acdc.errors import NotFound
from acdc.store.clock import moment
from acdc.store.database import Database
from acdc.store.results import record_model
from acdc.store.rows import ModelRow
from acdc.store.tables import models


class Models:
    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, card: ModelCard) -> None:
        """A model was loaded: its card is new, or used again."""
        with self._database.write() as connection:
            record_model(connection, card)

    def list(self) -> tuple[ModelRow, ...]:
        """Most lately used first."""
        with self._database.read() as connection:
            rows = connection.execute(select(models).order_by(models.c.last_used_ms.desc(), models.c.reference)).all()
        return tuple(map(_model_row, rows))

    def get(self, fingerprint: str) -> tuple[ModelRow, ...]:
        """One row for each reference to the same weights. Raises NotFound."""
        query = select(models).where(models.c.fingerprint == fingerprint).order_by(models.c.reference)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        if not rows:
            raise NotFound(f"no model with the fingerprint {fingerprint!r} has been used here")
        return tuple(map(_model_row, rows))


def _model_row(row: Row[Any]) -> ModelRow:
    return ModelRow(row.fingerprint, row.reference, row.card, moment(row.first_seen_ms), moment(row.last_used_ms))
