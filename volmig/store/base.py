"""What the core asks of the place where volumes and migrations are recorded.

:class:`Store` is a protocol: a service that embeds volmig and has a volume table of its own can bring an
implementation over it. :class:`volmig.store.sql.SqlStore` is the one that volmig brings, and
``volmig.testing.store_contract`` is the suite that any implementation must pass.

All work happens in a transaction. A change names what it was made from (a volume's version, a migration's epoch)
and fails when that is no longer so; nothing is ever overwritten unseen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from volmig.model import (
    JournalEntry,
    Method,
    Migration,
    Phase,
    Reservation,
    RetiredObject,
    Volume,
    VolumeStatus,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeQuery:
    """Which volumes to list; None stands for any."""

    name: str | None = None
    host: str | None = None
    """A whole pool address, or a prefix of one that ends before ``#`` or ``@``: a backend's or a host's volumes."""
    status: VolumeStatus | None = None
    project_id: str | None = None
    limit: int | None = None
    marker: str | None = None
    """Id of the last volume of the page before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationQuery:
    """Which migrations to list; None stands for any."""

    volume_id: str | None = None
    phases: Collection[Phase] | None = None
    method: Method | None = None
    destination_id: str | None = None
    min_epoch: int | None = None
    """Only those that workers have taken at least so many times."""
    limit: int | None = None
    marker: str | None = None
    """Id of the last migration of the page before."""


class ReadTransaction(Protocol):
    """A consistent view of the store."""

    def now(self) -> datetime:
        """Return the time on the store's own clock, in UTC with time zone."""

    def get_volume(self, volume_id: str) -> Volume:
        """Return a volume. :raises volmig.errors.VolumeNotFound:"""

    def list_volumes(self, query: VolumeQuery = ...) -> Sequence[Volume]:
        """Return volumes, oldest first (by time of creation, then id).

        :raises volmig.errors.VolumeNotFound: when the marker is not there.
        """

    def get_migration(self, migration_id: str) -> Migration:
        """Return a migration. :raises volmig.errors.MigrationNotFound:"""

    def list_migrations(self, query: MigrationQuery = ...) -> Sequence[Migration]:
        """Return migrations, newest first (by time of creation, then id).

        :raises volmig.errors.MigrationNotFound: when the marker is not there.
        """

    def read_journal(self, migration_id: str) -> Sequence[JournalEntry]:
        """Return a migration's journal, oldest entry first; empty when there is none."""

    def list_retired(
        self, *, due_at: datetime | None = None, migration_id: str | None = None, volume_id: str | None = None
    ) -> Sequence[RetiredObject]:
        """Return the retired objects, the first one due first.

        :param due_at: only those whose ``delete_after`` is not after this.
        :param migration_id: only those of this migration.
        :param volume_id: only those of this volume.
        """

    def load_checkpoint(self, migration_id: str) -> bytes | None:
        """Return the checkpoint on record for a migration's copy; None when there is none."""

    def list_checkpoints(self) -> Sequence[str]:
        """Return the ids of the migrations that have a checkpoint on record."""

    def list_reservations(self, host: str | None = None) -> Sequence[Reservation]:
        """Return the reservations of a pool, or all."""

    def get_storage_identity(self, backend: str) -> str | None:
        """Return the identity on record of a backend's storage; None when there is none.

        :param backend: ``host@backend``.
        """

    def count_releases(self, host: str) -> int:
        """Return how many reservations of a pool have been given back so far."""


class WriteTransaction(ReadTransaction, Protocol):
    """A view that can also change the store; all of its changes happen, durably, or none."""

    def add_volume(self, volume: Volume) -> Volume:
        """Record a new volume and return it with its times and version 1.

        :raises volmig.errors.VolumeExists: when the id is taken.
        """

    def update_volume(self, volume: Volume, **changes: Any) -> Volume:
        """Change fields of the volume whose state *volume* is, and return it as it is then.

        :param changes: fields of :class:`volmig.model.Volume` other than id, version and times.
        :raises volmig.errors.StoreConflict: when the record's version is not ``volume.version``.
        :raises volmig.errors.InternalError: when the status may not follow the present one.
        """

    def remove_volume(self, volume: Volume) -> None:
        """Remove the record. :raises volmig.errors.StoreConflict: as :meth:`update_volume`."""

    def add_migration(self, migration: Migration) -> Migration:
        """Record a new migration and return it with its times."""

    def claim_migration(self, migration_id: str, *, owner: str, lease_seconds: float) -> Migration:
        """Make *owner* its owner, with a lease from now and the next epoch.

        Succeeds when nobody owns it, or when its owner's lease has expired; not when it is final, nor when it is
        paused, unless it is to be cancelled.

        :raises volmig.errors.MigrationPaused: when it is paused.
        :raises volmig.errors.LeaseLost: when somebody owns it, or it is final.
        """

    def update_migration(self, migration: Migration, **changes: Any) -> Migration:
        """Change fields of the migration, and return it as it is then, with what others have changed meanwhile.

        :param migration: any state of it that holds the writer's epoch.
        :param changes: fields of :class:`volmig.model.Migration` other than id, volume, epoch, creation time,
            ``cancel_requested_by`` and ``pause_requested_by``.
        :raises volmig.errors.LeaseLost: when the record's epoch is not ``migration.epoch``.
        :raises volmig.errors.InternalError: when the phase may not follow the present one.
        """

    def renew_lease(self, migration: Migration, *, lease_seconds: float) -> Migration:
        """Extend the lease to *lease_seconds* from now, and return the migration as it is then.

        :raises volmig.errors.LeaseLost: as :meth:`update_migration`, or when the lease has expired already.
        """

    def request_cancel(self, migration_id: str, *, requested_by: str) -> Migration:
        """Record that somebody wants the migration cancelled; whoever asked first stays recorded.

        :raises volmig.errors.CancelTooLate: when its phase no longer allows that (a phase that is
            being cancelled already does allow it).
        """

    def request_pause(self, migration_id: str, *, requested_by: str) -> Migration:
        """Record that somebody wants the migration paused; whoever asked first stays recorded.

        Its worker sees that and lets go of it. One that nobody owns, and that is in ``queued``, is ``paused`` at once.
        One that is paused already is returned as it is.

        :raises volmig.errors.PauseImpossible: when its phase does not allow that.
        """

    def request_resume(self, migration_id: str, *, requested_by: str) -> Migration:
        """Withdraw the request to pause, and put a migration that is paused into ``queued``.

        Succeeds without change when it is neither.

        :raises volmig.errors.MigrationEnded: when it has ended.
        """

    def set_bandwidth_limit(self, migration_id: str, *, bandwidth_limit_bytes: int) -> Migration:
        """Change the limit of a migration that has not ended, whoever owns it.

        :raises volmig.errors.MigrationEnded: when it has.
        """

    def save_checkpoint(self, migration: Migration, data: bytes) -> None:
        """Record how far the copy of a migration is, in place of what was recorded before.

        :raises volmig.errors.LeaseLost: as :meth:`update_migration`.
        """

    def remove_checkpoint(self, migration_id: str) -> None:
        """Forget the checkpoint of a migration. Succeeds when there is none."""

    def append_journal(self, *entries: JournalEntry) -> None:
        """Append entries of one migration, in this order; their sequence and time are the store's.

        :raises volmig.errors.MigrationNotFound:
        """

    def reserve(self, reservation: Reservation, *, limit_bytes: int, releases: int | None = None) -> None:
        """Claim room in a pool: succeeds when all reservations of the pool together stay within *limit_bytes*.

        :param releases: what :meth:`count_releases` said before the figures behind *limit_bytes* were taken. A
            reservation that was given back since then may be of an object that these figures miss.
        :raises volmig.errors.StoreConflict: when one was given back since then; take fresh figures and repeat.
        :raises volmig.errors.DestinationTooSmall: otherwise, with what is left as ``free``.
        """

    def release(self, reservation_id: str) -> None:
        """Give room back. Succeeds when there is no such reservation."""

    def set_storage_identity(self, backend: str, identity: str) -> None:
        """Record the identity of a backend's storage, in place of an earlier one.

        :param backend: ``host@backend``.
        """

    def add_retired(self, retired: RetiredObject) -> None:
        """Record an object that waits for deletion."""

    def update_retired(self, retired_id: str, *, attempts: int, last_error: str) -> None:
        """Record that a deletion was tried and failed."""

    def schedule_retired(self, retired_id: str, *, delete_after: datetime) -> None:
        """Change when a retired object may be deleted."""

    def begin_deletion(self, retired_id: str) -> RetiredObject:
        """Record that the deletion of a retired object begins now, and return its record.

        What was recorded first stays.

        :raises volmig.errors.StoreConflict: when there is no such record.
        """

    def remove_retired(self, retired_id: str) -> None:
        """Forget a retired object, since it is gone. Succeeds when there is no such record."""


class Store(Protocol):
    """Where volumes and migrations are recorded; used from several threads and processes at once."""

    def reading(self) -> AbstractContextManager[ReadTransaction]:
        """Begin a consistent view."""

    def writing(self) -> AbstractContextManager[WriteTransaction]:
        """Begin a change: committed, durably, when the block ends, and undone when it raises.

        Writers come one after another: what a transaction has read is still so when it commits.

        :raises volmig.errors.StoreBusy: when the turn does not come in time.
        """

    def close(self) -> None:
        """Give back what the store holds; it is not used afterwards."""
