"""The SQL statements, each built once: building one costs more than SQLite takes to run it."""

from __future__ import annotations

import functools
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import bindparam

from volmig.store import rows
from volmig.store.schema import (
    backends,
    checkpoints,
    journal,
    migrations,
    pools,
    reservations,
    retired,
    revision,
    volumes,
)

GET_VOLUME: Final = sa.select(*rows.VOLUME_COLUMNS).where(volumes.c.id == bindparam("key"))
ADD_VOLUME: Final = sa.insert(volumes)
REMOVE_VOLUME: Final = sa.delete(volumes).where(
    volumes.c.id == bindparam("key"), volumes.c.version == bindparam("key_version")
)
# Which columns are set is decided by the parameters of each execution.
UPDATE_VOLUME: Final = sa.update(volumes).where(
    volumes.c.id == bindparam("key"), volumes.c.version == bindparam("key_version")
)
VOLUME_POSITION: Final = sa.select(volumes.c.created_at).where(volumes.c.id == bindparam("key"))

GET_MIGRATION: Final = sa.select(*rows.MIGRATION_COLUMNS).where(migrations.c.id == bindparam("key"))
ADD_MIGRATION: Final = sa.insert(migrations)
UPDATE_MIGRATION: Final = sa.update(migrations).where(
    migrations.c.id == bindparam("key"), migrations.c.epoch == bindparam("key_epoch")
)
MIGRATION_POSITION: Final = sa.select(migrations.c.created_at).where(migrations.c.id == bindparam("key"))

READ_JOURNAL: Final = (
    sa.select(*rows.ENTRY_COLUMNS).where(journal.c.migration_id == bindparam("key")).order_by(journal.c.sequence)
)
# One row when the migration exists, none when not.
LAST_SEQUENCE: Final = sa.select(
    sa.select(sa.func.max(journal.c.sequence))
    .where(journal.c.migration_id == bindparam("key"))
    .scalar_subquery()
    .label("last")
).where(migrations.c.id == bindparam("key"))
ADD_ENTRY: Final = sa.insert(journal)

LOAD_CHECKPOINT: Final = sa.select(checkpoints.c.data).where(checkpoints.c.migration_id == bindparam("key"))
LIST_CHECKPOINTS: Final = sa.select(checkpoints.c.migration_id).order_by(checkpoints.c.migration_id)
# One row when the migration exists; "saved" is the epoch of its checkpoint, and NULL when there is none.
CHECKPOINT_STATE: Final = (
    sa.select(migrations.c.epoch, checkpoints.c.epoch.label("saved"))
    .outerjoin_from(migrations, checkpoints)
    .where(migrations.c.id == bindparam("key"))
)
ADD_CHECKPOINT: Final = sa.insert(checkpoints)
UPDATE_CHECKPOINT: Final = sa.update(checkpoints).where(
    checkpoints.c.migration_id == bindparam("key"), checkpoints.c.epoch == bindparam("key_epoch")
)
REMOVE_CHECKPOINT: Final = sa.delete(checkpoints).where(checkpoints.c.migration_id == bindparam("key"))

GET_RETIRED: Final = sa.select(*rows.RETIRED_COLUMNS).where(retired.c.id == bindparam("key"))
ADD_RETIRED: Final = sa.insert(retired)
UPDATE_RETIRED: Final = sa.update(retired).where(retired.c.id == bindparam("key"))
REMOVE_RETIRED: Final = sa.delete(retired).where(retired.c.id == bindparam("key"))

LIST_RESERVATIONS: Final = sa.select(*rows.RESERVATION_COLUMNS).order_by(reservations.c.host, reservations.c.id)
LIST_RESERVATIONS_OF: Final = LIST_RESERVATIONS.where(reservations.c.host == bindparam("pool"))
GET_RESERVATION: Final = sa.select(*rows.RESERVATION_COLUMNS).where(reservations.c.id == bindparam("key"))
ADD_RESERVATION: Final = sa.insert(reservations)
REMOVE_RESERVATION: Final = sa.delete(reservations).where(reservations.c.id == bindparam("key"))

GET_POOL: Final = sa.select(pools.c.reserved_bytes, pools.c.releases).where(pools.c.address == bindparam("pool"))
ADD_POOL: Final = sa.insert(pools)
CHARGE_POOL: Final = (
    sa.update(pools)
    .where(
        pools.c.address == bindparam("pool"),
        pools.c.reserved_bytes + bindparam("amount", type_=sa.BigInteger) <= bindparam("limit", type_=sa.BigInteger),
    )
    .values(reserved_bytes=pools.c.reserved_bytes + bindparam("amount", type_=sa.BigInteger))
)
DISCHARGE_POOL: Final = (
    sa.update(pools)
    .where(pools.c.address == bindparam("pool"))
    .values(
        reserved_bytes=pools.c.reserved_bytes - bindparam("amount", type_=sa.BigInteger), releases=pools.c.releases + 1
    )
)

GET_BACKEND: Final = sa.select(backends.c.storage_identity).where(backends.c.address == bindparam("key"))
ADD_BACKEND: Final = sa.insert(backends)
UPDATE_BACKEND: Final = sa.update(backends).where(backends.c.address == bindparam("key"))

GET_REVISION: Final = sa.select(revision.c.version_num)
# Locking the one row that each volmig database has makes writers on a server come one after another; an upgrade of
# the schema changes the same row, and so waits for them too.
TAKE_TURN: Final = GET_REVISION.with_for_update()


@functools.lru_cache(maxsize=256)
def list_volumes(filters: frozenset[str]) -> sa.Select[Any]:
    """Return a statement with the *filters* named, out of ``name``, ``status``, ``project_id``, ``host`` (one pool),
    ``below`` (addresses from ``first`` to ``end``), ``after`` and ``limit``.
    """
    table = volumes
    statement = sa.select(*rows.VOLUME_COLUMNS).order_by(table.c.created_at, table.c.id)
    for name in sorted(filters & {"name", "status", "project_id", "host"}):
        statement = statement.where(table.c[name] == bindparam(name))
    if "below" in filters:
        statement = statement.where(table.c.host >= bindparam("first"), table.c.host < bindparam("end"))
    if "after" in filters:
        # A comparison of two pairs would say the same, but MariaDB does not use an index for it.
        statement = statement.where(
            table.c.created_at >= bindparam("after"),
            sa.or_(table.c.created_at > bindparam("after"), table.c.id > bindparam("after_id")),
        )
    return _limited(statement, filters)


@functools.lru_cache(maxsize=64)
def list_migrations(filters: frozenset[str]) -> sa.Select[Any]:
    """Return a statement with the *filters* named, out of ``volume_id``, ``method``, ``destination_id``, ``phases``,
    ``min_epoch``, ``after`` and ``limit``.
    """
    table = migrations
    statement = sa.select(*rows.MIGRATION_COLUMNS).order_by(table.c.created_at.desc(), table.c.id.desc())
    for name in sorted(filters & {"volume_id", "method", "destination_id"}):
        statement = statement.where(table.c[name] == bindparam(name))
    if "min_epoch" in filters:
        statement = statement.where(table.c.epoch >= bindparam("min_epoch"))
    if "phases" in filters:
        statement = statement.where(table.c.phase.in_(bindparam("phases", expanding=True)))
    if "after" in filters:
        statement = statement.where(
            table.c.created_at <= bindparam("after"),
            sa.or_(table.c.created_at < bindparam("after"), table.c.id < bindparam("after_id")),
        )
    return _limited(statement, filters)


@functools.lru_cache(maxsize=16)
def list_retired(filters: frozenset[str]) -> sa.Select[Any]:
    """Return a statement with the *filters* named, out of ``due_at``, ``migration_id`` and ``volume_id``."""
    statement = sa.select(*rows.RETIRED_COLUMNS)
    for name in sorted(filters & {"migration_id", "volume_id"}):
        statement = statement.where(retired.c[name] == bindparam(name))
    if "due_at" in filters:
        statement = statement.where(retired.c.delete_after <= bindparam("due_at"))
    return statement


def _limited(statement: sa.Select[Any], filters: frozenset[str]) -> sa.Select[Any]:
    return statement.limit(bindparam("limit", type_=sa.Integer)) if "limit" in filters else statement
