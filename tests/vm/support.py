"""Loop devices and volume groups for tests that have a device mapper; nothing of them is left in the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MIB = 1024**2
EXTENT_BYTES = MIB
"""Extents of the volume groups made here: small ones, so that small volumes do."""
IMAGES = Path("/dev/shm")  # noqa: S108
"""Where loop devices keep their data: memory, since all else in the VM is slower."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A volume group made for tests."""

    name: str
    devices: Sequence[str]
    """Its physical volumes, in the order they were asked for."""
    thin_pools: Sequence[str] = field(default_factory=tuple)

    def device(self, lv: str) -> Path:
        """Return the path of a logical volume's device."""
        return Path("/dev") / self.name / lv


def require_device_mapper() -> None:
    """Fail, loudly, where there is no device mapper: these tests are never skipped."""
    if os.geteuid() != 0 or not Path("/dev/mapper/control").exists():
        pytest.fail("these tests need root and a device mapper: run them in the VM, by `tox -e functional-vm`")


def run(*command: str, check: bool = True, stdin: bytes | None = None) -> str:
    """Run a program and return its output; an error fails the test and shows what it said."""
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)}: status {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="replace")


def new_name(prefix: str = "vmt") -> str:
    """Return a name that no other test uses, fit for a volume group."""
    return f"{prefix}{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def loop_device(size_bytes: int) -> Iterator[str]:
    """Give a loop device on a new sparse file, and take both away in the end."""
    require_device_mapper()
    handle, image = tempfile.mkstemp(prefix="volmig-vm-", suffix=".img", dir=IMAGES)
    try:
        os.truncate(handle, size_bytes)
        os.close(handle)
        device = run("losetup", "--find", "--show", image).strip()
        try:
            yield device
        finally:
            _patiently("losetup", "--detach", device)
    finally:
        Path(image).unlink()


@contextlib.contextmanager
def volume_group(
    name: str | None = None,
    size_bytes: int = 256 * MIB,
    *,
    pvs: int = 1,
    tags: Sequence[str] = (),
    thin_pools: Mapping[str, int] | None = None,
    extent_bytes: int = EXTENT_BYTES,
) -> Iterator[Group]:
    """Give a volume group on loop devices, and take it away with all that is in it.

    :param size_bytes: of each physical volume's device.
    :param tags: tag of each physical volume, in order; without any they have none.
    :param thin_pools: sizes in bytes of the thin pools to make, by name; they hand out chunks of 64 KiB, zeroed.
    """
    name = name or new_name()
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(loop_device(size_bytes)) for _ in range(max(pvs, len(tags)))]
        run("vgcreate", "-q", "-y", "-s", f"{extent_bytes}b", name, *devices)
        stack.callback(remove_group, name)
        for device, tag in zip(devices, tags, strict=False):
            run("pvchange", "-q", "--addtag", tag, device)
        for pool, pool_bytes in (thin_pools or {}).items():
            run(
                *("lvcreate", "-q", "-y", "--type", "thin-pool", "--size", f"{pool_bytes}b", "--chunksize", "64k"),
                *("--poolmetadatasize", "4m", "--zero", "y", "--name", pool, name),
            )
        yield Group(name=name, devices=tuple(devices), thin_pools=tuple(thin_pools or ()))


def remove_group(name: str) -> None:
    """Remove a volume group with all that is in it; succeeds when there is none."""
    if not run("vgs", "--noheadings", "-o", "vg_name", "-S", f'vg_name="{name}"').strip():
        return
    _patiently("vgremove", "-q", "-ff", "-y", name)


def _patiently(*command: str, seconds: float = 20) -> None:
    """Run a program again while it fails: udev may hold a device for a moment."""
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"{' '.join(command)}: status {done.returncode}: {done.stderr.decode(errors='replace')}")
        time.sleep(0.3)


def driver_options(group: Group | str, **changes: Any) -> dict[str, Any]:
    """Return all options of the ``lvm`` driver for a volume group: their defaults, and *changes*."""
    from volmig.drivers.lvm import LvmDriver

    known: dict[str, Any] = {option.dest: option.default for option in LvmDriver.get_driver_options()}
    unknown = set(changes) - set(known)
    if unknown:
        pytest.fail(f"the driver has no options {sorted(unknown)}")
    return known | {"lvm_volume_group": group if isinstance(group, str) else group.name} | changes


def backend_section(backend: str, group: Group | str, **options: Any) -> str:
    """Return the section of a configuration file for a backend with the ``lvm`` driver."""
    lines = [f"[{backend}]", "volume_driver = lvm"]
    lines.append(f"lvm_volume_group = {group if isinstance(group, str) else group.name}")
    lines += [
        f"{name} = {','.join(value) if isinstance(value, list | tuple) else value}" for name, value in options.items()
    ]
    return "\n".join(lines) + "\n\n"


def logical_volumes(group: Group | str) -> list[str]:
    """Return the names of all logical volumes of a group, also the internal ones."""
    name = group if isinstance(group, str) else group.name
    return sorted(run("lvs", "-a", "--noheadings", "-o", "lv_name", name).split())
