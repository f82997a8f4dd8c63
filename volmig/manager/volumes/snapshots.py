"""Making and deleting snapshots."""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from typing import Final

from volmig import errors
from volmig.drivers.base import Capability
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.volumes.gate import Gate, Request
from volmig.manager.volumes.operations import Held, Operations
from volmig.manager.volumes.values import check_name
from volmig.model import Snapshot, Volume, VolumeStatus
from volmig.store.base import WriteTransaction

LOG = logging.getLogger(__name__)

_CREATE: Final = Request(
    operation="make a snapshot of",
    name="create_snapshot",
    allowed=(VolumeStatus.AVAILABLE,),
    status=VolumeStatus.SNAPSHOTTING,
    calls=("create_snapshot", "delete_snapshot"),
)
_DELETE: Final = Request(
    operation="delete a snapshot of",
    name="delete_snapshot",
    allowed=(VolumeStatus.AVAILABLE,),
    status=VolumeStatus.SNAPSHOTTING,
    calls=("delete_snapshot",),
)


class Snapshots:
    """Makes and deletes snapshots, which the volume's record lists."""

    def __init__(self, backends: Backends, operations: Operations, gate: Gate) -> None:
        self._backends = backends
        self._operations = operations
        self._gate = gate
        gate.register(_CREATE.name, self._make, calls=_CREATE.calls)
        gate.register(_DELETE.name, self._remove, calls=_DELETE.calls)

    # --- create -------------------------------------------------------------------------------

    def create(self, volume_id: str, *, name: str) -> Snapshot:
        """See :meth:`volmig.manager.volumes.VolumeManager.create_snapshot`."""
        check_name("the snapshot's name", name)
        snapshot = Snapshot(id=str(uuid.uuid4()), name=name)
        self._require_offered(volume_id)
        request = replace(_CREATE, arguments={"snapshot_id": snapshot.id, "name": snapshot.name})
        held = self._gate.begin(volume_id, request, _require_snapshots)
        with self._operations.at_work(held):
            self._make(held)
        return snapshot

    def _make(self, held: Held) -> None:
        arguments = held.operation.arguments
        snapshot = Snapshot(id=str(arguments["snapshot_id"]), name=str(arguments["name"]))
        if arguments.get("undo"):
            self._undo(held, snapshot)
            return
        backend = self._backends.of(held.volume)
        held.check()
        try:
            backend.create_snapshot(held.volume, snapshot.id)
        except errors.DriverTimeout:
            # The call may make it yet: it is removed when the call must be over.
            self._operations.postpone(held, seconds=backend.timeout_seconds, undo=True)
            raise
        except Exception as error:
            if held.is_taken_over and isinstance(error, errors.TemporaryError):
                raise
            self._try_to_undo(held, snapshot)
            raise

        def keep(transaction: WriteTransaction, volume: Volume) -> Volume:
            snapshots = (*volume.snapshots, snapshot)
            return transaction.update_volume(volume, operation={}, status=VolumeStatus.AVAILABLE, snapshots=snapshots)

        self._operations.end(held, keep)

    def _try_to_undo(self, held: Held, snapshot: Snapshot) -> None:
        try:
            # On record first: whoever takes it over must not make what this thread is about to remove.
            self._operations.amend(held, undo=True)
            self._undo(held, snapshot)
        except errors.VolmigError as error:
            if held.is_ended:
                raise
            LOG.warning("volume %s: snapshot %s is removed later: %s", held.volume.id, snapshot.id, error)
            self._operations.postpone(held, seconds=0, undo=True)

    def _undo(self, held: Held, snapshot: Snapshot) -> None:
        held.check()
        self._backends.of(held.volume).delete_snapshot(held.volume, snapshot.id)
        self._operations.finish(held, status=VolumeStatus.AVAILABLE)

    # --- delete -------------------------------------------------------------------------------

    def delete(self, volume_id: str, snapshot_id: str) -> None:
        """See :meth:`volmig.manager.volumes.VolumeManager.delete_snapshot`."""

        def look(backend: Backend, volume: Volume) -> None:
            _require_snapshots(backend, volume)
            _require_known(volume, snapshot_id)

        self._require_offered(volume_id)
        _require_known(self._gate.get(volume_id), snapshot_id)
        held = self._gate.begin(volume_id, replace(_DELETE, arguments={"snapshot_id": snapshot_id}), look)
        with self._operations.at_work(held):
            self._remove(held)

    def _remove(self, held: Held) -> None:
        snapshot_id = held.operation.arguments["snapshot_id"]
        held.check()
        try:
            self._backends.of(held.volume).delete_snapshot(held.volume, snapshot_id)
        except Exception as error:
            if held.is_taken_over and isinstance(error, errors.TemporaryError):
                raise
            # Still on record, so that its deletion can be asked for again.
            self._operations.finish(held, status=VolumeStatus.AVAILABLE)
            raise

        def forget(transaction: WriteTransaction, volume: Volume) -> Volume:
            left = tuple(snapshot for snapshot in volume.snapshots if snapshot.id != snapshot_id)
            return transaction.update_volume(volume, operation={}, status=VolumeStatus.AVAILABLE, snapshots=left)

        self._operations.end(held, forget)

    def _require_offered(self, volume_id: str) -> None:
        # Looked at before a migration is made to give way: a request that is refused changes nothing.
        volume = self._gate.get(volume_id)
        _require_snapshots(self._backends.of(volume), volume)


def _require_snapshots(backend: Backend, _: Volume) -> None:
    if not backend.can(Capability.SNAPSHOTS):
        raise errors.UnsupportedOperation(backend=backend.name, operation="snapshots")


def _require_known(volume: Volume, snapshot_id: str) -> None:
    ids = [snapshot.id for snapshot in volume.snapshots]
    if snapshot_id not in ids:
        reason = f"volume {volume.id} has the snapshots: {', '.join(ids) or 'none'}"
        raise errors.RequestInvalid(what="the snapshot", reason=reason)
