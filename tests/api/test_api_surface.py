from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from api_samples import SPEC, finish, make_circuit
from fastapi.testclient import TestClient

import acdc
from acdc.api.openapi import PATH, openapi_text
from acdc.models.catalogue import CATALOGUE
from acdc.spec import METHOD_SPECS
from acdc.store import Artefacts, Store
from acdc.tasks import TASKS

ROOT = Path(acdc.__file__).parent.parent


def test_openapi_file_is_what_the_routes_say() -> None:
    stored = (ROOT / PATH).read_text(encoding="utf-8")
    assert stored == openapi_text(), "docs/reference/openapi.json is stale: run python -m acdc.api.openapi"


def test_openapi_promises_problem_documents_and_real_bodies(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    operations = [op for methods in schema["paths"].values() for op in methods.values()]
    assert all("application/problem+json" in op["responses"]["default"]["content"] for op in operations)
    assert len({op["operationId"] for op in operations}) == len(operations)
    bodies = {path for path, methods in schema["paths"].items() if "requestBody" in methods.get("post", {})}
    assert {"/v1/jobs", "/v1/plan", "/v1/circuits", "/v1/circuits/{circuit_id}/evaluate"} <= bodies
    names = set(schema["components"]["schemas"])
    refs = {part.split('"')[0] for part in json.dumps(schema).split('"#/components/schemas/')[1:]}
    assert refs <= names


def test_api_starts_without_torch_or_transformers() -> None:
    code = (
        "import sys, acdc.api, acdc.api.server, acdc.settings, acdc.store; from acdc.api.app import build_routes; "
        "build_routes(); print(sorted({'torch', 'transformers', 'workers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_methods_carry_schemas_that_their_own_specs_meet(client: TestClient) -> None:
    items = {item["name"]: item for item in client.get("/v1/methods").json()["items"]}
    assert set(items) == set(METHOD_SPECS)
    for name, item in items.items():
        assert item["summary"]
        jsonschema.validate({"name": name}, item["parameters"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "eap-ig-inputs", "steps": 0}, items["eap-ig-inputs"]["parameters"])


def test_tasks_are_those_of_the_package(client: TestClient) -> None:
    assert [item["name"] for item in client.get("/v1/tasks").json()["items"]] == list(TASKS)


def test_models_are_the_catalogue_and_those_met(client: TestClient, store: Store) -> None:
    from dataclasses import replace

    card = make_circuit().provenance.model
    store.models.record(card)
    store.models.record(replace(card, reference="path:/models/own", title="Own"))
    items = {item["reference"]: item for item in client.get("/v1/models").json()["items"]}
    assert set(items) == {*CATALOGUE, "path:/models/own"}
    assert items["smollm2-135m-instruct-q4"]["fingerprint"] == "f" * 64
    assert items["smollm2-135m-instruct-q4"]["licence"]
    assert items["path:/models/own"]["in_catalogue"] is False


def test_plan_tells_seconds_memory_and_disk_without_making_a_job(client: TestClient, store: Store) -> None:
    plan = client.post("/v1/plan", json=SPEC).json()
    assert plan["memory"]["n_bytes"] > 0
    assert {phase["name"] for phase in plan["phases"]} >= {"search", "evaluate"}
    assert client.post("/v1/plan", json={"metric": "beauty"}).status_code == 422
    assert store.jobs.list().items == ()


def test_metrics_count_jobs_in_each_state(client: TestClient, store: Store, artefacts: Artefacts) -> None:
    for _ in range(3):
        client.post("/v1/jobs", json=SPEC)
    finish(store, artefacts)
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'acdc_jobs{state="queued"} 2\n' in response.text
    assert 'acdc_jobs{state="succeeded"} 1\n' in response.text
    assert 'acdc_jobs{state="failed"} 0\n' in response.text


def test_health_and_readiness_say_ok(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/readyz").json()["parts"] == {"database": "ok", "artefacts": "ok"}


def test_explorer_files_allow_no_inline_script_and_no_other_host(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    for path in sorted((ROOT / "acdc" / "web").iterdir()):
        response = client.get(f"/web/{path.name}")
        assert response.status_code == 200
        text = response.text.replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path.name
        for forbidden in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "onclick=",
            "style=",
        ):
            assert forbidden not in text, f"{path.name}: {forbidden}"
