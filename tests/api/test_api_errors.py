from __future__ import annotations

import logging
import time
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from api_samples import PAIRS, SPEC, Connect, make_settings
from fastapi.testclient import TestClient

from acdc.api import create_app
from acdc.api.problems import STATUS_OF
from acdc.errors import AcdcError, DatabaseError, SpecError
from acdc.models.catalogue import CATALOGUE
from acdc.store import Artefacts, Store


def codes(root: type[AcdcError]) -> set[str]:
    """Of the public tree; what a command line adds for itself never reaches HTTP."""
    own = [kind for kind in root.__subclasses__() if kind.__module__ == root.__module__]
    return {root.code}.union(*(codes(kind) for kind in own))


def test_every_error_of_the_tree_has_a_status() -> None:
    assert codes(AcdcError) == set(STATUS_OF)


CASES = [
    ("GET", "/v1/nothing", {}, 404, "not_found"),
    ("POST", "/v1/nothing", {}, 404, "not_found"),
    ("GET", "/web/../settings.py", {}, 404, "not_found"),
    ("GET", "/web/..%2fsettings.py", {}, 404, "not_found"),
    ("DELETE", "/v1/jobs", {}, 405, "method_not_allowed"),
    ("GET", "/v1/plan", {}, 405, "method_not_allowed"),
    ("GET", "/v1/jobs/nope", {}, 404, "not_found"),
    ("GET", "/v1/jobs/job_" + "0" * 22, {}, 404, "not_found"),
    ("GET", "/v1/circuits/cir_" + "0" * 22, {}, 404, "not_found"),
    ("GET", "/v1/circuits/" + "x" * 5000, {}, 404, "not_found"),
    ("GET", "/v1/jobs?limit=0", {}, 422, "invalid_spec"),
    ("POST", "/v1/jobs", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "bad_request"),
    (
        "POST",
        "/v1/jobs",
        {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}},
        400,
        "bad_request",
    ),
    ("POST", "/v1/jobs", {"content": b"\xff", "headers": {"content-type": "application/json"}}, 400, "bad_request"),
    ("POST", "/v1/jobs", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
    ("GET", "/v1/circuits?min_edges=99999999999999999999", {}, 422, "invalid_spec"),
    ("GET", f"/v1/circuits?max_edges={2**31}", {}, 422, "invalid_spec"),
    ("GET", f"/v1/circuits?cursor={urlsafe_b64encode(b'[' * 20_000).decode()}", {}, 422, "invalid_spec"),
    ("GET", f"/v1/jobs?cursor={urlsafe_b64encode(b'[' * 20_000).decode()}", {}, 422, "invalid_spec"),
    ("GET", "/v1/jobs/job_0/logs?limit=1001", {}, 422, "invalid_spec"),
    ("GET", "/v1/circuits/cir_0/edges?limit=1001", {}, 422, "invalid_spec"),
    ("POST", "/v1/jobs", {"json": {**SPEC, "model": "loaded:x"}}, 422, "unknown_model"),
    ("POST", "/v1/plan", {"json": {**SPEC, "model": "path:~nouser/m"}}, 422, "unknown_model"),
    ("POST", "/v1/plan", {"json": {**SPEC, "model": "path:a\0b"}}, 422, "unknown_model"),
    ("POST", "/v1/jobs", {"json": []}, 422, "invalid_spec"),
    ("POST", "/v1/jobs", {"json": {"kind": ["x"]}}, 422, "invalid_spec"),
    ("POST", "/v1/jobs", {"json": {**SPEC, "positions": "nowhere"}}, 422, "invalid_spec"),
    ("POST", "/v1/jobs", {"json": {**SPEC, "name": "a\x00b"}}, 422, "invalid_spec"),
    ("POST", "/v1/jobs", {"json": SPEC, "headers": {"Idempotency-Key": "a b"}}, 422, "invalid_spec"),
    ("POST", "/v1/circuits", {"content": b"x", "headers": {"content-type": "text/csv"}}, 415, "unsupported_media_type"),
    ("GET", "/healthz", {"headers": {"host": "evil.example"}}, 421, "unknown_host"),
    ("GET", "/healthz", {"headers": {"host": "[::"}}, 421, "unknown_host"),
]


@pytest.mark.parametrize(("method", "path", "arguments", "status", "code"), CASES)
def test_every_refusal_is_a_problem_document(
    client: TestClient, method: str, path: str, arguments: dict, status: int, code: str
) -> None:
    response = client.request(method, path, **arguments)
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"urn:acdc:error:{code}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["instance"].startswith("urn:uuid:")
    assert isinstance(body["errors"], list)


@pytest.mark.parametrize("chunked", [False, True])
def test_body_beyond_the_limit_is_refused(connect: Connect, chunked: bool) -> None:
    client = connect(max_body_bytes=2000)
    body = b'"' + b"x" * 3000 + b'"'
    content = iter([body[:1500], body[1500:]]) if chunked else body
    response = client.post("/v1/jobs", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_unforeseen_error_shows_no_traceback_and_is_logged_under_its_id(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(store.jobs, "counts", fail)
    with caplog.at_level(logging.ERROR):
        response = client.get("/metrics")
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "secret" not in response.text
    assert response.json()["instance"] in caplog.text
    assert "secret detail" in caplog.text


def test_lost_database_is_503_at_once_and_readiness_names_it(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise DatabaseError("the database does not answer")

    monkeypatch.setattr(store.jobs, "get", down)
    monkeypatch.setattr(store, "ping", down)
    response = client.get("/v1/jobs/job_" + "0" * 22)
    assert (response.status_code, response.json()["code"]) == (503, "database")
    assert int(response.headers["retry-after"]) > 0
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["parts"] == {"database": "down (database)", "artefacts": "ok"}
    assert client.get("/healthz").status_code == 200


def test_removed_tables_answer_503_not_a_traceback(connect: Connect, store: Store, tmp_path: Path) -> None:
    client = connect()
    store.close()
    (tmp_path / "acdc.db").write_bytes(b"no database at all, but long enough to be read as one" * 100)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"acdc.db{suffix}").unlink(missing_ok=True)
    response = client.get("/v1/jobs")
    assert (response.status_code, response.json()["code"]) == (503, "bad_database")


def test_readiness_answers_while_the_database_hangs(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    release = threading.Event()
    monkeypatch.setattr(store, "ping", lambda: release.wait(30))
    monkeypatch.setattr("acdc.api.health.READY_WITHIN_S", 0.2)
    start = time.monotonic()
    try:
        ready = client.get("/readyz")
    finally:
        release.set()
    assert time.monotonic() - start < 5
    assert ready.status_code == 503
    assert ready.json()["parts"]["database"].startswith("no answer")


def test_allow_list_of_models_refuses_the_others(connect: Connect) -> None:
    client = connect(allowed_models="hub:good/*")
    for model, status in (("hub:good/one", 202), ("hub:bad/one", 403), ("smollm2-135m-instruct-q4", 403)):
        response = client.post("/v1/jobs", json={**SPEC, "model": model})
        assert response.status_code == status, response.text
    assert response.json()["code"] == "forbidden"
    assert response.json()["errors"][0]["where"] == "model"


def test_short_name_and_what_it_stands_for_are_allowed_together(connect: Connect) -> None:
    short = "smollm2-135m-instruct-q4"
    for pattern in (short, CATALOGUE[short].reference):
        client = connect(allowed_models=pattern)
        for model, status in ((short, 202), (CATALOGUE[short].reference, 202), ("gemma3-270m-q4", 403)):
            assert client.post("/v1/jobs", json={**SPEC, "model": model}).status_code == status, (pattern, model)


def test_file_needs_an_allowed_directory_where_models_are_limited_as_a_worker_has_it(
    connect: Connect, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    model = {**SPEC, "model": f"path:{tmp_path}/in"}
    assert connect(allowed_models="*").post("/v1/jobs", json=model).status_code == 403
    both = connect(allowed_models="hub:good/*", allowed_dirs=str(tmp_path))
    assert both.post("/v1/jobs", json=model).status_code == 202


@pytest.mark.parametrize("place", ["~nouser/m", "a\0b"])
def test_place_that_no_file_system_has_is_no_model_of_an_allowed_directory(
    connect: Connect, tmp_path: Path, place: str
) -> None:
    response = connect(allowed_dirs=str(tmp_path)).post("/v1/jobs", json={**SPEC, "model": f"path:{place}"})
    assert (response.status_code, response.json()["errors"][0]["where"]) == (422, "model")


@pytest.mark.parametrize(
    "config",
    [
        '{"model_type": "llama", "hidden_size": 1e400, "num_attention_heads": 1}',
        '{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, '
        f'"num_hidden_layers": {10**9}, "vocab_size": 9}}',
        '{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, '
        f'"num_hidden_layers": 1, "vocab_size": {10**400}}}',
        "[" * 100_000,
    ],
)
def test_plan_of_a_model_with_a_senseless_size_is_unknown(client: TestClient, tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    response = client.post("/v1/plan", json={**SPEC, "model": f"path:{tmp_path}"})
    assert response.status_code == 200
    assert response.json()["seconds"] is None


def test_allow_list_of_directories_sees_through_links_and_dots(connect: Connect, tmp_path: Path) -> None:
    allowed, outside = tmp_path / "models", tmp_path / "outside"
    (allowed / "one").mkdir(parents=True)
    outside.mkdir()
    (allowed / "link").symlink_to(outside)
    client = connect(allowed_dirs=str(allowed))
    for place, status in (("one", 202), ("link", 403), ("../outside", 403)):
        response = client.post("/v1/jobs", json={**SPEC, "model": f"path:{allowed}/{place}"})
        assert response.status_code == status, response.text


def test_prompt_limit_counts_searched_held_out_and_custom_ones(connect: Connect) -> None:
    client = connect(max_prompts=3)
    too_many = client.post("/v1/jobs", json=SPEC).json()
    assert too_many["errors"][0]["where"] == "task.pairs"
    few = {**SPEC, "task": {"name": "custom", "pairs": PAIRS[:3]}}
    assert client.post("/v1/jobs", json=few).status_code == 202
    assert client.post("/v1/jobs", json={"method": "eap"}).json()["errors"][0]["where"] == "task.prompts"


def test_key_is_wanted_everywhere_but_at_the_door(connect: Connect) -> None:
    client = connect(api_key="s3cret")
    for path in ("/healthz", "/readyz"):
        assert client.get(path).status_code == 200
    for path in ("/v1/jobs", "/metrics", "/openapi.json", "/v1/nothing"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            response = client.get(path, headers=headers)
            assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
            assert response.headers["www-authenticate"].startswith("Bearer")
    assert client.get("/v1/jobs", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_public_address_needs_a_key(tmp_path: Path, store: Store, artefacts: Artefacts) -> None:
    with pytest.raises(SpecError, match="ACDC_API_KEY"):
        create_app(make_settings(tmp_path, host="0.0.0.0"), store, artefacts)
    create_app(make_settings(tmp_path, host="0.0.0.0", api_key="k"), store, artefacts)


def test_no_other_origin_is_let_in_and_every_answer_is_inert(client: TestClient) -> None:
    for path in ("/v1/jobs", "/v1/nothing", "/healthz"):
        response = client.get(path, headers={"Origin": "https://evil.example"})
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]
