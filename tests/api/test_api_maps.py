"""Patching maps: listed, read as numbers, as a picture, as files; and the jobs that make them."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from api_samples import PAIRS
from fastapi.testclient import TestClient
from store_samples import patch_map

from acdc.api import map_values
from acdc.patch_map import PatchMap
from acdc.spec import parse_job
from acdc.store import Artefacts, NewMap, Store

SPEC = {"kind": "patch", "task": {"name": "custom", "pairs": PAIRS}, "map": "activations", "tags": ["t1"], "name": "m"}
OTHER = {**SPEC, "map": "paths", "tags": []}


def finish(client: TestClient, store: Store, artefacts: Artefacts, made: PatchMap, spec: Any = SPEC) -> str:
    """A job over HTTP that somebody has done; its map's id."""
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    claim = store.claims.claim("worker", "default")
    assert claim is not None
    assert claim.job.id == job_id
    store.claims.succeed(claim, [NewMap("map", made, artefacts.put(made.to_bytes()))])
    [result] = client.get(f"/v1/jobs/{job_id}").json()["results"]
    assert (result["kind"], result["circuit_id"]) == ("map", None)
    return str(result["map_id"])


@pytest.fixture
def made() -> PatchMap:
    return patch_map()


@pytest.fixture
def map_id(client: TestClient, store: Store, artefacts: Artefacts, made: PatchMap) -> str:
    return finish(client, store, artefacts, made)


def test_patch_job_is_taken_and_listed_by_its_kind(client: TestClient) -> None:
    job = client.post("/v1/jobs", json=SPEC).json()
    assert (job["kind"], job["method"], job["task"], job["state"]) == ("patch", "activations", "custom", "queued")
    assert job["spec"]["map"]["direction"] == "denoising"
    assert [one["id"] for one in client.get("/v1/jobs?kind=patch").json()["items"]] == [job["id"]]
    assert client.get("/v1/jobs?kind=discover").json()["items"] == []


def test_all_faults_of_a_map_are_told_at_once(client: TestClient) -> None:
    bad = {**SPEC, "map": {"state": "heads", "direction": "up", "places": "all", "roles": ["IO"]}, "evaluation": {}}
    answer = client.post("/v1/jobs", json=bad)
    assert answer.status_code == 422
    wheres = {error["where"] for error in answer.json()["errors"]}
    assert wheres == {"map.state", "map.direction", "map.roles", "evaluation"}


def test_limit_on_prompts_holds_for_maps_too(connect: Any) -> None:
    answer = connect(max_prompts=20).post("/v1/jobs", json={"kind": "patch", "task": "ioi"})
    assert answer.status_code == 422
    assert "32 prompts" in answer.json()["errors"][0]["message"]


def test_lists_find_a_map_by_what_it_is_of(client: TestClient, store: Store, artefacts: Artefacts, map_id: str) -> None:
    other = finish(client, store, artefacts, patch_map(task="successor", metric="accuracy"), OTHER)

    def found(query: str) -> list[str]:
        return [item["id"] for item in client.get(f"/v1/maps?{query}").json()["items"]]

    assert found("") == [other, map_id]
    assert found("task=successor") == found("metric=accuracy") == [other]
    assert found("tag=t1") == found("task=ioi&kind=activation_patching&model=path:toy") == [map_id]
    assert found("kind=causal_tracing") == []
    first = client.get("/v1/maps?limit=1").json()
    assert found(f"limit=1&cursor={first['next_cursor']}") == [map_id]
    assert client.get("/v1/maps?kind=heat").status_code == 422


def test_map_is_shown_with_its_strongest_cells_and_its_choices(client: TestClient, map_id: str) -> None:
    shown = client.get(f"/v1/maps/{map_id}").json()
    assert (shown["name"], shown["tags"], shown["kind"]) == ("m", ["t1"], "activation_patching")
    assert [axis["name"] for axis in shown["axes"]] == ["layer", "place"]
    assert (shown["strongest"][0]["layer"], shown["strongest"][0]["place"]) == ("1", "S2")
    assert (shown["n_cells"], shown["n_clear"]) == (3, 2)
    assert shown["provenance"]["choices"]["method"] == "activations"
    assert all(client.get(link).status_code == 200 for link in shown["links"].values())


def test_unknown_maps_are_not_found(client: TestClient) -> None:
    for path in ("map_0", "nonsense!", "map_0/values", "map_0/heatmap.svg", "map_0/export"):
        answer = client.get(f"/v1/maps/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_filter_that_nobody_knows_is_answered_with_those_there_are(client: TestClient) -> None:
    answer = client.get("/v1/maps", params={"metrik": "logit_diff"})
    assert answer.status_code == 422
    [fault] = answer.json()["errors"]
    assert fault["where"] == "query.metrik"
    assert fault["message"].startswith("there is no parameter 'metrik' here; did you mean metric? known: job, kind, ")


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_values_are_those_of_the_file_and_empty_where_there_is_no_cell(
    client: TestClient, map_id: str, made: PatchMap
) -> None:
    values = client.get(f"/v1/maps/{map_id}/values").json()
    assert [axis["name"] for axis in values["axes"]] == ["metric", "layer", "place"]
    assert values["effect"][0][0][1] is None
    share = made.normalised("logit_diff")
    assert share.effect is not None
    for name, wanted in (("effect", made.effect[0]), ("low", made.low[0]), ("normalised", share.effect)):
        found = np.array(values[name][0], dtype=float)
        assert np.array_equal(found[made.cells.defined], wanted[made.cells.defined])
    assert values["denominator"] == {"logit_diff": share.denominator}
    assert values["withheld"] == {}


def test_values_tell_the_total_effect_and_what_remains_of_it(client: TestClient, map_id: str, made: PatchMap) -> None:
    values = client.get(f"/v1/maps/{map_id}/values").json()
    total = made.total("logit_diff")
    assert total is not None
    assert values["total"] == {"logit_diff": {"effect": total.effect, "low": total.low, "high": total.high}}
    assert values["remaining"][0] == [[made.remaining[0, 0, 0], None], made.remaining[0, 1].tolist()]
    assert values["remaining_high"][0][1][0] == made.remaining_high[0, 1, 0]


def test_without_a_corrupt_run_there_is_no_total_and_nothing_remains(
    client: TestClient, store: Store, artefacts: Artefacts, made: PatchMap
) -> None:
    cells = replace(made.cells, base="clean", corrupt=made.cells.clean.copy(), has_other_run=False)
    alone = finish(client, store, artefacts, PatchMap.of(cells, seed=0, provenance=made.provenance), OTHER)
    values = client.get(f"/v1/maps/{alone}/values?per_example=true").json()
    assert values["total"] == {"logit_diff": None}
    assert values["examples"]["corrupt"] is None
    assert values["remaining"] == values["remaining_low"] == [[[None, None], [None, None]]]
    assert values["withheld"] == {"logit_diff": "the prompts have no corrupt run to compare with"}
    assert values["effect"][0][1][0] is not None


def test_too_few_prompts_are_told_where_clear_cells_would_be_counted(
    client: TestClient, store: Store, artefacts: Artefacts, made: PatchMap
) -> None:
    cells = made.cells
    few = {name: getattr(cells, name)[..., :4].copy() for name in ("per_example", "clean", "corrupt")}
    made = PatchMap.of(replace(cells, **few, groups=cells.groups[:4]), seed=0, provenance=made.provenance)
    shown = client.get(f"/v1/maps/{finish(client, store, artefacts, made)}").json()
    assert shown["n_clear"] == 0
    assert "fewer than 6 prompts tell no effect from chance, and here are 4" in shown["too_few"]


def test_numbers_of_every_prompt_are_given_with_their_groups_when_asked_for(
    client: TestClient, map_id: str, made: PatchMap
) -> None:
    assert "examples" not in client.get(f"/v1/maps/{map_id}/values").json()
    values = client.get(f"/v1/maps/{map_id}/values?per_example=true&place=end&place=S2").json()
    examples, changed = values["examples"], made.cells.per_example[0]
    assert examples["groups"] == list("abcdefgh")
    assert examples["changed"] == [[[None, changed[0, 0].tolist()], [changed[1, 1].tolist(), changed[1, 0].tolist()]]]
    assert (examples["clean"], examples["corrupt"]) == (made.cells.clean.tolist(), made.cells.corrupt.tolist())
    mean = np.mean(np.subtract(examples["changed"][0][1][1], examples["corrupt"][0]))
    assert mean == pytest.approx(values["effect"][0][1][1])


def test_more_numbers_than_go_into_one_answer_are_refused_with_the_way_out(
    client: TestClient, map_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_values, "MOST_NUMBERS", 16)
    answer = client.get(f"/v1/maps/{map_id}/values?per_example=true")
    assert answer.status_code == 422
    [fault] = answer.json()["errors"]
    assert fault["where"] == "per_example"
    assert "4 cells of 8 prompts are 32 numbers, and one answer has 16: ask for fewer places" in fault["message"]
    assert client.get(f"/v1/maps/{map_id}/values?per_example=true&layer=1").status_code == 200


def test_slice_is_that_part_of_the_whole(client: TestClient, map_id: str) -> None:
    whole = client.get(f"/v1/maps/{map_id}/values").json()
    part = client.get(f"/v1/maps/{map_id}/values?layer=1&place=end&place=S2").json()
    assert [axis["labels"] for axis in part["axes"]] == [["logit_diff"], ["1"], ["end", "S2"]]
    assert part["effect"] == [[whole["effect"][0][1][::-1]]]
    assert part["high"] == [[whole["high"][0][1][::-1]]]


def test_slice_that_the_map_has_not_names_every_fault(client: TestClient, map_id: str) -> None:
    answer = client.get(f"/v1/maps/{map_id}/values?head=3&layer=1&layer=7&place=IO")
    assert answer.status_code == 422
    messages = {error["where"]: error["message"] for error in answer.json()["errors"]}
    assert set(messages) == {"head", "layer", "place"}
    assert messages["layer"] == "nothing there is called 7; there are: 0, 1"
    assert client.get(f"/v1/maps/{map_id}/values?colour=red").status_code == 422


def test_normalising_by_nothing_is_withheld_with_the_reason(
    client: TestClient, store: Store, artefacts: Artefacts, made: PatchMap
) -> None:
    cells = replace(made.cells, clean=made.cells.corrupt.copy())
    flat = finish(client, store, artefacts, PatchMap.of(cells, seed=0, provenance=made.provenance), OTHER)
    values = client.get(f"/v1/maps/{flat}/values").json()
    assert values["normalised"] == [[[None, None], [None, None]]]
    assert "too little to divide by" in values["withheld"]["logit_diff"]
    assert client.get(f"/v1/maps/{flat}/export?format=json").status_code == 200


# -- files -------------------------------------------------------------------------------------------------------------


def test_picture_is_an_svg_that_may_run_nothing(client: TestClient, map_id: str) -> None:
    answer = client.get(f"/v1/maps/{map_id}/heatmap.svg")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert ElementTree.fromstring(answer.text).tag == "{http://www.w3.org/2000/svg}svg"


def test_exports_hold_the_same_numbers(client: TestClient, map_id: str, made: PatchMap) -> None:
    root = f"/v1/maps/{map_id}/export"
    answer = client.get(root)
    assert answer.content == made.to_bytes()
    assert f'filename="{map_id}.safetensors"' in answer.headers["content-disposition"]
    table = list(csv.DictReader(io.StringIO(client.get(f"{root}?format=csv").text)))
    assert [(row["layer"], row["place"]) for row in table] == [("0", "S2"), ("1", "S2"), ("1", "end")]
    assert math.isclose(float(table[1]["effect"]), made.effect[0, 1, 0])
    data = client.get(f"{root}?format=json").json()
    assert data["effect"][0][1][0] == made.effect[0, 1, 0]
    assert data["provenance"]["task"]["name"] == "ioi"
    assert (data["parameters"]["state"], data["id"]) == ("mlp", map_id)


def test_schemas_of_all_maps_are_published(client: TestClient) -> None:
    maps = {item["name"]: item for item in client.get("/v1/methods").json()["maps"]}
    assert set(maps) == {"activations", "paths", "causes", "knockout"}
    for name, item in maps.items():
        assert item["summary"]
        defaults = {key: field["default"] for key, field in item["parameters"]["properties"].items()}
        assert parse_job({**SPEC, "map": defaults}) == parse_job({**SPEC, "map": name})
