"""Volumes that end within an extent, on real logical volumes: no old data beyond their ends, whoever dies when."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from tests.vm.support import MIB, Group, driver_options, logical_volumes, run, volume_group
from volmig import errors
from volmig.drivers.lvm import LvmDriver
from volmig.drivers.lvm.commands import Completed, run_process
from volmig.model import RequestContext, Volume, VolumeStatus

ODD = 3 * MIB // 2 + 77
NEW_ODD = 5 * MIB // 2 + 5


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with volume_group(size_bytes=32 * MIB) as made:
        run("lvcreate", "-q", "-y", "-Wn", "-Zn", "-l", "100%FREE", "-n", "garbage", made.name)
        with made.device("garbage").open("r+b") as device:
            for _ in range(28):
                device.write(b"\xa5" * MIB)
        run("lvremove", "-q", "-y", f"{made.name}/garbage")
        yield made


class Dies:
    """Runs programs, and dies instead of the first one of a name."""

    def __init__(self, program: str) -> None:
        self.program = program

    def __call__(self, command: Sequence[str], stdin: bytes | None) -> Completed:
        if command[0] == self.program:
            raise KeyboardInterrupt
        return run_process(command, stdin)


def driver(group: Group, dies_at: str = "") -> LvmDriver:
    made = LvmDriver(host="h", backend="b", options=driver_options(group), run=Dies(dies_at))
    made.do_setup(RequestContext())
    return made


def new_volume(group: Group, size_bytes: int) -> Volume:
    return Volume(
        id=str(uuid.uuid4()), name="v", size_bytes=size_bytes, host=f"h@b#{group.name}", status=VolumeStatus.AVAILABLE
    )


def test_the_life_of_a_volume_that_ends_within_an_extent(group: Group) -> None:
    volume = new_volume(group, ODD)
    with pytest.raises(KeyboardInterrupt):
        driver(group, "lvrename").create_volume(volume)
    assert logical_volumes(group) == [f"making-{volume.id}"]
    ready = driver(group)
    ready.create_volume(volume)
    ready.create_volume(volume)
    path = group.device(volume.backend_name)
    assert path.read_bytes()[ODD:] == bytes(2 * MIB - ODD)
    with path.open("r+b") as device:
        device.write(b"d" * ODD)
    with pytest.raises(KeyboardInterrupt):
        driver(group, "lvextend").extend_volume(volume, NEW_ODD)
    ready.extend_volume(volume, NEW_ODD)
    ready.extend_volume(volume, NEW_ODD)
    larger = replace(volume, size_bytes=NEW_ODD)
    content = path.read_bytes()
    assert len(content) == 3 * MIB
    assert content[:ODD] == b"d" * ODD
    assert content[NEW_ODD:] == bytes(3 * MIB - NEW_ODD)
    with path.open("rb"), pytest.raises(errors.VolumeInUse):
        ready.delete_volume(larger)
    assert path.read_bytes() == content, "an open volume was cleared"
    ready.create_snapshot(larger, volume.id)
    with pytest.raises(errors.VolumeHasSnapshots):
        ready.delete_volume(larger)
    ready.delete_snapshot(larger, volume.id)
    ready.delete_volume(larger)
    assert logical_volumes(group) == []
