"""What a store allows, as pure functions from a present record to the next one.

The stores differ in where they keep records; which changes are allowed, and what they make of a record, is stated
here once. An implementation of :class:`volmig.store.base.Store` over another table may use these functions too.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from volmig import errors
from volmig.model import (
    PHASE_TRANSITIONS,
    VOLUME_TRANSITIONS,
    JournalEntry,
    Method,
    Migration,
    MigrationStatus,
    Phase,
    Reservation,
    RetiredObject,
    Volume,
    VolumeStatus,
)

SHORT_TEXT_LENGTH: Final = 255
"""Most characters that a text field may have, unless it is one of :data:`LONG_TEXT_FIELDS`."""

LONG_TEXT_FIELDS: Final = frozenset(
    {
        "provider_location",
        "provider_id",
        "identity",
        "storage_identity",
        "status_reason",
        "error_message",
        "error_hint",
        "last_error",
    }
)

LARGEST_INTEGER: Final = 2**63 - 1
LARGEST_CHECKPOINT_BYTES: Final = 16 << 20

_VOLUME_FIELDS: Final = frozenset(field.name for field in dataclasses.fields(Volume))
_MIGRATION_FIELDS: Final = frozenset(field.name for field in dataclasses.fields(Migration))
_VOLUME_CHANGES: Final = _VOLUME_FIELDS - {"id", "version", "created_at", "updated_at"}
_MIGRATION_CHANGES: Final = _MIGRATION_FIELDS - {
    "id",
    "volume_id",
    "epoch",
    "created_at",
    "updated_at",
    "cancel_requested_by",
    "pause_requested_by",
}
_ENUM_FIELDS: Final[Mapping[type, Mapping[str, type[enum.StrEnum]]]] = {
    Volume: {"status": VolumeStatus, "migration_status": MigrationStatus},
    Migration: {"method": Method, "phase": Phase},
}


# --- values -------------------------------------------------------------------------------------


def json_text(data: Any) -> str:
    """Return *data* as JSON in ASCII, which every database keeps as it is.

    :raises volmig.errors.InternalError: when it holds something that is no JSON value, such as NaN.
    """
    try:
        return json.dumps(data, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise errors.InternalError(reason=f"the data to record is not JSON: {error}") from error


def _json_copy(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON makes of *data*, which shares nothing with it."""
    copied: dict[str, Any] = json.loads(json_text(dict(data)))
    return copied


def check_limit(limit: int | None) -> None:
    """Refuse a page of less than one record."""
    if limit is not None and limit < 1:
        raise errors.RequestInvalid(what="the limit of a page", reason=f"{limit} is less than 1")


def check_text(name: str, text: str) -> None:
    """Refuse *text* that not every database can keep in the field *name*."""
    if "\0" in text:
        raise errors.RequestInvalid(what=name, reason="it holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise errors.RequestInvalid(what=name, reason=f"{text!a} is not Unicode text") from error
    if len(text) > SHORT_TEXT_LENGTH and name not in LONG_TEXT_FIELDS:
        raise errors.RequestInvalid(
            what=name, reason=f"it has {len(text)} characters, and {SHORT_TEXT_LENGTH} are the most"
        )


def _check_value(name: str, value: Any) -> None:
    """Refuse what not every database can keep, so that all stores refuse the same."""
    if isinstance(value, str):
        check_text(name, value)
    elif isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise errors.RequestInvalid(what=name, reason=f"{value} does not fit 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise errors.InternalError(reason=f"{name} is {value}, which is not a number to record")
    elif isinstance(value, datetime):
        if value.tzinfo is None:
            raise errors.InternalError(reason=f"{name} is a time without time zone: {value}")
    elif isinstance(value, Mapping):
        for key, text in value.items():
            check_text(f"{name}: key", key)
            if isinstance(text, str) and "\0" in text:
                raise errors.RequestInvalid(what=f"{name}[{key!r}]", reason="it holds a NUL character")


def _normal(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return *values* checked, with enum members for plain strings and copies of what could change later."""
    normal = dict(values)
    for name, value in values.items():
        if name == "operation":
            normal[name] = _json_copy(value)
            continue
        _check_value(name, value)
        if name == "metadata":
            normal[name] = dict(value)
        elif name in ("attachments", "snapshots"):
            normal[name] = tuple(value)
        elif isinstance(value, datetime):
            normal[name] = value.astimezone(UTC)
    for name, members in _ENUM_FIELDS.get(cls, {}).items():
        if name in normal:
            try:
                normal[name] = members(normal[name])
            except ValueError as error:
                raise errors.InternalError(reason=f"{normal[name]!r} is not one of the values of {name}") from error
    return normal


def _fields_of(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


# --- volumes ------------------------------------------------------------------------------------


def new_volume(volume: Volume, *, now: datetime) -> Volume:
    """Return the first record of *volume*."""
    values = _normal(Volume, _fields_of(volume))
    values.update(version=1, created_at=now, updated_at=now)
    return Volume(**values)


def changed_volume(present: Volume, changes: Mapping[str, Any], *, now: datetime) -> Volume:
    """Return the record that *changes* make of *present*."""
    _refuse_unknown("volume", changes, _VOLUME_CHANGES)
    normal = _normal(Volume, changes)
    status = normal.get("status", present.status)
    if status is not present.status and status not in VOLUME_TRANSITIONS[present.status]:
        raise errors.InternalError(
            reason=f"volume {present.id} cannot go from status {present.status.value!r} to {status.value!r}"
        )
    return dataclasses.replace(present, **normal, version=present.version + 1, updated_at=now)


def _refuse_unknown(kind: str, changes: Mapping[str, Any], allowed: frozenset[str]) -> None:
    unknown = sorted(set(changes) - allowed)
    if unknown:
        raise errors.InternalError(reason=f"these fields of a {kind} cannot be changed: {', '.join(unknown)}")


def volume_conflict(volume: Volume) -> errors.StoreConflict:
    """Return the error for a change made from an old state of *volume*."""
    return errors.StoreConflict(kind="volume", id=volume.id)


# --- migrations ---------------------------------------------------------------------------------


def new_migration(migration: Migration, *, now: datetime) -> Migration:
    """Return the first record of *migration*."""
    values = _normal(Migration, _fields_of(migration))
    values.update(created_at=now, updated_at=now)
    return Migration(**values)


def changed_migration(present: Migration, given: Migration, changes: Mapping[str, Any], *, now: datetime) -> Migration:
    """Return the record that *changes*, made by whoever holds *given*, make of *present*."""
    _refuse_unknown("migration", changes, _MIGRATION_CHANGES)
    if present.epoch != given.epoch:
        raise lease_lost(given)
    normal = _normal(Migration, changes)
    phase = normal.get("phase", present.phase)
    if phase is not present.phase and phase not in PHASE_TRANSITIONS[present.phase]:
        raise errors.InternalError(
            reason=f"migration {present.id} cannot go from phase {present.phase.value!r} to {phase.value!r}"
        )
    return dataclasses.replace(present, **normal, updated_at=now)


def claimed_migration(present: Migration, *, owner: str, lease_seconds: float, now: datetime) -> Migration:
    """Return the record after *owner* has taken the migration."""
    if not owner:
        raise errors.InternalError(reason=f"a claim of migration {present.id} names no owner")
    _check_value("owner", owner)
    if present.phase.is_final or (present.owner and not _lease_is_over(present, now)):
        raise errors.LeaseLost(migration=present.id, owner=owner, epoch=present.epoch)
    if present.phase is Phase.PAUSED and not present.cancel_requested_by:
        raise errors.MigrationPaused(migration=present.id, requested_by=present.pause_requested_by)
    return dataclasses.replace(
        present,
        owner=owner,
        epoch=present.epoch + 1,
        lease_expires_at=now + _lease(lease_seconds),
        updated_at=now,
    )


def renewed_migration(present: Migration, given: Migration, *, lease_seconds: float, now: datetime) -> Migration:
    """Return the record after the holder of *given* has renewed its lease."""
    if present.epoch != given.epoch or not present.owner or _lease_is_over(present, now):
        raise lease_lost(given)
    return dataclasses.replace(present, lease_expires_at=now + _lease(lease_seconds), updated_at=now)


def lease_lost(given: Migration) -> errors.LeaseLost:
    """Return the error for a worker that holds *given* and does not own the migration any more."""
    return errors.LeaseLost(migration=given.id, owner=given.owner, epoch=given.epoch)


def _lease(seconds: float) -> timedelta:
    if not (math.isfinite(seconds) and seconds > 0):
        raise errors.InternalError(reason=f"a lease cannot last {seconds} seconds")
    return timedelta(seconds=seconds)


def _lease_is_over(migration: Migration, now: datetime) -> bool:
    # An owner without a lease could never lose the migration: such a record counts as given up.
    return migration.lease_expires_at is None or migration.lease_expires_at <= now


# --- the other records --------------------------------------------------------------------------


def new_entries(entries: Sequence[JournalEntry], *, after: int, now: datetime) -> list[JournalEntry]:
    """Return the records of *entries*, which are of one migration and follow the entry with the sequence *after*."""
    migrations = {entry.migration_id for entry in entries}
    if len(migrations) > 1:
        raise errors.InternalError(reason=f"entries of {len(migrations)} migrations were appended to one journal")
    return [_new_entry(entry, sequence=after + count, now=now) for count, entry in enumerate(entries, start=1)]


def _new_entry(entry: JournalEntry, *, sequence: int, now: datetime) -> JournalEntry:
    # Its data is what JSON makes of it.
    values = _fields_of(entry)
    data = _json_copy(values.pop("data"))
    values = _normal(JournalEntry, values)
    values.update(data=data, sequence=sequence, at=now)
    return JournalEntry(**values)


def new_checkpoint(given: Migration, data: bytes, *, present_epoch: int) -> bytes:
    """Return the checkpoint to record for whoever holds *given*."""
    if present_epoch != given.epoch:
        raise lease_lost(given)
    if len(data) > LARGEST_CHECKPOINT_BYTES:
        raise errors.InternalError(
            reason=f"a checkpoint of migration {given.id} has {len(data)} bytes, and {LARGEST_CHECKPOINT_BYTES} are "
            "the most"
        )
    return bytes(data)


def new_retired(retired: RetiredObject) -> RetiredObject:
    """Return the record of *retired*."""
    return RetiredObject(**_normal(RetiredObject, _fields_of(retired)))


def deletion_time(delete_after: datetime) -> datetime:
    """Return the time to record for the deletion of a retired object."""
    time: datetime = _normal(RetiredObject, {"delete_after": delete_after})["delete_after"]
    return time


def deletion_begun(retired: RetiredObject, *, now: datetime) -> RetiredObject:
    """Return the record of a retired object whose deletion is begun now, unless it was before."""
    if retired.deletion_begun_at is not None:
        return retired
    return dataclasses.replace(retired, deletion_begun_at=now)


def check_reservation(reservation: Reservation) -> None:
    """Refuse a reservation that would make room."""
    for name, value in _fields_of(reservation).items():
        _check_value(name, value)
    if reservation.size_bytes < 0:
        raise errors.InternalError(reason=f"a reservation of {reservation.size_bytes} bytes in {reservation.host}")


def check_releases(reservation: Reservation, *, seen: int | None, present: int) -> None:
    """Refuse a reservation by figures that may miss an object: room was given back since they were taken."""
    if seen is not None and seen != present:
        raise errors.StoreConflict(kind="pool", id=reservation.host)


def reservation_is_repeated(present: Reservation | None, wanted: Reservation) -> bool:
    """Return whether *wanted* is recorded already.

    :raises volmig.errors.InternalError: when its id is recorded with other values.
    """
    if present is None:
        return False
    if present != wanted:
        raise errors.InternalError(
            reason=f"reservation {wanted.id} of {wanted.size_bytes} bytes in {wanted.host} exists already with "
            f"{present.size_bytes} bytes in {present.host}"
        )
    return True


def no_room(reservation: Reservation, *, reserved_bytes: int, limit_bytes: int) -> errors.DestinationTooSmall:
    """Return the error for a reservation that goes beyond the limit."""
    return errors.DestinationTooSmall(
        pool=reservation.host, free=max(0, limit_bytes - reserved_bytes), needed=reservation.size_bytes
    )


def retired_order(retired: RetiredObject) -> tuple[bool, datetime, str]:
    """Return a key that sorts retired objects: the first one due first, those without a time last."""
    return retired.delete_after is None, retired.delete_after or datetime.min.replace(tzinfo=UTC), retired.id


# --- hosts --------------------------------------------------------------------------------------


def host_range(host: str) -> tuple[str, str] | None:
    """Return the half-open range of addresses below a host or a backend; None for a whole pool address.

    The range holds ``h@a#…`` for ``h@a``, and nothing of ``h@ab``. A pool's name may hold ``@`` and ``#``, so that
    the first of each decides what *host* is.
    """
    _, at, rest = host.partition("@")
    if at and "#" in rest:
        return None
    separator = "#" if at else "@"
    return host + separator, host + chr(ord(separator) + 1)


def host_matches(wanted: str, address: str) -> bool:
    """Return whether the pool *address* is *wanted* or lies below it."""
    limits = host_range(wanted)
    if limits is None:
        return address == wanted
    first, end = limits
    return first <= address < end
