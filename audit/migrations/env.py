"""Alembic's entry: run the migrations on the connection that the log's writer holds, in its transaction."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("the log's writer runs its migrations: open the log, or run `sealgate log prepare STATE`")
context.configure(connection=connection)
with context.begin_transaction():
    context.run_migrations()
