"""The bytes of a connection to an NBD server."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from typing import Any

from volmig.transfer.nbd.address import NbdAddress

_FAREWELL_SECONDS = 0.1


class ProtocolError(OSError):
    """The server broke the protocol, or ended the connection."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPROTO, f"NBD: {reason}")


class Wire:
    """A socket, blocking, from which exactly so many bytes are read as were asked for."""

    def __init__(self, address: NbdAddress, *, timeout_seconds: float) -> None:
        """Connect.

        :param timeout_seconds: for connecting and all that follows, until :meth:`end_timeout`.
        :raises OSError: when that fails.
        """
        self._deadline: float | None = time.monotonic() + timeout_seconds
        self._socket = _connected(address, timeout_seconds)

    def end_timeout(self) -> None:
        """Wait as long as it takes from now on."""
        self._deadline = None
        self._socket.settimeout(None)

    def close(self, farewell: bytes = b"") -> None:
        """Send *farewell* if the other side listens, and close the socket. Never waits longer than 0.1 s."""
        if farewell and self._socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._socket.settimeout(_FAREWELL_SECONDS)
                self._socket.sendall(farewell)
        self._socket.close()

    def interrupt(self) -> None:
        """Make what another thread waits for fail at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def send(self, data: bytes) -> None:
        """Send all of *data*."""
        self._left()
        self._socket.sendall(data)

    def send_both(self, header: bytes, data: memoryview) -> None:
        """Send a header and what belongs to it, if possible at once."""
        sent = self._socket.sendmsg([header, data])
        if sent < len(header):
            self._socket.sendall(header[sent:])
            sent = len(header)
        self._socket.sendall(data[sent - len(header) :])

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Receive what *layout*, of :mod:`struct`, describes."""
        return struct.unpack(layout, self.received(struct.calcsize(layout)))

    def received(self, length: int) -> bytes:
        """Receive *length* bytes."""
        data = bytearray(length)
        self.receive(memoryview(data))
        return bytes(data)

    def receive(self, view: memoryview) -> None:
        """Fill *view*.

        :raises ProtocolError: when the connection ends before.
        """
        done = 0
        while done < len(view):
            self._left()
            count = self._socket.recv_into(view[done:])
            if not count:
                raise ProtocolError("the server ended the connection")
            done += count

    def _left(self) -> None:
        """Set the time that is left of the handshake as the time for the next step."""
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            self._socket.settimeout(left)


def _connected(address: NbdAddress, timeout_seconds: float) -> socket.socket:
    if not address.socket_path:
        found = socket.create_connection((address.host, address.port), timeout=timeout_seconds)
        try:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except BaseException:
            found.close()
            raise
        return found
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.settimeout(timeout_seconds)
        found.connect(address.socket_path)
    except BaseException:
        found.close()
        raise
    return found
