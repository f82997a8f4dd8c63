"""What drivers are told of this host, and what is said when something to attach with is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from volmig import errors
from volmig.connectors import brick
from volmig.connectors.host import host_properties
from volmig.connectors.iscsi import IscsiConnector
from volmig.connectors.nvmeof import NvmeofConnector

ISCSI = {
    "target_iqn": "iqn.2026-11.org.volmig:volume-1.aa",
    "target_portal": "192.0.2.1:3260",
    "target_lun": 0,
    "auth_method": "CHAP",
    "auth_username": "user",
    "auth_password": "secret-0123456789",
}
NVME = {"target_nqn": "nqn.2026-11.org.volmig:volume-1.aa", "portals": [["192.0.2.1", "4420", "tcp"]]}


def test_the_names_of_a_host_come_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "iscsi").mkdir()
    (tmp_path / "nvme").mkdir()
    (tmp_path / "iscsi/initiatorname.iscsi").write_text("## a comment\nInitiatorName=iqn.1993-08.org.debian:01:a\n")
    (tmp_path / "nvme/hostnqn").write_text("nqn.2014-08.org.nvmexpress:uuid:1\n")
    found = host_properties("here", etc=tmp_path)
    assert found["host"] == "here"
    assert found["initiator"] == "iqn.1993-08.org.debian:01:a"
    assert found["nqn"] == "nqn.2014-08.org.nvmexpress:uuid:1"
    assert found["ip"].count(".") == 3


def test_a_name_that_a_host_does_not_have_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "iscsi").mkdir()
    (tmp_path / "iscsi/initiatorname.iscsi").write_text("GenerateName=yes\n")
    assert {"initiator", "nqn"}.isdisjoint(host_properties("here", etc=tmp_path))


def test_importing_the_connectors_loads_neither_os_brick_nor_eventlet() -> None:
    program = (
        "import sys, volmig.connectors.iscsi, volmig.connectors.nvmeof, volmig.engine;"
        "print([name for name in ('os_brick', 'eventlet', 'oslo_privsep') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("connector", "data", "program", "package"),
    [(IscsiConnector(), ISCSI, "iscsiadm", "open-iscsi"), (NvmeofConnector(), NVME, "nvme", "nvme-cli")],
)
def test_a_missing_program_is_named_with_its_package(
    connector: IscsiConnector | NvmeofConnector,
    data: dict[str, object],
    program: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(brick, "_SYSTEM_PATH", str(tmp_path))
    for call in (connector.connect, connector.disconnect):
        with pytest.raises(errors.ProgramMissing, match=program) as missing:
            call(data)
        assert package in missing.value.hint


@pytest.mark.parametrize(("connector", "data"), [(IscsiConnector(), ISCSI), (NvmeofConnector(), NVME)])
def test_a_missing_os_brick_is_named_with_its_extra(
    connector: IscsiConnector | NvmeofConnector,
    data: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for program in ("iscsiadm", "nvme"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for module in ("os_brick", "os_brick.privileged"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(errors.ExtraMissing, match="os_brick") as missing:
        connector.connect(data)
    assert "volmig[connectors]" in missing.value.hint


def test_what_is_recorded_of_a_connection_holds_no_secret() -> None:
    recorded = IscsiConnector().release_data(ISCSI)
    assert "secret-0123456789" not in repr(recorded)
    assert {"target_iqn", "target_portal", "target_lun"} == set(recorded)
    assert NvmeofConnector().release_data(NVME) == NVME
