"""Accepting migrations, running them in this process, and steering them wherever they run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from volmig import errors
from volmig.manager.backends import Backends
from volmig.migration.ownership import Claim, LeaseKeeper, OwnedMigration
from volmig.migration.request import MigrationRequest, accept
from volmig.migration.retire import delete_retired
from volmig.migration.rollback import RollbackRequest, accept_rollback
from volmig.migration.settings import Settings
from volmig.migration.workers import WorkerPool
from volmig.model import EntryKind, JournalEntry, Method, Migration, Phase, RequestContext, RetiredObject, Volume
from volmig.store import MigrationQuery, Store
from volmig.store.base import WriteTransaction
from volmig.transfer import boottime_seconds

LOG = logging.getLogger(__name__)

_GRACE_SECONDS = 10.0
"""How long a migration that somebody waits for must have been without a worker."""

_LOOK_SECONDS = 0.1
"""How often the record of a migration is read whose end somebody waits for."""

_UNFINISHED = tuple(phase for phase in Phase if not phase.is_final)


class MigrationManager:
    """Accepts, runs and steers migrations. Every request is entered in the migration's history.

    :param context: who asks.
    :param owner: name of this worker, unlike that of any other.
    """

    def __init__(
        self,
        store: Store,
        backends: Backends,
        settings: Settings,
        *,
        context: RequestContext,
        owner: str,
    ) -> None:
        self._store = store
        self._backends = backends
        self._settings = settings
        self._context = context
        self._leases = LeaseKeeper(store, settings, owner=owner)
        self._workers = WorkerPool(store, backends, settings, self._leases)

    def close(self, *, hand_over: bool = False) -> None:
        """Take no new migrations, and wait for those that run here.

        :param hand_over: let go of them first, as far as that can be done, so that another process goes on with them.
        """
        self._workers.shut()
        if hand_over:
            for owned in self._leases.all():
                owned.hand_over()
                self._workers.hurry(owned)
        self._workers.join()
        self._leases.close()

    # --- running ------------------------------------------------------------------------------

    def begin(self, request: MigrationRequest) -> OwnedMigration:
        """Accept a migration and run it here. :raises volmig.errors.VolmigError: nothing is changed then."""
        return self._start(lambda claim: accept(self._store, self._backends, request, self._context, claim))

    def queue(self, request: MigrationRequest) -> Migration:
        """Accept a migration and leave it in ``queued``."""
        return accept(self._store, self._backends, request, self._context)

    def begin_rollback(self, request: RollbackRequest) -> OwnedMigration:
        """Accept a rollback and run it here. :raises volmig.errors.VolmigError: nothing is changed then."""
        return self._start(lambda claim: accept_rollback(self._store, self._backends, request, self._context, claim))

    def queue_rollback(self, request: RollbackRequest) -> Migration:
        """Accept a rollback and leave it in ``queued``."""
        return accept_rollback(self._store, self._backends, request, self._context)

    def run(self, migration_id: str, *, is_patient: bool = False) -> OwnedMigration:
        """Run here a migration that nobody runs.

        :param is_patient: leave it as it is when this process cannot reach both of its backends.
        :raises volmig.errors.LeaseLost: when a worker owns it, it is paused, or it has ended.
        """

        def take(claim: Claim) -> Migration:
            with claim.writing(self._store) as transaction:
                return claim.take(transaction, migration_id)

        return self._start(take, is_patient=is_patient)

    def _start(self, take: Callable[[Claim], Migration], *, is_patient: bool = False) -> OwnedMigration:
        with self._workers.admission():
            claim = Claim(owner=self._leases.owner, lease_seconds=self._settings.lease_seconds)
            migration = take(claim)
            return self._workers.start(migration, claimed_at=claim.claimed_at, is_patient=is_patient)

    def owned(self, migration_id: str) -> OwnedMigration | None:
        """Return a migration that runs here; None when it does not."""
        return self._leases.get(migration_id)

    def is_abandoned(self, migration: Migration, *, grace_seconds: float = 0.0) -> bool:
        """Say whether a migration is unfinished and has no worker, though it should have one.

        :param grace_seconds: how long it must have been so.
        """
        if migration.phase.is_final or (migration.phase is Phase.PAUSED and not migration.cancel_requested_by):
            return False
        with self._store.reading() as view:
            now = view.now()
        since = migration.lease_expires_at if migration.owner else migration.updated_at
        return since is None or (now - since).total_seconds() >= grace_seconds

    def take_over_if_abandoned(self, migration: Migration, *, grace_seconds: float = 0.0) -> OwnedMigration | None:
        """Run here a migration that has no worker; return None when it has one after all."""
        if not self.is_abandoned(migration, grace_seconds=grace_seconds):
            return None
        try:
            return self.run(migration.id, is_patient=not migration.cancel_requested_by)
        except errors.LeaseLost:
            LOG.debug("migration %s is being run by %s", migration.id, migration.owner)
            return None

    def take_over_all(self, *, grace_seconds: float = 0.0, up_to_slots: bool = False) -> list[OwnedMigration]:
        """Run here all migrations that have no worker, the oldest first.

        :param up_to_slots: leave those to other processes for which there would be no turn here, unless they are to be
            cancelled, which takes none.
        """
        with self._store.reading() as view:
            unfinished = view.list_migrations(MigrationQuery(phases=_UNFINISHED))
        taken = []
        for migration in reversed(unfinished):
            if up_to_slots and not migration.cancel_requested_by and not self._workers.free_slots():
                continue
            # One that was let go of waits for nobody in particular.
            was_let_go = bool(migration.epoch) and not migration.owner
            owned = self.take_over_if_abandoned(migration, grace_seconds=0.0 if was_let_go else grace_seconds)
            if owned is not None:
                taken.append(owned)
        return taken

    def has_free_slots(self) -> bool:
        """Say whether another migration would be run at once."""
        return bool(self._workers.free_slots())

    # --- steering -----------------------------------------------------------------------------

    def cancel(self, migration_id: str) -> Migration:
        """Ask for a migration to be undone; one that no worker runs is undone here.

        :raises volmig.errors.CancelTooLate:
        """
        migration = self._request(
            migration_id,
            "cancel",
            lambda transaction: transaction.request_cancel(migration_id, requested_by=self._context.actor),
        )
        if self.owned(migration_id) is None:
            self.take_over_if_abandoned(migration)
        return migration

    def cancel_all(self) -> None:
        """Ask for all migrations that run here to be undone, as far as they can be."""
        for owned in self._leases.all():
            if owned.is_lost:
                continue
            try:
                self.cancel(owned.migration.id)
            except errors.VolmigError as error:
                LOG.info("migration %s is not cancelled: %s", owned.migration.id, error)

    def pause(self, migration_id: str) -> Migration:
        """Ask for a migration to be held until it is resumed.

        :raises volmig.errors.PauseImpossible:
        """

        def pause(transaction: WriteTransaction) -> Migration:
            migration = transaction.get_migration(migration_id)
            if migration.method is Method.DRIVER and migration.phase in (Phase.STARTING, Phase.MIGRATING):
                reason = "the volume's driver moves it by itself, and cannot be held"
                raise errors.PauseImpossible(migration=migration_id, reason=reason)
            return transaction.request_pause(migration_id, requested_by=self._context.actor)

        return self._request(migration_id, "pause", pause)

    def resume(self, migration_id: str) -> Migration:
        """Let a paused migration go on: it is ``queued`` then. :raises volmig.errors.MigrationEnded:"""
        return self._request(
            migration_id,
            "resume",
            lambda transaction: transaction.request_resume(migration_id, requested_by=self._context.actor),
        )

    def limit(self, migration_id: str, bandwidth_limit_bytes: int) -> Migration:
        """Change how many bytes a second a migration may move. :raises volmig.errors.MigrationEnded:"""
        return self._request(
            migration_id,
            "limit",
            lambda transaction: transaction.set_bandwidth_limit(
                migration_id, bandwidth_limit_bytes=bandwidth_limit_bytes
            ),
            {"bandwidth_limit_bytes": bandwidth_limit_bytes},
        )

    def retire(self, migration_id: str) -> list[RetiredObject]:
        """Delete the old storage that a migration has kept; return what is still there.

        :raises volmig.errors.NothingRetained: when none is kept.
        """
        with self._store.writing() as transaction:
            migration = transaction.get_migration(migration_id)
            kept = transaction.list_retired(migration_id=migration_id)
            if not kept:
                raise errors.NothingRetained(migration=migration_id)
            for retired in kept:
                transaction.schedule_retired(retired.id, delete_after=transaction.now())
            self._enter(transaction, migration, "retire")
        return delete_retired(self._store, self._backends, migration_id)

    def make_way(self, volume: Volume, operation: str) -> None:
        """Make a migration give way to another request: cancel it, or wait for the end of one that is nearly done.

        :raises volmig.errors.VolumeMigrating: when it has locked the volume, or does not end.
        """
        if volume.migration_id is None:
            return
        with self._store.reading() as view:
            migration = view.get_migration(volume.migration_id)
        if migration.lock_volume:
            raise errors.VolumeMigrating(
                operation=operation, volume=volume.id, migration=migration.id, reason="it has locked the volume"
            )
        try:
            self.cancel(migration.id)
        except errors.CancelTooLate:
            LOG.info("migration %s is about to end; %s waits for it", migration.id, operation)
        if not self._await_end(migration.id, self._settings.lease_seconds * 2):
            raise errors.VolumeMigrating(
                operation=operation, volume=volume.id, migration=migration.id, reason="it does not end"
            )

    def _await_end(self, migration_id: str, timeout_seconds: float) -> bool:
        """Wait for the end of a migration, taking it over where its worker is gone; return whether it came."""
        deadline = boottime_seconds() + timeout_seconds
        while True:
            with self._store.reading() as view:
                migration = view.get_migration(migration_id)
            left = deadline - boottime_seconds()
            if migration.phase.is_final or left <= 0:
                return migration.phase.is_final
            owned = self.owned(migration_id) or self.take_over_if_abandoned(migration, grace_seconds=_GRACE_SECONDS)
            if owned is not None:
                owned.wait_for_end(min(left, _LOOK_SECONDS))
            else:
                time.sleep(min(left, _LOOK_SECONDS))

    def _request(
        self,
        migration_id: str,
        what: str,
        ask: Callable[[WriteTransaction], Migration],
        data: Mapping[str, Any] | None = None,
    ) -> Migration:
        """Record a request and its place in the history, and pass it on to the migration if it runs here."""
        with self._store.writing() as transaction:
            present = transaction.get_migration(migration_id)
            migration = ask(transaction)
            if migration != present:
                self._enter(transaction, migration, what, data)
            if migration.phase is not present.phase:
                self._follow_phase(transaction, migration, what)
        owned = self.owned(migration_id)
        if owned is not None and owned.migration.epoch == migration.epoch:
            owned.record(migration)
            if migration.cancel_requested_by or migration.pause_requested_by:
                self._workers.hurry(owned)
        return migration

    def _enter(
        self, transaction: WriteTransaction, migration: Migration, what: str, data: Mapping[str, Any] | None = None
    ) -> None:
        transaction.append_journal(
            JournalEntry(
                migration_id=migration.id,
                kind=EntryKind.REQUEST,
                subject=what,
                actor=self._context.actor,
                epoch=migration.epoch,
                data=dict(data or {}),
            )
        )

    def _follow_phase(self, transaction: WriteTransaction, migration: Migration, what: str) -> None:
        """Enter a phase that the request itself has led to, and let the volume's public status follow it."""
        transaction.append_journal(
            JournalEntry(
                migration_id=migration.id,
                kind=EntryKind.PHASE,
                subject=migration.phase.value,
                actor=self._context.actor,
                epoch=migration.epoch,
                data={"reason": f"{self._context.actor} asked to {what} it"},
            )
        )
        volume = transaction.get_volume(migration.volume_id)
        if volume.migration_status is not migration.phase.public_status:
            transaction.update_volume(volume, migration_status=migration.phase.public_status)
