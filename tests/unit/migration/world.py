"""Two backends with real bytes, a store, and a volume with a pattern: what a migration needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volmig import conf as configuration
from volmig.drivers.base import VolumeDriver
from volmig.manager.backends import Backends
from volmig.manager.volumes import VolumeManager, new_volume
from volmig.migration.ownership import Claim, OwnedMigration
from volmig.migration.request import MigrationRequest, accept
from volmig.migration.runner import MigrationRunner
from volmig.migration.settings import Settings
from volmig.migration.steps import Step, steps_for
from volmig.model import Method, Migration, Phase, RequestContext, Volume, VolumeStatus
from volmig.store import Store
from volmig.testing import patterns
from volmig.testing.memory_store import MemoryStore

SIZE = 5 * 64 * 1024 + 513
OWNER = "tester"


@dataclass(frozen=True)
class Kind:
    """A pair of backends and the way in which a volume gets from one to the other."""

    name: str
    method: Method
    driver: str
    options: Mapping[str, Any]
    force_host_copy: bool
    engine: str = "auto"


KINDS = (
    Kind("file-driver", Method.DRIVER, "file", {}, False),
    Kind("file-block", Method.BLOCK, "file", {}, True),
    Kind("file-block-dd", Method.BLOCK, "file", {}, True, engine="dd"),
    Kind("fake-driver", Method.DRIVER, "fake", {"fake_pools": ["a"]}, False),
    Kind("fake-block", Method.BLOCK, "fake", {"fake_pools": ["a"]}, True),
    Kind("fake-file", Method.FILE, "fake", {"fake_pools": ["a"], "fake_connection": "handle"}, True),
)


class World:
    """One volume on the first of two backends."""

    def __init__(self, directory: Path, kind: Kind, *, store: Store | None = None, **options: Any) -> None:
        self.kind = kind
        self.pattern = patterns.holed(SIZE)
        self.store: Store = store or MemoryStore()
        groups: dict[str, dict[str, Any]] = {}
        for name in ("left", "right"):
            if kind.driver == "file":
                (directory / name).mkdir()
                own: dict[str, Any] = {"file_directory": str(directory / name)}
            else:
                (directory / "shared").mkdir(exist_ok=True)
                own = {**kind.options, "fake_directory": str(directory / "shared"), "fake_pools": [name]}
            groups[name] = {"volume_driver": kind.driver, **own, **options}
        self.conf = configuration.load(
            [],
            overrides={
                "DEFAULT": {"enabled_backends": ["left", "right"], "host": "here", "state_path": str(directory)},
                "migration": {"cleanup_delay_seconds": 0.0, "cleanup_attempts": 3},
                **groups,
            },
        )
        self.settings = Settings.from_conf(self.conf)
        self.backends = Backends.from_conf(self.conf)
        self.source, self.destination = "here@left#left", "here@right#right"
        manager = VolumeManager(self.store, self.backends, settle=_never)
        record = new_volume(
            host=self.source,
            size_bytes=SIZE,
            name="data",
            volume_type="gold",
            project_id="owner",
            metadata={"key": "value"},
        )
        self.volume = manager.create(record)
        self.fill(self.volume)

    def driver(self, name: str) -> VolumeDriver:
        return self.backends.get(name).driver

    def fill(self, volume: Volume) -> None:
        with self._opened(volume, "r+b") as end:
            patterns.fill(end, self.pattern)

    def check(self, volume: Volume) -> None:
        """Compare every byte of a volume with the pattern."""
        with self._opened(volume, "rb") as end:
            patterns.check(end, self.pattern)

    def _opened(self, volume: Volume, mode: str) -> Any:
        return self.backends.of(volume).open_volume(volume, mode)

    def accept(self, *, lock_volume: bool = False, owner: str = OWNER, **options: Any) -> Migration:
        request = MigrationRequest(
            volume_id=self.volume.id,
            destination=self.destination,
            force_host_copy=self.kind.force_host_copy,
            lock_volume=lock_volume,
            engine=self.kind.engine,
            **options,
        )
        claim = Claim(owner=owner, lease_seconds=60.0) if owner else None
        return accept(self.store, self.backends, request, RequestContext(user="someone"), claim)

    def run(
        self,
        migration: Migration,
        *,
        steps: Callable[[Method], Sequence[Step]] = steps_for,
        store: Store | None = None,
        before: Callable[[OwnedMigration], None] = lambda _: None,
    ) -> OwnedMigration:
        """Run a migration to its end in this thread."""
        owned = OwnedMigration(migration)
        before(owned)
        MigrationRunner(store or self.store, self.backends, self.settings, owned, steps_for=steps).run()
        return owned

    def take_over(self, migration: Migration) -> OwnedMigration:
        """Run, as a second worker would, a migration that its worker has left."""
        with self.store.writing() as transaction:
            transaction.update_migration(transaction.get_migration(migration.id), owner="")
            claimed = transaction.claim_migration(migration.id, owner="second", lease_seconds=60.0)
        return self.run(claimed)

    # --- what must hold at the end ------------------------------------------------------------

    def recorded(self) -> Volume:
        with self.store.reading() as view:
            return view.get_volume(self.volume.id)

    def objects(self) -> dict[str, list[str]]:
        """Return the objects that are really there, by backend: files, by their names."""
        found: dict[str, list[str]] = {}
        for name in ("left", "right"):
            options = self.driver(name).options
            where = Path(options["file_directory"] if self.kind.driver == "file" else options["fake_directory"])
            pool = where if self.kind.driver == "file" else where / name / name
            found[name] = sorted(path.name for path in pool.iterdir() if not path.name.startswith(".volmig"))
        return found

    def assert_at_source(self, migration: Migration, *, phase: Phase = Phase.ERROR) -> Volume:
        """The volume is at its source, whole and free, and nothing else is anywhere."""
        volume = self._assert_settled(migration, phase)
        assert volume.host == self.source
        assert len(self.objects()["left"]) == 1
        assert self.objects()["right"] == []
        return volume

    def assert_at_destination(self, migration: Migration) -> Volume:
        """The volume is at its destination, whole and free, and nothing else is anywhere."""
        volume = self._assert_settled(migration, Phase.SUCCESS)
        assert volume.host == self.destination
        assert self.objects()["left"] == []
        assert len(self.objects()["right"]) == 1
        return volume

    def _assert_settled(self, migration: Migration, phase: Phase) -> Volume:
        with self.store.reading() as view:
            final = view.get_migration(migration.id)
            volume = view.get_volume(self.volume.id)
            assert not list(view.list_reservations())
            # What a creation whose end nobody saw may make yet is on record, under the id that was given up.
            given_up = {migration.destination_id} - {final.destination_id}
            assert {retired.name_id for retired in view.list_retired()} <= given_up
        assert final.phase is phase
        assert final.finished_at is not None
        assert final.owner == ""
        assert volume.migration_status is phase.public_status
        assert volume.migration_id is None
        assert volume.status is VolumeStatus.AVAILABLE
        kept = ("id", "name", "size_bytes", "volume_type", "project_id", "metadata", "format", "created_at")
        for field in kept:
            assert getattr(volume, field) == getattr(self.volume, field), field
        self.check(volume)
        assert [name for name in _children() if "(dd)" in name] == []
        return volume


def _children() -> list[str]:
    """Return the names of the processes that this one has started and that are still there, zombies too."""
    names = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid_and_name, _, rest = stat.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(rest.split()[1]) == os.getpid():
            names.append(pid_and_name)
    return names


def _never(volume: Volume, operation: str) -> None:
    raise AssertionError(f"{operation} of {volume.id} met a migration")
