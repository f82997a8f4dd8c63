"""What volumes look like: where a source has data, written zeroes and holes; made from a seed, so always the same."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.transfer.content import BLOCK_BYTES, ContentDigest, digest_of

MIB = 1024 * 1024
STEP_BYTES = 2 * MIB
"""Sizes are multiples of this."""
MIN_BYTES = 16 * MIB
EMPTY_FACTOR = 4
"""How many times the usual size the almost empty volume has."""
EMPTY_EXTENTS = 64

_SEED = 20261101


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """A part of a source that is written: random data, or zeroes."""

    offset: int
    length: int
    is_data: bool = True


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One kind of volume."""

    name: str
    title: str
    factor: int
    """Its size, as a multiple of the size that was asked for."""
    extents: Callable[[int], Iterator[Extent]]
    """Gives the parts to write of a source of so many bytes, in order; what is between them is a hole."""

    def size_bytes(self, size_bytes: int) -> int:
        """Return how large this shape is, where the usual size is *size_bytes*."""
        return self.factor * size_bytes

    def data_bytes(self, size_bytes: int) -> int:
        """Return how many bytes of random data it has."""
        return sum(extent.length for extent in self.extents(self.size_bytes(size_bytes)) if extent.is_data)

    def written_bytes(self, size_bytes: int) -> int:
        """Return how many bytes are written when it is made, which is the room that it takes."""
        return sum(extent.length for extent in self.extents(self.size_bytes(size_bytes)))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source that was made, and read again."""

    path: Path
    size_bytes: int
    data_bytes: int
    allocated_bytes: int
    digest: str


class SourceWrong(Exception):
    """A source does not hold what was written to it, or has holes where it must have none."""


def _dense(size_bytes: int) -> Iterator[Extent]:
    yield Extent(offset=0, length=size_bytes)


def _tenth(size_bytes: int, seed: int) -> list[int]:
    """Return the numbers of a tenth of the blocks, in order."""
    blocks = size_bytes // BLOCK_BYTES
    return sorted(random.Random(seed).sample(range(blocks), max(1, blocks // 10)))  # noqa: S311 - the same each time


def _scattered(size_bytes: int) -> Iterator[Extent]:
    for block in _tenth(size_bytes, _SEED):
        yield Extent(offset=block * BLOCK_BYTES, length=BLOCK_BYTES)


def _zeroes(size_bytes: int) -> Iterator[Extent]:
    end = 0
    for block in _tenth(size_bytes, _SEED + 1):
        offset = block * BLOCK_BYTES
        if offset > end:
            yield Extent(offset=end, length=offset - end, is_data=False)
        yield Extent(offset=offset, length=BLOCK_BYTES)
        end = offset + BLOCK_BYTES
    if end < size_bytes:
        yield Extent(offset=end, length=size_bytes - end, is_data=False)


def _pattern(size_bytes: int) -> Iterator[Extent]:
    for offset in range(0, size_bytes, 2 * MIB):
        yield Extent(offset=offset, length=MIB)


def _empty(size_bytes: int) -> Iterator[Extent]:
    """A few MiB, spread; the last block is one of them, so that nobody may stop early."""
    part = size_bytes // EMPTY_EXTENTS
    for end in range(part, size_bytes + 1, part):
        yield Extent(offset=end - BLOCK_BYTES, length=BLOCK_BYTES)


SHAPES = (
    Shape(name="dense", title="dense (random data)", factor=1, extents=_dense),
    Shape(name="scattered", title="10% data in scattered 64 KiB, holes between", factor=1, extents=_scattered),
    Shape(name="zeroes", title="10% data in scattered 64 KiB, written zeroes between", factor=1, extents=_zeroes),
    Shape(name="pattern", title="1 MiB of data, 1 MiB hole, and so on", factor=1, extents=_pattern),
    Shape(name="empty", title="almost empty (4 MiB of data)", factor=EMPTY_FACTOR, extents=_empty),
)


def make(shape: Shape, path: Path, size_bytes: int, check: Callable[[], None]) -> Source:
    """Make the source of *shape* at *path*, for the usual size of *size_bytes*, and read it back.

    :param check: called often; may raise to give up.
    :raises SourceWrong: when it does not read as it was written, or is sparse where zeroes must really be there.
    """
    own_bytes = shape.size_bytes(size_bytes)
    generator = random.Random(f"{_SEED} {shape.name}")  # noqa: S311 - no secret, the same each time
    expected = ContentDigest()
    zeroes = bytes(MIB)
    with path.open("xb", buffering=0) as file:
        file.truncate(own_bytes)
        for extent in shape.extents(own_bytes):
            for offset in range(extent.offset, extent.offset + extent.length, MIB):
                length = min(MIB, extent.offset + extent.length - offset)
                check()
                data = generator.randbytes(length) if extent.is_data else zeroes[:length]
                for begin, end in itertools.pairwise([*range(0, length, BLOCK_BYTES), length]):
                    expected.add(offset + begin, data[begin:end])
                if os.pwrite(file.fileno(), data, offset) != length:
                    raise SourceWrong(f"{path.name}: a write at {offset} came out short")
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        allocated_bytes = os.fstat(file.fileno()).st_blocks * 512
    if digest_of(path, own_bytes, check) != expected.hexdigest():
        raise SourceWrong(f"{path.name} does not read as it was written")
    if allocated_bytes < shape.written_bytes(size_bytes):
        raise SourceWrong(
            f"{path.name} takes {allocated_bytes} bytes of room and not the {shape.written_bytes(size_bytes)} that were"
            " written: this file system compresses or drops zeroes, and cannot hold such a source"
        )
    return Source(
        path=path,
        size_bytes=own_bytes,
        data_bytes=shape.data_bytes(size_bytes),
        allocated_bytes=allocated_bytes,
        digest=expected.hexdigest(),
    )
