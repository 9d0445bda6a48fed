"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

WORDS = sa.Text()
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("kind", WORDS, nullable=False),
        sa.Column("state", WORDS, nullable=False),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("spec_sha256", WORDS, nullable=False),
        sa.Column("name", WORDS, nullable=True),
        sa.Column("notes", WORDS, nullable=True),
        sa.Column("resource_class", WORDS, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("max_runtime_ms", sa.BigInteger(), nullable=False),
        sa.Column("max_queue_ms", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("deaths", sa.Integer(), nullable=False),
        sa.Column("retry_of", WORDS, nullable=True),
        sa.Column("worker_id", WORDS, nullable=True),
        sa.Column("lease_token", WORDS, nullable=True),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("claimed_ms", sa.BigInteger(), nullable=True),
        sa.Column("ran_before_ms", sa.BigInteger(), nullable=False),
        sa.Column("progress", DOCUMENT, nullable=True),
        sa.Column("checkpoint_digest", WORDS, nullable=True),
        sa.Column("checkpoint_step", sa.BigInteger(), nullable=True),
        sa.Column("checkpoint_engine_version", sa.Integer(), nullable=True),
        sa.Column("error_code", WORDS, nullable=True),
        sa.Column("error_message", WORDS, nullable=True),
        sa.Column("error_faults", DOCUMENT, nullable=True),
        sa.Column("last_event", sa.BigInteger(), nullable=False),
        sa.Column("last_log", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("queued_ms", sa.BigInteger(), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=True),
        sa.Column("finished_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(state = 'failed') = (error_code IS NOT NULL)", name="ck_jobs_error"),
        sa.CheckConstraint("(state IN ('cancelling', 'running')) = (lease_token IS NOT NULL)", name="ck_jobs_lease"),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')", name="ck_jobs_state"
        ),
        sa.ForeignKeyConstraint(["retry_of"], ["jobs.id"], name="fk_jobs_retry_of_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_created_ms_id", "jobs", ["created_ms", "id"], unique=False)
    op.create_index("ix_jobs_owner_created_ms_id", "jobs", ["owner", "created_ms", "id"], unique=False)
    op.create_index(
        "ix_jobs_state_resource_class_priority_created_ms",
        "jobs",
        ["state", "resource_class", "priority", "created_ms"],
        unique=False,
    )
    op.create_table(
        "models",
        sa.Column("fingerprint", WORDS, nullable=False),
        sa.Column("reference", WORDS, nullable=False),
        sa.Column("card", DOCUMENT, nullable=False),
        sa.Column("first_seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_used_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", "reference", name="pk_models"),
    )
    op.create_table(
        "reaper",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_sweep_ms", sa.BigInteger(), nullable=False),
        sa.Column("wait_until_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_reaper_one_row"),
        sa.PrimaryKeyConstraint("id", name="pk_reaper"),
    )
    op.create_table(
        "circuits",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("job_id", WORDS, nullable=True),
        sa.Column("result_key", WORDS, nullable=True),
        sa.Column("name", WORDS, nullable=True),
        sa.Column("notes", WORDS, nullable=True),
        sa.Column("model_reference", WORDS, nullable=False),
        sa.Column("model_fingerprint", WORDS, nullable=False),
        sa.Column("graph_fingerprint", WORDS, nullable=False),
        sa.Column("task", WORDS, nullable=False),
        sa.Column("task_sha256", WORDS, nullable=False),
        sa.Column("method", WORDS, nullable=False),
        sa.Column("metric", WORDS, nullable=False),
        sa.Column("ablation", WORDS, nullable=False),
        sa.Column("rule", WORDS, nullable=False),
        sa.Column("n_edges", sa.Integer(), nullable=False),
        sa.Column("n_edges_total", sa.Integer(), nullable=False),
        sa.Column("f", sa.Float(precision=53), nullable=True),
        sa.Column("kl_share", sa.Float(precision=53), nullable=True),
        sa.Column("derived_from", WORDS, nullable=True),
        sa.Column("artefact", WORDS, nullable=False),
        sa.Column("report", DOCUMENT, nullable=True),
        sa.Column("provenance", DOCUMENT, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["derived_from"], ["circuits.id"], name="fk_circuits_derived_from_circuits", ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_circuits_job_id_jobs", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="pk_circuits"),
        sa.UniqueConstraint("job_id", "result_key", name="uq_circuits_job_id_result_key"),
    )
    op.create_index("ix_circuits_created_ms_id", "circuits", ["created_ms", "id"], unique=False)
    op.create_index("ix_circuits_derived_from", "circuits", ["derived_from"], unique=False)
    op.create_index("ix_circuits_model_fingerprint", "circuits", ["model_fingerprint"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("key", WORDS, nullable=False),
        sa.Column("body_hash", WORDS, nullable=False),
        sa.Column("job_id", WORDS, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
            name="fk_idempotency_keys_job_id_jobs",
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("owner", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_ms", "idempotency_keys", ["created_ms"], unique=False)
    op.create_table(
        "job_events",
        sa.Column("job_id", WORDS, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", WORDS, nullable=False),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_events_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_job_events"),
    )
    op.create_table(
        "job_logs",
        sa.Column("job_id", WORDS, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("line", WORDS, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_logs_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_job_logs"),
    )
    op.create_table(
        "job_tags",
        sa.Column("job_id", WORDS, nullable=False),
        sa.Column("tag", WORDS, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_tags_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "tag", name="pk_job_tags"),
    )
    op.create_index("ix_job_tags_tag", "job_tags", ["tag"], unique=False)
    op.create_table(
        "circuit_edges",
        sa.Column("circuit_id", WORDS, nullable=False),
        sa.Column("rank", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sender", WORDS, nullable=False),
        sa.Column("receiver", WORDS, nullable=False),
        sa.Column("score", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(
            ["circuit_id"], ["circuits.id"], name="fk_circuit_edges_circuit_id_circuits", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("circuit_id", "rank", name="pk_circuit_edges"),
    )
    op.create_index(
        "ix_circuit_edges_sender_receiver_circuit_id",
        "circuit_edges",
        ["sender", "receiver", "circuit_id"],
        unique=False,
    )
    op.create_table(
        "circuit_nodes",
        sa.Column("circuit_id", WORDS, nullable=False),
        sa.Column("node", WORDS, nullable=False),
        sa.ForeignKeyConstraint(
            ["circuit_id"], ["circuits.id"], name="fk_circuit_nodes_circuit_id_circuits", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("circuit_id", "node", name="pk_circuit_nodes"),
    )
    op.create_index("ix_circuit_nodes_node", "circuit_nodes", ["node"], unique=False)
    op.create_table(
        "circuit_tags",
        sa.Column("circuit_id", WORDS, nullable=False),
        sa.Column("tag", WORDS, nullable=False),
        sa.ForeignKeyConstraint(
            ["circuit_id"], ["circuits.id"], name="fk_circuit_tags_circuit_id_circuits", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("circuit_id", "tag", name="pk_circuit_tags"),
    )
    op.create_index("ix_circuit_tags_tag", "circuit_tags", ["tag"], unique=False)
    op.create_table(
        "evaluations",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("circuit_id", WORDS, nullable=False),
        sa.Column("job_id", WORDS, nullable=False),
        sa.Column("result_key", WORDS, nullable=False),
        sa.Column("report", DOCUMENT, nullable=False),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["circuit_id"], ["circuits.id"], name="fk_evaluations_circuit_id_circuits", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_evaluations_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
        sa.UniqueConstraint("job_id", "result_key", name="uq_evaluations_job_id_result_key"),
    )
    op.create_index("ix_evaluations_circuit_id_created_ms", "evaluations", ["circuit_id", "created_ms"], unique=False)
    op.create_table(
        "results",
        sa.Column("job_id", WORDS, nullable=False),
        sa.Column("result_key", WORDS, nullable=False),
        sa.Column("kind", WORDS, nullable=False),
        sa.Column("circuit_id", WORDS, nullable=True),
        sa.Column("evaluation_id", WORDS, nullable=True),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.CheckConstraint("kind IN ('circuit', 'evaluation', 'table')", name="ck_results_kind"),
        sa.ForeignKeyConstraint(
            ["circuit_id"], ["circuits.id"], name="fk_results_circuit_id_circuits", ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name="fk_results_evaluation_id_evaluations", ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_results_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "result_key", name="pk_results"),
    )
    op.create_index("ix_results_circuit_id", "results", ["circuit_id"], unique=False)
    op.create_index("ix_results_evaluation_id", "results", ["evaluation_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_results_evaluation_id", table_name="results")
    op.drop_index("ix_results_circuit_id", table_name="results")
    op.drop_table("results")
    op.drop_index("ix_evaluations_circuit_id_created_ms", table_name="evaluations")
    op.drop_table("evaluations")
    op.drop_index("ix_circuit_tags_tag", table_name="circuit_tags")
    op.drop_table("circuit_tags")
    op.drop_index("ix_circuit_nodes_node", table_name="circuit_nodes")
    op.drop_table("circuit_nodes")
    op.drop_index("ix_circuit_edges_sender_receiver_circuit_id", table_name="circuit_edges")
    op.drop_table("circuit_edges")
    op.drop_index("ix_job_tags_tag", table_name="job_tags")
    op.drop_table("job_tags")
    op.drop_table("job_logs")
    op.drop_table("job_events")
    op.drop_index("ix_idempotency_keys_created_ms", table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
    op.drop_index("ix_circuits_model_fingerprint", table_name="circuits")
    op.drop_index("ix_circuits_derived_from", table_name="circuits")
    op.drop_index("ix_circuits_created_ms_id", table_name="circuits")
    op.drop_table("circuits")
    op.drop_table("reaper")
    op.drop_table("models")
    op.drop_index("ix_jobs_state_resource_class_priority_created_ms", table_name="jobs")
    op.drop_index("ix_jobs_owner_created_ms_id", table_name="jobs")
    op.drop_index("ix_jobs_created_ms_id", table_name="jobs")
    op.drop_table("jobs")
