"""An NBD server in a thread, over bytes in memory, that can be told to misbehave."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

READ, WRITE, DISC, FLUSH, WRITE_ZEROES, STATUS = 0, 1, 2, 3, 6, 7
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_ZEROES, MULTI = 1, 2, 4, 64, 256
ALL_FLAGS = HAS_FLAGS | SEND_FLUSH | SEND_ZEROES | MULTI
CONTEXT_ID = 7
STARTTLS = 5
BLOCK = 4096


class Ended(Exception):
    """The client is gone, or the server stops."""


class NbdServer:
    """Serves one export on a Unix socket, or on a port of this host.

    :param structured: whether it knows structured replies, and with them the map of zeroes.
    :param blocks: smallest, preferred and largest size of a request that it tells, if any.
    :param errors: commands that it answers by an error.
    :param silent: commands that it never answers.
    :param tamper: is given command and reply of each request, and returns what to send.
    :param pieces: splits (offset, length) of a read into the chunks of its answer.
    :param hello: what it says first, when not the truth.
    :param option: is given number and data of an option, and returns the raw answer, or None for the truth.
    :param tls: with which it speaks TLS, and nothing else.
    """

    def __init__(
        self,
        content: bytes | bytearray,
        *,
        directory: Path | None = None,
        export: str = "",
        flags: int = ALL_FLAGS,
        structured: bool = True,
        blocks: tuple[int, int, int] | None = None,
        errors: dict[int, int] | None = None,
        silent: frozenset[int] = frozenset(),
        tamper: Callable[[int, bytes], bytes] | None = None,
        pieces: Callable[[int, int], list[tuple[int, int]]] | None = None,
        hello: bytes | None = None,
        option: Callable[[int, bytes], bytes | None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.content = bytearray(content)
        self.export = export
        self.flags = flags
        self.structured = structured
        self.blocks = blocks
        self.errors = errors or {}
        self.silent = silent
        self.tamper = tamper
        self.pieces = pieces
        self.hello = hello
        self.option = option
        self.tls = tls
        self.options_in_clear: list[int] = []
        self.requests: list[tuple[int, int, int]] = []
        self.connections = 0
        self.farewells = 0
        self.stopped = threading.Event()
        if directory is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address = f"nbd://127.0.0.1:{self._listener.getsockname()[1]}/{export}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(directory / "nbd.sock"))
            self._listener.listen()
            self.address = f"nbd+unix:///{export}?socket={directory / 'nbd.sock'}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for one in self._sockets:
            with contextlib.suppress(OSError):
                # Not that of a socket with TLS, which would take the session from under the thread that uses it.
                socket.socket.shutdown(one, socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(30)
            assert not thread.is_alive()
        self._listener.close()

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            if one.family != socket.AF_UNIX:
                # Several small messages follow one another, and none waits for an acknowledgement.
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._sockets.append(one)
            thread = threading.Thread(target=self._serve, args=(one,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, one: socket.socket) -> None:
        with one, contextlib.suppress(Ended, OSError):
            self._greet(one)
            if self.tls is None:
                self._serve_greeted(one)
                return
            self._take_starttls(one)
            with self.tls.wrap_socket(one, server_side=True) as secured:
                self._sockets.append(secured)
                self._serve_greeted(secured)

    def _serve_greeted(self, one: socket.socket) -> None:
        structured = self._shake_hands(one)
        while True:
            self._answer(one, structured)

    def _greet(self, one: socket.socket) -> None:
        one.sendall(self.hello if self.hello is not None else b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        take(one, 4)

    def _take_starttls(self, one: socket.socket) -> None:
        while True:
            magic, option, length = struct.unpack(">8sII", take(one, 16))
            assert magic == b"IHAVEOPT"
            data = take(one, length)
            self.options_in_clear.append(option)
            forged = self.option(option, data) if self.option is not None else None
            one.sendall(forged if forged is not None else reply(option, 1 if option == STARTTLS else 0x80000005))
            if option == STARTTLS:
                return

    def _shake_hands(self, one: socket.socket) -> bool:
        structured = False
        while True:
            magic, option, length = struct.unpack(">8sII", take(one, 16))
            assert magic == b"IHAVEOPT"
            data = take(one, length)
            if self.tls is None:
                self.options_in_clear.append(option)
            forged = self.option(option, data) if self.option is not None else None
            if forged is not None:
                one.sendall(forged)
                continue
            if option == 8:
                structured = self.structured
                one.sendall(reply(option, 1 if structured else 0x80000001))
            elif option == STARTTLS:
                one.sendall(reply(option, 0x80000001))
            elif option == 10:
                one.sendall(reply(option, 4, struct.pack(">I", CONTEXT_ID) + b"base:allocation") + reply(option, 1))
            elif option == 7:
                (name_length,) = struct.unpack_from(">I", data)
                if data[4 : 4 + name_length].decode() != self.export:
                    one.sendall(reply(option, 0x80000006, b"no such thing"))
                    continue
                one.sendall(reply(option, 3, struct.pack(">HQH", 0, len(self.content), self.flags)))
                if self.blocks is not None:
                    one.sendall(reply(option, 3, struct.pack(">HIII", 3, *self.blocks)))
                one.sendall(reply(option, 1))
                return structured

    def _answer(self, one: socket.socket, structured: bool) -> None:
        magic, _, command, handle, offset, length = struct.unpack(">IHHQQI", take(one, 28))
        assert magic == 0x25609513
        data = take(one, length) if command == WRITE else b""
        if command == DISC:
            self.farewells += 1
            raise Ended
        self.requests.append((command, offset, length))
        if self.blocks is not None and command != FLUSH:
            assert offset % self.blocks[0] == length % self.blocks[0] == 0, (command, offset, length)
        assert offset + length <= len(self.content)
        if command in self.silent:
            self.stopped.wait(20)
            raise Ended
        error = self.errors.get(command, 0)
        payload = b"" if error else self._do(command, offset, length, data)
        if not structured:
            answer = struct.pack(">IIQ", 0x67446698, error, handle) + payload
        elif error:
            answer = chunk(handle, 0x8001, struct.pack(">IH", error, 4) + b"oops", last=True)
        elif command == READ:
            answer = self._read_chunks(handle, offset, length)
        elif command == STATUS:
            answer = chunk(handle, 5, struct.pack(">I", CONTEXT_ID) + payload, last=True)
        else:
            answer = chunk(handle, 0, b"", last=True)
        one.sendall(self.tamper(command, answer) if self.tamper is not None else answer)

    def _do(self, command: int, offset: int, length: int, data: bytes) -> bytes:
        if command == READ:
            return bytes(self.content[offset : offset + length])
        if command == WRITE:
            self.content[offset : offset + length] = data
        elif command == WRITE_ZEROES:
            self.content[offset : offset + length] = bytes(length)
        elif command == STATUS:
            return b"".join(struct.pack(">II", size, 3 if zero else 0) for size, zero in self.map(offset, length))
        return b""

    def _read_chunks(self, handle: int, offset: int, length: int) -> bytes:
        parts = self.pieces(offset, length) if self.pieces is not None else [(offset, length)]
        found = b""
        for index, (start, size) in enumerate(parts):
            data = bytes(self.content[start : start + size])
            last = index == len(parts) - 1
            if data.count(0) < len(data):
                found += chunk(handle, 1, struct.pack(">Q", start) + data, last=last)
            else:
                found += chunk(handle, 2, struct.pack(">QI", start, size), last=last)
        return found

    def map(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Yield (length, whether it is zero) for blocks of 4 KiB, joined; at most 16, as servers may."""
        found: list[tuple[int, bool]] = []
        end = offset + length
        while offset < end and len(found) <= 16:
            size = min(BLOCK - offset % BLOCK, end - offset)
            zero = self.content.count(0, offset, offset + size) == size
            if found and found[-1][1] == zero:
                found[-1] = (found[-1][0] + size, zero)
            else:
                found.append((size, zero))
            offset += size
        yield from found[:16]


def take(one: socket.socket, length: int) -> bytes:
    """Receive exactly *length* bytes."""
    data = bytearray(length)
    taken = 0
    while taken < length:
        more = one.recv_into(memoryview(data)[taken:])
        if not more:
            raise Ended
        taken += more
    return bytes(data)


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """Return the answer to an option."""
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def chunk(handle: int, kind: int, payload: bytes, *, last: bool) -> bytes:
    """Return a chunk of a structured reply."""
    return struct.pack(">IHHQI", 0x668E33EF, int(last), kind, handle, len(payload)) + payload
