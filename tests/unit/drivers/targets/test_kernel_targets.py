"""The kernel's targets: what is made and taken back, also when it is cut off between any two operations."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.drivers.targets.fake_kernel import FakeKernel, PowerCut
from tests.unit.waiting import LONG
from volmig.drivers.targets.lio import Lio
from volmig.drivers.targets.nvmet_tree import Nvmet
from volmig.drivers.targets.requests import Export, Refused
from volmig.drivers.targets.tool import answer, carry_out

SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105


def _export(protocol: type[Lio] | type[Nvmet], **changes: Any) -> Export:
    kind = "iqn" if protocol is Lio else "nqn"
    export = Export(
        name=f"{kind}.2026-11.org.volmig:volume-1.aa",
        device="/dev/null",
        serial="ab" * 16,
        host_name=f"{kind}.2020-01.org.host:one",
        address="127.0.0.1",
        port=3260,
        user="user" if protocol is Lio else "",
        password=SECRET if protocol is Lio else "",
    )
    return replace(export, **changes)


def _closed(kernel: FakeKernel) -> None:
    """Check that nothing is reachable without its rules."""
    for group in kernel.root.glob("iscsi/*/tpgt_1"):
        if (group / "enable").exists() and (group / "enable").read_text() == "1":
            assert (group / "attrib/authentication").read_text() == "1"
            assert (group / "attrib/generate_node_acls").read_text() == "0"
            assert (group / "attrib/demo_mode_discovery").read_text() == "0"
            mapped = [acl for acl in (group / "acls").iterdir() if (acl / "lun_0" / "volmig").is_symlink()]
            assert all((acl / "auth/password").read_text() for acl in mapped)
    for link in kernel.root.glob("ports/*/subsystems/*"):
        assert (link / "attr_allow_any_host").read_text() == "0"


BOTH = pytest.mark.parametrize("protocol", [Lio, Nvmet])


@BOTH
def test_one_host_sees_the_device_and_nothing_is_left_when_it_goes(tmp_path: Path, protocol: type[Lio | Nvmet]) -> None:
    kernel = FakeKernel(tmp_path, after_each=_closed)
    empty, targets, request = kernel.state(), protocol(kernel), _export(protocol)
    targets.export(request)
    made = kernel.state()
    assert targets.names() == [request.name]
    targets.export(request)
    # The size may have been looked at again.
    assert {key: value for key, value in kernel.state().items() if "revalidate" not in key} == {
        key: value for key, value in made.items() if "revalidate" not in key
    }
    targets.revoke(request.name, "iqn.2020-01.org.host:other")
    assert targets.names() == [request.name]
    targets.revoke(request.name, request.host_name)
    assert kernel.state() == empty
    targets.revoke(request.name, request.host_name)
    targets.remove(request.name)
    assert kernel.state() == empty


@BOTH
def test_the_target_goes_with_its_last_host(tmp_path: Path, protocol: type[Lio | Nvmet]) -> None:
    kernel = FakeKernel(tmp_path, after_each=_closed)
    empty, targets, one = kernel.state(), protocol(kernel), _export(protocol)
    two = replace(one, host_name=f"{one.host_name}-b", password=SECRET[::-1] if one.password else "")
    targets.export(one)
    targets.export(two)
    targets.revoke(one.name, one.host_name)
    assert one.host_name not in {Path(name).name for name in kernel.state()}
    assert two.host_name in {Path(name).name for name in kernel.state()}
    targets.revoke(one.name, two.host_name)
    assert kernel.state() == empty


@BOTH
def test_cut_off_anywhere_a_repeated_export_ends_right_and_a_removal_leaves_nothing(
    tmp_path: Path, protocol: type[Lio | Nvmet]
) -> None:
    request = _export(protocol)
    whole = FakeKernel(tmp_path / "whole")
    protocol(whole).export(request)
    expected, count = whole.state(), whole.operations
    assert count > 8
    for cut in range(count):
        kernel = FakeKernel(tmp_path / f"again{cut}", after_each=_closed)
        empty = kernel.state()
        kernel.allowed = cut
        with pytest.raises(PowerCut):
            protocol(kernel).export(request)
        kernel.allowed = None
        protocol(kernel).export(request)
        assert _without_places(kernel, "revalidate_size") == _without_places(whole, "revalidate_size", expected)
        kernel.operations, kernel.allowed = 0, cut
        try:
            protocol(kernel).revoke(request.name, request.host_name)
        except PowerCut:
            kernel.allowed = None
            protocol(kernel).revoke(request.name, request.host_name)
        assert kernel.state() == empty

        kernel.operations, kernel.allowed = 0, None
        protocol(kernel).export(request)
        kernel.operations, kernel.allowed = 0, cut
        with contextlib.suppress(PowerCut):
            protocol(kernel).remove(request.name)
        kernel.allowed = None
        protocol(kernel).remove(request.name)
        # The name of a host, which gives access to nothing; the repeated revocation would have removed it.
        assert {name for name in kernel.state() if not name.startswith("hosts/")} == set(empty)

        other = FakeKernel(tmp_path / f"gone{cut}")
        other.allowed = cut
        with pytest.raises(PowerCut):
            protocol(other).export(request)
        other.allowed = None
        protocol(other).remove(request.name)
        assert {name for name in other.state() if not name.startswith("hosts/")} == set(empty)
        protocol(other).revoke(request.name, request.host_name)
        assert other.state() == empty


def _without_places(kernel: FakeKernel, leave_out: str, state: dict[str, str] | None = None) -> dict[str, str]:
    found = kernel.state() if state is None else state
    return {key: value.replace(str(kernel.root), "") for key, value in found.items() if leave_out not in key}


@BOTH
def test_a_target_that_shows_another_device_is_made_anew(tmp_path: Path, protocol: type[Lio | Nvmet]) -> None:
    kernel = FakeKernel(tmp_path)
    protocol(kernel).export(_export(protocol, device="/dev/zero"))
    protocol(kernel).export(_export(protocol))
    texts = kernel.state()
    assert "/dev/null" in " ".join(texts.values())
    assert "/dev/zero" not in " ".join(texts.values())


def test_a_device_that_somebody_holds_is_not_exported_and_nothing_is_left(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    empty = kernel.state()
    kernel.busy.add("/dev/null")
    with pytest.raises(Refused, match="held by something else") as refusal:
        Lio(kernel).export(_export(Lio))
    assert refusal.value.kind == "busy"
    assert kernel.state() == empty


@BOTH
@pytest.mark.parametrize("fails_on", [False, True])
def test_an_export_that_fails_at_any_step_tells_why_and_leaves_nothing(
    tmp_path: Path, protocol: type[Lio | Nvmet], fails_on: bool
) -> None:
    request, refused = _export(protocol), 0
    whole = FakeKernel(tmp_path / "whole")
    protocol(whole).export(request)
    for step in range(whole.operations):
        kernel = FakeKernel(tmp_path / f"fails{step}", after_each=_closed)
        empty = kernel.state()
        # Once, or from then on, so that it cannot be taken back either.
        kernel.failing = range(step, 1000) if fails_on else (step,)
        failed: OSError | None = None
        try:
            protocol(kernel).export(request)
        except OSError as error:
            failed = error
        if failed is None:
            # What is of no importance: that parts can be given back to a thin pool.
            assert protocol is Lio
            assert not fails_on
            continue
        refused += 1
        assert failed.errno == errno.EADDRNOTAVAIL
        kernel.failing = ()
        if fails_on:
            protocol(kernel).revoke(request.name, request.host_name)
        assert kernel.state() == empty
    assert refused >= whole.operations - 2


@BOTH
def test_an_export_that_fails_keeps_what_other_hosts_have(tmp_path: Path, protocol: type[Lio | Nvmet]) -> None:
    one = _export(protocol)
    # Elsewhere, so that the port fails beside one that is in use.
    two = replace(one, host_name=f"{one.host_name}-b", address="127.0.0.2")
    whole = FakeKernel(tmp_path / "whole")
    protocol(whole).export(one)
    begun = whole.operations
    protocol(whole).export(two)
    assert whole.operations - begun > 4
    for step in range(begun, whole.operations):
        kernel = FakeKernel(tmp_path / f"fails{step}", after_each=_closed)
        protocol(kernel).export(one)
        before = _without_places(kernel, "revalidate_size")
        kernel.failing = (step,)
        try:
            protocol(kernel).export(two)
        except OSError:
            after = _without_places(kernel, "revalidate_size")
            # When it fails behind the making of the new portal, that may be the one that stays.
            reached = {key for key in after if "/np/" in key or key.startswith("ports/")}
            assert reached
            assert {key: value for key, value in after.items() if key not in reached} == {
                key: value for key, value in before.items() if "/np/" not in key and not key.startswith("ports/")
            }
            # One that had access before the call keeps it as well.
            kernel.failing = ()
            protocol(kernel).export(one)
            assert _without_places(kernel, "revalidate_size") == before
            kernel.failing = (kernel.operations,)
            with pytest.raises(OSError, match="Cannot assign"):
                protocol(kernel).export(replace(one, address="127.0.0.3", port=3261))
            assert protocol(kernel).names() == [one.name]
            assert one.host_name in {Path(name).name for name in kernel.state()}


def test_a_target_with_a_session_is_not_removed_as_if_it_were_left_over(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    empty, request = kernel.state(), _export(Lio)
    Lio(kernel).export(request)
    info = kernel.path(f"iscsi/{request.name}/tpgt_1/acls/{request.host_name}/info")
    nobody = info.read_text()
    info.write_text(f"InitiatorName: {request.host_name}\nInitiatorAlias: one\nLIO Session ID: 1")
    before = kernel.state()
    remove = {"action": "remove", "name": request.name}
    with pytest.raises(Refused, match=request.host_name) as refusal:
        carry_out(Lio(kernel), remove)
    assert refusal.value.kind == "in-use"
    assert kernel.state() == before
    info.write_text(nobody)
    carry_out(Lio(kernel), remove)
    assert kernel.state() == empty


def test_an_address_that_is_not_this_hosts_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    empty, request = kernel.state(), _export(Lio)
    # For documentation only (RFC 5737), so that it is nobody's.
    elsewhere = replace(request, address="192.0.2.1")
    with pytest.raises(Refused, match=r"192\.0\.2\.1 is no address of this host"):
        Lio(kernel).export(elsewhere)
    assert kernel.state() == empty
    Lio(kernel).export(request)
    before = kernel.state()
    with pytest.raises(Refused, match="is no address"):
        Lio(kernel).export(elsewhere)
    assert kernel.state() == before


def test_volumes_share_a_port_and_it_goes_with_the_last(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    targets, one = Nvmet(kernel), _export(Nvmet)
    two = replace(one, name=f"{one.name}b", serial="cd" * 16)
    targets.export(one)
    (port,) = kernel.objects("ports")
    targets.export(two)
    assert kernel.objects("ports") == [port]
    targets.remove(one.name)
    assert kernel.links(f"ports/{port}/subsystems") == [two.name]
    # The host's entry is still needed.
    assert kernel.objects("hosts") == [two.host_name]
    targets.remove(two.name)
    assert (kernel.objects("ports"), kernel.objects("hosts")) == ([], [])


def test_a_port_that_others_have_made_is_used_and_left(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.make("ports/1")
    for name, value in (("trtype", "tcp"), ("adrfam", "ipv4"), ("traddr", "127.0.0.1"), ("trsvcid", "3260")):
        kernel.write(f"ports/1/addr_{name}", value)
    before = kernel.state()
    Nvmet(kernel).export(_export(Nvmet))
    assert kernel.objects("ports") == ["1"]
    Nvmet(kernel).remove(_export(Nvmet).name)
    assert kernel.state() == before


@pytest.mark.parametrize(
    "change",
    [
        {"name": "iqn.2026-11.org.volmig:../../x"},
        {"name": "volume"},
        {"host_name": "iqn.2020-01.org.host:a/b"},
        {"device": "/etc/passwd"},
        {"device": "/dev/../etc/passwd"},
        {"device": "/dev/null"},
        {"serial": "x"},
        {"address": "0.0.0.0; rm"},
        {"port": 0},
        {"port": "3260"},
        {"password": "a b"},
    ],
)
def test_a_request_that_is_not_what_it_must_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    kernel = FakeKernel(tmp_path)
    empty = kernel.state()
    fields = ("name", "device", "serial", "host_name", "address", "port", "user", "password")
    values = {field: getattr(_export(Lio), field) for field in fields}
    with pytest.raises(Refused) as refusal:
        carry_out(Lio(kernel), {"action": "export", **values, **change})
    assert kernel.state() == empty
    assert SECRET not in str(refusal.value)


def test_what_is_no_request_is_answered_without_repeating_it() -> None:
    assert answer(f'{{"password": "{SECRET}"') == {"refused": "failed", "reason": "the request makes no sense"}


TOOL = """
import sys
from pathlib import Path
from volmig.drivers.targets import tool

tool._LOCK, tool._CONFIGFS = Path(sys.argv[1]), Path(sys.argv[2])
tool.main()
"""


def _ask_tool(lock: Path, **request: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", TOOL, str(lock), str(lock.parent)]
    return subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=LONG, check=False)


def test_the_program_ends_when_its_time_is_over(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    request = {"protocol": "iscsi", "action": "remove", "name": "iqn.2026-11.org.volmig:volume-1.aa"}
    with lock.open("w") as held:
        # Another one is at work, and does not end.
        fcntl.flock(held, fcntl.LOCK_EX)
        done = _ask_tool(lock, **request, until=time.monotonic() + 1)
        assert (done.returncode, done.stdout) == (-signal.SIGALRM, "")
    assert json.loads(_ask_tool(lock, **request, until=time.monotonic() + LONG).stdout) == {"answer": []}


def test_the_program_does_nothing_when_its_time_was_over_before(tmp_path: Path) -> None:
    done = _ask_tool(tmp_path / "lock", protocol="iscsi", action="list", until=time.monotonic() - 0.1)
    assert json.loads(done.stdout) == {"refused": "failed", "reason": "the request came when its time was over"}
    for until in ({}, {"until": None}, {"until": math.inf}, {"until": math.nan}, {"until": "x"}):
        done = _ask_tool(tmp_path / "lock", protocol="iscsi", action="list", **until)
        assert json.loads(done.stdout) == {"refused": "failed", "reason": "the request makes no sense"}
    assert not (tmp_path / "lock").exists()


def test_a_request_does_not_show_its_secret() -> None:
    assert SECRET not in repr(_export(Lio))
