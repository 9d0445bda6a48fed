from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from api_samples import PAIRS, SPEC, finish
from fastapi.testclient import TestClient

from acdc.store import Artefacts, Store


def submit(client: TestClient, **more: object) -> dict[str, object]:
    response = client.post("/v1/jobs", json={**SPEC, **more})
    assert response.status_code == 202, response.text
    return response.json()


def test_submitted_job_is_queued_and_says_where_it_is(client: TestClient) -> None:
    response = client.post("/v1/jobs", json=SPEC)
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["kind"], job["method"], job["task"]) == ("queued", "discover", "eap", "custom")
    assert client.get(response.headers["location"]).json() == job
    for link in ("events", "logs"):
        assert client.get(job["links"][link]).status_code == 200


def test_finished_job_carries_progress_results_and_log(client: TestClient, store: Store, artefacts: Artefacts) -> None:
    job = submit(client)
    circuit_id = finish(store, artefacts)
    done = client.get(f"/v1/jobs/{job['id']}").json()
    assert done["state"] == "succeeded"
    assert done["progress"] == {"phase": "search", "done": 1, "total": 2}
    assert [(r["key"], r["kind"], r["circuit_id"]) for r in done["results"]] == [("circuit", "circuit", circuit_id)]
    logs = client.get(f"/v1/jobs/{job['id']}/logs", params={"after": 1}).json()
    assert [line["line"] for line in logs["items"]] == ["line 1", "line 2"]
    assert logs["next_after"] == 3


def test_failed_job_carries_its_code_and_faults(client: TestClient, store: Store) -> None:
    from acdc.errors import Fault

    job = submit(client)
    claim = store.claims.claim("w", "default")
    assert claim
    store.claims.fail(claim, "invalid_task", "two rows are unusable", [Fault("row 1", "why"), Fault("row 2", "why")])
    error = client.get(f"/v1/jobs/{job['id']}").json()["error"]
    assert error["code"] == "invalid_task"
    assert [fault["where"] for fault in error["faults"]] == ["row 1", "row 2"]


def test_every_fault_of_a_spec_is_reported(client: TestClient, store: Store) -> None:
    faulty = {
        "model": "no-such-model",
        "task": {"name": "custom", "pairs": PAIRS, "prompts": 0, "corruption": "x"},
        "metric": "beauty",
        "ablation": "magic",
        "method": {"name": "eap-ig-inputs", "steps": 0},
        "compute": {"dtype": "int1", "batch_tokens": 1},
        "limits": {"max_runtime_s": -1},
        "seed": -1,
        "evaluation": {"grid": []},
        "colour": "red",
    }
    problem = client.post("/v1/jobs", json=faulty).json()
    where = {error["where"] for error in problem["errors"]}
    expected = {"model", "task.prompts", "metric", "ablation.kind", "method.steps", "compute.dtype"}
    expected |= {"compute.batch_tokens", "limits.max_runtime_s", "seed", "evaluation.grid", "colour"}
    assert problem["code"] == "invalid_spec"
    assert expected <= where
    assert store.jobs.list().items == ()


@pytest.mark.parametrize("kind", ["queued", "running"])
def test_cancel_can_be_asked_twice(client: TestClient, store: Store, kind: str) -> None:
    job = submit(client)
    if kind == "running":
        store.claims.claim("w", "default")
    after = {"queued": "cancelled", "running": "cancelling"}[kind]
    for _ in range(2):
        response = client.post(f"/v1/jobs/{job['id']}/cancel")
        assert (response.status_code, response.json()["state"]) == (202, after)


def test_ended_job_cannot_be_cancelled(client: TestClient, store: Store, artefacts: Artefacts) -> None:
    job = submit(client)
    finish(store, artefacts)
    response = client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (response.status_code, response.json()["code"]) == (409, "invalid_state")


def test_retry_makes_a_new_job_of_a_cancelled_one_only(client: TestClient) -> None:
    job = submit(client)
    assert client.post(f"/v1/jobs/{job['id']}/retry").status_code == 409
    client.post(f"/v1/jobs/{job['id']}/cancel")
    response = client.post(f"/v1/jobs/{job['id']}/retry")
    again = response.json()
    assert response.status_code == 202
    assert (again["retry_of"], again["spec"]) == (job["id"], job["spec"])
    assert response.headers["location"].endswith(again["id"])


def test_retry_with_the_same_key_is_one_job(client: TestClient) -> None:
    job, key = submit(client), {"Idempotency-Key": "again"}
    client.post(f"/v1/jobs/{job['id']}/cancel")
    first, second = (client.post(f"/v1/jobs/{job['id']}/retry", headers=key) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["idempotent-replayed"] == "true"


def test_same_key_and_body_give_one_job(client: TestClient, store: Store) -> None:
    barrier = threading.Barrier(8)

    def post(_: int) -> tuple[int, str]:
        barrier.wait()
        response = client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k1"})
        return response.status_code, response.json()["id"]

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(post, range(8)))
    assert len(answers) == 1
    assert answers.pop()[0] == 202
    assert len(store.jobs.list().items) == 1


def test_same_key_with_another_body_is_refused(client: TestClient) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = client.post("/v1/jobs", json=SPEC, headers=headers)
    replay = client.post("/v1/jobs", json=SPEC, headers=headers)
    other = client.post("/v1/jobs", json={**SPEC, "seed": 5}, headers=headers)
    assert "idempotent-replayed" not in first.headers
    assert replay.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


def test_paging_shows_every_job_once_while_jobs_arrive(client: TestClient) -> None:
    before = {str(submit(client, name=f"job {n}")["id"]) for n in range(23)}
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/v1/jobs", params={"limit": 4, **cursor}).json()
        seen += [item["id"] for item in page["items"]]
        for n in range(3):
            submit(client, name=f"late {n}")
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert len(seen) == len(set(seen))
    assert before <= set(seen)


def test_filters_of_the_job_list_restrict(client: TestClient) -> None:
    one, two = submit(client, tags=["a", "b"]), submit(client, tags=["a"])
    client.post(f"/v1/jobs/{two['id']}/cancel")

    def ids(**params: object) -> list[str]:
        return [item["id"] for item in client.get("/v1/jobs", params=params).json()["items"]]

    assert ids(tag=["a", "b"]) == [one["id"]]
    assert ids(state="cancelled") == [two["id"]]
    assert ids(state=["cancelled", "queued"]) == [two["id"], one["id"]]
    assert ids(kind="try") == []


def test_misspelt_filter_is_refused_rather_than_ignored(client: TestClient) -> None:
    response = client.get("/v1/jobs", params={"stat": "queued"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["where"] == "query.stat"


def test_foreign_cursor_is_refused(client: TestClient) -> None:
    assert client.get("/v1/jobs", params={"cursor": "nonsense"}).status_code == 422
