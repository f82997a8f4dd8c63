"""NBD over TLS, against a server of the tests' own, within this process."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG, SOON
from volmig import errors
from volmig.transfer.nbd.end import NbdEnd
from volmig.transfer.nbd.tls import Tls, TlsError, TlsSession

from . import certificates
from .certificates import client_directory, server_context
from .fakes import nothing_left, pattern
from .nbd_server import READ, STARTTLS, NbdServer, chunk, reply, take
from .test_nbd import MIB, read_all, write_all


def with_certificates(server: NbdServer, directory: Path) -> str:
    mark = "&" if "?" in server.address else "?"
    return f"{server.address.replace('nbd', 'nbds', 1)}{mark}tls-certificates={directory}"


def connect(server: NbdServer, directory: Path, **more: Any) -> NbdEnd:
    return NbdEnd.connect(with_certificates(server, directory), reads=True, writes=True, is_destination=True, **more)


@pytest.fixture
def client(tmp_path: Path) -> Path:
    return client_directory(tmp_path / "client")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("over_unix", [True, False])
def test_all_goes_through_tls(tmp_path: Path, client: Path, version: ssl.TLSVersion, over_unix: bool) -> None:
    context = server_context(tmp_path / "server")
    context.maximum_version = context.minimum_version = version
    expected = bytearray(pattern(3 * MIB)) + bytes(MIB)
    directory = tmp_path if over_unix else None
    with nothing_left(), NbdServer(bytes(expected), directory=directory, export="secret", tls=context) as server:
        with connect(server, client) as end:
            assert end.concurrency == 4
            assert read_all(end) == expected
            assert list(end.extents(4 * MIB)) == [(0, 3 * MIB)]
            data = pattern(2 * MIB + 77, seed=3)
            write_all(end, data, 4096 * 5 + 1)
            expected[4096 * 5 + 1 : 4096 * 5 + 1 + len(data)] = data
            assert end.zero(MIB, MIB)
            expected[MIB : 2 * MIB] = bytes(MIB)
            end.flush()
            assert read_all(end) == expected
        assert server.content == expected
        assert server.options_in_clear == [STARTTLS] * 4
    assert server.farewells == 4


def test_a_server_without_tls_learns_nothing(client: Path) -> None:
    with nothing_left(), NbdServer(bytes(4096), export="secret") as server:
        with pytest.raises(errors.TransferFailed, match="TLS: the server does not offer it"):
            connect(server, client)
        assert server.options_in_clear == [STARTTLS]
        assert not server.requests


def test_what_is_sent_in_clear_behind_the_acknowledgement_is_not_believed(tmp_path: Path, client: Path) -> None:
    def slip_in(option: int, _: bytes) -> bytes:
        return reply(STARTTLS, 1) + reply(8, 1)

    with nothing_left(), NbdServer(bytes(4096), tls=server_context(tmp_path / "s"), option=slip_in) as server:
        with pytest.raises(errors.TransferFailed, match="TLS: "):
            connect(server, client)
        assert server.options_in_clear == [STARTTLS]


def test_an_acknowledgement_with_data_is_none(tmp_path: Path, client: Path) -> None:
    def odd(option: int, _: bytes) -> bytes:
        return reply(STARTTLS, 1, b"x")

    with (
        nothing_left(),
        NbdServer(bytes(4096), tls=server_context(tmp_path / "s"), option=odd) as server,
        pytest.raises(errors.TransferFailed, match="unexpected"),
    ):
        connect(server, client)


@pytest.mark.parametrize(
    ("files", "host", "reason"),
    [
        ({"ca_cert": certificates.OTHER_AUTHORITY}, "127.0.0.1", "not believed: self-signed certificate"),
        ({}, "localhost", "not believed: Hostname mismatch"),
        ({"ca_crl": certificates.REVOKED}, "127.0.0.1", "not believed: certificate revoked"),
    ],
)
def test_a_server_that_is_not_to_be_believed(tmp_path: Path, files: dict[str, str], host: str, reason: str) -> None:
    directory = client_directory(tmp_path / "client", **files)
    with nothing_left(), NbdServer(bytes(4096), tls=server_context(tmp_path / "server")) as server:
        server.address = server.address.replace("127.0.0.1", host)
        with pytest.raises(errors.TransferFailed, match=reason):
            connect(server, directory)
        assert not server.requests


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_wants_another_client(tmp_path: Path, version: ssl.TLSVersion) -> None:
    directory = client_directory(tmp_path / "client", client_cert="", client_key="")
    context = server_context(tmp_path / "server")
    context.maximum_version = context.minimum_version = version
    with (
        nothing_left(),
        NbdServer(bytes(4096), tls=context) as server,
        pytest.raises(errors.TransferFailed, match=r"TLS: the server ends it|may not accept this client"),
    ):
        connect(server, directory)
    with nothing_left(), NbdServer(bytes(4096), tls=server_context(tmp_path / "2", verifies=False)) as server:
        connect(server, directory).close()


def test_only_tls_of_today_is_spoken(client: Path) -> None:
    tls = Tls.from_directory(str(client), host="storage.example")
    assert tls.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert tls.context.verify_mode is ssl.CERT_REQUIRED
    assert tls.context.check_hostname
    # None but those of the directory: not the system's, either.
    assert len(tls.context.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"ca_cert": ""}, r"ca-cert\.pem: No such file"),
        ({"ca_cert": "nothing"}, r"ca-cert\.pem does not hold what it should"),
        ({"ca_crl": "nothing"}, r"ca-crl\.pem does not hold what it should"),
        ({"client_key": ""}, r"client-key\.pem is missing"),
        ({"client_cert": ""}, r"client-cert\.pem is missing"),
        ({"client_key": certificates.SERVER_KEY}, "are no pair"),
        ({"client_key": certificates.ENCRYPTED_KEY}, "is encrypted"),
    ],
)
def test_certificates_that_cannot_be_used(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    directory = client_directory(tmp_path / "client", **files)
    with nothing_left(), NbdServer(bytes(4096)) as server, pytest.raises(errors.RequestInvalid, match=reason) as raised:
        connect(server, directory)
    assert "ca-cert.pem" in raised.value.hint
    assert not server.connections
    assert "PRIVATE" not in str(raised.value)


def test_a_directory_that_there_is_not(tmp_path: Path) -> None:
    with NbdServer(bytes(4096)) as server, pytest.raises(errors.RequestInvalid, match="not a directory"):
        connect(server, tmp_path / "none")


def test_a_key_that_everyone_may_read_is_refused(client: Path) -> None:
    (client / "client-key.pem").chmod(0o644)
    with NbdServer(bytes(4096)) as server, pytest.raises(errors.RequestInvalid, match="everyone may use"):
        connect(server, client)


def test_a_handshake_without_end(tmp_path: Path, client: Path) -> None:
    class Mute(NbdServer):
        def _serve_greeted(self, one: socket.socket) -> None:
            raise AssertionError

        def _take_starttls(self, one: socket.socket) -> None:
            super()._take_starttls(one)
            self.stopped.wait(LONG)
            raise OSError

    begun = time.monotonic()
    with nothing_left(), Mute(bytes(4096), tls=server_context(tmp_path / "server")) as server:
        with pytest.raises(errors.TransferFailed, match="timed out"):
            connect(server, client, timeout_seconds=0.3)
        assert time.monotonic() - begun < SOON


def test_a_request_that_hangs_is_ended_from_another_thread(tmp_path: Path, client: Path) -> None:
    context = server_context(tmp_path / "server")
    with (
        nothing_left(),
        NbdServer(pattern(8192), tls=context, silent=frozenset({READ})) as server,
        connect(server, client) as end,
    ):
        failed: list[BaseException] = []

        def read() -> None:
            try:
                read_all(end)
            except OSError as exc:
                failed.append(exc)

        thread = threading.Thread(target=read)
        thread.start()
        while not server.requests:
            time.sleep(0.01)
        begun = time.monotonic()
        end.close()
        thread.join(LONG)
        assert time.monotonic() - begun < SOON
        assert len(failed) == 1


def test_a_write_that_hangs_is_ended_from_another_thread(tmp_path: Path, client: Path) -> None:
    """The server takes nothing more, so that the client waits for room to send."""
    met = threading.Event()

    class Full(NbdServer):
        def _answer(self, one: socket.socket, structured: bool) -> None:
            take(one, 28)
            met.set()
            self.stopped.wait(LONG)
            raise OSError

    context = server_context(tmp_path / "server")
    with nothing_left(), Full(bytes(32 * MIB), tls=context) as server, connect(server, client) as end:
        failed: list[BaseException] = []

        def write() -> None:
            try:
                write_all(end, bytes(32 * MIB), 0)
            except OSError as exc:
                failed.append(exc)

        thread = threading.Thread(target=write)
        thread.start()
        assert met.wait(LONG)
        time.sleep(0.1)
        begun = time.monotonic()
        end.close()
        thread.join(LONG)
        assert time.monotonic() - begun < SOON
        assert len(failed) == 1


@pytest.mark.parametrize("clear", [b"", b"x" * 64, chunk(1, 0, b"", last=True)])
def test_what_does_not_come_through_tls_is_not_believed(tmp_path: Path, client: Path, clear: bytes) -> None:
    """The connection ends, or is taken over by somebody without the keys, in the middle of a request."""

    class Broken(NbdServer):
        def _answer(self, one: socket.socket, structured: bool) -> None:
            take(one, 28)
            socket.socket.send(one, clear)
            raise OSError

    context = server_context(tmp_path / "server")
    with nothing_left(), Broken(pattern(8192), tls=context) as server, connect(server, client) as end:
        with pytest.raises(OSError, match=r"TLS|ended the connection"):
            read_all(end)
        with pytest.raises(OSError, match=r"broken|TLS|ended the connection"):
            write_all(end, bytes(8192), 0)


def test_a_name_that_no_certificate_can_have(client: Path) -> None:
    with pytest.raises(TlsError, match="no certificate can have"):
        TlsSession(Tls.from_directory(str(client), host="."))
