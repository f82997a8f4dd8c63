"""Ends that are paths: regular files and block devices."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from volmig import errors
from volmig.transfer.ends import sparse
from volmig.transfer.ends.base import OpenEnd, describe, reading
from volmig.transfer.ends.identity import identity_of, version_of
from volmig.transfer.ends.pins import is_pinned_by_others, pin, writes

DIRECT_BYTES = 4096
"""Direct I/O is used for requests whose place, length and memory are multiples of this."""

CANNOT_ZERO = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EPERM})
"""What the kernel says when a range cannot be made zero in one way, and another should be tried."""

WRITE_BACK = 1 | 2 | 4
"""Flags of ``sync_file_range``: wait for what is on its way, write, and wait for that."""

NO_SYNC = frozenset(
    {errno.EINVAL, errno.EROFS, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.ESPIPE}
)
"""What a file system says that cannot bring a file to storage, or not one that is open for reading only."""

_CONCURRENCY = 8

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class FileEnd(OpenEnd):
    """A regular file or a block device, opened by its path: once through the cache and, where that can be, past it."""

    concurrency = _CONCURRENCY

    def __init__(self, path: str, flags: int, *, is_destination: bool, sole_writer: bool = False) -> None:
        """Open *path* with the access mode *flags*.

        :param sole_writer: refuse it while requests of an earlier copy may be under way to it.
        :raises volmig.errors.DestinationBusy: when they may be.
        :raises volmig.errors.RequestInvalid: when it is neither a regular file nor a block device.
        :raises volmig.errors.TransferFailed: when it cannot be opened, or its size not be found.
        """
        self.name = path
        self.is_destination = is_destination
        self.direct: int | None = None
        """Descriptor for requests past the cache; None where there is no such thing."""
        self._descriptors: list[int] = []
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        with _opening(path):
            # Before opening, which would wait for somebody to write into a pipe.
            _check_kind(path, Path(path).stat())
            self.buffered = os.open(path, flags | os.O_CLOEXEC)
            """Descriptor for requests through the cache."""
        self._descriptors.append(self.buffered)
        try:
            with _opening(path):
                status = os.fstat(self.buffered)
                _check_kind(path, status)
                self.is_regular = stat.S_ISREG(status.st_mode)
                self.identity = identity_of(self.buffered)
                self._kind = stat.S_IFMT(status.st_mode)
                self._place = _place(status)
                self.size_bytes = status.st_size if self.is_regular else os.lseek(self.buffered, 0, os.SEEK_END)
            if sole_writer:
                _check_sole_writer(self.buffered, path)
            self.direct = _open_direct(self.buffered, flags)
            if self.direct is not None:
                self._descriptors.append(self.direct)
            self.is_pinned = writes(flags) and all(pin(fd) for fd in self._descriptors)
        except BaseException:
            self.close()
            raise
        self._zero_modes = list(sparse.ZERO_MODES)
        if not self.is_regular:
            self.zero_step_bytes = DIRECT_BYTES

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._close_unused()

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[None]:
        # A descriptor that is closed under a thread that hangs would be somebody else's when the thread goes on.
        with self._lock:
            if self._closed:
                raise ValueError("it is closed")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
            self._close_unused()

    def _close_unused(self) -> None:
        with self._lock:
            if self._users or not self._closed:
                return
            descriptors, self._descriptors = self._descriptors, []
        for fd in descriptors:
            os.close(fd)

    def give_up_direct(self) -> None:
        """Use the cache from now on. The descriptor stays open: requests that wait to be made may name it."""
        self.direct = None

    @property
    def zero_mode(self) -> int:
        """Mode of ``fallocate`` by which to make a range zero; 0 when there is none."""
        return self._zero_modes[0] if self._zero_modes else 0

    def next_zero_mode(self, failed: int) -> bool:
        """Take the mode after the one that *failed*, if no other request has done that yet; say if there is one."""
        if self._zero_modes and self._zero_modes[0] == failed:
            self._zero_modes.pop(0)
        return bool(self._zero_modes)

    def extents(self, size_bytes: int, begin_bytes: int = 0) -> Iterator[tuple[int, int]]:
        # Where blocks are smaller than what direct I/O asks for, a little of the holes is read along.
        position = begin_bytes
        with reading(self.name, 0):
            for start, end in sparse.data_extents(self.buffered, size_bytes, begin_bytes):
                first = max(start // DIRECT_BYTES * DIRECT_BYTES, position)
                position = min(-(-end // DIRECT_BYTES) * DIRECT_BYTES, size_bytes)
                if first < position:
                    yield first, position

    def data_bytes(self, size_bytes: int, begin_bytes: int = 0) -> int:
        # Of a file, the room that it takes says it well enough without walking through its map.
        length = size_bytes - begin_bytes
        return min(length, os.fstat(self.buffered).st_blocks * 512) if self.is_regular else length

    def read_some(self, view: memoryview, offset: int) -> int:
        fd = self.direct
        if fd is not None and _is_aligned(view, offset):
            try:
                return os.preadv(fd, [view], offset)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                self.give_up_direct()
        return os.preadv(self.buffered, [view], offset)

    def write_some(self, view: memoryview, offset: int) -> int:
        fd = self.direct
        if fd is not None and _is_aligned(view, offset):
            try:
                return os.pwrite(fd, view, offset)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                self.give_up_direct()
        return os.pwrite(self.buffered, view, offset)

    @property
    def zeroes_cheaply(self) -> bool:
        return bool(self._zero_modes)

    def zero(self, offset: int, length: int) -> bool:
        while mode := self.zero_mode:
            number = sparse.fallocate(self.buffered, mode, offset, length)
            if not number:
                return True
            if number not in CANNOT_ZERO:
                raise OSError(number, os.strerror(number))
            self.next_zero_mode(mode)
        return False

    def flush(self) -> None:
        os.fsync(self.buffered)

    @property
    def is_direct(self) -> bool:
        return self.direct is not None

    def write_back(self, offset: int, length: int) -> None:
        write_back(self.buffered, offset, length)

    def drop_cache(self) -> None:
        self.release_cache(0, 0)

    def release_cache(self, offset: int, length: int) -> None:
        drop_cache(self.buffered, offset, length)

    def version(self) -> tuple[int, ...] | None:
        with reading(self.name, 0):
            return version_of(self.buffered)

    def settle(self) -> None:
        settle(self.name, self.buffered)

    def is_still_in_place(self) -> bool:
        try:
            status = Path(self.name).stat()
        except OSError:
            return False
        return stat.S_IFMT(status.st_mode) == self._kind and self._place == _place(status)


def settle(name: str, fd: int) -> None:
    """Do for an open file what :meth:`OpenEnd.settle` says.

    A page that is dirty in somebody's memory map takes more stores without a trace in the file's times, until it
    is cleaned; some file systems set the times only when they clean it. What waits in the cache of a block device is
    counted only when it is written.
    """
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in NO_SYNC:
            reason = f"bringing earlier writes to storage: {describe(exc)}"
            raise errors.TransferFailed(path=name, offset=0, reason=reason) from exc


def write_back(fd: int, offset: int, length: int) -> None:
    """Bring a range of an open file from the cache to storage (``sync_file_range``), as far as that is possible."""
    if _sync_file_range()(fd, offset, length, WRITE_BACK):
        number = ctypes.get_errno()
        if number not in NO_SYNC:
            raise OSError(number, os.strerror(number))


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).sync_file_range
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function


def drop_cache(fd: int, offset: int = 0, length: int = 0) -> None:
    """Ask the system to forget the clean pages of a part of an open file; of all of it when the length is 0.

    A request only: the system keeps what somebody else has mapped, and the whole of a file that lives in memory.
    """
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def _is_aligned(view: memoryview, offset: int) -> bool:
    if offset % DIRECT_BYTES or len(view) % DIRECT_BYTES or view.readonly:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % DIRECT_BYTES == 0


def _check_sole_writer(fd: int, path: str) -> None:
    if is_pinned_by_others(fd):
        raise errors.DestinationBusy(path=path)


def _open_direct(fd: int, flags: int) -> int | None:
    """Open what *fd* is once more, for direct I/O; None where the system does not have that."""
    try:
        # By the descriptor and not by the path, which may lead elsewhere by now.
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return None


def _place(status: os.stat_result) -> tuple[int, int, int]:
    if stat.S_ISBLK(status.st_mode):
        return (0, 0, status.st_rdev)
    return (status.st_dev, status.st_ino, 0)


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
