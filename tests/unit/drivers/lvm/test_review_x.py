"""Extensions that come late, volumes without a device, and what clears a volume that is removed."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.drivers.lvm import support
from tests.unit.drivers.lvm.fake_lvm import GARBAGE, MIB, Died, FakeLvm
from volmig import errors
from volmig.drivers.lvm.devices import Devices
from volmig.model import Volume

HOST = "conformance@lvm#vg"
OLD = 10 * MIB
EXTENT = 4 * MIB


@pytest.fixture
def lvm(tmp_path: Path) -> FakeLvm:
    return FakeLvm(tmp_path, extent=EXTENT)


def made(lvm: FakeLvm) -> Volume:
    volume = support.volume(HOST, OLD)
    support.ready(lvm).create_volume(volume)
    return volume


def tags(lvm: FakeLvm, volume: Volume) -> list[str]:
    return lvm.lvs[volume.backend_name].tags


def write(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.write(b"U" * length)


# --- extensions -------------------------------------------------------------------------------


@pytest.mark.parametrize("newer", [14 * MIB, 16 * MIB, 18 * MIB])
def test_a_late_extension_zeroes_nothing_that_was_written_after_a_newer_one(lvm: FakeLvm, newer: int) -> None:
    """It has hung in lvextend; it was given up, and another extension has succeeded."""
    volume = made(lvm)
    path = lvm.path(volume.backend_name)

    def hang(command: tuple[str, ...]) -> None:
        if command[0] == "lvextend":
            lvm.before = lambda _: None
            support.ready(lvm).extend_volume(volume, newer)
            write(path, newer)

    lvm.before = hang
    late = support.ready(lvm)
    if newer <= 16 * MIB:
        late.extend_volume(volume, 13 * MIB)
    else:
        with pytest.raises(errors.DriverFailed):
            late.extend_volume(volume, 13 * MIB)
    assert path.read_bytes()[:newer] == b"U" * newer
    assert tags(lvm, volume) == []


def test_an_extension_within_the_last_extent_waits_for_one_that_writes_zeroes(lvm: FakeLvm) -> None:
    volume = made(lvm)
    path = lvm.path(volume.backend_name)
    done = threading.Event()

    def extend() -> None:
        support.ready(lvm).extend_volume(volume, 14 * MIB)
        done.set()

    newer = threading.Thread(target=extend)
    early: list[bool] = []

    def look(command: tuple[str, ...]) -> None:
        if "--deltag" in command:
            lvm.before = lambda _: None
            newer.start()
            early.append(done.wait(0.3))

    lvm.before = look
    support.ready(lvm).extend_volume(volume, 13 * MIB)
    newer.join(10)
    assert early == [False]
    assert done.is_set()
    assert path.read_bytes()[13 * MIB :] == bytes(3 * MIB)


def test_an_extension_that_found_no_room_leaves_no_tag(lvm: FakeLvm) -> None:
    volume = made(lvm)
    with pytest.raises(errors.DiskFull):
        support.ready(lvm).extend_volume(volume, 4096 * MIB + 1)
    assert tags(lvm, volume) == []


def test_an_extension_that_fails_leaves_the_tag_of_one_that_is_still_to_come(lvm: FakeLvm) -> None:
    volume = made(lvm)

    def hang(command: tuple[str, ...]) -> None:
        if command[0] == "lvextend":
            lvm.before = lambda _: None
            with pytest.raises(errors.DiskFull):
                support.ready(lvm).extend_volume(volume, 4096 * MIB + 1)

    lvm.before = hang
    support.ready(lvm).extend_volume(volume, 13 * MIB)
    assert lvm.path(volume.backend_name).read_bytes()[13 * MIB :] == bytes(3 * MIB)
    assert tags(lvm, volume) == []


@pytest.mark.parametrize("newer", [14 * MIB, 16 * MIB])
def test_an_extension_that_died_with_a_foreign_tag_left_is_finished_when_repeated(lvm: FakeLvm, newer: int) -> None:
    volume = made(lvm)
    tags(lvm, volume).append(f"volmig-tail-{13 * MIB}")

    def die(command: tuple[str, ...]) -> None:
        if command[0] == "lvextend":
            raise Died

    lvm.after = die
    with pytest.raises(Died):
        support.ready(lvm).extend_volume(volume, newer)
    lvm.after = lambda _: None
    support.ready(lvm).extend_volume(volume, newer)
    assert lvm.path(volume.backend_name).read_bytes()[newer:] == bytes(16 * MIB - newer)
    assert tags(lvm, volume) == []


# --- devices that are not there ---------------------------------------------------------------


def hide(path: Path) -> Path:
    return path.rename(path.with_suffix(".hidden"))


def test_a_volume_whose_device_is_missing_is_not_reported_as_deleted(lvm: FakeLvm) -> None:
    volume = made(lvm)
    path = lvm.path(volume.backend_name)
    hidden = hide(path)
    with pytest.raises(errors.StorageBusy, match=r"device .* is not there"):
        support.ready(lvm).delete_volume(volume)
    assert volume.backend_name in lvm.lvs
    hidden.rename(path)
    support.ready(lvm).delete_volume(volume)
    assert volume.backend_name not in lvm.lvs


def test_a_volume_whose_path_leads_to_another_device_is_not_deleted_nor_is_the_other(lvm: FakeLvm) -> None:
    other, volume = made(lvm), made(lvm)
    path = lvm.path(volume.backend_name)
    hide(path)
    path.symlink_to(lvm.path(other.backend_name))
    write(path, OLD)
    with pytest.raises(errors.StorageBusy, match="another volume's device"):
        support.ready(lvm).delete_volume(volume)
    assert {volume.backend_name, other.backend_name} <= set(lvm.lvs)
    assert lvm.path(other.backend_name).read_bytes()[:OLD] == b"U" * OLD


def test_a_volume_that_others_remove_while_it_is_deleted_is_deleted(lvm: FakeLvm) -> None:
    volume = made(lvm)
    lvm.lvs[volume.backend_name].active = False

    def remove(command: tuple[str, ...]) -> None:
        if "-ay" in command:
            del lvm.lvs[volume.backend_name]
            lvm.path(volume.backend_name).unlink()

    lvm.after = remove
    support.ready(lvm).delete_volume(volume)
    assert lvm.commands("lvremove") == []


def test_a_volume_whose_device_is_missing_is_not_missing_when_connected(lvm: FakeLvm) -> None:
    volume = made(lvm)
    hide(lvm.path(volume.backend_name))
    with pytest.raises(errors.StorageBusy, match=r"device .* is not there"):
        support.ready(lvm).initialize_connection(volume, {"host": "conformance"})


def test_an_extension_goes_on_when_the_device_is_there_again(lvm: FakeLvm) -> None:
    volume = made(lvm)
    path = lvm.path(volume.backend_name)

    def vanish(command: tuple[str, ...]) -> None:
        if command[0] == "lvextend":
            hide(path)

    lvm.after = vanish
    with pytest.raises(errors.StorageBusy, match=r"device .* is not there"):
        support.ready(lvm).extend_volume(volume, 13 * MIB)
    lvm.after = lambda _: None
    path.with_suffix(".hidden").rename(path)
    support.ready(lvm).extend_volume(volume, 13 * MIB)
    assert path.read_bytes()[13 * MIB :] == bytes(3 * MIB)
    assert tags(lvm, volume) == []


def test_a_volume_that_is_gone_is_missing_to_an_extension_and_to_a_connection(lvm: FakeLvm) -> None:
    volume = made(lvm)
    tags(lvm, volume).append(f"volmig-tail-{11 * MIB}")
    lvm.lvs[volume.backend_name].active = False

    def remove(command: tuple[str, ...]) -> None:
        if "-ay" in command:
            lvm.path(volume.backend_name).unlink()
            del lvm.lvs[volume.backend_name]

    lvm.after = remove
    removed = replace(lvm.lvs[volume.backend_name])
    with pytest.raises(errors.VolumeObjectMissing) as caught:
        support.ready(lvm).extend_volume(volume, 11 * MIB)
    assert caught.value.fields["volume"] == volume.id
    lvm.add(removed.name, removed.size, active=False)
    with pytest.raises(errors.VolumeObjectMissing):
        support.ready(lvm).initialize_connection(volume, {"host": "conformance"})


# --- clearing ---------------------------------------------------------------------------------


def test_what_clears_a_volume_cannot_open_another_when_its_worker_is_dead(lvm: FakeLvm) -> None:
    """The worker dies after it has begun blkdiscard; the names of its device are given to another volume."""
    volume = made(lvm)
    path = lvm.path(volume.backend_name)

    def die(command: tuple[str, ...]) -> None:
        if command[0] == "blkdiscard":
            raise Died

    lvm.before = die
    with pytest.raises(Died):
        support.ready(lvm).delete_volume(volume)
    lvm.before = lambda _: None
    hide(path)
    path.write_bytes(GARBAGE * MIB)
    with pytest.raises(FileNotFoundError):
        lvm(lvm.commands("blkdiscard")[0], None)
    assert path.read_bytes() == GARBAGE * MIB


def test_an_open_file_is_named_by_what_holds_it_and_no_more_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "held"
    path.write_bytes(b"here")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        node = Devices().node(fd)
        path.rename(tmp_path / "elsewhere")
        path.write_bytes(b"another")
        assert node.read_bytes() == b"here"
    finally:
        os.close(fd)
    assert not node.exists()


@pytest.mark.parametrize(
    ("wanted", "cleared"),
    [(1, MIB), (1_000_000, MIB), (MIB, MIB), (MIB + 1, 2 * MIB), (300 * 1000**2, 12 * MIB)],
)
def test_whole_mebibytes_are_cleared(lvm: FakeLvm, wanted: int, cleared: int) -> None:
    volume = made(lvm)
    support.ready(lvm, volume_clear_size_bytes=wanted).delete_volume(volume)
    (command,) = lvm.commands("blkdiscard")
    assert command[command.index("--length") + 1] == str(cleared)
