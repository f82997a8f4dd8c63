"""Taking over what volmig did not make, and letting go of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Final

from volmig import errors
from volmig.drivers.base import Capability
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.volumes.gate import Gate, Request
from volmig.manager.volumes.operations import Held, Operations
from volmig.manager.volumes.values import fields_of
from volmig.model import Phase, RetiredObject, Volume, VolumeStatus
from volmig.store import MigrationQuery, Store, VolumeQuery
from volmig.store.base import ReadTransaction, WriteTransaction

LOG = logging.getLogger(__name__)

_UNMANAGE: Final = Request(
    operation="unmanage",
    allows_doubt=True,
    name="unmanage",
    allowed=(VolumeStatus.AVAILABLE, VolumeStatus.ERROR),
    status=VolumeStatus.MAINTENANCE,
    keeps_error=True,
    calls=("unmanage",),
    allows_snapshots=False,
)


class Adoption:
    """Takes over objects that volmig did not make, and lets go of volumes."""

    def __init__(self, store: Store, backends: Backends, operations: Operations, gate: Gate) -> None:
        self._store = store
        self._backends = backends
        self._operations = operations
        self._gate = gate
        gate.register(_UNMANAGE.name, self._stop_in_doubt, calls=())

    # --- manage -------------------------------------------------------------------------------

    def manage(self, reference: str, volume: Volume) -> Volume:
        """See :meth:`volmig.manager.volumes.VolumeManager.manage`."""
        candidates = [volume.host] if volume.host else self._pools_that_manage()
        existing = {"source-name": reference}
        refusals: list[errors.VolmigError] = []
        for host in candidates:
            there = replace(volume, host=host)
            backend = self._backends.at(host)
            self._backends.pool(host)
            try:
                size_bytes = backend.manage_existing_get_size(there, existing)
            except errors.NotManageable as error:
                refusals.append(error)
            else:
                return self._adopt(backend, replace(there, size_bytes=size_bytes), existing)
        if len(refusals) == 1:
            raise refusals[0]
        reasons = "; ".join(dict.fromkeys(str(error.fields["reason"]) for error in refusals))
        raise errors.NotManageable(
            reference=reference, reason=reasons or "no enabled backend can adopt existing objects"
        )

    def _adopt(self, backend: Backend, volume: Volume, existing: Mapping[str, str]) -> Volume:
        reference = existing["source-name"]
        # Asked before, since a driver may rename what it adopts, and after, when the object's name is certain.
        with self._store.reading() as view:
            _refuse_taken(view, volume.host, PurePath(reference).name, reference)
        update = backend.manage_existing(volume, existing)
        volume = replace(volume, **fields_of(update))
        with self._store.writing() as transaction:
            _refuse_taken(transaction, volume.host, _object_name(volume), reference)
            return transaction.add_volume(replace(volume, status=VolumeStatus.AVAILABLE))

    def _pools_that_manage(self) -> list[str]:
        """Return the pools of all backends that can adopt, leaving out those that are out of service."""
        hosts: list[str] = []
        for backend in self._backends:
            if backend.can(Capability.MANAGE):
                hosts.extend(pool.address for pool in backend.info().pools)
        return hosts

    # --- unmanage -----------------------------------------------------------------------------

    def unmanage(self, volume_id: str) -> None:
        """See :meth:`volmig.manager.volumes.VolumeManager.unmanage`."""
        volume = self._gate.get(volume_id)
        _require_manage(self._backends.of(volume), volume)
        held = self._gate.begin(volume_id, _UNMANAGE, _require_manage)
        with self._operations.at_work(held):
            self._let_go(held)

    def _let_go(self, held: Held) -> None:
        held.check()
        try:
            self._backends.of(held.volume).unmanage(held.volume)
        except Exception:
            self._operations.finish(held, status=_status_before(held))
            raise

        def forget(transaction: WriteTransaction, volume: Volume) -> Volume:
            transaction.remove_volume(volume)
            for retired in transaction.list_retired(volume_id=volume.id):
                if retired.deletion_begun_at is not None:
                    # The volume was seen whole elsewhere; and its driver may yet delete it, whoever had adopted it.
                    continue
                # Nobody will be there to say that the volume is whole elsewhere, so that it must stay as well.
                LOG.warning("old storage %s of volume %s stays in %s", retired.name_id, volume.id, retired.host)
                transaction.remove_retired(retired.id)
            return volume

        self._operations.end(held, forget)

    def _stop_in_doubt(self, held: Held) -> None:
        """End one that was interrupted: once let go, the object may have another owner, whom to ask again may harm."""
        reason = (
            "Unmanaging it was interrupted, and its driver may have let go of it; its data was not touched. Unmanage "
            "it again."
        )
        self._operations.finish(held, status=VolumeStatus.ERROR, status_reason=reason)


def _status_before(held: Held) -> VolumeStatus:
    status = held.volume.status
    return VolumeStatus.AVAILABLE if status is VolumeStatus.MAINTENANCE else status


def _require_manage(backend: Backend, _: Volume) -> None:
    if not backend.can(Capability.MANAGE):
        raise errors.UnsupportedOperation(backend=backend.name, operation="unmanaging volumes")


def _object_name(volume: Volume | RetiredObject) -> str:
    if volume.provider_id:
        return volume.provider_id
    return volume.backend_name if isinstance(volume, Volume) else f"volume-{volume.name_id}"


def _refuse_taken(view: ReadTransaction, host: str, name: str, reference: str) -> None:
    """Refuse an object that is, or will be deleted as, the storage of a volume.

    :raises volmig.errors.AlreadyManaged: when a volume has it.
    :raises volmig.errors.NotManageable: when a migration writes to it, or it waits for its deletion.
    """
    for volume in view.list_volumes(VolumeQuery(host=host)):
        if _object_name(volume) == name:
            raise errors.AlreadyManaged(reference=reference, volume=volume.id)
    for retired in view.list_retired():
        if retired.host == host and _object_name(retired) == name:
            reason = f"volume {retired.volume_id} has left it, and it waits for its deletion"
            raise errors.NotManageable(reference=reference, reason=reason)
    unfinished = [phase for phase in Phase if not phase.is_final]
    for migration in view.list_migrations(MigrationQuery(phases=unfinished)):
        names = (f"volume-{migration.destination_id}", f"volume-{migration.volume_id}")
        if migration.destination == host and name in names:
            reason = f"migration {migration.id} makes it for volume {migration.volume_id}"
            raise errors.NotManageable(reference=reference, reason=reason)
