"""An engine over backends with real bytes, and what can be compared before and after."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volmig import Engine
from volmig import conf as configuration
from volmig.conf import Configuration
from volmig.drivers.fake import FakeDriver
from volmig.model import Migration, Phase, RequestContext, Volume, VolumeStatus
from volmig.store import Store, VolumeQuery
from volmig.store.sql import SqlStore
from volmig.testing import patterns
from volmig.testing.memory_store import MemoryStore

KIB = 1024
MIB = 1024 * KIB
SIZE = 5 * 64 * KIB + 513
SOURCE, DESTINATION = "here@left#left", "here@right#right"
KINDS: Mapping[str, Mapping[str, Any]] = {
    "file": {"volume_driver": "file"},
    "path": {"volume_driver": "fake", "fake_connection": "path"},
    "handle": {"volume_driver": "fake", "fake_connection": "handle"},
}
STORES = ("memory", "sqlite")


class World:
    """Two backends, ``left`` and ``right``, a store, an engine, and volumes with a pattern."""

    def __init__(
        self,
        directory: Path,
        *,
        kind: str = "file",
        store: str = "memory",
        left: Mapping[str, Any] | None = None,
        right: Mapping[str, Any] | None = None,
        migration: Mapping[str, Any] | None = None,
        transfer: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.kind = kind
        own = {"left": left or {}, "right": right or {}}
        groups = {name: {**KINDS[kind], **self._place(name), **own[name]} for name in own}
        self._overrides = {
            "DEFAULT": {"enabled_backends": ["left", "right"], "host": "here", "state_path": str(directory / "state")},
            "migration": {
                "heartbeat_seconds": 0.05,
                "cleanup_attempts": 2,
                "cleanup_delay_seconds": 0.0,
                **(migration or {}),
            },
            "transfer": transfer or {},
            **groups,
        }
        self._database = f"sqlite:///{directory}/store.db" if store == "sqlite" else None
        self._memory = MemoryStore()
        self._opened: list[tuple[Engine, Store]] = []
        self.engine, self.store = self.open_engine()

    def _place(self, name: str) -> dict[str, Any]:
        if self.kind == "file":
            (self.directory / name).mkdir()
            return {"file_directory": str(self.directory / name)}
        return {"fake_directory": str(self.directory / "fake"), "fake_pools": [name]}

    def conf(self) -> Configuration:
        return configuration.load([], overrides=self._overrides)

    def open_engine(self, *, user: str = "someone") -> tuple[Engine, Store]:
        """Return one more engine, with a connection of its own to the same records."""
        store: Store = SqlStore(self._database) if self._database else self._memory
        engine = Engine(self.conf(), store=store, context=RequestContext(user=user))
        self._opened.append((engine, store))
        return engine, store

    def close(self) -> None:
        for engine, _ in self._opened:
            for backend in engine._backends:
                if isinstance(backend.driver, FakeDriver):
                    backend.driver.faults.clear()
        for engine, _ in self._opened:
            engine.close()
        for _, store in self._opened:
            store.close()

    # --- backends -----------------------------------------------------------------------------

    def fake(self, name: str, engine: Engine | None = None) -> FakeDriver:
        driver = (engine or self.engine)._backends.get(name).driver
        assert isinstance(driver, FakeDriver)
        return driver

    def pool(self, name: str) -> Path:
        return self.directory / name if self.kind == "file" else self.directory / "fake" / name / name

    def path(self, volume: Volume) -> Path:
        return self.pool(volume.host.rpartition("#")[2]) / (volume.provider_id or volume.backend_name)

    def objects(self, name: str) -> list[str]:
        """Return the names of the files in a pool; those of the driver itself begin with a dot."""
        if not self.pool(name).exists():
            return []
        return sorted(path.name for path in self.pool(name).iterdir() if not path.name.startswith("."))

    # --- volumes ------------------------------------------------------------------------------

    def create(self, *, size_bytes: int = SIZE, host: str = SOURCE, name: str = "data", **options: Any) -> Volume:
        """Return a new volume with a pattern as its data."""
        volume = self.engine.create_volume(
            host=host, size_bytes=size_bytes, name=name, project_id="owner", metadata={"key": "value"}, **options
        )
        patterns.fill(self.path(volume), pattern_of(volume))
        return volume

    def change(self, volume: Volume, **changes: Any) -> Volume:
        with self.store.writing() as transaction:
            return transaction.update_volume(transaction.get_volume(volume.id), **changes)

    # --- what there is ------------------------------------------------------------------------

    def rows(self) -> dict[str, Any]:
        with self.store.reading() as view:
            return {
                "volumes": list(view.list_volumes(VolumeQuery())),
                "migrations": list(view.list_migrations()),
                "reservations": list(view.list_reservations()),
                "retired": list(view.list_retired()),
            }

    def snapshot(self) -> dict[str, Any]:
        """Return all records and all files with their digests."""
        return {**self.rows(), "files": files_below(self.directory)}

    def assert_at(self, volume: Volume, host: str, phase: Phase, *, late_call: bool = False) -> Volume:
        """The volume is whole and free at *host* and nothing else is anywhere, on record or in storage."""
        rows = self.rows()
        (now,) = (each for each in rows["volumes"] if each.id == volume.id)
        assert now.host == host
        assert now.migration_id is None
        assert now.status is VolumeStatus.AVAILABLE
        assert now.migration_status is phase.public_status
        for field in ("id", "name", "size_bytes", "project_id", "metadata", "volume_type", "format", "created_at"):
            assert getattr(now, field) == getattr(volume, field), field
        assert rows["reservations"] == []
        if not late_call:
            assert rows["retired"] == []
        expected: dict[str, list[str]] = {"left": [], "right": []}
        for each in rows["volumes"]:
            expected[each.host.rpartition("#")[2]].append(self.path(each).name)
        for pool, names in expected.items():
            assert self.objects(pool) == sorted(names), pool
        patterns.check(self.path(now), pattern_of(volume))
        return now

    def assert_failed(self, volume: Volume, final: Migration, code: str, *, late_call: bool = False) -> None:
        """The migration ended in ``error`` with that code, and the volume is as it was, with the reason.

        :param late_call: a call may take effect yet, so that its object is on record, to be looked for.
        """
        assert (final.phase, final.error_code) == (Phase.ERROR, code)
        assert final.error_message
        assert final.finished_at is not None
        assert final.owner == ""
        now = self.assert_at(volume, volume.host, Phase.ERROR, late_call=late_call)
        if late_call:
            (expected,) = self.rows()["retired"]
            assert expected.name_id == final.destination_id
            assert expected.delete_after > final.finished_at
        assert now.status_reason == final.error_message
        assert (now.name_id, now.provider_location, now.provider_id) == (
            volume.name_id,
            volume.provider_location,
            volume.provider_id,
        )


def pattern_of(volume: Volume) -> patterns.Pattern:
    return patterns.holed(volume.size_bytes, seed=len(volume.name))


def files_below(directory: Path) -> dict[str, str]:
    """Return kind and content of everything below a directory, other than the database's files."""
    found = {}
    for parent, directories, names in os.walk(directory):
        for name in (*directories, *names):
            path = Path(parent) / name
            where = str(path.relative_to(directory))
            if where.startswith("store.db"):
                continue
            if path.is_symlink():
                found[where] = f"link to {path.readlink()}"
            elif path.is_file():
                found[where] = f"{path.stat().st_nlink} {hashlib.sha256(path.read_bytes()).hexdigest()}"
            else:
                found[where] = "directory"
    return found


def threads() -> set[str]:
    """Return the names of the threads that volmig has started and that still run."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("volmig-")}


def children() -> list[str]:
    """Return the processes that this one has started and that still run."""
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
