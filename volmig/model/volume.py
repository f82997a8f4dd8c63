"""Volumes and what is recorded about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from volmig.model.states import MigrationStatus, VolumeStatus

GIB = 1024**3


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """Somebody's use of a volume."""

    id: str
    instance: str
    """Who uses it: a virtual machine, a container, a host."""
    mountpoint: str = ""
    """Where it is seen there, such as ``/dev/vdb``; empty when unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A snapshot that a backend holds of a volume."""

    id: str
    name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """One volume as the store records it.

    The record names the one place where the volume's data is: ``host`` and ``backend_id``. Values are
    immutable; the store returns a new one for each change, with a higher ``version``.
    """

    id: str
    """UUID; never changes, whatever moves."""
    name: str
    """The user's name for it; need not be unique."""
    size_bytes: int
    """Exact size in bytes, at least 1."""
    host: str
    """The pool that holds it, as ``host@backend#pool``."""
    status: VolumeStatus = VolumeStatus.CREATING
    migration_status: MigrationStatus = MigrationStatus.NONE
    name_id: str | None = None
    """The id under which the backend knows it, when that is not ``id`` (Cinder's ``_name_id``)."""
    provider_location: str | None = None
    """Export information, for the driver's own use."""
    provider_id: str | None = None
    """The backend's own identifier of the object, for the driver's own use."""
    format: str = "raw"
    """Data format of the object: ``raw``, ``qcow2`` or ``vmdk``."""
    volume_type: str | None = None
    project_id: str | None = None
    """The owner."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    operation: Mapping[str, Any] = field(default_factory=dict)
    """The request at work on its storage at present, other than a migration, as JSON values: what it is, which process
    does it and until when it may take, so that another can finish it. Empty when there is none."""
    migration_id: str | None = None
    """The migration that moves it at present; whoever holds this field holds the volume's lock."""
    status_reason: str = ""
    """Why the status or the migration status is ``error``; empty otherwise."""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    version: int = 0
    """Number of changes so far; an update names the version it was made from."""

    @property
    def backend_id(self) -> str:
        """The id under which the backend knows the object."""
        return self.name_id or self.id

    @property
    def backend_name(self) -> str:
        """The object's usual name in the backend: ``volume-<backend_id>``."""
        return f"volume-{self.backend_id}"

    @property
    def size(self) -> int:
        """Size in GiB, rounded up, for drivers in Cinder's habit."""
        return -(-self.size_bytes // GIB)
