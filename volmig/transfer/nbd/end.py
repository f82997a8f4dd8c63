"""An end of a copy that is an NBD export."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from volmig import errors
from volmig.transfer.ends.base import OpenEnd, describe, name_of, reading
from volmig.transfer.nbd.address import NbdAddress, is_address, parse
from volmig.transfer.nbd.connection import Connection
from volmig.transfer.nbd.handshake import (
    FLAG_CAN_MULTI_CONN,
    FLAG_READ_ONLY,
    FLAG_SEND_FLUSH,
    FLAG_SEND_WRITE_ZEROES,
    Export,
)
from volmig.transfer.nbd.tls import CERTIFICATES_HINT, Tls, TlsError
from volmig.transfer.nbd.wire import ProtocolError

if TYPE_CHECKING:
    from volmig.transfer.base import End

__all__ = ["NbdAddress", "NbdEnd", "is_address", "parse"]

CONNECT_SECONDS = 10.0
_HINT = "Check that the server runs, that the address is right, and that the export exists."
_TLS_HINT = "Check the certificates of both sides, and that the server's is for the host in the address."
_MOST_CONNECTIONS = 4
_ZERO_BYTES = 128 * 1024 * 1024
_STATUS_BYTES = 1024 * 1024 * 1024
_CANNOT = frozenset({errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})


class NbdEnd(OpenEnd):
    """An NBD export over one connection, or up to four where the server says that it keeps them coherent.

    Up to :attr:`concurrency` threads may read, write and zero at once. There is no time limit on a request:
    :meth:`close`, from any thread, ends those that hang. What tells whether somebody else writes to it does not
    exist (:meth:`version` is None), nor a way past the server's cache (:meth:`drop_cache` does nothing): a server
    that serves from memory what it has not stored is believed. A lost connection is not made again.
    """

    map_is_believed = False

    def __init__(self, address: NbdAddress, connections: list[Connection], *, name: str, is_destination: bool) -> None:
        """Take over *connections* to one export; use :meth:`connect`."""
        self.name = name
        self.is_destination = is_destination
        self.concurrency = len(connections)
        self.export: Export = connections[0].export
        self.size_bytes = self.export.size_bytes
        self.identity = _identity(address)
        self._all = tuple(connections)
        self._idle = list(connections)
        self._changed = threading.Condition()
        self._closed = False
        self._partial_blocks = threading.Lock()
        self._has_map = self.export.has_map
        self._can_zero = bool(self.export.flags & FLAG_SEND_WRITE_ZEROES)

    @classmethod
    def connect(
        cls,
        end: End,
        *,
        reads: bool,  # noqa: ARG003 - every export can be read
        writes: bool,
        is_destination: bool,
        timeout_seconds: float = CONNECT_SECONDS,
        most_connections: int = _MOST_CONNECTIONS,
    ) -> NbdEnd:
        """Connect to the export that *end*, an address, names.

        :param timeout_seconds: for all of it: finding the host, and the connections with their handshakes.
        :raises volmig.errors.RequestInvalid: when it is no address that can be used, or *writes* is wanted of an
            export that is read-only, or cannot be flushed, so that nobody could say when data is safe.
        :raises volmig.errors.TransferFailed: when the server cannot be reached, or does not serve the export.
        """
        name = name_of(end)
        address = parse(name)
        deadline = time.monotonic() + timeout_seconds
        tls = _tls(name, address)
        opened: list[Connection] = []
        with contextlib.ExitStack() as undo:
            try:
                while not opened or (len(opened) < most_connections and opened[0].export.flags & FLAG_CAN_MULTI_CONN):
                    # The first one's peer: behind one name there may be several servers, which are no longer coherent.
                    place = opened[0].peer if opened else address
                    connection = Connection(place, timeout_seconds=deadline - time.monotonic(), tls=tls)
                    undo.callback(connection.close)
                    opened.append(connection)
                    if writes:
                        _check_writable(name, connection.export)
                    _check_same(opened[0].export, connection.export)
            except (OSError, ValueError) as exc:
                raise _unreachable(name, exc) from exc
            made = cls(address, opened, name=name, is_destination=is_destination)
            undo.pop_all()
        return made

    def close(self) -> None:
        """Close all connections; a request that another thread waits for fails at once. Never waits for the server."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = [connection for connection in self._all if connection not in idle]
            # Closed by the thread that uses it, since a descriptor must not be closed under a running request.
            for connection in busy:
                connection.interrupt()
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    # --- data -----------------------------------------------------------------------------------

    def read_some(self, view: memoryview, offset: int) -> int:
        length = min(len(view), self.export.payload_bytes, max(0, self.size_bytes - offset))
        if not length:
            return 0
        start, end = self._blocks_around(offset, length)
        with self._connection() as connection:
            if (start, end) == (offset, offset + length):
                connection.read(view[:length], offset)
                return length
            end = min(end, start + self.export.payload_bytes)
            blocks = bytearray(end - start)
            connection.read(memoryview(blocks), start)
        length = min(length, end - offset)
        view[:length] = blocks[offset - start : offset - start + length]
        return length

    def write_some(self, view: memoryview, offset: int) -> int:
        if not len(view):
            return 0
        if offset + len(view) > self.size_bytes:
            raise OSError(errno.ENOSPC, f"the export ends at byte {self.size_bytes}")
        block = self.export.block_bytes
        length = min(len(view), self.export.payload_bytes)
        if offset % block or length < block:
            return self._write_partial_block(view, offset)
        length -= length % block
        with self._connection() as connection:
            connection.write(view[:length], offset)
        return length

    def _write_partial_block(self, view: memoryview, offset: int) -> int:
        """Write as much of *view* as lies in one block, with the rest of the block as it was."""
        block = self.export.block_bytes
        start = offset - offset % block
        length = min(len(view), start + block - offset)
        with self._partial_blocks, self._connection() as connection:
            content = bytearray(block)
            connection.read(memoryview(content), start)
            content[offset - start : offset - start + length] = view[:length]
            connection.write(memoryview(content), start)
        return length

    @property
    def zeroes_cheaply(self) -> bool:
        return self._can_zero

    def zero(self, offset: int, length: int) -> bool:
        end = offset + length
        if not self._can_zero or self._blocks_around(offset, length) != (offset, end) or end > self.size_bytes:
            return False
        while offset < end:
            step = min(end - offset, _ZERO_BYTES)
            try:
                with self._connection() as connection:
                    connection.write_zeroes(offset, step)
            except OSError as exc:
                if exc.errno in _CANNOT:
                    self._can_zero = False
                    return False
                raise
            offset += step
        return True

    def _blocks_around(self, offset: int, length: int) -> tuple[int, int]:
        block = self.export.block_bytes
        return offset - offset % block, -(-(offset + length) // block) * block

    # --- what is known to be zero ---------------------------------------------------------------

    def extents(self, size_bytes: int, begin_bytes: int = 0) -> Iterator[tuple[int, int]]:
        begun: int | None = None
        last = begin_bytes
        with reading(self.name, begin_bytes):
            for start, end, is_zero in self._parts(begin_bytes, size_bytes):
                if not is_zero and begun is None:
                    begun = start
                elif is_zero and begun is not None:
                    yield begun, start
                    begun = None
                last = end
        if begun is not None:
            yield begun, last

    def _parts(self, offset: int, size_bytes: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (start, end, whether it reads as zeroes) from *offset* on, without a gap."""
        size_bytes = min(size_bytes, self.size_bytes)
        while offset < size_bytes:
            asked_at = offset
            for length, is_zero in self._status(offset, size_bytes - offset):
                end = min(offset + length, size_bytes)
                if end > offset:
                    yield offset, end, is_zero
                offset = end
            if offset == asked_at:
                yield offset, size_bytes, False
                return

    def _status(self, offset: int, length: int) -> Iterable[tuple[int, bool]]:
        """Return (length, whether it reads as zeroes) of parts from *offset* on; nothing if unknown."""
        if not self._has_map:
            return ()
        start, end = self._blocks_around(offset, min(length, _STATUS_BYTES))
        try:
            with self._connection() as connection:
                found = connection.block_status(start, end - start)
        except OSError as exc:
            if exc.errno in _CANNOT:
                self._has_map = False
                return ()
            raise
        return found.behind(offset - start)

    # --- the rest -------------------------------------------------------------------------------

    def flush(self) -> None:
        if self.export.flags & FLAG_SEND_FLUSH:
            with self._connection() as connection:
                connection.flush()

    def drop_cache(self) -> None:
        """Do nothing: the cache is the server's."""

    def release_cache(self, offset: int, length: int) -> None:
        """Do nothing: the cache is the server's."""

    def version(self) -> None:
        return None

    def settle(self) -> None:
        """Do nothing."""

    def is_still_in_place(self) -> bool:
        return True

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Lend a connection that no other thread uses."""
        with self._changed:
            while not self._idle and not self._closed:
                self._changed.wait()
            if self._closed:
                raise OSError(errno.ENOTCONN, "the connection to the NBD server is closed")
            connection = self._idle.pop()
        try:
            yield connection
        finally:
            with self._changed:
                closed = self._closed
                if not closed:
                    # A broken one, too: it fails each request at once, and nobody waits for it in vain.
                    self._idle.append(connection)
                    self._changed.notify()
            if closed:
                connection.close()


def _tls(name: str, address: NbdAddress) -> Tls | None:
    """Return what all connections to an address use for TLS; None when it asks for none."""
    if not address.tls_certificates:
        return None
    try:
        return Tls.from_directory(address.tls_certificates, host=address.host)
    except (OSError, ValueError) as exc:
        raise errors.RequestInvalid(
            what=name, reason=f"its certificates cannot be used: {describe(exc)}", hint=CERTIFICATES_HINT
        ) from exc


def _identity(address: NbdAddress) -> tuple[str, ...]:
    if address.socket_path:
        return "nbd+unix", str(Path(address.socket_path).resolve()), address.export
    return "nbd", address.host, str(address.port), address.export


def _check_writable(name: str, export: Export) -> None:
    if export.flags & FLAG_READ_ONLY:
        raise errors.RequestInvalid(what=name, reason="the NBD export is read-only")
    if not export.flags & FLAG_SEND_FLUSH:
        raise errors.RequestInvalid(
            what=name,
            reason="its server offers no flush, so that it cannot be known when data is on stable storage",
        )


def _check_same(first: Export, other: Export) -> None:
    if first != other:
        raise ProtocolError("the server tells different things about one export")


def _unreachable(name: str, exc: BaseException) -> errors.TransferFailed:
    return errors.TransferFailed(
        path=name,
        offset=0,
        reason=f"connecting: {describe(exc)}",
        hint=_TLS_HINT if isinstance(exc, TlsError) else _HINT,
    )
