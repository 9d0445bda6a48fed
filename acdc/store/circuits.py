"""Circuits, found or imported, as something to ask questions of; and their evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, exists, or_, select, update
from sqlalchemy.sql.selectable import Exists

from acdc.circuit import Circuit
from acdc.errors import Fault, NotFound, SpecError
from acdc.store.clock import moment
from acdc.store.database import Database
from acdc.store.paging import check_limit, newest_first, read_cursor, write_cursor
from acdc.store.results import insert_circuit, insert_circuit_tags
from acdc.store.rows import ChallengeRow, CircuitDetail, CircuitFilter, CircuitRow, EdgeRow, EvaluationRow, Page
from acdc.store.tables import circuit_edges, circuit_nodes, circuit_tags, circuits, evaluations, jobs, results


class Keep(Enum):
    """The value that says: leave this as it is (None would clear it)."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP
EVERY_CIRCUIT = CircuitFilter()
_HEAVY = ("report", "provenance")


class Circuits:
    def __init__(self, database: Database) -> None:
        self._database = database

    def list(
        self, filter: CircuitFilter = EVERY_CIRCUIT, *, cursor: str | None = None, limit: int = 50
    ) -> Page[CircuitRow]:
        """Newest first; pages as those of jobs do. Raises SpecError for a cursor or an edge name that is none."""
        query = _light().where(*_conditions(filter))
        with self._database.read() as connection:
            rows, next_cursor = newest_first(connection, query, circuits, cursor, limit)
            return Page(_circuit_rows(connection, rows), next_cursor)

    def get(self, circuit_id: str) -> CircuitDetail:
        """Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(select(circuits).where(circuits.c.id == circuit_id)).first()
            if row is None:
                raise _not_found(circuit_id)
            return CircuitDetail(_circuit_rows(connection, [row])[0], row.report, row.provenance)

    def edges(self, circuit_id: str, *, cursor: str | None = None, limit: int = 1000) -> Page[EdgeRow]:
        """Kept edges, the largest |score| first. Raises NotFound."""
        check_limit(limit)
        after = 0 if cursor is None else read_cursor(cursor, int)[0]
        query = select(circuit_edges).where(circuit_edges.c.circuit_id == circuit_id, circuit_edges.c.rank > after)
        with self._database.read() as connection:
            _read_circuit(connection, circuit_id)
            rows = connection.execute(query.order_by(circuit_edges.c.rank).limit(limit + 1)).all()
        items = tuple(EdgeRow(row.sender, row.receiver, row.score, row.rank) for row in rows[:limit])
        return Page(items, write_cursor(items[-1].rank) if len(rows) > limit else None)

    def evaluations(self, circuit_id: str, *, cursor: str | None = None, limit: int = 50) -> Page[EvaluationRow]:
        """Newest first. Raises NotFound."""
        query = select(evaluations).where(evaluations.c.circuit_id == circuit_id)
        with self._database.read() as connection:
            _read_circuit(connection, circuit_id)
            rows, next_cursor = newest_first(connection, query, evaluations, cursor, limit)
        return Page(tuple(map(_evaluation_row, rows)), next_cursor)

    def challenges(self, circuit_id: str) -> tuple[ChallengeRow, ...]:
        """Newest first. Raises NotFound."""
        core = results.alias()
        same_job = (core.c.job_id == results.c.job_id) & (core.c.result_key == "core")
        query = (
            select(results.c.job_id, results.c.data, core.c.circuit_id.label("core"), jobs.c.finished_ms)
            .join(jobs, jobs.c.id == results.c.job_id)
            .outerjoin(core, same_job)
            .where(results.c.circuit_id == circuit_id, results.c.kind == "table", results.c.result_key == "challenge")
            .order_by(jobs.c.finished_ms.desc(), jobs.c.id.desc())
        )
        with self._database.read() as connection:
            _read_circuit(connection, circuit_id)
            rows = connection.execute(query).all()
        return tuple(
            ChallengeRow(row.job_id, circuit_id, row.data["challenge"], row.core, moment(row.finished_ms))
            for row in rows
        )

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
        """Store a circuit that no job found. artefact: digest of its file, already in the artefact store.

        Raises NotFound when `derived_from` is no circuit.
        """
        labels = {"owner": user, "name": name, "notes": notes, "derived_from": derived_from}
        with self._database.write() as connection:
            if derived_from is not None:
                _read_circuit(connection, derived_from)
            return _read_circuit(connection, insert_circuit(connection, circuit, artefact, labels, tags))

    def relabel(
        self,
        circuit_id: str,
        *,
        name: str | Keep | None = KEEP,
        tags: Sequence[str] | Keep = KEEP,
        notes: str | Keep | None = KEEP,
    ) -> CircuitRow:
        """Change what people call it. Raises NotFound."""
        values = {key: value for key, value in {"name": name, "notes": notes}.items() if value is not KEEP}
        with self._database.write() as connection:
            _read_circuit(connection, circuit_id)
            if values:
                connection.execute(update(circuits).where(circuits.c.id == circuit_id).values(values))
            if not isinstance(tags, Keep):
                connection.execute(delete(circuit_tags).where(circuit_tags.c.circuit_id == circuit_id))
                insert_circuit_tags(connection, circuit_id, tags)
            return _read_circuit(connection, circuit_id)

    def delete(self, circuit_id: str) -> None:
        """With its edges and evaluations; its file is collected a day later. Raises NotFound."""
        with self._database.write() as connection:
            if connection.execute(delete(circuits).where(circuits.c.id == circuit_id)).rowcount == 0:
                raise _not_found(circuit_id)


def _light() -> Select[Any]:
    return select(*(column for column in circuits.c if column.name not in _HEAVY))


def _read_circuit(connection: Connection, circuit_id: str) -> CircuitRow:
    row = connection.execute(_light().where(circuits.c.id == circuit_id)).first()
    if row is None:
        raise _not_found(circuit_id)
    return _circuit_rows(connection, [row])[0]


def _not_found(circuit_id: str) -> NotFound:
    return NotFound(f"no circuit {circuit_id!r}")


def _conditions(filter: CircuitFilter) -> list[ColumnElement[bool] | Exists]:
    equal = {"owner": filter.user, "job_id": filter.job_id, "task": filter.task}
    equal |= {"method": filter.method, "metric": filter.metric}
    conditions: list[ColumnElement[bool] | Exists] = [circuits.c[k] == v for k, v in equal.items() if v is not None]
    if filter.model is not None:
        conditions.append(or_(circuits.c.model_reference == filter.model, circuits.c.model_fingerprint == filter.model))
    if filter.min_edges is not None:
        conditions.append(circuits.c.n_edges >= filter.min_edges)
    if filter.max_edges is not None:
        conditions.append(circuits.c.n_edges <= filter.max_edges)
    for tag in filter.tags:
        conditions.append(exists().where(circuit_tags.c.circuit_id == circuits.c.id, circuit_tags.c.tag == tag))
    for node in filter.nodes:
        conditions.append(exists().where(circuit_nodes.c.circuit_id == circuits.c.id, circuit_nodes.c.node == node))
    for sender, receiver in _edge_ends(filter.edges):
        part = circuit_edges.c
        entered = or_(part.receiver == receiver, part.receiver.startswith(f"{receiver}@", autoescape=True))
        conditions.append(exists().where(part.circuit_id == circuits.c.id, part.sender == sender, entered))
    return conditions


def _edge_ends(names: Sequence[str]) -> list[tuple[str, str]]:
    faults = [Fault(name, "write sender->receiver, like 5.5->9.6.q") for name in names if "->" not in name]
    if faults:
        raise SpecError(f"{len(faults)} of the edges named are none", faults)
    ends = [name.partition("->") for name in names]
    return [(sender.strip(), receiver.strip()) for sender, _, receiver in ends]


def _circuit_rows(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[CircuitRow, ...]:
    tags: dict[str, list[str]] = {row.id: [] for row in rows}
    query = select(circuit_tags).where(circuit_tags.c.circuit_id.in_(tags)).order_by(circuit_tags.c.tag)
    for tag in connection.execute(query):
        tags[tag.circuit_id].append(tag.tag)
    return tuple(_circuit_row(row, tuple(tags[row.id])) for row in rows)


def _circuit_row(row: Row[Any], tags: tuple[str, ...]) -> CircuitRow:
    return CircuitRow(
        id=row.id,
        user=row.owner,
        job_id=row.job_id,
        result_key=row.result_key,
        name=row.name,
        tags=tags,
        notes=row.notes,
        model_reference=row.model_reference,
        model_fingerprint=row.model_fingerprint,
        graph_fingerprint=row.graph_fingerprint,
        task=row.task,
        task_sha256=row.task_sha256,
        method=row.method,
        metric=row.metric,
        ablation=row.ablation,
        rule=row.rule,
        n_edges=row.n_edges,
        n_edges_total=row.n_edges_total,
        fraction=row.n_edges / row.n_edges_total,
        f=row.f,
        kl_share=row.kl_share,
        derived_from=row.derived_from,
        artefact=row.artefact,
        created_at=moment(row.created_ms),
    )


def _evaluation_row(row: Row[Any]) -> EvaluationRow:
    return EvaluationRow(
        id=row.id,
        circuit_id=row.circuit_id,
        job_id=row.job_id,
        result_key=row.result_key,
        report=row.report,
        spec=row.spec,
        created_at=moment(row.created_ms),
    )
