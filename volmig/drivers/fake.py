"""The driver ``fake``: a backend for tests, with real bytes and with any failure on demand.

Volumes live in memory, or with ``fake_directory`` in files that outlive the process. What can go wrong is described in
:mod:`volmig.drivers._fake_faults`; the option ``fake_faults`` sets faults from the start, and ``driver.faults``
changes them on the running driver. ``driver.calls`` lists the calls so far.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Concatenate, ParamSpec, TypeVar, cast

from oslo_config import cfg

from volmig import errors
from volmig.drivers import _checks, _directory, _fake_snapshots
from volmig.drivers._fake_faults import FaultPlan
from volmig.drivers._fake_handle import FakeHandle
from volmig.drivers._fake_objects import DirectoryObjects, MemoryObjects, Objects
from volmig.drivers.base import (
    Capability,
    ConnectionInfo,
    ConnectorProperties,
    MigrationHost,
    PoolStats,
    StoredObject,
    VolumeDriver,
    VolumeStats,
    VolumeUpdate,
)
from volmig.model import PoolAddress, Volume

if TYPE_CHECKING:
    from volmig.model import RequestContext

P = ParamSpec("P")
R = TypeVar("R")

_POOL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_ALWAYS = frozenset({Capability.RENAME, Capability.FILE_MODE, Capability.MANAGE, Capability.LIST, Capability.SNAPSHOTS})
_GARBAGE_BYTES = 64 * 1024


def scripted(
    method: Callable[Concatenate[FakeDriver, P], R],
) -> Callable[Concatenate[FakeDriver, P], R]:
    """Record each call of a contract's method, and let the faults at it."""

    @functools.wraps(method)
    def wrapper(self: FakeDriver, /, *args: P.args, **kwargs: P.kwargs) -> R:
        volumes = (value for value in (*args, *kwargs.values()) if isinstance(value, Volume))
        self.calls.append((method.__name__, next((volume.id for volume in volumes), None)))
        return self.faults.run(method.__name__, lambda: method(self, *args, **kwargs))

    return wrapper


class FakeDriver(VolumeDriver):
    """A backend of real bytes that fails when it is told to.

    What it promises depends on its options: without ``fake_zeroed`` new volumes hold garbage, and with
    ``fake_connection = handle`` there is no path to a volume. Its pools are thin, but promise no more than they hold.
    Volumes in memory have the path of a descriptor of this process, which is stale once the volume is deleted.
    """

    capabilities = _ALWAYS | {
        Capability.ZEROED_ON_CREATE,
        Capability.SPARSE,
        Capability.NATIVE_MIGRATION,
        Capability.LOCAL_PATH,
    }
    """What it can promise; each object has its own set, by its options."""
    vendor_name = "volmig"
    driver_version = "1.0"

    def __init__(self, *, host: str, backend: str, options: Mapping[str, Any]) -> None:
        super().__init__(host=host, backend=backend, options=options)
        self.faults = FaultPlan(options["fake_faults"] or (), group=backend)
        self.calls: list[tuple[str, str | None]] = []
        """The calls so far, as (method, id of the volume or None)."""
        self.down_reason = "fake_down is set" if options["fake_down"] else ""
        """Why the backend is out of service; may be changed at any time."""
        self.types: set[str] = set()
        """The types that it can give a volume in place; may be changed at any time."""
        self._zeroed = bool(options["fake_zeroed"])
        self._by_path = options["fake_connection"] == "path"
        self._pools: tuple[str, ...] = tuple(options["fake_pools"] or ())
        self._room = threading.Lock()
        self.capabilities = frozenset(self._promises())
        root = options["fake_directory"]
        self._objects: Objects = (
            DirectoryObjects(root=Path(root), backend=backend, pools=self._pools)
            if root
            else MemoryObjects(host=host, backend=backend, pools=self._pools)
        )

    def _promises(self) -> Iterator[Capability]:
        yield from _ALWAYS
        if self._zeroed:
            yield from (Capability.ZEROED_ON_CREATE, Capability.SPARSE)
        if self.options["fake_native_migration"]:
            yield Capability.NATIVE_MIGRATION
        if self._by_path:
            yield Capability.LOCAL_PATH

    @staticmethod
    def get_driver_options() -> Sequence[cfg.Opt]:
        return (
            cfg.ListOpt("fake_pools", default=["pool-a", "pool-b"], help="Names of the pools."),
            cfg.IntOpt("fake_capacity_bytes", default=1024**4, min=1, help="Capacity of each pool in bytes."),
            cfg.StrOpt(
                "fake_directory",
                help="Absolute path of a directory that keeps the volumes as files; without it they are in memory.",
            ),
            cfg.BoolOpt(
                "fake_native_migration",
                default=True,
                help="Move volumes between pools, and to fake backends with the same fake_directory.",
            ),
            cfg.StrOpt(
                "fake_connection",
                default="path",
                choices=["path", "handle"],
                help="Whether volumes are reached by a path, or only by file-like handles.",
            ),
            cfg.BoolOpt("fake_zeroed", default=True, help="New volumes read as zeroes; else they hold garbage."),
            cfg.BoolOpt("fake_read_only", default=False, help="Make no new volumes."),
            cfg.BoolOpt("fake_down", default=False, help="Be out of service."),
            cfg.ListOpt(
                "fake_faults", default=[], help="Faults, as METHOD[@N]:ACTION[=ARGUMENT]; see the driver's guide."
            ),
        )

    def close(self) -> None:
        """Give back the memory; volumes in memory are gone then."""
        self._objects.close()

    def add_foreign(self, pool: str, name: str, data: bytes) -> None:
        """Put an object there that volmig did not make, for tests of ``manage_existing``."""
        self._objects.create(pool, _directory.plain_name(name), len(data), lambda fd: _write_at(fd, data, 0))

    # --- life of the backend ------------------------------------------------------------------

    @scripted
    def do_setup(self, ctxt: RequestContext) -> None:
        self._check_options()
        self.storage_identity = self._objects.setup(self.storage_identity)

    @scripted
    def check_for_setup_error(self) -> None:
        self._check_options()

    def _check_options(self) -> None:
        if not self._pools or not all(_POOL_NAME.fullmatch(pool) for pool in self._pools):
            raise self._option_invalid("fake_pools", f"{self._pools!r} are not names of pools")
        if len(set(self._pools)) != len(self._pools):
            raise self._option_invalid("fake_pools", "a name is there twice")
        root = self.options["fake_directory"]
        if root and not Path(root).is_absolute():
            raise self._option_invalid("fake_directory", f"{root!r} is not an absolute path")

    @scripted
    def get_volume_stats(self, refresh: bool = False) -> VolumeStats:
        stats = VolumeStats(
            volume_backend_name=self.backend,
            vendor_name=self.vendor_name,
            driver_version=self.driver_version,
            storage_protocol="local",
            pools=[self._pool_stats(pool) for pool in self._pools],
        )
        if self.down_reason:
            stats["down_reason"] = self.down_reason
        return stats

    def _pool_stats(self, pool: str) -> PoolStats:
        capacity = self.options["fake_capacity_bytes"]
        provisioned, allocated = self._objects.usage(pool)
        return PoolStats(
            pool_name=pool,
            total_capacity_bytes=capacity,
            free_capacity_bytes=max(0, capacity - allocated),
            provisioned_capacity_bytes=provisioned,
            reserved_percentage=0,
            max_over_subscription_ratio=1.0,
            thin_provisioning=True,
            location_info=self._objects.location_info(),
            read_only=bool(self.options["fake_read_only"]),
            limits={},
        )

    # --- life of a volume ---------------------------------------------------------------------

    @scripted
    def create_volume(self, volume: Volume) -> VolumeUpdate | None:
        pool, name = self._place(volume)
        _checks.require_raw(volume, "fake")
        wrong = self.faults.in_this_call("wrong_size")
        size = volume.size_bytes if wrong is None else max(0, volume.size_bytes + int(wrong.number))
        with self._room:
            if self._objects.size_of(self.backend, pool, name) is None:
                if self.options["fake_read_only"]:
                    raise errors.DestinationReadOnly(pool=volume.host, reason="fake_read_only is set")
                self._require_room(pool, size)
                self._objects.create(pool, name, size, lambda fd: self._soil(fd, 0, size))
                return None
        self._require_size(volume, self.backend, pool, name)
        return None

    @scripted
    def delete_volume(self, volume: Volume) -> None:
        self._objects.remove(*self._place(volume))

    @scripted
    def identify_object(self, volume: Volume) -> str | None:
        pool, name = self._place(volume)
        try:
            return self._objects.identify(pool, name)
        except FileNotFoundError as exc:
            raise self._missing(volume, pool, name) from exc

    @scripted
    def delete_object(self, volume: Volume, identity: str | None) -> None:
        if identity is None:
            self.delete_volume(volume)
        else:
            self._objects.remove_this(*self._place(volume), identity)

    @scripted
    def list_objects(self, pool: str) -> Sequence[StoredObject]:
        place = self._pool(self.address(pool))
        return [_directory.stored_object(name, size) for name, size in sorted(self._objects.sizes(place).items())]

    @scripted
    def extend_volume(self, volume: Volume, new_size_bytes: int) -> None:
        pool, name = self._place(volume)
        with self._room:
            present = self._objects.size_of(self.backend, pool, name)
            if present is None:
                raise self._missing(volume, pool, name)
            if present == new_size_bytes:
                return
            if new_size_bytes < present:
                raise errors.SizeTooSmall(volume=volume.id, present=present, wanted=new_size_bytes)
            self._require_size(volume, self.backend, pool, name)
            self._require_room(pool, new_size_bytes - present)
            self._objects.enlarge(pool, name, new_size_bytes)
        fd = self._objects.open(pool, name, os.O_RDWR)
        try:
            self._soil(fd, present, new_size_bytes)
        finally:
            os.close(fd)

    @scripted
    def volume_exists(self, volume: Volume) -> bool:
        return self._objects.size_of(self.backend, *self._place(volume)) is not None

    @scripted
    def initialize_connection(self, volume: Volume, connector: ConnectorProperties) -> ConnectionInfo:
        pool, name = self._place(volume)
        _checks.require_raw(volume, "fake")
        self._require_size(volume, self.backend, pool, name)
        if not self._by_path:
            return ConnectionInfo(driver_volume_type="handle", data={"format": "raw"})
        data = {"device_path": self._objects.path(pool, name), "format": "raw"}
        return ConnectionInfo(driver_volume_type="local", data=data)

    @scripted
    def terminate_connection(self, volume: Volume, connector: ConnectorProperties) -> None:
        self._place(volume)

    @scripted
    def open_volume(self, volume: Volume, mode: str) -> BinaryIO:
        if mode not in {"rb", "r+b"}:
            raise errors.RequestInvalid(what=f"the mode {mode!r}", reason="it must be 'rb' or 'r+b'")
        pool, name = self._place(volume)
        self._require_size(volume, self.backend, pool, name)
        fd = self._objects.open(pool, name, os.O_RDONLY if mode == "rb" else os.O_RDWR)
        return cast(BinaryIO, FakeHandle(fd, mode=mode, faults=self.faults))

    # --- migration ----------------------------------------------------------------------------

    @scripted
    def migrate_volume(
        self, ctxt: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate | None]:
        pool, name = self._place(volume)
        address = self._destination(host)
        if address is None:
            return False, None
        if (address.backend, address.pool) == (self.backend, pool):
            raise errors.SamePool(volume=volume.id, pool=host["host"])
        new_name = _directory.volume_name(volume.backend_id)
        if not self._is_moved(volume, host, address, (name, new_name)):
            if host["capabilities"].get("read_only"):
                raise errors.DestinationReadOnly(pool=host["host"], reason="it accepts no new volumes")
            self._objects.move(pool, name, address.backend, address.pool, new_name)
        return True, VolumeUpdate(_name_id=volume.name_id, provider_location=None, provider_id=None)

    @scripted
    def recover_migration(
        self, ctxt: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate | None]:
        pool, name = self._place(volume)
        address = self._destination(host)
        if address is None:
            self._require_size(volume, self.backend, pool, name)
            return False, None
        if self._is_moved(volume, host, address, (name, _directory.volume_name(volume.backend_id))):
            return True, VolumeUpdate(_name_id=volume.name_id, provider_location=None, provider_id=None)
        return False, None

    def _destination(self, host: MigrationHost) -> PoolAddress | None:
        address = PoolAddress.parse(host["host"])
        reachable = (
            self.options["fake_native_migration"]
            and address.host == self.host
            and host["capabilities"].get("location_info") == self._objects.location_info()
            and self._objects.has_pool(address.backend, address.pool)
        )
        return address if reachable else None

    def _is_moved(self, volume: Volume, host: MigrationHost, address: PoolAddress, names: tuple[str, str]) -> bool:
        pool = PoolAddress.parse(volume.host).pool
        here = self._objects.size_of(self.backend, pool, names[0])
        there = self._objects.size_of(address.backend, address.pool, names[1])
        if (here is None) == (there is None):
            raise errors.LocationDoubtful(
                volume=volume.id,
                source=volume.host,
                destination=host["host"],
                reason="it is in neither place" if here is None else "there is an object in both places",
            )
        if there is None:
            self._require_size(volume, self.backend, pool, names[0])
        else:
            _checks.require_size(volume, there, f"its object in {host['host']}")
        return there is not None

    @scripted
    def update_migrated_volume(
        self, ctxt: RequestContext, volume: Volume, new_volume: Volume, original_volume_status: str
    ) -> VolumeUpdate:
        pool, name = self._place(new_volume)
        final_name = _directory.volume_name(volume.id)
        final = VolumeUpdate(_name_id=None, provider_location=None, provider_id=None)
        if self._objects.size_of(self.backend, pool, name) is None:  # renamed already, or lost
            if self._objects.size_of(self.backend, pool, final_name) is None:
                raise self._missing(new_volume, pool, name)
            self._require_size(new_volume, self.backend, pool, final_name)
        elif name != final_name:
            try:
                self._objects.move(pool, name, self.backend, pool, final_name)
            except FileExistsError:
                return VolumeUpdate(_name_id=new_volume.backend_id, provider_location=None, provider_id=None)
        return final

    # --- snapshots and types ------------------------------------------------------------------

    @scripted
    def create_snapshot(self, volume: Volume, snapshot_id: str) -> None:
        pool, name = self._place(volume)
        try:
            _fake_snapshots.make(self._objects, pool, name, snapshot_id)
        except FileNotFoundError as exc:
            raise self._missing(volume, pool, name) from exc

    @scripted
    def delete_snapshot(self, volume: Volume, snapshot_id: str) -> None:
        pool, _ = self._place(volume)
        _fake_snapshots.remove(self._objects, pool, snapshot_id)

    @scripted
    def retype(self, ctxt: RequestContext, volume: Volume, new_type: str) -> tuple[bool, VolumeUpdate | None]:
        self._place(volume)
        return (True, VolumeUpdate()) if new_type in self.types else (False, None)

    # --- taking over present objects ----------------------------------------------------------

    @scripted
    def manage_existing_get_size(self, volume: Volume, existing_ref: Mapping[str, str]) -> int:
        return self._foreign(volume, existing_ref)[1]

    @scripted
    def manage_existing(self, volume: Volume, existing_ref: Mapping[str, str]) -> VolumeUpdate | None:
        name, _ = self._foreign(volume, existing_ref)
        self._require_size(volume, self.backend, PoolAddress.parse(volume.host).pool, name)
        return VolumeUpdate(provider_id=name)

    @scripted
    def unmanage(self, volume: Volume) -> None:
        self._place(volume)

    def _foreign(self, volume: Volume, existing_ref: Mapping[str, str]) -> tuple[str, int]:
        reference = str(existing_ref.get("source-name", ""))
        pool, _ = self._place(volume)
        try:
            name = _directory.plain_name(reference)
            size = self._objects.size_of(self.backend, pool, name)
        except errors.UnsafePath as exc:
            raise errors.NotManageable(reference=repr(reference), reason=exc.fields["reason"]) from exc
        if not size:
            raise errors.NotManageable(reference=repr(reference), reason=f"there is no such object in {volume.host}")
        return name, size

    # --- shared -------------------------------------------------------------------------------

    def _place(self, volume: Volume) -> tuple[str, str]:
        """Return the pool and the name of the object of *volume*, when the backend is in service."""
        return self._pool(volume.host), _directory.object_name(volume)

    def _pool(self, host: str) -> str:
        """Return the name of a pool of this backend, when that is in service."""
        if self.down_reason:
            raise errors.BackendDown(backend=self.backend, reason=self.down_reason)
        address = PoolAddress.parse(host)
        if address.backend != self.backend or address.pool not in self._pools:
            raise errors.PoolNotFound(backend=self.backend, pool=host, known=", ".join(self._pools))
        return address.pool

    def _require_size(self, volume: Volume, backend: str, pool: str, name: str) -> None:
        actual = self._objects.size_of(backend, pool, name)
        if actual is None:
            raise self._missing(volume, pool, name)
        _checks.require_size(volume, actual, f"{name} in {pool}")

    def _require_room(self, pool: str, needed: int) -> None:
        provisioned, _ = self._objects.usage(pool)
        if provisioned + needed > self.options["fake_capacity_bytes"]:
            raise errors.DiskFull(path=self.address(pool), offset=self.options["fake_capacity_bytes"] - provisioned)

    def _missing(self, volume: Volume, pool: str, name: str) -> errors.VolumeObjectMissing:
        return errors.VolumeObjectMissing(volume=volume.id, location=f"{name} in {self.address(pool)}")

    def _soil(self, fd: int, start: int, end: int) -> None:
        """Fill new bytes with garbage where the driver does not promise zeroes, or lies about it."""
        if self._zeroed and self.faults.in_this_call("garbage") is None:
            return
        garbage = hashlib.shake_128(f"{start}-{end}".encode()).digest(_GARBAGE_BYTES)
        for offset in range(start, end, _GARBAGE_BYTES):
            _write_at(fd, garbage[: end - offset], offset)

    def _option_invalid(self, option: str, reason: str) -> errors.ConfigOptionInvalid:
        return errors.ConfigOptionInvalid(
            option=option, group=self.backend, source="the backend's options", reason=reason
        )


def _write_at(fd: int, data: bytes, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
