"""The bytes of a connection to an NBD server, with and without TLS."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import queue
import socket
import struct
import threading
import time
from typing import Any

from volmig.transfer.nbd.address import NbdAddress
from volmig.transfer.nbd.tls import Tls, TlsError, TlsSession

_FAREWELL_SECONDS = 0.1
_STEP_BYTES = 256 * 1024
"""Most that is encrypted, or received to be decrypted, at once."""


class ProtocolError(OSError):
    """The server broke the protocol, or ended the connection."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPROTO, f"NBD: {reason}")


class EndedError(ProtocolError):
    """The server ended the connection."""

    def __init__(self) -> None:
        super().__init__("the server ended the connection")


class Wire:
    """A socket, blocking, from which exactly so many bytes are read as were asked for."""

    def __init__(self, address: NbdAddress, *, timeout_seconds: float) -> None:
        """Connect.

        :param timeout_seconds: for connecting and all that follows, until :meth:`end_timeout`.
        :raises OSError: when that fails.
        """
        deadline = time.monotonic() + timeout_seconds
        self._deadline: float | None = deadline
        self._address = address
        self._socket = _connected(address, deadline)
        self._tls: TlsSession | None = None
        self._encrypted = memoryview(b"")

    @property
    def peer(self) -> NbdAddress:
        """Where the other side is, by number."""
        if self._address.socket_path:
            return self._address
        host, port = self._socket.getpeername()[:2]
        return dataclasses.replace(self._address, host=host, port=port)

    def start_tls(self, tls: Tls) -> None:
        """Shake hands on TLS; from then on, nothing is sent or believed without it.

        :raises TlsError: when the server is not to be believed, or there is no agreement.
        """
        self._encrypted = memoryview(bytearray(_STEP_BYTES))
        session = self._tls = TlsSession(tls)
        try:
            self._shake_hands(session)
        except TlsError:
            # What tells the server why.
            with contextlib.suppress(OSError):
                self._send_outgoing(session)
            raise
        self._send_outgoing(session)

    def _shake_hands(self, session: TlsSession) -> None:
        while not session.handshake():
            self._send_outgoing(session)
            if not self._feed(session):
                raise TlsError("the server ended the connection during the handshake")

    def end_timeout(self) -> None:
        """Wait as long as it takes from now on."""
        self._deadline = None
        self._socket.settimeout(None)

    def close(self, farewell: bytes = b"") -> None:
        """Send *farewell* if the other side listens, and close the socket. Never waits longer than 0.1 s."""
        if farewell and self._socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                if self._tls is not None:
                    self._tls.encrypt(farewell)
                    self._tls.say_goodbye()
                    farewell = self._tls.take_outgoing()
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
        if self._tls is None:
            self._socket.sendall(data)
        else:
            self._tls.encrypt(data)
            self._send_outgoing(self._tls)

    def send_both(self, header: bytes, data: memoryview) -> None:
        """Send a header and what belongs to it, if possible at once."""
        if self._tls is not None:
            self._tls.encrypt(header)
            for begin in range(0, len(data), _STEP_BYTES):
                self._tls.encrypt(data[begin : begin + _STEP_BYTES])
                self._send_outgoing(self._tls)
            return
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

        :raises EndedError: when the connection ends before.
        """
        done = 0
        while done < len(view):
            count = self._receive_some(view[done:])
            if not count:
                raise EndedError
            done += count

    def _receive_some(self, view: memoryview) -> int:
        session = self._tls
        if session is None:
            self._left()
            return self._socket.recv_into(view)
        while (count := session.decrypt(view)) is None:
            self._send_outgoing(session)
            if not self._feed(session):
                return 0
        return count

    def _feed(self, session: TlsSession) -> bool:
        """Receive something for a session; return False when the connection has ended."""
        self._left()
        count = self._socket.recv_into(self._encrypted)
        session.feed(self._encrypted[:count])
        return count > 0

    def _send_outgoing(self, session: TlsSession) -> None:
        if data := session.take_outgoing():
            self._left()
            self._socket.sendall(data)

    def _left(self) -> None:
        """Set the time that is left of the handshake as the time for the next step."""
        if self._deadline is not None:
            self._socket.settimeout(_left(self._deadline))


def _left(deadline: float) -> float:
    """Return the seconds to a deadline.

    :raises TimeoutError: when there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    return left


def _connected(address: NbdAddress, deadline: float) -> socket.socket:
    if address.socket_path:
        return _reached(socket.AF_UNIX, address.socket_path, deadline)
    failed: OSError | None = None
    for family, place in _places(address, deadline):
        try:
            found = _reached(family, place, deadline)
        except OSError as exc:
            failed = failed or exc
            continue
        try:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except BaseException:
            found.close()
            raise
        return found
    raise failed or OSError(errno.EADDRNOTAVAIL, "the host has no address")


def _reached(family: int, place: Any, deadline: float) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.settimeout(_left(deadline))
        found.connect(place)
    except BaseException:
        found.close()
        raise
    return found


def _places(address: NbdAddress, deadline: float) -> list[tuple[int, Any]]:
    """Return the socket addresses of a host, each with its family.

    :raises TimeoutError: when finding them takes too long. A thread goes on with it then, since nothing can end it.
    """
    with contextlib.suppress(socket.gaierror):
        return _look_up(address, socket.AI_NUMERICHOST)
    answers: queue.SimpleQueue[list[tuple[int, Any]] | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(_look_up(address, 0))
        except Exception as exc:  # noqa: BLE001 - raised where it is waited for
            answers.put(exc)

    threading.Thread(target=work, name="volmig-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline))
    except queue.Empty as exc:
        raise TimeoutError(errno.ETIMEDOUT, f"finding the host {address.host} takes too long") from exc
    if isinstance(answer, Exception):
        raise answer
    return answer


def _look_up(address: NbdAddress, flags: int) -> list[tuple[int, Any]]:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, place) for family, _, _, _, place in found]
