"""Deleting storage that was left for later."""

from __future__ import annotations

import logging

from volmig import errors
from volmig.manager.backends import Backends
from volmig.manager.parallel import by_backend, for_each
from volmig.model import EntryKind, JournalEntry, Migration, RetiredObject, Volume, VolumeStatus
from volmig.store import Store

LOG = logging.getLogger(__name__)


def delete_retired(store: Store, backends: Backends, migration_id: str | None = None) -> list[RetiredObject]:
    """Delete the retired objects that are due, and return those that are still there.

    :param migration_id: only those of this migration; None for all.

    An object is deleted only while the volume that it was a copy of is seen at its recorded place, or is no longer
    recorded at all; and never while its migration goes on.
    """
    with store.reading() as view:
        due = view.list_retired(due_at=view.now(), migration_id=migration_id)
    left: list[RetiredObject] = []

    def delete(group: list[RetiredObject]) -> None:
        left.extend(retired for retired in group if not _delete(store, backends, retired))

    for_each(by_backend(due, lambda retired: retired.host), delete, name="retire")
    return left


def _delete(store: Store, backends: Backends, retired: RetiredObject) -> bool:
    try:
        if not _may_go(store, backends, retired):
            return False
        backends.at(retired.host).delete_object(_as_volume(retired), retired.identity)
    except errors.VolmigError as error:
        LOG.warning("retired object %s in %s cannot be deleted: %s", retired.name_id, retired.host, error)
        with store.writing() as transaction:
            transaction.update_retired(retired.id, attempts=retired.attempts + 1, last_error=error.message)
        return False
    with store.writing() as transaction:
        if all(left.id != retired.id for left in transaction.list_retired(migration_id=retired.migration_id)):
            # Another process was at it, too.
            return True
        transaction.remove_retired(retired.id)
        try:
            migration = transaction.get_migration(retired.migration_id)
        except errors.MigrationNotFound:
            LOG.debug("nobody keeps a history of retired object %s", retired.name_id)
        else:
            transaction.append_journal(_deletion(retired, migration))
    return True


def _deletion(retired: RetiredObject, migration: Migration) -> JournalEntry:
    return JournalEntry(
        migration_id=migration.id,
        epoch=migration.epoch,
        kind=EntryKind.NOTE,
        subject="old-storage",
        actor=retired.host.partition("@")[0],
        data={"reason": "its time has come, and it is deleted", "host": retired.host, "name_id": retired.name_id},
    )


def _may_go(store: Store, backends: Backends, retired: RetiredObject) -> bool:
    with store.reading() as view:
        try:
            if not view.get_migration(retired.migration_id).phase.is_final:
                return False
        except errors.MigrationNotFound:
            LOG.debug("retired object %s is of a migration that is no longer recorded", retired.name_id)
        try:
            volume = view.get_volume(retired.volume_id)
        except errors.VolumeNotFound:
            return True
    if volume.migration_id is not None and _goes_back(store, volume.migration_id, retired):
        return False
    if volume.status is VolumeStatus.ERROR or not backends.of(volume).volume_exists(volume):
        return False
    if (volume.host, volume.provider_id or volume.backend_name) != (retired.host, _object_name(retired)):
        return True
    # The volume has come back to a place of that name. Its object is another one, if they can be told apart.
    present = backends.of(volume).identify_object(volume)
    return retired.identity is not None and present is not None and present != retired.identity


def _goes_back(store: Store, migration_id: str, retired: RetiredObject) -> bool:
    """Say whether a migration is bringing the volume back to that object."""
    with store.reading() as view:
        return view.get_migration(migration_id).rolls_back == retired.migration_id


def _object_name(retired: RetiredObject) -> str:
    return retired.provider_id or _as_volume(retired).backend_name


def _as_volume(retired: RetiredObject) -> Volume:
    return Volume(
        id=retired.volume_id,
        name="",
        size_bytes=retired.size_bytes,
        host=retired.host,
        status=VolumeStatus.DELETING,
        name_id=retired.name_id,
        provider_location=retired.provider_location,
        provider_id=retired.provider_id,
        format=retired.format,
    )
