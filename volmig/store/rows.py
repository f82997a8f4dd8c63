"""Between values of the model and rows of the tables."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from volmig import errors
from volmig.model import (
    Attachment,
    EntryKind,
    JournalEntry,
    Method,
    Migration,
    MigrationStatus,
    Phase,
    Reservation,
    RetiredObject,
    Snapshot,
    Volume,
    VolumeStatus,
)
from volmig.store import schema


def _names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


_VOLUME: Final = _names(Volume)
_MIGRATION: Final = _names(Migration)
_ENTRY: Final = _names(JournalEntry)
_RETIRED: Final = _names(RetiredObject)
_RESERVATION: Final = _names(Reservation)
_FIELDS: Final[Mapping[type, tuple[str, ...]]] = {
    Volume: _VOLUME,
    Migration: _MIGRATION,
    JournalEntry: _ENTRY,
    RetiredObject: _RETIRED,
    Reservation: _RESERVATION,
}

# The columns in the order of the fields, so that a row is turned into a value by position.
VOLUME_COLUMNS: Final = tuple(schema.volumes.c[name] for name in _VOLUME)
MIGRATION_COLUMNS: Final = tuple(schema.migrations.c[name] for name in _MIGRATION)
ENTRY_COLUMNS: Final = tuple(schema.journal.c[name] for name in _ENTRY)
RETIRED_COLUMNS: Final = tuple(schema.retired.c[name] for name in _RETIRED)
RESERVATION_COLUMNS: Final = tuple(schema.reservations.c[name] for name in _RESERVATION)


def to_columns(value: Any, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the fields of *value*, or those of *names*, as columns."""
    chosen = _FIELDS[type(value)] if names is None else names
    return {name: _to_column(getattr(value, name)) for name in chosen}


def _to_column(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [dataclasses.asdict(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return value


def to_volume(row: sa.Row[Any]) -> Volume:
    """Return the volume that *row* of :data:`VOLUME_COLUMNS` records."""
    values = _by_name(_VOLUME, row)
    try:
        values["status"] = VolumeStatus(values["status"])
        values["migration_status"] = MigrationStatus(values["migration_status"])
        values["attachments"] = tuple(Attachment(**item) for item in values["attachments"])
        values["snapshots"] = tuple(Snapshot(**item) for item in values["snapshots"])
    except (TypeError, ValueError) as error:
        raise _damaged("volume", values["id"], error) from error
    return Volume(**values)


def to_migration(row: sa.Row[Any]) -> Migration:
    """Return the migration that *row* of :data:`MIGRATION_COLUMNS` records."""
    values = _by_name(_MIGRATION, row)
    try:
        values["method"] = Method(values["method"])
        values["phase"] = Phase(values["phase"])
    except ValueError as error:
        raise _damaged("migration", values["id"], error) from error
    return Migration(**values)


def to_entry(row: sa.Row[Any]) -> JournalEntry:
    """Return the journal entry that *row* of :data:`ENTRY_COLUMNS` records."""
    values = _by_name(_ENTRY, row)
    try:
        values["kind"] = EntryKind(values["kind"])
    except ValueError as error:
        raise _damaged("journal of migration", values["migration_id"], error) from error
    return JournalEntry(**values)


def to_retired(row: sa.Row[Any]) -> RetiredObject:
    """Return the retired object that *row* of :data:`RETIRED_COLUMNS` records."""
    return RetiredObject(**_by_name(_RETIRED, row))


def to_reservation(row: sa.Row[Any]) -> Reservation:
    """Return the reservation that *row* of :data:`RESERVATION_COLUMNS` records."""
    return Reservation(**_by_name(_RESERVATION, row))


def _by_name(names: Sequence[str], row: sa.Row[Any]) -> dict[str, Any]:
    return dict(zip(names, row, strict=True))


def _damaged(kind: str, record_id: str, error: Exception) -> errors.InternalError:
    return errors.InternalError(
        reason=f"the record of {kind} {record_id} holds a value that volmig never wrote: {error}"
    )
