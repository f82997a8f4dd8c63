"""A bench over any driver, for its author: two pools of a configuration file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oslo_config import cfg

from volmig import conf as configuration
from volmig import errors
from volmig.drivers import Capability, VolumeDriver
from volmig.drivers.base import ConnectorProperties
from volmig.manager.backends import Backends
from volmig.model import PoolAddress, Volume, VolumeStatus
from volmig.testing import patterns
from volmig.testing.killsweep.bench import SETTINGS, Bench, content_digest
from volmig.testing.killsweep.scenario import Scenario, migrate_plainly
from volmig.testing.patterns import Pattern

_CONNECTOR = ConnectorProperties(host="killsweep", read_only=False)


class ConfiguredBench(Bench):
    """Two pools of backends that a configuration file describes. Volumes are looked at through the drivers.

    What is in the pools before a run is left alone. The drivers must claim ``LIST``, and ``LOCAL_PATH`` or
    ``FILE_MODE``. Runs come one after another, and nobody else may use the pools meanwhile.

    :param file: the configuration; its store is not used.
    :param source: pool, as ``host@backend#pool``.
    :param destination: likewise.
    """

    in_parallel = False

    def __init__(self, file: str | Path, *, source: str, destination: str) -> None:
        self._file = Path(file).absolute()
        self.source = source
        self.destination = destination

    def configuration(self, directory: Path) -> cfg.ConfigOpts:
        own = {"DEFAULT": {"state_path": str(directory / "state")}}
        return configuration.load([str(self._file)], overrides={**own, **SETTINGS})

    def begin(self, directory: Path) -> None:
        super().begin(directory)
        before = {pool: sorted(self._names(directory, pool)) for pool in (self.source, self.destination)}
        (directory / "before").write_text(json.dumps(before))

    def fill(self, directory: Path, volume: Volume, pattern: Pattern) -> None:
        with self._driver(directory, volume.host) as driver, _opened(driver, volume, "r+b") as end:
            patterns.fill(end, pattern)

    def objects(self, directory: Path, pool: str) -> Mapping[str, str]:
        with self._driver(directory, pool) as driver:
            found: dict[str, str] = {}
            for name, volume in self._new(directory, pool).items():
                with _opened(driver, volume, "rb") as end:
                    found[name] = content_digest(end)
            return found

    def end(self, directory: Path) -> None:
        for pool in (self.source, self.destination) if (directory / "before").exists() else ():
            with self._driver(directory, pool) as driver:
                for volume in self._new(directory, pool).values():
                    driver.delete_volume(volume)
        super().end(directory)

    def _new(self, directory: Path, pool: str) -> Mapping[str, Volume]:
        """Return the objects that the run has put into a pool, by name, in the form in which a driver takes them."""
        before = json.loads((directory / "before").read_text())[pool]
        return {name: volume for name, volume in self._names(directory, pool).items() if name not in before}

    def _names(self, directory: Path, pool: str) -> Mapping[str, Volume]:
        with self._driver(directory, pool) as driver:
            found = driver.list_objects(PoolAddress.parse(pool).pool)
        return {
            each.name: Volume(
                id=each.backend_id or each.name,
                name=each.name,
                size_bytes=each.size_bytes,
                host=pool,
                status=VolumeStatus.AVAILABLE,
                provider_id=None if each.backend_id else each.name,
            )
            for each in found
        }

    @contextlib.contextmanager
    def _driver(self, directory: Path, pool: str) -> Iterator[VolumeDriver]:
        backend = Backends.from_conf(self.configuration(directory)).at(pool)
        if not backend.can(Capability.LIST):
            raise errors.UnsupportedOperation(backend=backend.name, operation="listing its objects")
        backend.require_set_up()
        yield backend.driver


def standard_scenarios(bench: Bench) -> Sequence[Scenario]:
    """Return the scenarios that each driver should pass: copies by the host, and its own way of moving."""
    ways: Mapping[str, Mapping[str, Any]] = {
        "copy": {"force_host_copy": True},
        "copy-locked": {"force_host_copy": True, "lock_volume": True},
        "driver": {},
        "driver-locked": {"lock_volume": True},
    }
    return [Scenario(name=name, bench=bench, act=migrate_plainly(**options)) for name, options in ways.items()]


@contextlib.contextmanager
def _opened(driver: VolumeDriver, volume: Volume, mode: str) -> Iterator[Any]:
    """Open a volume by a path, or by a handle where there is none."""
    if Capability.LOCAL_PATH in driver.capabilities:
        try:
            yield Path(driver.initialize_connection(volume, _CONNECTOR)["data"]["device_path"])
        finally:
            driver.terminate_connection(volume, _CONNECTOR)
    else:
        with driver.open_volume(volume, mode) as handle:
            yield handle
