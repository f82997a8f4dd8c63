"""Finding zeroes in memory, and data in files."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable, Iterator

BLOCK_BYTES = 64 * 1024
"""Zeroes are looked for in blocks of this size."""

_ZEROES = bytes(BLOCK_BYTES)
_NO_MAP = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY})
_NO_PUNCH = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EPERM})
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02


def runs(buffer: bytearray, length: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the first *length* bytes of *buffer* as runs of blocks: (start, end, whether it is all zeroes).

    Compares in place, at the speed of memory; a block of data is left at its first byte that is not zero.
    """
    run_start, run_is_zero = 0, False
    for start in range(0, length, BLOCK_BYTES):
        end = min(start + BLOCK_BYTES, length)
        is_zero = buffer.startswith(_ZEROES if end - start == BLOCK_BYTES else _ZEROES[: end - start], start, end)
        if is_zero != run_is_zero:
            if start > run_start:
                yield run_start, start, run_is_zero
            run_start, run_is_zero = start, is_zero
    if length > run_start:
        yield run_start, length, run_is_zero


def data_extents(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of the first *size_bytes* of a file that hold data, as (start, end); the rest are zeroes.

    What does not know its holes (a block device, some file systems) is all data. Moves the position of *fd*.
    """
    offset = 0
    while offset < size_bytes:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            if exc.errno not in _NO_MAP:
                raise
            start = offset
        if start >= size_bytes:
            return
        try:
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size_bytes)
        except OSError as exc:
            # ENXIO: the file was cut at this moment; reading on shows where it ends.
            if exc.errno != errno.ENXIO and exc.errno not in _NO_MAP:
                raise
            end = size_bytes
        if end <= start:
            end = size_bytes
        yield start, end
        offset = end


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    libc = ctypes.CDLL(None, use_errno=True)
    # Where off_t may have 32 bits the function with 64 has its own name.
    function = getattr(libc, "fallocate64", None) or libc.fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return function


def punch_hole(fd: int, offset: int, length: int, before: Callable[[], None]) -> bool:
    """Make *length* bytes of a regular file read as zeroes without taking room; its size stays.

    :param before: called before each attempt; a signal may make more than one of them necessary.
    :returns: whether it was done; False where the file system cannot do it.
    :raises OSError: when it failed.
    """
    while True:
        before()
        if not _fallocate()(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length):
            return True
        number = ctypes.get_errno()
        if number in _NO_PUNCH:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
