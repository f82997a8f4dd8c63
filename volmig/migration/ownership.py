"""Owning a migration: the lease, its renewal, and what a worker learns while it renews.

A worker owns a migration for the time of its lease, on the store's clock. One thread renews the leases of all
migrations that the process owns, records their progress, and picks up requests to cancel. A worker that can no
longer renew gives up before its lease ends, by a clock of its own that goes on while the machine sleeps: from then on
another may take over. A process that was paused finds its time over when it wakes up, before it writes again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from volmig import errors
from volmig.migration.settings import Settings
from volmig.model import Migration, Phase
from volmig.store import Store
from volmig.store.base import WriteTransaction
from volmig.transfer import Control, TransferProgress, boottime_seconds

LOG = logging.getLogger(__name__)

_SAFE_PART_OF_LEASE = 2 / 3
"""A worker that could not renew for this part of the lease's time gives up; the rest is for what is under way."""


class OwnedMigration:
    """A migration that this process runs, with its live figures.

    :param deadline_seconds: until when it may write, on the clock of :func:`volmig.transfer.boottime_seconds`; None
        for no end.
    """

    def __init__(self, migration: Migration, *, deadline_seconds: float | None = None) -> None:
        self.control = Control(limit_bytes=migration.bandwidth_limit_bytes)
        self.control.deadline_seconds = deadline_seconds
        self.error: BaseException | None = None
        """What ended it, when it did not succeed."""
        self.is_patient = False
        """Whether it is left as it is, for others or for later, when this process cannot reach both of its backends."""
        self._migration = migration
        self._loss: errors.LeaseLost | None = None
        self._ended = False
        self._was_let_go = False
        self._was_told_to_pause = False
        self._is_to_be_handed_over = False
        self._changed = threading.Condition()

    @property
    def migration(self) -> Migration:
        """The migration as last recorded, with the live figures of its progress."""
        return self._migration

    def check(self) -> None:
        """Refuse to go on when the lease is gone, so that nothing more may be written.

        :raises volmig.errors.LeaseLost: saying why.
        """
        deadline = self.control.deadline_seconds
        if self._loss is None and deadline is not None and boottime_seconds() > deadline:
            self.lose(
                errors.MigrationAbandoned(migration=self._migration.id, reason="its worker could not renew its lease")
            )
        if self._loss is not None:
            raise self._loss

    @property
    def is_lost(self) -> bool:
        """Whether the lease is gone."""
        return self._loss is not None

    @property
    def ended(self) -> bool:
        """Whether this process has finished with it."""
        return self._ended

    @property
    def may_go_on(self) -> bool:
        """Whether what has stopped its copy may be over: a request to pause that is withdrawn since, or a renewal of
        the lease that was recorded in time, and learned of too late."""
        return self._was_told_to_pause or self.control.expired

    @property
    def is_to_be_handed_over(self) -> bool:
        """Whether this process is to let go of it, so that another one can go on with it."""
        return self._is_to_be_handed_over

    def hand_over(self) -> None:
        """Ask this process to let go of it as soon as that can be done."""
        self._is_to_be_handed_over = True
        self.control.cancel()

    @property
    def was_let_go(self) -> bool:
        """Whether this process has finished with it though it goes on later: it is paused, or handed over."""
        return self._was_let_go

    def record(self, migration: Migration) -> None:
        """Take over the state that the store returned; the figures of progress here are newer."""
        with self._changed:
            live = self._migration
            if not migration.phase.is_final and migration.phase is not Phase.PAUSED:
                migration = replace(migration, **_progress_of(live))
            self._migration = migration
            self._changed.notify_all()
            if migration.bandwidth_limit_bytes != live.bandwidth_limit_bytes:
                self.control.limit_bytes = migration.bandwidth_limit_bytes
        if migration.pause_requested_by:
            self._was_told_to_pause = True
        if migration.cancel_requested_by or migration.pause_requested_by:
            self.control.cancel()

    def go_on_after_all(self) -> None:
        """Let a copy be made again by this process, since the request that stopped the last one was withdrawn."""
        self._was_told_to_pause = False
        with self._changed:
            stopped = self.control
            self.control = Control(limit_bytes=self._migration.bandwidth_limit_bytes)
            self.control.deadline_seconds = stopped.deadline_seconds
        if self._loss is not None:
            self.control.cancel()

    def report(self, progress: TransferProgress) -> None:
        """Take over the figures of a running copy."""
        with self._changed:
            self._migration = replace(
                self._migration,
                stage=progress.stage.value,
                bytes_done=progress.bytes_done,
                bytes_total=progress.bytes_total,
                rate_bytes=progress.rate_bytes,
                eta_seconds=progress.eta_seconds,
            )
            self._changed.notify_all()

    def leave_transfer(self, bytes_total: int) -> None:
        """Note that the transfer has ended."""
        with self._changed:
            self._migration = replace(
                self._migration, stage="", bytes_total=bytes_total, bytes_done=bytes_total, eta_seconds=None
            )
            self._changed.notify_all()

    def lose(self, loss: errors.LeaseLost) -> None:
        """Stop all work on it: the lease is gone, or about to go."""
        self._loss = loss
        self.control.cancel()

    def renew(self, deadline_seconds: float) -> None:
        """Note that it may write until then."""
        self.control.deadline_seconds = deadline_seconds

    def end(self, error: BaseException | None) -> None:
        """Note that this process has finished with it."""
        with self._changed:
            self.error = error
            self._was_let_go = error is None and not self._migration.phase.is_final
            self._ended = True
            self._changed.notify_all()

    def wait_for_change(self, seen: Migration, timeout_seconds: float | None) -> bool:
        """Wait until the state is no longer *seen*, or the end; return whether it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._migration is not seen, timeout_seconds)
            return self._ended

    def wait_for_end(self, timeout_seconds: float | None) -> bool:
        """Wait for the end; return whether it came."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout_seconds)


def _progress_of(migration: Migration) -> dict[str, Any]:
    fields = ("stage", "bytes_done", "bytes_total", "rate_bytes", "eta_seconds")
    return {field: getattr(migration, field) for field in fields}


class Claim:
    """The taking of a migration by a worker of this process.

    :ivar claimed_at: :func:`volmig.transfer.boottime_seconds` from just before the transaction in which it is taken:
        what is asked of drivers before that takes nothing from the lease.
    """

    def __init__(self, *, owner: str, lease_seconds: float) -> None:
        self._owner = owner
        self._lease_seconds = lease_seconds
        self.claimed_at = boottime_seconds()

    @contextlib.contextmanager
    def writing(self, store: Store) -> Iterator[WriteTransaction]:
        """Give the transaction in which the migration is taken."""
        self.claimed_at = boottime_seconds()
        with store.writing() as transaction:
            yield transaction

    def take(self, transaction: WriteTransaction, migration_id: str) -> Migration:
        """Take a migration. :raises volmig.errors.LeaseLost: when it cannot be taken."""
        return transaction.claim_migration(migration_id, owner=self._owner, lease_seconds=self._lease_seconds)


class LeaseKeeper:
    """Renews the leases of all migrations that this process owns."""

    def __init__(self, store: Store, settings: Settings, *, owner: str) -> None:
        self.owner = owner
        self._store = store
        self._settings = settings
        self._owned: dict[str, OwnedMigration] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.when_stopped: Callable[[OwnedMigration], None] = lambda _: None
        """Called with a migration that somebody wants cancelled or paused, perhaps more than once."""

    def keep(self, migration: Migration, *, claimed_at: float) -> OwnedMigration:
        """Begin to renew the lease of a migration that was just claimed.

        :param claimed_at: :func:`volmig.transfer.boottime_seconds` from before the claim.
        """
        owned = OwnedMigration(migration, deadline_seconds=self._deadline(claimed_at))
        with self._lock:
            self._owned[migration.id] = owned
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="volmig-leases", daemon=True)
                self._thread.start()
        return owned

    def get(self, migration_id: str) -> OwnedMigration | None:
        """Return a migration that this process owns now."""
        with self._lock:
            return self._owned.get(migration_id)

    def all(self) -> list[OwnedMigration]:
        """Return all migrations that this process owns now."""
        with self._lock:
            return list(self._owned.values())

    def drop(self, owned: OwnedMigration) -> None:
        """Stop renewing. The lease of a later turn of this process on the same migration is left alone."""
        with self._lock:
            if self._owned.get(owned.migration.id) is owned:
                del self._owned[owned.migration.id]

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join()

    def beat(self) -> None:
        """Renew all leases once, and act upon what the store says of them."""
        for owned in self.all():
            if not owned.is_lost:
                self._renew(owned)

    def _deadline(self, renewed_at: float) -> float:
        return renewed_at + self._settings.lease_seconds * _SAFE_PART_OF_LEASE

    def _run(self) -> None:
        while not self._stop.wait(self._settings.heartbeat_seconds):
            self.beat()

    def _renew(self, owned: OwnedMigration) -> None:
        started = boottime_seconds()
        try:
            owned.check()
        except errors.LeaseLost as error:
            LOG.warning("%s", error)
            return
        live = owned.migration
        try:
            with self._store.writing() as transaction:
                # The turn may have come too late.
                owned.check()
                current = transaction.renew_lease(live, lease_seconds=self._settings.lease_seconds)
                if not current.phase.is_final:
                    current = transaction.update_migration(live, **_progress_of(live))
        except errors.LeaseLost as error:
            if not owned.ended and not owned.migration.phase.is_final:
                LOG.warning("%s", error)
                owned.lose(error)
            return
        except errors.TemporaryError as error:
            # The others are renewed, and this one is given up in time.
            LOG.warning("renewing the lease of migration %s failed: %s", live.id, error)
        except Exception:
            LOG.exception("renewing the lease of migration %s failed", live.id)
        else:
            owned.renew(self._deadline(started))
            is_to_stop = bool(current.cancel_requested_by or current.pause_requested_by)
            if is_to_stop or current.bandwidth_limit_bytes != live.bandwidth_limit_bytes:
                owned.record(current)
            if is_to_stop:
                self.when_stopped(owned)
