"""The NBD client, against a server that can be told to misbehave."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any
from unittest import TestCase

import ddt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.waiting import LONG, SOON
from volmig import errors
from volmig.transfer.nbd import end as nbd
from volmig.transfer.nbd.end import NbdEnd

from .fakes import nothing_left, pattern
from .nbd_server import (
    ALL_FLAGS,
    CONTEXT_ID,
    FLUSH,
    HAS_FLAGS,
    MULTI,
    READ,
    READ_ONLY,
    SEND_FLUSH,
    STATUS,
    WRITE,
    WRITE_ZEROES,
    NbdServer,
    chunk,
    reply,
)

KIB = 1024
MIB = 1024 * 1024


def connect(server: NbdServer | str, *, writes: bool = True, **more: Any) -> NbdEnd:
    address = server if isinstance(server, str) else server.address
    return NbdEnd.connect(address, reads=True, writes=writes, is_destination=writes, **more)


def read_all(end: NbdEnd, offset: int = 0, size: int | None = None) -> bytes:
    data = bytearray(end.size_bytes - offset if size is None else size)
    view, done = memoryview(data), 0
    while done < len(data):
        count = end.read_some(view[done:], offset + done)
        assert count > 0
        done += count
    return bytes(data)


def write_all(end: NbdEnd, data: bytes, offset: int) -> None:
    view, done = memoryview(data), 0
    while done < len(data):
        done += end.write_some(view[done:], offset + done)


@ddt.ddt
class AddressTest(TestCase):
    @ddt.data(
        ("nbd://host", {"host": "host"}),
        ("nbd://host/", {"host": "host"}),
        ("NBD://host:1234/disk", {"host": "host", "port": 1234, "export": "disk"}),
        ("nbd://[::1]:7/a%2Fb/c", {"host": "::1", "port": 7, "export": "a/b/c"}),
        ("nbd+unix:///?socket=/run/nbd", {"socket_path": "/run/nbd"}),
        ("nbd+unix:///disk%20one?socket=/a%26b", {"socket_path": "/a&b", "export": "disk one"}),
        ("nbds://host/x?tls-certificates=/etc/a%20b", {"host": "host", "export": "x", "tls_certificates": "/etc/a b"}),
        (
            "nbds+unix:///x?tls-certificates=rel&socket=/a%26b",
            {"socket_path": "/a&b", "export": "x", "tls_certificates": "rel"},
        ),
        ("nbd+unix:////slash?socket=rel", {"socket_path": "rel", "export": "/slash"}),
    )
    @ddt.unpack
    def test_good(self, text: str, expected: dict[str, Any]) -> None:
        assert nbd.is_address(text)
        found = nbd.parse(text)
        assert found == nbd.NbdAddress(**expected)
        assert nbd.parse(found.uri) == found

    @ddt.data(
        ("nbds://host/x", "TLS"),
        ("nbds+unix:///?socket=/x", "TLS"),
        ("nbd+vsock:///x", "scheme"),
        ("nbd://", "no host"),
        ("nbd:///disk", "no host"),
        ("nbd://host:0", "port 0"),
        ("nbd://host:99999", "address"),
        ("nbd://host:x", "address"),
        ("nbd://[::1", "address"),
        ("nbd://user@host/x", "user"),
        ("nbd://host/x?tls=1", "unknown"),
        ("nbd://host/x?", "query"),
        ("nbd://host/x?socket=/x", "query"),
        ("nbd://host/x?tls-certificates=/x", "query"),
        ("nbd+unix:///?socket=/x&tls-certificates=/x", "begin with nbds"),
        ("nbds://host/x?tls-certificates=", "certificates"),
        ("nbds://host/x?tls-certificates=/x&tls-certificates=/y", "exactly once"),
        ("nbds://host/x?tls-certificates=/x&socket=/x", "query"),
        ("nbds://host/x?tls-certificates=/x&tls-verify-peer=false", "always verified"),
        ("nbds://host/x?tls-psk-file=/x", "shared keys"),
        ("nbds://me@host/x?tls-certificates=/x", "user"),
        ("nbds+vsock:///x", "scheme"),
        ("nbd://host/x#frag", "fragment"),
        ("nbd://host/x#", "fragment"),
        ("nbd://host/%ff", "UTF-8"),
        ("nbd://host/%00", "NUL"),
        ("nbd://host/" + "x" * 5000, "longer"),
        ("nbd+unix://host/?socket=/x", "three slashes"),
        ("nbd+unix:///disk", "exactly once"),
        ("nbd+unix:///?socket=", "exactly once"),
        ("nbd+unix:///?socket=/a&socket=/b", "exactly once"),
        ("nbd+unix:///?sock=/a", "unknown"),
    )
    @ddt.unpack
    def test_bad(self, text: str, reason: str) -> None:
        assert nbd.is_address(text)
        with pytest.raises(errors.RequestInvalid, match=reason):
            nbd.parse(text)

    @ddt.data("/dev/nbd0", "nbd", "./nbd://x", "nbd:host:1", Path("nbd://host"), b"nbd://host")
    def test_none(self, end: Any) -> None:
        assert not nbd.is_address(end)


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("over_unix", [True, False])
def test_reads_writes_zeroes_and_flushes(tmp_path: Path, structured: bool, over_unix: bool) -> None:
    content = pattern(300 * KIB)
    with (
        nothing_left(),
        NbdServer(
            content, directory=tmp_path if over_unix else None, export="disk one", structured=structured
        ) as server,
    ):
        with connect(server.address.replace(" ", "%20")) as end:
            assert end.size_bytes == 300 * KIB
            assert end.concurrency == 4
            assert read_all(end) == content
            assert end.read_some(memoryview(bytearray(10)), end.size_bytes) == 0
            write_all(end, b"x" * 1000, 77)
            assert end.zeroes_cheaply
            assert end.zero(4096, 8192)
            end.flush()
            assert end.version() is None
            assert end.is_still_in_place()
        expected = bytearray(content)
        expected[77:1077] = b"x" * 1000
        expected[4096:12288] = bytes(8192)
        assert server.content == expected
        assert (FLUSH, 0, 0) in server.requests
        assert server.connections == 4
    assert server.farewells == 4


def test_one_connection_without_multi_conn(tmp_path: Path) -> None:
    with NbdServer(bytes(4096), directory=tmp_path, flags=ALL_FLAGS & ~MULTI) as server, connect(server) as end:
        assert end.concurrency == server.connections == 1


def test_identity_tells_servers_and_exports_apart(tmp_path: Path) -> None:
    with NbdServer(bytes(4096), directory=tmp_path) as server, connect(server) as end:
        assert end.identity == ("nbd+unix", str(tmp_path / "nbd.sock"), "")
    with NbdServer(bytes(4096), export="a") as server, connect(server) as end:
        assert end.identity is not None
        assert end.identity[0] == "nbd"
        assert end.identity[-1] == "a"


@settings(max_examples=12, deadline=None)
@given(
    block=st.sampled_from([1, 512, 4096]),
    largest=st.sampled_from([4096, 16384]),
    writes=st.lists(st.tuples(st.integers(0, 65535), st.integers(1, 20000), st.integers(1, 255)), max_size=6),
    cut=st.integers(1, 5000),
)
def test_any_request_comes_true_within_the_servers_block_sizes(
    block: int, largest: int, writes: list[tuple[int, int, int]], cut: int
) -> None:
    expected = bytearray(65536)

    def pieces(offset: int, length: int) -> list[tuple[int, int]]:
        starts = range(offset, offset + length, cut)
        return [(start, min(cut, offset + length - start)) for start in reversed(starts)][:1000]

    with NbdServer(bytes(expected), blocks=(block, block, largest), pieces=pieces) as server:
        if 4096 // cut > 500:
            server.pieces = None
        with connect(server) as end:
            for offset, length, value in writes:
                data = bytes([value]) * min(length, 65536 - offset)
                write_all(end, data, offset)
                expected[offset : offset + len(data)] = data
            assert server.content == expected
            for offset, length, _ in writes:
                size = min(length, 65536 - offset)
                assert read_all(end, offset, size) == expected[offset : offset + size]


def test_several_threads_at_once_and_partial_blocks_between_them() -> None:
    with (
        NbdServer(bytes(64 * KIB), blocks=(4096, 4096, 65536)) as server,
        connect(server) as end,
    ):
        threads = [
            threading.Thread(target=write_all, args=(end, bytes([1 + index]) * 1000, 1000 * index))
            for index in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert server.content[:20000] == b"".join(bytes([1 + index]) * 1000 for index in range(20))


def test_extents_and_known_zeroes() -> None:
    content = bytearray(40 * 4096)
    for index in (3, 4, 9, *range(12, 36, 2), 39):
        content[index * 4096] = 1
    with NbdServer(content) as server, connect(server) as end:
        found = list(end.extents(len(content)))
        assert found[0] == (3 * 4096, 5 * 4096)
        assert found[-1] == (39 * 4096, 40 * 4096)
        inside = {at for start, stop in found for at in range(start, stop, 4096)}
        assert inside == {at for at in range(0, len(content), 4096) if any(content[at : at + 4096])}
        assert list(end.extents(5 * 4096 - 100)) == [(3 * 4096, 5 * 4096 - 100)]
        assert list(end.extents(0)) == []
        assert list(end.extents(10 * 4096, 4 * 4096)) == [(4 * 4096, 5 * 4096), (9 * 4096, 10 * 4096)]
        assert not end.known_zero(0, 4096)
        end.survey(0, len(content))
        asked = len(server.requests)
        assert end.known_zero(0, 3 * 4096)
        assert end.known_zero(4096, 100)
        assert not end.known_zero(0, 4 * 4096)
        assert not end.known_zero(3 * 4096, 4096)
        assert not end.known_zero(39 * 4096, 8192)
        assert len(server.requests) == asked


@pytest.mark.parametrize("how", ["no map", "map fails"])
def test_without_a_map_everything_is_data(how: str) -> None:
    problems = {"structured": False} if how == "no map" else {"errors": {STATUS: errno.EINVAL}}
    with NbdServer(bytes(8192), **problems) as server, connect(server) as end:  # type: ignore[arg-type]
        assert list(end.extents(8192)) == [(0, 8192)]
        end.survey(0, 8192)
        assert not end.known_zero(0, 4096)


def test_zero_is_honest_about_what_the_server_cannot() -> None:
    with NbdServer(pattern(8192), errors={WRITE_ZEROES: errno.ENOTSUP}) as server, connect(server) as end:
        assert not end.zero(0, 4096)
        assert not end.zeroes_cheaply
    with NbdServer(pattern(8192), flags=HAS_FLAGS | SEND_FLUSH) as server, connect(server) as end:
        assert not end.zero(0, 4096)
    with NbdServer(pattern(8192), blocks=(512, 512, 4096)) as server, connect(server) as end:
        assert not end.zero(1, 511)
        assert not end.zero(4096, 8192)
        assert not [request for request in server.requests if request[0] == WRITE_ZEROES]
    with NbdServer(pattern(8192), errors={WRITE_ZEROES: errno.EIO}) as server, connect(server) as end:
        with pytest.raises(OSError, match="Input/output") as raised:
            end.zero(0, 4096)
        assert raised.value.errno == errno.EIO


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize(("sent", "seen"), [(errno.ENOSPC, errno.ENOSPC), (errno.EIO, errno.EIO), (9999, errno.EIO)])
def test_errors_of_the_server_are_errors_of_the_system(structured: bool, sent: int, seen: int) -> None:
    with (
        NbdServer(bytes(8192), structured=structured, errors={READ: sent, WRITE: sent, FLUSH: sent}) as server,
        connect(server) as end,
    ):
        for request in (
            lambda: end.read_some(memoryview(bytearray(512)), 0),
            lambda: end.write_some(memoryview(b"x" * 512), 0),
            end.flush,
        ):
            with pytest.raises(OSError, match="NBD server says") as raised:
                request()
            assert raised.value.errno == seen
        server.errors = {}
        # An error is no broken connection.
        assert end.read_some(memoryview(bytearray(512)), 0) == 512


def test_writing_behind_the_end() -> None:
    with NbdServer(bytes(8192)) as server, connect(server) as end:
        with pytest.raises(OSError, match="ends at byte 8192") as raised:
            end.write_some(memoryview(bytes(100)), 8150)
        assert raised.value.errno == errno.ENOSPC


@ddt.ddt
class LiesTest(TestCase):
    """A server that breaks a rule is found out, and its connection not used again."""

    def lie(self, structured: bool, tamper: Any, *, status: bool = False) -> None:
        with (
            nothing_left(),
            NbdServer(pattern(8192), structured=structured, tamper=tamper, flags=ALL_FLAGS & ~MULTI) as server,
            connect(server) as end,
        ):
            buffer = memoryview(bytearray(1000))
            for _ in range(2):
                request = (lambda: list(end.extents(8192))) if status else (lambda: [end.read_some(buffer, 100)])
                with pytest.raises((OSError, errors.TransferFailed), match="NBD: "):
                    request()

    @ddt.data(
        lambda _, answer: b"\0" * 4 + answer[4:],
        lambda _, answer: answer[:8] + b"\xff" * 8 + answer[16:],
    )
    def test_simple_replies(self, tamper: Any) -> None:
        self.lie(False, tamper)

    @ddt.data(
        ("magic", lambda _: b"\0" * 20),
        ("handle", lambda handle: chunk(handle + 1, 2, struct.pack(">QI", 100, 1000), last=True)),
        ("before", lambda handle: chunk(handle, 1, struct.pack(">Q", 99) + b"x" * 10, last=True)),
        ("behind", lambda handle: chunk(handle, 1, struct.pack(">Q", 1090) + b"x" * 11, last=True)),
        ("huge", lambda handle: struct.pack(">IHHQI", 0x668E33EF, 1, 1, handle, 0xFFFFFFFF) + bytes(8)),
        ("huge hole", lambda handle: chunk(handle, 2, struct.pack(">QI", 100, 0xFFFFFFFF), last=True)),
        ("empty data", lambda handle: chunk(handle, 1, struct.pack(">Q", 100), last=True)),
        ("no data", lambda handle: chunk(handle, 0, b"", last=True)),
        ("short hole", lambda handle: chunk(handle, 2, b"abc", last=True)),
        ("part only", lambda handle: chunk(handle, 2, struct.pack(">QI", 100, 999), last=True)),
        (
            "twice",
            lambda handle: (
                chunk(handle, 2, struct.pack(">QI", 100, 600), last=False)
                + chunk(handle, 2, struct.pack(">QI", 400, 700), last=True)
            ),
        ),
        ("kind", lambda handle: chunk(handle, 9, b"", last=True)),
        ("status", lambda handle: chunk(handle, 5, struct.pack(">III", CONTEXT_ID, 1, 0), last=True)),
        ("full none", lambda handle: chunk(handle, 0, b"x", last=True)),
        ("endless none", lambda handle: chunk(handle, 0, b"", last=False)),
        ("simple", lambda handle: struct.pack(">IIQ", 0x67446698, 0, handle)),
        ("short error", lambda handle: chunk(handle, 0x8001, b"abc", last=True)),
        ("long text", lambda handle: chunk(handle, 0x8001, struct.pack(">IH", 5, 999), last=True)),
        ("vast error", lambda handle: struct.pack(">IHHQI", 0x668E33EF, 1, 0x8001, handle, 1 << 30)),
        ("gone", lambda _: b"GONE"),
    )
    @ddt.unpack
    def test_structured_reads(self, lie: str, forge: Any) -> None:
        def tamper(command: int, answer: bytes) -> bytes:
            forged: bytes = forge(struct.unpack_from(">Q", answer, 8)[0])
            return forged + bytes(64)

        self.lie(True, tamper)

    @ddt.data(
        struct.pack(">I", CONTEXT_ID),
        struct.pack(">III", CONTEXT_ID + 1, 8192, 0),
        struct.pack(">III", CONTEXT_ID, 0, 0),
        struct.pack(">IIIII", CONTEXT_ID, 8192, 0, 1, 0),
        struct.pack(">IIII", CONTEXT_ID, 8192, 0, 1),
    )
    def test_maps(self, payload: bytes) -> None:
        def tamper(command: int, answer: bytes) -> bytes:
            return chunk(struct.unpack_from(">Q", answer, 8)[0], 5, payload, last=True)

        self.lie(True, tamper, status=True)

    def test_a_map_that_says_too_much_is_cut(self) -> None:
        def tamper(command: int, answer: bytes) -> bytes:
            handle = struct.unpack_from(">Q", answer, 8)[0]
            return chunk(handle, 5, struct.pack(">III", CONTEXT_ID, 0xFFFFFFFF, 0), last=True)

        with NbdServer(pattern(8192), tamper=tamper) as server, connect(server) as end:
            assert list(end.extents(8192)) == [(0, 8192)]

    @ddt.data(
        (b"SSH-2.0-OpenSSH" + bytes(20), "no NBD server"),
        (b"NBDMAGIC" + struct.pack(">Q", 0x420281861253) + bytes(2), "too old"),
        (b"NBDMAGICIHAVEOPT\0\0", "too old"),
    )
    @ddt.unpack
    def test_greetings(self, hello: bytes, reason: str) -> None:
        with (
            nothing_left(),
            NbdServer(bytes(4096), hello=hello) as server,
            pytest.raises(errors.TransferFailed, match=reason),
        ):
            connect(server)

    @ddt.data(
        (7, reply(7, 0x80000005), "TLS"),
        (8, reply(8, 0x80000005), "TLS"),
        (7, reply(7, 0x80000001), "does not know"),
        (7, reply(7, 0x80000006, b"what?"), "no such export.*what"),
        (7, reply(7, 1), "does not tell the size"),
        (7, reply(8, 1), "something else"),
        (7, reply(7, 3, struct.pack(">H", 0)), "malformed"),
        (7, reply(7, 3, struct.pack(">HQH", 0, 1 << 63, 1)) + reply(7, 1), "cannot be"),
        (7, reply(7, 3, struct.pack(">HQH", 0, 4096, 0)) + reply(7, 1), "cannot be"),
        (
            7,
            reply(7, 3, struct.pack(">HQH", 0, 4096, 5)) + reply(7, 3, struct.pack(">HIII", 3, 3, 3, 3)),
            "malformed|be",
        ),
        (
            7,
            reply(7, 3, struct.pack(">HQH", 0, 100, 5)) + reply(7, 3, struct.pack(">HIII", 3, 512, 512, 4096)),
            "multiple",
        ),
        (7, struct.pack(">QIII", 0x3E889045565A9, 7, 3, 1 << 30), "has 1073741824 bytes"),
        (8, reply(8, 1, b"x"), "has data"),
        (8, reply(8, 3, b"x"), "unexpected"),
        (10, reply(10, 4, struct.pack(">I", 1) + b"other:thing"), "not asked for"),
        (10, reply(10, 4, struct.pack(">I", 1) + b"base:allocation") * 2, "not asked for"),
        (7, reply(7, 3, struct.pack(">H", 9)) * 1100, "without end"),
    )
    @ddt.unpack
    def test_options(self, option: int, answer: bytes, reason: str) -> None:
        sent = answer + (reply(7, 1) if "multiple" in reason or "|be" in reason else b"")
        with (
            nothing_left(),
            NbdServer(bytes(4096), option=lambda number, _: sent if number == option else None) as server,
            pytest.raises(errors.TransferFailed, match=reason),
        ):
            connect(server)


def test_a_server_that_refuses_maps_serves_all_the_same() -> None:
    with (
        NbdServer(bytes(4096), option=lambda number, _: reply(10, 0x80000002) if number == 10 else None) as server,
        connect(server) as end,
    ):
        assert list(end.extents(4096)) == [(0, 4096)]


def test_what_cannot_be_a_destination() -> None:
    with nothing_left(), NbdServer(bytes(4096), flags=ALL_FLAGS | READ_ONLY) as server:
        with pytest.raises(errors.RequestInvalid, match="read-only"):
            connect(server)
        connect(server, writes=False).close()
    with nothing_left(), NbdServer(bytes(4096), flags=HAS_FLAGS) as server:
        with pytest.raises(errors.RequestInvalid, match="flush"):
            connect(server)
        connect(server, writes=False).close()


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with nothing_left():
        for address in (f"nbd://127.0.0.1:{port}", f"nbd+unix:///?socket={tmp_path}/absent"):
            with pytest.raises(errors.TransferFailed, match="connecting") as raised:
                connect(address)
            assert raised.value.fields["path"] == address
            assert isinstance(raised.value.__cause__, OSError)


def test_a_server_that_says_nothing_is_given_up() -> None:
    begun = time.monotonic()
    with nothing_left(), NbdServer(bytes(4096), hello=b"NBD") as server:
        with pytest.raises(errors.TransferFailed, match="connecting"):
            connect(server, timeout_seconds=0.2)
        assert time.monotonic() - begun < SOON


@pytest.mark.parametrize("multi", [True, False])
def test_closing_ends_requests_that_hang(multi: bool) -> None:
    flags = ALL_FLAGS if multi else ALL_FLAGS & ~MULTI
    failed: list[BaseException] = []
    with nothing_left(), NbdServer(bytes(8192), silent=frozenset({READ}), flags=flags) as server:
        end = connect(server)

        def read() -> None:
            try:
                end.read_some(memoryview(bytearray(4096)), 0)
            except OSError as exc:
                failed.append(exc)

        threads = [threading.Thread(target=read) for _ in range(6)]
        for thread in threads:
            thread.start()
        while len(server.requests) < end.concurrency:
            time.sleep(0.01)
        begun = time.monotonic()
        end.close()
        for thread in threads:
            thread.join(LONG)
        assert time.monotonic() - begun < SOON
        assert len(failed) == 6
        end.close()
        with pytest.raises(OSError, match="closed"):
            end.read_some(memoryview(bytearray(10)), 0)


def test_a_lost_connection_is_an_error_and_stays_one() -> None:
    with nothing_left(), NbdServer(bytes(8192), flags=ALL_FLAGS & ~MULTI) as server, connect(server) as end:
        server.__exit__(None, None, None)
        for _ in range(2):
            with pytest.raises(OSError, match=r"NBD|reset|pipe|Broken"):
                end.read_some(memoryview(bytearray(10)), 0)
