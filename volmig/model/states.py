"""The states of volumes and migrations, and which may follow which.

The two tables at the end are the only statement of the transitions: the store and the runner consult
them, and the documentation draws its diagrams from them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class VolumeStatus(enum.StrEnum):
    """What a volume can be asked to do at present."""

    CREATING = "creating"
    """Its storage is being made."""
    AVAILABLE = "available"
    """Whole, and used by nobody."""
    IN_USE = "in-use"
    """Attached to somebody."""
    MAINTENANCE = "maintenance"
    """A migration that locks the volume moves it; it was ``available`` before and will be again."""
    EXTENDING = "extending"
    """Its storage is being enlarged."""
    SNAPSHOTTING = "snapshotting"
    """A snapshot of it is being made or deleted."""
    RETYPING = "retyping"
    """Its type is being changed in its storage."""
    DELETING = "deleting"
    """Its storage is being removed."""
    ERROR = "error"
    """An operation on its storage failed halfway, and its ``status_reason`` says which. It can be deleted, and an
    extension or a change of type that failed can be tried again; not while its place is in doubt."""


class MigrationStatus(enum.StrEnum):
    """The public word for what migration does to a volume, as a volume's ``migration_status``."""

    NONE = "none"
    """Not being migrated; the last migration, if any, was cancelled."""
    STARTING = "starting"
    """Accepted: capacity is reserved, no data moves yet."""
    MIGRATING = "migrating"
    """Data moves, or what was begun is being undone."""
    COMPLETING = "completing"
    """The data has arrived and was verified; the volume is being switched over."""
    SUCCESS = "success"
    """The last migration succeeded."""
    ERROR = "error"
    """The last migration failed; the volume is whole where its record says."""


class Phase(enum.StrEnum):
    """Where a migration stands."""

    QUEUED = "queued"
    """Accepted and recorded; it waits for a worker."""
    STARTING = "starting"
    """A worker prepares the destination."""
    MIGRATING = "migrating"
    """The data is being moved or verified."""
    PAUSED = "paused"
    """On request, nothing is done until it is resumed; what was copied so far is kept."""
    COMPLETING = "completing"
    """The data is whole at the destination; from the commit point in this phase it only goes forward."""
    SUCCESS = "success"
    """Finished: the volume is at its destination."""
    CANCELLING = "cancelling"
    """On request, what was begun is being undone."""
    CANCELLED = "cancelled"
    """Undone on request: the volume is at its source."""
    ROLLING_BACK = "rolling_back"
    """After a failure, what was begun is being undone."""
    ERROR = "error"
    """Failed, and undone: the volume is at its source, unless the reason says that it cannot be known."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to the migration."""
        return not PHASE_TRANSITIONS[self]

    @property
    def can_be_paused(self) -> bool:
        """Whether a request to pause is still accepted."""
        return Phase.PAUSED in PHASE_TRANSITIONS[self]

    @property
    def can_be_cancelled(self) -> bool:
        """Whether a request to cancel is still accepted."""
        return Phase.CANCELLING in PHASE_TRANSITIONS[self]

    @property
    def public_status(self) -> MigrationStatus:
        """The word for this phase in the volume's ``migration_status``."""
        return PUBLIC_STATUS[self]


class Method(enum.StrEnum):
    """How the data of a migration gets to its destination."""

    DRIVER = "driver"
    """The driver moves the volume within its own storage."""
    BLOCK = "block"
    """The host copies between two block devices or files that both drivers attach."""
    FILE = "file"
    """The host copies between file-like handles, since at least one driver offers nothing else."""
    ROLLBACK = "rollback"
    """The volume goes back to its old storage, which an earlier migration has kept."""
    OFFLOAD = "offload"
    """A storage vendor's tool copies inside the array."""
    REPLICA = "replica"
    """The storage makes a replica at the destination and drops the one at the source."""
    ONLINE = "online"
    """The data is mirrored while the volume is in use."""


# From cancelling and rolling_back a migration goes to completing when a driver has moved the volume by itself and
# cannot move it back: the volume is whole at its destination then, and nowhere else.
PHASE_TRANSITIONS: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.QUEUED: frozenset({Phase.STARTING, Phase.PAUSED, Phase.CANCELLING, Phase.ROLLING_BACK}),
    Phase.STARTING: frozenset({Phase.MIGRATING, Phase.PAUSED, Phase.CANCELLING, Phase.ROLLING_BACK}),
    Phase.MIGRATING: frozenset({Phase.COMPLETING, Phase.PAUSED, Phase.CANCELLING, Phase.ROLLING_BACK}),
    Phase.PAUSED: frozenset({Phase.QUEUED, Phase.CANCELLING, Phase.ROLLING_BACK}),
    Phase.COMPLETING: frozenset({Phase.SUCCESS, Phase.ROLLING_BACK}),
    Phase.SUCCESS: frozenset(),
    Phase.CANCELLING: frozenset({Phase.CANCELLED, Phase.ERROR, Phase.COMPLETING}),
    Phase.CANCELLED: frozenset(),
    Phase.ROLLING_BACK: frozenset({Phase.ERROR, Phase.COMPLETING}),
    Phase.ERROR: frozenset(),
}

PUBLIC_STATUS: Final[Mapping[Phase, MigrationStatus]] = {
    Phase.QUEUED: MigrationStatus.STARTING,
    Phase.STARTING: MigrationStatus.STARTING,
    Phase.MIGRATING: MigrationStatus.MIGRATING,
    Phase.PAUSED: MigrationStatus.MIGRATING,
    Phase.COMPLETING: MigrationStatus.COMPLETING,
    Phase.SUCCESS: MigrationStatus.SUCCESS,
    Phase.CANCELLING: MigrationStatus.MIGRATING,
    Phase.CANCELLED: MigrationStatus.NONE,
    Phase.ROLLING_BACK: MigrationStatus.MIGRATING,
    Phase.ERROR: MigrationStatus.ERROR,
}

VOLUME_TRANSITIONS: Final[Mapping[VolumeStatus, frozenset[VolumeStatus]]] = {
    VolumeStatus.CREATING: frozenset({VolumeStatus.AVAILABLE, VolumeStatus.ERROR, VolumeStatus.DELETING}),
    VolumeStatus.AVAILABLE: frozenset(
        {
            VolumeStatus.IN_USE,
            VolumeStatus.MAINTENANCE,
            VolumeStatus.EXTENDING,
            VolumeStatus.SNAPSHOTTING,
            VolumeStatus.RETYPING,
            VolumeStatus.DELETING,
            VolumeStatus.ERROR,
        }
    ),
    VolumeStatus.IN_USE: frozenset({VolumeStatus.AVAILABLE}),
    VolumeStatus.MAINTENANCE: frozenset({VolumeStatus.AVAILABLE, VolumeStatus.ERROR}),
    VolumeStatus.EXTENDING: frozenset({VolumeStatus.AVAILABLE, VolumeStatus.ERROR, VolumeStatus.DELETING}),
    VolumeStatus.SNAPSHOTTING: frozenset({VolumeStatus.AVAILABLE, VolumeStatus.ERROR}),
    VolumeStatus.RETYPING: frozenset({VolumeStatus.AVAILABLE, VolumeStatus.ERROR}),
    VolumeStatus.DELETING: frozenset({VolumeStatus.ERROR}),
    VolumeStatus.ERROR: frozenset(
        {VolumeStatus.DELETING, VolumeStatus.EXTENDING, VolumeStatus.RETYPING, VolumeStatus.AVAILABLE}
    ),
}
