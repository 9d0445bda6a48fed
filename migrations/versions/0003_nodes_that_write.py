"""A circuit's nodes are those that a kept edge leaves. Under a norm that spans the heads of a layer, their siblings had
been stored with them."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "DELETE FROM circuit_nodes WHERE NOT EXISTS (SELECT 1 FROM circuit_edges WHERE "
        "circuit_edges.circuit_id = circuit_nodes.circuit_id AND circuit_edges.sender = circuit_nodes.node)"
    )


def downgrade() -> None:
    """What was taken out was in no circuit."""
