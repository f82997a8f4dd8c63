"""The power fails in the middle of migrations between volume groups; after the next boot the volume is whole, once.

Each boot recovers from the end of the one before, looks, and begins a migration back that the power failure interrupts.

What it shows, and what not: the guest's kernel and all that it had in memory are gone at once, without a sync, so that
what was not sent to the disks is lost. The disks' own volatile caches are not: what the guest had sent to them is in
the host's memory, flushed or not (``cache=writeback``). Disks that lose what they have taken and were never asked to
flush are not shown.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from volmig.testing.vm import MachineEnded, MachineOptions, boot

MIB = 1024**2
COMMAND_SECONDS = 900.0
HERE, THERE = "vmpower0", "vmpower1"


def _life(disks: tuple[Path, ...], beginning: str, point: str) -> Mapping[str, str]:
    """Boot, and let the guest live until the power fails at *point*; return what it told before."""
    output = io.BytesIO()
    command = ["python", "-m", "tests.power.rounds", beginning, point]
    with boot(MachineOptions(disks=disks), output=output) as machine:
        try:
            status = machine.run(command, timeout_seconds=COMMAND_SECONDS)
        except MachineEnded:
            assert point != "none", "the machine ended by itself"
        else:
            assert (status, point) == (0, "none"), output.getvalue().decode(errors="replace")
    lines = output.getvalue().decode(errors="replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_power_fails_at_every_turn(tmp_path: Path) -> None:
    disks = tuple(tmp_path / f"disk{number}.img" for number in range(3))
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(96 * MIB)
    told = _life(disks, "new", "in the copy")
    digest = told["written"]
    _assert_whole(told, digest, HERE, [])
    # Interrupted in the copy, it goes on from its checkpoint when somebody recovers; so the volume is there.
    told = _life(disks, "next", "before the commit")
    _assert_whole(told, digest, THERE, ["success"])
    told = _life(disks, "next", "after the commit")
    _assert_whole(told, digest, HERE, ["success"] * 2)
    told = _life(disks, "next", "after the renaming")
    _assert_whole(told, digest, THERE, ["success"] * 3)
    told = _life(disks, "next", "none")
    _assert_whole(told, digest, HERE, ["success"] * 4)


def _assert_whole(told: Mapping[str, str], digest: str, group: str, migrations: list[str]) -> None:
    """Check that the volume is in one group, whole, and that nothing else is anywhere."""
    assert told["digest"] == digest
    assert told["place"] == f"here@{group}#{group}"
    assert told["status"] == "available"
    assert told["objects"] == f"{group}/{told['name']}"
    assert told["findings"] == "[]"
    assert (told["reservations"], told["retired"], told["checkpoints"]) == ("0", "0", "0")
    assert told["migrations"] == ",".join(migrations)
