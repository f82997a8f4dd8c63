"""Volumes over iSCSI: attached by os-brick through a target of the kernel on the same host."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from volmig import errors
from volmig.connectors.iscsi import IscsiConnector
from volmig.drivers.targets.secrets import load_key, secret_of

from .exports import (
    CONTENT,
    SLOWLY,
    CommandLines,
    assert_refused_after_a_write_on_its_host,
    here,
    iscsid,
    log_command_lines,
    make_exporter,
    node_records,
    targets,
    wait,
    yard,
)
from .support import MIB, loop_device, run

pytestmark = [
    pytest.mark.timeout(900),
    # os-brick brings eventlet along, which warns at each fork.
    pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def daemon() -> Iterator[None]:
    with iscsid():
        yield


def sessions() -> list[str]:
    return [line for line in run("iscsiadm", "-m", "session", check=False).splitlines() if "volmig" in line]


def test_a_volume_migrates_through_its_export(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_command_lines("iscsiadm", tmp_path, monkeypatch)
    with yard(tmp_path, "iscsi") as place, CommandLines() as lines, caplog.at_level(logging.DEBUG):
        handle = place.bench.engine.migrate(
            place.volume.id, f"here@right#{place.right.name}", bandwidth_limit_bytes=SLOWLY
        )
        wait(lambda: sessions() or handle.status().phase.is_final)
        assert sessions(), handle.status().error_message
        handle.result(600)
        place.bench.assert_moved(place.volume, f"right#{place.right.name}", CONTENT)
        assert (sessions(), node_records(), targets()) == ([], [], [])
    key = load_key(tmp_path / "key", backend="left")
    secret = secret_of(key, "chap", "here", "left", place.volume.backend_id, here()["initiator"])
    said = log.read_text()
    assert "--login" in said, "the command lines were not seen"
    assert secret not in said
    assert not [line for line in lines.seen if secret in line]
    assert secret not in caplog.text
    state = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert state
    assert not [path for path in state if secret.encode() in path.read_bytes()]


def test_what_a_program_on_its_host_writes_meanwhile_is_found_out(tmp_path: Path) -> None:
    with yard(tmp_path, "iscsi") as place:
        assert_refused_after_a_write_on_its_host(place)
        assert (sessions(), node_records(), targets()) == ([], [], [])


def test_killed_in_the_middle_it_goes_on_and_leaves_nothing(tmp_path: Path) -> None:
    with yard(tmp_path, "iscsi") as place:
        place.killed_in_the_middle(sessions)
        assert sessions()
        wait(lambda: [handle.result(600) for handle in place.bench.engine.recover()])
        place.bench.assert_moved(place.volume, f"right#{place.right.name}", CONTENT)
        assert (sessions(), node_records(), targets()) == ([], [], [])


def test_an_address_that_is_not_this_hosts_leaves_nothing(tmp_path: Path) -> None:
    with yard(tmp_path, "iscsi", target_ip_address="192.0.2.1") as place:
        place.fails_and_leaves_nothing()


def test_an_export_that_was_left_is_found_and_goes_with_its_volume(tmp_path: Path) -> None:
    with yard(tmp_path, "iscsi") as place:
        place.found_and_deleted_with_its_export("iscsi")


def test_only_the_host_that_is_named_and_knows_its_secret_gets_in(tmp_path: Path) -> None:
    exporter = make_exporter(tmp_path, "iscsi")
    with loop_device(8 * MIB) as device:
        data = exporter.connection("1-a", device, here())["data"]
        iqn, portal = data["target_iqn"], data["target_portal"]
        node = ("iscsiadm", "-m", "node", "-T", iqn, "-p", portal)
        try:
            # Nobody can write to it on this host beside the target.
            refused = subprocess.run(
                ["python3", "-c", f"import os; os.open({device!r}, os.O_EXCL)"], check=False, capture_output=True
            )
            assert b"Device or resource busy" in refused.stderr

            run(*node, "-o", "new")
            for name, value in (
                ("authmethod", "CHAP"),
                ("username", data["auth_username"]),
                ("password", "wrong-secret-1234"),
            ):
                run(*node, "-o", "update", "-n", f"node.session.auth.{name}", "-v", value)
            login = subprocess.run([*node, "--login"], check=False, capture_output=True, text=True)
            assert login.returncode == 24, login.stderr
            assert sessions() == []
            run(*node, "-o", "delete")

            run("iscsiadm", "-m", "iface", "-I", "other", "-o", "new")
            other = "iqn.1993-08.org.debian:01:other"
            run("iscsiadm", "-m", "iface", "-I", "other", "-o", "update", "-n", "iface.initiatorname", "-v", other)
            found = run("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", portal, "-I", "other", check=False)
            assert iqn not in found
            run("iscsiadm", "-m", "iface", "-I", "other", "-o", "delete", check=False)
            # A discovery leaves records of what it finds.
            run("iscsiadm", "-m", "node", "-o", "delete", check=False)

            connector = IscsiConnector()
            with pytest.raises(errors.AttachFailed, match=f"{data['volmig_serial']}, and the volume's is {'0' * 32}"):
                connector.connect({**data, "volmig_serial": "0" * 32})
            assert (sessions(), node_records()) == ([], [])
            path = connector.connect(data)
            assert connector.connect(data) == path
            assert int(run("blockdev", "--getsize64", path)) == 8 * MIB
            Path(path).write_bytes(b"written through the export")
            with pytest.raises(errors.VolumeInUse, match=here()["initiator"]):
                exporter.remove("1-a")
            assert sessions()
            connector.disconnect(connector.release_data(data))
            connector.disconnect(connector.release_data(data))
            assert (sessions(), node_records()) == ([], [])
        finally:
            exporter.terminate("1-a", here())
        exporter.terminate("1-a", here())
        assert targets() == []
        assert Path(device).read_bytes().startswith(b"written through the export")

        # What a crash has left is found, and removed whoever uses it.
        exporter.connection("1-b", device, here())
        assert make_exporter(tmp_path, "iscsi").exports() == ["1-b"]
        exporter.remove("1-b")
        exporter.remove("1-b")
        assert (list(exporter.exports()), targets()) == ([], [])
