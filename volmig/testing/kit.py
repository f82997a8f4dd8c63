"""What the conformance suite is given, and the tools that its tests share."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pytest

from volmig import errors
from volmig.drivers import Capability, MigrationHost, PoolStats, VolumeDriver, VolumeUpdate
from volmig.drivers.base import ConnectorProperties
from volmig.model import PoolAddress, RequestContext, Volume, VolumeStatus
from volmig.testing import patterns
from volmig.testing.patterns import Pattern

SIZE_BYTES = 256 * 1024
ODD_BYTES = 256 * 1024 + 12345

End = str | BinaryIO
CONNECTOR = ConnectorProperties(host="conformance", read_only=False)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A real backend to test, as its author presents it."""

    driver: VolumeDriver
    """A driver that is not set up yet, on storage that has room for a few volumes of some MiB."""
    restart: Callable[[], VolumeDriver]
    """Return a driver for the same storage as a restarted process would have it, not set up; the same driver only
    if the storage cannot outlive the process."""
    make_object: Callable[[str, bytes], str] | None = None
    """Make an object of these bytes in a pool, by other means than the driver, and return its ``source-name``.
    Needed for the capability ``MANAGE``."""
    peer: VolumeDriver | None = None
    """Another backend that ``migrate_volume`` can reach, not set up; needed for the capability
    ``NATIVE_MIGRATION`` when the backend has one pool only."""
    attach: Callable[[VolumeDriver, Volume, str], AbstractContextManager[End]] | None = None
    """Open a volume (mode ``rb`` or ``r+b``); needed when neither ``LOCAL_PATH`` nor ``FILE_MODE`` is claimed."""
    make_busy: Callable[[VolumeDriver], AbstractContextManager[None]] | None = None
    """Have the storage refuse for the moment what would change it, while the context lasts. Needed only to show that
    the driver's StorageBusy keeps its promise; a driver that raises it should give this."""
    size_step_bytes: int = 1
    """Sizes must be multiples of this; 1 for backends that keep any size exactly."""

    def size(self, size_bytes: int) -> int:
        """Return the least size that the backend can keep and that is not below *size_bytes*."""
        return -(-size_bytes // self.size_step_bytes) * self.size_step_bytes


class Kit:
    """One set-up backend, with the volumes that a test makes on it; all are deleted in the end."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.ctxt = RequestContext(user="conformance")
        self.driver = self.ready(backend.driver)
        self.peer = None if backend.peer is None else self.ready(backend.peer)
        self._made: list[tuple[VolumeDriver, Volume]] = []

    def ready(self, driver: VolumeDriver) -> VolumeDriver:
        """Set a driver up and return it."""
        driver.do_setup(self.ctxt)
        driver.check_for_setup_error()
        return driver

    def busy(self) -> AbstractContextManager[None] | None:
        """Have the storage be busy while the context lasts; None when the author gave no way to do so."""
        return None if self.backend.make_busy is None else self.backend.make_busy(self.driver)

    def claims(self, capability: Capability) -> bool:
        """Say whether the driver promises something."""
        return capability in self.driver.capabilities

    # --- pools and volumes ----------------------------------------------------------------------

    def pools(self, driver: VolumeDriver | None = None) -> list[PoolStats]:
        """Return fresh stats of all pools."""
        return (driver or self.driver).get_volume_stats(refresh=True)["pools"]

    def pool(self, volume: Volume) -> PoolStats:
        """Return fresh stats of the pool that *volume* is in."""
        name = PoolAddress.parse(volume.host).pool
        return next(pool for pool in self.pools() if pool["pool_name"] == name)

    def host(self, pool: int = 0) -> str:
        """Return the address of one of the driver's pools."""
        return self.driver.address(self.pools()[pool]["pool_name"])

    def volume(self, size_bytes: int = SIZE_BYTES, **fields: Any) -> Volume:
        """Return the record of a volume that is not made yet, in the first pool; it is deleted in the end."""
        identity = str(uuid.uuid4())
        defaults: dict[str, Any] = {
            "id": identity,
            "name": f"conformance-{identity[:8]}",
            "size_bytes": self.backend.size(size_bytes),
            "host": fields.get("host") or self.host(),
            "status": VolumeStatus.AVAILABLE,
        }
        volume = Volume(**(defaults | fields))
        self._made.append((self.driver, volume))
        return volume

    def created(self, size_bytes: int = SIZE_BYTES, **fields: Any) -> Volume:
        """Make a volume and return its record."""
        volume = self.volume(size_bytes, **fields)
        return self.updated(volume, self.driver.create_volume(volume))

    def filled(self, pattern: Pattern, **fields: Any) -> Volume:
        """Make a volume that holds *pattern* and return its record."""
        volume = self.created(pattern.size_bytes, **fields)
        self.fill(volume, pattern)
        return volume

    def updated(
        self,
        volume: Volume,
        update: VolumeUpdate | None,
        *,
        driver: VolumeDriver | None = None,
        host: str | None = None,
    ) -> Volume:
        """Return the record as it is after a driver's update, in the pool *host*; it is deleted in the end."""
        changes: dict[str, Any] = dict(update or {})
        unknown = set(changes) - set(VolumeUpdate.__annotations__)
        assert not unknown, f"the update has keys that the contract does not know: {sorted(unknown)}"
        if "_name_id" in changes:
            changes["name_id"] = changes.pop("_name_id")
        changed = replace(volume, host=host or volume.host, **changes)
        self._made.append((driver or self.driver, changed))
        return changed

    def clean_up(self) -> None:
        """Delete what the test has made, wherever it is by now."""
        for driver, volume in reversed(self._made):
            with contextlib.suppress(errors.VolmigError):  # hostile records among them are refused
                driver.delete_volume(volume)

    # --- data ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def opened(self, volume: Volume, mode: str = "rb", *, driver: VolumeDriver | None = None) -> Iterator[End]:
        """Open a volume by the best way that the driver offers."""
        driver = driver or self.driver
        if Capability.LOCAL_PATH in driver.capabilities:
            yield driver.initialize_connection(volume, CONNECTOR)["data"]["device_path"]
            driver.terminate_connection(volume, CONNECTOR)
        elif Capability.FILE_MODE in driver.capabilities:
            with driver.open_volume(volume, mode) as handle:
                yield handle
        elif self.backend.attach is not None:
            with self.backend.attach(driver, volume, mode) as end:
                yield end
        else:
            pytest.fail("the driver claims neither LOCAL_PATH nor FILE_MODE: give the Backend an attach function")

    def fill(self, volume: Volume, pattern: Pattern, *, zeroed: bool = False) -> None:
        """Write *pattern* to the volume."""
        with self.opened(volume, "r+b") as end:
            patterns.fill(end, pattern, zeroed=zeroed)

    def check(self, volume: Volume, pattern: Pattern, *, driver: VolumeDriver | None = None) -> None:
        """Check that the volume holds *pattern* and nothing else, and has its size."""
        with self.opened(volume, driver=driver) as end:
            patterns.check(end, pattern)

    # --- migration ------------------------------------------------------------------------------------

    def migration_target(self) -> tuple[VolumeDriver, MigrationHost]:
        """Return a destination that the driver can reach natively, and its driver: a second pool, or the peer's."""
        if len(self.pools()) > 1:
            return self.driver, self.migration_host(self.driver, 1)
        if self.peer is None:
            pytest.fail("NATIVE_MIGRATION is claimed: a second pool, or a peer in the Backend, is needed to show it")
        return self.peer, self.migration_host(self.peer, 0)

    def migration_host(self, driver: VolumeDriver, pool: int) -> MigrationHost:
        """Describe a driver's pool as the core does."""
        stats = driver.get_volume_stats(refresh=True)
        found = stats["pools"][pool]
        general = {key: value for key, value in stats.items() if key not in {"pools", "down_reason"}}
        return MigrationHost(host=driver.address(found["pool_name"]), capabilities=general | dict(found))

    def foreign_host(self) -> MigrationHost:
        """Describe a pool of another vendor's storage on another host."""
        return MigrationHost(
            host="elsewhere@stranger#pool",
            capabilities={
                "volume_backend_name": "stranger",
                "vendor_name": "Stranger",
                "driver_version": "1",
                "storage_protocol": "iSCSI",
                "pool_name": "pool",
                "total_capacity_bytes": 1024**4,
                "free_capacity_bytes": 1024**4,
                "location_info": "Stranger:elsewhere:pool",
            },
        )
