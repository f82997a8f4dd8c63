"""One backend that can be told to fail, a store, and a manager of volumes."""

from __future__ import annotations

from typing import Any

from volmig import conf as configuration
from volmig.drivers.fake import FakeDriver
from volmig.manager.backends import Backends
from volmig.manager.volumes import VolumeManager, new_volume
from volmig.model import Volume
from volmig.store import VolumeQuery
from volmig.testing import patterns
from volmig.testing.memory_store import MemoryStore

KIB = 1024
SIZE = 200 * KIB + 7
POOL = "here@one#p"


class World:
    """A backend that can be told to fail, a store, and a manager."""

    def __init__(self, **options: Any) -> None:
        own = {"volume_driver": "fake", "fake_pools": ["p", "q"], "driver_timeout_seconds": 10.0, **options}
        overrides = {"DEFAULT": {"enabled_backends": ["one"], "host": "here"}, "one": own}
        self.store = MemoryStore()
        self.backends = Backends.from_conf(configuration.load([], overrides=overrides))
        driver = self.backends.get("one").driver
        assert isinstance(driver, FakeDriver)
        self.driver = driver
        self.settled: list[str] = []
        self.manager = VolumeManager(self.store, self.backends, settle=self._settle)

    def _settle(self, volume: Volume, operation: str) -> None:
        self.settled.append(operation)
        with self.store.writing() as transaction:
            transaction.update_volume(transaction.get_volume(volume.id), migration_id=None)

    def record(self, size_bytes: int = SIZE, *, host: str = POOL, name: str = "data") -> Volume:
        return new_volume(host=host, size_bytes=size_bytes, name=name, volume_type=None, project_id=None, metadata=None)

    def create(self, size_bytes: int = SIZE) -> Volume:
        return self.manager.create(self.record(size_bytes))

    def change(self, volume: Volume, **changes: Any) -> Volume:
        with self.store.writing() as transaction:
            return transaction.update_volume(transaction.get_volume(volume.id), **changes)

    def get(self, volume: Volume) -> Volume:
        with self.store.reading() as view:
            return view.get_volume(volume.id)

    def rows(self) -> dict[str, Any]:
        with self.store.reading() as view:
            return {
                "volumes": list(view.list_volumes(VolumeQuery())),
                "reservations": list(view.list_reservations()),
                "retired": list(view.list_retired()),
            }

    def provisioned(self, pool: str = "p") -> int:
        self.driver.faults.clear()
        return self.backends.pool(f"here@one#{pool}").provisioned_capacity_bytes

    def fill(self, volume: Volume) -> patterns.Pattern:
        pattern = patterns.holed(volume.size_bytes)
        with self.driver.open_volume(volume, "r+b") as handle:
            patterns.fill(handle, pattern)
        return pattern

    def check(self, volume: Volume, pattern: patterns.Pattern) -> None:
        with self.driver.open_volume(volume, "rb") as handle:
            patterns.check(handle, pattern)

    def assert_nothing_there(self) -> None:
        assert self.rows() == {"volumes": [], "reservations": [], "retired": []}
        assert self.provisioned() == 0
