from __future__ import annotations

import csv
import hashlib
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from api_samples import HOSTILE, SPEC, Connect, finish, make_circuit
from fastapi.testclient import TestClient

from acdc.circuit import Circuit, Selected
from acdc.graph import Graph
from acdc.report import Stability
from acdc.store import Artefacts, Store

FILE = {"content-type": "application/octet-stream"}


@pytest.fixture
def circuit_id(client: TestClient, store: Store, artefacts: Artefacts) -> str:
    """Found by a job with SPEC."""
    assert client.post("/v1/jobs", json=SPEC).status_code == 202
    return finish(store, artefacts)


def put(client: TestClient, circuit: Circuit, **params: object) -> str:
    response = client.post("/v1/circuits", content=circuit.to_bytes(), headers=FILE, params=params)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == response.json()["links"]["self"]
    return response.json()["id"]


def test_found_circuit_carries_report_and_provenance(client: TestClient, circuit_id: str) -> None:
    shown = client.get(f"/v1/circuits/{circuit_id}").json()
    assert shown["report"]["behaviour"]["verdict"] == "shown"
    assert shown["provenance"]["run"]["spec"]["name"] == "small"
    for part in ("edges", "scores", "curve", "card", "graph.svg", "curve.svg", "export", "evaluations", "job"):
        assert client.get(shown["links"][part]).status_code == 200, part


def test_exported_file_comes_back_bit_for_bit(client: TestClient) -> None:
    circuit = make_circuit(3)
    one = put(client, circuit, name="mine", tag=["a", "b"], notes="n")
    assert len({circuit.to_bytes() for _ in range(20)}) == 1
    exported = client.get(f"/v1/circuits/{one}/export").content
    assert exported == circuit.to_bytes()
    two = client.post("/v1/circuits", content=exported, headers=FILE).json()
    assert two["artefact"] == client.get(f"/v1/circuits/{one}").json()["artefact"]
    shown = client.get(f"/v1/circuits/{one}").json()
    assert (shown["name"], shown["tags"], shown["notes"], shown["job_id"]) == ("mine", ["a", "b"], "n", None)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_damaged_or_foreign_file_is_refused(client: TestClient, store: Store, damage: str) -> None:
    data = bytearray(make_circuit().to_bytes())
    if damage == "flip":
        data[-1] ^= 1
    sent = {"cut": bytes(data[:-7]), "flip": bytes(data), "empty": b"", "foreign": b"\x80\x04pickle" * 9}[damage]
    response = client.post("/v1/circuits", content=sent, headers=FILE)
    assert (response.status_code, response.json()["code"]) == (422, "bad_circuit_file")
    assert store.circuits.list().items == ()


def test_small_file_that_names_a_huge_graph_is_refused(client: TestClient) -> None:
    data = make_circuit().to_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    marked = json.loads(header["__metadata__"]["acdc"])
    text = marked["header"].replace('"n_layers": 2', '"n_layers": 2000000000')
    assert text != marked["header"]
    circuit = make_circuit()
    arrays = (circuit.scores, circuit.tested, circuit.kept, circuit.inclusion)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays) + text.encode())
    header["__metadata__"]["acdc"] = json.dumps({"sha256": digest.hexdigest(), "header": text})
    forged = json.dumps(header).encode()
    response = client.post(
        "/v1/circuits", content=len(forged).to_bytes(8, "little") + forged + data[8 + length :], headers=FILE
    )
    assert (response.status_code, response.json()["code"]) == (422, "bad_circuit_file")
    assert "its graph needs" in response.json()["detail"]


def test_edges_page_from_the_largest_score_down(client: TestClient) -> None:
    circuit = make_circuit()
    root = f"/v1/circuits/{put(client, circuit)}/edges"
    edges, cursor = [], {}
    while True:
        page = client.get(root, params={"limit": 7, **cursor}).json()
        edges += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    expected = [circuit.graph.edge_name(edge) for edge in circuit.edges()]
    assert [f"{edge['sender']}->{edge['receiver']}" for edge in edges] == expected
    assert [edge["rank"] for edge in edges] == list(range(1, len(expected) + 1))
    sizes = [abs(edge["score"]) for edge in edges if edge["score"] is not None]
    assert sizes == sorted(sizes, reverse=True)


def test_scores_in_json_are_the_matrix_with_null_where_untested(client: TestClient) -> None:
    circuit = make_circuit()
    body = client.get(f"/v1/circuits/{put(client, circuit)}/scores").json()
    scores = np.array([[np.nan if score is None else score for score in row] for row in body["scores"]])
    assert np.array_equal(np.isnan(scores), ~circuit.tested)
    assert np.array_equal(scores[circuit.tested], circuit.scores[circuit.tested].astype(float))
    assert np.array_equal(np.array(body["inclusion"]), circuit.inclusion)
    assert body["senders"][0] == "embed"
    assert body["receivers"][-1] == "logits"


def test_csv_holds_every_edge_once(client: TestClient) -> None:
    circuit = make_circuit()
    text = client.get(f"/v1/circuits/{put(client, circuit)}/export", params={"format": "csv"}).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == circuit.graph.n_edges
    kept = [f"{row['sender']}->{row['receiver']}" for row in rows if row["kept"] == "1"]
    assert np.array_equal(circuit.graph.mask_of_edges(kept), circuit.kept)
    assert sum(row["score"] == "" for row in rows) == 1
    assert {(row["kept"], row["inclusion"]) for row in rows} == {("0", "0.0"), ("1", "0.75")}


def test_json_export_holds_the_kept_edges(client: TestClient) -> None:
    circuit = make_circuit()
    body = client.get(f"/v1/circuits/{put(client, circuit)}/export", params={"format": "json"}).json()
    assert np.array_equal(circuit.graph.mask_of_edges(edge["edge"] for edge in body["edges"]), circuit.kept)
    assert {edge["inclusion"] for edge in body["edges"]} == {0.75}
    assert body["provenance"]["task"]["sha256"] == "a" * 64


def test_attribution_graph_is_what_its_viewer_needs(client: TestClient) -> None:
    circuit = make_circuit(title="SmolLM2 (135M), Q4")
    body = client.get(f"/v1/circuits/{put(client, circuit)}/export", params={"format": "neuronpedia"}).json()
    assert set(body) == {"metadata", "qParams", "nodes", "links"}
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= set(body["metadata"])
    assert body["metadata"]["scan"] == "SmolLM2-135M-Q4"
    needed = {"node_id": str, "feature": int, "ctx_idx": int, "feature_type": str, "jsNodeId": str, "clerp": str}
    for node in body["nodes"]:
        assert all(isinstance(node[key], kind) for key, kind in needed.items())
        assert node["layer"] == "E" or int(node["layer"]) > 0
    ids = {node["node_id"] for node in body["nodes"]}
    places = {(node["layer"], node["feature"], node["ctx_idx"]) for node in body["nodes"]}
    assert len(ids) == len(places) == len(body["nodes"])
    assert {link["source"] for link in body["links"]} | {link["target"] for link in body["links"]} <= ids
    (logit,) = (node for node in body["nodes"] if node["feature_type"] == "logit")
    assert "(p=" in logit["clerp"]
    into_logits = circuit.graph.receiver_index("logits")
    total = circuit.scores[circuit.kept[:, into_logits], into_logits].sum()
    weights = [link["weight"] for link in body["links"] if link["target"] == logit["node_id"]]
    assert sum(weights) == pytest.approx(float(total), rel=1e-5)


def test_attribution_graph_leaves_out_heads_that_only_share_a_kept_value(client: TestClient) -> None:
    made = make_circuit()
    kept = made.graph.mask_of_edges(["embed->0.0.v", "0.1->logits"])  # heads 0.0 and 0.1 read that value
    circuit = replace(made, kept=kept, selected=Selected("absolute", 2, 2))
    response = client.get(f"/v1/circuits/{put(client, circuit)}/export", params={"format": "neuronpedia"})
    assert response.status_code == 200, response.text
    names = {node["node_id"]: node["clerp"] for node in response.json()["nodes"]}
    links = {(names[link["source"]], names[link["target"]]) for link in response.json()["links"]}
    assert links == {("embed", "0.1"), ("0.1", "logits (p=1.000)")}


def test_attribution_graph_shows_a_head_that_counts_for_its_siblings_alone(client: TestClient) -> None:
    """Under a norm over a layer's heads, what enters one that writes nothing moves the shares of those that do."""
    made = make_circuit()
    graph = Graph(replace(made.graph.shape, heads_share_norm=True))
    kept = graph.mask_of_edges(["embed->0.0.q", "embed->0.1.v", "0.3->logits"])
    assert np.array_equal(graph.connected(kept), kept)
    circuit = replace(made, graph=graph, kept=kept, selected=Selected("absolute", 3, 3))
    response = client.get(f"/v1/circuits/{put(client, circuit)}/export", params={"format": "neuronpedia"})
    names = {node["node_id"]: node["clerp"] for node in response.json()["nodes"]}
    links = {(names[link["source"]], names[link["target"]]) for link in response.json()["links"]}
    assert links == {("embed", "0.0"), ("embed", "0.3"), ("0.3", "logits (p=1.000)")}


def test_pictures_are_inert_svg(client: TestClient) -> None:
    root = f"/v1/circuits/{put(client, make_circuit(title=HOSTILE), name=HOSTILE)}"
    for part in ("graph.svg", "curve.svg"):
        response = client.get(f"{root}/{part}")
        assert response.headers["content-type"].startswith("image/svg+xml")
        assert "sandbox" in response.headers["content-security-policy"]
        tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(response.text).iter()}
        assert "svg" in tags
        assert not tags & {"script", "img", "foreignObject"}


def test_card_shows_foreign_text_as_text(client: TestClient) -> None:
    root = f"/v1/circuits/{put(client, make_circuit(), name=HOSTILE, notes='[click](https://evil)')}"
    card = client.get(f"{root}/card")
    assert card.headers["content-type"].startswith("text/markdown")
    assert "\\<img src=x" in card.text
    assert "[click](" not in card.text
    assert "## k\\*" in card.text
    assert client.get(f"{root}/card", headers={"accept": "application/json"}).json()["report"]["k_star"]["met"] is True


def test_card_names_its_model_and_task_and_what_it_was_derived_from(client: TestClient, store: Store) -> None:
    one, circuit = put(client, make_circuit()), make_circuit(5)
    (digest,) = {client.get(f"/v1/circuits/{one}").json()["artefact"]}
    two = store.circuits.add(circuit, digest, user="local", derived_from=one).id
    card = client.get(f"/v1/circuits/{two}/card", headers={"accept": "application/json"}).json()
    assert f"Derived from circuit {one}." in card["lead"]
    assert any(line.startswith(f"Circuit {two}: ") for line in card["lead"])
    summary, _, edges = card["sections"][:3]
    assert summary["columns"] == ["what", "value"]
    assert any(row[1].startswith("custom on Tiny; ") for row in summary["rows"])
    assert (edges["title"], edges["is_part"]) == ("Its edges", True)
    assert client.get(f"/v1/circuits/{one}/card").text.startswith("# custom circuit of Tiny\n")


def test_card_says_whether_the_circuit_stays_under_resampling(client: TestClient) -> None:
    root = f"/v1/circuits/{put(client, make_circuit())}"
    card = client.get(f"{root}/card").text
    assert "unstable: mean Jaccard 0.71 over 200 resamples of 12 groups (64 prompts), 0.80 with the circuit" in card
    assert "have 7 of its edges and 3 others." in card
    assert client.get(root).json()["report"]["stability"]["jaccard"] == 0.71


def test_circuit_without_resampled_scores_says_that_it_was_not_measured(client: TestClient) -> None:
    circuit = make_circuit()
    why = Stability("not measured", "the method gives no per-example scores")
    report = replace(circuit.report, stability=why)
    root = f"/v1/circuits/{put(client, replace(circuit, report=report, inclusion=None))}"
    assert "not measured: the method gives no per-example scores." in client.get(f"{root}/card").text
    assert client.get(f"{root}/scores").json()["inclusion"] is None
    rows = csv.DictReader(io.StringIO(client.get(f"{root}/export", params={"format": "csv"}).text))
    assert {row["inclusion"] for row in rows} == {""}


def test_curve_has_the_points_of_the_report(client: TestClient) -> None:
    circuit = make_circuit()
    curve = client.get(f"/v1/circuits/{put(client, circuit)}/curve").json()
    assert circuit.report
    assert len(curve["points"]) == len(circuit.report.points)
    assert curve["k_star"]["point"]["f"] == circuit.report.k_star.point.f


def test_circuit_without_report_says_how_to_get_one(client: TestClient) -> None:
    root = f"/v1/circuits/{put(client, replace(make_circuit(), report=None))}"
    response = client.get(f"{root}/curve")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert "evaluate" in response.json()["detail"]
    assert "Not evaluated" in client.get(f"{root}/card").text


def test_labels_change_and_what_is_left_out_stays(client: TestClient) -> None:
    root = f"/v1/circuits/{put(client, make_circuit(), name='old', tag=['a'], notes='n')}"
    changed = client.patch(root, json={"name": "new"}).json()
    assert (changed["name"], changed["tags"], changed["notes"]) == ("new", ["a"], "n")
    changed = client.patch(root, json={"notes": None, "tags": []}).json()
    assert (changed["name"], changed["tags"], changed["notes"]) == ("new", [], None)
    assert client.patch(root, json={}).status_code == 422
    assert client.patch(root, json={"colour": 1}).json()["errors"][0]["where"] == "colour"


def test_null_clears_every_label(client: TestClient) -> None:
    root = f"/v1/circuits/{put(client, make_circuit(), name='a', notes='b', tag=['c'])}"
    for label, empty in (("name", None), ("notes", None), ("tags", [])):
        assert client.patch(root, json={label: None}).json()[label] == empty


def test_deleted_circuit_is_gone(client: TestClient) -> None:
    root = f"/v1/circuits/{put(client, make_circuit())}"
    assert client.delete(root).status_code == 204
    assert client.get(root).status_code == 404
    assert client.delete(root).status_code == 404


def test_filters_of_the_circuit_list_restrict(client: TestClient) -> None:
    one, two = make_circuit(1), make_circuit(2)
    ids = [put(client, one, tag=["x"]), put(client, two)]
    edges = [{c.graph.edge_name(e) for e in c.edges()} for c in (one, two)]

    def found(**params: object) -> list[str]:
        return [item["id"] for item in client.get("/v1/circuits", params=params).json()["items"]]

    assert found() == ids[::-1]
    assert found(tag="x") == ids[:1]
    assert found(edge=min(edges[1] - edges[0])) == ids[1:]
    assert found(model="f" * 64, task="custom", method="eap", metric="logit_diff") == ids[::-1]
    assert found(node=two.nodes()[-1], max_edges=0) == []
    assert found(task="ioi") == []
    assert client.get("/v1/circuits", params={"edge": "rubbish"}).status_code == 422


def test_hypothesis_becomes_an_evaluate_job(client: TestClient) -> None:
    asked = {"task": SPEC["task"], "nodes": ["0.1", "mlp0"], "edges": ["embed->mlp1"]}
    response = client.post("/v1/circuits", json=asked)
    job = response.json()
    assert (response.status_code, job["kind"]) == (202, "evaluate")
    assert job["spec"]["hypothesis"] == {"nodes": ["0.1", "mlp0"], "edges": ["embed->mlp1"]}
    nothing = client.post("/v1/circuits", json={"task": SPEC["task"]})
    assert (nothing.status_code, nothing.json()["code"]) == (422, "invalid_spec")


def test_evaluation_inherits_what_it_does_not_name(client: TestClient, circuit_id: str) -> None:
    response = client.post(f"/v1/circuits/{circuit_id}/evaluate", json={"metric": "prob_diff"})
    job = response.json()
    assert (response.status_code, job["kind"]) == (202, "evaluate")
    assert job["spec"]["circuit"] == circuit_id
    assert job["spec"]["metric"] == "prob_diff"
    assert job["spec"]["task"]["pairs"][0]["clean"] == SPEC["task"]["pairs"][0]["clean"]


@pytest.mark.parametrize("through", ["circuit", "jobs"])
@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("task", {"seed": 5}),
        ("task", {"prompts": 3}),
        ("task", {"corruption": None}),
        ("ablation", {"mean_over": "all"}),
        ("evaluation", {"random_circuits": 3}),
        ("evaluation", {"rules": ["signed"]}),
        ("compute", {"batch_tokens": 4096}),
        ("task", {"name": "greater_than", "held_out": 3}),
        ("ablation", {"kind": "mean", "mean_over": "all"}),
    ],
)
def test_evaluation_with_one_thing_changed_keeps_its_siblings(
    client: TestClient, store: Store, artefacts: Artefacts, through: str, field: str, changed: dict[str, object]
) -> None:
    own = {
        "task": {"name": "greater_than", "prompts": 12, "held_out": 6, "seed": 2},
        "ablation": {"kind": "mean"},
        "evaluation": {"grid": [0.1, 0.3], "band_circuits": 1},
        "compute": {"dtype": "float64"},
    }
    assert client.post("/v1/jobs", json=own).status_code == 202
    found = finish(store, artefacts)
    before = client.get(f"/v1/circuits/{found}").json()["provenance"]["run"]["spec"]
    if through == "circuit":
        answer = client.post(f"/v1/circuits/{found}/evaluate", json={field: changed})
    else:
        answer = client.post("/v1/jobs", json={"kind": "evaluate", "circuit": found, field: changed})
    spec = answer.json()["spec"]
    assert spec[field] == {**before[field], **changed}
    assert all(spec[other] == before[other] for other in ("model", "metric", "seed", *own) if other != field)


def test_evaluation_on_another_task_takes_nothing_of_the_old_one(client: TestClient, circuit_id: str) -> None:
    job = client.post(f"/v1/circuits/{circuit_id}/evaluate", json={"task": "successor", "ablation": "zero"}).json()
    assert (job["spec"]["task"]["name"], job["spec"]["task"]["pairs"]) == ("successor", None)
    assert job["spec"]["ablation"] == {"kind": "zero", "mean_over": "role"}


@pytest.mark.parametrize("body", [{"kind": "evaluate"}, {"kind": "try", "prompt": "x"}])
def test_job_on_a_circuit_that_is_not_there_is_refused(client: TestClient, store: Store, body: dict[str, str]) -> None:
    for circuit_id in ("cir_0000", "no id \x00"):
        response = client.post("/v1/jobs", json={**body, "circuit": circuit_id})
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert store.jobs.list().items == ()


@pytest.mark.parametrize(
    ("asked", "wheres"),
    [
        (
            {"edit": {"remove_nodes": ["mlp99", "mlp0"], "add_edges": ["5.5->9.6"], "add_nodes": ["0.9"]}},
            ["add_edges", "add_nodes", "remove_nodes"],
        ),
        ({"edit": {"remove_edges": ["0.0->mlp99"]}, "selection": {"size": 50}}, ["remove_edges"]),
        ({"selection": {"size": 5000}}, ["selection.size"]),
    ],
)
@pytest.mark.parametrize("through", ["circuit", "jobs", "plan"])
def test_what_the_circuit_to_evaluate_has_not_is_refused_at_once(
    client: TestClient, store: Store, through: str, asked: dict[str, Any], wheres: list[str]
) -> None:
    circuit_id = put(client, make_circuit(spec=SPEC))
    if through == "circuit":
        response = client.post(f"/v1/circuits/{circuit_id}/evaluate", json=asked)
    else:
        response = client.post(f"/v1/{through}", json={"kind": "evaluate", "circuit": circuit_id, **asked})
    assert response.status_code == 422
    assert [error["where"] for error in response.json()["errors"]] == wheres
    assert store.jobs.list().items == ()


def test_an_edit_that_would_change_nothing_is_refused_at_once(client: TestClient, store: Store) -> None:
    circuit = make_circuit(spec=SPEC)
    absent = next(circuit.graph.edge_name(e) for e in circuit.graph.edges() if not circuit.kept[e.sender, e.receiver])
    root = f"/v1/circuits/{put(client, circuit)}"
    response = client.post(f"{root}/evaluate", json={"edit": {"remove_edges": [absent]}})
    assert response.status_code == 422
    assert "leaves the circuit as it is" in response.json()["detail"]
    assert store.jobs.list().items == ()


def test_trying_a_circuit_split_by_role_is_refused_at_once(client: TestClient, store: Store) -> None:
    made = make_circuit(spec=SPEC)
    graph = Graph(made.graph.shape.split_by(("S",)))
    kept = graph.mask_of_edges(["embed->0.0.v@S", "0.0->logits"])
    nothing = np.zeros(kept.shape, np.float32)
    selected = Selected("hypothesis", 2, 2)
    split = Circuit(graph, nothing, kept & False, kept, selected, made.provenance)
    response = client.post(f"/v1/circuits/{put(client, split)}/try", json={"prompt": "x"})
    assert response.status_code == 422
    assert "split by position role (S, end, other)" in response.json()["detail"]
    assert store.jobs.list().items == ()


@pytest.mark.parametrize("field", ["model", "task", "metric", "ablation", "evaluation", "selection", "compute", "seed"])
def test_try_refuses_what_it_would_not_heed(client: TestClient, circuit_id: str, field: str) -> None:
    response = client.post(f"/v1/circuits/{circuit_id}/try", json={"prompt": "x", field: "zero"})
    assert response.status_code == 422
    assert [error["where"] for error in response.json()["errors"]] == [field]


def test_try_runs_on_the_model_of_its_circuit_and_obeys_the_allow_list(
    connect: Connect, client: TestClient, circuit_id: str
) -> None:
    body = {"kind": "try", "circuit": circuit_id, "prompt": "x", "tags": ["mine"]}
    job = client.post("/v1/jobs", json=body).json()
    assert (job["model"], job["task"], job["tags"]) == (None, None, ["mine"])
    assert client.get("/v1/jobs", params={"kind": "try"}).json()["items"][0]["id"] == job["id"]
    assert client.post("/v1/plan", json=body).json()["seconds"] > 0
    refused = connect(allowed_models="hub:good/*").post("/v1/jobs", json=body)
    assert (refused.status_code, refused.json()["errors"][0]["where"]) == (403, "model")


def test_prompt_is_tried_as_a_job(client: TestClient, circuit_id: str) -> None:
    response = client.post(f"/v1/circuits/{circuit_id}/try", json={"prompt": "The capital of Gaul is", "top": 3})
    assert (response.status_code, response.json()["kind"]) == (202, "try")
    assert response.json()["spec"]["circuit"] == circuit_id
    assert client.post(f"/v1/circuits/{circuit_id}/try", json={}).json()["errors"][0]["where"] == "prompt"
    assert client.post("/v1/circuits/cir_0000/try", json={"prompt": "x"}).status_code == 404


def test_evaluating_a_circuit_that_no_job_found_takes_model_and_metric_from_it(client: TestClient) -> None:
    root = f"/v1/circuits/{put(client, make_circuit())}"
    job = client.post(f"{root}/evaluate", json={"task": SPEC["task"]}).json()
    assert job["spec"]["model"] == "smollm2-135m-instruct-q4"
    assert job["spec"]["metric"] == "logit_diff"


def test_export_of_a_lost_artefact_is_a_storage_problem(client: TestClient, tmp_path) -> None:
    root = f"/v1/circuits/{put(client, make_circuit())}"
    for path in (tmp_path / "artefacts").rglob("*"):
        if path.is_file():
            path.unlink()
    response = client.get(f"{root}/graph.svg")
    assert (response.status_code, response.json()["code"]) == (503, "storage")
    assert json.loads(response.text)["detail"]
