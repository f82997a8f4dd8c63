"""A machine that fails is reported as what it is, and what its disks had stays. Each machine here is a real one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from volmig.testing.vm import (
    CommandTimedOut,
    MachineOptions,
    MachinePanicked,
    MachinePoweredOff,
    boot,
)

COMMAND_SECONDS = 300.0
DISK = "/dev/disk/by-id/virtio-volmig-0"


def _sysrq(key: str) -> list[str]:
    return ["bash", "-c", f"echo before; echo {key} > /proc/sysrq-trigger; sleep 1000"]


def test_statuses_and_output_come_back_and_a_panic_is_a_panic(tmp_path):
    results, output = tmp_path / "results", io.BytesIO()
    with boot(MachineOptions(results=results), output=output) as machine:
        assert machine.run(["false"], timeout_seconds=COMMAND_SECONDS) == 1
        assert machine.run(["no-such-program"], timeout_seconds=COMMAND_SECONDS) == 127
        said = ["printf", "%s|", "two  words", "$HOME", "'\"`", "*"]
        assert machine.run(said, timeout_seconds=COMMAND_SECONDS) == 0
        left = ["bash", "-c", 'echo "$GIVEN" > "$VOLMIG_VM_RESULTS/left"; pwd']
        environment = {"GIVEN": "by the caller"}
        assert machine.run(left, environment=environment, directory=tmp_path, timeout_seconds=COMMAND_SECONDS) == 0
        with pytest.raises(MachinePanicked) as caught:
            machine.run(_sysrq("c"), timeout_seconds=COMMAND_SECONDS)
        assert "Kernel panic" in caught.value.evidence
        assert not machine.is_running
    text = output.getvalue().decode()
    assert "two  words|$HOME|'\"`|*|" in text
    assert str(tmp_path) in text
    assert text.rstrip().endswith("before")
    assert (results / "left").read_text() == "by the caller\n"
    assert "Kernel panic" in (results / "console.log").read_text(errors="replace")
    assert (results / "dmesg.log").stat().st_size > 0


def test_a_command_that_hangs_is_shown_and_ended_with_the_machine(tmp_path):
    results = tmp_path / "results"
    with boot(MachineOptions(results=results)) as machine:
        with pytest.raises(CommandTimedOut, match="sleep 1234"):
            machine.run(["sleep", "1234"], timeout_seconds=5)
        assert not machine.is_running
    assert "sleep 1234" in (results / "processes.log").read_text()


def test_a_power_off_in_the_middle_is_one_and_the_disk_keeps_what_was_synced(tmp_path):
    disk = _disk(tmp_path)
    with boot(MachineOptions(disks=(disk,))) as machine:
        synced = f"echo kept | dd of={DISK} bs=512 conv=sync,fsync"
        assert machine.run(["bash", "-c", synced], timeout_seconds=COMMAND_SECONDS) == 0
        with pytest.raises(MachinePoweredOff, match="switched itself off"):
            machine.run(_sysrq("o"), timeout_seconds=COMMAND_SECONDS)
    assert disk.read_bytes()[:5] == b"kept\n"


def _disk(directory: Path) -> Path:
    disk = directory / "disk"
    with disk.open("wb") as file:
        file.truncate(16 * 1024**2)
    return disk
