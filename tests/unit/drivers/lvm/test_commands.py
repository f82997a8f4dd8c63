"""Running programs, and reading LVM's reports; real processes where a process matters."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from volmig import errors
from volmig.drivers.lvm import reports
from volmig.drivers.lvm.commands import CommandFailed, Commands, Completed, run_process
from volmig.drivers.lvm.reports import LvKind


class Script:
    """Answers each command with the next of these."""

    def __init__(self, *answers: Completed) -> None:
        self.answers = list(answers)
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str], stdin: bytes | None) -> Completed:
        self.commands.append(list(command))
        return self.answers.pop(0)


def answer(status: int = 0, out: str = "", said: str = "") -> Completed:
    return Completed(status=status, stdout=out.encode(), stderr=said.encode())


def commands(*answers: Completed, retries: int = 2, prefix: Sequence[str] = ()) -> tuple[Commands, Script]:
    script = Script(*answers)
    return Commands(backend="b", prefix=prefix, lock_retries=retries, run=script, pause=lambda _: None), script


LOCKED = answer(5, said="  Can't get lock for vg0\n  Cannot process volume group vg0\n")


def test_a_lock_that_is_held_is_tried_again() -> None:
    made, script = commands(LOCKED, LOCKED, answer(out="done"))
    assert made.run("lvs") == "done"
    assert len(script.commands) == 3


def test_a_lock_that_stays_held_is_a_busy_storage() -> None:
    made, _ = commands(LOCKED, LOCKED, LOCKED)
    with pytest.raises(errors.StorageBusy, match="Can't get lock"):
        made.run("lvs")


def test_any_other_failure_is_told_at_once_without_warnings() -> None:
    made, script = commands(answer(5, said="  WARNING: something\n  Volume group not found\n"))
    with pytest.raises(CommandFailed) as caught:
        made.run("lvs", "vg")
    assert caught.value.reason == "Volume group not found"
    assert len(script.commands) == 1


def test_a_missing_program_names_its_package() -> None:
    made = Commands(backend="b")
    with pytest.raises(errors.ProgramMissing) as caught:
        made.run("thin_check_that_is_not_there")
    assert "thin_check_that_is_not_there" in caught.value.message
    through_sudo, _ = commands(answer(1, said="sudo: lvs: command not found\n"), prefix=("sudo", "-n"))
    with pytest.raises(errors.ProgramMissing) as behind:
        through_sudo.run("lvs")
    assert behind.value.fields["package"] == "lvm2"


def test_a_program_has_its_own_session_and_nothing_of_ours() -> None:
    told = "os.getsid(0) == os.getpid(), os.environ['LC_ALL'], os.getcwd(), len(os.listdir('/proc/self/fd'))"
    code = f"import os; print({told})"
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        said = run_process([sys.executable, "-c", code], None).stdout.split()
    finally:
        os.close(read)
        os.close(write)
    assert said == [b"True", b"C", b"/", b"4"]  # and the directory that is listed


def test_an_interrupted_caller_takes_the_whole_group_along(tmp_path: Path) -> None:
    pids = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(pids)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )

    def interrupt() -> None:
        deadline = time.monotonic() + 20
        while not (pids.exists() and pids.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_process([sys.executable, "-c", code], None)
    child = int(pids.read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "a child of the program still runs"
        time.sleep(0.02)


# --- reports ----------------------------------------------------------------------------------


def row(**fields: object) -> dict[str, object]:
    usual: dict[str, object] = {
        "lv_name": "a",
        "lv_uuid": "u-a",
        "lv_size": "8388608",
        "lv_attr": "-wi-a-----",
        "lv_layout": "linear",
        "lv_role": "public",
        "lv_active": "active",
        "devices": "/dev/sda(0)",
        "vg_name": "vg",
        "vg_uuid": "u-vg",
        "vg_extent_size": "4194304",
    }
    return usual | fields


def read(*rows: dict[str, object], key: str = "lv") -> list[reports.LogicalVolume]:
    report = json.dumps({"report": [{key: rows}], "log": [{"log_type": "status"}]})
    made, _ = commands(answer(out=report, said="WARNING: Not using lvmetad\n"))
    return reports.logical_volumes(made, "vg")


def test_the_segments_of_a_volume_are_one_volume() -> None:
    found = read(row(), row(devices="/dev/sdb(5)"), row(devices="/dev/sda(9)"), key="seg")
    assert [lv.devices for lv in found] == [("/dev/sda", "/dev/sdb")]


@pytest.mark.parametrize(
    ("layout", "role", "kind"),
    [
        ("linear", "public", LvKind.THICK),
        ("linear", "public,origin,thickorigin", LvKind.THICK),
        ("raid,raid1", "public", LvKind.THICK),
        ("cache", "public", LvKind.THICK),
        ("cache,pool", "private", LvKind.OTHER),
        ("linear", "public,snapshot,thicksnapshot", LvKind.SNAPSHOT),
        ("thin,sparse", "public", LvKind.THIN),
        ("thin,sparse", "public,origin,thinorigin", LvKind.THIN),
        ("thin,sparse", "public,snapshot,thinsnapshot", LvKind.SNAPSHOT),
        ("thin,pool", "private", LvKind.THIN_POOL),
        ("linear", "private,thin,pool,data", LvKind.OTHER),
        ("vdo,sparse", "public", LvKind.OTHER),
        ("something-new", "public", LvKind.OTHER),
        ("", "", LvKind.OTHER),
    ],
)
def test_what_a_volume_is(layout: str, role: str, kind: LvKind) -> None:
    assert read(row(lv_layout=layout, lv_role=role))[0].kind is kind


def test_fields_that_are_missing_null_numbers_or_lists_are_read() -> None:
    odd = row(lv_size=8388608, lv_tags=["a", "b"], origin=None, data_percent="", unheard_of={"x": 1})
    found = read(odd)[0]
    assert (found.size_bytes, found.tags, found.origin, found.data_percent) == (8388608, ("a", "b"), "", 0.0)


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"report": [{"lv": 5}]}', '{"report": 7}'])
def test_a_report_that_cannot_be_read_is_a_failure(text: str) -> None:
    made, _ = commands(answer(out=text))
    with pytest.raises(CommandFailed, match="cannot be read"):
        reports.logical_volumes(made, "vg")
