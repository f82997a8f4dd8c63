"""Where a volume is, as drivers say and as records hold it, and what it leaves behind."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from volmig import errors
from volmig.migration.move import Move, Recording
from volmig.migration.steps.base import Facts
from volmig.model import RetiredObject, Volume
from volmig.store.base import ReadTransaction


def place_of(update: Mapping[str, Any], volume: Volume, *, name_id: str | None) -> dict[str, Any]:
    """Return a volume's place as a driver's update gives it; what the update leaves out is as in *volume*."""
    return {
        "name_id": update.get("_name_id", name_id),
        "provider_location": update.get("provider_location", volume.provider_location),
        "provider_id": update.get("provider_id", volume.provider_id),
        "metadata": dict(update.get("metadata", {})),
    }


def commit_place(move: Move, recording: Recording, outcome_of: str) -> None:
    recording.update_volume(
        host=move.migration.destination,
        name_id=_other_than(move.recorded(outcome_of, "name_id"), move.volume.id),
        provider_location=move.recorded(outcome_of, "provider_location"),
        provider_id=move.recorded(outcome_of, "provider_id"),
        # What somebody has entered there since is kept.
        metadata={**recording.take_fresh_volume().metadata, **(move.recorded(outcome_of, "metadata") or {})},
    )
    recording.transaction.release(move.migration.id)


def _other_than(name_id: str | None, volume_id: str) -> str | None:
    return None if name_id == volume_id else name_id


def check_arrival(move: Move, place: Facts) -> None:
    """Look at the volume at its new place before the commit point.

    :raises volmig.errors.VolmigError: when it is not there, or has another size.
    """
    arrived = move.arrived_as(place)
    if not move.destination.volume_exists(arrived):
        raise errors.VolumeObjectMissing(
            volume=move.volume.id, location=f"{arrived.provider_id or arrived.backend_name} in {arrived.host}"
        )
    move.destination.check_object(arrived)


def retire(
    move: Move,
    recording: Recording,
    volume: Volume,
    *,
    identity: str | None,
    due_at: datetime | None = None,
    error: str = "",
) -> None:
    """Record an object that is to be deleted, at once or when it is due."""
    transaction = recording.transaction
    retired = RetiredObject(
        id=retired_id(move, volume),
        migration_id=move.migration.id,
        volume_id=move.volume.id,
        host=volume.host,
        name_id=volume.backend_id,
        size_bytes=volume.size_bytes,
        provider_location=volume.provider_location,
        provider_id=volume.provider_id,
        identity=identity,
        format=volume.format,
        delete_after=due_at or transaction.now(),
        last_error=error,
    )
    transaction.remove_retired(retired.id)
    transaction.add_retired(retired)


def retire_source(move: Move, recording: Recording) -> None:
    """Record what the volume leaves: to be kept for as long as was asked for, or else to be deleted from now on."""
    seconds = move.migration.source_retention_seconds
    retire(
        move,
        recording,
        move.source_volume,
        identity=move.recorded_source("identity"),
        due_at=recording.transaction.now() + timedelta(seconds=seconds),
    )


def kept_storage(view: ReadTransaction, migration_id: str) -> RetiredObject:
    """Return the old storage that a migration has left, as long as it can be gone back to.

    :raises volmig.errors.RollbackImpossible: when it is gone, or its deletion has begun.
    """
    done = view.get_migration(migration_id)
    for retired in view.list_retired(migration_id=done.id):
        if retired.host == done.source and retired.volume_id == done.volume_id:
            if retired.deletion_begun_at is not None:
                begun_at = retired.deletion_begun_at.isoformat(timespec="seconds")
                reason = f"the deletion of its old storage has begun, at {begun_at}, and may be under way"
                raise errors.RollbackImpossible(migration=done.id, reason=reason)
            return retired
    raise errors.RollbackImpossible(migration=done.id, reason="its old storage is not kept any more")


def retired_id(move: Move, volume: Volume) -> str:
    # The id follows from what it names, so that a repeated step finds the same record.
    name = f"{move.migration.id}/{volume.host}/{volume.backend_id}/{volume.provider_id or ''}"
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))
