"""An end in memory that keeps a record of what is asked of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from volmig.transfer.ends import opening
from volmig.transfer.ends.base import OpenEnd


class MemoryEnd(OpenEnd):
    """Storage with a cache and a map of its data, used by several threads at once.

    :param extents: parts that hold data; all of it when None.
    :param zeroing: how many requests to zero a range it serves before it says that it cannot.
    """

    concurrency = 4

    def __init__(
        self,
        name: str,
        content: bytes,
        *,
        extents: list[tuple[int, int]] | None = None,
        zeroing: int = 0,
        is_destination: bool = False,
        direct: bool = False,
    ) -> None:
        self.name = name
        self.content = bytearray(content)
        self.size_bytes = len(content)
        self.identity = ("memory", name)
        self.is_destination = is_destination
        self.data = extents
        self.zeroing = zeroing
        self.direct = direct
        self.stamp: tuple[int, ...] | None = (0, 0, 0, 0)
        self.holes: list[tuple[int, int]] = []
        self.lock = threading.Lock()
        self.log: list[tuple[str, int, int]] = []
        self.before: Callable[[str, int, int], None] = lambda what, offset, length: None  # noqa: ARG005

    def _note(self, what: str, offset: int, length: int) -> None:
        self.before(what, offset, length)
        with self.lock:
            self.log.append((what, offset, length))

    def of(self, what: str) -> list[tuple[int, int]]:
        return [(offset, length) for kind, offset, length in self.log if kind == what]

    def close(self) -> None:
        pass

    def extents(self, size_bytes: int, begin_bytes: int = 0) -> Iterator[tuple[int, int]]:
        for start, end in [(0, self.size_bytes)] if self.data is None else self.data:
            if max(start, begin_bytes) < min(end, size_bytes):
                yield max(start, begin_bytes), min(end, size_bytes)

    def read_some(self, view: memoryview, offset: int) -> int:
        self._note("read", offset, len(view))
        data = self.content[offset : offset + len(view)]
        view[: len(data)] = data
        return len(data)

    def write_some(self, view: memoryview, offset: int) -> int:
        self._note("write", offset, len(view))
        self.content[offset : offset + len(view)] = view
        return len(view)

    @property
    def zeroes_cheaply(self) -> bool:
        return self.zeroing > 0

    def zero(self, offset: int, length: int) -> bool:
        with self.lock:
            if self.zeroing <= 0:
                return False
            self.zeroing -= 1
        self._note("zero", offset, length)
        self.content[offset : offset + length] = bytes(length)
        return True

    def known_zero(self, offset: int, length: int) -> bool:
        return any(start <= offset and offset + length <= end for start, end in self.holes)

    def flush(self) -> None:
        self._note("flush", 0, 0)

    def drop_cache(self) -> None:
        self._note("drop", 0, 0)

    @property
    def is_direct(self) -> bool:
        return self.direct

    def write_back(self, offset: int, length: int) -> None:
        self._note("write-back", offset, length)

    def release_cache(self, offset: int, length: int) -> None:
        self._note("release", offset, length)

    def version(self) -> tuple[int, ...] | None:
        return self.stamp

    def settle(self) -> None:
        pass

    def is_still_in_place(self) -> bool:
        return True


def let_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these be used as ends of a copy."""
    real = opening._open

    def act(end: Any, **how: Any) -> OpenEnd:
        return end if isinstance(end, MemoryEnd) else real(end, **how)

    monkeypatch.setattr(opening, "_open", act)
