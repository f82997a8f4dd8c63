"""Memory for requests: buffers of one size in one piece, aligned so that direct I/O can use them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
from collections.abc import Callable, Iterator
from typing import Any, cast

from volmig import errors
from volmig.transfer.digest import BLOCK_BYTES

BUFFER_BYTES = 1024 * 1024
"""Size of each buffer."""

_HUGE_PAGE_BYTES = 2 * 1024 * 1024


class Arena:
    """Buffers of 1 MiB, and beside them as many bytes of zeroes, which nobody may write to.

    Positions are counted from the beginning of :attr:`view`. The address stays for as long as this lives, which must
    be for longer than any request that uses it. What is never used takes no memory.
    """

    def __init__(self, buffers: int) -> None:
        length = (buffers + 1) * BUFFER_BYTES
        try:
            self._memory = mmap.mmap(-1, length + _HUGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as exc:
            raise errors.ResourcesExhausted(what=f"memory for {buffers} buffers of 1 MiB", reason=str(exc)) from exc
        # A process that forks while data is on its way could find it in the child's copy of a page (open(2), O_DIRECT).
        self._memory.madvise(mmap.MADV_DONTFORK)
        # In large pages a request is one piece of memory for the storage, and not hundreds.
        with contextlib.suppress(OSError):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._memory)
        """All of it."""
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.zeroes = -self.address % _HUGE_PAGE_BYTES
        """Position of the zeroes."""
        self.free = [self.zeroes + BUFFER_BYTES * (index + 1) for index in reversed(range(buffers))]
        """Positions of the buffers that are not in use; the one to take next is the last."""
        self._zeroes_at = self.address + self.zeroes

    def give_back(self) -> None:
        """Give the memory back, when no request uses it: an error that somebody keeps would keep it too."""
        self._memory.madvise(mmap.MADV_DONTNEED)

    def is_zero(self, at: int, length: int) -> bool:
        """Say whether *length* bytes, not more than a buffer has, are all zeroes; data is left at its first one."""
        return _memcmp_quick()(self.address + at, self._zeroes_at, length) == 0

    def runs(self, base: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Yield a part of the memory as runs of blocks: (start, end, whether it is all zeroes).

        Blocks of 64 KiB count from *base*.
        """
        run_start, run_is_zero = start, False
        while start < end:
            stop = min(start + BLOCK_BYTES - (start - base) % BLOCK_BYTES, end)
            is_zero = self.is_zero(start, stop - start)
            if is_zero != run_is_zero:
                if start > run_start:
                    yield run_start, start, run_is_zero
                run_start, run_is_zero = start, is_zero
            start = stop
        if end > run_start:
            yield run_start, end, run_is_zero

    def difference(self, one: int, other: int, length: int) -> int:
        """Return the index of the first byte in which two places of the memory differ; *length* if none does."""
        compare = _memcmp()
        base = self.address
        if compare(base + one, base + other, length) == 0:
            return length
        low, high = 0, length - 1
        while low < high:
            middle = (low + high + 1) // 2
            if compare(base + one + low, base + other + low, middle - low) == 0:
                low = middle
            else:
                high = middle - 1
        return low


@functools.cache
def _memcmp() -> Callable[[int, int, int], int]:
    return _typed(ctypes.CDLL(None).memcmp)


@functools.cache
def _memcmp_quick() -> Callable[[int, int, int], int]:
    # For what takes microseconds, giving up the interpreter's lock costs more than it brings.
    return _typed(ctypes.PyDLL(None).memcmp)


def _typed(function: Any) -> Callable[[int, int, int], int]:
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    function.restype = ctypes.c_int
    return cast("Callable[[int, int, int], int]", function)
