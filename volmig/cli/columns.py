"""The columns of migrations, which several commands show."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from volmig.cli.cells import plain

if TYPE_CHECKING:
    from volmig.model import Migration

MIGRATION_COLUMNS = (
    "id",
    "volume_id",
    "source",
    "destination",
    "method",
    "phase",
    "worker",
    "bytes_done",
    "bytes_total",
    "rate_bytes",
    "eta_seconds",
    "engine",
    "verify",
    "digest_algorithm",
    "source_digest",
    "destination_digest",
    "error_code",
    "error_message",
    "error_hint",
    "force_host_copy",
    "lock_volume",
    "bandwidth_limit_bytes",
    "source_retention_seconds",
    "rolls_back",
    "requested_by",
    "cancel_requested_by",
    "pause_requested_by",
    "destination_id",
    "owner",
    "epoch",
    "lease_expires_at",
    "created_at",
    "started_at",
    "finished_at",
    "updated_at",
)


def migration_value(migration: Migration, column: str, *, now: datetime | None = None) -> Any:
    """Return what stands in a column for *migration*.

    ``worker`` is ``running``, ``none`` as long as nobody has taken the migration and while it is paused, ``gone since
    …`` with the time at which the lease ran out, or nothing when the migration has ended. Once it is gone, rate and
    remaining time are unknown: what is recorded is from before.
    """
    gone = is_abandoned(migration, now=now)
    if column == "worker":
        return _worker(migration, gone=gone)
    if gone and column in ("rate_bytes", "eta_seconds"):
        return None
    return getattr(migration, column)


def _worker(migration: Migration, *, gone: bool) -> str:
    if migration.phase.is_final:
        return ""
    if not gone:
        return "running" if migration.owner else "none"
    return f"gone since {plain(migration.lease_expires_at)}" if migration.lease_expires_at else "gone"


def is_abandoned(migration: Migration, *, now: datetime | None = None) -> bool:
    """Say whether a migration's worker seems to be gone; only taking it over makes that certain.

    :param now: the time; that of this host unless given.
    """
    if migration.phase.is_final or not migration.owner:
        return False
    expires_at = migration.lease_expires_at
    return expires_at is None or expires_at <= (now or datetime.now(UTC))
