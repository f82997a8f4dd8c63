"""Exports by qemu-nbd, and migrations that go through them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.connectors.nbd import NbdConnector
from volmig.drivers.targets.nbd import NbdExporter
from volmig.drivers.targets.servers import Server, find
from volmig.transfer.nbd.end import NbdEnd

from .certificates import make_all, make_certificate
from .cli_support import MIB, REPOSITORY, SLOW, Cli, environment, until
from .images import CONTENT, read_all
from .test_nbd_tls import free_port

HERE = {"host": "here"}
SIZE = 16 * MIB + 4096


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = make_all(tmp_path_factory.mktemp("tls") / "certificates")
    # What the host that exports shows to its own servers.
    make_certificate(found / "server", found / "authority", "client", "here")
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


def options(tmp_path: Path, certificates: Path, **more: Any) -> dict[str, Any]:
    return {
        "target_protocol": "nbd",
        "target_ip_address": "127.0.0.1",
        "target_port": free_port(),
        "target_tls_directory": str(certificates / "server"),
        "target_run_directory": str(tmp_path / "run"),
    } | more


def exporter(given: dict[str, Any]) -> NbdExporter:
    return NbdExporter(given, backend="one", host="here")


def opened(data: dict[str, Any]) -> NbdEnd:
    return NbdEnd.connect(NbdConnector().connect(data), reads=True, writes=True, is_destination=True)


def server_of(data: dict[str, Any]) -> list[Server]:
    return find("qemu-nbd", f"--export-name={data['uri'].rpartition('/')[2]}")


def test_what_is_exported_is_read_and_written(tmp_path: Path, certificates: Path, disk: Path) -> None:
    ours = exporter(options(tmp_path, certificates))
    try:
        data = ours.connection("v1", str(disk), HERE)["data"]
        with opened(data) as end:
            assert read_all(end) == CONTENT
            end.write_some(memoryview(b"x" * 4096), MIB)
            end.flush()
        assert disk.read_bytes()[MIB : MIB + 4096] == b"x" * 4096
        [server] = server_of(data)
        opened(data).close()
        other = ours.connection("v2", str(disk.with_name("disk")), HERE)["data"]
        assert other["uri"] != data["uri"]
    finally:
        ours.remove("v1")
        ours.remove("v2")
    assert not server.is_running()
    with pytest.raises(errors.TransferFailed, match="refused"):
        opened(data)
    assert list((tmp_path / "run").iterdir()) == []


def test_two_hosts_write_to_one_volume_and_one_is_cut_off(tmp_path: Path, certificates: Path, disk: Path) -> None:
    given = options(tmp_path, certificates, target_tls_client_name="CN={host}")
    ours = exporter(given)
    there = make_certificate(certificates / "there", certificates / "authority", "client", "there")
    try:
        one = ours.connection("v1", str(disk), HERE)["data"]
        two = ours.connection("v1", str(disk), {"host": "there"})["data"] | {"tls_certificates": str(there)}
        assert one["uri"] != two["uri"]
        # Each of them is let in by its own name only.
        for data, other in ((one, two), (two, one)):
            with pytest.raises(errors.TransferFailed, match=r"not accept|TLS"):
                opened(data | {"tls_certificates": other["tls_certificates"]})
        with opened(one) as first:
            second = opened(two)
            try:
                for end, byte, offset in ((first, b"1", 0), (second, b"2", MIB)):
                    end.write_some(memoryview(byte * 4096), offset)
                    end.flush()
                with pytest.raises(errors.VolumeInUse, match=r"127\.0\.0\.1"):
                    ours.remove("v1")
                ours.terminate("v1", {"host": "there"})
                with pytest.raises(OSError, match="the server ended the connection"):
                    second.flush()
            finally:
                second.close()
            first.write_some(memoryview(b"3" * 4096), 2 * MIB)
            first.flush()
        with pytest.raises(errors.TransferFailed, match="refused"):
            opened(two)
    finally:
        ours.terminate("v1", HERE)
        ours.remove("v1")
    data = disk.read_bytes()
    assert [data[at : at + 4096] for at in (0, MIB, 2 * MIB)] == [b"1" * 4096, b"2" * 4096, b"3" * 4096]
    assert list((tmp_path / "run").iterdir()) == []


def test_only_the_host_with_the_right_name_is_let_in(tmp_path: Path, certificates: Path, disk: Path) -> None:
    ours = exporter(options(tmp_path, certificates, target_tls_client_name="CN={host}"))
    try:
        opened(ours.connection("v1", str(disk), HERE)["data"]).close()
        ours.remove("v1")
        data = ours.connection("v1", str(disk), {"host": "there"})["data"]
        with pytest.raises(errors.TransferFailed, match=r"not accept|TLS"):
            opened(data | {"tls_certificates": str(certificates / "client")})
    finally:
        ours.remove("v1")


def test_a_server_that_cannot_start_says_why(tmp_path: Path, certificates: Path, disk: Path) -> None:
    ours = exporter(options(tmp_path, certificates, target_tls_directory=str(tmp_path / "none")))
    with pytest.raises(errors.ExportFailed, match=r"ca-cert\.pem"):
        ours.connection("v1", str(disk), HERE)
    assert ours.exports() == []


OWNER = """
import json, os, signal, sys
from volmig.drivers.lvm.commands import Commands
from volmig.drivers.targets.nbd import NbdExporter

class Deadly(Commands):
    def run(self, *arguments, stdin=None):
        super().run(*arguments, stdin=stdin)
        os.kill(os.getpid(), signal.SIGKILL)

options, device, when = json.loads(sys.argv[1])
commands = Deadly() if when == "between" else None
exporter = NbdExporter(options, backend="one", host="here", commands=commands)
print(json.dumps(exporter.connection("v1", device, {"host": "here"})["data"]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["after", "between"])
def test_it_is_found_again_when_its_owner_was_killed(tmp_path: Path, certificates: Path, disk: Path, when: str) -> None:

    given = options(tmp_path, certificates)
    owner = subprocess.run(
        [sys.executable, "-c", OWNER, json.dumps([given, str(disk), when])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPOSITORY,
        env=environment(),
    )
    assert owner.returncode == -signal.SIGKILL, owner.stderr
    ours = exporter(given)
    assert ours.exports() == ["v1"]
    [on_record] = json.loads(next((tmp_path / "run").glob("*.json")).read_text())["servers"]
    export = on_record["export"]
    [server] = find("qemu-nbd", f"--export-name={export}")
    try:
        data = ours.connection("v1", str(disk), HERE)["data"]
        if when == "after":
            assert data == json.loads(owner.stdout)
            assert server_of(data) == [server]
        else:
            # Its start was not seen, so that nobody knows whether it was complete.
            assert not server.is_running()
            assert len(server_of(data)) == 1
        with opened(data) as end:
            assert read_all(end) == CONTENT
    finally:
        ours.terminate("v1", HERE)
    assert server_of(data) == []
    assert not server.is_running()
    assert ours.exports() == []


CONFIGURATION = """\
[DEFAULT]
enabled_backends = alpha, beta
host = here
state_path = {directory}/state

[migration]
heartbeat_seconds = 0.1
lease_seconds = 6.0

[alpha]
volume_driver = tests.functional.nbd_driver:NbdFileDriver
file_directory = {directory}/alpha
nbd_tls = {tls}
nbd_run = {directory}/run
nbd_port = {port}

[beta]
volume_driver = tests.functional.nbd_driver:NbdFileDriver
file_directory = {directory}/beta
nbd_tls = {tls}
nbd_run = {directory}/run
nbd_port = {port}
"""


@pytest.fixture
def cli(tmp_path: Path, certificates: Path) -> Iterator[Cli]:
    made = Cli(tmp_path)
    for name in ("alpha", "beta"):
        (tmp_path / name).mkdir()
    made.config.write_text(CONFIGURATION.format(directory=tmp_path, tls=certificates / "server", port=free_port()))
    yield made
    # Those that a test which failed has left.
    for pid in servers_below(tmp_path):
        os.kill(int(pid), signal.SIGKILL)


def servers_below(directory: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0] == b"qemu-nbd" and any(os.fsencode(str(directory)) in word for word in words):
                found.append(entry.name)
    return found


def assert_moved(cli: Cli, volume: dict[str, Any], data: bytes) -> None:
    [file] = cli.files("beta", volume["id"])
    assert file.read_bytes() == data
    assert cli.files("alpha") == []
    assert servers_below(cli.directory) == []
    assert list((cli.directory / "run").iterdir()) == []


def test_a_volume_is_migrated_through_two_exports(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    moved = cli.json("volume", "migrate", "--wait", "--force-host-copy", "v", "here@beta#beta")
    assert moved["phase"] == "success"
    assert moved["source_digest"] == moved["destination_digest"] != ""
    assert_moved(cli, volume, data)


def test_a_migration_whose_worker_is_killed_begins_anew(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    words = ("volume", "migrate", "--wait", "--force-host-copy", "--limit", SLOW, "v", "here@beta#beta")
    with cli.running(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        cli.moving("v")
        assert len(servers_below(cli.directory)) == 2
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)
    assert len(servers_below(cli.directory)) == 2

    def recovered() -> bool:
        cli("migration", "recover", check=None)
        [migration] = cli.json("migration", "list", "--volume", "v", "--long")
        return bool(migration["phase"] == "success")

    until(recovered, "the migration goes on", 90)
    assert_moved(cli, volume, data)
