"""The values that volmig works on: immutable dataclasses, and enums for their states."""

from volmig.model.address import PoolAddress
from volmig.model.context import RequestContext
from volmig.model.migration import EntryKind, JournalEntry, Migration, Reservation, RetiredObject
from volmig.model.states import (
    PHASE_TRANSITIONS,
    PUBLIC_STATUS,
    VOLUME_TRANSITIONS,
    Method,
    MigrationStatus,
    Phase,
    VolumeStatus,
)
from volmig.model.volume import GIB, Attachment, Snapshot, Volume

__all__ = [
    "GIB",
    "PHASE_TRANSITIONS",
    "PUBLIC_STATUS",
    "VOLUME_TRANSITIONS",
    "Attachment",
    "EntryKind",
    "JournalEntry",
    "Method",
    "Migration",
    "MigrationStatus",
    "Phase",
    "PoolAddress",
    "RequestContext",
    "Reservation",
    "RetiredObject",
    "Snapshot",
    "Volume",
    "VolumeStatus",
]
