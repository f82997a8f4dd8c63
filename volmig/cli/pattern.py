"""Data for a trial volume that gives away every kind of copying error.

Each piece of data depends on its offset, so that a piece in a wrong place is seen; between them lie holes, written
zeroes, pieces shorter than any block, and an end that is not a multiple of one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO

BLOCK_BYTES = 1024 * 1024
_PIECE_BYTES = 4096 + 7
_KINDS = "ddddhhzhpphhdhph"
"""What block *n* holds, over and over: data, a hole, written zeroes, or small pieces of data in a hole."""


def kind_of(index: int) -> str:
    """Return what the block of that index holds: ``d``, ``h``, ``z`` or ``p``."""
    return _KINDS[index % len(_KINDS)]


def block(index: int, length: int) -> bytes:
    """Return the content of the block of that index, cut to *length*."""
    kind = kind_of(index)
    if kind == "d":
        return _data(index, 0, length)
    content = bytearray(length)
    if kind == "p":
        for start in range(5000 + index % 1000, length - _PIECE_BYTES, 256 * 1024):
            content[start : start + _PIECE_BYTES] = _data(index, start, _PIECE_BYTES)
    return bytes(content)


def _data(index: int, start: int, length: int) -> bytes:
    return hashlib.shake_128(f"volmig demo {index} {start}".encode()).digest(length)


def blocks(size_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, content) of each block of a volume; the last one ends with data."""
    for index, offset in enumerate(range(0, size_bytes, BLOCK_BYTES)):
        length = min(BLOCK_BYTES, size_bytes - offset)
        content = block(index, length)
        if offset + length == size_bytes:
            tail = min(length, 513)
            content = content[: length - tail] + _data(index, length - tail, tail)
        yield offset, content


def write(volume: BinaryIO, size_bytes: int) -> None:
    """Write the pattern over an empty volume; its holes are left as they are."""
    for offset, content in blocks(size_bytes):
        kind = kind_of(offset // BLOCK_BYTES)
        if kind in "dz":
            _write_at(volume, offset, content)
        else:
            for start in range(0, len(content), 4096):
                page = content[start : start + 4096]
                if any(page):
                    _write_at(volume, offset + start, page)
    os.fsync(volume.fileno())


def _write_at(volume: BinaryIO, offset: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(volume.fileno(), view, offset)
        view, offset = view[written:], offset + written


def first_difference(volume: BinaryIO, size_bytes: int) -> int | None:
    """Return the offset of the first byte that is not the pattern's, reading the volume itself; None when all are."""
    volume.seek(0)
    for offset, expected in blocks(size_bytes):
        actual = volume.read(len(expected))
        if actual != expected:
            for position, byte in enumerate(expected):
                if position >= len(actual) or actual[position] != byte:
                    return offset + position
    if volume.read(1):
        return size_bytes
    return None


def digest(size_bytes: int) -> str:
    """Return the SHA-256 of the pattern, computed without reading any volume."""
    total = hashlib.sha256()
    for _, content in blocks(size_bytes):
        total.update(content)
    return total.hexdigest()
