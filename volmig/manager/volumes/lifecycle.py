"""Making and deleting volumes."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from volmig import errors
from volmig.drivers.base import Capability
from volmig.manager.backend import Backend, placed
from volmig.manager.backends import Backends
from volmig.manager.late import enter_late, retired_object
from volmig.manager.room import Room, with_room
from volmig.manager.volumes.gate import Gate, Request
from volmig.manager.volumes.operations import MAY_COME, Held, Operations, longest_seconds
from volmig.manager.volumes.values import check_size, merged_fields
from volmig.model import Phase, Reservation, RetiredObject, Volume, VolumeStatus
from volmig.store import Store
from volmig.store.base import ReadTransaction, WriteTransaction

LOG = logging.getLogger(__name__)

_CREATE: Final = "create"
_CREATE_CALLS: Final = ("create_volume", "remove_export", "delete_volume")
_UNDO: Final = "undo"
"""Argument of a creation that is to be undone: why."""
_DELETE: Final = Request(
    operation="delete",
    allows_doubt=True,
    name="delete",
    # Beside what can be used: what a process has left that recorded no operation.
    allowed=(
        VolumeStatus.AVAILABLE,
        VolumeStatus.ERROR,
        VolumeStatus.CREATING,
        VolumeStatus.DELETING,
        VolumeStatus.EXTENDING,
    ),
    status=VolumeStatus.DELETING,
    calls=("remove_export", "delete_volume"),
    allows_snapshots=False,
)


class _Creation:
    """A call that makes the object of a volume, and what becomes of the object when the call ends too late."""

    def __init__(self, store: Store, backend: Backend, held: Held) -> None:
        self._store = store
        self._backend = backend
        self._held = held
        self.is_undone = False
        """Whether this thread has removed what there was, and the volume's record."""

    def enter_when_over(self, made: Volume, identity: str | None) -> None:
        """Enter an object as retired that came after its call was given up, when the request has come to its end."""
        # Until then whoever waits for the request removes the object, or keeps it.
        self._held.over.wait()
        self._enter(made, identity)

    def enter(self, made: Volume) -> None:
        """Enter an object as retired that was made in a request which another has finished meanwhile."""
        identity: str | None = None
        try:
            identity = self._backend.identify_object(made)
        except errors.VolumeObjectMissing:
            return
        except errors.VolmigError as error:
            LOG.warning("volume %s: its object cannot be identified: %s", made.id, error)
        self._enter(made, identity)

    def _enter(self, made: Volume, identity: str | None) -> None:
        volume_id = self._held.volume.id
        retired = retired_object(made, volume_id=volume_id, migration_id="", identity=identity)
        enter_late(self._store, retired, why_kept=self._why_kept)

    def _why_kept(self, view: ReadTransaction) -> str:
        try:
            view.get_volume(self._held.volume.id)
        except errors.VolumeNotFound:
            if self.is_undone or not self._backend.can(Capability.MANAGE):
                return ""
            # An unmanaged volume leaves no record, and its data must stay.
            return "another process has ended its creation, and the volume may have been unmanaged since"
        # Whether the object is the volume's, or it is elsewhere by now, is told by its record.
        return ""


class Lifecycle:
    """Makes and deletes volumes."""

    def __init__(self, store: Store, backends: Backends, operations: Operations, gate: Gate) -> None:
        self._store = store
        self._backends = backends
        self._operations = operations
        self._gate = gate
        gate.register(_CREATE, self._make, calls=_CREATE_CALLS)
        gate.register(_DELETE.name, self._remove, calls=_DELETE.calls)

    # --- create -------------------------------------------------------------------------------

    def create(self, volume: Volume) -> Volume:
        """See :meth:`volmig.manager.volumes.VolumeManager.create`."""
        check_size(volume.size_bytes)
        seconds = longest_seconds(self._backends.of(volume), *_CREATE_CALLS)

        def record(room: Room) -> Held:
            with self._operations.entering() as entry:
                reservation = Reservation(id=volume.id, host=volume.host, size_bytes=volume.size_bytes)
                room.reserve(entry.transaction, reservation)
                return entry.add(replace(volume, status=VolumeStatus.CREATING), _CREATE, seconds=seconds)

        held = with_room(self._store, self._backends, volume.host, volume.size_bytes, record)
        with self._operations.at_work(held):
            return self._make(held)

    def _make(self, held: Held) -> Volume:
        backend = self._backends.of(held.volume)
        if held.operation.arguments.get(_UNDO):
            return self._undo(backend, held)
        held.check()
        creation = _Creation(self._store, backend, held)
        try:
            update = backend.create_volume(held.volume, when_late=creation.enter_when_over)
        except Exception as error:
            if held.is_taken_over and isinstance(error, errors.TemporaryError):
                raise
            self._decide_to_undo(held, error, creation)
            self._undo(backend, held)
            creation.is_undone = True
            raise

        def end(transaction: WriteTransaction, volume: Volume) -> Volume:
            transaction.release(volume.id)
            fields = merged_fields(volume, update)
            return transaction.update_volume(volume, operation={}, status=VolumeStatus.AVAILABLE, **fields)

        try:
            return self._operations.end(held, end)
        except errors.StoreConflict:
            creation.enter(placed(held.volume, update))
            raise

    def _decide_to_undo(self, held: Held, error: Exception, creation: _Creation) -> None:
        """Record that a creation is undone: whoever takes it over must not make what this thread is about to remove."""
        may_come = {MAY_COME: True} if isinstance(error, errors.DriverTimeout) else {}
        try:
            self._operations.amend(held, **{_UNDO: str(error), **may_come})
        except errors.StoreConflict:
            if not may_come:
                creation.enter(held.volume)
            raise

    def _undo(self, backend: Backend, held: Held) -> Volume:
        """Remove what a creation may have made, and forget the volume, which is returned as it was last."""
        volume, reason = held.volume, str(held.operation.arguments[_UNDO])
        held.check()
        try:
            backend.delete_volume(volume)
        except errors.VolmigError as left:
            if held.is_taken_over and isinstance(left, errors.TemporaryError):
                raise
            LOG.warning("volume %s: clearing up after a failed creation failed too: %s", volume.id, left)
            reasons = f"{reason} {left}"

            def keep(transaction: WriteTransaction, current: Volume) -> Volume:
                transaction.release(volume.id)
                return transaction.update_volume(
                    current, operation={}, status=VolumeStatus.ERROR, status_reason=reasons
                )

            return self._operations.end(held, keep)

        def forget(transaction: WriteTransaction, current: Volume) -> Volume:
            transaction.release(volume.id)
            transaction.remove_volume(current)
            if held.operation.arguments.get(MAY_COME):
                # A call may make it yet: it is looked for once more when that must be over.
                due_at = transaction.now() + timedelta(seconds=backend.timeout_seconds)
                transaction.add_retired(_late(volume, reason, due_at=due_at))
            return current

        return self._operations.end(held, forget)

    # --- delete -------------------------------------------------------------------------------

    def delete(self, volume_id: str) -> None:
        """See :meth:`volmig.manager.volumes.VolumeManager.delete`."""
        held = self._gate.begin(volume_id, _DELETE, require_in_service)
        with self._operations.at_work(held):
            self._remove(held)

    def _remove(self, held: Held) -> None:
        backend = self._backends.of(held.volume)
        held.check()
        try:
            backend.delete_volume(held.volume)
        except Exception as error:
            if held.is_taken_over and isinstance(error, errors.TemporaryError):
                raise
            self._operations.finish(held, status=VolumeStatus.ERROR, status_reason=f"Deleting it failed: {error}")
            raise

        def forget(transaction: WriteTransaction, volume: Volume) -> Volume:
            transaction.release(volume.id)
            transaction.release(extension_id(volume))
            _let_retained_go(transaction, volume)
            transaction.remove_volume(volume)
            return volume

        self._operations.end(held, forget)


def _let_retained_go(transaction: WriteTransaction, volume: Volume) -> None:
    """Make the old storage of a volume due that its migrations have kept: its data is to be nowhere any more.

    What else waits for its deletion is waited for because a driver's call may make it yet, and keeps its time.
    """
    for retired in transaction.list_retired(volume_id=volume.id):
        try:
            phase = transaction.get_migration(retired.migration_id).phase
        except errors.MigrationNotFound:
            continue
        if phase is Phase.SUCCESS and (retired.delete_after is None or retired.delete_after > transaction.now()):
            transaction.schedule_retired(retired.id, delete_after=transaction.now())


def _late(volume: Volume, reason: str, *, due_at: datetime) -> RetiredObject:
    return RetiredObject(
        id=volume.id,
        migration_id="",
        volume_id=volume.id,
        host=volume.host,
        name_id=volume.backend_id,
        size_bytes=volume.size_bytes,
        delete_after=due_at,
        last_error=reason,
    )


def require_in_service(backend: Backend, volume: Volume) -> None:
    """Refuse what a backend that is out of service cannot do, before anything is changed for it.

    :raises volmig.errors.BackendDown:
    """
    try:
        backend.volume_exists(volume)
    except errors.BackendDown:
        raise
    except errors.VolmigError as error:
        LOG.debug("volume %s cannot be looked at: %s", volume.id, error)


def extension_id(volume: Volume) -> str:
    """Return the id of the reservation for an extension of a volume."""
    return f"extend-{volume.id}"
