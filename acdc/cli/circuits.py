"""`acdc circuits …` and `acdc try`: stored circuits, and what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from acdc.cli.console import Json, answer, connect, moment, number, read_file, remark, table, write_file
from acdc.cli.jobs import Limit, Wait, in_all, report_job
from acdc.cli.spec_source import Model, Name, Sets, Tags, overlay
from acdc.suggestions import did_you_mean

if TYPE_CHECKING:
    from acdc.client import CircuitInfo, Client, EvaluationInfo

app = typer.Typer(no_args_is_help=True, help="List, show, evaluate, import, export and delete circuits.")

_LISTED = 10  # later evaluations that `show` tells of, the newest

CircuitId = Annotated[str, typer.Argument(metavar="CIRCUIT")]
Names = Annotated[list[str] | None, typer.Option("--node", help="has this node, like 9.9 or mlp0; may be repeated")]
Edges = Annotated[
    list[str] | None, typer.Option("--edge", help="has this edge, like 5.5->9.6.q or 5.5->9.6.q@S2; may be repeated")
]


class Format(StrEnum):
    """safetensors is everything to the bit; neuronpedia is for that viewer."""

    SAFETENSORS = "safetensors"
    JSON = "json"
    CSV = "csv"
    NEURONPEDIA = "neuronpedia"


@app.command("list")
def list_circuits(
    model: Model = None,
    task: Annotated[str | None, typer.Option("--task")] = None,
    method: Annotated[str | None, typer.Option("--method")] = None,
    metric: Annotated[str | None, typer.Option("--metric")] = None,
    job: Annotated[str | None, typer.Option("--job", help="found by this job")] = None,
    node: Names = None,
    edge: Edges = None,
    tag: Tags = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """Newest first; every filter must hold."""
    filters = {"model": model, "task": task, "method": method, "metric": metric, "job": job}
    with connect() as client:
        found = client.circuits(limit=limit, node=node, edge=edge, tag=tag, **filters)
    columns = ("circuit", "task", "model", "method", "#edges", "#f", "#KL share", "name", "created (UTC)")
    rows = [[c.id, c.task, c.model, c.method, c.n_edges, c.f, c.kl_share, c.name, moment(c.created_at)] for c in found]
    if not found:
        _remark_on_unknown(task=task, method=method, metric=metric)
    answer([dict(circuit.raw) for circuit in found], lambda: table(columns, rows))


def _remark_on_unknown(**filters: str | None) -> None:
    """Else a mistyped name would read as a task on which nothing was found. Not refused: a service may hold circuits of
    tasks that another version knows."""
    from acdc.spec import FOUND_WITH, MetricName
    from acdc.tasks import TASKS

    known: dict[str, Sequence[str]] = {
        "task": [*sorted(TASKS), "custom"],
        "method": FOUND_WITH,
        "metric": get_args(MetricName),
    }
    for kind, name in filters.items():
        if name is not None and name not in known[kind]:
            hint = did_you_mean(name, known[kind])
            remark(f"no circuit found, and there is no {kind} {name!r}; {hint}known: {', '.join(known[kind])}")


@app.command()
def show(
    circuit_id: CircuitId,
    svg: Annotated[Path | None, typer.Option("--svg", help="write the circuit's picture here")] = None,
    curve_svg: Annotated[Path | None, typer.Option("--curve-svg", help="write the curve's picture here")] = None,
    challenge_svg: Annotated[
        Path | None, typer.Option("--challenge-svg", help="write the newest challenge's picture here")
    ] = None,
    card: Annotated[Path | None, typer.Option("--card", help="write its page of text and pictures here")] = None,
    edges: Annotated[int, typer.Option("--edges", min=0, help="list this many edges, the largest |score| first")] = 0,
    as_json: Json = False,
) -> None:
    """The summary of one circuit, with every choice that its numbers depend on; --card and --challenge-svg only write
    their files."""
    from acdc.card import shared_inputs
    from acdc.cli.following import circuit_summary
    from acdc.cli.summary import summary_data
    from acdc.errors import NotFound

    with connect() as client:
        info, challenges = client.circuit(circuit_id), client.challenges(circuit_id)
        if challenge_svg is not None and not challenges:
            raise NotFound(f"circuit {circuit_id} was not challenged yet; `acdc challenge {circuit_id}` does that")
        wanted = (
            (svg, client.graph_svg),
            (curve_svg, client.curve_svg),
            (challenge_svg, client.challenge_svg),
            (card, client.card_page),
        )
        written = [f"wrote {write_file(path, get(circuit_id))}" for path, get in wanted if path is not None]
        listed = client.edges(circuit_id, limit=edges) if edges else []
        grid = table(("#", "edge", "#score"), [[e.rank, f"{e.sender}->{e.receiver}", e.score] for e in listed])
        circuit = client.circuit_file(circuit_id)
        shared = shared_inputs(circuit)
        evaluations = client.evaluations(circuit_id, limit=_LISTED)
        told = [*map(_evaluated, evaluations)]
        told += [f"challenge  {one.challenge.sentence} (job {one.job_id})" for one in challenges[:1]]
        data = {
            **info.raw,
            "summary": summary_data(circuit),
            "evaluations": [{"id": one.id, "job": one.job_id, "created_at": one.created_at} for one in evaluations],
            "challenges": [{"job": one.job_id, "core": one.core, **one.challenge.to_dict()} for one in challenges],
        }
        shown: list[Any] = []
        if card is None and challenge_svg is None:  # the card holds the summary; a challenge has a picture of its own
            shown += [*circuit_summary(client, circuit_id), *told, *([grid] if listed else [])]
            shown += [shared] if listed and shared else []
        answer(data, lambda: [*shown, *written])


def _evaluated(one: EvaluationInfo) -> str:
    """When a circuit was judged again, under what, how it did, and how to see all of it."""
    from acdc.card import conditions_of

    point = one.report.kept_held_out
    f = "" if point is None else f", f {number(point.f)}, KL share {number(point.kl_share)}"
    return (
        f"evaluated  {moment(one.created_at)} UTC ({one.id}){f}; `acdc jobs watch {one.job_id}` shows it\n"
        f"           {conditions_of(one.spec)}"
    )


@app.command()
def evaluate(
    circuit_id: CircuitId,
    set_: Sets = None,
    add: Annotated[list[str] | None, typer.Option("--add", help="an edge (5.5->9.6.q) or node (9.6) to add")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="an edge or node to take out")] = None,
    name: Name = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Evaluate a circuit again: other prompts, metric, ablation or size (--set), edges or nodes added or removed.

    What is not said is as the job that found it had it.
    """
    changes = overlay(({"name": name} if name else {}) | _edit(add or [], remove or []), set_ or ())
    with connect() as client:
        report_job(client, client.evaluate(circuit_id, changes), wait)


def challenge(
    circuit_id: CircuitId, set_: Sets = None, name: Name = None, wait: Wait = False, as_json: Json = False
) -> None:
    """Try to break a circuit: it, and the search that found it, in many settings; what survives becomes a circuit.

    --set vary=ablation,metric, or --set search=false and the like make it smaller. What it will take is told first, and
    without beginning by `acdc --url URL plan` of a spec with kind challenge and circuit CIRCUIT.
    """
    asked = overlay({"name": name} if name else {}, set_ or ())
    with connect() as client:
        remark(f"planned: {in_all(client.plan({**asked, 'kind': 'challenge', 'circuit': circuit_id}))}")
        report_job(client, client.challenge(circuit_id, asked), wait)


def _edit(add: list[str], remove: list[str]) -> dict[str, Any]:
    edit: dict[str, list[str]] = {}
    for verb, names in (("add", add), ("remove", remove)):
        for name in names:
            edit.setdefault(f"{verb}_{'edges' if '->' in name else 'nodes'}", []).append(name)
    return {"edit": edit} if edit else {}


@app.command("import")
def import_circuit(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="an exported .safetensors circuit")] = None,
    node: Annotated[list[str] | None, typer.Option("--node", help="hand-written: a head (9.9) or MLP (mlp0)")] = None,
    edge: Annotated[list[str] | None, typer.Option("--edge", help="hand-written: an edge (embed->mlp0)")] = None,
    model: Model = None,
    name: Name = None,
    tag: Tags = None,
    set_: Sets = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Store a circuit from a file, or judge and store one written by hand as --node and --edge."""
    from acdc.errors import SpecError

    if (file is None) == (not node and not edge):
        raise SpecError("give either FILE, or --node and --edge for a circuit written by hand")
    with connect() as client:
        if file is not None:
            info = _import_file(client, file, name, tag or ())
            answer(dict(info.raw), lambda: f"{info.id}: {info.n_edges:,} edges, {info.task} on {info.model}")
            return
        given = {"nodes": node, "edges": edge, "model": model, "name": name, "tags": tag}
        spec = overlay({key: value for key, value in given.items() if value}, set_ or ())
        job = client.hypothesis(spec)
        if "task" not in spec:
            remark(f"judged on task {job.raw['task']}, the default; --set task=NAME for another")
        report_job(client, job, wait)


def _import_file(client: Client, file: Path, name: str | None, tags: Sequence[str]) -> CircuitInfo:
    """Raises CircuitFileError that says what can be imported."""
    from acdc.errors import CircuitFileError

    try:
        return client.import_file(read_file(file), name=name, tags=tags)
    except CircuitFileError as error:
        raise CircuitFileError(
            f"{file} cannot be imported: {error.message}\nwhat can be: a .safetensors file that `acdc circuits export "
            "CIRCUIT` or `acdc run` wrote; a circuit written by hand, as --node and --edge"
        ) from None


@app.command()
def export(
    circuit_id: CircuitId,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CIRCUIT.FORMAT by default")] = None,
    format: Annotated[Format, typer.Option("--format")] = Format.SAFETENSORS,
    as_json: Json = False,
) -> None:
    """Write a circuit to a file that others can read, or that `import` takes back."""
    with connect() as client:
        data = client.export(circuit_id, format)
    ending = "graph.json" if format is Format.NEURONPEDIA else format
    path = write_file(out or Path(f"{circuit_id}.{ending}"), data)
    answer({"file": str(path), "bytes": len(data)}, lambda: f"wrote {path} ({len(data):,} bytes)")


@app.command()
def delete(
    circuit_id: CircuitId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: Json = False,
) -> None:
    """Delete a circuit with its evaluations."""
    with connect() as client:
        if not yes:
            client.circuit(circuit_id)  # nobody is asked about one that is not there
            typer.confirm(f"delete {circuit_id} and its evaluations?", abort=True, err=True)
        client.delete_circuit(circuit_id)
    answer({"deleted": circuit_id}, lambda: f"deleted {circuit_id}")


def try_prompt(
    circuit_id: CircuitId,
    prompt: Annotated[str, typer.Argument(help="the next token after this text")],
    corrupt: Annotated[str | None, typer.Option("--corrupt", help="as many tokens, for resample ablation")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="how many tokens")] = 10,
    as_json: Json = False,
) -> None:
    """The likeliest next tokens of model, circuit, complement and random circuit, side by side."""
    with connect() as client:
        if corrupt is None:
            _remark_on_ablation(client.circuit(circuit_id))
        report_job(client, client.try_prompt(circuit_id, prompt, corrupt, top=top), wait=True)


def _remark_on_ablation(circuit: CircuitInfo) -> None:
    """Else what a mean makes of the circuit would be taken for the circuit's own fault."""
    if circuit.raw["provenance"]["choices"]["ablation"] == "resample":
        remark(
            "this circuit was found with resample ablation; without --corrupt, cut edges carry a mean instead, under "
            "which it may do nothing"
        )
