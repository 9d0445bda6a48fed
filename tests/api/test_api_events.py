from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest
from api_samples import SPEC, finish, make_settings
from fastapi.testclient import TestClient

from acdc.api import create_app
from acdc.api.server import bind
from acdc.client import Client
from acdc.errors import DatabaseError, NotFound, ServiceError
from acdc.store import Artefacts, Store

SSE = {"Accept": "text/event-stream"}


def parse(text: str) -> list[dict[str, str]]:
    """Whole events of a stream, comments and retry left out. A torn one at the end does not count."""
    events = []
    for block in text.replace("\r\n", "\n").split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "id" in fields:
            events.append(fields)
    return events


def test_page_of_events_says_when_the_job_has_ended(client: TestClient, store: Store, artefacts: Artefacts) -> None:
    path = client.post("/v1/jobs", json=SPEC).json()["links"]["events"]
    assert client.get(path).json()["ended"] is False
    finish(store, artefacts)
    page = client.get(path).json()
    assert [event["number"] for event in page["items"]] == list(range(1, page["next_after"] + 1))
    assert page["items"][-1]["data"]["state"] == "succeeded"
    assert page["ended"] is True
    behind_the_end = client.get(path, params={"after": page["next_after"]}).json()
    assert (behind_the_end["items"], behind_the_end["ended"]) == ([], True)
    assert client.get("/v1/jobs/job_0000/events").status_code == 404
    assert client.get(path, headers={"Last-Event-ID": "x"}).status_code == 422


def test_stream_of_an_ended_job_closes_after_its_last_event(
    client: TestClient, store: Store, artefacts: Artefacts
) -> None:
    path = client.post("/v1/jobs", json=SPEC).json()["links"]["events"]
    finish(store, artefacts)
    response = client.get(path, headers=SSE)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith("retry: ")
    events = parse(response.text)
    assert [int(event["id"]) for event in events] == list(range(1, len(events) + 1))
    assert {event["event"] for event in events} == {"state", "progress"}
    rest = client.get(path, headers={**SSE, "Last-Event-ID": events[-2]["id"]})
    assert [event["id"] for event in parse(rest.text)] == [events[-1]["id"]]
    assert parse(client.get(path, headers={**SSE, "Last-Event-ID": events[-1]["id"]}).text) == []
    assert client.get("/v1/jobs/job_0000/events", headers=SSE).status_code == 404


def test_quiet_stream_pings(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc.api.events.PING_S", 0.05)
    monkeypatch.setattr("acdc.api.events.LOOK_S", 0.01)
    job = client.post("/v1/jobs", json=SPEC).json()
    timer = threading.Timer(0.5, lambda: client.post(job["links"]["cancel"]))
    timer.start()
    response = client.get(job["links"]["events"], headers=SSE)
    timer.join()
    assert ": ping" in response.text
    assert parse(response.text)[-1]["event"] == "state"


def test_stream_outlives_a_database_that_is_away(
    client: TestClient, store: Store, artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = client.post("/v1/jobs", json=SPEC).json()["links"]["events"]
    finish(store, artefacts)
    monkeypatch.setattr("acdc.api.events.LOOK_S", 0.01)
    real: Callable[..., object] = store.jobs.events
    calls: list[int] = []

    def sometimes(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) in (2, 3):
            raise DatabaseError("away")
        return real(*args, **kwargs)

    monkeypatch.setattr(store.jobs, "events", sometimes)
    events = parse(client.get(path, headers=SSE).text)
    assert [int(event["id"]) for event in events] == list(range(1, len(events) + 1))
    assert len(calls) >= 4


def test_client_waits_out_a_database_that_is_away(
    served: str, store: Store, artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acdc.client.RETRY_PAUSE_S", 0.001)
    monkeypatch.setattr("acdc.client.LONGEST_PAUSE_S", 0.01)
    real: Callable[..., object] = store.jobs.events
    calls: list[int] = []

    def away_at_first(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) <= 20:
            raise DatabaseError("away")
        return real(*args, **kwargs)

    with Client(served) as client:
        job = client.submit(SPEC)
        finish(store, artefacts)
        monkeypatch.setattr(store.jobs, "events", away_at_first)
        numbers = [event.number for event in client.events(job.id)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(calls) > 20
        with pytest.raises(NotFound):
            list(client.events("job_0000"))
        monkeypatch.setattr("acdc.client.PATIENCE_S", 0.1)
        calls.clear()
        monkeypatch.setattr("acdc.client.LONGEST_PAUSE_S", 1.0)
        monkeypatch.setattr("acdc.client.RETRY_PAUSE_S", 0.2)
        with pytest.raises(DatabaseError, match="away"):
            list(client.events(job.id))


def test_hundred_dropped_streams_show_no_gap_and_no_duplicate(
    served: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker reports while the client reads a few bytes at a time, hangs up anywhere, and comes back."""
    monkeypatch.setattr("acdc.api.events.LOOK_S", 0.005)
    monkeypatch.setattr("acdc.api.events._BATCH", 7)
    host, port = served.removeprefix("http://").split(":")
    job_id = httpx.post(f"{served}/v1/jobs", json=SPEC, trust_env=False).json()["id"]
    claim = store.claims.claim("w", "default")
    assert claim
    go_on = threading.Event()

    def work() -> None:
        done = 0
        while not go_on.wait(0.002) and done < 5000:
            done += 1
            store.claims.heartbeat(claim, {"phase": "search", "done": done, "total": 0})
        store.claims.succeed(claim, [])

    rng, seen = random.Random(0), []
    worker = threading.Thread(target=work)
    worker.start()
    try:
        for drop in range(101):
            is_last = drop == 100
            if is_last:
                go_on.set()
            last = seen[-1] if seen else 0
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                request = f"GET /v1/jobs/{job_id}/events HTTP/1.0\r\nHost: {host}\r\n"
                request += f"Accept: text/event-stream\r\nLast-Event-ID: {last}\r\n\r\n"
                connection.sendall(request.encode())
                budget = 10**9 if is_last else rng.randrange(200, 2500)
                data = b""
                while len(data) < budget and (chunk := connection.recv(min(97, budget - len(data)))):
                    data += chunk
            seen += [int(event["id"]) for event in parse(data.decode().partition("\r\n\r\n")[2])]
    finally:
        go_on.set()
        worker.join(60)
    total = store.jobs.get(job_id).last_event
    assert total > 100
    assert seen == list(range(1, total + 1))


def test_stopping_server_ends_open_streams_at_once(served: str) -> None:
    job = httpx.post(f"{served}/v1/jobs", json=SPEC, trust_env=False).json()
    received = threading.Event()
    ended: list[float] = []

    def follow() -> None:
        with httpx.stream("GET", served + job["links"]["events"], headers=SSE, timeout=30, trust_env=False) as response:
            for _ in response.iter_raw():
                received.set()
        ended.append(time.monotonic())

    thread = threading.Thread(target=follow)
    thread.start()
    assert received.wait(10)
    # the fixture's teardown stops the server and fails when it hangs


def test_port_in_use_is_one_sentence(tmp_path, store: Store, artefacts: Artefacts) -> None:
    with bind(make_settings(tmp_path, port=0)) as taken, pytest.raises(ServiceError, match="ACDC_PORT"):
        bind(make_settings(tmp_path, port=taken.getsockname()[1]))
    create_app(make_settings(tmp_path), store, artefacts)
