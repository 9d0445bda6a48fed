"""Circuits, found or imported, as something to ask questions of; their evaluations; the models they are of."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from acdc.circuit import Circuit, ModelCard
from acdc.store.database import Database
from acdc.store.rows import CircuitDetail, CircuitFilter, CircuitRow, EdgeRow, EvaluationRow, ModelRow, Page


class Keep(Enum):
    """The value that says: leave this as it is (None would clear it)."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


class Circuits:
    def __init__(self, database: Database) -> None:
        self._database = database

    def list(
        self, filter: CircuitFilter = CircuitFilter(), *, cursor: str | None = None, limit: int = 50
    ) -> Page[CircuitRow]:
        """Newest first; pages as those of jobs do. Raises SpecError for a cursor or an edge name that is none."""
        raise NotImplementedError

    def get(self, circuit_id: str) -> CircuitDetail:
        """Raises NotFound."""
        raise NotImplementedError

    def edges(self, circuit_id: str, *, cursor: str | None = None, limit: int = 1000) -> Page[EdgeRow]:
        """Kept edges, the largest |score| first. Raises NotFound."""
        raise NotImplementedError

    def evaluations(self, circuit_id: str, *, cursor: str | None = None, limit: int = 50) -> Page[EvaluationRow]:
        """Newest first. Raises NotFound."""
        raise NotImplementedError

    def add(
        self,
        circuit: Circuit,
        artefact: str,
        *,
        user: str,
        name: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        derived_from: str | None = None,
    ) -> CircuitRow:
        """Store a circuit that no job found. artefact: digest of its file, already in the artefact store."""
        raise NotImplementedError

    def relabel(
        self,
        circuit_id: str,
        *,
        name: str | None | Keep = KEEP,
        tags: Sequence[str] | Keep = KEEP,
        notes: str | None | Keep = KEEP,
    ) -> CircuitRow:
        """Change what people call it. Raises NotFound."""
        raise NotImplementedError

    def delete(self, circuit_id: str) -> None:
        """With its edges and evaluations; its file is collected a day later. Raises NotFound."""
        raise NotImplementedError


class Models:
    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, card: ModelCard) -> None:
        """A model was loaded: its card is new, or used again."""
        raise NotImplementedError

    def list(self) -> tuple[ModelRow, ...]:
        """Most lately used first."""
        raise NotImplementedError

    def get(self, fingerprint: str) -> tuple[ModelRow, ...]:
        """One row for each reference to the same weights. Raises NotFound."""
        raise NotImplementedError
