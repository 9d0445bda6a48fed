"""What people read about a patching map: what was changed in what, the strongest cells, how sure they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType

from acdc.cli.console import number, table
from acdc.numerals import count
from acdc.patch_map import PatchMap

SHOWN = 10


def summarise_map(made: PatchMap, title: str = "map") -> Iterator[RenderableType]:
    """From top to bottom; the same for `run`, `submit --wait` and `maps show`."""
    cells, origin = made.cells, made.provenance
    of = "" if origin is None else f": {origin.task.name} on {origin.model.title}"
    sizes = " x ".join(f"{len(axis.labels)} {axis.name}" for axis in cells.axes[1:])
    n = int(cells.defined.sum()) * len(cells.metrics)
    yield f"{title}{of}, {cells.kind.replace('_', ' ')}"
    yield f"changed    {_choices(cells.parameters)}; one thing at a time in the {cells.base} run"
    for i, metric in enumerate(cells.metrics):
        total = made.total(metric)
        corrupt = "" if total is None else f", {cells.corrupt[i].mean():.3f} corrupt"
        over = count(len(cells.groups), "prompt")
        yield f"unchanged  {metric} {cells.clean[i].mean():.3f} clean{corrupt}, over {over}"
        if total is not None:
            interval = _interval(made, total.low, total.high)
            yield f"total      {total.effect:.3f}, 95 % interval {interval}"
        if withheld := made.normalised(metric).withheld:
            yield f"           not normalised: {withheld}"
    yield f"cells      {n:,} ({sizes}); {_how_sure(made)}"
    yield strongest_table(made)


def _how_sure(made: PatchMap) -> str:
    n_clear = int(made.clear.sum())
    return made.too_few or f"{n_clear:,} of them have a 95 % interval without 0, and 5 % of all would by chance"


def strongest_table(made: PatchMap, n: int = SHOWN) -> RenderableType:
    """The cells with the largest |effect|, with their intervals, and as shares of the way to the other run."""
    names = [axis.name for axis in made.axes]
    columns = (*names[1:], "#effect", "95 % interval", "#normalised")
    rows = [
        [
            *(row[name] for name in names[1:]),
            row["effect"],
            _interval(made, row["low"], row["high"]),
            row["normalised"],
        ]
        for row in made.strongest(n)
    ]
    return table(columns, rows, title="the strongest")


def _interval(made: PatchMap, low: object, high: object) -> str:
    return f"{number(low)} to {number(high)}" if made.n_units > 1 else f"unknown of one {made.unit}"


def map_data(made: PatchMap) -> dict[str, Any]:
    """The summary for programs."""
    cells = made.cells
    return {
        "kind": cells.kind,
        "base": cells.base,
        "axes": [asdict(axis) for axis in cells.axes],
        "parameters": dict(cells.parameters),
        "n_cells": int(cells.defined.sum()) * len(cells.metrics),
        "n_clear": int(made.clear.sum()),
        "too_few": made.too_few,
        "total": {metric: total and asdict(total) for metric in cells.metrics for total in [made.total(metric)]},
        "strongest": made.strongest(SHOWN),
    }


def _choices(parameters: Mapping[str, Any]) -> str:
    """Lists of nodes are too long for a line, and on the axes anyway."""
    said = {key: value for key, value in parameters.items() if value is not None and not isinstance(value, list | dict)}
    return ", ".join(f"{key} {value}" for key, value in said.items())
