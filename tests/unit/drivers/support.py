"""Drivers and records for the tests of the drivers."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from volmig.drivers import MigrationHost, VolumeDriver
from volmig.drivers.fake import FakeDriver
from volmig.drivers.file import FileDriver
from volmig.model import RequestContext, Volume, VolumeStatus

CTXT = RequestContext(user="test")
MIB = 1024 * 1024


def options_of(cls: type[VolumeDriver], **given: Any) -> dict[str, Any]:
    """Return all options of a driver: those given, and the defaults of the others."""
    options = {option.dest: option.default for option in cls.get_driver_options()}
    unknown = set(given) - set(options)
    if unknown:
        raise ValueError(f"{cls.__name__} has no options {sorted(unknown)}")
    return options | given


def file_driver(directory: Path, *, backend: str = "files", setup: bool = True, **options: Any) -> FileDriver:
    driver = FileDriver(
        host="testhost", backend=backend, options=options_of(FileDriver, file_directory=str(directory), **options)
    )
    if setup:
        driver.do_setup(CTXT)
        driver.check_for_setup_error()
    return driver


def fake_driver(
    *, backend: str = "fakes", setup: bool = True, cls: type[FakeDriver] = FakeDriver, **options: Any
) -> Any:
    driver = cls(host="testhost", backend=backend, options=options_of(cls, **options))
    if setup:
        driver.do_setup(CTXT)
        driver.check_for_setup_error()
    return driver


def volume_of(driver: VolumeDriver, pool: str | None = None, *, size_bytes: int = MIB, **fields: Any) -> Volume:
    first = driver.get_volume_stats()["pools"][0]["pool_name"]
    defaults: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "name": "v",
        "size_bytes": size_bytes,
        "host": driver.address(pool or first),
        "status": VolumeStatus.AVAILABLE,
    }
    return Volume(**(defaults | fields))


def host_of(driver: VolumeDriver, pool: str | None = None) -> MigrationHost:
    """Describe a pool as the core does."""
    stats = driver.get_volume_stats(refresh=True)
    found = next(each for each in stats["pools"] if pool in {None, each["pool_name"]})
    general = {key: value for key, value in stats.items() if key != "pools"}
    return MigrationHost(host=driver.address(found["pool_name"]), capabilities=general | dict(found))


@contextlib.contextmanager
def busy(driver: Any) -> Iterator[None]:
    """Have a fake driver's storage refuse for the moment whatever would change it."""
    for method in (
        "create_volume",
        "delete_volume",
        "delete_object",
        "extend_volume",
        "migrate_volume",
        "update_migrated_volume",
    ):
        driver.faults.add(f"{method}:fail=storage-busy")
    yield
    driver.faults.clear()
