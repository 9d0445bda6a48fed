"""Waiting for a job of the service: a live bar over its events; Ctrl-C asks the service to cancel it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType

from acdc.cli.console import remark
from acdc.cli.failures import JobFailed
from acdc.cli.live import LiveProgress
from acdc.cli.summary import summarise, summary_data
from acdc.cli.tables import tables
from acdc.client import Client, Event, Job, job_progress
from acdc.errors import AcdcError, Cancelled


def follow(client: Client, job: Job, *, cancels: bool = True, on_event: Callable[[Event], None] | None = None) -> Job:
    """The job when it has succeeded. cancels: whether Ctrl-C cancels the job or only stops watching. on_event: hears
    every event besides the bar.

    Raises JobFailed with the reason, Cancelled.
    """
    try:
        with LiveProgress() as progress:

            def hear(event: Event) -> None:
                _show(progress, event)
                if on_event is not None:
                    on_event(event)

            ended = client.wait(job.id, hear)
    except KeyboardInterrupt:
        if not cancels:
            raise Cancelled(f"stopped watching; {job.id} goes on") from None
        raise Cancelled(_cancel(client, job)) from None
    if ended.state == "failed":
        assert ended.error is not None, "a failed job says why"
        hint = f"\n`acdc jobs logs {job.id}` has more, `acdc jobs retry {job.id}` tries again"
        raise JobFailed(f"{job.id} failed: {ended.error.message} ({ended.error.code}){hint}", ended.error.faults)
    if ended.state == "cancelled":
        raise Cancelled(f"{job.id} was cancelled; `acdc jobs retry {job.id}` starts it again")
    return ended


def _cancel(client: Client, job: Job) -> str:
    """Ctrl-C again, or a service that is gone, must not leave a traceback."""
    try:
        state = client.cancel(job.id).state
    except KeyboardInterrupt:
        return f"{job.id} may still be running: `acdc jobs cancel {job.id}` ends it"
    except AcdcError as error:
        return f"{job.id} could not be cancelled: {error.message}"
    return f"{job.id} is {state}; `acdc jobs retry {job.id}` starts it again"


def _show(progress: LiveProgress, event: Event) -> None:
    if event.kind == "progress":
        at = job_progress(event.data)
        progress.show(at.phase, at.done, at.total, at.note)
    elif event.kind == "state":
        reason = event.data.get("reason")
        progress.say(f"{event.data['state']}" + (f": {reason}" if isinstance(reason, str) else ""))


def results(client: Client, job: Job) -> Iterator[RenderableType]:
    """Every result of a job that succeeded, for people."""
    for result in job.results:
        if result.kind == "circuit" and result.circuit_id:
            yield from circuit_summary(client, result.circuit_id)
        elif result.kind == "evaluation" and result.circuit_id:
            yield f"{result.circuit_id} was evaluated again (result {result.key!r}):"
            yield from evaluation(result.data)
        else:
            yield from tables(result.data)


def evaluation(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield from tables(data)


def results_data(client: Client, job: Job) -> dict[str, Any]:
    """The same for programs: the job as the API says it, and the summary of each circuit."""
    circuits = {id: summary_data(client.circuit_file(id)) for id in job.circuit_ids}
    return {**job.raw, "circuits": circuits}


def circuit_summary(client: Client, circuit_id: str) -> Iterator[RenderableType]:
    pictures = [f"{client.url}/v1/circuits/{circuit_id}/{name}" for name in ("graph.svg", "curve.svg")]
    yield from summarise(client.circuit_file(circuit_id), pictures, title=circuit_id)


def wait_or_tell(client: Client, job: Job, wait: bool) -> Job:
    """With --wait the finished job, else the job as it is, with a word on how to follow it."""
    if wait:
        return follow(client, job)
    remark(f"`acdc jobs watch {job.id}` follows it")
    return job
