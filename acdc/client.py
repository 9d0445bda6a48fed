"""The Python client of the service: typed answers, our own errors, and live events that survive a broken connection.

    with Client("http://127.0.0.1:8420") as client:
        job = client.wait(client.submit({"task": "ioi"}).id)
        circuit = client.circuit_file(job.circuit_ids[0])

What the server says is kept whole in `raw`; the other fields are what most callers want of it. Every call has a time
limit, and every one that may be repeated without harm is repeated when the connection breaks.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from acdc.challenge import Challenge
from acdc.circuit import Circuit
from acdc.errors import AcdcError, Fault, ServiceError, SpecError
from acdc.patch_map import PatchMap
from acdc.report import Report
from acdc.spec import spell_infinity

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
TIMEOUT = httpx.Timeout(30, connect=5)
EVENT_SILENCE_S = 45.0  # the server pings every 15 s: three missed ones mean that the connection is dead
RETRIES = 3
RETRY_PAUSE_S = 0.3
PATIENCE_S = 60.0  # how long events are waited for while there is no answer: a server is restarted in that time
LONGEST_PAUSE_S = 5.0
_BUSY = frozenset({502, 503, 504})
_PAGE = 100


@dataclass(frozen=True)
class JobProgress:
    """Where a running job is. total 0: unknown."""

    phase: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class JobResult:
    """One result of a job; `data` holds tables for people."""

    key: str
    kind: str
    circuit_id: str | None
    map_id: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True)
class JobError:
    """Why a job failed. code: invalid_task, out_of_memory, timeout, poison, storage or internal."""

    code: str
    message: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Job:
    """A job as it stands. state: queued, running, cancelling, succeeded, failed or cancelled."""

    id: str
    kind: str
    state: str
    name: str | None
    progress: JobProgress | None
    results: tuple[JobResult, ...]
    error: JobError | None
    retry_of: str | None
    created_at: str | None
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL

    @property
    def circuit_ids(self) -> tuple[str, ...]:
        """Found or evaluated; not one that was only challenged."""
        return tuple(one.circuit_id for one in self.results if one.circuit_id is not None and one.kind != "table")

    @property
    def map_ids(self) -> tuple[str, ...]:
        return tuple(result.map_id for result in self.results if result.map_id is not None)


@dataclass(frozen=True)
class Event:
    """Something that happened to a job. kind: `state` or `progress`. Numbers run 1, 2, 3, … within the job."""

    number: int
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class LogLine:
    number: int
    line: str


@dataclass(frozen=True)
class CircuitInfo:
    """What a list says of a stored circuit. f, kl_share: on held-out prompts, None where it was not evaluated."""

    id: str
    name: str | None
    model: str
    task: str
    method: str
    n_edges: int
    n_edges_total: int
    f: float | None
    kl_share: float | None
    created_at: str | None
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class EdgeInfo:
    """A kept edge; rank 1 is the largest |score|, score None where the search gave none."""

    sender: str
    receiver: str
    score: float | None
    rank: int


@dataclass(frozen=True)
class EvaluationInfo:
    """A stored circuit judged again by a job; spec: that job's."""

    id: str
    job_id: str
    report: Report
    spec: Mapping[str, Any]
    created_at: str


@dataclass(frozen=True)
class ChallengeInfo:
    """What a job found that tried to break a stored circuit. core: id of the circuit of what survived, if any did."""

    job_id: str
    challenge: Challenge
    core: str | None


@dataclass(frozen=True)
class MapInfo:
    """What a list says of a stored patching map. axes: their names, without the metric's. strongest: cells with the
    largest |effect|, see `PatchMap.strongest`."""

    id: str
    name: str | None
    kind: str
    model: str
    task: str
    metric: str
    axes: tuple[str, ...]
    n_cells: int
    n_clear: int
    strongest: tuple[Mapping[str, Any], ...]
    created_at: str | None
    raw: Mapping[str, Any] = field(repr=False)


class _Patience:
    """How long to go on asking a service that gives no answer."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._pause_s = RETRY_PAUSE_S
        self._until: float | None = None

    def wait_or_raise(self, error: AcdcError) -> None:
        now = time.monotonic()
        self._until = self._until or now + PATIENCE_S
        if now >= self._until:
            raise error
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def default_url() -> str:
    """Where the environment says that the service is."""
    from acdc.settings import load_settings

    return load_settings().url


class Client:
    """One service. `api_key` travels as a bearer token. Every method raises AcdcError, ServiceError for no answer."""

    def __init__(self, url: str | None = None, api_key: str | None = None, *, timeout: httpx.Timeout = TIMEOUT) -> None:
        self.url = (url or default_url()).rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            # trust_env: a proxy of the environment is no way to a service on this machine
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        except (httpx.InvalidURL, ValueError) as error:
            raise ServiceError(
                f"{self.url!r} is no URL of a service ({error}); it looks like http://host:port"
            ) from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- jobs ------------------------------------------------------------------------------------------------------

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Queue a job. The key makes a repeated request give the same job; one is made where none is given."""
        return _job(self._post("/v1/jobs", spec, idempotency_key))

    def job(self, job_id: str) -> Job:
        return _job(self._get(f"/v1/jobs/{_id(job_id)}"))

    def jobs(self, *, limit: int = 50, **filters: Any) -> list[Job]:
        """Newest first. filters: as the API takes them (state, kind, tag)."""
        return [_job(item) for item in self._pages("/v1/jobs", limit, filters)]

    def cancel(self, job_id: str) -> Job:
        return _job(self._post(f"/v1/jobs/{_id(job_id)}/cancel"))

    def retry(self, job_id: str) -> Job:
        """A new job with the same spec."""
        return _job(self._post(f"/v1/jobs/{_id(job_id)}/retry"))

    def logs(self, job_id: str) -> list[LogLine]:
        """Every line so far."""
        lines: list[LogLine] = []
        while True:
            body = self._get(f"/v1/jobs/{_id(job_id)}/logs", after=lines[-1].number if lines else 0, limit=1000)
            new = [LogLine(int(item["number"]), str(item["line"])) for item in body["items"]]
            lines += new
            if not new:
                return lines

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """Every event numbered above `after`, as it happens, ending after the one that ends the job.

        A broken connection is taken up again where it broke: no gap and no event twice.
        """
        path, patience = f"/v1/jobs/{_id(job_id)}/events", _Patience()
        while True:
            try:
                for event in self._stream(path, after):
                    patience.renew()  # the server answers
                    if event is None:
                        continue
                    after = event.number
                    yield event
                    if event.kind == "state" and event.data.get("state") in TERMINAL:
                        return
                # The server closed the stream: either the job is over, or the server is going down.
                if self.job(job_id).is_over and not self._get(path, after=after)["items"]:
                    return
                time.sleep(RETRY_PAUSE_S)
            except (httpx.TransportError, SSEError) as error:
                patience.wait_or_raise(self._unreachable(error))
            except AcdcError as error:
                if not error.is_retryable:
                    raise
                patience.wait_or_raise(error)

    def wait(self, job_id: str, on_event: Callable[[Event], None] | None = None) -> Job:
        """The job when it has ended, however it ended."""
        for event in self.events(job_id):
            if on_event is not None:
                on_event(event)
        return self.job(job_id)

    def plan(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Seconds, memory and disk that a job would take."""
        return self._json_object("POST", "/v1/plan", **_as_json(spec), repeats=True)

    # -- circuits --------------------------------------------------------------------------------------------------

    def circuits(self, *, limit: int = 50, **filters: Any) -> list[CircuitInfo]:
        """Newest first. filters: as the API takes them (model, task, method, metric, node, edge, tag, job)."""
        return [_circuit(item) for item in self._pages("/v1/circuits", limit, filters)]

    def circuit(self, circuit_id: str) -> CircuitInfo:
        return _circuit(self._get(f"/v1/circuits/{_id(circuit_id)}"))

    def edges(self, circuit_id: str, *, limit: int = 100_000) -> list[EdgeInfo]:
        """Kept edges, the largest |score| first."""
        items = self._pages(f"/v1/circuits/{_id(circuit_id)}/edges", limit, {})
        return [EdgeInfo(item["sender"], item["receiver"], item["score"], item["rank"]) for item in items]

    def evaluations(self, circuit_id: str, *, limit: int = 50) -> list[EvaluationInfo]:
        """Later evaluations by jobs of their own, newest first."""
        items = self._pages(f"/v1/circuits/{_id(circuit_id)}/evaluations", limit, {})
        return [
            EvaluationInfo(
                item["id"], item["job_id"], Report.from_dict(item["report"]), item["spec"], item["created_at"]
            )
            for item in items
        ]

    def circuit_file(self, circuit_id: str) -> Circuit:
        """The whole circuit: scores of all edges, kept edges, report and provenance."""
        return Circuit.from_bytes(self.export(circuit_id, "safetensors"), f"{circuit_id}.safetensors")

    def export(self, circuit_id: str, format: str = "safetensors") -> bytes:
        """format: safetensors (everything, to the bit), json, csv or neuronpedia."""
        return self._request("GET", f"/v1/circuits/{_id(circuit_id)}/export", params={"format": format}).content

    def graph_svg(self, circuit_id: str) -> str:
        return self._request("GET", f"/v1/circuits/{_id(circuit_id)}/graph.svg").text

    def curve_svg(self, circuit_id: str) -> str:
        return self._request("GET", f"/v1/circuits/{_id(circuit_id)}/curve.svg").text

    def card(self, circuit_id: str) -> str:
        """What is known of it, as Markdown."""
        return self._request("GET", f"/v1/circuits/{_id(circuit_id)}/card").text

    def card_page(self, circuit_id: str) -> str:
        """The same as a page of text and pictures, HTML."""
        return self._request("GET", f"/v1/circuits/{_id(circuit_id)}/card.html").text

    def import_file(self, data: bytes, *, name: str | None = None, tags: Sequence[str] = ()) -> CircuitInfo:
        """Store an exported circuit file. Not repeated when the connection breaks: it would be stored twice."""
        headers = {"Content-Type": "application/octet-stream"}
        labels = {"tag": list(tags)} | ({"name": name} if name else {})
        return _circuit(self._json_object("POST", "/v1/circuits", content=data, headers=headers, params=labels))

    def hypothesis(self, spec: Mapping[str, Any]) -> Job:
        """Evaluate a circuit written by hand: `nodes` or `edges`, and model, task, … as in a job."""
        return _job(self._post("/v1/circuits", spec))

    def evaluate(self, circuit_id: str, changes: Mapping[str, Any]) -> Job:
        """Evaluate a stored circuit again; what `changes` leaves out is as the circuit's own job had it."""
        return _job(self._post(f"/v1/circuits/{_id(circuit_id)}/evaluate", changes))

    def challenge(self, circuit_id: str, asked: Mapping[str, Any] | None = None) -> Job:
        """Try to break a stored circuit: a job whose results are the table `challenge` and the circuit `core`. asked:
        what to vary, by default everything."""
        return _job(self._post(f"/v1/circuits/{_id(circuit_id)}/challenge", asked or {}))

    def challenges(self, circuit_id: str) -> list[ChallengeInfo]:
        """Newest first."""
        items = self._json_object("GET", f"/v1/circuits/{_id(circuit_id)}/challenge")["items"]
        return [ChallengeInfo(one["job_id"], Challenge.from_dict(one["data"]), one["core"]) for one in items]

    def challenge_svg(self, circuit_id: str) -> str:
        """The newest one as a picture."""
        return self._request("GET", f"/v1/circuits/{_id(circuit_id)}/challenge.svg").text

    def try_prompt(self, circuit_id: str, prompt: str, corrupt: str | None = None, *, top: int = 10) -> Job:
        """The likeliest next tokens of model, circuit, complement and random circuit: the job's result `try`."""
        body: dict[str, Any] = {"prompt": prompt, "top": top}
        return _job(self._post(f"/v1/circuits/{_id(circuit_id)}/try", body | ({"corrupt": corrupt} if corrupt else {})))

    def relabel(self, circuit_id: str, **changes: Any) -> CircuitInfo:
        """Change name, tags or notes."""
        path = f"/v1/circuits/{_id(circuit_id)}"
        return _circuit(self._json_object("PATCH", path, **_as_json(changes), repeats=True))

    def delete_circuit(self, circuit_id: str) -> None:
        self._request("DELETE", f"/v1/circuits/{_id(circuit_id)}")

    # -- maps ------------------------------------------------------------------------------------------------------

    def maps(self, *, limit: int = 50, **filters: Any) -> list[MapInfo]:
        """Newest first. filters: as the API takes them (kind, model, task, metric, tag, job)."""
        return [_map(item) for item in self._pages("/v1/maps", limit, filters)]

    def map(self, map_id: str) -> MapInfo:
        return _map(self._get(f"/v1/maps/{_id(map_id)}"))

    def map_values(self, map_id: str, *, per_example: bool = False, **slices: Any) -> dict[str, Any]:
        """Nested lists in the order of the axes. slices: labels by axis, like layer=["3", "4"], place="S2".
        per_example: with the metric of every prompt."""
        wanted = {**slices, "per_example": True} if per_example else slices
        return self._get(f"/v1/maps/{_id(map_id)}/values", **wanted)

    def map_file(self, map_id: str) -> PatchMap:
        """The whole map, with the metric of every prompt."""
        return PatchMap.from_bytes(self.export_map(map_id), f"{map_id}.safetensors")

    def export_map(self, map_id: str, format: str = "safetensors") -> bytes:
        """format: safetensors (everything, to the bit), csv or json."""
        return self._request("GET", f"/v1/maps/{_id(map_id)}/export", params={"format": format}).content

    def heatmap_svg(self, map_id: str) -> str:
        return self._request("GET", f"/v1/maps/{_id(map_id)}/heatmap.svg").text

    # -- what there is ---------------------------------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        return self._items("/v1/models")

    def tasks(self) -> list[dict[str, Any]]:
        return self._items("/v1/tasks")

    def methods(self) -> list[dict[str, Any]]:
        return self._items("/v1/methods")

    def map_kinds(self) -> list[dict[str, Any]]:
        """What a patch job's `map` may be."""
        return self._items("/v1/methods", "maps")

    def is_ready(self) -> bool:
        """Whether the service answers and says that all its parts are up."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    # -- requests --------------------------------------------------------------------------------------------------

    def _get(self, path: str, **params: Any) -> dict[str, Any]:
        return self._json_object("GET", path, params=params)

    def _post(self, path: str, body: Mapping[str, Any] | None = None, key: str | None = None) -> dict[str, Any]:
        """With an idempotency key, so that repeating is harmless."""
        sent = _as_json(body or {})
        sent["headers"]["Idempotency-Key"] = key or uuid.uuid4().hex
        return self._json_object("POST", path, **sent, repeats=True)

    def _items(self, path: str, key: str = "items") -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._get(path)[key]
        return items

    def _pages(self, path: str, limit: int, filters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """At most `limit` items of a list, page by page."""
        given = {key: value for key, value in filters.items() if value not in (None, (), [])}
        cursor: dict[str, str] = {}
        while limit > 0:
            body = self._get(path, limit=min(limit, _PAGE), **given, **cursor)
            yield from body["items"]
            limit -= len(body["items"])
            if not body.get("next_cursor"):
                return
            cursor = {"cursor": body["next_cursor"]}

    def _json_object(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        response = self._request(method, path, **arguments)
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ServiceError(
                f"{self.url} answered {path} with something that is no JSON object; is it an acdc service?"
            )
        return body

    def _request(self, method: str, path: str, *, repeats: bool = False, **arguments: Any) -> httpx.Response:
        """repeats: whether asking twice is harmless; a GET always is."""
        attempts = RETRIES if repeats or method == "GET" else 1
        for attempt in range(attempts):
            try:
                response = self._http.request(method, path, **arguments)
            except httpx.ConnectError as error:
                raise self._unreachable(error) from None
            except httpx.TransportError as error:
                if attempt == attempts - 1:
                    raise self._unreachable(error) from None
            else:
                if response.status_code not in _BUSY or attempt == attempts - 1:
                    return self._checked(response)
            time.sleep(RETRY_PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _stream(self, path: str, after: int) -> Iterator[Event | None]:
        """None once the server has taken the request, then every event."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        timeout = httpx.Timeout(EVENT_SILENCE_S, connect=TIMEOUT.connect)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
            self._checked(response)
            yield None
            for event in EventSource(response).iter_sse():
                # A ping carries no data, and repeats the last id.
                if event.data and event.id.isdecimal() and int(event.id) > after:
                    after = int(event.id)
                    yield _event(event)

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_error:
            raise _error_of(response)
        return response

    def _unreachable(self, error: Exception) -> ServiceError:
        reason = str(error) or type(error).__name__
        return ServiceError(
            f"no answer from {self.url} ({reason}). Start a service with `acdc serve`, name another one with --url or "
            "ACDC_URL, or search without a service: `acdc run SPEC`"
        )


# -- to and from JSON -----------------------------------------------------------------------------------------------


def _as_json(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's body. Raises SpecError for a value that JSON has not, like a date that YAML read out of a name."""
    try:
        content = json.dumps(spell_infinity(body), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise SpecError(f"what is to be sent has no form in JSON: {error}; quote texts that look like dates") from None
    return {"content": content, "headers": {"Content-Type": "application/json"}}


def _id(text: str) -> str:
    """Ids are put into paths: nothing in one may end the path."""
    return quote(text, safe="") or "-"


def _job(body: Mapping[str, Any]) -> Job:
    progress, error = body.get("progress"), body.get("error")
    return Job(
        id=body["id"],
        kind=body["kind"],
        state=body["state"],
        name=body.get("name"),
        progress=job_progress(progress) if progress else None,
        results=tuple(_result(item) for item in body.get("results") or ()),
        error=JobError(error["code"], error["message"], faults_of(error.get("faults"))) if error else None,
        retry_of=body.get("retry_of"),
        created_at=body.get("created_at"),
        raw=body,
    )


def job_progress(body: Mapping[str, Any]) -> JobProgress:
    return JobProgress(
        str(body.get("phase", "")), int(body.get("done") or 0), int(body.get("total") or 0), str(body.get("note") or "")
    )


def _result(body: Mapping[str, Any]) -> JobResult:
    return JobResult(body["key"], body["kind"], body.get("circuit_id"), body.get("map_id"), body.get("data") or {})


def _circuit(body: Mapping[str, Any]) -> CircuitInfo:
    return CircuitInfo(
        id=body["id"],
        name=body.get("name"),
        model=body["model_reference"],
        task=body["task"],
        method=body["method"],
        n_edges=body["n_edges"],
        n_edges_total=body["n_edges_total"],
        f=body.get("f"),
        kl_share=body.get("kl_share"),
        created_at=body.get("created_at"),
        raw=body,
    )


def _map(body: Mapping[str, Any]) -> MapInfo:
    return MapInfo(
        id=body["id"],
        name=body.get("name"),
        kind=body["kind"],
        model=body["model_reference"],
        task=body["task"],
        metric=body["metric"],
        axes=tuple(axis["name"] for axis in body["axes"]),
        n_cells=body["n_cells"],
        n_clear=body["n_clear"],
        strongest=tuple(body["strongest"]),
        created_at=body.get("created_at"),
        raw=body,
    )


def _event(event: ServerSentEvent) -> Event:
    body = json.loads(event.data)
    return Event(int(event.id), event.event, body.get("data", body))


def faults_of(items: Any) -> tuple[Fault, ...]:
    return tuple(Fault(str(item.get("where", "")), str(item.get("message", ""))) for item in items or ())


def _error_of(response: httpx.Response) -> AcdcError:
    """A problem document as the error of our tree that has its code."""
    try:
        body = response.json()
        code, detail = str(body["code"]), str(body["detail"])
    except (ValueError, KeyError, TypeError):
        text = " ".join(response.text.split())[:200]
        return ServiceError(f"{response.request.url} answered {response.status_code}: {text or response.reason_phrase}")
    unknown = SpecError if response.is_client_error else ServiceError  # like a body that is too large
    return error_with_code(code, detail, faults_of(body.get("errors")), unknown)


def error_with_code(
    code: str, message: str, faults: tuple[Fault, ...] = (), unknown: type[AcdcError] = ServiceError
) -> AcdcError:
    """The class of our tree with that code; `unknown` for a code that it has not."""
    return _CLASSES.get(code, unknown)(message, faults)


def _tree(root: type[AcdcError]) -> Iterator[type[AcdcError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_CLASSES = {kind.code: kind for kind in _tree(AcdcError)}
