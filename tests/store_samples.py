"""What the store's tests share: specs, circuits, a hand on the database's time, and moves by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy import text

from acdc.circuit import Choices, Circuit, ModelCard, Provenance, Run, Selected, TaskCard
from acdc.graph import Graph, GraphShape
from acdc.patch_map import Axis, Cells, PatchMap, measured_axis
from acdc.report import Behaviour, Point, Report
from acdc.spec import DiscoverSpec, parse_job
from acdc.store import Claim, JobFilter, JobRow, Move, Page, State, Store

GRAPH = Graph(GraphShape(n_layers=2, n_heads=2, n_kv_heads=1))
EDGES = ("embed->0.0.q", "0.0->1.1.q", "1.1->logits", "embed->mlp0", "mlp0->logits")
CARD = ModelCard("path:toy", "toy", "gpt2", "f" * 64, "t" * 64, 1000, parity=1e-6)


def spec(**fields: Any) -> DiscoverSpec:
    pairs = [{"clean": "a b", "corrupt": "a c", "answers": "d", "wrong": "e"}]
    parsed = parse_job({"task": {"name": "custom", "pairs": pairs}, **fields})
    assert isinstance(parsed, DiscoverSpec)
    return parsed


def sql(store: Store, statement: str, **values: Any) -> Any:
    """Run one statement behind the store's back; its rows if it has any."""
    with store._database.write() as connection:
        result = connection.execute(text(statement), values)
        return result.all() if result.returns_rows else result.rowcount


def let_lease_run_out(store: Store, job_id: str) -> None:
    sql(store, "UPDATE jobs SET lease_until_ms = lease_until_ms - 3600000 WHERE id = :id", id=job_id)


def submit(store: Store, user: str = "ada", **options: Any) -> JobRow:
    fields = options.pop("fields", {})
    return store.jobs.submit(spec(**fields), user=user, **options).job


def claimed(store: Store, **options: Any) -> Claim:
    """A job of its own class, in the hands of worker-1."""
    job = submit(store, resource_class=options.pop("resource_class", "sample"), **options)
    claim = store.claims.claim("worker-1", job.resource_class)
    assert claim is not None
    assert claim.job.id == job.id
    return claim


def job_in(store: Store, state: State) -> tuple[JobRow, Claim | None]:
    """A fresh job brought to `state` by legal moves, and the claim it was last held by."""
    if state is State.QUEUED:
        return submit(store, resource_class=f"only-{state}"), None
    claim = claimed(store, resource_class=f"only-{state}")
    match state:
        case State.CANCELLING:
            store.jobs.cancel(claim.job.id)
        case State.CANCELLED:
            store.jobs.cancel(claim.job.id)
            store.claims.finish_cancelled(claim)
        case State.SUCCEEDED:
            store.claims.succeed(claim, [])
        case State.FAILED:
            store.claims.fail(claim, "internal", "broke")
    return store.jobs.get(claim.job.id), claim


def move_by_name(store: Store, job: JobRow, claim: Claim) -> dict[Move, Callable[[], object]]:
    """How each move is asked for from outside."""

    def lose() -> None:
        let_lease_run_out(store, job.id)
        store.reaper.sweep()

    def poison() -> None:
        sql(store, "UPDATE jobs SET deaths = 2 WHERE id = :id", id=job.id)
        store.claims.child_died(claim, "signal 9")

    def run_out_of_time() -> None:
        sql(store, "UPDATE jobs SET max_queue_ms = 0, max_runtime_ms = 0 WHERE id = :id", id=job.id)
        store.reaper.sweep()

    return {
        Move.CLAIM: lambda: store.claims.claim("worker-2", job.resource_class),
        Move.CANCEL: lambda: store.jobs.cancel(job.id),
        Move.SUCCEED: lambda: store.claims.succeed(claim, []),
        Move.FAIL: lambda: store.claims.fail(claim, "internal", "broke"),
        Move.FINISH_CANCELLED: lambda: store.claims.finish_cancelled(claim),
        Move.RELEASE: lambda: store.claims.release(claim),
        Move.LOSE: lose,
        Move.CHILD_DIED: lambda: store.claims.child_died(claim, "signal 9"),
        Move.POISON: poison,
        Move.RUN_OUT_OF_TIME: run_out_of_time,
    }


def circuit(
    edges: tuple[str, ...] = EDGES,
    *,
    model: ModelCard = CARD,
    task: str = "ioi",
    f: float = 0.9,
    graph: Graph = GRAPH,
) -> Circuit:
    kept = graph.mask_of_edges(edges)
    scores = np.zeros(kept.shape, dtype=np.float32)
    for i, name in enumerate(edges):
        edge = graph.edge(name)
        scores[edge.sender, edge.receiver] = (-1) ** i * (len(edges) - i)
    tested = graph.legal.copy()
    return Circuit(
        graph=graph,
        scores=scores,
        tested=tested,
        kept=kept,
        selected=Selected("signed", len(edges), len(edges)),
        provenance=Provenance(
            model=model,
            task=TaskCard(task, "abc", "a" * 64, 8, 4, 0, 0, ("x",), ("y",)),
            choices=Choices("logit_diff", "logit_diff", "resample", "eap", {}),
            run=Run("0", 1, "2", "5", "float32", "cpu", 1, 0, 1.0, 1),
        ),
        report=report(f),
    )


def report(f: float = 0.9) -> Report:
    point = Point("held_out", "signed", 0.1, 5, 5, 3.0, f, 0.2, 0.4, 1.0, (1.0, 2.0, 3.0, 4.0, 5.0))
    in_sample = Point("search", "signed", 0.1, 5, 5, 3.0, 0.99, 0.1, 0.2, 1.0, (1.0, 2.0, 3.0, 4.0, 5.0))
    return Report(
        behaviour=Behaviour("shown", 3.0, -3.0, (5.0, 7.0), 1.0, 0.5, 8),
        metric_full={"held_out": 3.0},
        metric_empty={"held_out": -3.0},
        kl_empty={"held_out": 1.0},
        points=(in_sample, point),
        areas=(),
        bands=(),
        k_star=None,
        kept=(in_sample, point),
    )


def every_page(read: Callable[[str | None], Page[Any]]) -> list[Any]:
    rows, cursor = [], None
    while True:
        page = read(cursor)
        rows += page.items
        cursor = page.next_cursor
        if cursor is None:
            return rows


def all_jobs(store: Store, limit: int = 1000, **filters: Any) -> list[JobRow]:
    return every_page(lambda cursor: store.jobs.list(JobFilter(**filters), cursor=cursor, limit=limit))


def patch_map(*, model: ModelCard = CARD, task: str = "ioi", metric: str = "logit_diff", seed: int = 0) -> PatchMap:
    """Two layers by two places by eight examples, of which the cell (1, end) does nothing and (0, end) is not there.
    S2 of layer 1 does most: 3 of the way of 4 from the corrupt run to the clean one."""
    draw = np.random.default_rng(seed)
    corrupt, clean = draw.normal(-2, 0.1, (1, 8)), draw.normal(2, 0.1, (1, 8))
    changed = np.stack([np.stack([corrupt + 1, corrupt * 0]), np.stack([corrupt + 3, corrupt])])  # [layer, place, 1, 8]
    cells = Cells(
        kind="activation_patching",
        axes=(measured_axis([metric]), Axis("layer", ("0", "1")), Axis("place", ("S2", "end"))),
        per_example=np.moveaxis(changed, 2, 0),
        defined=np.array([[True, False], [True, True]]),
        clean=clean,
        corrupt=corrupt,
        base="corrupt",
        groups=tuple("abcdefgh"),
        parameters={"state": "mlp", "places": "role", "direction": "denoising"},
    )
    made = circuit(model=model, task=task).provenance
    choices = replace(made.choices, method="activations", metric=metric, parameters=dict(cells.parameters))
    return PatchMap.of(cells, seed=seed, provenance=replace(made, choices=choices))
