"""The life of volumes other than their migration."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import PurePath
from typing import Any

from volmig import errors
from volmig.drivers.base import Capability, VolumeUpdate
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.room import Room, with_room
from volmig.model import Attachment, Phase, PoolAddress, Reservation, RetiredObject, Volume, VolumeStatus
from volmig.store import MigrationQuery, Store, VolumeQuery
from volmig.store.base import ReadTransaction

LOG = logging.getLogger(__name__)


class VolumeManager:
    """Creates, deletes, extends, adopts and releases volumes.

    :param settle: called with a migration that stands in the way of a request: ends it if it can be ended, and
        returns when it is over. Raises :class:`volmig.errors.VolumeMigrating` when it cannot give way.
    """

    def __init__(self, store: Store, backends: Backends, *, settle: Callable[[Volume, str], None]) -> None:
        self._store = store
        self._backends = backends
        self._settle = settle
        self._lock = threading.Lock()
        self._being_extended: set[str] = set()

    # --- create and delete --------------------------------------------------------------------

    def create(self, volume: Volume) -> Volume:
        """Make the storage of a volume and record it.

        :param volume: with the pool where it is to be as ``host``.
        :raises volmig.errors.VolmigError: when it cannot be made; nothing is left behind then.
        """
        check_size(volume.size_bytes)
        wanted = replace(volume, status=VolumeStatus.CREATING)

        def record(room: Room) -> Volume:
            with self._store.writing() as transaction:
                reservation = Reservation(id=wanted.id, host=wanted.host, size_bytes=wanted.size_bytes)
                room.reserve(transaction, reservation)
                return transaction.add_volume(wanted)

        volume = with_room(self._store, self._backends, volume.host, volume.size_bytes, record)
        backend = self._backends.of(volume)
        try:
            update = backend.create_volume(volume)
        except Exception as error:
            self._undo_create(backend, volume, error)
            raise
        try:
            with self._store.writing() as transaction:
                transaction.release(volume.id)
                return transaction.update_volume(volume, status=VolumeStatus.AVAILABLE, **fields_of(update))
        except errors.StoreConflict:
            # It was deleted while it was made, so that nobody knows of what is there now.
            backend.delete_volume(volume)
            raise

    def _undo_create(self, backend: Backend, volume: Volume, error: Exception) -> None:
        try:
            backend.delete_volume(volume)
        except errors.VolmigError as left:
            LOG.warning("volume %s: clearing up after a failed creation failed too: %s", volume.id, left)
            with self._store.writing() as transaction:
                transaction.release(volume.id)
                transaction.update_volume(volume, status=VolumeStatus.ERROR, status_reason=f"{error} {left}")
            return
        with self._store.writing() as transaction:
            transaction.release(volume.id)
            transaction.remove_volume(volume)
            if isinstance(error, errors.DriverTimeout):
                # The call may make it yet: it is looked for once more when it must be over.
                due_at = transaction.now() + timedelta(seconds=backend.timeout_seconds)
                transaction.add_retired(
                    RetiredObject(
                        id=volume.id,
                        migration_id="",
                        volume_id=volume.id,
                        host=volume.host,
                        name_id=volume.backend_id,
                        size_bytes=volume.size_bytes,
                        delete_after=due_at,
                        last_error=error.message,
                    )
                )

    def delete(self, volume_id: str) -> None:
        """Delete a volume and its storage. An unlocked migration of it is cancelled first."""
        allowed = (
            VolumeStatus.AVAILABLE,
            VolumeStatus.ERROR,
            VolumeStatus.CREATING,
            VolumeStatus.DELETING,
            VolumeStatus.EXTENDING,
        )
        volume = self._ready(volume_id, "delete", allowed)
        backend = self._backends.of(volume)
        self._require_in_service(backend, volume)
        if volume.status is not VolumeStatus.DELETING:
            volume = self._update(volume, status=VolumeStatus.DELETING)
        try:
            backend.delete_volume(volume)
        except Exception as error:
            self._update(volume, status=VolumeStatus.ERROR, status_reason=f"Deleting it failed: {error}")
            raise
        with self._store.writing() as transaction:
            transaction.release(volume.id)
            transaction.release(_extension_id(volume))
            transaction.remove_volume(volume)

    @staticmethod
    def _require_in_service(backend: Backend, volume: Volume) -> None:
        """Refuse what a backend that is out of service cannot do, before anything is changed for it.

        :raises volmig.errors.BackendDown:
        """
        try:
            backend.volume_exists(volume)
        except errors.BackendDown:
            raise
        except errors.VolmigError as error:
            LOG.debug("volume %s cannot be looked at: %s", volume.id, error)

    # --- extend -------------------------------------------------------------------------------

    def extend(self, volume_id: str, new_size_bytes: int) -> Volume:
        """Enlarge a volume. An unlocked migration of it is cancelled first.

        :raises volmig.errors.SizeTooSmall: when it is not larger than the volume.
        """
        check_size(new_size_bytes)
        with self._extending(volume_id):
            return self._extend(volume_id, new_size_bytes)

    @contextmanager
    def _extending(self, volume_id: str) -> Iterator[None]:
        """Refuse a second extension: the status of one under way is also that of one that a crash has left."""
        with self._lock:
            if volume_id in self._being_extended:
                status = VolumeStatus.EXTENDING.value
                allowed = VolumeStatus.AVAILABLE.value
                raise errors.WrongStatus(operation="extend", volume=volume_id, status=status, allowed=allowed)
            self._being_extended.add(volume_id)
        try:
            yield
        finally:
            with self._lock:
                self._being_extended.discard(volume_id)

    def _extend(self, volume_id: str, new_size_bytes: int) -> Volume:
        # Looked at before a migration is made to give way: a request that is refused changes nothing.
        volume = self._get(volume_id)
        self._backends.pool_with_room(volume.host, _growth(volume, new_size_bytes))
        volume = self._ready(volume_id, "extend", (VolumeStatus.AVAILABLE, VolumeStatus.ERROR, VolumeStatus.EXTENDING))
        if volume.status is VolumeStatus.EXTENDING:
            volume = self._end_lost_extend(volume)
            if volume.size_bytes == new_size_bytes:
                return self._update(volume, status=VolumeStatus.AVAILABLE, status_reason="")
        grown = _growth(volume, new_size_bytes)
        reservation = Reservation(id=_extension_id(volume), host=volume.host, size_bytes=grown)
        with self._store.writing() as transaction:
            # A crash during an earlier attempt may have left one of another size.
            transaction.release(reservation.id)
        present = volume

        def record(room: Room) -> Volume:
            with self._store.writing() as transaction:
                room.reserve(transaction, reservation)
                return transaction.update_volume(present, status=VolumeStatus.EXTENDING)

        volume = with_room(self._store, self._backends, volume.host, grown, record)
        backend = self._backends.of(volume)
        try:
            backend.extend_volume(volume, new_size_bytes)
        except Exception as error:
            if not self._has_size(backend, volume, new_size_bytes):
                self._end_failed_extend(backend, volume, error)
                raise
            LOG.warning("volume %s was extended, though its driver reported: %s", volume.id, error)
        with self._store.writing() as transaction:
            transaction.release(_extension_id(volume))
            return transaction.update_volume(
                volume, size_bytes=new_size_bytes, status=VolumeStatus.AVAILABLE, status_reason=""
            )

    def _end_lost_extend(self, volume: Volume) -> Volume:
        """Record what an extension made whose process has died: its reservation tells the size that it wanted."""
        with self._store.reading() as view:
            held = [each for each in view.list_reservations(volume.host) if each.id == _extension_id(volume)]
        backend = self._backends.of(volume)
        for lost in held:
            size_bytes = volume.size_bytes + lost.size_bytes
            if self._has_size(backend, volume, size_bytes):
                with self._store.writing() as transaction:
                    transaction.release(lost.id)
                    return transaction.update_volume(volume, size_bytes=size_bytes)
        return volume

    def _end_failed_extend(self, backend: Backend, volume: Volume, error: Exception) -> None:
        # A call that did not end in time may enlarge it yet.
        whole = not isinstance(error, errors.DriverTimeout) and self._has_size(backend, volume, volume.size_bytes)
        with self._store.writing() as transaction:
            transaction.release(_extension_id(volume))
            transaction.update_volume(
                volume,
                status=VolumeStatus.AVAILABLE if whole else VolumeStatus.ERROR,
                status_reason="" if whole else f"Extending it failed: {error}",
            )

    @staticmethod
    def _has_size(backend: Backend, volume: Volume, size_bytes: int) -> bool:
        """Say whether the driver sees the volume with this size, as far as it can tell."""
        if not backend.can(Capability.LOCAL_PATH):
            return False
        try:
            backend.check_object(replace(volume, size_bytes=size_bytes))
        except errors.VolmigError:
            return False
        return True

    # --- manage and unmanage ------------------------------------------------------------------

    def manage(self, reference: str, volume: Volume) -> Volume:
        """Take over an object that volmig did not make; its data stays as it is.

        :param reference: the object's name or path.
        :param volume: the record to be; with an empty ``host``, all pools that can adopt are asked.
        :raises volmig.errors.NotManageable: when no pool has it, with what each says.
        :raises volmig.errors.AlreadyManaged: when it belongs to a volume.
        """
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

    def unmanage(self, volume_id: str) -> None:
        """Forget a volume; its storage and data stay."""
        backend = self._backends.of(self._get(volume_id))
        if not backend.can(Capability.MANAGE):
            raise errors.UnsupportedOperation(backend=backend.name, operation="unmanaging volumes")
        volume = self._ready(volume_id, "unmanage", (VolumeStatus.AVAILABLE, VolumeStatus.ERROR))
        backend = self._backends.of(volume)
        backend.unmanage(volume)
        with self._store.writing() as transaction:
            transaction.remove_volume(volume)
            for retired in transaction.list_retired():
                if retired.volume_id == volume.id:
                    # Nobody will be there to say that the volume is whole elsewhere, so that it must stay as well.
                    LOG.warning("old storage %s of volume %s stays in %s", retired.name_id, volume.id, retired.host)
                    transaction.remove_retired(retired.id)

    # --- attachments --------------------------------------------------------------------------

    def attach(self, volume_id: str, *, instance: str, mountpoint: str) -> Volume:
        """Record that somebody uses a volume. An unlocked migration of it is cancelled first."""
        volume = self._ready(volume_id, "attach", (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE))
        attachment = Attachment(id=str(uuid.uuid4()), instance=instance, mountpoint=mountpoint)
        return self._update(volume, attachments=(*volume.attachments, attachment), status=VolumeStatus.IN_USE)

    def detach(self, volume_id: str, *, attachment_id: str | None) -> Volume:
        """Record that somebody no longer uses a volume.

        :param attachment_id: which use has ended; None for the only one.
        """
        volume = self._get(volume_id)
        ids = [attachment.id for attachment in volume.attachments]
        if attachment_id is None and len(ids) == 1:
            attachment_id = ids[0]
        if attachment_id not in ids:
            reason = f"volume {volume.id} has the attachments: {', '.join(ids) or 'none'}"
            raise errors.RequestInvalid(what="the attachment", reason=reason)
        left = tuple(attachment for attachment in volume.attachments if attachment.id != attachment_id)
        status = VolumeStatus.IN_USE if left else VolumeStatus.AVAILABLE
        return self._update(volume, attachments=left, status=status)

    # --- common -------------------------------------------------------------------------------

    def _ready(self, volume_id: str, operation: str, allowed: tuple[VolumeStatus, ...]) -> Volume:
        """Return a volume that the operation may be done on, after migrations have given way.

        What else stands against the operation is refused before a migration is ended for it.
        """
        while True:
            volume = self._get(volume_id)
            if volume.attachments and operation != "attach":
                users = ", ".join(attachment.instance for attachment in volume.attachments)
                raise errors.VolumeInUse(volume=volume.id, users=f"attached to {users}")
            if volume.snapshots and operation in ("delete", "unmanage"):
                raise errors.VolumeHasSnapshots(operation=operation, volume=volume.id, count=len(volume.snapshots))
            if volume.migration_id is None:
                break
            self._settle(volume, operation)
        if volume.status not in allowed:
            raise errors.WrongStatus(
                operation=operation,
                volume=volume.id,
                status=volume.status.value,
                allowed=" or ".join(status.value for status in allowed),
            )
        return volume

    def _get(self, volume_id: str) -> Volume:
        with self._store.reading() as view:
            return view.get_volume(volume_id)

    def _update(self, volume: Volume, **changes: Any) -> Volume:
        with self._store.writing() as transaction:
            return transaction.update_volume(volume, **changes)


def _extension_id(volume: Volume) -> str:
    """Return the id of the reservation for an extension of a volume."""
    return f"extend-{volume.id}"


def _growth(volume: Volume, new_size_bytes: int) -> int:
    """Return by how many bytes a volume is to grow. :raises volmig.errors.SizeTooSmall: when it is not to grow."""
    if new_size_bytes <= volume.size_bytes:
        raise errors.SizeTooSmall(volume=volume.id, present=volume.size_bytes, wanted=new_size_bytes)
    return new_size_bytes - volume.size_bytes


def check_size(size_bytes: object) -> None:
    """Refuse what is not a positive whole number of bytes. :raises volmig.errors.SizeInvalid:"""
    if isinstance(size_bytes, bool) or not isinstance(size_bytes, int):
        raise errors.SizeInvalid(value=size_bytes, reason="it is not a whole number of bytes")
    if size_bytes < 1:
        raise errors.SizeInvalid(value=size_bytes, reason="it is not greater than zero")
    if size_bytes >= 2**63:
        raise errors.SizeInvalid(value=size_bytes, reason="no storage is that large")


def fields_of(update: VolumeUpdate) -> dict[str, Any]:
    """Return a driver's update as fields of :class:`volmig.model.Volume`."""
    fields: dict[str, Any] = dict(update)
    if "_name_id" in fields:
        fields["name_id"] = fields.pop("_name_id")
    return fields


def new_volume(
    *,
    host: str,
    size_bytes: int,
    name: str,
    volume_type: str | None,
    project_id: str | None,
    metadata: Mapping[str, str] | None,
) -> Volume:
    """Return the record of a volume to be made, with an id of its own.

    :raises volmig.errors.RequestInvalid: when the name or the metadata cannot be recorded.
    :raises volmig.errors.AddressMalformed: when *host* is neither empty nor a pool's address.
    """
    if host:
        PoolAddress.parse(host)
    if len(name) > 255 or not (name.isprintable() or not name):
        raise errors.RequestInvalid(what="the volume's name", reason="it is longer than 255 characters or unprintable")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str) or not key:
            raise errors.RequestInvalid(what="the metadata", reason=f"{key!r}: {value!r} is not text to text")
    return Volume(
        id=str(uuid.uuid4()),
        name=name,
        size_bytes=size_bytes,
        host=host,
        volume_type=volume_type,
        project_id=project_id,
        metadata=dict(metadata or {}),
    )


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
