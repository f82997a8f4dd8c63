"""Ends that behave as real ones do at their worst, and helpers around files."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


class Handle:
    """A file-like handle over bytes in memory, with faults to order.

    :param most: largest number of bytes that one request moves.
    :param on_write: called with (offset, data) before a write; may raise, or return other data to store.
    :param on_read: the same for a read's result.
    """

    def __init__(
        self,
        content: bytes | bytearray = b"",
        *,
        most: int = 1 << 30,
        on_write: Callable[[int, bytes], bytes] | None = None,
        on_read: Callable[[int, bytes], bytes] | None = None,
    ) -> None:
        self.content = bytearray(content)
        self.most = most
        self.on_write = on_write
        self.on_read = on_read
        self.position = 0
        self.flushes = 0
        self.bytes_written = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: len(self.content)}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        data = bytes(self.content[self.position : self.position + min(size, self.most)])
        if self.on_read is not None:
            data = self.on_read(self.position, data)
        self.position += len(data)
        return data

    def write(self, data: Any) -> int:
        taken = bytes(data[: self.most])
        stored = taken if self.on_write is None else self.on_write(self.position, taken)
        self.content[self.position : self.position + len(stored)] = stored
        self.position += len(taken)
        self.bytes_written += len(taken)
        return len(taken)

    def flush(self) -> None:
        self.flushes += 1


class ReadintoHandle(Handle):
    """The same with ``readinto`` only."""

    def readinto(self, view: memoryview) -> int:
        data = super().read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int) -> bytes:
        raise io.UnsupportedOperation("read")


def pattern(size: int, seed: int = 1) -> bytes:
    """Return *size* bytes without a run of zeroes that could pass for a hole."""
    block = bytes((seed + index * 7) % 255 + 1 for index in range(251))
    return (block * (size // len(block) + 1))[:size]


def make_file(path: Path, size: int, extents: Sequence[tuple[int, int]] = (), seed: int = 1) -> Path:
    """Make a sparse file of *size* with data in *extents*, which are (start, end)."""
    with path.open("wb") as file:
        file.truncate(size)
        for start, end in extents:
            if start < size:
                file.seek(start)
                file.write(pattern(min(end, size) - start, seed + start))
    return path


def blocks_of(path: Path) -> int:
    """Return the bytes that a file takes on its disk."""
    return path.stat().st_blocks * 512


def descriptors() -> set[tuple[str, str]]:
    """Return the open descriptors of this process and what each leads to."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add((entry.name, str(entry.readlink())))
    return found


def children() -> set[int]:
    """Return the ids of this process's children, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        # A thread may end while this looks.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.update(map(int, (task / "children").read_text().split()))
    return found


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fail when the block leaves descriptors or processes behind."""
    fds, processes = descriptors(), children()
    yield
    assert descriptors() == fds
    assert children() == processes
