"""`acdc run`: a search without a service. The engine works in a child, `python -m workers.local`, whose file says what
it prints; this process never loads torch."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from acdc.circuit import Circuit
from acdc.cli.console import Json, answer, write_file
from acdc.cli.failures import JobFailed
from acdc.cli.live import LiveProgress
from acdc.cli.processes import json_lines, sigterm_as_interrupt, spawn
from acdc.cli.spec_source import CircuitFile, Map, Method, Model, Name, Sets, Source, Tags, read_request, with_source
from acdc.cli.summary import summarise, summary_data
from acdc.errors import AcdcError, Cancelled, SpecError

if TYPE_CHECKING:
    from acdc.spec import JobSpec

OUT = Path("acdc-out")


@dataclass
class Outcome:
    """What a local run said. results: its `result` events. is_stopped: whether it was asked to stop."""

    results: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    state: str = "failed"
    has_started: bool = False
    is_stopped: bool = False


def run(
    spec: Source,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="directory for results and pictures; by default one of the spec's own in acdc-out"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint of the same spec")] = False,
    source: CircuitFile = None,
    model: Model = None,
    method: Method = None,
    map_: Map = None,
    name: Name = None,
    tag: Tags = None,
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Search a circuit or make a map here and now, without a service. Ctrl-C stops it; --resume goes on."""
    from acdc.on_circuits import require_possible
    from acdc.spec import parse_job

    request = read_request(spec, sets=set_, model=model, method=method, map_name=map_, name=name, tags=tag)
    job = parse_job(request if source is None else with_source(request, source), is_request=True)
    if source is not None:
        require_possible(job, Circuit.load(source))
    place = out or OUT / _called(job)
    if resume and not (place / "spec.json").exists():
        raise SpecError(
            f"there is nothing to resume in {place}: leave out --resume to begin, or name the --out of a job"
        )
    with sigterm_as_interrupt(), tempfile.TemporaryDirectory(prefix="acdc-run-") as scratch:
        file = write_file(Path(scratch) / "spec.json", job.canonical_json)
        outcome = _follow(file, place, resume, source)
    said: dict[str, Sequence[object]] = {"--out": [out], "--source": [source], "--model": [model], "--method": [method]}
    said |= {"--map": [map_], "--name": [name], "--tag": tag or [], "--set": set_ or []}
    _stop_unless_succeeded(outcome, _command(spec, said), place)
    shown = [_finish(result, place, source) for result in outcome.results]
    answer(
        {"state": outcome.state, "out": str(place), "results": [data for data, _ in shown]},
        lambda: (part for _, parts in shown for part in parts),
    )


def _called(job: JobSpec) -> str:
    """The same for the same job, so that it goes on there, and another for any other: nothing is replaced."""
    said = json.loads(job.canonical_json)
    names = [said[part]["name"] for part in ("task", "method", "map") if said.get(part)]
    return "-".join([job.kind, *names, job.sha256[:8]])


def _follow(spec: Path, out: Path, resume: bool, source: Path | None) -> Outcome:
    command = ["workers.local", str(spec), "--out", str(out), *(["--resume"] if resume else [])]
    command += ["--source", str(source)] if source is not None else []
    outcome = Outcome()
    with LiveProgress() as progress, _child(command, outcome) as lines:
        phase, total = "starting", 0
        for event in json_lines(lines):
            match event["event"]:
                case "started":
                    outcome.has_started = True
                case "phase":
                    phase, total = event["name"], event["total"]
                    progress.show(phase, 0, total)
                case "step":
                    progress.show(phase, event["done"], total, event.get("note", ""))
                case "resumed":
                    progress.say(f"resumed from step {event['step']}")
                case "log":
                    progress.say(event["text"])
                case "result":
                    outcome.results.append(event)
                case "error":
                    outcome.error = event
                case "finished":
                    outcome.state = event["state"]
    return outcome


@contextmanager
def _child(command: list[str], outcome: Outcome) -> Iterator[IO[bytes]]:
    """The engine's owner and its lines. Ctrl-C goes to it once, as a request to stop, and its last words are read on;
    a second Ctrl-C kills. It is in a session of its own so that a terminal's Ctrl-C does not reach it twice."""
    process = spawn(command, stdout=subprocess.PIPE)
    assert process.stdout is not None

    def pass_on(*_: object) -> None:
        outcome.is_stopped = True
        if outcome.has_started:
            process.send_signal(signal.SIGINT)
        else:  # it still imports what it needs, and does not count signals yet
            process.kill()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield process.stdout
        process.wait()
    finally:
        process.stdout.close()  # a reader that goes away cancels too
        if process.poll() is None:
            process.terminate()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _command(spec: str, said: dict[str, Sequence[object]]) -> str:
    """As it was typed, to be typed again: without its options it would be another job."""
    options = [word for option, values in said.items() for value in values if value for word in (option, str(value))]
    return shlex.join(["acdc", "run", spec, *options])


def _stop_unless_succeeded(outcome: Outcome, command: str, out: Path) -> None:
    """Raises Cancelled or JobFailed, with the way to go on; what the error is where nothing was started."""
    from acdc.client import error_with_code, faults_of

    if outcome.state == "succeeded":
        return
    again = f"`{command} --resume` goes on where it stopped" if (out / "checkpoint.safetensors").exists() else ""
    error = outcome.error
    if outcome.state == "cancelled" or (error is None and outcome.is_stopped):
        raise Cancelled(f"stopped; {again or 'nothing was saved yet'}")
    if error is None:
        raise AcdcError("the engine's owner ended without a word")
    faults = faults_of(error.get("faults"))
    if not outcome.has_started:
        raise error_with_code(error["code"], error["message"], faults)
    raise JobFailed(f"{error['message']} ({error['code']})", faults, ways_on=again)


def _finish(result: dict[str, Any], out: Path, source: Path | None = None) -> tuple[dict[str, Any], list[Any]]:
    """Draw the pictures of one result; give it for programs and for people. source: the circuit that it is about."""
    data = {key: result[key] for key in ("key", "circuit", "map", "data")}
    if result["map"] is not None:
        return _finish_map(data, Path(result["map"]), out)
    if result["circuit"] is None:
        return _finish_table(data, out, source)
    from acdc.card import card_of, to_page
    from acdc.drawing import draw_circuit, draw_curve

    file = Path(result["circuit"])
    circuit = Circuit.load(file)
    stem = file.name.removesuffix(".circuit.safetensors")
    diagram = draw_circuit(circuit)
    pictures = [write_file(out / f"{stem}.svg", diagram)]
    if circuit.report is not None and circuit.report.points:
        pictures.append(write_file(out / f"{stem}.curve.svg", draw_curve(circuit.report)))
    page = write_file(out / f"{stem}.html", to_page(card_of(circuit), diagram))
    shown = list(summarise(circuit, [str(path) for path in pictures], title=result["key"]))
    shown += [f"card       {page}", f"file       {file}"]
    return {**data, "pictures": [str(path) for path in pictures], "card": str(page), **summary_data(circuit)}, shown


def _finish_table(data: dict[str, Any], out: Path, source: Path | None) -> tuple[dict[str, Any], list[Any]]:
    """Of a challenge the picture too, and the card of the circuit that was challenged with the challenge on it."""
    from acdc.card import card_of, challenged, to_markdown, to_page
    from acdc.challenge import Challenge
    from acdc.cli.tables import tables
    from acdc.drawing import draw_challenge, draw_circuit

    found = json.loads(Path(data["data"]).read_text())
    shown = list(tables(found))
    if source is None or "challenge" not in found:
        return data, shown
    made, circuit = Challenge.from_dict(found["challenge"]), Circuit.load(source)
    card, stem = challenged(card_of(circuit), made), data["key"]
    picture = write_file(out / f"{stem}.svg", draw_challenge(made))
    page = write_file(out / f"{stem}.html", to_page(card, draw_circuit(circuit)))
    text = write_file(out / f"{stem}.md", to_markdown(card))
    shown += [f"picture    {picture}", f"card       {page}", f"           {text}"]
    return {**data, "pictures": [str(picture)], "card": str(page), "markdown": str(text)}, shown


def _finish_map(data: dict[str, Any], file: Path, out: Path) -> tuple[dict[str, Any], list[Any]]:
    from acdc.cli.map_summary import map_data, summarise_map
    from acdc.drawing import draw_map
    from acdc.patch_map import PatchMap

    made = PatchMap.load(file)
    stem = file.name.removesuffix(".map.safetensors")
    picture, cells = write_file(out / f"{stem}.svg", draw_map(made)), write_file(out / f"{stem}.csv", made.to_csv())
    shown = [
        *summarise_map(made, title=data["key"]),
        f"picture    {picture}",
        f"cells      {cells}",
        f"file       {file}",
    ]
    return {**data, "pictures": [str(picture)], "csv": str(cells), **map_data(made)}, shown
