"""Data whose every byte tells where it belongs.

A pattern is a rule from an offset to a byte, so that a volume of any size can be filled and checked without keeping a
copy. Data is dense and pseudo-random by offset and seed: a block that is lost, moved, doubled or left from another
pattern shows. What a pattern does not cover reads as zeroes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK_BYTES = 4096
_STEP_BYTES = 1024 * 1024


class PatternMismatch(AssertionError):
    """A volume does not hold the pattern; ``offset`` is the first byte that differs."""

    def __init__(self, text: str, *, offset: int) -> None:
        super().__init__(text)
        self.offset = offset


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """The content of a volume of *size_bytes* bytes."""

    size_bytes: int
    seed: int = 1
    """Patterns with different seeds have no block in common."""
    data: tuple[tuple[int, int], ...]
    """Ranges (start, end) that hold data, ascending, not touching each other; all else is zeroes."""

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from *offset* on, fewer than *length* at the end."""
        end = min(offset + length, self.size_bytes)
        content = bytearray(max(0, end - offset))
        for start, stop in self.data:
            first, last = max(start, offset), min(stop, end)
            if first < last:
                content[first - offset : last - offset] = self._dense(first, last)
        return bytes(content)

    def digest(self, algorithm: str = "sha256") -> str:
        """Return the digest of the whole content, in hexadecimal."""
        state = hashlib.new(algorithm)
        for offset in range(0, self.size_bytes, _STEP_BYTES):
            state.update(self.read(offset, _STEP_BYTES))
        return state.hexdigest()

    def _dense(self, start: int, end: int) -> bytes:
        first = start // BLOCK_BYTES
        blocks = b"".join(
            hashlib.shake_128(f"{self.seed}:{number}".encode()).digest(BLOCK_BYTES)
            for number in range(first, -(-end // BLOCK_BYTES))
        )
        return blocks[start - first * BLOCK_BYTES : end - first * BLOCK_BYTES]


def dense(size_bytes: int, *, seed: int = 1) -> Pattern:
    """Return a pattern with data everywhere."""
    return Pattern(size_bytes=size_bytes, seed=seed, data=((0, size_bytes),))


def zeroes(size_bytes: int) -> Pattern:
    """Return a pattern without any data."""
    return Pattern(size_bytes=size_bytes, data=())


def holed(size_bytes: int, *, seed: int = 1, hole_bytes: int = 64 * 1024) -> Pattern:
    """Return a pattern whose data and holes alternate, both of *hole_bytes*; it begins with data."""
    starts = range(0, size_bytes, 2 * hole_bytes)
    return Pattern(
        size_bytes=size_bytes, seed=seed, data=tuple((at, min(at + hole_bytes, size_bytes)) for at in starts)
    )


def edges(size_bytes: int, *, seed: int = 1) -> Pattern:
    """Return a pattern with a little data at odd places only: both ends, and across block boundaries."""
    wanted = [(0, 1), (BLOCK_BYTES - 3, BLOCK_BYTES + 5), (size_bytes // 2, size_bytes // 2 + 513)]
    wanted.append((size_bytes - 7, size_bytes))
    ranges: list[tuple[int, int]] = []
    for start, end in wanted:
        first, last = max(start, 0), min(end, size_bytes)
        if ranges and first <= ranges[-1][1]:
            first, last = ranges[-1][0], max(last, ranges.pop()[1])
        if first < last:
            ranges.append((first, last))
    return Pattern(size_bytes=size_bytes, seed=seed, data=tuple(ranges))


def standard(size_bytes: int, *, seed: int = 1) -> dict[str, Pattern]:
    """Return one pattern of each kind, by name."""
    return {
        "dense": dense(size_bytes, seed=seed),
        "holed": holed(size_bytes, seed=seed),
        "edges": edges(size_bytes, seed=seed),
        "zeroes": zeroes(size_bytes),
    }


def fill(target: str | os.PathLike[str] | BinaryIO, pattern: Pattern, *, zeroed: bool = False) -> None:
    """Write the pattern to a path or a file-like handle, which must have its size already, durably.

    :param zeroed: the target reads as zeroes; only data is written then, so that holes stay holes.
    """
    ranges = pattern.data if zeroed else ((0, pattern.size_bytes),)
    with _opened(target, "r+b") as handle:
        for start, end in ranges:
            for offset in range(start, end, _STEP_BYTES):
                _write(handle, offset, pattern.read(offset, min(_STEP_BYTES, end - offset)))
        handle.flush()
        if not hasattr(target, "read"):
            os.fsync(handle.fileno())


def check(target: str | os.PathLike[str] | BinaryIO, pattern: Pattern) -> None:
    """Compare a path or a file-like handle with the pattern: every byte, and the size.

    :raises PatternMismatch: at the first difference.
    """
    with _opened(target, "rb") as handle:
        for offset in range(0, pattern.size_bytes, _STEP_BYTES):
            expected = pattern.read(offset, _STEP_BYTES)
            _compare(_read(handle, offset, len(expected)), expected, offset)
        if _read(handle, pattern.size_bytes, 1):
            raise PatternMismatch(f"there is data after byte {pattern.size_bytes}, the end", offset=pattern.size_bytes)


def _compare(actual: bytes, expected: bytes, offset: int) -> None:
    if actual == expected:
        return
    pairs = zip(actual, expected, strict=False)
    at = next((index for index, (one, other) in enumerate(pairs) if one != other), len(actual))
    if at == len(actual):
        raise PatternMismatch(f"the data ends at byte {offset + at}", offset=offset + at)
    raise PatternMismatch(
        f"at byte {offset + at}: expected {expected[at : at + 16].hex(' ')}, found {actual[at : at + 16].hex(' ')}",
        offset=offset + at,
    )


@contextlib.contextmanager
def _opened(target: str | os.PathLike[str] | BinaryIO, mode: str) -> Iterator[BinaryIO]:
    if not isinstance(target, str | os.PathLike):
        yield target
        return
    flags = os.O_RDONLY if mode == "rb" else os.O_RDWR  # never O_CREAT: a missing target is an error
    with os.fdopen(os.open(target, flags | os.O_CLOEXEC), mode, buffering=0) as handle:
        yield handle  # type: ignore[misc]


def _read(handle: BinaryIO, offset: int, length: int) -> bytes:
    handle.seek(offset)
    parts = bytearray()
    while len(parts) < length:
        part = handle.read(length - len(parts))
        if not part:
            break
        parts += part
    return bytes(parts)


def _write(handle: BinaryIO, offset: int, data: bytes) -> None:
    handle.seek(offset)
    while data:
        count = handle.write(data)
        if not count:
            raise OSError(f"nothing was written at byte {offset}")
        data = data[count:]
