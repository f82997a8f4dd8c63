"""The file-like handle of the fake driver."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from volmig.drivers._fake_faults import FaultPlan

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class FakeHandle(io.RawIOBase):
    """Reads and writes an open file, with the faults that the plan has for its bytes.

    As with a block device, nothing can be written past the end. There is no ``fileno()``, so that nobody can
    go past the faults.
    """

    def __init__(self, fd: int, *, mode: str, faults: FaultPlan) -> None:
        """Take over *fd*, and close it in the end."""
        super().__init__()
        self.mode = mode
        self._fd = fd
        self._faults = faults
        self._size = os.fstat(fd).st_size
        self._position = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self.mode == "r+b"

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._require_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._require_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._require_open()
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._size - self._position))
        fault = self._faults.at_bytes("read", self._position, length)
        if fault is not None and fault.at is not None:
            length = fault.at - self._position  # what comes before the byte is still read
            if length == 0 and fault.action == "eio":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        done = os.preadv(self._fd, [view[:length]], self._position) if length else 0
        self._position += done
        return done

    def write(self, data: ReadableBuffer, /) -> int:
        self._require_open()
        if not self.writable():
            raise io.UnsupportedOperation("the handle was opened to read only")
        view = memoryview(data).cast("B")
        if not len(view):
            return 0
        view = view[: max(0, self._size - self._position)]
        if not len(view):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fault = self._faults.at_bytes("write", self._position, len(view))
        if fault is None or fault.at is None:
            return self._advance(os.pwrite(self._fd, view, self._position))
        at = fault.at - self._position
        act: Callable[[memoryview, int], int] = getattr(self, f"_write_{fault.action}")
        return self._advance(act(view, at))

    def flush(self) -> None:
        """Make what was written durable."""
        if not self.closed and self.writable():
            os.fsync(self._fd)

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()
            finally:
                os.close(self._fd)

    def _write_lost(self, view: memoryview, at: int) -> int:
        return len(view)

    def _write_flip(self, view: memoryview, at: int) -> int:
        changed = bytearray(view)
        changed[at] ^= 0x10
        return os.pwrite(self._fd, changed, self._position)

    def _write_eio(self, view: memoryview, at: int) -> int:
        return self._write_before(view, at, errno.EIO)

    def _write_enospc(self, view: memoryview, at: int) -> int:
        return self._write_before(view, at, errno.ENOSPC)

    def _write_before(self, view: memoryview, at: int, number: int) -> int:
        if at == 0:
            raise OSError(number, os.strerror(number))
        return os.pwrite(self._fd, view[:at], self._position)

    def _advance(self, count: int) -> int:
        self._position += count
        return count

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed handle")
