"""`acdc submit`, `acdc plan` and `acdc jobs …`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acdc.circuit import Circuit
from acdc.cli.console import Json, answer, connect, duration, moment, remark, session, table
from acdc.cli.spec_source import CircuitFile, Map, Method, Model, Name, Sets, Source, Tags, read_request, with_source

if TYPE_CHECKING:
    from acdc.spec import PromptsSpec

app = typer.Typer(no_args_is_help=True, help="List, read, cancel, retry and watch jobs.")

JobId = Annotated[str, typer.Argument(metavar="JOB")]
Wait = Annotated[bool, typer.Option("--wait", help="follow the job to its end; Ctrl-C then cancels it")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="how many at most")]


def submit(
    spec: Source,
    wait: Wait = False,
    model: Model = None,
    method: Method = None,
    map_: Map = None,
    name: Name = None,
    tag: Tags = None,
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Send a job to the service."""
    from acdc.spec import parse_job

    request = read_request(spec, sets=set_, model=model, method=method, map_name=map_, name=name, tags=tag)
    if request.get("kind") != "evaluate" or not request.get(
        "circuit"
    ):  # else only what the circuit gives makes it whole
        parse_job(request, is_request=True)
    with connect() as client:
        report_job(client, client.submit(request), wait)


def report_job(client: Any, job: Any, wait: bool) -> None:
    """What every command that makes a job ends with."""
    from acdc.cli.following import results, results_data, wait_or_tell

    job = wait_or_tell(client, job, wait)
    if job.state == "succeeded":
        answer(results_data(client, job), lambda: results(client, job))
    else:
        answer(dict(job.raw), lambda: f"{job.id} is {job.state}")


def plan(
    spec: Source,
    model: Model = None,
    method: Method = None,
    map_: Map = None,
    set_: Sets = None,
    source: CircuitFile = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="load the model and time a few receivers of an acdc search: minutes")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell a job's seconds, memory and disk: on this machine, or with --url on the service's."""
    request = read_request(spec, sets=set_, model=model, method=method, map_name=map_)
    if session().url is None:
        data = _planned_here(request, source, measure)
    else:
        if measure:
            raise typer.BadParameter("measures on this machine: leave --url out", param_hint="--measure")
        if source is not None:
            raise typer.BadParameter("the service knows circuits by their ids: leave it out", param_hint="--source")
        with connect() as client:
            data = client.plan(request)
    answer(data, lambda: _plan(data))


def _planned_here(request: dict[str, Any], source: Path | None, measure: bool) -> dict[str, Any]:
    from acdc.cli.measuring import rehearse, with_measured
    from acdc.errors import SpecError
    from acdc.on_circuits import require_possible
    from acdc.plan import cached_directory, doubts_now, estimate, facts_of, measure_speed
    from acdc.settings import load_settings
    from acdc.spec import EvaluateSpec, OnCircuit, parse_job, reference_of

    spec = parse_job(request if source is None else with_source(request, source), is_request=True)
    if isinstance(spec, OnCircuit | EvaluateSpec) and spec.circuit is not None and source is None:
        raise SpecError(
            f"what that takes depends on circuit {spec.circuit!r}: ask the service that has it, with --url, or give "
            "its file as --source"
        )
    if source is not None:
        require_possible(spec, Circuit.load(source))
    measured = _job_behind(source) if source is not None and isinstance(spec, OnCircuit) else spec
    assert not isinstance(measured, OnCircuit)
    reference = reference_of(measured.model)
    if reference.kind in ("path", "gguf"):
        reference.found_place()  # here; the service's workers may see other files
    settings = load_settings()  # its faults are told before a model is loaded
    doubts = doubts_now()
    rehearsal = rehearse(spec) if measure else None  # first, since it fetches the model
    cached = cached_directory(settings.cache_dir, measured.model)
    made = estimate(spec, facts_of(measured.model, cached), measure_speed(), measured, doubts)
    return (made if rehearsal is None else with_measured(spec, made, rehearsal)).to_dict()


def _job_behind(source: Path) -> PromptsSpec:
    """The job that found the circuit in a file."""
    from acdc.errors import SpecError
    from acdc.spec import OnCircuit, parse_job

    job = parse_job(Circuit.load(source).provenance.job)
    if isinstance(job, OnCircuit):  # in a file that was written by hand
        raise SpecError(f"{source} names no search that found its circuit, so what it takes cannot be told")
    return job


def _plan(data: dict[str, Any]) -> list[Any]:
    phases = [[phase["name"], duration(phase["seconds"]), phase["how"]] for phase in data["phases"]]
    needs = [[name, _megabytes(data[name]["n_bytes"]), data[name]["how"]] for name in ("memory", "disk")]
    return [
        table(("phase", "#time", "reckoned from"), phases),
        table(("need", "#MB", "reckoned from"), needs),
        in_all(data),
        *(f"unknown: {what}" for what in data["unknown"]),
        *(f"in doubt: {what}" for what in data["doubts"]),
    ]


def in_all(data: dict[str, Any]) -> str:
    """What a plan comes to."""
    if data["seconds"] is None:
        return "unknown in all"
    total = f"about {duration(data['seconds'])} in all"
    if data["uncertainty"] is not None:
        total += f", right within a factor of {data['uncertainty']:g} both ways"
    return total


def _megabytes(n_bytes: int | None) -> str | None:
    return None if n_bytes is None else f"{n_bytes / 1e6:,.0f}"


@app.command("list")
def list_jobs(
    state: Annotated[list[str] | None, typer.Option("--state", help="only these; may be repeated")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="discover, evaluate, challenge, patch or try")] = None,
    tag: Tags = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """Newest first."""
    with connect() as client:
        jobs = client.jobs(limit=limit, state=state, kind=kind, tag=tag)
    rows = [
        [
            j.id,
            j.state,
            j.kind,
            *(j.raw.get(key) for key in ("circuit", "task", "method")),
            j.name,
            moment(j.created_at),
        ]
        for j in jobs
    ]
    columns = ("job", "state", "kind", "on circuit", "task", "method", "name", "created (UTC)")
    answer([dict(job.raw) for job in jobs], lambda: table(columns, rows))


@app.command()
def show(job_id: JobId, as_json: Json = False) -> None:
    """One job: its state, progress, spec, results or error."""
    with connect() as client:
        job = client.job(job_id)
    answer(dict(job.raw), lambda: _job(job))


def _job(job: Any) -> list[Any]:
    hidden = {"spec", "results", "progress", "error", "links"}
    parts: list[Any] = [table(("", ""), [[key, value] for key, value in job.raw.items() if key not in hidden])]
    if job.progress is not None and job.state != "succeeded":  # where it stopped; a success is at its end
        parts.append(
            f"progress: {job.progress.phase} {job.progress.done}/{job.progress.total or '?'} {job.progress.note}"
        )
    if job.error is not None:
        parts += [f"error: {job.error.message} ({job.error.code})", *(f"  - {fault}" for fault in job.error.faults)]
    if job.results:
        rows = [[result.key, result.kind, result.circuit_id or result.map_id] for result in job.results]
        parts.append(table(("result", "kind", "id"), rows))
    return parts


@app.command()
def cancel(job_id: JobId, as_json: Json = False) -> None:
    """Ask for a job's end: at once while it is queued, at the next step while it runs."""
    with connect() as client:
        job = client.cancel(job_id)
    answer(dict(job.raw), lambda: f"{job.id} is {job.state}")


@app.command()
def retry(job_id: JobId, wait: Wait = False, as_json: Json = False) -> None:
    """Make a new job with the spec of a failed or cancelled one."""
    with connect() as client:
        job = client.retry(job_id)
        report_job(client, job, wait)


@app.command()
def logs(job_id: JobId, as_json: Json = False) -> None:
    """Everything that a job's log has so far."""
    with connect() as client:
        lines = client.logs(job_id)
    if not lines:
        remark(f"{job_id} has logged nothing; `acdc jobs show {job_id}` tells how it stands")
    answer([{"number": line.number, "line": line.line} for line in lines], lambda: [line.line for line in lines])


@app.command()
def watch(job_id: JobId, as_json: Json = False) -> None:
    """Follow a job to its end. Ctrl-C stops watching; the job goes on."""
    from acdc.cli.following import follow, results, results_data

    with connect() as client:
        job = follow(client, client.job(job_id), cancels=False)
        answer(results_data(client, job), lambda: results(client, job))
