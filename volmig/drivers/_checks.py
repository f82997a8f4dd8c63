"""What a driver that keeps raw files checks before it touches one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from volmig import errors
from volmig.drivers import _syscalls

if TYPE_CHECKING:
    from volmig.model import Volume


def require_size(volume: Volume, actual: int, location: Path | str) -> None:
    """Refuse an object that is not as large as recorded."""
    if actual != volume.size_bytes:
        raise errors.VolumeSizeMismatch(volume=volume.id, recorded=volume.size_bytes, actual=actual, location=location)


def require_unlocked(volume: Volume, fd: int) -> None:
    """Refuse an open file that somebody has locked."""
    holder = _syscalls.lock_holder(fd)
    if holder:
        raise errors.VolumeInUse(volume=volume.id, users=holder)


def require_raw(volume: Volume, driver: str) -> None:
    """Refuse a volume in another format than raw."""
    if volume.format != "raw":
        raise errors.UnsupportedFormat(
            what=f"Volume {volume.id}", format=volume.format, reason=f"the driver {driver!r} keeps raw volumes only"
        )
