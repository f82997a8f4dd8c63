"""NBD over TLS with the servers that people run, and nbdcopy as the other client."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.transfer.fakes import nothing_left
from volmig import errors
from volmig.transfer import CopyOptions, Verify, copy
from volmig.transfer.control import Control
from volmig.transfer.nbd.end import NbdEnd

from .certificates import make_all, make_authority, make_certificate
from .images import CONTENT, MIB, read_all


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def qemu_nbd(path: Path, port: int, certificates: Path | None) -> list[str]:
    credentials = f"tls-creds-x509,id=tls,endpoint=server,dir={certificates},verify-peer=on"
    return [
        *("qemu-nbd", "--persistent", "--shared=8", "--bind=127.0.0.1", f"--port={port}", "--export-name=disk"),
        *(("--object", credentials, "--tls-creds=tls") if certificates else ()),
        *("--format=raw", str(path)),
    ]


def nbdkit(path: Path, port: int, certificates: Path | None, *, delay: bool = False) -> list[str]:
    tls = (f"--tls-certificates={certificates}", "--tls-verify-peer", "--tls=require") if certificates else ()
    return [
        *("nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "-e", "disk", *tls),
        *(("--filter=delay",) if delay else ()),
        *("file", str(path)),
        *(("rdelay=60",) if delay else ()),
    ]


@contextlib.contextmanager
def served(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + 10
            while True:
                assert server.poll() is None, command
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert time.monotonic() < end
                time.sleep(0.02)
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


SERVERS = pytest.mark.parametrize("server", [qemu_nbd, nbdkit])
Server = Callable[..., list[str]]


def address(port: int, directory: Path, host: str = "127.0.0.1") -> str:
    return f"nbds://{host}:{port}/disk?tls-certificates={directory}"


def connect(where: str) -> NbdEnd:
    return NbdEnd.connect(where, reads=True, writes=True, is_destination=True)


@SERVERS
@pytest.mark.parametrize("engine", ["chunked", "nbdcopy"])
def test_a_copy_there_and_back_is_identical(tmp_path: Path, certificates: Path, server: Server, engine: str) -> None:
    source, remote, back = tmp_path / "source", tmp_path / "remote", tmp_path / "back"
    source.write_bytes(CONTENT)
    remote.write_bytes(b"\xaa" * len(CONTENT))
    back.write_bytes(b"\xbb" * len(CONTENT))
    port = free_port()
    options = CopyOptions(engine=engine, verify=Verify.DIGEST)
    with served(server(remote, port, certificates / "server"), port), nothing_left():
        where = address(port, certificates / "client")
        there = copy(str(source), where, size_bytes=len(CONTENT), options=options)
        again = copy(where, str(back), size_bytes=len(CONTENT), options=options)
    assert remote.read_bytes() == back.read_bytes() == CONTENT
    assert there.source_digest == there.destination_digest == again.source_digest != ""


@SERVERS
def test_who_is_not_to_be_believed_or_let_in(tmp_path: Path, certificates: Path, disk: Path, server: Server) -> None:
    other = make_authority(tmp_path / "other")
    make_certificate(tmp_path / "wrong-ca", other, "client", "here")
    (tmp_path / "wrong-client").mkdir()
    for name in ("client-cert.pem", "client-key.pem"):
        (tmp_path / "wrong-client" / name).write_bytes((tmp_path / "wrong-ca" / name).read_bytes())
        (tmp_path / "wrong-client" / name).chmod(0o600)
    (tmp_path / "nobody").mkdir()
    for directory in ("wrong-client", "nobody"):
        (tmp_path / directory / "ca-cert.pem").write_bytes((certificates / "authority/ca-cert.pem").read_bytes())
    port = free_port()
    with served(server(disk, port, certificates / "server"), port), nothing_left():
        connect(address(port, certificates / "client")).close()
        for directory, reason in (
            ("wrong-ca", "the server's certificate is not believed"),
            ("wrong-client", "TLS: |not accept"),
            ("nobody", "TLS: |not accept"),
        ):
            with pytest.raises(errors.TransferFailed, match=reason):
                connect(address(port, tmp_path / directory))
        plain = f"nbd://127.0.0.1:{port}/disk"
        with pytest.raises(errors.TransferFailed, match="nbds"):
            connect(plain)
    misnamed = make_certificate(tmp_path / "misnamed", certificates / "authority", "server", "x", "DNS:other.example")
    port = free_port()
    with served(server(disk, port, misnamed), port), nothing_left():
        with pytest.raises(errors.TransferFailed, match="not believed: IP address mismatch"):
            connect(address(port, certificates / "client"))
        with pytest.raises(errors.TransferFailed, match="not believed: Hostname mismatch"):
            connect(address(port, certificates / "client", host="localhost"))
    port = free_port()
    with (
        served(server(disk, port, None), port),
        nothing_left(),
        pytest.raises(errors.TransferFailed, match="TLS: the server does not offer it"),
    ):
        connect(address(port, certificates / "client"))


@SERVERS
def test_a_server_that_is_killed(certificates: Path, disk: Path, server: Server) -> None:
    port = free_port()
    with (
        nothing_left(),
        served(server(disk, port, certificates / "server"), port) as process,
        connect(address(port, certificates / "client")) as end,
    ):
        assert read_all(end) == CONTENT
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        with pytest.raises(OSError, match=r"ended the connection|reset|Broken pipe"):
            read_all(end)


def test_cancel_while_the_server_hangs(tmp_path: Path, certificates: Path, disk: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(bytes(len(CONTENT)))
    control, failed = Control(), []
    port = free_port()
    with served(nbdkit(disk, port, certificates / "server", delay=True), port), nothing_left():

        def run() -> None:
            try:
                copy(address(port, certificates / "client"), str(local), size_bytes=len(CONTENT), control=control)
            except errors.TransferCancelled as exc:
                failed.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.7)
        begun = time.monotonic()
        control.cancel()
        thread.join(20)
        assert time.monotonic() - begun < 2
        assert failed


def test_over_a_unix_socket(tmp_path: Path, certificates: Path, disk: Path) -> None:
    place = tmp_path / "sock"
    command = [
        *("nbdkit", "-f", "-U", str(place), "--tls=require", "--tls-verify-peer"),
        *(f"--tls-certificates={certificates / 'server'}", "file", str(disk)),
    ]
    back = tmp_path / "back"
    with subprocess.Popen(command) as server:
        try:
            end = time.monotonic() + 10
            while not place.exists():
                assert time.monotonic() < end
                time.sleep(0.02)
            where = f"nbds+unix:///?socket={place}&tls-certificates={certificates / 'client'}"
            for engine in ("chunked", "nbdcopy"):
                back.write_bytes(b"\xaa" * len(CONTENT))
                copy(where, str(back), size_bytes=len(CONTENT), options=CopyOptions(engine=engine))
                assert back.read_bytes() == CONTENT
        finally:
            server.terminate()


def test_the_command_copies_by_an_address_with_tls(tmp_path: Path, certificates: Path, disk: Path) -> None:
    from .cli_support import make_cli

    cli, remote, port = make_cli(tmp_path), tmp_path / "remote", free_port()
    remote.write_bytes(b"\xaa" * (len(CONTENT) + MIB))
    with served(qemu_nbd(remote, port, certificates / "server"), port):
        shown: dict[str, Any] = cli.json("copy", str(disk), address(port, certificates / "client"))
        assert shown["source_digest"] == shown["destination_digest"]
        refused = cli("copy", str(disk), f"nbds://127.0.0.1:{port}/disk", check=None)
        assert refused.returncode
        assert "tls-certificates" in refused.stderr
    assert remote.read_bytes() == CONTENT + b"\xaa" * MIB
