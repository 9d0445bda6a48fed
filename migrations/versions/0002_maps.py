"""Patching maps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WORDS = sa.Text()
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
FLOAT = sa.Float(precision=53)
KINDS_BEFORE = "kind IN ('circuit', 'evaluation', 'table')"
KINDS = "kind IN ('circuit', 'evaluation', 'map', 'table')"


def upgrade() -> None:
    op.create_table(
        "maps",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("job_id", WORDS, nullable=True),
        sa.Column("result_key", WORDS, nullable=False),
        sa.Column("name", WORDS, nullable=True),
        sa.Column("notes", WORDS, nullable=True),
        sa.Column("kind", WORDS, nullable=False),
        sa.Column("model_reference", WORDS, nullable=False),
        sa.Column("model_fingerprint", WORDS, nullable=False),
        sa.Column("task", WORDS, nullable=False),
        sa.Column("task_sha256", WORDS, nullable=False),
        sa.Column("metric", WORDS, nullable=False),
        sa.Column("base", WORDS, nullable=False),
        sa.Column("n_cells", sa.Integer(), nullable=False),
        sa.Column("n_clear", sa.Integer(), nullable=False),
        sa.Column("n_examples", sa.Integer(), nullable=False),
        sa.Column("clean", FLOAT, nullable=False),
        sa.Column("corrupt", FLOAT, nullable=False),
        sa.Column("axes", DOCUMENT, nullable=False),
        sa.Column("strongest", DOCUMENT, nullable=False),
        sa.Column("provenance", DOCUMENT, nullable=False),
        sa.Column("artefact", WORDS, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_maps_job_id_jobs", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="pk_maps"),
        sa.UniqueConstraint("job_id", "result_key", name="uq_maps_job_id_result_key"),
    )
    op.create_index("ix_maps_created_ms_id", "maps", ["created_ms", "id"], unique=False)
    op.create_index("ix_maps_model_fingerprint", "maps", ["model_fingerprint"], unique=False)
    op.create_table(
        "map_tags",
        sa.Column("map_id", WORDS, nullable=False),
        sa.Column("tag", WORDS, nullable=False),
        sa.ForeignKeyConstraint(["map_id"], ["maps.id"], name="fk_map_tags_map_id_maps", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("map_id", "tag", name="pk_map_tags"),
    )
    op.create_index("ix_map_tags_tag", "map_tags", ["tag"], unique=False)
    _rebuild_results(KINDS, with_maps=True)


def downgrade() -> None:
    op.execute("DELETE FROM results WHERE kind = 'map'")
    _rebuild_results(KINDS_BEFORE, with_maps=False)
    op.drop_table("map_tags")
    op.drop_table("maps")


def _rebuild_results(kinds: str, *, with_maps: bool) -> None:
    with op.batch_alter_table("results") as results:
        results.drop_constraint("ck_results_kind", type_="check")
        results.create_check_constraint("ck_results_kind", kinds)
        if with_maps:
            results.add_column(sa.Column("map_id", WORDS, nullable=True))
            results.create_foreign_key("fk_results_map_id_maps", "maps", ["map_id"], ["id"], ondelete="SET NULL")
            results.create_index("ix_results_map_id", ["map_id"], unique=False)
        else:
            results.drop_index("ix_results_map_id")
            results.drop_constraint("fk_results_map_id_maps", type_="foreignkey")
            results.drop_column("map_id")
