"""What an exporter asks of the kernel's program, and what it answers to the core."""

from __future__ import annotations

import json
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.drivers.targets import exporter, kernel
from volmig.drivers.targets.base import Exporter
from volmig.drivers.targets.options import target_options
from volmig.drivers.targets.secrets import load_key

HOST = {"host": "other", "initiator": "iqn.1993-08.org.debian:01:a", "nqn": "nqn.2014-08.org.nvmexpress:uuid:1"}
TOOL = """#!{python}
import json, os, sys
request = json.load(sys.stdin)
with open({log!r}, "a") as log:
    log.write(json.dumps([request, sys.argv[1:]]) + "\\n")
print({answer!r})
"""


class Bench:
    """An exporter whose root program is a script that notes what it is asked."""

    def __init__(self, directory: Path, protocol: str) -> None:
        self.log = directory / "log"
        self.script = directory / "root"
        self.answer = '{"answer": []}'
        options = {option.dest: option.default for option in target_options()}
        options |= {"target_protocol": protocol, "target_secret_file": str(directory / "key")}
        made = exporter(options, backend="lvm-1", host="here", prefix=[str(self.script)])
        assert made is not None
        self.exporter: Exporter = made

    def says(self, answer: str) -> None:
        self.script.write_text(TOOL.format(python=sys.executable, log=str(self.log), answer=answer))
        self.script.chmod(0o755)

    def requests(self) -> list[Any]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def _bench(tmp_path: Path, protocol: str, answer: str = '{"answer": []}') -> Bench:
    bench = Bench(tmp_path, protocol)
    bench.says(answer)
    return bench


def test_no_protocol_needs_no_exporter() -> None:
    assert exporter({"target_protocol": "none"}, backend="b", host="h") is None


def test_iscsi_gives_a_secret_of_its_own_to_each_host_and_the_same_each_time(tmp_path: Path) -> None:
    bench = _bench(tmp_path, "iscsi")
    first = bench.exporter.connection("1-a", "/dev/vg/lv", HOST)
    assert bench.exporter.connection("1-a", "/dev/vg/lv", HOST) == first
    data = first["data"]
    assert first["driver_volume_type"] == "iscsi"
    assert data["target_portal"] == "127.0.0.1:3260"
    assert data["target_iqn"].startswith("iqn.2026-11.org.volmig:volume-1-a.")
    assert len(data["auth_password"]) == 32
    others = [
        bench.exporter.connection("1-b", "/dev/vg/lv", HOST)["data"],
        bench.exporter.connection("1-a", "/dev/vg/lv", {**HOST, "initiator": "iqn.1993-08.org.debian:01:b"})["data"],
    ]
    assert len({data["auth_password"], *(other["auth_password"] for other in others)}) == 3
    for request, arguments in bench.requests():
        assert request["action"] == "export"
        assert request["password"] not in " ".join(arguments)
    assert arguments[1:] == ["-I", "-m", "volmig.drivers.targets.tool"]


def test_nvme_names_the_host_and_the_namespace(tmp_path: Path) -> None:
    data = _bench(tmp_path, "nvmet_tcp").exporter.connection("1-a", "/dev/vg/lv", HOST)["data"]
    assert data["host_nqn"] == HOST["nqn"]
    assert data["portals"] == [["127.0.0.1", "4420", "tcp"]]


def test_backends_have_targets_of_different_names_for_one_volume(tmp_path: Path) -> None:
    bench = _bench(tmp_path, "iscsi")
    other = exporter(bench.exporter.options, backend="lvm-2", host="here", prefix=bench.exporter.prefix)
    elsewhere = exporter(bench.exporter.options, backend="lvm-1", host="there", prefix=bench.exporter.prefix)
    assert other is not None
    assert elsewhere is not None
    names = {
        each.connection("1-a", "/dev/x", HOST)["data"]["target_iqn"] for each in (bench.exporter, other, elsewhere)
    }
    assert len(names) == 3


def test_only_the_exports_of_the_backend_are_told(tmp_path: Path) -> None:
    bench = _bench(tmp_path, "iscsi")
    tag = bench.exporter.tag
    prefix = "iqn.2026-11.org.volmig:volume"
    names = [f"{prefix}-1-a.{tag}", f"{prefix}-1-b.00000000", "iqn.2010-10.org.openstack:volume-1-c", f"{prefix}.{tag}"]
    bench.says(json.dumps({"answer": names}))
    assert bench.exporter.exports() == ["1-a"]


def test_a_host_without_a_name_is_refused(tmp_path: Path) -> None:
    for protocol in ("iscsi", "nvmet_tcp"):
        bench = _bench(tmp_path, protocol)
        with pytest.raises(errors.HostNotIdentified, match="other"):
            bench.exporter.connection("1-a", "/dev/x", {"host": "other"})
        assert not bench.log.exists()


def test_what_the_program_refuses_is_told(tmp_path: Path) -> None:
    bench = _bench(tmp_path, "iscsi", '{"refused": "busy", "reason": "/dev/x is held"}')
    with pytest.raises(errors.StorageBusy, match="is held"):
        bench.exporter.connection("1-a", "/dev/x", HOST)
    bench.says('{"refused": "in-use", "reason": "iqn.a"}')
    with pytest.raises(errors.VolumeInUse, match=r"1-a .*iqn\.a"):
        bench.exporter.remove("1-a")
    bench.says('{"refused": "failed", "reason": "no"}')
    with pytest.raises(errors.ExportFailed, match="1-a"):
        bench.exporter.terminate("1-a", HOST)
    bench.script.write_text("#!/bin/sh\necho 'a password is required' >&2\nexit 1\n")
    with pytest.raises(errors.ExportFailed, match="a password is required"):
        bench.exporter.remove("1-a")
    bench.script.unlink()
    with pytest.raises(errors.ExportFailed, match="cannot be run"):
        bench.exporter.remove("1-a")


def test_the_program_is_told_when_its_time_is_over(tmp_path: Path) -> None:
    bench = _bench(tmp_path, "nvmet_tcp")
    begun = time.monotonic()
    bench.exporter.remove("1-a")
    [(request, _)] = bench.requests()
    assert begun + 120 <= request["until"] <= time.monotonic() + 120


def test_a_program_that_has_ended_with_its_time_is_told_as_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = _bench(tmp_path, "nvmet_tcp")
    bench.script.write_text("#!/bin/sh\ncat >/dev/null\nkill -ALRM $$\n")
    monkeypatch.setattr(kernel, "_SECONDS", 0.0)
    with pytest.raises(errors.ExportFailed, match="did not answer within 0 seconds"):
        bench.exporter.remove("1-a")


@pytest.mark.parametrize("volume_id", ["", "../x", "A", "a b", "a" * 65])
def test_an_id_that_cannot_be_in_a_name_is_refused(tmp_path: Path, volume_id: str) -> None:
    bench = _bench(tmp_path, "nvmet_tcp")
    with pytest.raises(errors.ExportFailed, match="cannot be a part"):
        bench.exporter.connection(volume_id, "/dev/x", HOST)


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    key = load_key(path, backend="b")
    assert load_key(path, backend="b") == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("spoil", ["mode", "short", "link", "directory"])
def test_a_key_that_is_not_safe_is_not_used(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "key"
    load_key(path, backend="b")
    if spoil == "mode":
        path.chmod(0o640)
    elif spoil == "short":
        path.write_bytes(b"x")
    elif spoil == "link":
        path.rename(tmp_path / "there")
        path.symlink_to(tmp_path / "there")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(errors.BackendSetupFailed, match="key"):
        load_key(path, backend="b")
