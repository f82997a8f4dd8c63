"""The threads that run migrations in this process."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from volmig import errors
from volmig.manager.backends import Backends
from volmig.migration.ownership import LeaseKeeper, OwnedMigration
from volmig.migration.runner import MigrationRunner
from volmig.migration.settings import Settings
from volmig.model import EntryKind, JournalEntry, Migration, Phase
from volmig.store import Store

LOG = logging.getLogger(__name__)


class WorkerPool:
    """Runs migrations that this process owns, a limited number at once and the others in order of their coming."""

    def __init__(self, store: Store, backends: Backends, settings: Settings, leases: LeaseKeeper) -> None:
        self._store = store
        self._backends = backends
        self._settings = settings
        self._leases = leases
        self._waiting: deque[OwnedMigration] = deque()
        self._threads: set[threading.Thread] = set()
        self._workers = 0
        self._lock = threading.Lock()
        self._closed = False
        self._admissions = 0
        self._admitted = threading.Condition(self._lock)
        leases.when_stopped = self.hurry

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Hold the door open: a migration that is accepted within can be started, even if :meth:`close` is called.

        :raises volmig.errors.EngineClosed: when it is closed.
        """
        with self._lock:
            if self._closed:
                raise errors.EngineClosed
            self._admissions += 1
        try:
            yield
        finally:
            with self._lock:
                self._admissions -= 1
                self._admitted.notify_all()

    def start(self, migration: Migration, *, claimed_at: float, is_patient: bool = False) -> OwnedMigration:
        """Run a migration that was just claimed, as soon as there is a turn for it. Called within an admission.

        :param claimed_at: :func:`volmig.transfer.boottime_seconds` from before the claim.
        :param is_patient: see :attr:`OwnedMigration.is_patient`.
        """
        with self._lock:
            owned = self._leases.keep(migration, claimed_at=claimed_at)
            owned.is_patient = is_patient
            self._waiting.append(owned)
            if self._workers < self._settings.max_concurrent_migrations:
                self._workers += 1
                self._spawn(self._work)
        return owned

    def hurry(self, owned: OwnedMigration) -> None:
        """Run a migration out of turn, if it still waits: undoing or pausing one that has not begun takes no time."""
        with self._lock:
            if owned in self._waiting:
                self._waiting.remove(owned)
                self._spawn(lambda: self._run(owned))

    def shut(self) -> None:
        """Take no more."""
        with self._lock:
            self._closed = True
            self._admitted.wait_for(lambda: not self._admissions)

    def free_slots(self) -> int:
        """Return how many more migrations would be run at once."""
        with self._lock:
            return max(0, self._settings.max_concurrent_migrations - self._workers - len(self._waiting))

    def join(self) -> None:
        """Wait for those that were taken."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _spawn(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        # A daemon, so that a hung storage cannot keep the process from ending; the lease expires then.
        thread = threading.Thread(target=run, name="volmig-worker", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._workers -= 1
                    return
                owned = self._waiting.popleft()
            self._run(owned)

    def _run(self, owned: OwnedMigration) -> None:
        try:
            runner = MigrationRunner(self._store, self._backends, self._settings, owned)
        except errors.VolumeNotFound as gone:
            LOG.warning("migration %s is ended: %s", owned.migration.id, gone)
            self._end_without_volume(owned, gone)
            owned.end(gone)
        except Exception as error:
            LOG.exception("migration %s cannot be run", owned.migration.id)
            owned.end(error)
        else:
            runner.run()
        finally:
            self._leases.drop(owned)

    def _end_without_volume(self, owned: OwnedMigration, gone: errors.VolumeNotFound) -> None:
        """End a migration whose volume is no longer recorded, so that nobody waits for it in vain.

        Nothing is deleted: what it has made may be all that is left of the volume.
        """
        try:
            with self._store.writing() as transaction:
                migration = transaction.get_migration(owned.migration.id)
                phases = [Phase.ERROR]
                if migration.phase not in (Phase.CANCELLING, Phase.ROLLING_BACK):
                    migration = transaction.update_migration(migration, phase=Phase.ROLLING_BACK)
                    phases.insert(0, Phase.ROLLING_BACK)
                transaction.append_journal(*(_entry(owned.migration, phase, gone.message) for phase in phases))
                transaction.release(migration.id)
                transaction.remove_checkpoint(migration.id)
                migration = transaction.update_migration(
                    migration,
                    phase=Phase.ERROR,
                    error_code=gone.code,
                    error_message=gone.message,
                    error_hint=gone.hint,
                    finished_at=transaction.now(),
                    owner="",
                )
        except errors.VolmigError:
            LOG.exception("migration %s cannot be ended", owned.migration.id)
        else:
            owned.record(migration)


def _entry(migration: Migration, phase: Phase, reason: str) -> JournalEntry:
    return JournalEntry(
        migration_id=migration.id,
        kind=EntryKind.PHASE,
        subject=phase.value,
        actor=migration.owner,
        epoch=migration.epoch,
        data={"reason": reason},
    )
