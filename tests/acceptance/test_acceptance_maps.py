"""A patching map is asked for over HTTP, made, drawn and taken away; killed in the middle it is made once."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from acceptance_kit import Stack, pairs, until

from acdc.client import Job
from acdc.models.cache import ModelCache
from acdc.pipeline import run_on
from acdc.progress import Quiet
from acdc.spec import MAP_SPECS, parse_job, reference_of

N = 12


def patch(model: Path, map: object, **fields: Any) -> dict[str, Any]:
    rows = [{**row, "spans": {"front": [0, 3], "last": [7, 8]}} for row in pairs(N)]
    task = {"name": "custom", "pairs": rows}
    return {"kind": "patch", "model": f"path:{model}", "task": task, "map": map, "tags": ["maps"], **fields}


@pytest.fixture(scope="module")
def spec(model: Path) -> dict[str, Any]:
    return patch(model, {"state": "residual_before", "direction": "denoising"}, name="denoised")


@pytest.fixture(scope="module")
def made(stack: Stack, spec: dict[str, Any]) -> Job:
    return stack.succeeded(stack.client.submit(spec))


def test_map_goes_from_http_to_heat_map_and_csv(stack: Stack, made: Job) -> None:
    [map_id] = made.map_ids
    info = stack.client.map(map_id)
    assert (info.kind, info.axes, info.n_cells, info.name) == ("activation_patching", ("layer", "place"), 6, "denoised")
    assert map_id in [one.id for one in stack.client.maps(tag="maps", kind="activation_patching")]
    assert made.raw["method"] == "activations"
    found = stack.client.map_file(map_id)
    # Before the first layer the runs differ in the last letter alone, so its clean state is the clean run.
    values = stack.client.map_values(map_id, layer="0", place="last")
    assert values["normalised"][0][0][0] == pytest.approx(1, abs=1e-4)
    assert values["effect"][0][0][0] == found.effect[0, 0, 2]
    assert stack.client.map_values(map_id, layer="0", place="front")["effect"] == [[[0]]]
    picture = ElementTree.fromstring(stack.client.heatmap_svg(map_id))
    titles = [element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert sum(title.startswith(("layer ", "place ")) for title in titles) == 6
    rows = list(csv.DictReader(io.StringIO(stack.client.export_map(map_id, "csv").decode())))
    assert [float(row["effect"]) for row in rows] == found.effect.ravel().tolist()


def test_maps_that_can_be_asked_for_are_published_with_their_fields(stack: Stack) -> None:
    kinds = {kind["name"]: kind["parameters"]["properties"] for kind in stack.client.map_kinds()}
    assert set(kinds) == set(MAP_SPECS)
    assert "between" in kinds["paths"]
    said = stack.ask("methods").output
    assert all(name in said for name in kinds)


def test_stored_map_is_the_one_that_this_process_makes(stack: Stack, made: Job, tmp_path: Path) -> None:
    spec = parse_job(made.raw["spec"])
    assert spec.kind == "patch"
    [result] = run_on(ModelCache(tmp_path).load(reference_of(spec.model)), spec, Quiet())
    assert result.patch_map is not None
    found = stack.client.map_file(made.map_ids[0])
    assert np.allclose(found.effect, result.patch_map.effect, atol=1e-5)
    assert found.provenance is not None
    assert found.provenance.model.parity is not None


def test_killed_engine_is_replaced_and_the_job_leaves_one_map(stack: Stack, model: Path) -> None:
    job = stack.client.submit(patch(model, {"name": "causes", "samples": 60}))

    def is_tracing() -> bool:
        progress = stack.row(job.id).progress or {}
        return progress.get("phase") == "causal tracing" and progress.get("done", 0) > 0

    until("the middle of the map", is_tracing)
    stack.kill("workers.child")
    ended = stack.succeeded(job)
    states = [event.data["state"] for event in stack.client.events(job.id) if event.kind == "state"]
    assert states == ["queued", "running", "queued", "running", "succeeded"]
    assert stack.row(job.id).attempt == 2
    assert [one.id for one in stack.client.maps(job=job.id)] == list(ended.map_ids)
    assert len(ended.map_ids) == 1


def test_cells_that_the_model_has_not_end_as_an_invalid_task(stack: Stack, model: Path) -> None:
    said = stack.failed(stack.client.submit(patch(model, {"name": "paths", "senders": ["9.9", "0.1"]})))
    assert said.startswith("invalid_task")
    assert "9.9" in said
    assert "0.1:" not in said


def test_command_line_makes_lists_shows_and_exports_maps(stack: Stack, model: Path, made: Job, tmp_path: Path) -> None:
    [map_id] = made.map_ids
    assert map_id in [row["id"] for row in stack.ask_json("maps", "list", "--tag", "maps")]
    said = stack.ask("maps", "show", map_id).output
    for word in (map_id, "activation patching", "direction denoising", "95 % interval", "normalised", "heatmap.svg"):
        assert word in said
    picture, cells = tmp_path / "map.svg", tmp_path / "map.csv"
    stack.ask("maps", "export", map_id, "--svg", "--out", str(picture))
    stack.ask("maps", "export", map_id, "--csv", "--out", str(cells))
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    assert cells.read_text() == stack.client.map_file(map_id).to_csv()
    file = tmp_path / "spec.json"
    file.write_text(parse_job(patch(model, "knockout")).canonical_json)
    submitted = stack.ask_json("submit", str(file), "--wait")
    [summary] = submitted["maps"].values()
    assert summary["kind"] == "attention_knockout"
    assert [axis["labels"] for axis in summary["axes"]][-1] == ["end -> front", "end -> last"]
    process = stack.command("run", str(file), "--map", "activations", "--out", str(tmp_path / "out"))
    assert process.wait(120) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"map.map.safetensors", "map.svg", "map.csv", "spec.json"} <= names
