"""A store, pools of files, volumes with patterns, and workers as processes of their own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from volmig import Engine, errors
from volmig import conf as configuration
from volmig.migration import manager, recovery
from volmig.model import EntryKind, JournalEntry, Migration, RequestContext, Volume
from volmig.store.sql import SqlStore
from volmig.testing import patterns

from ..cli_support import environment, until
from .drivers import ARRIVED, GATES, GO

T = TypeVar("T")

MIB = 1024 * 1024
LEFT, RIGHT = "here@left#left", "here@right#right"
LEASE_SECONDS = 2.0
MARKER = "VOLMIG_OWNERSHIP_YARD"
"""Variable in the environment of a yard's processes, by which programs that they started are known."""

_CONFIGURATION = """\
[DEFAULT]
enabled_backends = {names}
host = here
state_path = {directory}/state

[database]
busy_timeout_seconds = {busy_timeout_seconds}

[migration]
lease_seconds = {lease_seconds}
heartbeat_seconds = {heartbeat_seconds}
max_concurrent_migrations = {max_concurrent}
cleanup_attempts = 3
cleanup_delay_seconds = 0.05
"""

_BACKEND = """
[{name}]
volume_driver = {driver}
file_directory = {directory}/{name}
driver_timeout_seconds = {driver_timeout_seconds}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How a yard is set up."""

    backends: Sequence[str] = ("left", "right")
    driver: str = "tests.functional.ownership.drivers:HeldDriver"
    busy_timeout_seconds: float = 5.0
    driver_timeout_seconds: float = 4.0
    max_concurrent: int = 3
    lease_seconds: float = LEASE_SECONDS
    heartbeat_seconds: float = 0.1


class Worker:
    """A worker's process. It is no child of this one, and is told from any other of its number by a descriptor."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self._fd = os.pidfd_open(pid)

    def signal(self, number: int) -> None:
        """Send a signal. Succeeds when the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Say whether it has ended, waiting for that some time."""
        return bool(select.select([self._fd], [], [], seconds)[0])

    def end(self, seconds: float = 60.0) -> str:
        """Tell it to end, and return what it said."""
        self.signal(signal.SIGTERM)
        return self.said(seconds)

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        assert self.has_ended(30.0)

    def said(self, seconds: float = 60.0) -> str:
        """Wait for its end, and return what it has said."""
        assert self.has_ended(seconds), f"worker {self.pid} does not end; it said {self.log.read_text()[-2000:]}"
        return self.log.read_text()

    def stop(self) -> None:
        """Stop it, and wait until it has stopped."""
        self.signal(signal.SIGSTOP)
        until(lambda: self.has_ended() or state_of(self.pid) == "T", "it stops")

    def close(self) -> None:
        """Kill it when it still runs, also when it is stopped."""
        if self._fd >= 0:
            self.signal(signal.SIGKILL)
            os.close(self._fd)
            self._fd = -1


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


class Yard:
    """What a test of ownership has. Its own engine makes requests, and runs what is left in the end."""

    def __init__(self, directory: Path, setting: Setting) -> None:
        self.directory = directory
        self.pools = [f"here@{name}#{name}" for name in setting.backends]
        for name in (*setting.backends, "state", "logs", GATES):
            (directory / name).mkdir()
        self._write_configuration(setting)
        self.database = directory / "state" / "volmig.db"
        self._workers: list[Worker] = []
        conf = configuration.load([str(directory / "volmig.conf")])
        self.store = SqlStore(f"sqlite:///{self.database}", busy_timeout_seconds=setting.busy_timeout_seconds)
        self.engine = Engine(conf, store=self.store, context=RequestContext(user="tester"))
        env = environment(**{MARKER: str(directory)})
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.functional.ownership.worker", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            bufsize=0,
        )

    def _write_configuration(self, setting: Setting) -> None:
        text = _CONFIGURATION.format(
            names=", ".join(setting.backends),
            directory=self.directory,
            busy_timeout_seconds=setting.busy_timeout_seconds,
            lease_seconds=setting.lease_seconds,
            heartbeat_seconds=setting.heartbeat_seconds,
            max_concurrent=setting.max_concurrent,
        )
        for name in setting.backends:
            text += _BACKEND.format(
                name=name,
                directory=self.directory,
                driver=setting.driver,
                driver_timeout_seconds=setting.driver_timeout_seconds,
            )
        (self.directory / "volmig.conf").write_text(text)

    def close(self) -> None:
        """End all processes, whatever became of them."""
        for worker in self._workers:
            worker.close()
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.close()
        self._nursery.stdout.close()
        self._nursery.wait(30)
        self.engine.close()
        self.store.close()

    # --- workers ------------------------------------------------------------------------------

    def runner(self, migration_id: str, name: str = "runner") -> Worker:
        """Start a worker that runs one migration, and ends then."""
        return self._start(name, migration=migration_id)

    def recoverer(self, name: str = "recoverer", *, interval_seconds: float = 0.2, debug: bool = False) -> Worker:
        """Start a worker that takes over what has no worker, until it is told to end."""
        return self._start(name, interval=interval_seconds, debug=debug)

    def _start(self, name: str, *, migration: str = "", interval: float = 0.2, debug: bool = False) -> Worker:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        log = f"logs/{len(self._workers)}-{name}.log"
        order = {"name": name, "log": log, "migration": migration, "interval": interval, "debug": debug}
        self._nursery.stdin.write(f"{json.dumps(order)}\n".encode())
        answer = self._nursery.stdout.readline()
        assert answer, "the process that forks the workers has ended"
        worker = Worker(int(answer), self.directory / log)
        self._workers.append(worker)
        return worker

    def suspend(self, worker: Worker) -> None:
        """Stop a worker, but not while it holds the lock of the store, which would stop everybody."""

        def is_stopped() -> bool:
            worker.stop()
            if self.store_is_free():
                return True
            worker.signal(signal.SIGCONT)
            return False

        until(is_stopped, "the worker is stopped outside of a transaction")
        assert not worker.has_ended()

    def store_is_free(self, seconds: float = 0.1) -> bool:
        """Say whether somebody who wants to write can."""
        with self.connected(seconds) as store:
            try:
                store.execute("BEGIN IMMEDIATE")
                store.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return False
            return True

    @contextlib.contextmanager
    def connected(self, busy_seconds: float = 30.0) -> Iterator[sqlite3.Connection]:
        """Give a plain connection to the database."""
        store = sqlite3.connect(self.database, timeout=busy_seconds, isolation_level=None)
        with contextlib.closing(store):
            yield store

    def end_lease(self, migration_id: str) -> None:
        """Let a lease be over, as when the store's clock jumps, or the worker's machine stood still."""
        with self.connected() as store:
            store.execute("UPDATE migrations SET lease_expires_at = 1 WHERE id = ?", (migration_id,))

    # --- gates --------------------------------------------------------------------------------

    def hold(self, place: str) -> None:
        """Let the next call of a driver that comes to *place* wait there."""
        (self.directory / GATES / place).touch()

    def await_arrival(self, place: str) -> None:
        until((self.directory / GATES / ARRIVED).exists, f"somebody arrives {place}")

    def open_gate(self) -> None:
        (self.directory / GATES / GO).touch()

    # --- volumes ------------------------------------------------------------------------------

    def create(self, size_bytes: int, *, name: str = "data", pool: str = LEFT, seed: int = 1) -> Volume:
        """Return a new volume that is full of data."""
        volume = self.engine.create_volume(host=pool, size_bytes=size_bytes, name=name)
        patterns.fill(self.path(volume), patterns.dense(size_bytes, seed=seed))
        return volume

    def path(self, volume: Volume) -> Path:
        return self.directory / volume.host.rpartition("#")[2] / (volume.provider_id or volume.backend_name)

    def files(self) -> dict[str, list[str]]:
        """Return the names of the files in each pool, without the marks of the pools themselves."""
        return {
            pool: sorted(path.name for path in self._place(pool).iterdir() if not _belongs_to_pool(path))
            for pool in self.pools
        }

    def _place(self, pool: str) -> Path:
        return self.directory / pool.rpartition("#")[2]

    def assert_whole(self, volume: Volume, *, seed: int = 1, host: str | None = None) -> Volume:
        """The volume is free and whole where its record says, and nothing else is anywhere."""
        now = self.engine.show_volume(volume.id)
        assert (now.status.value, now.migration_id) == ("available", None)
        assert host is None or now.host == host
        assert self.files() == {pool: [self.path(now).name] if pool == now.host else [] for pool in self.pools}
        patterns.check(self.path(now), patterns.dense(volume.size_bytes, seed=seed))
        return now

    def assert_no_records_left(self) -> None:
        with self.store.reading() as view:
            assert list(view.list_reservations()) == []
            assert list(view.list_checkpoints()) == []
            assert list(view.list_retired()) == []

    # --- migrations ---------------------------------------------------------------------------

    def now(self, migration_id: str) -> Migration:
        return self.engine.show_migration(migration_id)

    def history(self, migration_id: str) -> Sequence[JournalEntry]:
        return self.engine.history(migration_id)

    def outcome(self, migration_id: str, step: str) -> dict[str, Any]:
        """Return the outcome on record of a step that was done once."""
        (done,) = (e for e in self.history(migration_id) if (e.kind, e.subject) == (EntryKind.DONE, step))
        return dict(done.data)

    def await_end(self, migration_id: str, seconds: float = 60.0) -> Migration:
        until(lambda: self.now(migration_id).phase.is_final, "the migration ends", seconds)
        return self.now(migration_id)

    def await_copy(self, migration_id: str, *, bytes_done: int = 1) -> Migration:
        """Wait until a copy has got so far, by what its worker has recorded."""

        def is_so_far() -> bool:
            seen = self.now(migration_id)
            return seen.stage == "copy" and seen.bytes_done >= bytes_done

        until(is_so_far, "the copy is under way")
        return self.now(migration_id)

    # --- what there is ------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return every row of the store, and every file of the pools with its content and its times."""
        with self.connected() as store:
            tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            # The names are the database's own.
            rows = {name: store.execute(f"SELECT * FROM {name} ORDER BY rowid").fetchall() for name in tables}  # noqa: S608
        files = {}
        for pool in self.pools:
            for path in sorted(self._place(pool).rglob("*")):
                found = path.stat()
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                files[str(path)] = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, content)
        return {"rows": rows, "files": files}

    def programs(self) -> dict[int, str]:
        """Return the running programs that the yard's processes have started, and these themselves."""
        mark = f"{MARKER}={self.directory}".encode()
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in (os.getpid(), self._nursery.pid):
                continue
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return found


def _belongs_to_pool(path: Path) -> bool:
    # The second is the reserve that the file driver keeps for when there is no room; it is empty at rest.
    return path.name == ".volmig-backend" or (path.name == ".volmig-gone-" + 16 * "0" and not list(path.iterdir()))


def repeated(request: Callable[[], T], *, seconds: float = 60.0) -> T:
    """Make a request again and again while the store is busy, as when a process is stopped that holds its lock."""
    end = time.monotonic() + seconds
    while True:
        try:
            return request()
        except errors.StoreBusy:
            if time.monotonic() > end:
                raise


@contextlib.contextmanager
def without_grace() -> Iterator[None]:
    """Let this process, too, take over at once what has no worker."""
    before = [(module, module._GRACE_SECONDS) for module in (manager, recovery)]
    try:
        for module, _ in before:
            module._GRACE_SECONDS = 0.0  # type: ignore[attr-defined]
        yield
    finally:
        for module, seconds in before:
            module._GRACE_SECONDS = seconds  # type: ignore[attr-defined]
