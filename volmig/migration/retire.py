"""Deleting storage that was left for later."""

from __future__ import annotations

import logging

from volmig import errors
from volmig.manager.backends import Backends
from volmig.model import RetiredObject, Volume, VolumeStatus
from volmig.store import Store

LOG = logging.getLogger(__name__)


def delete_retired(store: Store, backends: Backends) -> list[RetiredObject]:
    """Delete the retired objects that are due, and return those that are still there.

    An object is deleted only while the volume that it was a copy of is seen at its recorded place, or is no longer
    recorded at all; and never while its migration goes on.
    """
    with store.reading() as view:
        due = view.list_retired(due_at=view.now())
    return [retired for retired in due if not _delete(store, backends, retired)]


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
        transaction.remove_retired(retired.id)
    return True


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
    if volume.status is VolumeStatus.ERROR or not backends.of(volume).volume_exists(volume):
        return False
    if (volume.host, volume.provider_id or volume.backend_name) != (retired.host, _object_name(retired)):
        return True
    # The volume has come back to a place of that name. Its object is another one, if they can be told apart.
    present = backends.of(volume).identify_object(volume)
    return retired.identity is not None and present is not None and present != retired.identity


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
