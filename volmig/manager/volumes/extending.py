"""Enlarging volumes."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from volmig import errors
from volmig.drivers.base import Capability
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.room import Room, with_room
from volmig.manager.volumes.gate import Gate, Overtaken, Request
from volmig.manager.volumes.lifecycle import extension_id
from volmig.manager.volumes.operations import Held, Operations
from volmig.manager.volumes.values import check_size
from volmig.model import Reservation, Volume, VolumeStatus
from volmig.store import Store
from volmig.store.base import WriteTransaction

LOG = logging.getLogger(__name__)

_SIZE: Final = "new_size_bytes"
_EXTEND: Final = Request(
    operation="extend",
    name="extend",
    # The last one is what a process has left that recorded no operation.
    allowed=(VolumeStatus.AVAILABLE, VolumeStatus.ERROR, VolumeStatus.EXTENDING),
    status=VolumeStatus.EXTENDING,
    calls=("extend_volume", "initialize_connection", "terminate_connection"),
)


class Extending:
    """Enlarges volumes: the record says how large one is, whatever fails."""

    def __init__(self, store: Store, backends: Backends, operations: Operations, gate: Gate) -> None:
        self._store = store
        self._backends = backends
        self._operations = operations
        self._gate = gate
        gate.register(_EXTEND.name, self._enlarge, calls=_EXTEND.calls)

    def extend(self, volume_id: str, new_size_bytes: int) -> Volume:
        """See :meth:`volmig.manager.volumes.VolumeManager.extend`."""
        check_size(new_size_bytes)
        request = replace(_EXTEND, arguments={_SIZE: new_size_bytes})
        while True:
            done = self._end_lost_operation(volume_id, new_size_bytes)
            if done is not None:
                return done
            # Looked at before a migration is made to give way: a request that is refused changes nothing.
            volume = self._gate.get(volume_id)
            self._backends.pool_with_room(volume.host, _growth(volume, new_size_bytes))
            volume = self._gate.ready(volume_id, request)
            if volume.status is VolumeStatus.EXTENDING:
                volume = self._end_lost_status(volume)
                if volume.size_bytes == new_size_bytes:
                    return self._make_available(volume)
            try:
                held = self._begin(volume, request, new_size_bytes)
            except Overtaken:
                LOG.debug("volume %s: extending it begins again", volume_id)
                continue
            with self._operations.at_work(held):
                return self._enlarge(held)

    def _begin(self, volume: Volume, request: Request, new_size_bytes: int) -> Held:
        grown = _growth(volume, new_size_bytes)
        reservation = Reservation(id=extension_id(volume), host=volume.host, size_bytes=grown)
        with self._store.writing() as transaction:
            self._gate.require(transaction, volume.id, request)
            # A crash during an earlier attempt may have left one of another size.
            transaction.release(reservation.id)

        def record(room: Room) -> Held:
            with self._operations.entering() as entry:
                current = self._gate.require(entry.transaction, volume.id, request, seen=volume)
                room.reserve(entry.transaction, reservation)
                return self._gate.enter(entry, current, request)

        return with_room(self._store, self._backends, volume.host, grown, record)

    def _enlarge(self, held: Held) -> Volume:
        volume, new_size_bytes = held.volume, int(held.operation.arguments[_SIZE])
        backend = self._backends.of(volume)
        held.check()
        try:
            backend.extend_volume(volume, new_size_bytes)
        except Exception as error:
            if not _has_size(backend, volume, new_size_bytes):
                if held.is_taken_over and isinstance(error, errors.TemporaryError):
                    raise
                self._end_failed(backend, held, error)
                raise
            LOG.warning("volume %s was extended, though its driver reported: %s", volume.id, error)
        return self._end(held, size_bytes=new_size_bytes)

    def _end_failed(self, backend: Backend, held: Held, error: Exception) -> None:
        # A call that did not end in time may enlarge it yet.
        late = isinstance(error, errors.DriverTimeout)
        if not late and _has_size(backend, held.volume, held.volume.size_bytes):
            self._end(held)
        else:
            self._end(held, status=VolumeStatus.ERROR, status_reason=f"Extending it failed: {error}")

    def _end(
        self,
        held: Held,
        *,
        size_bytes: int | None = None,
        status: VolumeStatus = VolumeStatus.AVAILABLE,
        status_reason: str = "",
    ) -> Volume:
        def end(transaction: WriteTransaction, volume: Volume) -> Volume:
            transaction.release(extension_id(volume))
            return transaction.update_volume(
                volume,
                operation={},
                size_bytes=volume.size_bytes if size_bytes is None else size_bytes,
                status=status,
                status_reason=status_reason,
            )

        return self._operations.end(held, end)

    # --- what others have left ----------------------------------------------------------------

    def _end_lost_operation(self, volume_id: str, new_size_bytes: int) -> Volume | None:
        """End what a process has left that is gone; return the volume when that was the very extension asked for."""
        lost = self._gate.finish_abandoned(self._gate.get(volume_id))
        if lost is None or lost.name != _EXTEND.name or lost.arguments.get(_SIZE) != new_size_bytes:
            return None
        volume = self._gate.get(volume_id)
        return volume if volume.size_bytes == new_size_bytes and volume.status is VolumeStatus.AVAILABLE else None

    def _end_lost_status(self, volume: Volume) -> Volume:
        """Record what an extension made that recorded no operation: its reservation tells the size that it wanted."""
        with self._store.reading() as view:
            held = [each for each in view.list_reservations(volume.host) if each.id == extension_id(volume)]
        backend = self._backends.of(volume)
        for lost in held:
            size_bytes = volume.size_bytes + lost.size_bytes
            if _has_size(backend, volume, size_bytes):
                with self._store.writing() as transaction:
                    transaction.release(lost.id)
                    return transaction.update_volume(volume, size_bytes=size_bytes)
        return volume

    def _make_available(self, volume: Volume) -> Volume:
        with self._store.writing() as transaction:
            return transaction.update_volume(volume, status=VolumeStatus.AVAILABLE, status_reason="")


def _growth(volume: Volume, new_size_bytes: int) -> int:
    """Return by how many bytes a volume is to grow. :raises volmig.errors.SizeTooSmall: when it is not to grow."""
    if new_size_bytes <= volume.size_bytes:
        raise errors.SizeTooSmall(volume=volume.id, present=volume.size_bytes, wanted=new_size_bytes)
    return new_size_bytes - volume.size_bytes


def _has_size(backend: Backend, volume: Volume, size_bytes: int) -> bool:
    """Say whether the driver sees the volume with this size, as far as it can tell."""
    if not backend.can(Capability.LOCAL_PATH):
        return False
    try:
        backend.check_object(replace(volume, size_bytes=size_bytes))
    except errors.VolmigError:
        return False
    return True
