"""A driver of the smallest useful kind: each volume is a file in one directory."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from oslo_config import cfg

from volmig import errors
from volmig.drivers import (
    Capability,
    ConnectionInfo,
    ConnectorProperties,
    PoolStats,
    VolumeDriver,
    VolumeStats,
    VolumeUpdate,
)
from volmig.model import PoolAddress, RequestContext, Volume


class ShelfDriver(VolumeDriver):
    """Keeps volumes in ``shelf_directory``; the backend has one pool, named as itself."""

    capabilities = frozenset({Capability.ZEROED_ON_CREATE, Capability.LOCAL_PATH, Capability.RENAME})
    vendor_name = "example"
    driver_version = "1.0"

    @staticmethod
    def get_driver_options() -> Sequence[cfg.Opt]:
        return (cfg.StrOpt("shelf_directory", required=True, help="Absolute path of the directory for the volumes."),)

    # --- the backend --------------------------------------------------------------------------

    def do_setup(self, ctxt: RequestContext) -> None:
        """Nothing to connect to."""

    def check_for_setup_error(self) -> None:
        if not self._directory.is_absolute() or not os.access(self._directory, os.R_OK | os.W_OK | os.X_OK):
            raise errors.BackendSetupFailed(
                backend=self.backend, reason=f"shelf_directory {str(self._directory)!r} cannot be used"
            )

    def get_volume_stats(self, refresh: bool = False) -> VolumeStats:
        room = os.statvfs(self._directory)
        pool = PoolStats(
            pool_name=self.backend,
            total_capacity_bytes=room.f_blocks * room.f_frsize,
            free_capacity_bytes=room.f_bavail * room.f_frsize,
            provisioned_capacity_bytes=self._promised_bytes(),
            thin_provisioning=True,
        )
        return VolumeStats(
            volume_backend_name=self.backend,
            vendor_name=self.vendor_name,
            driver_version=self.driver_version,
            storage_protocol="local",
            pools=[pool],
        )

    # --- a volume -----------------------------------------------------------------------------

    def create_volume(self, volume: Volume) -> VolumeUpdate | None:
        path = self._path(volume)
        if not path.exists():
            # Whole and durable before it has its name: a crash leaves a volume or none, never a part of one.
            fd, new = tempfile.mkstemp(dir=self._directory, prefix=".new-")
            try:
                os.truncate(fd, volume.size_bytes)
                os.fsync(fd)
                os.link(new, path)
                self._sync_names()
            except FileExistsError:
                pass  # made by somebody else meanwhile, and judged below
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise errors.DiskFull(path=path, offset=0) from error
                raise
            finally:
                os.close(fd)
                Path(new).unlink()
        self._require_size(volume, path)
        return None

    def delete_volume(self, volume: Volume) -> None:
        self._path(volume).unlink(missing_ok=True)
        self._sync_names()

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> None:
        path = self._path(volume)
        present = self._size(volume, path)
        if new_size_bytes < present:
            raise errors.SizeTooSmall(volume=volume.id, present=present, wanted=new_size_bytes)
        if new_size_bytes == present:
            return
        self._require_size(volume, path)
        with path.open("r+b") as file:
            file.truncate(new_size_bytes)
            os.fsync(file.fileno())

    def volume_exists(self, volume: Volume) -> bool:
        try:
            self._path(volume).stat()
        except FileNotFoundError:
            return False
        return True  # any other error is raised: a driver that cannot tell must not guess

    def initialize_connection(self, volume: Volume, connector: ConnectorProperties) -> ConnectionInfo:
        path = self._path(volume)
        self._require_size(volume, path)
        return ConnectionInfo(driver_volume_type="local", data={"device_path": str(path), "format": "raw"})

    def terminate_connection(self, volume: Volume, connector: ConnectorProperties) -> None:
        """Nothing is held for a connection."""

    # --- the end of a migration to here -------------------------------------------------------

    def update_migrated_volume(
        self, ctxt: RequestContext, volume: Volume, new_volume: Volume, original_volume_status: str
    ) -> VolumeUpdate:
        copy, final = self._path(new_volume), self._directory / self._name(volume.id)
        renamed = VolumeUpdate(_name_id=None, provider_location=None)
        if copy == final:
            return renamed
        try:
            os.link(copy, final)
        except FileNotFoundError:
            self._require_size(new_volume, final)  # an earlier call did it all, or the copy is lost
            return renamed
        except FileExistsError:
            if not final.samefile(copy):  # another object has the name, so that the copy keeps its own
                return VolumeUpdate(_name_id=new_volume.backend_id, provider_location=None)
        self._sync_names()
        copy.unlink(missing_ok=True)
        self._sync_names()
        return renamed

    # --- shared -------------------------------------------------------------------------------

    @property
    def _directory(self) -> Path:
        return Path(self.options["shelf_directory"] or "")

    def _path(self, volume: Volume) -> Path:
        address = PoolAddress.parse(volume.host)
        if (address.backend, address.pool) != (self.backend, self.backend):
            raise errors.PoolNotFound(backend=self.backend, pool=address.pool, known=self.backend)
        return self._directory / self._name(volume.backend_id)

    def _name(self, backend_id: str) -> str:
        # The id becomes part of a path, and whoever wrote the record may be hostile.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}", backend_id):
            raise errors.UnsafePath(path=f"volume-{backend_id!r}", reason="the id has other characters than a UUID")
        return f"volume-{backend_id}"

    def _size(self, volume: Volume, path: Path) -> int:
        try:
            return path.stat().st_size
        except FileNotFoundError as error:
            raise errors.VolumeObjectMissing(volume=volume.id, location=path) from error

    def _require_size(self, volume: Volume, path: Path) -> None:
        actual = self._size(volume, path)
        if actual != volume.size_bytes:
            raise errors.VolumeSizeMismatch(volume=volume.id, recorded=volume.size_bytes, actual=actual, location=path)

    def _promised_bytes(self) -> int:
        promised = 0
        for path in self._directory.glob("volume-*"):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                promised += path.stat().st_size
        return promised

    def _sync_names(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
