"""A patching map is asked for over HTTP, made, drawn and taken away; killed in the middle it is made once."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from acceptance_kit import Stack, pairs
from tiny_files import WORDS
from transformers import MambaConfig, MambaForCausalLM

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


def test_killed_engine_is_replaced_and_the_job_goes_on_to_the_same_map(
    stack: Stack, model: Path, tmp_path: Path
) -> None:
    job = stack.in_the_middle(patch(model, {"name": "causes", "samples": 60}))
    stack.kill("workers.child")
    ended = stack.succeeded(job)
    stack.assert_resumed(job, attempt=2)
    assert [one.id for one in stack.client.maps(job=job.id)] == list(ended.map_ids)
    spec = parse_job(ended.raw["spec"])
    assert spec.kind == "patch"
    [whole] = run_on(ModelCache(tmp_path).load(reference_of(spec.model)), spec, Quiet())
    assert whole.patch_map is not None
    assert np.allclose(stack.client.map_file(ended.map_ids[0]).effect, whole.patch_map.effect, atol=1e-5)


def test_recurrent_model_of_a_directory_goes_the_whole_way(stack: Stack, model: Path, tmp_path: Path) -> None:
    """No description of its family is known here: it is patched between its blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MambaConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, state_size=4, expand=2)
        MambaForCausalLM(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tmp_path)
    job = stack.succeeded(stack.client.submit(patch(tmp_path, {"state": "residual_before", "roles": ["all", "front"]})))
    found = stack.client.map_file(job.map_ids[0])
    assert found.axes[1].labels == ("0", "1")
    assert found.effect.any()
    assert np.allclose(found.cells.per_example[0, :, 0], found.cells.clean, atol=1e-5)  # all of it: the clean run
    assert found.provenance is not None
    assert "from outside" in found.provenance.run.notes[0]
    examples = stack.client.map_values(job.map_ids[0], per_example=True, layer="1", place="all")["examples"]
    assert examples["changed"] == [[[found.cells.per_example[0, 1, 0].tolist()]]]
    assert examples["groups"] == list(found.cells.groups)
    assert "its residual stream can be patched" in stack.failed(stack.client.submit(patch(tmp_path, "paths")))


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
