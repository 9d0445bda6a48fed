"""Patching maps as results, the questions asked of them, and the migration that made room for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from alembic import command
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from store_samples import CARD, circuit, claimed, every_page, patch_map, sql

from acdc.errors import NotFound
from acdc.patch_map import PatchMap
from acdc.store import MapFilter, MapRow, NewCircuit, NewMap, State, Store, migrate
from acdc.store.database import Database
from acdc.store.migration import alembic_config

DIGEST = "d" * 64


def store_map(store: Store, made: PatchMap | None = None, artefact: str = DIGEST, **options: object) -> MapRow:
    claim = claimed(store, **options)
    store.claims.succeed(claim, [NewMap("map", made or patch_map(), artefact)])
    (result,) = store.jobs.results(claim.job.id)
    assert result.map_id is not None
    return store.maps.get(result.map_id).row


def found(store: Store, **filters: object) -> list[str]:
    return [row.id for row in every_page(lambda at: store.maps.list(MapFilter(**filters), cursor=at, limit=2))]


def test_made_map_can_be_read_back(store: Store) -> None:
    made = patch_map()
    row = store_map(store, made, user="ada", fields={"name": "mine", "tags": ["y", "x"], "notes": "n"})
    assert (row.user, row.result_key, row.name, row.tags, row.notes) == ("ada", "map", "mine", ("x", "y"), "n")
    assert (row.kind, row.metric, row.base, row.task) == ("activation_patching", "logit_diff", "corrupt", "ioi")
    assert (row.model_reference, row.model_fingerprint) == (CARD.reference, CARD.fingerprint)
    assert (row.n_cells, row.n_clear, row.n_examples) == (3, 2, 8)
    assert (row.clean, row.corrupt) == (made.cells.clean.mean(), made.cells.corrupt.mean())
    assert row.axes == ({"name": "layer", "labels": ["0", "1"]}, {"name": "place", "labels": ["S2", "end"]})
    assert [(cell["layer"], cell["place"]) for cell in row.strongest] == [("1", "S2"), ("0", "S2"), ("1", "end")]
    assert row.strongest[0]["effect"] == pytest.approx(3)
    assert row.strongest[0]["low"] <= row.strongest[0]["effect"] <= row.strongest[0]["high"]
    assert store.maps.list().items == (row,)
    detail = store.maps.get(row.id)
    assert made.provenance is not None
    assert detail.provenance["task"]["sha256"] == made.provenance.task.sha256
    assert store.models.get(CARD.fingerprint)


def test_every_filter_finds_the_maps_it_names_and_no_others(store: Store) -> None:
    other = replace(CARD, reference="path:other", fingerprint="0" * 64)
    first = store_map(store, user="ada", fields={"tags": ["x", "y"]})
    small = store_map(store, patch_map(task="induction", metric="accuracy"), user="bob", fields={"tags": ["x"]}).id
    foreign = store_map(store, patch_map(model=other)).id
    assert found(store) == [foreign, small, first.id]
    assert found(store, user="bob") == found(store, task="induction") == found(store, metric="accuracy") == [small]
    assert found(store, model="path:other") == found(store, model="0" * 64) == [foreign]
    assert found(store, job_id=first.job_id) == [first.id]
    assert found(store, tags=("x",)) == [small, first.id]
    assert found(store, tags=("x", "y")) == [first.id]
    assert found(store, kind="activation_patching") == [foreign, small, first.id]
    assert found(store, kind="path_patching") == []


def test_job_leaves_one_map_however_often_it_ran(store: Store) -> None:
    row = store_map(store)
    with pytest.raises(IntegrityError):
        sql(
            store,
            "INSERT INTO maps SELECT 'map_2', owner, job_id, result_key, name, notes, kind, model_reference, "
            "model_fingerprint, task, task_sha256, metric, base, n_cells, n_clear, n_examples, clean, corrupt, axes, "
            "strongest, provenance, artefact, created_ms FROM maps",
        )
    assert found(store) == [row.id]


def test_file_of_a_map_is_in_use(store: Store) -> None:
    store_map(store, artefact="a" * 64)
    assert store.artefacts_in_use() == {"a" * 64}


def test_unknown_map_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="map_x"):
        store.maps.get("map_x")


# -- the migration -----------------------------------------------------------------------------------------------------


def migrate_to(url: str, revision: str) -> None:
    database = Database(url, enforces_foreign_keys=False)
    with database.write() as connection:
        step = command.upgrade if revision == "0001" else command.downgrade
        step(alembic_config(connection), "0001")
    database.close()


def execute(url: str, *statements: str) -> list[object]:
    database = Database(url)
    try:
        with database.write() as connection:
            results = [connection.execute(text(statement)) for statement in statements]
            return [row for result in results if result.returns_rows for row in result]
    finally:
        database.close()


JOB = (
    "INSERT INTO jobs (id, owner, kind, state, spec, spec_sha256, resource_class, priority, max_runtime_ms, "
    "max_queue_ms, attempt, deaths, ran_before_ms, last_event, last_log, created_ms, queued_ms) VALUES ('job_1', "
    "'ada', 'try', 'succeeded', '{}', 'x', 'default', 0, 1, 1, 1, 0, 0, 0, 0, 1, 1)"
)
RESULT = "INSERT INTO results (job_id, result_key, kind, data) VALUES ('job_1', '{}', '{}', '{{}}')"


def test_results_survive_the_migration_and_keep_their_rules(empty_url: str) -> None:
    migrate_to(empty_url, "0001")
    execute(empty_url, JOB, RESULT.format("old", "table"))
    with pytest.raises(IntegrityError):
        execute(empty_url, RESULT.format("early", "map"))
    migrate(empty_url)
    with Store.open(empty_url) as store:
        assert [(row.key, row.kind, row.map_id) for row in store.jobs.results("job_1")] == [("old", "table", None)]
    execute(empty_url, RESULT.format("new", "map"))
    for key, kind in (("other", "nonsense"), ("old", "table")):  # the check and the primary key are still there
        with pytest.raises(IntegrityError):
            execute(empty_url, RESULT.format(key, kind))
    execute(empty_url, "DELETE FROM jobs")
    assert execute(empty_url, "SELECT * FROM results") == []  # and the reference to the job


def test_maps_can_be_taken_back_and_everything_else_stays(empty_url: str) -> None:
    migrate(empty_url)
    with Store.open(empty_url) as store:
        store_map(store)
        claim = claimed(store)
        store.claims.succeed(claim, [NewCircuit("circuit", circuit(), DIGEST)])
        (circuit_row,) = store.circuits.list().items
    migrate_to(empty_url, "back")
    with pytest.raises(IntegrityError):
        execute(empty_url, RESULT.replace("'job_1'", f"'{claim.job.id}'").format("late", "map"))
    migrate(empty_url)
    with Store.open(empty_url) as store:
        assert store.circuits.get(circuit_row.id).row == circuit_row
        assert [row.kind for row in store.jobs.results(claim.job.id)] == ["circuit"]
        assert store.jobs.get(claim.job.id).state is State.SUCCEEDED
        assert store.maps.list().items == ()
