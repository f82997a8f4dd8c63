"""Holes of files: finding them, and making them."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable, Iterator

_NO_MAP = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY})
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

ZERO_MODES = (_PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE | _KEEP_SIZE)
"""Modes of ``fallocate`` that make a range zero: first by giving its room back, of a block device by unmapping it;
then by any means that the file system or the device has (of a device, what BLKZEROOUT does)."""


def data_extents(fd: int, size_bytes: int, begin_bytes: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file between two places that hold data, as (start, end); the rest are zeroes.

    What does not know its holes (a block device, some file systems) is all data. Moves the position of *fd*.
    """
    offset = begin_bytes
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


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Do ``fallocate`` (Linux); return 0, or the number of the error."""
    return ctypes.get_errno() if _fallocate()(fd, mode, offset, length) else 0


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    libc = ctypes.CDLL(None, use_errno=True)
    # Where off_t may have 32 bits the function with 64 has its own name.
    function = getattr(libc, "fallocate64", None) or libc.fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return function
