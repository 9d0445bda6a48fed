"""What a finished job leaves: its results, each in the table of its kind, in the transaction that ends the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, insert, select

from acdc.circuit import Circuit, ModelCard
from acdc.errors import NotFound
from acdc.spec import spell_infinity
from acdc.store.clock import now_ms
from acdc.store.database import insert_or
from acdc.store.ids import new_id
from acdc.store.rows import JobRow, NewCircuit, NewEvaluation, NewMap, NewResult, NewTable
from acdc.store.tables import (
    circuit_edges,
    circuit_nodes,
    circuit_tags,
    circuits,
    evaluations,
    map_tags,
    maps,
    models,
    results,
)

STRONGEST = 20  # cells of a map that its row names; all of them are in its file


def insert_results(connection: Connection, job: JobRow, new_results: Sequence[NewResult]) -> None:
    """Raises NotFound when a circuit that was evaluated has been deleted since."""
    assert len({result.key for result in new_results}) == len(new_results), "two results of a job share a key"
    for result in new_results:
        row: dict[str, Any] = {"job_id": job.id, "result_key": result.key, "data": spell_infinity(result.data)}
        match result:
            case NewCircuit():
                row |= {"kind": "circuit", "circuit_id": _insert_found(connection, job, result)}
            case NewEvaluation():
                row |= {"kind": "evaluation", "circuit_id": result.circuit_id}
                row["evaluation_id"] = _insert_evaluation(connection, job, result)
            case NewMap():
                row |= {"kind": "map", "map_id": _insert_map(connection, job, result)}
            case NewTable():
                there = result.circuit_id is not None and _is_there(connection, result.circuit_id)
                row |= {"kind": "table", "circuit_id": result.circuit_id if there else None}
        connection.execute(insert(results).values(row))


def insert_circuit(
    connection: Connection, circuit: Circuit, artefact: str, labels: Mapping[str, Any], tags: Sequence[str]
) -> str:
    """The circuit's row, its edges, nodes, tags and its model. labels: the columns that the circuit does not know."""
    circuit_id = new_id("cir")
    origin = circuit.provenance
    held_out = circuit.report.kept_held_out if circuit.report else None
    values = {
        **labels,
        "id": circuit_id,
        "model_reference": origin.model.reference,
        "model_fingerprint": origin.model.fingerprint,
        "graph_fingerprint": circuit.graph.fingerprint,
        "task": origin.task.name,
        "task_sha256": origin.task.sha256,
        "method": origin.choices.method,
        "metric": origin.choices.metric,
        "ablation": origin.choices.ablation,
        "rule": circuit.selected.rule,
        "n_edges": circuit.selected.connected,
        "n_edges_total": circuit.graph.n_edges,
        "f": held_out and held_out.f,
        "kl_share": held_out and held_out.kl_share,
        "artefact": artefact,
        "report": circuit.report and spell_infinity(circuit.report.to_dict()),
        "provenance": spell_infinity(asdict(origin)),
        "created_ms": now_ms(),
    }
    connection.execute(insert(circuits).values(values))
    _insert_parts(connection, circuit_id, circuit)
    insert_circuit_tags(connection, circuit_id, tags)
    record_model(connection, origin.model)
    return circuit_id


def insert_circuit_tags(connection: Connection, circuit_id: str, tags: Sequence[str]) -> None:
    if rows := [{"circuit_id": circuit_id, "tag": tag} for tag in dict.fromkeys(tags)]:
        connection.execute(insert(circuit_tags), rows)


def record_model(connection: Connection, card: ModelCard) -> None:
    new = {"fingerprint": card.fingerprint, "reference": card.reference, "card": asdict(card)}
    statement = insert_or(connection, models).values(**new, first_seen_ms=now_ms(), last_used_ms=now_ms())
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[models.c.fingerprint, models.c.reference],
            set_={"card": statement.excluded.card, "last_used_ms": statement.excluded.last_used_ms},
        )
    )


def _insert_parts(connection: Connection, circuit_id: str, circuit: Circuit) -> None:
    graph = circuit.graph
    edges = [
        {
            "circuit_id": circuit_id,
            "rank": rank,
            "sender": graph.senders[edge.sender].name,
            "receiver": graph.receivers[edge.receiver].name,
            "score": float(circuit.scores[edge.sender, edge.receiver])
            if circuit.tested[edge.sender, edge.receiver]
            else None,
        }
        for rank, edge in enumerate(circuit.edges(), 1)
    ]
    if edges:
        connection.execute(insert(circuit_edges), edges)
    if nodes := [{"circuit_id": circuit_id, "node": node} for node in circuit.nodes()]:
        connection.execute(insert(circuit_nodes), nodes)


def _insert_found(connection: Connection, job: JobRow, result: NewCircuit) -> str:
    source = result.derived_from
    labels = {
        "owner": job.user,
        "job_id": job.id,
        "result_key": result.key,
        "name": job.name,
        "notes": job.notes,
        "derived_from": source if source and _is_there(connection, source) else None,
    }
    return insert_circuit(connection, result.circuit, result.artefact, labels, job.tags)


def _insert_evaluation(connection: Connection, job: JobRow, result: NewEvaluation) -> str:
    if not _is_there(connection, result.circuit_id):
        raise NotFound(f"circuit {result.circuit_id} was deleted while job {job.id} evaluated it")
    evaluation_id = new_id("evl")
    values = {
        "id": evaluation_id,
        "circuit_id": result.circuit_id,
        "job_id": job.id,
        "result_key": result.key,
        "report": spell_infinity(result.report),
        "spec": job.spec,
        "created_ms": now_ms(),
    }
    connection.execute(insert(evaluations).values(values))
    return evaluation_id


def _insert_map(connection: Connection, job: JobRow, result: NewMap) -> str:
    """The map's row, its tags and its model; its cells are in its file."""
    map_id, made = new_id("map"), result.patch_map
    origin, cells = made.provenance, made.cells
    assert origin is not None, "a job's map says where it comes from"
    (metric,) = cells.metrics
    values = {
        "id": map_id,
        "owner": job.user,
        "job_id": job.id,
        "result_key": result.key,
        "name": job.name,
        "notes": job.notes,
        "kind": cells.kind,
        "model_reference": origin.model.reference,
        "model_fingerprint": origin.model.fingerprint,
        "task": origin.task.name,
        "task_sha256": origin.task.sha256,
        "metric": metric,
        "base": cells.base,
        "n_cells": int(cells.defined.sum()),
        "n_clear": int(made.clear.sum()),
        "n_examples": len(cells.groups),
        "clean": float(cells.clean.mean()),
        "corrupt": float(cells.corrupt.mean()),
        "axes": [asdict(axis) for axis in cells.axes[1:]],
        "strongest": made.strongest(STRONGEST),
        "provenance": spell_infinity(asdict(origin)),
        "artefact": result.artefact,
        "created_ms": now_ms(),
    }
    connection.execute(insert(maps).values(values))
    if rows := [{"map_id": map_id, "tag": tag} for tag in dict.fromkeys(job.tags)]:
        connection.execute(insert(map_tags), rows)
    record_model(connection, origin.model)
    return map_id


def _is_there(connection: Connection, circuit_id: str) -> bool:
    """And stays there until the end of the transaction."""
    query = select(circuits.c.id).where(circuits.c.id == circuit_id)
    return connection.execute(query.with_for_update(read=True, key_share=True)).first() is not None
