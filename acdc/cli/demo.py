"""`acdc demo`: the main job, from an empty database to a circuit that can be asked things, over HTTP all the way."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acdc.cli.console import Json, answer, remark, write_file
from acdc.cli.processes import sigterm_as_interrupt, spawn, stop
from acdc.errors import NotFound, ServiceError, SpecError

if TYPE_CHECKING:
    from acdc.circuit import Circuit
    from acdc.client import Client, Event, Job
    from acdc.report import Point, Report

# Fewer prompts, steps, sizes and random circuits than the defaults, so that two cores are done in minutes.
SPEC: dict[str, Any] = {
    "name": "demo",
    "model": "smollm2-135m-instruct-q4",
    "task": {"name": "ioi", "corruption": "s2_io_flip", "prompts": 32, "held_out": 32},
    "method": {"name": "eap-ig-inputs", "steps": 5, "objective": ["logit_diff", "kl_divergence"]},
    "evaluation": {"grid": [0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 1.0], "band_circuits": 2},
}
SMALLER = (
    "the demo uses 32 + 32 prompts, 5 steps and 7 sizes; the defaults are 128 + 64, 10 and 10, and give steadier "
    "figures"
)
PROMPT = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
OUT = Path("build")
_STOP_S = 20.0


class Clock:
    """Seconds of each phase, from the events of a job."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._phase, self._since = "waiting", time.monotonic()

    def begin(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[self._phase] = round(self.seconds.get(self._phase, 0.0) + now - self._since, 3)
        self._phase, self._since = phase, now

    def hear(self, event: Event) -> None:
        phase = str(event.data.get("phase", "")) if event.kind == "progress" else ""
        if phase and phase != self._phase:
            self.begin(phase)


def demo(
    out: Annotated[Path, typer.Option("--out", help="for demo.json, the pictures and the demo's own data")] = OUT,
    as_json: Json = False,
) -> None:
    """Find a circuit of a small real model, from an empty database, over HTTP, in a few minutes."""
    with sigterm_as_interrupt():
        data_dir = _empty(out / "demo-data")
        remark(f"the service's data and log are in {data_dir}; {SMALLER}")
        clock = Clock()
        with _service(data_dir) as url:
            from acdc.client import Client

            with Client(url) as client:
                job, circuit, tried = _main_job(client, clock, _again(out))
                pictures = _pictures(client, job.circuit_ids[0], out / "demo")
        facts = _facts(job, circuit, pictures[0], clock)
        file = write_file(out / "demo.json", json.dumps(facts, indent=2, allow_nan=False) + "\n")
    answer(facts, lambda: _shown(job, circuit, tried, [*map(str, pictures), str(file)], data_dir))


def _again(out: Path) -> str:
    """The command as it was typed."""
    return shlex.join(["acdc", "demo", *([] if out == OUT else ["--out", str(out)])])


def _empty(directory: Path) -> Path:
    """An empty directory; only one that a demo made and that no service runs on is emptied. Raises SpecError for any
    other."""
    from acdc.cli.data_dir import is_served

    marker = directory / ".acdc-demo"
    try:
        if directory.exists() and any(directory.iterdir()):
            if not marker.exists():
                raise SpecError(f"{directory} holds something that no demo put there; name another place with --out")
            if is_served(directory):
                raise SpecError(
                    f"a running service has its data in {directory}, which a new demo empties: stop that `acdc serve` "
                    "or `acdc demo` first (Ctrl-C where it runs), or name another place with --out"
                )
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise SpecError(f"{directory}: cannot be used: {error.strerror}; name another place with --out") from None
    return directory


@contextmanager
def _service(data_dir: Path) -> Iterator[str]:
    """A service on a free port, with everything that it started ended at the end."""
    log = data_dir / "serve.log"
    with log.open("wb") as stream:
        command = ["acdc.cli", "serve", "--port", "0", "--data-dir", str(data_dir), "--json"]
        process = spawn(command, stdout=subprocess.PIPE, stderr=stream)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # it says where it serves, or ends
            if not line:
                raise ServiceError(
                    f"the service did not start; {log} says why:\n{log.read_text(errors='replace')[-1000:]}"
                )
            yield str(json.loads(line)["url"])
        finally:
            stop([process], _STOP_S)
            process.stdout and process.stdout.close()


def _main_job(client: Client, clock: Clock, again: str) -> tuple[Job, Circuit, Job | None]:
    """Search and evaluate, then try one prompt. again: the command that starts over."""
    from acdc.cli.following import follow

    job = client.submit(SPEC)
    remark(f"submitted {job.id} to {client.url}")
    job = follow(client, job, on_event=clock.hear, again=again)
    clock.begin("try")
    circuit = client.circuit_file(job.circuit_ids[0])
    tried = follow(client, client.try_prompt(job.circuit_ids[0], PROMPT, CORRUPT), again=again)
    clock.begin("end")
    return job, circuit, tried


def _pictures(client: Client, circuit_id: str, directory: Path) -> list[Path]:
    paths = [write_file(directory / "circuit.svg", client.graph_svg(circuit_id))]
    with contextlib.suppress(NotFound):  # a circuit without an evaluation has no curve
        paths.append(write_file(directory / "curve.svg", client.curve_svg(circuit_id)))
    return paths


def _facts(job: Job, circuit: Circuit, svg: Path, clock: Clock) -> dict[str, Any]:
    """What build/demo.json holds. Figures are of held-out prompts."""
    from acdc.cli.summary import mean, random_at_k_star

    report = circuit.report
    assert report is not None, "a discover job evaluates what it finds"
    assert report.k_star is not None, "every evaluation of a ranking looks for k*"
    point, band = report.k_star.point, random_at_k_star(report)
    areas = next((a for a in report.areas if (a.split, a.rule) == ("held_out", point.rule)), None)
    return {
        "job_id": job.id,
        "circuit_id": job.circuit_ids[0],
        "edges_total": circuit.graph.n_edges,
        "edges_connected": point.connected,
        "faithfulness": point.f,
        "faithfulness_absolute": _absolute(report, point),
        "kl_share": point.kl_share,
        "cpr": areas and areas.cpr,
        "cmd": areas and areas.cmd,
        "random_faithfulness": band and mean(band.f),
        "random_kl_share": band and mean(band.kl_share),
        "clean_accuracy": report.behaviour.accuracy_clean,
        "parity": circuit.provenance.model.parity,
        "seconds": clock.seconds,
        "svg": str(svg),
    }


def _absolute(report: Report, k_star: Point) -> float | None:
    """Held-out f of the selection by |score| that is nearest to k* in edges asked for."""
    points = [p for p in (*report.points, k_star) if (p.split, p.rule) == ("held_out", "absolute")]
    nearest = min(points, key=lambda p: abs(p.asked_for - k_star.asked_for), default=None)
    return nearest.f if nearest else None


def _shown(job: Job, circuit: Circuit, tried: Job | None, files: list[str], data_dir: Path) -> Iterator[Any]:
    from acdc.cli.summary import summarise
    from acdc.cli.tables import tables

    yield from summarise(circuit, files, title=job.circuit_ids[0])
    for result in tried.results if tried else ():
        yield from tables(result.data)
    yield SMALLER
    serve, *others = _ways_on(job.circuit_ids[0], data_dir)
    yield "go on with the same data, and with the explorer in a browser:"
    yield from (f"  {shlex.join(words)}" for words in (*_activation(), serve))
    yield "and, from a second terminal:"
    yield from (f"  {shlex.join(words)}" for words in (*_activation(), *others))


def _activation() -> list[list[str]]:
    """What a shell needs before it knows `acdc`: nothing, or this virtual environment, as after `make demo`."""
    script = Path(os.path.relpath(sys.prefix)) / "bin" / "activate"
    return [[".", str(script)]] if shutil.which("acdc") is None and script.exists() else []


def _ways_on(circuit_id: str, data_dir: Path) -> list[list[str]]:
    """Commands that go on from here, the service first."""
    return [
        ["acdc", "serve", "--data-dir", str(data_dir)],
        ["acdc", "circuits", "show", circuit_id, "--edges", "20"],
        ["acdc", "try", circuit_id, PROMPT, "--corrupt", CORRUPT],
        ["acdc", "circuits", "evaluate", circuit_id, "--set", "ablation=zero", "--wait"],
        ["acdc", "circuits", "show", circuit_id, "--card", "card.html"],
        ["acdc", "challenge", circuit_id, "--wait"],
        ["acdc", "plan", "gendered_pronoun"],
    ]
