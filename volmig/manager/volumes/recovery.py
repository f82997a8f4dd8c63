"""Ending the requests of processes that are gone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from volmig import errors
from volmig.manager.backends import Backends
from volmig.manager.parallel import by_backend, for_each
from volmig.manager.volumes.gate import Gate
from volmig.manager.volumes.operations import Operations
from volmig.model import Volume, VolumeStatus
from volmig.store import Store, VolumeQuery

LOG = logging.getLogger(__name__)

_STATUSES: Final = (
    VolumeStatus.CREATING,
    VolumeStatus.EXTENDING,
    VolumeStatus.SNAPSHOTTING,
    VolumeStatus.RETYPING,
    VolumeStatus.DELETING,
    VolumeStatus.MAINTENANCE,
    VolumeStatus.ERROR,
)
"""In which a volume can be while a request is at work on it."""


class VolumeRecovery:
    """Ends the requests that nobody does any more. May be killed itself at any time, and be run in many processes."""

    def __init__(self, store: Store, backends: Backends, operations: Operations, gate: Gate) -> None:
        self._store = store
        self._backends = backends
        self._operations = operations
        self._gate = gate

    def recover(self) -> list[Volume]:
        """See :meth:`volmig.manager.volumes.VolumeManager.recover`."""
        ended: list[Volume] = []
        for_each(self._abandoned(), lambda volumes: self._recover_all(volumes, ended), name="requests")
        return ended

    def _abandoned(self) -> list[list[Volume]]:
        """Return the volumes with an abandoned request, by their backend, which is one of this process."""
        found: list[Volume] = []
        given_up = self._operations.given_up()
        with self._store.reading() as view:
            now = view.now()
            listed = [volume for status in _STATUSES for volume in view.list_volumes(VolumeQuery(status=status))]
        volumes = [volume for volume in listed if volume.operation]
        self._operations.forget_all_but(given_up, {str(volume.operation.get("id")) for volume in volumes})
        for volume in volumes:
            if not self._operations.is_abandoned(volume, now):
                continue
            try:
                self._backends.of(volume)
            except errors.VolmigError as error:
                LOG.debug("volume %s is left to others: %s", volume.id, error)
            else:
                found.append(volume)
        return by_backend(found, lambda volume: volume.host)

    def _recover_all(self, volumes: Sequence[Volume], ended: list[Volume]) -> None:
        for volume in volumes:
            try:
                if self._gate.finish_abandoned(volume) is not None:
                    ended.append(self._as_left(volume))
            except (errors.BackendDown, errors.DriverTimeout) as error:
                # The others would have to wait for it one after another.
                LOG.warning("volume %s, and what else its backend has, is left for later: %s", volume.id, error)
                return
            except errors.OperationInProgress as error:
                LOG.debug("volume %s is in other hands: %s", volume.id, error)
            except Exception:
                LOG.exception("volume %s is left for later", volume.id)

    def _as_left(self, volume: Volume) -> Volume:
        """Return a volume as recorded now, or as it was last when it is gone."""
        try:
            return self._gate.get(volume.id)
        except errors.VolumeNotFound:
            return volume
