"""Migrations and what is recorded about them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from volmig.model.states import Method, Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """One attempt to move one volume from one pool to another."""

    id: str
    volume_id: str
    source: str
    """Pool that holds the volume when the migration begins, as ``host@backend#pool``."""
    destination: str
    """Pool that is to hold it, in the same form."""
    destination_id: str
    """Id of the object that is made at the destination; fixed before it is made."""
    method: Method
    phase: Phase = Phase.QUEUED
    force_host_copy: bool = False
    lock_volume: bool = False
    engine: str = "auto"
    """Transfer engine that was asked for."""
    verify: str = "digest"
    """``none``, ``digest`` or ``compare``."""
    bandwidth_limit_bytes: int = 0
    """Bytes a second that the copy may move at most; 0 for no limit."""
    stage: str = ""
    """What the transfer is doing: ``copy``, ``flush`` or ``verify``; empty outside of it."""
    bytes_total: int = 0
    """Bytes that the stage deals with in all; the volume's size outside of a stage."""
    bytes_done: int = 0
    """Bytes that the stage has dealt with so far: copied, or known to be zeroes."""
    rate_bytes: float = 0.0
    """Bytes dealt with in the last second or so, per second."""
    eta_seconds: float | None = None
    """Seconds until the data is across at the present rate; None when unknown."""
    digest_algorithm: str = ""
    source_digest: str = ""
    destination_digest: str = ""
    error_code: str = ""
    error_message: str = ""
    error_hint: str = ""
    requested_by: str = ""
    cancel_requested_by: str = ""
    """Who asked to cancel it; empty as long as nobody did."""
    pause_requested_by: str = ""
    """Who asked to pause it; empty when nobody did, or when it was resumed since."""
    source_retention_seconds: int = 0
    """How long the volume's old storage is kept after success, so that the migration can be rolled back."""
    rolls_back: str = ""
    """The migration that this one takes back (method ``rollback``); empty for any other."""
    owner: str = ""
    """Worker that runs it; empty when none does."""
    epoch: int = 0
    """Number of times that a worker has taken it; each write of a worker names its epoch."""
    lease_expires_at: datetime | None = None
    """When the owner loses it unless it renews; on the store's clock."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    updated_at: datetime | None = None


class EntryKind(enum.StrEnum):
    """What a journal entry says."""

    PHASE = "phase"
    """The migration entered a phase."""
    INTENT = "intent"
    """A step is about to take effect; ``data`` holds every id and name that it will create."""
    DONE = "done"
    """The step took effect; ``data`` holds its outcome."""
    FAILED = "failed"
    """The step raised; ``data`` holds the error."""
    UNDONE = "undone"
    """The step's effect was taken back."""
    REQUEST = "request"
    """Somebody asked for something: to cancel, pause, resume, limit, roll back or retire it."""
    NOTE = "note"
    """Something else worth knowing: a helper process, a retry, a warning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalEntry:
    """One line of a migration's append-only journal, which is also its history."""

    migration_id: str
    kind: EntryKind
    subject: str
    """The phase or the step that the entry is about."""
    actor: str
    """Who wrote it: a worker, or the person that requested something."""
    epoch: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    """Facts as JSON values."""
    sequence: int = 0
    """Position in the journal, from 1; given by the store."""
    at: datetime | None = None
    """Time on the store's clock; given by the store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetiredObject:
    """Storage that no volume uses any more, and that waits for its deletion.

    The old storage of a migrated volume becomes one at the commit point; so does a half-made destination
    that could not be deleted during a rollback.
    """

    id: str
    migration_id: str
    volume_id: str
    host: str
    """Pool that holds the object, as ``host@backend#pool``."""
    name_id: str
    """Id under which the backend knows the object."""
    size_bytes: int
    provider_location: str | None = None
    provider_id: str | None = None
    identity: str | None = None
    """What tells this object from a later one of the same name (see ``identify_object`` of the drivers)."""
    format: str = "raw"
    delete_after: datetime | None = None
    """Earliest time of its deletion, on the store's clock."""
    deletion_begun_at: datetime | None = None
    """When its deletion was first begun. From then on nothing may use it again: a call may be under way that deletes
    it, however late."""
    attempts: int = 0
    """How often its deletion was tried."""
    last_error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """Room in a pool that a running migration or creation has claimed."""

    id: str
    """Id of the migration or the volume that it is for."""
    host: str
    """The pool, as ``host@backend#pool``."""
    size_bytes: int
