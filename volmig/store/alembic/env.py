"""Runs alembic's scripts on the connection, and in the transaction, that the caller has opened."""

from __future__ import annotations

from alembic import context

from volmig import errors
from volmig.store import schema

connection = context.config.attributes.get("connection")
if connection is None:
    raise errors.InternalError(reason="the upgrade scripts of the store were started without a connection")
context.configure(connection=connection, target_metadata=schema.metadata)
with context.begin_transaction():
    context.run_migrations()
