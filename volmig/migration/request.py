"""Accepting a migration: everything is checked first, and then recorded in one transaction."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from volmig import errors
from volmig.drivers.base import Capability
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.room import Room, with_room
from volmig.migration.ownership import Claim
from volmig.model import (
    EntryKind,
    JournalEntry,
    Method,
    Migration,
    MigrationStatus,
    Phase,
    RequestContext,
    Reservation,
    Volume,
    VolumeStatus,
)
from volmig.scheduler import check_destination, check_movable
from volmig.store import MigrationQuery, Store
from volmig.store.base import ReadTransaction, WriteTransaction
from volmig.transfer import CopyOptions, End, Verify
from volmig.transfer.engines.choice import AUTO, load_engine

LONGEST_RETENTION_SECONDS = 10 * 365 * 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationRequest:
    """What somebody asks for."""

    volume_id: str
    destination: str
    """Pool, as ``host@backend#pool``."""
    force_host_copy: bool = False
    lock_volume: bool = False
    engine: str = "auto"
    verify: str = "digest"
    bandwidth_limit_bytes: int = 0
    source_retention_seconds: int = 0


def accept(
    store: Store,
    backends: Backends,
    request: MigrationRequest,
    context: RequestContext,
    claim: Claim | None = None,
) -> Migration:
    """Check a request, reserve room, take the volume's lock and record the migration.

    :param claim: of the worker that will run it at once; without, it waits in ``queued`` without an owner.
    :raises volmig.errors.VolmigError: when anything stands against it; nothing is changed then.
    """
    with store.reading() as view:
        volume = view.get_volume(request.volume_id)
        late_call_possible = _is_left_behind(view, volume, request.destination)
    check_movable(volume)
    check_destination(volume, request.destination)
    source, destination = backends.of(volume), backends.at(request.destination)
    # Where the volume's old storage still waits for its deletion, a driver would find the name taken; and what it put
    # there under that name, the deletion could hit.
    may_ask_driver = not request.force_host_copy and not late_call_possible
    by_host = host_method(source, destination)
    _check_transfer(request, by_host)
    identity = identify(store, source, volume)
    if may_ask_driver and identity is None and source.can(Capability.NATIVE_MIGRATION):
        # Its objects cannot be told apart: not even a call that is past and over on record is known to hit its own.
        with store.reading() as view:
            may_ask_driver = not has_left_storage(view, volume.id, request.destination)
    migration = Migration(
        id=str(uuid.uuid4()),
        volume_id=volume.id,
        source=volume.host,
        destination=request.destination,
        destination_id=str(uuid.uuid4()),
        method=Method.DRIVER if may_ask_driver and source.can(Capability.NATIVE_MIGRATION) else by_host,
        force_host_copy=request.force_host_copy,
        lock_volume=request.lock_volume,
        engine=request.engine,
        verify=request.verify,
        bandwidth_limit_bytes=request.bandwidth_limit_bytes,
        source_retention_seconds=request.source_retention_seconds,
        bytes_total=volume.size_bytes,
        requested_by=context.actor,
    )

    def record(room: Room) -> Migration:
        with store.writing() if claim is None else claim.writing(store) as transaction:
            current = transaction.get_volume(volume.id)
            check_movable(current)
            is_left_behind = _is_left_behind(transaction, current, request.destination)
            if place_of(current) != place_of(volume) or (is_left_behind and migration.method is Method.DRIVER):
                raise errors.StoreConflict(kind="volume", id=volume.id)
            reservation = Reservation(id=migration.id, host=migration.destination, size_bytes=volume.size_bytes)
            room.reserve(transaction, reservation)
            take_volume(transaction, current, migration)
            recorded = transaction.add_migration(migration)
            transaction.append_journal(*acceptance(recorded, current, identity, reserved_bytes=reservation.size_bytes))
            return recorded if claim is None else claim.take(transaction, recorded.id)

    return with_room(store, backends, request.destination, volume.size_bytes, record)


def has_left_storage(view: ReadTransaction, volume_id: str, host: str) -> bool:
    """Say whether the host has ever brought a volume out of a pool, so that its old object there was to be deleted."""
    done = MigrationQuery(volume_id=volume_id, phases=(Phase.SUCCESS,))
    return any(each.source == host and each.method is not Method.DRIVER for each in view.list_migrations(done))


def _is_left_behind(view: ReadTransaction, volume: Volume, host: str) -> bool:
    return any(retired.host == host for retired in view.list_retired(volume_id=volume.id))


def take_volume(transaction: WriteTransaction, volume: Volume, migration: Migration) -> None:
    """Take the volume's lock for a migration."""
    transaction.update_volume(
        volume,
        migration_id=migration.id,
        migration_status=MigrationStatus.STARTING,
        status=VolumeStatus.MAINTENANCE if migration.lock_volume else volume.status,
        status_reason="",
    )


def identify(store: Store, source: Backend, volume: Volume) -> str | None:
    """Check a volume's object against its record, and return its identity.

    :raises volmig.errors.OperatorError: when it is not there, or has another size.
    :raises volmig.errors.VolmigError: saying what another request has changed meanwhile, if that is why.
    """
    try:
        source.check_object(volume)
        return source.identify_object(volume)
    except errors.OperatorError:
        with store.reading() as view:
            current = view.get_volume(volume.id)
        check_movable(current)
        if place_of(current) != place_of(volume):
            raise errors.StoreConflict(kind="volume", id=volume.id) from None
        raise


def place_of(volume: Volume) -> tuple[str, str, str | None, int]:
    """Return what must not change between the checks of a request and its acceptance."""
    return volume.host, volume.backend_id, volume.provider_id, volume.size_bytes


def host_method(source: Backend, destination: Backend) -> Method:
    """Return how the host copies between two backends: by file-like handles where one offers nothing else."""
    by_path = source.can(Capability.LOCAL_PATH) and destination.can(Capability.LOCAL_PATH)
    by_handle = source.can(Capability.FILE_MODE) or destination.can(Capability.FILE_MODE)
    return Method.FILE if by_handle and not by_path else Method.BLOCK


def _check_transfer(request: MigrationRequest, method: Method) -> None:
    """Refuse a way of copying that does not exist, or that the engine asked for cannot serve."""
    if request.verify not in list(Verify):
        reason = f"{request.verify!r} is none of {', '.join(Verify)}"
        raise errors.RequestInvalid(what="the verification", reason=reason)
    check_retention(request.source_retention_seconds)
    limit = request.bandwidth_limit_bytes
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit < 2**63:
        reason = f"{limit!r} is not a whole number of bytes a second; 0 means no limit"
        raise errors.RequestInvalid(what="the bandwidth limit", reason=reason)
    if request.engine == AUTO:
        return
    # Ends of the kind that the copy will have; what an engine can serve depends on nothing else yet.
    end: End = io.BytesIO() if method is Method.FILE else os.devnull
    options = CopyOptions(engine=request.engine, bandwidth_limit_bytes=limit)
    refusal = load_engine(request.engine).refusal(end, end, options)
    if refusal:
        raise errors.UnsupportedTransfer(engine=request.engine, reason=refusal)


def check_retention(seconds: object) -> None:
    """Refuse what is no time for which old storage can be kept. :raises volmig.errors.RequestInvalid:"""
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 <= seconds <= LONGEST_RETENTION_SECONDS:
        reason = f"{seconds!r} is not a whole number of seconds up to {LONGEST_RETENTION_SECONDS}"
        raise errors.RequestInvalid(what="the time for which the old storage is kept", reason=reason)


def acceptance(
    migration: Migration, volume: Volume, identity: str | None, *, reserved_bytes: int
) -> Iterator[JournalEntry]:
    """Yield the first entries of the journal: the request, and the state in which it found the volume."""
    yield JournalEntry(
        migration_id=migration.id,
        kind=EntryKind.PHASE,
        subject=Phase.QUEUED.value,
        actor=migration.requested_by,
        data={
            "reason": f"{migration.requested_by} asked for it",
            "volume": volume.id,
            "source": migration.source,
            "destination": migration.destination,
        },
    )
    yield JournalEntry(
        migration_id=migration.id,
        kind=EntryKind.DONE,
        subject="reserve",
        actor=migration.requested_by,
        data={
            "reserved_bytes": reserved_bytes,
            "volume_status": volume.status.value,
            "name_id": volume.name_id,
            "provider_location": volume.provider_location,
            "provider_id": volume.provider_id,
            "identity": identity,
            "destination_id": migration.destination_id,
        },
    )
