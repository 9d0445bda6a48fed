"""Waiting for a job of the service: a live bar over its events; Ctrl-C asks the service to cancel it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import RenderableType

from acdc.cli.console import remark
from acdc.cli.failures import JobFailed
from acdc.cli.live import LiveProgress
from acdc.cli.map_summary import map_data, summarise_map
from acdc.cli.summary import summarise, summarise_evaluation, summary_data
from acdc.cli.tables import tables
from acdc.client import Client, EvaluationInfo, Event, Job, job_progress
from acdc.errors import AcdcError, Cancelled


def follow(
    client: Client,
    job: Job,
    *,
    cancels: bool = True,
    on_event: Callable[[Event], None] | None = None,
    again: str = "",
) -> Job:
    """The job when it has succeeded. cancels: whether Ctrl-C cancels the job or only stops watching. on_event: hears
    every event besides the bar. again: the command that tries again, where the service ends with this one; by default
    the service is asked to.

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
        raise Cancelled(_cancel(client, job, again)) from None
    if ended.state == "failed":
        assert ended.error is not None, "a failed job says why"
        has_more = not again and bool(client.logs(job.id))
        more = f"`acdc jobs logs {job.id}` has more, " if has_more else ""
        ways_on = f"{more}`{again or _retry(job)}` runs the same job again"
        said = f"{job.id} failed: {ended.error.message} ({ended.error.code})"
        raise JobFailed(said, ended.error.faults, ways_on)
    if ended.state == "cancelled":
        raise Cancelled(f"{job.id} was cancelled; `{again or _retry(job)}` starts again")
    return ended


def _retry(job: Job) -> str:
    return f"acdc jobs retry {job.id}"


def _cancel(client: Client, job: Job, again: str) -> str:
    """Ctrl-C again, or a service that is gone, must not leave a traceback."""
    try:
        state = client.cancel(job.id).state
    except KeyboardInterrupt:
        return f"{job.id} may still be running: `acdc jobs cancel {job.id}` ends it"
    except AcdcError as error:
        return f"{job.id} could not be cancelled: {error.message}"
    return f"{job.id} is {state}; `{again or _retry(job)}` starts again"


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
        elif result.map_id:
            yield from map_summary(client, result.map_id)
        elif result.kind == "evaluation" and result.circuit_id:
            yield from _evaluated(client, job, result.circuit_id)
        else:
            yield from tables(result.data)


def _evaluated(client: Client, job: Job, circuit_id: str) -> Iterator[RenderableType]:
    circuit = client.circuit_file(circuit_id)
    for evaluation in _evaluations(client, job, circuit_id):
        yield from summarise_evaluation(circuit, evaluation.report, evaluation.spec, circuit_id)


def _evaluations(client: Client, job: Job, circuit_id: str) -> list[EvaluationInfo]:
    """Of a circuit, by this job; it may have been judged often since."""
    return [one for one in client.evaluations(circuit_id, limit=1000) if one.job_id == job.id]


def results_data(client: Client, job: Job) -> dict[str, Any]:
    """The same for programs: the job as the API says it, the summary of each circuit, and reports on stored ones."""
    judged = [result.circuit_id for result in job.results if result.kind == "evaluation" and result.circuit_id]
    reports = {id: evaluation.report.to_dict() for id in judged for evaluation in _evaluations(client, job, id)}
    found = [id for id in job.circuit_ids if id not in judged]
    return {
        **job.raw,
        "circuits": {id: summary_data(client.circuit_file(id)) for id in found},
        "evaluations": reports,
        "maps": {id: map_data(client.map_file(id)) for id in job.map_ids},
    }


def circuit_summary(client: Client, circuit_id: str) -> Iterator[RenderableType]:
    pictures = [f"{client.url}/v1/circuits/{circuit_id}/{name}" for name in ("graph.svg", "curve.svg")]
    yield from summarise(client.circuit_file(circuit_id), pictures, title=circuit_id)


def map_summary(client: Client, map_id: str) -> Iterator[RenderableType]:
    yield from summarise_map(client.map_file(map_id), title=map_id)
    yield f"picture    {client.url}/v1/maps/{map_id}/heatmap.svg"


def wait_or_tell(client: Client, job: Job, wait: bool) -> Job:
    """With --wait the finished job, else the job as it is, with a word on how to follow it."""
    if wait:
        return follow(client, job)
    remark(f"`acdc jobs watch {job.id}` follows it")
    return job
