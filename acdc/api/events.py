"""A job's events, as a page of JSON or as a live stream (server-sent events).

The stream reads the events table and nothing else: its ids are the events' numbers, so a client that comes back with
`Last-Event-ID` gets what follows, whichever process answers it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from acdc.api.services import Deps, JobId, Services
from acdc.api.views import EventPage, EventView
from acdc.errors import DatabaseError
from acdc.store import EventRow, State

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
_LOG = logging.getLogger(__name__)

LOOK_S = 0.25  # between two looks at the table
PING_S = 15.0  # a comment this often keeps proxies from closing a quiet stream
RETRY_MS = 1000  # what a client waits before it comes back
_BATCH = 500

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": EventPage,
        "content": {
            "text/event-stream": {"schema": {"type": "string"}, "example": "id: 3\nevent: progress\ndata: {}\n\n"}
        },
    }
}


@router.get("/{job_id}/events", summary="Follow a job", responses=_RESPONSES, response_class=Response)
async def get_events(
    services: Deps,
    job_id: JobId,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=2**53)] = None,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=_BATCH)] = _BATCH,
) -> Response:
    """With `Accept: text/event-stream` a live stream that closes after the last event; else one page.

    Both begin after event number `after`, or after `Last-Event-ID` where a client sends that.
    """
    start = after if last_event_id is None else last_event_id
    first = await run_in_threadpool(services.store.jobs.events, job_id, after=start, limit=limit)
    if "text/event-stream" in accept:
        stream = _stream(services, job_id, start, ended=await _is_over(services, job_id, start))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
    page = EventPage(
        items=[EventView.model_validate(event) for event in first],
        next_after=first[-1].number if first else start,
        ended=any(map(_is_last, first)) or (not first and await _is_over(services, job_id, start)),
    )
    return JSONResponse(page.model_dump(mode="json"))


async def _is_over(services: Services, job_id: str, after: int) -> bool:
    """Whether the job has ended and its last event is not above `after`: the client has seen the end already."""
    job = await run_in_threadpool(services.store.jobs.get, job_id)
    return job.state.is_terminal and job.last_event <= after


async def _stream(services: Services, job_id: str, after: int, *, ended: bool) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MS}\n\n"
    said = time.monotonic()
    while not ended and not services.closing.is_set():
        events = await _look(services, job_id, after)
        for event in events:
            yield _encode(event)
            after, ended, said = event.number, _is_last(event), time.monotonic()
        if not events:
            if time.monotonic() - said >= PING_S:
                yield ": ping\n\n"
                said = time.monotonic()
            await anyio.sleep(LOOK_S)


async def _look(services: Services, job_id: str, after: int) -> tuple[EventRow, ...]:
    """A database that is away for a while only delays the stream."""
    try:
        return await run_in_threadpool(services.store.jobs.events, job_id, after=after, limit=_BATCH)
    except DatabaseError as error:
        _LOG.warning("events of %s are delayed: %s", job_id, error.message)
        return ()


def _is_last(event: EventRow) -> bool:
    return event.kind == "state" and State(event.data["state"]).is_terminal


def _encode(event: EventRow) -> str:
    data = EventView.model_validate(event).model_dump_json()  # one line: JSON escapes line breaks
    return f"id: {event.number}\nevent: {event.kind}\ndata: {data}\n\n"
