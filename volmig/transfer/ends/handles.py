"""Ends that are file-like handles, as a driver's ``open_volume`` gives them."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from volmig import errors
from volmig.transfer.ends import files, identity
from volmig.transfer.ends.base import OpenEnd, name_of, reading


class HandleEnd(OpenEnd):
    """A binary handle with ``seek``, ``tell`` and, as needed, ``read`` or ``readinto`` and ``write``.

    It may move fewer bytes than asked for. Its byte 0 is the volume's. While this is in use nobody else may move
    the handle's position.
    """

    def __init__(self, handle: BinaryIO, *, reads: bool, writes: bool, is_destination: bool) -> None:
        """Check that *handle* can serve, and find its size.

        :raises volmig.errors.RequestInvalid: when it lacks a method, is not binary, or is to be written to and
            appends.
        :raises volmig.errors.TransferFailed: when its size cannot be found.
        """
        self.name = name_of(handle)
        self.is_destination = is_destination
        _check_methods(handle, self.name, reads=reads, writes=writes)
        self.handle = handle
        self._readinto = getattr(handle, "readinto", None)
        self._fd = _fileno(handle)
        if writes and _appends(handle, self._fd):
            raise errors.RequestInvalid(
                what=self.name, reason="the handle appends what it is given at the end; open it without (r+b)"
            )
        with reading(self.name, 0):
            self.identity = identity.identity_of(self._fd) if self._fd is not None else None
            handle.seek(0, os.SEEK_END)
            self.size_bytes = handle.tell()
        self._position = self.size_bytes

    def close(self) -> None:
        """Do nothing: the handle is its owner's."""

    def extents(self, size_bytes: int, begin_bytes: int = 0) -> Iterator[tuple[int, int]]:
        if begin_bytes < size_bytes:
            yield begin_bytes, size_bytes

    def read_some(self, view: memoryview, offset: int) -> int:
        self._seek(offset)
        count = self._read(view)
        self._position = offset + count
        return count

    def write_some(self, view: memoryview, offset: int) -> int:
        self._seek(offset)
        count: int | None = self.handle.write(view)
        if count is None:
            # Some wrappers forget to say how much they took; their position tells.
            count = self.handle.tell() - offset
        self._position = offset + count
        return count

    def flush(self) -> None:
        flush = getattr(self.handle, "flush", None)
        if flush is not None:
            flush()
        if self._fd is not None:
            os.fsync(self._fd)

    def write_back(self, offset: int, length: int) -> None:
        if self._fd is not None:
            files.write_back(self._fd, offset, length)

    def drop_cache(self) -> None:
        self.release_cache(0, 0)

    def release_cache(self, offset: int, length: int) -> None:
        if self._fd is not None:
            files.drop_cache(self._fd, offset, length)

    def version(self) -> tuple[int, ...] | None:
        if self._fd is None:
            return None
        with reading(self.name, 0):
            return identity.version_of(self._fd)

    def settle(self) -> None:
        if self._fd is not None:
            files.settle(self.name, self._fd)

    def is_still_in_place(self) -> bool:
        return True

    def _seek(self, offset: int) -> None:
        if self._position != offset:
            self.handle.seek(offset)
        # Where it stands after a failure nobody knows, so that it must be moved before the next request.
        self._position = -1

    def _read(self, view: memoryview) -> int:
        count: int | None
        if self._readinto is not None:
            try:
                count = self._readinto(view)
            except io.UnsupportedOperation:
                self._readinto = None
                return self._read(view)
        else:
            data = self.handle.read(len(view))
            count = None if data is None else len(data)
            if count:
                if count > len(view):
                    raise ValueError(f"it gave {count} bytes where {len(view)} were asked for")
                view[:count] = data
        if count is None:
            raise BlockingIOError("the handle is in non-blocking mode, which a copy cannot use")
        return count


def _check_methods(handle: BinaryIO, name: str, *, reads: bool, writes: bool) -> None:
    def refuse(reason: str) -> errors.RequestInvalid:
        return errors.RequestInvalid(what=name, reason=reason)

    if isinstance(handle, io.TextIOBase):
        raise refuse("it is a text handle; open it in binary mode")
    needed = ["seek", "tell", *(["write"] if writes else [])]
    missing = [method for method in needed if not callable(getattr(handle, method, None))]
    if reads and not (callable(getattr(handle, "read", None)) or callable(getattr(handle, "readinto", None))):
        missing.append("read")
    if missing:
        raise refuse(f"it is neither a path nor a handle that can be used: it has no {', '.join(missing)}")
    for wanted, method, what in ((reads, "readable", "reading"), (writes, "writable", "writing")):
        says = getattr(handle, method, None)
        if wanted and callable(says):
            with reading(name, 0):
                can = says()
            if not can:
                raise refuse(f"the handle is not open for {what}")


def _appends(handle: BinaryIO, fd: int | None) -> bool:
    """Say whether a handle writes at the end, wherever its position is."""
    mode = getattr(handle, "mode", None)
    if isinstance(mode, str) and "a" in mode:
        return True
    with contextlib.suppress(OSError):
        return fd is not None and bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
    return False


def _fileno(handle: BinaryIO) -> int | None:
    """Return the descriptor behind a handle; None when there is none."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        fd = handle.fileno()
        return fd if isinstance(fd, int) and fd >= 0 else None
    return None
