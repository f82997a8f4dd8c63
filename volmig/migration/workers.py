"""The threads that run migrations in this process."""

from __future__ import annotations

import queue
import threading

from volmig import errors
from volmig.manager.backends import Backends
from volmig.migration.ownership import LeaseKeeper, OwnedMigration
from volmig.migration.runner import MigrationRunner
from volmig.migration.settings import Settings
from volmig.model import Migration
from volmig.store import Store


class WorkerPool:
    """Runs migrations that this process owns, a limited number at once and the others in order of their coming."""

    def __init__(self, store: Store, backends: Backends, settings: Settings, leases: LeaseKeeper) -> None:
        self._store = store
        self._backends = backends
        self._settings = settings
        self._leases = leases
        self._waiting: queue.SimpleQueue[OwnedMigration | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._unfinished = 0
        self._closed = False

    def start(self, migration: Migration, *, claimed_at: float) -> OwnedMigration:
        """Run a migration that was just claimed, as soon as a thread is free.

        :param claimed_at: ``time.monotonic()`` from before the claim.
        """
        with self._lock:
            if self._closed:
                raise errors.EngineClosed
            self._unfinished += 1
            owned = self._leases.keep(migration, claimed_at=claimed_at)
            self._waiting.put(owned)
            if len(self._threads) < min(self._unfinished, self._settings.max_concurrent_migrations):
                # A daemon, so that a hung storage cannot keep the process from ending; the lease expires then.
                thread = threading.Thread(target=self._work, name=f"volmig-worker-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return owned

    def close(self) -> None:
        """Take no more, and wait for those that were taken."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._waiting.put(None)
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        while (owned := self._waiting.get()) is not None:
            try:
                self._run(owned)
            finally:
                with self._lock:
                    self._unfinished -= 1

    def _run(self, owned: OwnedMigration) -> None:
        try:
            runner = MigrationRunner(self._store, self._backends, self._settings, owned)
        except errors.VolmigError as error:
            owned.end(error)
        else:
            runner.run()
        finally:
            self._leases.drop(owned.migration.id)
