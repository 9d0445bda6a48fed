"""The tables. Every column is explained where its row type is (`rows.py`); here is what the database itself enforces.

Times (`…_ms`) are the database's clock in milliseconds, see `clock.py`. A change here needs a migration.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)

from acdc.store.columns import Document, Words
from acdc.store.states import HELD, State

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _one_of(column: str, values: Iterable[str]) -> str:
    return column + " IN (" + ", ".join(f"'{value}'" for value in values) + ")"


_HELD_STATES = _one_of("state", sorted(HELD))

jobs = Table(
    "jobs",
    metadata,
    Column("id", Words, primary_key=True),
    Column("owner", Words, nullable=False),  # `user` is a word of SQL
    Column("kind", Words, nullable=False),
    Column("state", Words, nullable=False),
    Column("spec", Document, nullable=False),
    Column("spec_sha256", Words, nullable=False),
    Column("name", Words),
    Column("notes", Words),
    Column("resource_class", Words, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("max_runtime_ms", BigInteger, nullable=False),
    Column("max_queue_ms", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("deaths", Integer, nullable=False),
    Column("retry_of", Words, ForeignKey("jobs.id")),
    Column("worker_id", Words),
    Column("lease_token", Words),
    Column("lease_until_ms", BigInteger),
    Column("claimed_ms", BigInteger),
    Column("ran_before_ms", BigInteger, nullable=False),  # in claims that are over
    Column("progress", Document),
    Column("checkpoint_digest", Words),
    Column("checkpoint_step", BigInteger),
    Column("checkpoint_engine_version", Integer),
    Column("error_code", Words),
    Column("error_message", Words),
    Column("error_faults", Document),
    Column("last_event", BigInteger, nullable=False),
    Column("last_log", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("queued_ms", BigInteger, nullable=False),  # when it last entered the queue
    Column("started_ms", BigInteger),
    Column("finished_ms", BigInteger),
    CheckConstraint(_one_of("state", list(State)), name="state"),
    CheckConstraint(f"({_HELD_STATES}) = (lease_token IS NOT NULL)", name="lease"),
    CheckConstraint("(state = 'failed') = (error_code IS NOT NULL)", name="error"),
    Index(None, "state", "resource_class", "priority", "created_ms"),
    Index(None, "created_ms", "id"),
    Index(None, "owner", "created_ms", "id"),
)

job_tags = Table(
    "job_tags",
    metadata,
    Column("job_id", Words, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("tag", Words, nullable=False),
    PrimaryKeyConstraint("job_id", "tag"),
    Index(None, "tag"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", Words, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("number", BigInteger, nullable=False, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", Words, nullable=False),
    Column("data", Document, nullable=False),
    PrimaryKeyConstraint("job_id", "number"),
)

job_logs = Table(
    "job_logs",
    metadata,
    Column("job_id", Words, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("number", BigInteger, nullable=False, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("line", Words, nullable=False),
    PrimaryKeyConstraint("job_id", "number"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", Words, nullable=False),
    Column("key", Words, nullable=False),
    Column("body_hash", Words, nullable=False),
    # deferred: the key is taken first, so that the second of two requests waits before it makes a job
    Column(
        "job_id",
        Words,
        ForeignKey("jobs.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
        nullable=False,
    ),
    Column("created_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("owner", "key"),
    Index(None, "created_ms"),
)

reaper = Table(  # one row, the memory that all sweeps share
    "reaper",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last_sweep_ms", BigInteger, nullable=False),
    Column("wait_until_ms", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

circuits = Table(
    "circuits",
    metadata,
    Column("id", Words, primary_key=True),
    Column("owner", Words, nullable=False),
    Column("job_id", Words, ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("result_key", Words),
    Column("name", Words),
    Column("notes", Words),
    Column("model_reference", Words, nullable=False),
    Column("model_fingerprint", Words, nullable=False),
    Column("graph_fingerprint", Words, nullable=False),
    Column("task", Words, nullable=False),
    Column("task_sha256", Words, nullable=False),
    Column("method", Words, nullable=False),
    Column("metric", Words, nullable=False),
    Column("ablation", Words, nullable=False),
    Column("rule", Words, nullable=False),
    Column("n_edges", Integer, nullable=False),
    Column("n_edges_total", Integer, nullable=False),
    Column("f", Float(53)),
    Column("kl_share", Float(53)),
    Column("derived_from", Words, ForeignKey("circuits.id", ondelete="SET NULL")),
    Column("artefact", Words, nullable=False),
    Column("report", Document),
    Column("provenance", Document, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("job_id", "result_key"),
    Index(None, "created_ms", "id"),
    Index(None, "model_fingerprint"),
    Index(None, "derived_from"),
)

circuit_tags = Table(
    "circuit_tags",
    metadata,
    Column("circuit_id", Words, ForeignKey("circuits.id", ondelete="CASCADE"), nullable=False),
    Column("tag", Words, nullable=False),
    PrimaryKeyConstraint("circuit_id", "tag"),
    Index(None, "tag"),
)

circuit_edges = Table(
    "circuit_edges",
    metadata,
    Column("circuit_id", Words, ForeignKey("circuits.id", ondelete="CASCADE"), nullable=False),
    Column("rank", Integer, nullable=False, autoincrement=False),
    Column("sender", Words, nullable=False),
    Column("receiver", Words, nullable=False),
    Column("score", Float(53)),
    PrimaryKeyConstraint("circuit_id", "rank"),
    Index(None, "sender", "receiver", "circuit_id"),
)

circuit_nodes = Table(
    "circuit_nodes",
    metadata,
    Column("circuit_id", Words, ForeignKey("circuits.id", ondelete="CASCADE"), nullable=False),
    Column("node", Words, nullable=False),
    PrimaryKeyConstraint("circuit_id", "node"),
    Index(None, "node"),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("id", Words, primary_key=True),
    Column("circuit_id", Words, ForeignKey("circuits.id", ondelete="CASCADE"), nullable=False),
    Column("job_id", Words, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("result_key", Words, nullable=False),
    Column("report", Document, nullable=False),
    Column("spec", Document, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("job_id", "result_key"),
    Index(None, "circuit_id", "created_ms"),
)

maps = Table(
    "maps",
    metadata,
    Column("id", Words, primary_key=True),
    Column("owner", Words, nullable=False),
    Column("job_id", Words, ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("result_key", Words, nullable=False),
    Column("name", Words),
    Column("notes", Words),
    Column("kind", Words, nullable=False),
    Column("model_reference", Words, nullable=False),
    Column("model_fingerprint", Words, nullable=False),
    Column("task", Words, nullable=False),
    Column("task_sha256", Words, nullable=False),
    Column("metric", Words, nullable=False),
    Column("base", Words, nullable=False),
    Column("n_cells", Integer, nullable=False),
    Column("n_clear", Integer, nullable=False),
    Column("n_examples", Integer, nullable=False),
    Column("clean", Float(53), nullable=False),
    Column("corrupt", Float(53), nullable=False),
    Column("axes", Document, nullable=False),
    Column("strongest", Document, nullable=False),
    Column("provenance", Document, nullable=False),
    Column("artefact", Words, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("job_id", "result_key"),
    Index(None, "created_ms", "id"),
    Index(None, "model_fingerprint"),
)

map_tags = Table(
    "map_tags",
    metadata,
    Column("map_id", Words, ForeignKey("maps.id", ondelete="CASCADE"), nullable=False),
    Column("tag", Words, nullable=False),
    PrimaryKeyConstraint("map_id", "tag"),
    Index(None, "tag"),
)

results = Table(
    "results",
    metadata,
    Column("job_id", Words, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("result_key", Words, nullable=False),
    Column("kind", Words, nullable=False),
    Column("circuit_id", Words, ForeignKey("circuits.id", ondelete="SET NULL")),
    Column("evaluation_id", Words, ForeignKey("evaluations.id", ondelete="SET NULL")),
    Column("map_id", Words, ForeignKey("maps.id", ondelete="SET NULL")),
    Column("data", Document, nullable=False),
    PrimaryKeyConstraint("job_id", "result_key"),  # one effect, however often a job ran
    CheckConstraint(_one_of("kind", ["circuit", "evaluation", "map", "table"]), name="kind"),
    Index(None, "circuit_id"),
    Index(None, "evaluation_id"),
    Index(None, "map_id"),
)

models = Table(
    "models",
    metadata,
    Column("fingerprint", Words, nullable=False),
    Column("reference", Words, nullable=False),
    Column("card", Document, nullable=False),
    Column("first_seen_ms", BigInteger, nullable=False),
    Column("last_used_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("fingerprint", "reference"),
)
