"""What befalls workers while they work: they are killed and suspended, and people change their minds."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from volmig import errors
from volmig.model import Migration, Phase, Volume, VolumeStatus
from volmig.store import MigrationQuery
from volmig.transfer import boottime_seconds

from .yard import LEASE_SECONDS, MIB, Worker, Yard, repeated

UNFINISHED = tuple(phase for phase in Phase if not phase.is_final)
_LIMITS = (0, MIB, 3 * MIB, 8 * MIB)


def content(volume: Volume, generation: int) -> bytes:
    """Return what is in a volume after it was written to so often."""
    return random.Random(f"{volume.id}/{generation}").randbytes(volume.size_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """The end of a worker."""

    at: float
    """On the clock of the journal, in seconds since 1970."""
    boottime: float


@dataclass(kw_only=True)
class Figures:
    """What has happened."""

    counts: Counter[str] = field(default_factory=Counter)
    kills: dict[int, Kill] = field(default_factory=dict)
    """By process id."""


class Hazards:
    """Kills and suspends workers, a number of which it keeps running. It never waits for the store."""

    def __init__(self, yard: Yard, figures: Figures, *, workers: int, seed: int) -> None:
        self._yard = yard
        self._figures = figures
        self._random = random.Random(seed)
        self._told_to_end = threading.Event()
        self.running = [yard.recoverer("worker") for _ in range(workers)]
        self._stopped: dict[Worker, float] = {}
        """Until when, on the monotonic clock."""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="hazards")

    @property
    def are_there(self) -> bool:
        """Whether they go on; they end by themselves when something is wrong with the test."""
        return self._thread.is_alive()

    def begin(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._told_to_end.wait(self._random.uniform(0.1, 0.7)):
                self._wake_up()
                self._strike()
        except BaseException as error:  # noqa: BLE001 - told by end()
            self._error = error

    def end(self) -> None:
        """Strike no more, and let all workers go on."""
        self._told_to_end.set()
        self._thread.join()
        for worker in self.running:
            worker.signal(signal.SIGCONT)
        if self._error is not None:
            raise self._error

    def _wake_up(self) -> None:
        for worker in [each for each, until in self._stopped.items() if until <= time.monotonic()]:
            del self._stopped[worker]
            worker.signal(signal.SIGCONT)

    def _strike(self) -> None:
        place = self._random.randrange(len(self.running))
        worker = self.running[place]
        if worker in self._stopped and self._random.random() < 0.7:
            return
        if self._random.random() < 0.35:
            self._kill(worker)
            self.running[place] = self._yard.recoverer("worker")
        elif len(self._stopped) < len(self.running) // 2:
            self._stop(worker)

    def _kill(self, worker: Worker) -> None:
        self._figures.kills[worker.pid] = Kill(at=time.time(), boottime=boottime_seconds())
        worker.kill()
        self._figures.counts["kills"] += 1
        if self._stopped.pop(worker, None) is not None:
            self._figures.counts["kills of a suspended one"] += 1

    def _stop(self, worker: Worker) -> None:
        worker.stop()
        seconds = self._random.uniform(1.1, 2.5) * LEASE_SECONDS
        self._figures.counts["suspensions"] += 1
        if not self._yard.store_is_free(0.3):
            # It may be the one that holds the lock, and then it holds up everybody: not every time for so long.
            self._figures.counts["suspensions while the store was locked"] += 1
            seconds = seconds if self._random.random() < 0.2 else 0.2
        self._stopped[worker] = time.monotonic() + seconds


class Requests:
    """Requests migrations, writes to volumes between them, and steers what goes on."""

    def __init__(self, yard: Yard, figures: Figures, *, seed: int) -> None:
        self._yard = yard
        self._figures = figures
        self._random = random.Random(seed)
        self.generations: dict[str, int] = {}
        """How often each volume was written to."""
        self._to_resume: dict[str, float] = {}

    def create(self, count: int) -> None:
        """Make volumes, full of data."""
        for number in range(count):
            size_bytes = self._random.randrange(MIB, 20 * MIB)
            pool = self._yard.pools[number % len(self._yard.pools)]
            volume = self._yard.engine.create_volume(host=pool, size_bytes=size_bytes, name=f"v{number}")
            self.generations[volume.id] = 0
            self._yard.path(volume).write_bytes(content(volume, 0))

    def round(self) -> None:
        """Let all volumes that rest begin to move, and change a mind or two."""
        for volume in self._yard.engine.list_volumes():
            if volume.migration_id is None and volume.status is VolumeStatus.AVAILABLE:
                self._try(lambda volume=volume: self._move(volume))
        active = list(self._yard.engine.list_migrations(MigrationQuery(phases=UNFINISHED)))
        if active:
            self._try(lambda: self._steer(self._random.choice(active)))
        for migration_id in [each for each, due in self._to_resume.items() if due <= time.monotonic()]:
            del self._to_resume[migration_id]
            self._try(lambda chosen=migration_id: self._yard.engine.request_resume(chosen))

    def calm_down(self) -> None:
        """Resume what is paused, and lift all limits."""
        for migration in self._yard.engine.list_migrations(MigrationQuery(phases=UNFINISHED)):
            self._try(lambda chosen=migration.id: self._yard.engine.request_resume(chosen))
            self._try(lambda chosen=migration.id: self._yard.engine.limit_migration(chosen, 0))

    def _try(self, request: object) -> None:
        """Make a request that may be refused."""
        try:
            repeated(request)  # type: ignore[arg-type]
        except errors.VolmigError as error:
            if isinstance(error, errors.BugError):
                raise
            self._figures.counts[f"refused: {error.code}"] += 1

    def _move(self, volume: Volume) -> None:
        if self._random.random() < 0.5:
            self._write(volume)
        self._yard.engine.request_migration(
            volume.id,
            self._random.choice([pool for pool in self._yard.pools if pool != volume.host]),
            force_host_copy=self._random.random() < 0.75,
            lock_volume=self._random.random() < 0.3,
            verify=self._random.choice(["digest", "compare"]),
            bandwidth_limit_bytes=self._random.choice(_LIMITS),
        )
        self._figures.counts["migrations"] += 1

    def _write(self, volume: Volume) -> None:
        """Fill a volume with other data, so that what an earlier copy writes too late would show."""
        path: Path = self._yard.path(volume)
        try:
            with path.open("r+b") as file:
                file.write(content(volume, self.generations[volume.id] + 1))
        except FileNotFoundError:
            # A driver's own move that was suspended goes on; recovery follows it.
            self._figures.counts["volumes not at their place for a while"] += 1
            return
        self.generations[volume.id] += 1

    def _steer(self, migration: Migration) -> None:
        engine = self._yard.engine
        chance = self._random.random()
        if chance < 0.1:
            engine.cancel_migration(migration.id)
            self._figures.counts["cancels"] += 1
        elif chance < 0.25:
            engine.pause_migration(migration.id)
            self._figures.counts["pauses"] += 1
            self._to_resume[migration.id] = time.monotonic() + self._random.uniform(0.2, 2.0)
        elif chance < 0.4:
            engine.limit_migration(migration.id, self._random.choice(_LIMITS))
            self._figures.counts["limits"] += 1
