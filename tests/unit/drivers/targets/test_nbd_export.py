"""The NBD exporter, with processes that only look like servers: real ones, found and ended by what /proc tells."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG
from volmig import errors
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.targets.nbd import NbdExporter
from volmig.drivers.targets.servers import Server, find
from volmig.drivers.targets.tcp_peers import peers_of

HERE = {"host": "here"}


def is_running(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


class Machine:
    """Takes the place of what runs programs: a server is a process that does nothing, with the right arguments.

    :ivar refusals: what it says instead of starting the next servers.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.refusals: list[str] = []
        self.commands: list[tuple[str, ...]] = []
        self.is_stubborn = False
        self.dies_at_once = False

    def run(self, *arguments: str) -> str:
        self.commands.append(arguments)
        if self.refusals:
            raise CommandFailed(arguments, 1, self.refusals.pop(0))
        if not self.dies_at_once:
            self.start(*arguments)
        return ""

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        # Lives until it is killed, or the test ends, and has the right words on its command line.
        ignoring = "trap '' TERM; " if self.is_stubborn else ""
        code = f"{ignoring}echo; while :; do read -r line || exit; done"
        command = ["bash", "-c", code, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.processes.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    @property
    def running(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self.processes if is_running(process)]


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    for process in made.processes:
        process.kill()
        process.wait(LONG)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def device(tmp_path: Path) -> str:
    path = tmp_path / "device"
    path.write_bytes(bytes(4096))
    return str(path)


def exporter(tmp_path: Path, machine: Machine, **more: Any) -> NbdExporter:
    tls = tmp_path / "tls"
    tls.mkdir(exist_ok=True)
    options = {
        "target_protocol": "nbd",
        "target_ip_address": "127.0.0.1",
        "target_port": 21000,
        "target_tls_directory": str(tls),
        "target_run_directory": str(tmp_path / "run"),
    }
    return NbdExporter(options | more, backend="one", host="here", commands=machine)


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run").iterdir())


def record_file(tmp_path: Path) -> Path:
    [path] = (tmp_path / "run").glob("*.json")
    return path


def on_record(tmp_path: Path) -> dict[str, Any]:
    """Return what is on record of the one server."""
    [server] = json.loads(record_file(tmp_path).read_text())["servers"]
    return dict(server)


def amend(tmp_path: Path, **changes: Any) -> None:
    """Change what is on record of the one server."""
    record = {"version": 2, "servers": [on_record(tmp_path) | changes]}
    record_file(tmp_path).write_text(json.dumps(record))


def as_before(tmp_path: Path, *initiators: str) -> None:
    """Put the one server on record as the first version did, with the hosts that it served."""
    record = {"version": 1, **on_record(tmp_path), "initiators": initiators}
    record_file(tmp_path).write_text(json.dumps(record))


def uri(command: tuple[str, ...]) -> str:
    """Return the address of the server that a command starts."""
    [port] = [word.rpartition("=")[2] for word in command if word.startswith("--port=")]
    [name] = [word.rpartition("=")[2] for word in command if word.startswith("--export-name=")]
    return f"nbds://127.0.0.1:{port}/{name}"


def test_one_server_however_often_it_is_asked_for(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    first = ours.connection("v1", device, HERE)
    assert first["driver_volume_type"] == "nbd"
    assert first["data"]["uri"].startswith("nbds://127.0.0.1:21")
    assert first["data"]["format"] == "raw"
    assert "tls_certificates" not in first["data"]
    assert ours.connection("v1", device, HERE) == first
    # As after the death of the process: nothing is remembered but what is on record.
    assert exporter(tmp_path, machine).connection("v1", device, HERE) == first
    assert len(machine.running) == 1
    assert ours.exports() == ["v1"]
    exporter(tmp_path, machine).terminate("v1", HERE)
    assert machine.running == []
    assert ours.exports() == left(tmp_path) == []
    ours.terminate("v1", HERE)
    ours.remove("v1")


def test_each_host_has_a_server_that_ends_with_it(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    one = ours.connection("v1", device, {"host": "one"})
    two = ours.connection("v1", device, {"host": "two"})
    assert {each["data"]["uri"] for each in (one, two)} == {uri(command) for command in machine.commands}
    first, second = machine.running
    assert ours.connection("v1", device, {"host": "one"}) == one
    assert ours.connection("v1", device, {"host": "two"}) == two
    ours.terminate("v1", {"host": "three"})
    assert machine.running == [first, second]
    ours.terminate("v1", {"host": "one"})
    ours.terminate("v1", {"host": "one"})
    assert machine.running == [second]
    assert ours.connection("v1", device, {"host": "two"}) == two
    assert ours.exports() == ["v1"]
    ours.terminate("v1", {"host": "two"})
    assert machine.running == []
    assert left(tmp_path) == []
    ours.connection("v1", device, {"host": "one"})
    ours.connection("v1", device, {"host": "two"})
    ours.remove("v1")
    assert machine.running == []


def test_the_command_says_what_is_wanted(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine, target_tls_client_name="CN={host},O=x", target_tls_directory="/etc/a,b")
    info = ours.connection("v1", device, HERE)
    [command] = machine.commands
    assert command[0] == "qemu-nbd"
    assert command[-2:] == ("--", device)
    assert {"--fork", "--persistent", "--format=raw", "--cache=none", "--bind=127.0.0.1"} <= set(command)
    assert info["data"]["uri"] == uri(command)
    assert any("dir=/etc/a,,b,verify-peer=on" in word for word in command)
    assert "authz-simple,id=client,identity=CN=here,,O=x" in command
    assert "--tls-authz=client" in command
    ours.connection("v1", device, {"host": "other"})
    assert "authz-simple,id=client,identity=CN=other,,O=x" in machine.commands[1]
    assert ours.connection("v1", device, HERE) == info
    for name in ("", "a,O=y", "a b", "CN=x"):
        with pytest.raises(errors.HostNotIdentified):
            ours.connection("v2", device, {"host": name})
    assert len(machine.running) == 2


def test_a_server_that_died_is_started_anew(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    first = ours.connection("v1", device, HERE)
    machine.running[0].kill()
    machine.processes[0].wait(LONG)
    assert ours.connection("v1", device, HERE) != first
    assert len(machine.running) == 1


def test_another_device_of_the_same_path_is_not_taken_for_it(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    first = ours.connection("v1", device, HERE)
    Path(device).rename(f"{device}-old")
    assert ours.connection("v1", f"{device}-old", HERE) == first
    Path(device).write_bytes(bytes(4096))
    assert ours.connection("v1", device, HERE) != first
    assert len(machine.running) == 1
    ours.connection("v1", device, {"host": "two"})
    with pytest.raises(errors.StorageBusy, match="to two"):
        ours.connection("v1", f"{device}-old", HERE)


def test_a_server_of_the_first_version_goes_with_its_last_host(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    one = ours.connection("v1", device, {"host": "one"})
    as_before(tmp_path, "one", "two")
    [old] = machine.running
    # Both keep it; who comes anew has one of its own.
    assert ours.connection("v1", device, {"host": "one"}) == one
    assert ours.connection("v1", device, {"host": "two"}) == one
    assert ours.connection("v1", device, {"host": "three"}) != one
    assert len(machine.running) == 2
    ours.terminate("v1", {"host": "one"})
    assert ours.connection("v1", device, {"host": "two"}) == one
    ours.terminate("v1", {"host": "two"})
    assert not is_running(old)
    assert len(machine.running) == 1
    ours.remove("v1")
    assert machine.running == []


def test_a_server_of_the_first_version_is_removed(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    ours.connection("v1", device, HERE)
    as_before(tmp_path, "here")
    assert ours.exports() == ["v1"]
    ours.remove("v1")
    assert machine.running == left(tmp_path) == []


def test_a_start_that_fails_keeps_the_servers_of_others(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    one = ours.connection("v1", device, {"host": "one"})
    machine.refusals = ["qemu-nbd: Unable to access credentials\n"]
    with pytest.raises(errors.ExportFailed):
        ours.connection("v1", device, {"host": "two"})
    assert on_record(tmp_path)["initiators"] == ["one"]
    assert ours.connection("v1", device, {"host": "one"}) == one
    assert len(machine.running) == 1


def test_one_that_somebody_is_connected_to_is_not_removed(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    ours.connection("v1", device, HERE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        amend(tmp_path, port=listener.getsockname()[1])
        with socket.create_connection(listener.getsockname()), listener.accept()[0]:
            with pytest.raises(errors.VolumeInUse, match=r"v1 .*127\.0\.0\.1"):
                ours.remove("v1")
            assert len(machine.running) == 1
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        assert peers_of(listener.getsockname()[1]) == []
        with socket.create_connection(listener.getsockname()[:2]), listener.accept()[0]:
            assert peers_of(listener.getsockname()[1]) == ["::1"]
    ours.remove("v1")
    assert machine.running == []


def test_ports_that_are_taken_are_passed_over(tmp_path: Path, machine: Machine, device: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        machine.refusals = ["qemu-nbd: Failed to find an available port: Address already in use\n"]
        told = exporter(tmp_path, machine, target_port=port).connection("v1", device, HERE)["data"]["uri"]
        found = int(told.rpartition(":")[2].partition("/")[0])
        assert found > port + 1
    assert on_record(tmp_path)["port"] == found


def test_a_server_that_cannot_be_started(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    machine.refusals = ["qemu-nbd: Unable to access credentials\n"]
    with pytest.raises(errors.ExportFailed, match="Unable to access credentials"):
        ours.connection("v1", device, HERE)
    machine.dies_at_once = True
    with pytest.raises(errors.ExportFailed, match="/proc shows 0 of it"):
        ours.connection("v1", device, HERE)
    with pytest.raises(errors.ExportFailed, match="absolute"):
        ours.connection("v1", "nbd:elsewhere", HERE)
    assert ours.exports() == []


class Interrupted(BaseException):
    """Stands for a signal that ends the process."""


def test_an_interrupt_in_the_middle_of_the_start_leaves_nothing(
    tmp_path: Path, machine: Machine, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: str) -> str:
        machine.start(*arguments)
        raise Interrupted

    monkeypatch.setattr(machine, "run", interrupted)
    with pytest.raises(Interrupted):
        exporter(tmp_path, machine).connection("v1", device, HERE)
    assert machine.running == []
    assert exporter(tmp_path, machine).exports() == []


def test_a_death_between_start_and_record_leaves_no_orphan(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    first = ours.connection("v1", device, HERE)
    # As it was written before the start.
    amend(tmp_path, pid=0, start_time_ticks=0)
    assert exporter(tmp_path, machine).connection("v1", device, HERE) != first
    assert len(machine.running) == 1
    amend(tmp_path, pid=0, start_time_ticks=0)
    exporter(tmp_path, machine).terminate("v1", HERE)
    assert machine.running == []


def test_a_death_before_the_start_is_no_export(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    ours.connection("v1", device, HERE)
    machine.running[0].kill()
    machine.processes[0].wait(LONG)
    amend(tmp_path, pid=0, start_time_ticks=0)
    assert ours.exports() == ["v1"]
    ours.terminate("v1", HERE)
    assert ours.exports() == []


def test_strangers_are_never_ended(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    told = ours.connection("v1", device, HERE)["data"]["uri"]
    argument = f"--export-name={told.rpartition('/')[2]}"
    strangers = [
        machine.start("pgrep", "-f", argument),  # looks for it
        machine.start("qemu-nbd", f"{argument}0"),  # serves something else
        machine.start("grep", argument, "qemu-nbd"),
        machine.start("qemu-nbd", "--description", f"like {argument}"),
    ]
    # The number of the process on record is another one's by now.
    amend(tmp_path, pid=strangers[1].pid)
    ours.terminate("v1", HERE)
    assert machine.running == strangers


def test_one_that_does_not_want_to_end_is_killed(tmp_path: Path, machine: Machine, device: str) -> None:
    machine.is_stubborn = True
    ours = exporter(tmp_path, machine)
    ours.connection("v1", device, HERE)
    begun = time.monotonic()
    ours.terminate("v1", HERE)
    assert machine.running == []
    assert machine.processes[0].returncode == -signal.SIGKILL
    assert time.monotonic() - begun < LONG


def test_processes_of_root_are_ended_by_the_command(
    tmp_path: Path, machine: Machine, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = exporter(tmp_path, machine)
    ours.connection("v1", device, HERE)
    [server] = machine.running

    def forbidden(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    def run(*arguments: str) -> str:
        assert arguments == ("kill", "-15", str(server.pid))
        os.kill(server.pid, signal.SIGTERM)
        return ""

    monkeypatch.setattr(signal, "pidfd_send_signal", forbidden)
    monkeypatch.setattr(machine, "run", run)
    ours.terminate("v1", HERE)
    assert machine.running == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"version": 1}',
        b'{"version": 2}',
        b'{"version": 2, "servers": [{}]}',
        b'{"version": 3, "servers": []}',
        b"\xff",
    ],
)
def test_a_record_that_cannot_be_understood_is_told_of(
    tmp_path: Path, machine: Machine, device: str, content: bytes
) -> None:
    ours = exporter(tmp_path, machine)
    ours.connection("v1", device, HERE)
    record_file(tmp_path).write_bytes(content)
    for call in (lambda: ours.connection("v1", device, HERE), lambda: ours.terminate("v1", HERE)):
        with pytest.raises(OSError, match="no record of an export"):
            call()
    assert len(machine.running) == 1


@pytest.mark.parametrize("name", ["../v1", "", ".v", "a/b"])
def test_a_name_cannot_leave_the_directory(tmp_path: Path, machine: Machine, device: str, name: str) -> None:
    with pytest.raises(ValueError, match="file's name"):
        exporter(tmp_path, machine).connection(name, device, HERE)
    assert machine.processes == []


def test_its_own_certificates_are_told_to_its_own_host_only(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    (tmp_path / "tls" / "client-cert.pem").touch()
    assert ours.connection("v1", device, HERE)["data"]["tls_certificates"] == str(tmp_path / "tls")
    assert "tls_certificates" not in ours.connection("v1", device, {"host": "there"})["data"]


def test_two_backends_do_not_see_each_other(tmp_path: Path, machine: Machine, device: str) -> None:
    ours = exporter(tmp_path, machine)
    theirs = NbdExporter(ours.options, backend="two", host="here", commands=machine)
    one, two = (each.connection("v1", device, HERE)["data"]["uri"] for each in (ours, theirs))
    assert one != two
    ours.remove("v1")
    assert theirs.exports() == ["v1"]
    assert len(machine.running) == 1
    theirs.remove("v1")


def test_a_process_that_is_gone_is_not_running(machine: Machine) -> None:
    process = machine.start("qemu-nbd", "--export-name=gone-or-not")
    [found] = find("qemu-nbd", "--export-name=gone-or-not")
    assert found.pid == process.pid
    assert found.is_running()
    assert not Server(pid=found.pid, start_time_ticks=found.start_time_ticks + 1).is_running()
    process.kill()
    process.wait(LONG)
    assert not found.is_running()
    assert find("qemu-nbd", "--export-name=gone-or-not") == []
