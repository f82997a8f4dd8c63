"""Ends that are paths: regular files and block devices."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from volmig import errors
from volmig.transfer import zeroes
from volmig.transfer.ends import OpenEnd, describe, reading, writing

_NO_SYNC = frozenset(
    {errno.EINVAL, errno.EROFS, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM}
)
"""What a file system says that cannot bring a file to storage, or not one that is open for reading only."""

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class FileEnd(OpenEnd):
    """A regular file or a block device, opened by its path."""

    def __init__(self, path: str, flags: int, *, is_destination: bool) -> None:
        """Open *path* with the access mode *flags*.

        :raises volmig.errors.RequestInvalid: when it is neither a regular file nor a block device.
        :raises volmig.errors.TransferFailed: when it cannot be opened, or its size not be found.
        """
        self.name = path
        self.is_destination = is_destination
        with _opening(path):
            # Before opening, which would wait for somebody to write into a pipe.
            _check_kind(path, Path(path).stat())
            self._fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            with _opening(path):
                status = os.fstat(self._fd)
                _check_kind(path, status)
                self._is_regular = stat.S_ISREG(status.st_mode)
                self.identity = _identity(status)
                self.size_bytes = status.st_size if self._is_regular else os.lseek(self._fd, 0, os.SEEK_END)
        except BaseException:
            os.close(self._fd)
            raise
        self._can_punch = self._is_regular

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def extents(self, size_bytes: int) -> Iterator[tuple[int, int]]:
        with reading(self.name, 0):
            yield from zeroes.data_extents(self._fd, size_bytes)

    def read_some(self, view: memoryview, offset: int) -> int:
        return os.preadv(self._fd, [view], offset)

    def write_some(self, view: memoryview, offset: int) -> int:
        return os.pwrite(self._fd, view, offset)

    @property
    def punches(self) -> bool:
        return self._can_punch

    def punch(self, offset: int, length: int, before: Callable[[], None]) -> bool:
        if self._can_punch:
            with writing(self.name, offset):
                self._can_punch = zeroes.punch_hole(self._fd, offset, length, before)
        return self._can_punch

    def flush(self) -> None:
        with writing(self.name, 0):
            os.fsync(self._fd)

    def drop_cache(self) -> None:
        drop_cache(self._fd)

    def version(self) -> tuple[int, int, int] | None:
        with reading(self.name, 0):
            return version_of(self._fd)

    def settle(self) -> None:
        settle(self.name, self._fd)

    def is_still_in_place(self) -> bool:
        try:
            return _identity(Path(self.name).stat()) == self.identity
        except OSError:
            return False


def identity_of(fd: int) -> tuple[str, int, int] | None:
    """Return the identity of an open file or block device, as :attr:`OpenEnd.identity`; None for anything else."""
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return _identity(status)
    return None


def version_of(fd: int) -> tuple[int, int, int] | None:
    """Return what changes when somebody writes to an open regular file; None for anything else."""
    status = os.fstat(fd)
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns) if stat.S_ISREG(status.st_mode) else None


def settle(name: str, fd: int) -> None:
    """Do for an open file what :meth:`OpenEnd.settle` says.

    A page that is dirty in somebody's memory map takes more stores without a trace in the file's times, until it
    is cleaned; some file systems set the times only when they clean it.
    """
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.fsync(fd)
    except OSError as exc:
        if exc.errno not in _NO_SYNC:
            reason = f"bringing earlier writes to storage: {describe(exc)}"
            raise errors.TransferFailed(path=name, offset=0, reason=reason) from exc


def drop_cache(fd: int) -> None:
    """Ask the system to forget the clean pages of an open file.

    A request only: the system keeps what somebody else has mapped, and the whole of a file that lives in memory.
    """
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _identity(status: os.stat_result) -> tuple[str, int, int]:
    if stat.S_ISBLK(status.st_mode):
        return "device", os.major(status.st_rdev), os.minor(status.st_rdev)
    return "file", status.st_dev, status.st_ino


def _check_kind(path: str, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return
    kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
    raise errors.RequestInvalid(what=path, reason=f"it is {kind}, not a regular file or a block device")


@contextlib.contextmanager
def _opening(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as exc:
        raise errors.TransferFailed(path=path, offset=0, reason=f"opening: {describe(exc)}") from exc
