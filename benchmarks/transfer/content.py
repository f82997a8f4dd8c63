"""A digest of what a file holds that says nothing of holes, made by plain reads and ``hashlib``.

Nothing of volmig is used here: it is the judge of all copies, volmig's too.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK_BYTES = 64 * 1024
READ_BYTES = 16 * BLOCK_BYTES

_ZEROES = bytes(BLOCK_BYTES)


class ContentDigest:
    """Digest of the blocks that are not all zeroes, each with its place; two files that read the same have the same."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, offset: int, block: bytes | memoryview) -> None:
        """Take in one block; every block of a file in order, or all but those of zeroes."""
        if block != _ZEROES[: len(block)]:
            self._hash.update(offset.to_bytes(8, "little"))
            self._hash.update(block)

    def hexdigest(self) -> str:
        """Return the digest."""
        return self._hash.hexdigest()


def digest_of(path: Path, size_bytes: int, check: Callable[[], None]) -> str:
    """Return the digest of what a regular file holds, which must be *size_bytes* long; holes are not read.

    :param check: called often; may raise to give up.
    :raises OSError: when it cannot be read, or has another size.
    """
    digest = ContentDigest()
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        if os.fstat(descriptor).st_size != size_bytes:
            found = os.fstat(descriptor).st_size
            raise OSError(errno.EIO, f"it has {found} bytes and not {size_bytes}", path.name)
        for begin, end in _data_ranges(descriptor, size_bytes):
            for offset in range(begin, end, READ_BYTES):
                check()
                data = memoryview(_read(descriptor, min(READ_BYTES, end - offset), offset))
                for place in range(0, len(data), BLOCK_BYTES):
                    digest.add(offset + place, data[place : place + BLOCK_BYTES])
    return digest.hexdigest()


def _data_ranges(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what may hold data, rounded outward to blocks so that every reader cuts alike."""
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            raise
        stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        start = max(end, start - start % BLOCK_BYTES)
        end = min(size_bytes, -(-stop // BLOCK_BYTES) * BLOCK_BYTES)
        if start < end:
            yield start, end


def _read(descriptor: int, length: int, offset: int) -> bytes:
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, f"it ends at {offset + len(data)}")
        data += more
    return data
