"""Ending, by itself, what processes have left unfinished that are gone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from volmig import errors
from volmig.manager.backends import Backends
from volmig.manager.volumes import VolumeManager
from volmig.migration.doubts import settle_doubts
from volmig.migration.manager import MigrationManager
from volmig.migration.ownership import OwnedMigration
from volmig.migration.retire import delete_retired
from volmig.migration.settings import Settings
from volmig.store import Store

LOG = logging.getLogger(__name__)

_GRACE_SECONDS = 10.0
"""How long a migration must have been without a worker that was accepted, and may be waiting for its first one."""

_FULL_SECONDS = 1.0
"""How soon a process that has no turn for more looks again: one may be free then."""

_CLOSING_SECONDS = 5.0
"""How long a round that hangs in a driver is waited for."""


class Recovery:
    """Takes over migrations whose worker is gone, and does what is due. It may be killed itself at any time."""

    def __init__(
        self,
        store: Store,
        backends: Backends,
        settings: Settings,
        migrations: MigrationManager,
        volumes: VolumeManager,
    ) -> None:
        self._store = store
        self._backends = backends
        self._settings = settings
        self._migrations = migrations
        self._volumes = volumes
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def recover(self) -> list[OwnedMigration]:
        """Do one round, and return the migrations that were taken over; they are run by threads of their own."""
        taken = self._migrations.take_over_all()
        self._end_requests()
        self._settle()
        self._retire()
        return taken

    def keep(self, interval_seconds: float | None = None) -> None:
        """Do rounds until :meth:`close`, the first one now. Succeeds without change when that is being done.

        :param interval_seconds: pause between two of them; None for the configured one.
        """
        interval = self._settings.recovery_interval_seconds if interval_seconds is None else interval_seconds
        with self._lock:
            if self._threads:
                return
            for name, work in self._works():
                thread = threading.Thread(
                    target=self._repeat, args=(work, interval), name=f"volmig-{name}", daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _works(self) -> list[tuple[str, Callable[[], bool]]]:
        """Return what is done at a pace of its own each: what waits for storage that hangs holds up nothing else."""
        addresses = sorted(f"{backend.host}@{backend.name}" for backend in self._backends)
        return [
            ("takeover", self._take_over),
            ("requests", self._end_requests),
            ("doubts", self._settle),
            *((f"retire-{address}", partial(self._retire, address.__eq__)) for address in addresses),
            # Says on record why nothing becomes of what no backend here holds.
            ("retire-others", partial(self._retire, lambda address: address not in addresses)),
        ]

    def close(self) -> None:
        """Begin no more rounds, and wait a little for those that are being done."""
        self._stop.set()
        deadline = time.monotonic() + _CLOSING_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _take_over(self) -> bool:
        """Take over what there is a turn for; return whether there is a turn for more."""
        for owned in self._migrations.take_over_all(grace_seconds=_GRACE_SECONDS, up_to_slots=True):
            LOG.warning("migration %s had no worker and goes on here", owned.migration.id)
        return self._migrations.has_free_slots()

    def _end_requests(self) -> bool:
        self._volumes.recover()
        return True

    def _settle(self) -> bool:
        settle_doubts(self._store, self._backends)
        return True

    def _retire(self, where: Callable[[str], bool] | None = None) -> bool:
        delete_retired(self._store, self._backends, where=where)
        return True

    def _repeat(self, work: Callable[[], bool], interval_seconds: float) -> None:
        while True:
            seconds = interval_seconds
            try:
                if not work():
                    seconds = min(seconds, _FULL_SECONDS)
            except errors.EngineClosed:
                return
            except Exception:
                if self._stop.is_set():
                    return
                # The next round may succeed, when the store or the storage is back.
                LOG.exception("a round of recovery failed; the next one is in %g seconds", interval_seconds)
            if self._stop.wait(seconds):
                return
