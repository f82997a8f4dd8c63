"""An attached device is only used when it says that it is the volume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.connectors import Connector
from volmig.connectors.serial import KEY, require_serial, serial_of
from volmig.drivers.targets import exporter
from volmig.drivers.targets.kernel import KernelExporter
from volmig.drivers.targets.options import target_options

SERIAL = "919aea635fc33ca2f11a5d4730bad2a1"


class Attached(Connector):
    """A connector that notes what it lets go of."""

    def __init__(self, *, fails: bool = False) -> None:
        self.let_go: list[Mapping[str, Any]] = []
        self._fails = fails

    def connect(self, data: Mapping[str, Any]) -> str:
        raise AssertionError("it is connected already")

    def disconnect(self, data: Mapping[str, Any]) -> None:
        self.let_go.append(data)
        if self._fails:
            raise errors.AttachFailed(target="t", protocol="p", action="letting go", reason="it hangs")


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """What Linux 6.1 shows of a disk of LIO and a namespace of nvmet."""
    block = tmp_path / "block"
    (block / "sda/device").mkdir(parents=True)
    (block / "sda/device/vpd_pg80").write_bytes(b"\x00\x80\x00!" + SERIAL.encode() + b"\x00")
    (block / "nvme0n1").mkdir()
    (block / "nvme0n1/uuid").write_text("919aea63-5fc3-3ca2-f11a-5d4730bad2a1\n")
    (block / "sdb/device").mkdir(parents=True)
    return block


def test_a_device_is_known_by_its_serial_number_or_its_uuid(block: Path, tmp_path: Path) -> None:
    assert serial_of("/dev/sda", block=block) == SERIAL
    assert serial_of("/dev/nvme0n1", block=block) == SERIAL
    assert serial_of("/dev/sdb", block=block) == ""
    assert serial_of("/dev/gone", block=block) == ""
    link = tmp_path / "ip-192.0.2.1:3260-iscsi-lun-0"
    link.symlink_to("/dev/sda")
    assert serial_of(str(link), block=block) == SERIAL


@pytest.mark.parametrize("path", ["/dev/sda", "/dev/nvme0n1"])
def test_the_right_one_is_used(block: Path, path: str) -> None:
    connector = Attached()
    assert require_serial(connector, path, {KEY: SERIAL}, target="t", protocol="iSCSI", block=block) == path
    assert connector.let_go == []


@pytest.mark.parametrize("fails", [False, True])
def test_another_one_is_let_go_of_and_both_are_named(block: Path, fails: bool) -> None:
    connector, other = Attached(fails=fails), "0" * 32
    data = {KEY: other, "auth_password": "secret-0123456789"}
    with pytest.raises(errors.AttachFailed, match=f"/dev/sda has the serial number {SERIAL}, .* {other}"):
        require_serial(connector, "/dev/sda", data, target="t", protocol="iSCSI", block=block)
    assert connector.let_go == [{KEY: other}]


def test_one_that_tells_nothing_is_let_go_of(block: Path) -> None:
    connector = Attached()
    with pytest.raises(errors.AttachFailed, match=f"/dev/sdb tells no serial number, .* {SERIAL}"):
        require_serial(connector, "/dev/sdb", {KEY: SERIAL}, target="t", protocol="iSCSI", block=block)
    assert len(connector.let_go) == 1


def test_what_other_drivers_give_is_not_checked(block: Path) -> None:
    assert require_serial(Attached(), "/dev/sdb", {}, target="t", protocol="iSCSI", block=block) == "/dev/sdb"


@pytest.mark.parametrize("protocol", ["iscsi", "nvmet_tcp"])
def test_exporters_say_which_one_it_is(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {option.dest: option.default for option in target_options()}
    options |= {"target_protocol": protocol, "target_secret_file": str(tmp_path / "key")}
    asked: list[Mapping[str, Any]] = []

    def ask(_: KernelExporter, action: str, volume_id: str, **values: Any) -> None:
        asked.append(values)

    monkeypatch.setattr(KernelExporter, "_ask", ask)
    made = exporter(options, backend="b", host="here")
    assert made is not None
    names: Any = {
        "host": "here",
        "initiator": "iqn.1993-08.org.debian:01:a",
        "nqn": "nqn.2014-08.org.nvmexpress:uuid:1",
    }
    data = made.connection("1-a", "/dev/x", names)["data"]
    assert data[KEY] == made.serial("1-a") == asked[0]["serial"]
