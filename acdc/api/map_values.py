"""The numbers of a stored map: all of them, or slices by axis, with the names of what stands where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from acdc.errors import Fault, SpecError
from acdc.patch_map import FORMAT, PatchMap

Slices = Mapping[str, Sequence[str]]
EVERYTHING: Slices = {}
MOST_NUMBERS = 1_000_000  # in one answer about single prompts: some 20 MB of JSON


def values(found: PatchMap, slices: Slices = EVERYTHING, *, per_example: bool = False) -> dict[str, Any]:
    """Axes and nested lists in their order; null where there is no such cell, or normalising is withheld.

    slices: by axis, the labels wanted, in that order. per_example: with the metric of every prompt. Raises SpecError
    with every axis and label that the map has not, and where that is too much for one answer.
    """
    chosen = _chosen(found, slices)
    axes = [
        {"name": axis.name, "labels": [axis.labels[i] for i in places]}
        for axis, places in zip(found.axes, chosen, strict=True)
    ]
    grid = np.ix_(*chosen)
    defined = np.broadcast_to(found.cells.defined, found.shape)[grid]
    arrays = {"effect": found.effect, "low": found.low, "high": found.high}
    left = {name: getattr(found, name) for name in ("remaining", "remaining_low", "remaining_high")}
    shares = [found.normalised(metric) for metric in found.cells.metrics]
    totals = {metric: found.total(metric) for metric in found.cells.metrics}
    for name, field in (("normalised", "effect"), ("normalised_low", "low"), ("normalised_high", "high")):
        parts = [getattr(share, field) for share in shares]
        whole = [np.full(found.shape[1:], np.nan) if part is None else part for part in parts]
        arrays[name] = np.stack(whole)
    has_other_run = np.bool_(found.cells.has_other_run)
    return {
        "axes": axes,
        **{name: _nested(array[grid], defined) for name, array in arrays.items()},
        **{name: _nested(array[grid], defined & has_other_run) for name, array in left.items()},
        "total": {metric: total and asdict(total) for metric, total in totals.items()},
        "denominator": {metric: share.denominator for metric, share in zip(found.cells.metrics, shares, strict=True)},
        "withheld": {
            metric: share.withheld for metric, share in zip(found.cells.metrics, shares, strict=True) if share.withheld
        },
        "unit": found.unit,
        "n_units": found.n_units,
        **({"examples": _examples(found, chosen, defined)} if per_example else {}),
    }


def _examples(found: PatchMap, chosen: list[list[int]], defined: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The metric of every prompt, in the unchanged runs and for each cell of the slice."""
    cells, n_prompts = found.cells, len(found.cells.groups)
    if (n := defined.size * n_prompts) > MOST_NUMBERS:
        many = f"{defined.size:,} cells of {n_prompts:,} prompts are {n:,} numbers, and one answer has {MOST_NUMBERS:,}"
        way_out = "ask for fewer places of an axis, or take the whole file (export?format=safetensors)"
        raise SpecError("that part of the map cannot be had", [Fault("per_example", f"{many}: {way_out}")])
    changed = np.empty(defined.shape, dtype=object)
    for cell in np.argwhere(defined):
        at = tuple(places[i] for places, i in zip(chosen, cell, strict=True))
        changed[tuple(cell)] = cells.per_example[at].tolist()
    return {
        "groups": list(cells.groups),
        "clean": cells.clean[chosen[0]].tolist(),
        "corrupt": cells.corrupt[chosen[0]].tolist() if cells.has_other_run else None,
        "changed": changed.tolist(),
    }


def as_json(found: PatchMap, map_id: str) -> bytes:
    """Everything but the metric of every single example."""
    data = {
        "format": FORMAT,
        "id": map_id,
        "kind": found.cells.kind,
        "base": found.cells.base,
        "parameters": found.cells.parameters,
        "facts": found.cells.facts,
        **values(found),
        "provenance": found.provenance and asdict(found.provenance),
    }
    return json.dumps(data, allow_nan=False).encode()


def as_csv(found: PatchMap, _: str) -> bytes:
    """A row for every cell."""
    return found.to_csv().encode()


def _chosen(found: PatchMap, slices: Slices) -> list[list[int]]:
    faults = []
    names = [axis.name for axis in found.axes]
    for name in slices:
        if name not in names:
            faults.append(Fault(name, f"this map has no such axis; it has: {', '.join(names)}"))
    chosen = []
    for axis in found.axes:
        wanted = slices.get(axis.name) or axis.labels
        place = {label: i for i, label in enumerate(axis.labels)}
        if unknown := [label for label in wanted if label not in place]:
            shown = ", ".join(axis.labels[:40]) + (", …" if len(axis.labels) > 40 else "")
            faults.append(Fault(axis.name, f"nothing there is called {', '.join(unknown)[:200]}; there are: {shown}"))
        chosen.append([place[label] for label in wanted if label in place])
    if faults:
        raise SpecError("that part of the map cannot be had", faults)
    return chosen


def _nested(array: npt.NDArray[np.float64], defined: npt.NDArray[np.bool_]) -> Any:
    cells = array.astype(object)
    cells[~defined | np.isnan(array)] = None
    return cells.tolist()
