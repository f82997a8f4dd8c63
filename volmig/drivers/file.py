"""The driver ``file``: volumes are raw, sparse, regular files in a directory; no privileges are needed.

Several pools are several sub-directories. Between directories of one file system a volume moves by being renamed.
The driver is honest about its limits: it knows raw data only, and it does not see who uses a file that is not locked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from oslo_config import cfg

from volmig import errors
from volmig.drivers import _checks, _directory, _gone
from volmig.drivers._directory import OpenDirectory
from volmig.drivers._file_move import FileMove
from volmig.drivers._manage import Adoption
from volmig.drivers._storage import Storage, VolumeDirectory
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
from volmig.model import PoolAddress

if TYPE_CHECKING:
    from volmig.model import RequestContext, Volume

_POOL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


class FileDriver(VolumeDriver):
    """Keeps each volume as the file ``volume-<id>`` in the directory of its pool.

    * A new volume appears under its name only when it is whole and durable.
    * Nothing is ever replaced: a name that is taken is an error, or left alone.
    * Each directory has a marker that names its backend and, by ``storage_identity``, its storage. So two backends do
      not share one and, once the identity is on record, an empty mount point does not pass for a pool without volumes.
    * ``create_volume`` of a volume that is there succeeds without looking at its data: it reads as zeroes when, as
      the contract has it, the repetition comes before anything was written.
    """

    capabilities = frozenset(
        {
            Capability.ZEROED_ON_CREATE,
            Capability.SPARSE,
            Capability.NATIVE_MIGRATION,
            Capability.RENAME,
            Capability.LOCAL_PATH,
            Capability.FILE_MODE,
            Capability.MANAGE,
            Capability.LIST,
        }
    )
    vendor_name = "volmig"
    driver_version = "1.0"

    def __init__(self, *, host: str, backend: str, options: Mapping[str, Any]) -> None:
        super().__init__(host=host, backend=backend, options=options)
        self._thick = bool(options["file_fallocate"])
        if self._thick:  # this one object promises less than its class
            self.capabilities = type(self).capabilities - {Capability.SPARSE}
        self._storage = Storage(
            backend=backend, base=Path(options["file_directory"] or ""), pools=tuple(options["file_pools"] or ())
        )
        self._directories = self._marked_with(None)

    def _marked_with(self, identity: str | None) -> dict[str, VolumeDirectory]:
        pools = self._storage.pools or (self.backend,)
        return {pool: self._storage.directory(pool, storage=identity) for pool in pools}

    @staticmethod
    def get_driver_options() -> Sequence[cfg.Opt]:
        return (
            cfg.StrOpt("file_directory", required=True, help="Absolute path of the directory that holds the volumes."),
            cfg.ListOpt(
                "file_pools",
                default=[],
                help="Names of sub-directories, each a pool; they are made when missing. Without any, the directory "
                "itself is the one pool, named as the backend.",
            ),
            cfg.IntOpt(
                "reserved_percentage",
                default=0,
                min=0,
                max=100,
                help="Part of the file system's capacity, in per cent, that new volumes leave free.",
            ),
            cfg.FloatOpt(
                "max_over_subscription_ratio",
                default=1.0,
                min=1.0,
                help="How many times its capacity a pool may promise to sparse volumes.",
            ),
            cfg.BoolOpt("file_read_only", default=False, help="Make no new volumes here; present ones stay usable."),
            cfg.BoolOpt("file_fallocate", default=False, help="Allocate all of a volume's room when it is made."),
        )

    # --- life of the backend ------------------------------------------------------------------

    def do_setup(self, ctxt: RequestContext) -> None:
        self._check_options()
        self.storage_identity = self._storage.prepare(self.storage_identity)
        self._directories = self._marked_with(self.storage_identity)

    def check_for_setup_error(self) -> None:
        self._check_options()
        for directory in self._directories.values():
            directory.check()

    def _check_options(self) -> None:
        base = self.options["file_directory"]
        if not base:
            raise self._option_invalid("file_directory", "it is not set")
        if not Path(base).is_absolute():
            raise self._option_invalid("file_directory", f"{base!r} is not an absolute path")
        pools = self.options["file_pools"] or ()
        for name in pools:
            if not _POOL_NAME.fullmatch(name):
                raise self._option_invalid(
                    "file_pools",
                    f"{name!r} is not a pool's name: letters, digits, '_', '-' and '.', not beginning with '-' or '.'",
                )
        if len(set(pools)) != len(pools):
            raise self._option_invalid("file_pools", "a name is there twice")

    def get_volume_stats(self, refresh: bool = False) -> VolumeStats:
        pools: list[PoolStats] = []
        reasons: list[str] = []
        for name, directory in self._directories.items():
            try:
                with directory.opened() as opened:
                    pools.append(self._pool_stats(name, opened))
            except errors.BackendDown as exc:
                reasons.append(exc.fields["reason"])
                pools.append(
                    PoolStats(pool_name=name, total_capacity_bytes=0, free_capacity_bytes=0, read_only=True)
                    | self._fixed_pool_stats(location_info="")
                )
        stats = VolumeStats(
            volume_backend_name=self.backend,
            vendor_name=self.vendor_name,
            driver_version=self.driver_version,
            storage_protocol="local",
            pools=pools,
        )
        if len(reasons) == len(pools):  # while one pool is left, the backend serves that one
            stats["down_reason"] = "; ".join(reasons)
        return stats

    def _pool_stats(self, name: str, opened: OpenDirectory) -> PoolStats:
        room = os.fstatvfs(opened.fd)
        # Every visible file counts: the driver cannot tell an adopted volume from a stranger's file, and to
        # promise too little is the safe side.
        provisioned, _ = opened.usage()
        return PoolStats(
            pool_name=name,
            total_capacity_bytes=room.f_blocks * room.f_frsize,
            free_capacity_bytes=room.f_bavail * room.f_frsize,
            provisioned_capacity_bytes=provisioned,
            read_only=bool(self.options["file_read_only"] or room.f_flag & os.ST_RDONLY),
        ) | self._fixed_pool_stats(location_info=f"file:{self.host}:{self.storage_identity}:{opened.path}")

    def _fixed_pool_stats(self, *, location_info: str) -> PoolStats:
        return PoolStats(
            reserved_percentage=self.options["reserved_percentage"],
            max_over_subscription_ratio=self.options["max_over_subscription_ratio"],
            thin_provisioning=not self._thick,
            location_info=location_info,
            limits={},
        )

    # --- life of a volume ---------------------------------------------------------------------

    def create_volume(self, volume: Volume) -> VolumeUpdate | None:
        _checks.require_raw(volume, "file")
        if volume.provider_id is not None:
            # Else deleting a failed copy of an adopted volume could hit a stranger's file of that name.
            raise errors.InternalError(reason=f"volume {volume.id} is to be made, but has the provider_id of another")
        name = _directory.object_name(volume)
        with self._directory(volume.host).opened() as opened:
            if opened.entry(name) is None:
                if self.options["file_read_only"]:
                    raise errors.DestinationReadOnly(pool=volume.host, reason="file_read_only is set")
                try:
                    opened.create(name, volume.size_bytes, thick=self._thick)
                except FileExistsError:  # somebody made it meanwhile: judged like one that was there before
                    self._require_size(volume, opened, name)
            else:
                self._require_size(volume, opened, name)
        return None

    def delete_volume(self, volume: Volume) -> None:
        name = _directory.object_name(volume)
        with self._directory(volume.host).opened() as opened:
            if opened.entry(name) is None:
                return
            try:
                fd = opened.open(name, os.O_RDONLY)
            except FileNotFoundError:  # somebody else has deleted it meanwhile
                return
            try:
                _checks.require_unlocked(volume, fd)
            finally:
                os.close(fd)
            opened.remove(name)

    def identify_object(self, volume: Volume) -> str | None:
        name = _directory.object_name(volume)
        with self._directory(volume.host).opened() as opened:
            try:
                return _gone.identify(opened, name)
            except FileNotFoundError as exc:
                raise errors.VolumeObjectMissing(volume=volume.id, location=opened.path / name) from exc

    def delete_object(self, volume: Volume, identity: str | None) -> None:
        if identity is None:
            self.delete_volume(volume)
            return
        name = _directory.object_name(volume)
        with self._directory(volume.host).opened() as opened:
            _gone.remove(opened, name, identity, lambda fd: _checks.require_unlocked(volume, fd))

    def list_objects(self, pool: str) -> Sequence[StoredObject]:
        with self._directory(self.address(pool)).opened() as opened:
            return [_directory.stored_object(name, size) for name, size in sorted(opened.files().items())]

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> None:
        _checks.require_raw(volume, "file")
        name = _directory.object_name(volume)
        with self._directory(volume.host).opened() as opened:
            fd = self._open_file(volume, opened, name, os.O_RDWR)
            try:
                present = os.fstat(fd).st_size
                if present == new_size_bytes:
                    return
                if new_size_bytes < present:
                    raise errors.SizeTooSmall(volume=volume.id, present=present, wanted=new_size_bytes)
                _checks.require_size(volume, present, opened.path / name)
                _directory.enlarge(fd, new_size_bytes, path=opened.path / name, thick=self._thick)
            finally:
                os.close(fd)

    def volume_exists(self, volume: Volume) -> bool:
        name = _directory.object_name(volume)
        with self._directory(volume.host).opened() as opened:
            return opened.entry(name) is not None

    def initialize_connection(self, volume: Volume, connector: ConnectorProperties) -> ConnectionInfo:
        os.close(self._open_checked(volume, os.O_RDONLY))
        path = self._directory(volume.host).path / _directory.object_name(volume)
        return ConnectionInfo(driver_volume_type="local", data={"device_path": str(path), "format": "raw"})

    def terminate_connection(self, volume: Volume, connector: ConnectorProperties) -> None:
        """Nothing is held for a connection."""

    def open_volume(self, volume: Volume, mode: str) -> BinaryIO:
        if mode not in {"rb", "r+b"}:
            raise errors.RequestInvalid(what=f"the mode {mode!r}", reason="it must be 'rb' or 'r+b'")
        fd = self._open_checked(volume, os.O_RDONLY if mode == "rb" else os.O_RDWR)
        return cast(BinaryIO, os.fdopen(fd, mode, buffering=0))

    # --- migration ----------------------------------------------------------------------------

    def migrate_volume(
        self, ctxt: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate | None]:
        _checks.require_raw(volume, "file")
        destination = self._destination(host)
        if destination is None:
            return False, None
        with self._directory(volume.host).opened() as source, destination.opened() as target:
            if os.fstat(source.fd).st_dev != os.fstat(target.fd).st_dev:
                return False, None
            if os.path.sameopenfile(source.fd, target.fd):
                raise errors.SamePool(volume=volume.id, pool=host["host"])
            move = _file_move(volume, host, source, target)
            if move.is_done():
                return True, _moved(volume)
            if host["capabilities"].get("read_only") or self._is_own_read_only(destination):
                raise errors.DestinationReadOnly(pool=host["host"], reason="it accepts no new volumes")
            return (True, _moved(volume)) if move.carry_out() else (False, None)

    def recover_migration(
        self, ctxt: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate | None]:
        destination = self._destination(host)
        if destination is None:
            # This driver never moved it there; what remains to be known is that the source is whole.
            os.close(self._open_checked(volume, os.O_RDONLY))
            return False, None
        with self._directory(volume.host).opened() as source, destination.opened() as target:
            return (True, _moved(volume)) if _file_move(volume, host, source, target).is_done() else (False, None)

    def _destination(self, host: MigrationHost) -> VolumeDirectory | None:
        """Return the destination's directory; None when it is not one that this driver can rename into."""
        address = PoolAddress.parse(host["host"])
        if (address.host, address.backend) == (self.host, self.backend):
            return self._directories.get(address.pool)
        kind, _, rest = str(host["capabilities"].get("location_info", "")).partition(":")
        where, _, rest = rest.partition(":")
        storage, _, path = rest.partition(":")
        if kind != "file" or where != self.host or not Path(path).is_absolute():
            return None
        directory = VolumeDirectory(backend=address.backend, base=Path(path), storage=storage)
        try:
            with directory.opened():
                return directory
        except errors.BackendDown:  # not there, or not marked as that backend's: not ours to rename into
            return None

    def _is_own_read_only(self, destination: VolumeDirectory) -> bool:
        return bool(self.options["file_read_only"]) and destination.backend == self.backend

    def update_migrated_volume(
        self, ctxt: RequestContext, volume: Volume, new_volume: Volume, original_volume_status: str
    ) -> VolumeUpdate:
        name, final_name = _directory.object_name(new_volume), _directory.volume_name(volume.id)
        final = VolumeUpdate(_name_id=None, provider_location=None, provider_id=None)
        with self._directory(new_volume.host).opened() as opened:
            copy = opened.entry(name)
            if copy is None:  # renamed already, or lost
                self._require_size(new_volume, opened, final_name, missing=opened.path / name)
                opened.sync()
                return final
            if name == final_name:
                return final
            try:
                opened.move(name, opened, final_name)
            except FileExistsError:
                taken = os.stat(final_name, dir_fd=opened.fd, follow_symlinks=False)
                if not os.path.samestat(taken, copy):
                    return VolumeUpdate(_name_id=new_volume.backend_id, provider_location=None, provider_id=None)
                opened.remove(name)  # a rename that stopped between two names
        return final

    # --- taking over present files ------------------------------------------------------------

    def manage_existing_get_size(self, volume: Volume, existing_ref: Mapping[str, str]) -> int:
        with self._adoption(volume, existing_ref).opened() as (_, size_bytes):
            return size_bytes

    def manage_existing(self, volume: Volume, existing_ref: Mapping[str, str]) -> VolumeUpdate | None:
        _checks.require_raw(volume, "file")
        with self._adoption(volume, existing_ref).opened() as (name, size_bytes):
            _checks.require_size(volume, size_bytes, self._directory(volume.host).path / name)
            return VolumeUpdate(provider_id=name)

    def unmanage(self, volume: Volume) -> None:
        """Nothing to do: the file keeps its name and its data."""

    def _adoption(self, volume: Volume, existing_ref: Mapping[str, str]) -> Adoption:
        self._directory(volume.host)  # refuses the pools of others
        return Adoption(
            reference=str(existing_ref.get("source-name", "")),
            pool=PoolAddress.parse(volume.host).pool,
            directories=self._directories,
        )

    # --- shared -------------------------------------------------------------------------------

    def _directory(self, host: str) -> VolumeDirectory:
        address = PoolAddress.parse(host)
        directory = self._directories.get(address.pool)
        if directory is None or address.backend != self.backend:
            raise errors.PoolNotFound(
                backend=self.backend,
                pool=str(address),
                known=", ".join(self.address(name) for name in self._directories),
            )
        return directory

    def _open_checked(self, volume: Volume, flags: int) -> int:
        """Open the file of *volume* when it is as recorded, and locked by nobody."""
        _checks.require_raw(volume, "file")
        name = _directory.object_name(volume)
        with self._directory(volume.host).opened() as opened:
            fd = self._open_file(volume, opened, name, flags)
            try:
                _checks.require_size(volume, os.fstat(fd).st_size, opened.path / name)
                _checks.require_unlocked(volume, fd)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _open_file(self, volume: Volume, opened: OpenDirectory, name: str, flags: int) -> int:
        try:
            return opened.open(name, flags)
        except FileNotFoundError as exc:
            raise errors.VolumeObjectMissing(volume=volume.id, location=opened.path / name) from exc

    def _require_size(self, volume: Volume, opened: OpenDirectory, name: str, *, missing: Path | None = None) -> None:
        found = opened.entry(name)
        if found is None:
            raise errors.VolumeObjectMissing(volume=volume.id, location=missing or opened.path / name)
        _checks.require_size(volume, found.st_size, opened.path / name)

    def _option_invalid(self, option: str, reason: str) -> errors.ConfigOptionInvalid:
        return errors.ConfigOptionInvalid(
            option=option, group=self.backend, source="the backend's options", reason=reason
        )


def _moved(volume: Volume) -> VolumeUpdate:
    return VolumeUpdate(_name_id=volume.name_id, provider_location=None, provider_id=None)


def _file_move(volume: Volume, host: MigrationHost, source: OpenDirectory, target: OpenDirectory) -> FileMove:
    return FileMove(
        volume=volume,
        destination=host["host"],
        source=source,
        name=_directory.object_name(volume),
        target=target,
        new_name=_directory.volume_name(volume.backend_id),
    )
