"""Jobs over HTTP: submit, list, read, cancel, retry, logs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from acdc.api.admission import admitted
from acdc.api.bodies import RequestBody
from acdc.api.services import USER, Cursor, Deps, JobId, Services
from acdc.api.views import JobSummary, JobView, LogPage, LogView, PageView, job_summary, job_view
from acdc.store import MAX_LIMIT, JobFilter, State, Submitted

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="with the same key and body, within 24 h, the first job is answered again",
    ),
]


class JobQuery(BaseModel):
    """Filters of a job list; what is left out does not restrict. tag: all of them must be there."""

    model_config = ConfigDict(extra="forbid")

    kind: str | None = None
    state: list[State] = []
    tag: list[str] = []
    cursor: Cursor = None
    limit: int = Field(default=50, ge=1, le=200)


def submit(services: Services, response: Response, data: object, key: str | None = None) -> JobView:
    """Queue what `data` asks for, and say where it can be followed. The one way in for every route that makes a job."""
    spec, _ = admitted(services, data)
    submitted = services.store.jobs.submit(spec, user=USER, idempotency_key=key)
    return _accepted(submitted, response)


def _accepted(submitted: Submitted, response: Response) -> JobView:
    job = job_view(submitted.job)
    response.status_code = 202
    response.headers["Location"] = job.links["self"]
    if submitted.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return job


@router.post("", status_code=202, summary="Submit a job")
def post_job(services: Deps, body: RequestBody, response: Response, idempotency_key: IdempotencyKey = None) -> JobView:
    """The body is a job spec: `discover`, `evaluate`, `patch` or `try`. Every fault in it is reported at once."""
    return submit(services, response, body.json(), idempotency_key)


@router.get("", summary="List jobs")
def list_jobs(services: Deps, query: Annotated[JobQuery, Query()]) -> PageView[JobSummary]:
    """Newest first. A job that was there before page one appears exactly once."""
    wanted = JobFilter(kind=query.kind, states=tuple(query.state), tags=tuple(query.tag))
    page = services.store.jobs.list(wanted, cursor=query.cursor, limit=query.limit)
    return PageView(items=[job_summary(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/{job_id}", summary="Read a job")
def get_job(services: Deps, job_id: JobId) -> JobView:
    """Its state, progress, results and error."""
    return _shown(services, job_id)


@router.get("/{job_id}/logs", summary="Read a job's log")
def get_logs(
    services: Deps,
    job_id: JobId,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
) -> LogPage:
    """Lines numbered above `after`, in order."""
    lines = services.store.jobs.logs(job_id, after=after, limit=limit)
    return LogPage(
        items=[LogView.model_validate(line) for line in lines], next_after=lines[-1].number if lines else after
    )


_CANCEL: dict[int | str, dict[str, Any]] = {409: {"description": "it has ended in another way"}}


@router.post("/{job_id}/cancel", status_code=202, summary="Cancel a job", responses=_CANCEL)
def cancel_job(services: Deps, job_id: JobId) -> JobView:
    """Ask for its end: at once while it is queued, at the search's next step while it runs. Twice is no fault."""
    services.store.jobs.cancel(job_id)
    return _shown(services, job_id)


@router.post("/{job_id}/retry", status_code=202, summary="Run a failed or cancelled job again")
def retry_job(services: Deps, job_id: JobId, response: Response, idempotency_key: IdempotencyKey = None) -> JobView:
    """A new job with the same spec; `retry_of` names the old one."""
    old = services.store.jobs.get(job_id)
    admitted(services, dict(old.spec))  # the limits may have changed since
    return _accepted(services.store.jobs.retry(job_id, user=USER, idempotency_key=idempotency_key), response)


def _shown(services: Services, job_id: str) -> JobView:
    row = services.store.jobs.get(job_id)
    return job_view(row, services.store.jobs.results(job_id) if row.state == State.SUCCEEDED else ())
