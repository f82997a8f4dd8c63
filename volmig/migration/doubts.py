"""Settling doubts about where a volume is, when the drivers can tell by now."""

from __future__ import annotations

import logging
from dataclasses import replace

from volmig import errors
from volmig.manager.backends import Backends
from volmig.model import Method, Migration, Phase, Volume, VolumeStatus
from volmig.store import MigrationQuery, Store, VolumeQuery

LOG = logging.getLogger(__name__)


def settle_doubts(store: Store, backends: Backends) -> list[Volume]:
    """Look again for the volumes whose last migration ended in ``location-doubtful``; return those that were found.

    Those that a paused worker may have moved when it woke up, after another had ended its migration, are looked for
    too.
    A volume that is seen whole at exactly one of the places where it can be is ``available`` there again. Nothing is
    deleted.
    """
    with store.reading() as view:
        volumes = view.list_volumes(VolumeQuery(status=VolumeStatus.ERROR))
        doubts = [
            (volume, migration)
            for volume in volumes
            for migration in view.list_migrations(MigrationQuery(volume_id=volume.id, limit=1))
            if migration.error_code == errors.LocationDoubtful.code
        ]
    settled = [_settle(store, backends, volume, doubt) for volume, doubt in doubts]
    settled.extend(_follow(store, backends, volume, migration) for volume, migration in _moved_twice(store))
    return [volume for volume in settled if volume is not None]


def _moved_twice(store: Store) -> list[tuple[Volume, Migration]]:
    """Return the volumes that are where a driver's own move was taken over from a worker, with that migration.

    That worker may only have been paused: when it wakes up, the call that it had begun moves the volume after all.
    """
    taken_over = MigrationQuery(phases=[phase for phase in Phase if phase.is_final], method=Method.DRIVER, min_epoch=2)
    found = []
    with store.reading() as view:
        for migration in view.list_migrations(taken_over):
            try:
                volume = view.get_volume(migration.volume_id)
            except errors.VolumeNotFound:
                continue
            is_free = volume.status is VolumeStatus.AVAILABLE and volume.migration_id is None
            if is_free and volume.host == migration.source:
                found.append((volume, migration))
    return found


def _follow(store: Store, backends: Backends, volume: Volume, migration: Migration) -> Volume | None:
    try:
        is_missing = not backends.of(volume).volume_exists(volume)
    except errors.VolmigError as error:
        LOG.debug("volume %s cannot be looked at: %s", volume.id, error)
        return None
    return _settle(store, backends, volume, migration) if is_missing else None


def _settle(store: Store, backends: Backends, volume: Volume, doubt: Migration) -> Volume | None:
    if volume.host == doubt.destination:
        # Past the commit point the record is right, and what remains to be seen is that the volume is there.
        places = [volume]
    else:
        there = replace(volume, host=doubt.destination, provider_location=None, provider_id=None)
        places = [volume, there]
        if doubt.method is Method.DRIVER and volume.provider_id is not None:
            # A driver that brings an adopted volume back does not give it its old name again.
            places.append(replace(there, host=volume.host))
    try:
        seen = [place for place in places if backends.of(place).volume_exists(place)]
        if len(seen) != 1:
            LOG.warning("volume %s is still in doubt: it is seen in %d places", volume.id, len(seen))
            return None
        backends.of(seen[0]).check_object(seen[0])
    except errors.VolmigError as error:
        LOG.warning("volume %s is still in doubt: %s", volume.id, error)
        return None
    found = seen[0]
    with store.writing() as transaction:
        settled = transaction.update_volume(
            volume,
            host=found.host,
            provider_location=found.provider_location,
            provider_id=found.provider_id,
            status=VolumeStatus.AVAILABLE,
            status_reason="",
        )
    LOG.warning("volume %s was found in %s and is available again", volume.id, found.host)
    return settled
