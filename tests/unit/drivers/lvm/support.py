"""Drivers on a fake LVM."""

from __future__ import annotations

import uuid
from typing import Any

from tests.unit.drivers.lvm.fake_lvm import FakeDevices, FakeLvm
from volmig.drivers.lvm import LvmDriver
from volmig.model import RequestContext, Volume, VolumeStatus

CTXT = RequestContext(user="test")


def options(**changes: Any) -> dict[str, Any]:
    """Return all options of the driver: their defaults, and *changes*."""
    known: dict[str, Any] = {option.dest: option.default for option in LvmDriver.get_driver_options()}
    assert not set(changes) - set(known)
    return known | {"lvm_volume_group": "vg"} | changes


def driver(lvm: FakeLvm, *, host: str = "conformance", backend: str = "lvm", **changes: Any) -> LvmDriver:
    """Return a driver that is not set up."""
    return LvmDriver(
        host=host,
        backend=backend,
        options=options(**changes),
        run=lvm,
        devices=FakeDevices(lvm),
        pause=lambda _: None,
    )


def ready(lvm: FakeLvm, **changes: Any) -> LvmDriver:
    """Return a driver that is set up."""
    made = driver(lvm, **changes)
    made.do_setup(CTXT)
    return made


def volume(host: str, size_bytes: int, **fields: Any) -> Volume:
    """Return a volume's record."""
    identity = fields.pop("id", str(uuid.uuid4()))
    defaults: dict[str, Any] = {"name": "v", "status": VolumeStatus.AVAILABLE}
    return Volume(id=identity, size_bytes=size_bytes, host=host, **(defaults | fields))
