"""What the API answers, as pydantic models: the shapes that the OpenAPI file promises."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from acdc.patch_map import too_few
from acdc.store import CircuitDetail, CircuitRow, JobRow, MapDetail, MapRow, ResultRow, State

Item = TypeVar("Item")


class View(BaseModel):
    """Filled from the store's rows by attribute name."""

    model_config = ConfigDict(from_attributes=True)


class PageView(View, Generic[Item]):
    """One page of a list, newest first. next_cursor: hand it back as `cursor` for the next page; null on the last."""

    items: list[Item]
    next_cursor: str | None


# -- jobs --------------------------------------------------------------------------------------------------------------


class FaultView(View):
    where: str
    message: str


class JobErrorView(View):
    """code: invalid_task, out_of_memory, timeout, poison, storage or internal."""

    code: str
    message: str
    faults: list[FaultView]


class JobSummary(View):
    """A job in a list. circuit: the stored one that it is on, or null. model, task: null for a try or a challenge,
    whose circuit has them. method: of the search, or the map's name; else null. last_event: number of its newest event,
    so it rises with every change."""

    id: str
    kind: str
    state: State
    user: str
    name: str | None
    tags: list[str]
    notes: str | None
    circuit: str | None
    model: str | None
    task: str | None
    method: str | None
    progress: dict[str, Any] | None
    error: JobErrorView | None
    attempt: int
    retry_of: str | None
    last_event: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: dict[str, str]


class ResultView(View):
    """kind: circuit, evaluation, map or table. circuit_id: the circuit found or evaluated, unless deleted since.
    map_id: the map made."""

    key: str
    kind: str
    circuit_id: str | None
    evaluation_id: str | None
    map_id: str | None
    data: dict[str, Any]


class JobView(JobSummary):
    """A job with what was asked for and, once it has succeeded, its results."""

    spec: dict[str, Any]
    spec_sha256: str
    results: list[ResultView] = []


class EventView(View):
    """kind: `state` or `progress`. Numbers run 1, 2, 3, … without a gap; the event of a terminal state is the last."""

    number: int
    at: datetime
    kind: str
    data: dict[str, Any]


class EventPage(View):
    """next_after: hand it back as `after`. ended: the last event of the job is among those read so far."""

    items: list[EventView]
    next_after: int
    ended: bool


class LogView(View):
    number: int
    at: datetime
    line: str


class LogPage(View):
    items: list[LogView]
    next_after: int


def _job_fields(row: JobRow) -> dict[str, Any]:
    root = f"/v1/jobs/{row.id}"
    names = ("id", "kind", "state", "user", "name", "tags", "notes", "progress", "attempt", "retry_of", "last_event")
    times = ("created_at", "started_at", "finished_at")
    return {
        **{name: getattr(row, name) for name in (*names, *times)},
        "error": JobErrorView.model_validate(row.error) if row.error else None,
        "circuit": row.spec.get("circuit"),
        "model": row.spec.get("model"),
        "task": row.spec.get("task", {}).get("name"),
        "method": (row.spec.get("method") or row.spec.get("map") or {}).get("name"),
        "links": {"self": root, **{name: f"{root}/{name}" for name in ("events", "logs", "cancel", "retry")}},
    }


def job_summary(row: JobRow) -> JobSummary:
    return JobSummary.model_validate(_job_fields(row))


def job_view(row: JobRow, results: tuple[ResultRow, ...] = ()) -> JobView:
    shown = [ResultView.model_validate(result) for result in results]
    return JobView.model_validate(
        {**_job_fields(row), "spec": row.spec, "spec_sha256": row.spec_sha256, "results": shown}
    )


# -- circuits ----------------------------------------------------------------------------------------------------------


class CircuitSummary(View):
    """A circuit in a list. n_edges: connected ones; fraction: of the whole graph's edges; f and kl_share: of the
    circuit itself on held-out prompts, null where it was not evaluated."""

    id: str
    user: str
    job_id: str | None
    result_key: str | None
    name: str | None
    tags: list[str]
    notes: str | None
    model_reference: str
    model_fingerprint: str
    graph_fingerprint: str
    task: str
    task_sha256: str
    method: str
    metric: str
    ablation: str
    rule: str
    n_edges: int
    n_edges_total: int
    fraction: float
    f: float | None
    kl_share: float | None
    derived_from: str | None
    artefact: str
    created_at: datetime
    links: dict[str, str]


class CircuitView(CircuitSummary):
    """A circuit with its report (every figure of its evaluation) and its provenance (every choice behind them)."""

    report: dict[str, Any] | None
    provenance: dict[str, Any]


class EdgeView(View):
    """A kept edge. rank: 1 is the largest |score|; score: null where the search gave none."""

    sender: str
    receiver: str
    score: float | None
    rank: int


class EvaluationView(View):
    """An evaluation of a stored circuit by a job of its own; spec: that job's."""

    id: str
    circuit_id: str
    job_id: str
    result_key: str
    report: dict[str, Any]
    spec: dict[str, Any]
    created_at: datetime


class ChallengeView(View):
    """A challenge of a stored circuit by a job of its own; data: the sentence, every setting, control and edge. core:
    the circuit of what survived."""

    job_id: str
    circuit_id: str
    data: dict[str, Any]
    core: str | None
    created_at: datetime


class ScoresView(BaseModel):
    """Whole matrices [senders, receivers]. scores: null where an edge was not tested or there is none. inclusion: the
    share of resampled circuits that have an edge, null where stability was not measured."""

    senders: list[str]
    receivers: list[str]
    scores: list[list[float | None]]
    inclusion: list[list[float]] | None


_PARTS = (
    "edges",
    "scores",
    "curve",
    "card",
    "card.html",
    "graph.svg",
    "curve.svg",
    "export",
    "evaluations",
    "challenge",
    "evaluate",
    "try",
)


def _circuit_fields(row: CircuitRow) -> dict[str, Any]:
    root = f"/v1/circuits/{row.id}"
    own = {name: getattr(row, name) for name in CircuitSummary.model_fields if name != "links"}
    job = {"job": f"/v1/jobs/{row.job_id}"} if row.job_id else {}
    return {**own, "links": {"self": root, **job, **{part: f"{root}/{part}" for part in _PARTS}}}


def circuit_summary(row: CircuitRow) -> CircuitSummary:
    return CircuitSummary.model_validate(_circuit_fields(row))


def circuit_view(detail: CircuitDetail) -> CircuitView:
    fields = _circuit_fields(detail.row)
    return CircuitView.model_validate({**fields, "report": detail.report, "provenance": detail.provenance})


# -- maps --------------------------------------------------------------------------------------------------------------


class AxisView(View):
    name: str
    labels: list[str]


class MapSummary(View):
    """A patching map in a list.

    kind: activation_patching, path_patching, causal_tracing or attention_knockout. base: the run that was changed.
    n_cells: that there are; n_clear: of these, whose 95 % interval leaves 0 out; too_few: why none does, where there
    are too few prompts to tell. clean, corrupt: mean metric of the unchanged runs. axes: all but the metric's.
    strongest: the cells with the largest |effect|: a label for each axis, effect, low, high; these three normalised (1
    is all the way from the base run to the other one), or null; and what remains to the other run, or null.
    """

    id: str
    user: str
    job_id: str | None
    result_key: str
    name: str | None
    tags: list[str]
    notes: str | None
    kind: str
    model_reference: str
    model_fingerprint: str
    task: str
    task_sha256: str
    metric: str
    base: str
    n_cells: int
    n_clear: int
    too_few: str
    n_examples: int
    clean: float
    corrupt: float
    axes: list[AxisView]
    strongest: list[dict[str, Any]]
    artefact: str
    created_at: datetime
    links: dict[str, str]


class MapView(MapSummary):
    """A map with its provenance: every choice behind its numbers."""

    provenance: dict[str, Any]


class TotalView(BaseModel):
    effect: float
    low: float
    high: float


class ExamplesView(BaseModel):
    """The metric of every prompt. groups: of each. clean, corrupt: [metric, prompt], the unchanged runs; corrupt is
    null where not every prompt has one. changed: nested lists like those of the cells, with a list of all prompts for
    each number; null where there is no such cell.
    """

    groups: list[str]
    clean: list[list[float]]
    corrupt: list[list[float]] | None
    changed: list[Any]


class MapValuesView(BaseModel):
    """Nested lists in the order of the axes; null where there is no such cell, or normalising is withheld. remaining:
    from the changed run to the other one, null where there is no other. total: by metric, from the base run to the
    other one, or null. denominator, withheld: by metric, what normalised effects are divided by, and why there are
    none. unit, n_units: what intervals were drawn over. examples: with `per_example=true` only.
    """

    axes: list[AxisView]
    effect: list[Any]
    low: list[Any]
    high: list[Any]
    normalised: list[Any]
    normalised_low: list[Any]
    normalised_high: list[Any]
    remaining: list[Any]
    remaining_low: list[Any]
    remaining_high: list[Any]
    total: dict[str, TotalView | None]
    denominator: dict[str, float]
    withheld: dict[str, str]
    unit: str
    n_units: int
    examples: ExamplesView | None = None


def _map_fields(row: MapRow) -> dict[str, Any]:
    root = f"/v1/maps/{row.id}"
    made = {"links", "too_few"}
    own = {name: getattr(row, name) for name in MapSummary.model_fields if name not in made}
    job = {"job": f"/v1/jobs/{row.job_id}"} if row.job_id else {}
    parts = {part: f"{root}/{part}" for part in ("values", "heatmap.svg", "export")}
    return {**own, "too_few": too_few(row.n_examples), "links": {"self": root, **job, **parts}}


def map_summary(row: MapRow) -> MapSummary:
    return MapSummary.model_validate(_map_fields(row))


def map_view(detail: MapDetail) -> MapView:
    return MapView.model_validate({**_map_fields(detail.row), "provenance": detail.provenance})


# -- what can be asked for ---------------------------------------------------------------------------------------------


class ModelView(BaseModel):
    """A model that the catalogue knows by a short name, or that this service has met."""

    reference: str
    title: str
    in_catalogue: bool
    fingerprint: str | None = None
    quantisation: str | None = None
    tuning: str | None = None
    licence: str | None = None
    download_mb: int | None = None
    card: dict[str, Any] | None = Field(default=None, description="what loading it showed; null before the first time")
    last_used: datetime | None = None


class TaskView(View):
    name: str
    summary: str
    example: str
    corruptions: list[str]
    roles: list[str]


class MethodView(BaseModel):
    """parameters: JSON schema of what a spec may say under `method`, or for a map under `map`."""

    name: str
    summary: str
    parameters: Mapping[str, Any]


class ModelsView(BaseModel):
    items: list[ModelView]


class TasksView(BaseModel):
    items: list[TaskView]


class MethodsView(BaseModel):
    """items: of searches; maps: of patch jobs."""

    items: list[MethodView]
    maps: list[MethodView]


class Health(BaseModel):
    """parts: what each of them says; `ok`, or what is wrong."""

    status: str
    version: str
    parts: dict[str, str] = {}
