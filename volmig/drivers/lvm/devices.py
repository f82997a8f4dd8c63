"""Block devices of logical volumes: held open, and known for certain to be those of the volume that is meant.

A path such as ``/dev/vg/volume-1`` can mean another volume a moment later. While a device is open, LVM cannot remove
its volume nor give its number to another; so what writes to a device opens it first, and then compares what the kernel
says it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NODE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_BLOCK_BYTES: Final = 1024 * 1024


class NotThatVolume(Exception):
    """The device is not, or is no more, that of the volume that was meant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """Finds devices of one host; tests have directories of their own."""

    dev: Path = Path("/dev")
    sys: Path = Path("/sys")
    wait_seconds: float = _NODE_SECONDS

    def path(self, vg: str, lv: str) -> Path:
        """Return where udev puts the device of a volume."""
        return self.dev / vg / lv

    def wait_for(self, path: Path) -> None:
        """Wait until udev has made a device's node. :raises FileNotFoundError: when it does not."""
        deadline = time.monotonic() + self.wait_seconds
        while not path.exists():
            if time.monotonic() > deadline:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            time.sleep(_POLL_SECONDS)

    @contextlib.contextmanager
    def opened(self, path: Path, *, vg_uuid: str, lv_uuid: str, flags: int = os.O_RDWR) -> Iterator[int]:
        """Hold the device of a volume open.

        :raises NotThatVolume: when the path leads to nothing, or to another volume's device.
        """
        try:
            self.wait_for(path)
            fd = os.open(path, flags | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
                raise NotThatVolume(f"{path} is not there") from exc
            raise
        try:
            if self._uuid(fd) != f"LVM-{vg_uuid}{lv_uuid}".replace("-", ""):
                raise NotThatVolume(f"{path} is another volume's device")
            yield fd
        finally:
            os.close(fd)

    def node(self, fd: int) -> Path:
        """Return a path by which another program opens the device that is held open here, and never another one.

        It is gone when this process has closed the device or has died. A kernel's name such as ``/dev/dm-3`` is not:
        a program that outlives this process would find under it the volume that was given the number since.
        """
        return Path(f"/proc/{os.getpid()}/fd/{fd}")

    def _uuid(self, fd: int) -> str:
        try:
            text = (self._sysfs(fd) / "dm" / "uuid").read_text()
        except OSError as exc:
            raise NotThatVolume("it is no device of the device mapper") from exc
        return text.strip().replace("-", "")

    def _sysfs(self, fd: int) -> Path:
        number = os.fstat(fd).st_rdev
        return self.sys / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"


def size_of(fd: int) -> int:
    """Return the size of an open device in bytes."""
    return os.lseek(fd, 0, os.SEEK_END)


@contextlib.contextmanager
def locked(fd: int) -> Iterator[None]:
    """Be the only one that has this device locked, of all processes and threads; waits for it."""
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def is_locked(fd: int) -> bool:
    """Say whether somebody else has the device locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def zero(fd: int, start: int, end: int) -> None:
    """Overwrite a part of an open device with zeroes, durably."""
    block = bytes(min(_BLOCK_BYTES, max(end - start, 0)))
    while start < end:
        start += os.pwrite(fd, block[: end - start], start)
    os.fsync(fd)


def patiently(attempt: Callable[[], bool], *, times: int, pause_seconds: float, pause: Callable[[float], None]) -> bool:
    """Call *attempt* until it succeeds, a few times at most; udev may hold a device open for a moment."""
    for number in range(times):
        if attempt():
            return True
        if number + 1 < times:
            pause(pause_seconds)
    return False
