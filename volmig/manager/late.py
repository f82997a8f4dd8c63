"""Objects that were made too late for whoever asked for them.

A call that was given up goes on, perhaps in a process that was stopped meanwhile, and may make an object, or find one,
when somebody else has finished what it was made for. Whoever gets to know of that deletes nothing: what the call has
found may be a volume in use by then. It enters the object in the store as retired, in a transaction in which no record
names it; the next recovery deletes it after having looked again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import replace

from volmig import errors
from volmig.model import Phase, RetiredObject, Volume
from volmig.store import MigrationQuery, Store, VolumeQuery
from volmig.store.base import ReadTransaction

LOG = logging.getLogger(__name__)


def retired_object(made: Volume, *, volume_id: str, migration_id: str, identity: str | None) -> RetiredObject:
    """Return the record of an object that was made too late.

    :param made: the object, as its driver is told of it.
    :param volume_id: the volume that it was made for.
    :param migration_id: the migration that it was made for; empty for none.
    """
    return RetiredObject(
        # Never that of an earlier record: the deletion that belongs to that one may be under way.
        id=str(uuid.uuid4()),
        migration_id=migration_id,
        volume_id=volume_id,
        host=made.host,
        name_id=made.backend_id,
        size_bytes=made.size_bytes,
        provider_location=made.provider_location,
        provider_id=made.provider_id,
        identity=identity,
        format=made.format,
        last_error="it was made after it was given up",
    )


def enter_late(store: Store, retired: RetiredObject, *, why_kept: Callable[[ReadTransaction], str]) -> bool:
    """Enter an object that was made too late as retired and due, unless a record names it; return whether it was.

    Raises nothing: an object that cannot be entered is logged, and found by ``volmig doctor``.

    :param why_kept: says why the object is not to be deleted, by the records of what it was made for; empty if it is.
    """
    where = f"object {retired.provider_id or retired.name_id} in {retired.host}"
    try:
        with store.writing() as transaction:
            reason = why_kept(transaction) or _name_by_record(transaction, retired)
            if not reason:
                transaction.add_retired(replace(retired, delete_after=transaction.now()))
    except errors.VolmigError as error:
        # Nobody waits for it who could be told. The process may be ending, and its store be closed.
        LOG.error("%s was made too late, and cannot be entered as retired; volmig doctor finds it: %s", where, error)  # noqa: TRY400
        return False
    except Exception:
        LOG.exception("%s was made too late, and cannot be entered as retired; volmig doctor finds it", where)
        return False
    if reason:
        LOG.warning("%s was made, or found, by a call that came too late; it stays: %s", where, reason)
        return False
    LOG.warning("%s was made too late; the next recovery deletes it", where)
    return True


def _name_by_record(view: ReadTransaction, retired: RetiredObject) -> str:
    """Return what names an object, other than the record of the creation that made it; empty when nothing does."""
    name = _object_name(retired)
    for volume in view.list_volumes(VolumeQuery(host=retired.host)):
        if (volume.provider_id or volume.backend_name) == name:
            return f"it is volume {volume.id}"
    for other in view.list_retired():
        is_same_creation = (other.migration_id, other.volume_id) == (retired.migration_id, retired.volume_id)
        if other.host == retired.host and _object_name(other) == name and not is_same_creation:
            return f"it is what volume {other.volume_id} has left, and is kept or deleted as such"
    unfinished = [phase for phase in Phase if not phase.is_final]
    for migration in view.list_migrations(MigrationQuery(phases=unfinished)):
        if migration.id == retired.migration_id or retired.host not in (migration.source, migration.destination):
            continue
        if retired.name_id in (migration.destination_id, migration.volume_id):
            return f"migration {migration.id} may give a volume that name"
    return ""


def why_copy_kept(view: ReadTransaction, migration_id: str, destination_id: str) -> str:
    """Return why an object that a migration made as its copy may be needed yet; empty when it is not.

    What the volume's record says is not looked at.
    """
    try:
        migration = view.get_migration(migration_id)
    except errors.MigrationNotFound:
        return ""
    if migration.destination_id != destination_id:
        return ""
    if migration.error_code == errors.LocationDoubtful.code:
        return f"nobody can tell where the volume of migration {migration_id} is"
    if migration.phase.is_final or migration.phase in (Phase.CANCELLING, Phase.ROLLING_BACK):
        # A migration that goes back ends without it; it is not deleted before that.
        return ""
    return f"it is the copy that migration {migration_id} makes"


def _object_name(retired: RetiredObject) -> str:
    return retired.provider_id or f"volume-{retired.name_id}"
