"""Settling doubts about where a volume is, when the drivers can tell by now."""

from __future__ import annotations

import logging
from dataclasses import replace

from volmig import errors
from volmig.manager.backends import Backends
from volmig.model import Migration, Volume, VolumeStatus
from volmig.store import MigrationQuery, Store, VolumeQuery

LOG = logging.getLogger(__name__)


def settle_doubts(store: Store, backends: Backends) -> list[Volume]:
    """Look again for the volumes whose last migration ended in ``location-doubtful``; return those that were found.

    A volume that is seen whole at exactly one of the two places is ``available`` there again. Nothing is deleted.
    """
    with store.reading() as view:
        volumes = view.list_volumes(VolumeQuery(status=VolumeStatus.ERROR))
        doubts = [
            (volume, migration)
            for volume in volumes
            for migration in view.list_migrations(MigrationQuery(volume_id=volume.id, limit=1))
            if migration.error_code == errors.LocationDoubtful.code
        ]
    return [found for volume, doubt in doubts if (found := _settle(store, backends, volume, doubt)) is not None]


def _settle(store: Store, backends: Backends, volume: Volume, doubt: Migration) -> Volume | None:
    if volume.host == doubt.destination:
        # Past the commit point the record is right, and what remains to be seen is that the volume is there.
        places = [volume]
    else:
        there = replace(volume, host=doubt.destination, provider_location=None, provider_id=None)
        places = [volume, there]
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
