"""One connection to an NBD server, and one request at a time over it.

Nothing that the server says is believed without a look: lengths are bounded before they are read, replies must belong
to the request, and a read must be covered exactly once. A server that breaks a rule loses the connection.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from typing import TypeAlias

from volmig.transfer.nbd.address import NbdAddress
from volmig.transfer.nbd.handshake import shake_hands
from volmig.transfer.nbd.map import ZeroMap
from volmig.transfer.nbd.tls import Tls
from volmig.transfer.nbd.wire import ProtocolError, Wire

_Taker: TypeAlias = Callable[[int, int], None]
"""Is given kind and length of a chunk, and receives what is in it."""

_CMD_READ, _CMD_WRITE, _CMD_DISC, _CMD_FLUSH, _CMD_WRITE_ZEROES, _CMD_BLOCK_STATUS = 0, 1, 2, 3, 6, 7
_CHUNK_NONE, _CHUNK_DATA, _CHUNK_HOLE, _CHUNK_STATUS, _CHUNK_ERROR = 0, 1, 2, 5, 1 << 15
_CHUNK_ERROR_OFFSET = _CHUNK_ERROR + 2
_CHUNK_DONE = 1
_REQUEST_MAGIC, _SIMPLE_MAGIC, _STRUCTURED_MAGIC = 0x25609513, 0x67446698, 0x668E33EF

_LONGEST_ERROR_BYTES = 64 * 1024
_LONGEST_STATUS_BYTES = 16 * 1024 * 1024
_STATUS_STEP_BYTES = 64 * 1024
_STATE_ZERO = 2
_MOST_PIECES = 1024

_KNOWN_ERRNOS = {
    errno.EPERM,
    errno.EIO,
    errno.ENOMEM,
    errno.EINVAL,
    errno.ENOSPC,
    errno.EOVERFLOW,
    errno.ENOTSUP,
    errno.ESHUTDOWN,
}


class Connection:
    """A connection to one export. Blocking; one request at a time; not thread-safe, but for :meth:`interrupt`."""

    def __init__(self, address: NbdAddress, *, timeout_seconds: float, tls: Tls | None = None) -> None:
        """Connect and shake hands.

        :param tls: for an address that wants it.
        :param timeout_seconds: for all of it together.
        :raises OSError: when there is no connection, no such export, or no agreement.
        """
        self._handle = 0
        self.broken = False
        self._wire = Wire(address, timeout_seconds=timeout_seconds)
        try:
            self._agreed = shake_hands(self._wire, address.export, tls)
            self._wire.end_timeout()
        except BaseException:
            self._wire.close()
            raise
        self.export = self._agreed.export

    @property
    def peer(self) -> NbdAddress:
        """The address of the very server that answers, without a name that may lead to another one."""
        return self._wire.peer

    def close(self) -> None:
        """Take leave of the server if it listens, and close the socket. Never waits longer than 0.1 s."""
        farewell = struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, _CMD_DISC, 0, 0, 0)
        self._wire.close(b"" if self.broken else farewell)

    def interrupt(self) -> None:
        """Make a request that another thread waits for fail at once; the connection is broken then."""
        self.broken = True
        self._wire.interrupt()

    # --- requests -------------------------------------------------------------------------------

    def read(self, view: memoryview, offset: int) -> None:
        """Fill *view* from *offset*."""
        handle = self._request(_CMD_READ, offset, len(view))
        if not self._agreed.structured:
            with self._guarded():
                error = self._simple_reply(handle)
                if not error:
                    self._wire.receive(view)
            _raise(error)
            return
        covered: list[tuple[int, int]] = []
        error = self._chunks(handle, lambda kind, length: self._read_chunk(kind, length, view, offset, covered))
        _raise(error)
        if sum(end - start for start, end in covered) != len(view):
            self.broken = True
            raise ProtocolError("a read was answered in part only")

    def write(self, view: memoryview, offset: int) -> None:
        """Write *view* at *offset*."""
        self._simple(self._request(_CMD_WRITE, offset, len(view), view))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; the server may give up its room."""
        self._simple(self._request(_CMD_WRITE_ZEROES, offset, length))

    def flush(self) -> None:
        """Bring everything that was answered to stable storage."""
        self._simple(self._request(_CMD_FLUSH, 0, 0))

    def block_status(self, offset: int, length: int) -> ZeroMap:
        """Return which parts of a range, from its beginning, read as zeroes; they may end before its end."""
        found = ZeroMap()
        _raise(
            self._chunks(
                self._request(_CMD_BLOCK_STATUS, offset, length),
                lambda kind, size: self._status_chunk(kind, size, length, found),
            )
        )
        if not found:
            self.broken = True
            raise ProtocolError("the server told nothing about a range")
        return found

    def _request(self, command: int, offset: int, length: int, data: memoryview | None = None) -> int:
        if self.broken:
            raise ProtocolError("the connection is broken")
        self._handle = (self._handle + 1) & 0xFFFFFFFFFFFFFFFF
        header = struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, command, self._handle, offset, length)
        with self._guarded():
            if data is None:
                self._wire.send(header)
            else:
                self._wire.send_both(header, data)
        return self._handle

    def _simple(self, handle: int) -> None:
        if self._agreed.structured:
            error = self._chunks(handle, self._no_chunk)
        else:
            with self._guarded():
                error = self._simple_reply(handle)
        _raise(error)

    # --- replies --------------------------------------------------------------------------------

    def _simple_reply(self, handle: int) -> int:
        magic, error, theirs = self._wire.unpack(">IIQ")
        if magic != _SIMPLE_MAGIC:
            raise ProtocolError("a reply does not begin like one")
        _check_handle(handle, theirs)
        return int(error)

    def _chunks(self, handle: int, take: _Taker) -> int:
        """Receive the chunks of a structured reply; return the first error in it, 0 for none."""
        error = 0
        with self._guarded():
            while True:
                (magic,) = self._wire.unpack(">I")
                if magic == _SIMPLE_MAGIC:
                    # Allowed for whatever brings no data.
                    code, theirs = self._wire.unpack(">IQ")
                    _check_handle(handle, theirs)
                    if not code:
                        take(_CHUNK_NONE, -1)
                    return error or int(code)
                if magic != _STRUCTURED_MAGIC:
                    raise ProtocolError("a reply does not begin like one")
                flags, kind, theirs, length = self._wire.unpack(">HHQI")
                _check_handle(handle, theirs)
                if kind & _CHUNK_ERROR:
                    error = error or self._error_chunk(kind, length)
                elif kind == _CHUNK_NONE:
                    if length or not flags & _CHUNK_DONE:
                        raise ProtocolError("an empty chunk is not empty, or not the last")
                else:
                    take(kind, length)
                if flags & _CHUNK_DONE:
                    return error

    def _read_chunk(
        self, kind: int, length: int, view: memoryview, offset: int, covered: list[tuple[int, int]]
    ) -> None:
        if kind == _CHUNK_DATA:
            if length <= 8:
                raise ProtocolError("a chunk of data has none")
            (at,) = self._wire.unpack(">Q")
            size = length - 8
        elif kind == _CHUNK_HOLE:
            if length != 12:
                raise ProtocolError(f"the chunk of a hole has {length} bytes")
            at, size = self._wire.unpack(">QI")
        else:
            raise ProtocolError(f"a read was answered by a chunk of kind {kind}")
        start, end = at - offset, at - offset + size
        if not 0 <= start < end <= len(view):
            raise ProtocolError("a chunk lies outside of what was asked for")
        if any(start < other_end and other_start < end for other_start, other_end in covered):
            raise ProtocolError("two chunks of one reply overlap")
        _note(covered, start, end)
        if kind == _CHUNK_DATA:
            self._wire.receive(view[start:end])
        else:
            view[start:end] = bytes(size)

    def _status_chunk(self, kind: int, size: int, wanted: int, found: ZeroMap) -> None:
        if kind != _CHUNK_STATUS or found:
            raise ProtocolError("a question about a range was not answered by one chunk about it")
        if size < 12 or (size - 4) % 8 or size > _LONGEST_STATUS_BYTES:
            raise ProtocolError(f"a chunk about a range has {size} bytes")
        (context,) = self._wire.unpack(">I")
        if context != self._agreed.context_id:
            raise ProtocolError("an answer is about another context than the one that was asked for")
        covered, left = 0, size - 4
        while left:
            step = min(left, _STATUS_STEP_BYTES)
            for length, state in struct.iter_unpack(">II", self._wire.received(step)):
                if not length or covered >= wanted:
                    raise ProtocolError("an answer about a range has an empty part, or one too many")
                found.add(min(length, wanted - covered), bool(state & _STATE_ZERO))
                covered += length
            left -= step

    def _no_chunk(self, kind: int, length: int) -> None:
        if kind != _CHUNK_NONE:
            raise ProtocolError(f"a request without data was answered by a chunk of kind {kind}")

    def _error_chunk(self, kind: int, length: int) -> int:
        if not 6 <= length <= _LONGEST_ERROR_BYTES:
            raise ProtocolError(f"the chunk of an error has {length} bytes")
        payload = self._wire.received(length)
        code, text = struct.unpack_from(">IH", payload)
        if 6 + text + (8 if kind == _CHUNK_ERROR_OFFSET else 0) > length:
            raise ProtocolError("the text of an error is longer than its chunk")
        return int(code) or errno.EIO

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Break the connection when a request fails in a way after which nobody knows what comes next."""
        try:
            yield
        except BaseException:
            self.broken = True
            raise


def _note(covered: list[tuple[int, int]], start: int, end: int) -> None:
    """Add a range; one that goes on from the last is joined to it, so that the list stays short."""
    if covered and covered[-1][1] == start:
        covered[-1] = (covered[-1][0], end)
    elif len(covered) < _MOST_PIECES:
        covered.append((start, end))
    else:
        raise ProtocolError("a read is answered in too many pieces")


def _check_handle(ours: int, theirs: int) -> None:
    if ours != theirs:
        raise ProtocolError("a reply belongs to no request")


def _raise(error: int) -> None:
    if error:
        code = error if error in _KNOWN_ERRNOS else errno.EIO
        raise OSError(code, f"the NBD server says: {os.strerror(code)}")
