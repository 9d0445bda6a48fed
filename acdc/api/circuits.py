"""Circuits over HTTP: list, read in every form, import, relabel, evaluate again, try on a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from acdc.api import exports
from acdc.api.bodies import CIRCUIT_FILE, JSON, Body, RequestBody
from acdc.api.files import download, html, svg
from acdc.api.jobs import IdempotencyKey, submit
from acdc.api.services import USER, CircuitId, Cursor, Deps, Services
from acdc.api.views import (
    ChallengeView,
    CircuitSummary,
    CircuitView,
    EdgeView,
    EvaluationView,
    JobView,
    PageView,
    ScoresView,
    circuit_summary,
    circuit_view,
)
from acdc.card import Card, also, card_of, challenged, conditions_of, to_markdown, to_page
from acdc.challenge import Challenge
from acdc.circuit import Circuit
from acdc.drawing import draw_challenge, draw_circuit, draw_curve
from acdc.errors import NotFound, SpecError
from acdc.report import Report
from acdc.spec import NonEmpty, faults_of
from acdc.store import KEEP, MAX_LIMIT, CircuitDetail, CircuitFilter, CircuitRow

router = APIRouter(prefix="/v1/circuits", tags=["circuits"])

Name = Annotated[str | None, Query(max_length=200)]
Notes = Annotated[str | None, Query(max_length=10_000)]
_MAX_EDGES = 2**31 - 1  # what the column holds
_LATER_EVALUATIONS = 10  # that a card holds, the newest


class CircuitQuery(BaseModel):
    """Filters of a circuit list; what is left out does not restrict. model: a reference or a fingerprint. node, edge
    and tag may be repeated: all of them must be there. edge: 5.5->9.6.q, at any role, or 5.5->9.6.q@S2."""

    model_config = ConfigDict(extra="forbid")

    job: str | None = None
    model: str | None = None
    task: str | None = None
    method: str | None = None
    metric: str | None = None
    node: list[str] = []
    edge: list[str] = []
    tag: list[str] = []
    min_edges: int | None = Field(default=None, ge=0, le=_MAX_EDGES)
    max_edges: int | None = Field(default=None, ge=0, le=_MAX_EDGES)
    cursor: Cursor = None
    limit: int = Field(default=50, ge=1, le=200)


class Labels(BaseModel):
    """What people call a circuit. What is left out stays; null clears."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(default=None, max_length=200)
    tags: Annotated[list[NonEmpty], Field(max_length=50)] | None = None
    notes: str | None = Field(default=None, max_length=10_000)

    @model_validator(mode="after")
    def _says_something(self) -> Labels:
        if not self.model_fields_set:
            raise ValueError("give at least one of name, tags and notes")
        return self


# -- list, import ------------------------------------------------------------------------------------------------------


@router.get("", summary="List circuits")
def list_circuits(services: Deps, query: Annotated[CircuitQuery, Query()]) -> PageView[CircuitSummary]:
    """Newest first. A circuit that was there before page one appears exactly once."""
    wanted = CircuitFilter(
        job_id=query.job,
        model=query.model,
        task=query.task,
        method=query.method,
        metric=query.metric,
        nodes=tuple(query.node),
        edges=tuple(query.edge),
        tags=tuple(query.tag),
        min_edges=query.min_edges,
        max_edges=query.max_edges,
    )
    page = services.store.circuits.list(wanted, cursor=query.cursor, limit=query.limit)
    return PageView(items=[circuit_summary(row) for row in page.items], next_cursor=page.next_cursor)


@router.post("", status_code=201, summary="Import a circuit", responses={202: {"model": JobView}})
def post_circuit(
    services: Deps,
    body: RequestBody,
    response: Response,
    name: Name = None,
    notes: Notes = None,
    tag: Annotated[list[NonEmpty], Query(max_length=50)] = [],  # noqa: B006 - FastAPI copies it
    idempotency_key: IdempotencyKey = None,
) -> CircuitView | JobView:
    """An exported circuit file (`application/octet-stream`; name, notes and tag as query parameters) is stored: 201.

    A hypothesis in JSON, `{"model": …, "task": …, "nodes": ["9.9", "mlp0"], "edges": ["embed->mlp0"]}`, becomes an
    `evaluate` job that judges and stores it: 202.
    """
    if body.media_type == CIRCUIT_FILE:
        return _import_file(services, body, response, name, tag, notes)
    if body.media_type != JSON:
        raise HTTPException(415, f"send a circuit file as {CIRCUIT_FILE}, or a hypothesis as {JSON}")
    data = body.mapping()
    hypothesis = {key: data.pop(key) for key in ("nodes", "edges") if key in data}
    return submit(services, response, {"hypothesis": hypothesis, **data, "kind": "evaluate"}, idempotency_key)


def _import_file(
    services: Services, body: Body, response: Response, name: str | None, tags: list[str], notes: str | None
) -> CircuitView:
    circuit = Circuit.from_bytes(body.data, "the file sent")
    digest = services.artefacts.put(body.data)
    row = services.store.circuits.add(circuit, digest, user=USER, name=name, tags=tags, notes=notes)
    view = circuit_view(services.store.circuits.get(row.id))
    response.headers["Location"] = view.links["self"]
    return view


# -- one circuit -------------------------------------------------------------------------------------------------------


@router.get("/{circuit_id}", summary="Read a circuit")
def get_circuit(services: Deps, circuit_id: CircuitId) -> CircuitView:
    return circuit_view(services.store.circuits.get(circuit_id))


@router.patch("/{circuit_id}", summary="Rename, tag or annotate a circuit")
def patch_circuit(services: Deps, circuit_id: CircuitId, body: RequestBody) -> CircuitView:
    """The body is `{"name": …, "tags": […], "notes": …}`, any of them."""
    try:
        labels = Labels.model_validate(body.mapping())
    except ValidationError as error:
        raise SpecError("those labels cannot be used", faults_of(error, Labels)) from None
    given = labels.model_fields_set
    services.store.circuits.relabel(
        circuit_id,
        name=labels.name if "name" in given else KEEP,
        tags=(labels.tags or []) if "tags" in given else KEEP,
        notes=labels.notes if "notes" in given else KEEP,
    )
    return circuit_view(services.store.circuits.get(circuit_id))


@router.delete("/{circuit_id}", status_code=204, summary="Delete a circuit with its evaluations")
def delete_circuit(services: Deps, circuit_id: CircuitId) -> Response:
    services.store.circuits.delete(circuit_id)
    return Response(status_code=204)


@router.get("/{circuit_id}/edges", summary="List its edges")
def get_edges(
    services: Deps,
    circuit_id: CircuitId,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
) -> PageView[EdgeView]:
    """Kept edges, the largest |score| first."""
    page = services.store.circuits.edges(circuit_id, cursor=cursor, limit=limit)
    return PageView(items=[EdgeView.model_validate(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/{circuit_id}/evaluations", summary="List its later evaluations")
def get_evaluations(
    services: Deps, circuit_id: CircuitId, cursor: Cursor = None, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> PageView[EvaluationView]:
    """Newest first; the circuit's own report, from the job that found it, is not among them."""
    page = services.store.circuits.evaluations(circuit_id, cursor=cursor, limit=limit)
    return PageView(items=[EvaluationView.model_validate(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/{circuit_id}/scores", summary="The score of every edge", response_model=ScoresView)
def get_scores(services: Deps, circuit_id: CircuitId, format: Literal["json", "safetensors"] = "json") -> Response:
    """The matrix as JSON, or the circuit's safetensors file, which holds it as `scores`."""
    if format == "safetensors":
        return get_export(services, circuit_id, "safetensors")
    circuit = services.circuit(circuit_id)
    scores = [
        [float(score) if tested else None for score, tested in zip(row, known, strict=True)]
        for row, known in zip(circuit.scores, circuit.tested, strict=True)
    ]
    graph, inclusion = circuit.graph, circuit.inclusion
    return JSONResponse(
        {
            "senders": [s.name for s in graph.senders],
            "receivers": [r.name for r in graph.receivers],
            "scores": scores,
            "inclusion": None if inclusion is None else inclusion.tolist(),
        }
    )


@router.get("/{circuit_id}/curve", summary="Its faithfulness curve as numbers")
def get_curve(services: Deps, circuit_id: CircuitId) -> dict[str, Any]:
    """Points, areas, random bands and k* of the circuit's report."""
    report = _report(services.store.circuits.get(circuit_id))
    wanted = ("points", "areas", "bands", "k_star", "kept", "kept_random", "metric_full", "metric_empty", "kl_empty")
    return {key: report[key] for key in wanted}


@router.get("/{circuit_id}/card", summary="What is known of it, on one page")
def get_card(services: Deps, circuit_id: CircuitId, accept: Annotated[str, Header()] = "") -> Response:
    """Markdown, with the newest later evaluations; with `Accept: application/json` the report and the provenance behind
    it, and the card's own sections."""
    detail = services.store.circuits.get(circuit_id)
    card = _card(services, detail.row, services.circuit(circuit_id))
    if JSON in accept:
        return JSONResponse(
            {**circuit_view(detail).model_dump(mode="json"), "lead": card.lead, "sections": _plain(card)}
        )
    return Response(to_markdown(card), media_type="text/markdown; charset=utf-8")


@router.get("/{circuit_id}/card.html", summary="The same as a page of text and pictures")
def get_card_page(services: Deps, circuit_id: CircuitId) -> Response:
    """Needs nothing besides itself: to read, print or send."""
    circuit = services.circuit(circuit_id)
    card = _card(services, services.store.circuits.get(circuit_id).row, circuit)
    return html(to_page(card, draw_circuit(circuit)))


def _card(services: Services, row: CircuitRow, circuit: Circuit) -> Card:
    card = card_of(circuit, row.name, row.notes or "", id=row.id, derived_from=row.derived_from)
    later = services.store.circuits.evaluations(row.id, limit=_LATER_EVALUATIONS)
    if later.next_cursor is not None:
        card = replace(card, lead=(*card.lead, f"Of its later evaluations, the newest {_LATER_EVALUATIONS} are below."))
    for evaluation in later.items:
        said = f"By job {evaluation.job_id}: {conditions_of(evaluation.spec)}."
        card = also(card, f"Evaluation {evaluation.id}", said, Report.from_dict(evaluation.report))
    for made in services.store.circuits.challenges(row.id)[:1]:
        by = f"By job {made.job_id}" + (f"; the core is circuit {made.core}." if made.core else ".")
        card = challenged(card, Challenge.from_dict(made.data), by)
    return card


@router.get("/{circuit_id}/graph.svg", summary="Its picture")
def get_graph_svg(
    services: Deps, circuit_id: CircuitId, max_edges: Annotated[int, Query(ge=1, le=2000)] = 300
) -> Response:
    """At most `max_edges` edges, the largest |score| first; the picture says how many it leaves out."""
    return svg(draw_circuit(services.circuit(circuit_id), max_edges=max_edges))


@router.get("/{circuit_id}/curve.svg", summary="Its faithfulness curve as a picture")
def get_curve_svg(services: Deps, circuit_id: CircuitId) -> Response:
    report = _report(services.store.circuits.get(circuit_id))
    return svg(draw_curve(Report.from_dict(report)))


def _report(detail: CircuitDetail) -> dict[str, Any]:
    if detail.report is None:
        name = detail.row.id
        raise NotFound(f"circuit {name} has no report of its own; POST /v1/circuits/{name}/evaluate judges it")
    return dict(detail.report)


def _plain(card: Card) -> list[dict[str, Any]]:
    """Sections as JSON; cells are text, as they are to be shown."""
    return [
        {
            "title": section.title,
            "text": section.text,
            "columns": section.table and section.table.columns,
            "rows": section.table and section.table.written,
            "is_part": section.is_part,
        }
        for section in card.all_sections
    ]


_EXPORTS: dict[str, tuple[str, str, Callable[[Circuit, str], bytes]]] = {  # media type, file ending, writer
    "json": (JSON, "json", exports.as_json),
    "csv": ("text/csv; charset=utf-8", "csv", exports.as_csv),
    "neuronpedia": (JSON, "graph.json", exports.as_attribution_graph),
}


@router.get("/{circuit_id}/challenge", summary="List what tried to break it")
def get_challenges(services: Deps, circuit_id: CircuitId) -> PageView[ChallengeView]:
    """Newest first, all on one page."""
    found = services.store.circuits.challenges(circuit_id)
    return PageView(items=[ChallengeView.model_validate(row) for row in found], next_cursor=None)


@router.get("/{circuit_id}/challenge.svg", summary="The newest challenge as a picture")
def get_challenge_svg(services: Deps, circuit_id: CircuitId) -> Response:
    made = services.store.circuits.challenges(circuit_id)
    if not made:
        raise NotFound(
            f"circuit {circuit_id} was not challenged yet; POST /v1/circuits/{circuit_id}/challenge does that"
        )
    return svg(draw_challenge(Challenge.from_dict(made[0].data)))


@router.get("/{circuit_id}/export", summary="Export it as a file")
def get_export(
    services: Deps,
    circuit_id: CircuitId,
    format: Literal["safetensors", "json", "csv", "neuronpedia"] = "safetensors",
) -> Response:
    """safetensors: the file that `POST /v1/circuits` takes back, bit for bit. json: header and kept edges. csv: every
    edge of the graph. neuronpedia: an attribution graph for that viewer."""
    if format == "safetensors":
        data = services.artefacts.get(services.store.circuits.get(circuit_id).row.artefact)
        return download(data, CIRCUIT_FILE, f"{circuit_id}.safetensors")
    media_type, ending, write = _EXPORTS[format]
    return download(write(services.circuit(circuit_id), circuit_id), media_type, f"{circuit_id}.{ending}")


# -- jobs about one circuit --------------------------------------------------------------------------------------------


@router.post("/{circuit_id}/evaluate", status_code=202, summary="Evaluate it again")
def evaluate_circuit(
    services: Deps, circuit_id: CircuitId, body: RequestBody, response: Response, idempotency_key: IdempotencyKey = None
) -> JobView:
    """An `evaluate` job. The body names what differs (task, metric, ablation, selection, edit, …); the rest is as the
    circuit's own job had it."""
    return _about(services, circuit_id, "evaluate", body, response, idempotency_key)


@router.post("/{circuit_id}/challenge", status_code=202, summary="Try to break it")
def challenge_circuit(
    services: Deps, circuit_id: CircuitId, body: RequestBody, response: Response, idempotency_key: IdempotencyKey = None
) -> JobView:
    """A `challenge` job: the circuit, and the search that found it, in many settings. The body may be `{}`, or say what
    to vary."""
    return _about(services, circuit_id, "challenge", body, response, idempotency_key)


@router.post("/{circuit_id}/try", status_code=202, summary="Try it on a prompt")
def try_circuit(
    services: Deps, circuit_id: CircuitId, body: RequestBody, response: Response, idempotency_key: IdempotencyKey = None
) -> JobView:
    """A `try` job; the body is `{"prompt": …}`, with `corrupt` and `top` if wanted."""
    return _about(services, circuit_id, "try", body, response, idempotency_key)


def _about(services: Services, circuit_id: str, kind: str, body: Body, response: Response, key: str | None) -> JobView:
    return submit(services, response, {**body.mapping(), "kind": kind, "circuit": circuit_id}, key)
