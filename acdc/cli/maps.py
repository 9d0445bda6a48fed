"""`acdc maps ...`: stored patching maps."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from acdc.cli.console import Json, answer, connect, moment, table, write_file
from acdc.cli.jobs import Limit
from acdc.cli.spec_source import Model, Tags

app = typer.Typer(no_args_is_help=True, help="List, show and export patching maps.")

MapId = Annotated[str, typer.Argument(metavar="MAP")]


class Kind(StrEnum):
    """`acdc.patch_map.MapKind`, which takes too long to import for a help text."""

    ACTIVATION_PATCHING = "activation_patching"
    PATH_PATCHING = "path_patching"
    CAUSAL_TRACING = "causal_tracing"
    ATTENTION_KNOCKOUT = "attention_knockout"


class Format(StrEnum):
    """safetensors is everything to the bit, the metric of every prompt too."""

    SAFETENSORS = "safetensors"
    JSON = "json"
    CSV = "csv"
    SVG = "svg"


@app.command("list")
def list_maps(
    kind: Annotated[Kind | None, typer.Option("--kind")] = None,
    model: Model = None,
    task: Annotated[str | None, typer.Option("--task")] = None,
    metric: Annotated[str | None, typer.Option("--metric")] = None,
    job: Annotated[str | None, typer.Option("--job", help="made by this job")] = None,
    tag: Tags = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """Newest first; every filter must hold."""
    with connect() as client:
        found = client.maps(limit=limit, kind=kind, model=model, task=task, metric=metric, job=job, tag=tag)
    columns = ("map", "kind", "task", "model", "metric", "#cells", "axes", "name", "created (UTC)")
    rows = [
        [
            m.id,
            m.kind.replace("_", " "),
            m.task,
            m.model,
            m.metric,
            m.n_cells,
            " x ".join(m.axes),
            m.name,
            moment(m.created_at),
        ]
        for m in found
    ]
    answer([dict(one.raw) for one in found], lambda: table(columns, rows))


@app.command()
def show(map_id: MapId, as_json: Json = False) -> None:
    """The strongest cells of one map, and what its numbers depend on."""
    from acdc.cli.following import map_summary

    with connect() as client:
        info = client.map(map_id)
        answer(dict(info.raw), lambda: map_summary(client, map_id))


@app.command()
def export(
    map_id: MapId,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="MAP.FORMAT by default")] = None,
    format: Annotated[Format, typer.Option("--format")] = Format.SAFETENSORS,
    svg: Annotated[bool, typer.Option("--svg", help="the heat map: --format svg")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="a row for every cell: --format csv")] = False,
    as_json: Json = False,
) -> None:
    """Write a map to a file: its numbers, its picture, or everything."""
    from acdc.errors import SpecError

    if svg and csv:
        raise SpecError("one file at a time: give --svg or --csv")
    wanted = Format.SVG if svg else Format.CSV if csv else format
    with connect() as client:
        data = client.heatmap_svg(map_id).encode() if wanted is Format.SVG else client.export_map(map_id, wanted)
    path = write_file(out or Path(f"{map_id}.{wanted}"), data)
    answer({"file": str(path), "bytes": len(data)}, lambda: f"wrote {path} ({len(data):,} bytes)")
