"""Run by Alembic. `acdc.store.migration` hands over the connection, inside the transaction that all steps share."""

from __future__ import annotations

from alembic import context

from acdc.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by rebuilding it
)
with context.begin_transaction():
    context.run_migrations()
