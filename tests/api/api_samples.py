"""Small specs and circuits for the API's tests: no model, no worker process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from acdc.circuit import Choices, Circuit, ModelCard, Provenance, Run, Selected, TaskCard
from acdc.graph import Graph, GraphShape
from acdc.report import Areas, Band, Behaviour, KStar, Point, Report, Stability
from acdc.settings import Settings
from acdc.store import Artefacts, NewCircuit, Store

Connect = Callable[..., TestClient]  # settings -> a client of an app with them
HOSTILE = "<img src=x onerror=alert(1)>"
PAIRS = [
    {
        "clean": f"The capital of {land} is",
        "corrupt": "The capital of Peru is",
        "answers": " Paris",
        "wrong": " Lima",
        "group": land,
    }
    for land in ("France", "Gaul", "Burgundy", "Navarre")
]
SPEC: dict[str, Any] = {"task": {"name": "custom", "pairs": PAIRS}, "method": "eap", "name": "small", "tags": ["t1"]}


def make_report() -> Report:
    points = tuple(
        Point(split, rule, size, 10, 8, 1.0, 0.2 + size, 0.3, 0.4, 0.9, (0.0, 0.5, 1.0, 1.5, 2.0))
        for split in ("search", "held_out")
        for rule in ("signed", "absolute")
        for size in (0.01, 0.1, 1.0)
    )
    star = points[-4]
    return Report(
        behaviour=Behaviour("shown", 3.1, -1.2, (4.0, 4.6), 0.98, 0.5, 64),
        metric_full={"search": 3.2, "held_out": 3.1},
        metric_empty={"search": -1.1, "held_out": -1.2},
        kl_empty={"search": 2.0, "held_out": 2.1},
        points=points,
        areas=tuple(Areas("held_out", rule, 0.93, 0.08, 0.55, 0.47) for rule in ("signed", "absolute")),
        bands=(Band("signed", 0.1, 8, 2, (0.1, 0.2), (0.9, 0.8)),),
        k_star=KStar(True, star),
        kept=(star,),
        stability=Stability("unstable", "", 0.71, 0.8, 200, 64, "group", 12, 7, 3),
    )


def make_circuit(seed: int = 0, *, title: str = "Tiny", spec: dict[str, Any] | None = None) -> Circuit:
    """Most of a 2-layer graph's edges, with random scores and one edge that was never tested."""
    graph = Graph(GraphShape(2, 4, 2))
    scores = (np.random.default_rng(seed).standard_normal(graph.legal.shape) * graph.legal).astype(np.float32)
    kept = graph.connected(graph.legal & (np.abs(scores) > 0.2))
    tested = graph.legal.copy()
    tested[0, 0] = False
    scores[0, 0] = 0
    provenance = Provenance(
        model=ModelCard("smollm2-135m-instruct-q4", title, "llama", "f" * 64, "t" * 64, 1000, "Q4_1", "instruct"),
        task=TaskCard("custom", "given", "a" * 64, 3, 1, 0, 0, ("France",), ("Navarre",)),
        choices=Choices("logit_diff", "logit_diff", "resample", "eap", {}),
        run=Run("0.1.0", 1, "2", "5", "float32", "cpu", 2, 0, 12.0, 2**30, spec=spec or {}),
    )
    inclusion = (kept * 0.75).astype(np.float32)
    selected = Selected("absolute", 50, int(kept.sum()))
    return Circuit(graph, scores, tested, kept, selected, provenance, make_report(), inclusion)


def finish(store: Store, artefacts: Artefacts, *, progress: int = 2) -> str:
    """Be a worker for one queued job: claim it, report progress, store a circuit. Returns the circuit's id."""
    claim = store.claims.claim("worker-1", "default")
    assert claim is not None, "nothing is queued"
    for done in range(progress):
        store.claims.heartbeat(claim, {"phase": "search", "done": done, "total": progress})
    store.claims.add_log(claim, [f"line {n}" for n in range(3)])
    circuit = make_circuit(spec=dict(claim.job.spec))
    store.claims.succeed(claim, [NewCircuit("circuit", circuit, artefacts.put(circuit.to_bytes()))])
    (result,) = store.jobs.results(claim.job.id)
    assert result.circuit_id is not None
    return result.circuit_id


def make_settings(data_dir: Any, **more: Any) -> Settings:
    return Settings(data_dir=data_dir, **more)
