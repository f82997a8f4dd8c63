"""The driver ``lvm`` as a user who is not root, by sudo; and discarding on a disk that can, and on one that cannot."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from volmig.drivers.base import MigrationHost
from volmig.drivers.lvm import LvmDriver
from volmig.model import RequestContext, Volume, VolumeStatus

from .devices import faulty, nothing_left
from .support import MIB, Group, driver_options, logical_volumes, run, volume_group

__all__ = ["nothing_left"]

USER = "volmig-test"
PROGRAMS = (
    *("lvs", "vgs", "pvs", "lvm", "lvcreate", "lvremove", "lvextend", "lvrename", "lvchange", "lvconvert", "pvmove"),
    *("blkdiscard", "ionice", "dmsetup", "timeout"),
)
"""What the driver runs as root; doc/source/lvm.rst has the same list."""
CONTEXT = RequestContext()


@pytest.fixture
def user() -> Iterator[pwd.struct_passwd]:
    """Give a user who may open block devices, and run the driver's programs as root."""
    paths = [shutil.which(program) for program in PROGRAMS]
    run("useradd", "--no-create-home", "--groups", "disk", USER)
    rights = Path("/etc/sudoers.d") / USER
    try:
        rights.write_text(f"{USER} ALL=(root) NOPASSWD: {', '.join(path for path in paths if path)}\n")
        rights.chmod(0o440)
        yield pwd.getpwnam(USER)
    finally:
        rights.unlink()
        run("userdel", USER)


def as_user(who: pwd.struct_passwd, act: Callable[[], None]) -> None:
    """Do something in a process of this user's; an error there fails the test."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reader)
            os.initgroups(who.pw_name, who.pw_gid)
            os.setgid(who.pw_gid)
            os.setuid(who.pw_uid)
            act()
        except BaseException:  # noqa: BLE001 - the test tells of it
            os.write(writer, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as said:
        text = said.read()
    os.waitpid(pid, 0)
    assert not text, text


def driver(group: Group, **options: object) -> LvmDriver:
    made = LvmDriver(host="h", backend="b", options=driver_options(group, **options))
    made.do_setup(CONTEXT)
    made.check_for_setup_error()
    return made


def new_volume(pool: str, size_bytes: int) -> Volume:
    identity = str(uuid.uuid4())
    return Volume(id=identity, name="v", size_bytes=size_bytes, host=f"h@b#{pool}", status=VolumeStatus.AVAILABLE)


def destination(by: LvmDriver, pool: str) -> MigrationHost:
    stats = by.get_volume_stats()
    found = next(each for each in stats["pools"] if each["pool_name"] == pool)
    return {"host": f"h@b#{pool}", "capabilities": {**stats, **found}}  # type: ignore[dict-item]


def live(group: Group, *, is_moved: bool) -> None:
    """Have a volume all of its life: made, written to, extended, snapped, moved, renamed, and deleted."""
    assert os.geteuid() != 0
    by = driver(group, lvm_pv_tags=["fast", "slow"], lvm_root_helper="sudo -n", volume_clear_ionice="-c3")
    volume = new_volume("fast", MIB + 512)
    by.create_volume(volume)
    larger = replace(volume, size_bytes=2 * MIB + 512)
    by.extend_volume(volume, larger.size_bytes)
    connection = by.initialize_connection(larger, {"host": "h"})
    with open(connection["data"]["device_path"], "r+b") as device:
        device.write(b"d" * larger.size_bytes)
    by.create_snapshot(larger, volume.id)
    by.delete_snapshot(larger, volume.id)
    moved = larger
    if is_moved:
        assert by.migrate_volume(CONTEXT, larger, destination(by, "slow"))[0]
        moved = replace(larger, host="h@b#slow")
    update = by.update_migrated_volume(CONTEXT, replace(moved, id=str(uuid.uuid4())), moved, "available")
    pool = moved.host.partition("#")[2]
    renamed = replace(moved, name_id=update["_name_id"], id=by.list_objects(pool)[0].backend_id or "")
    with open(by.initialize_connection(renamed, {"host": "h"})["data"]["device_path"], "rb") as device:
        assert device.read() == b"d" * larger.size_bytes + bytes(MIB - 512)
    by.delete_volume(renamed)


@pytest.mark.parametrize("is_moved", [False, pytest.param(True, marks=pytest.mark.long)], ids=["stays", "moves"])
def test_a_user_with_sudo_leaves_nothing_undone(user: pwd.struct_passwd, is_moved: bool) -> None:
    with volume_group(size_bytes=24 * MIB, tags=("fast", "slow")) as group:
        as_user(user, lambda: live(group, is_moved=is_moved))
        assert logical_volumes(group) == []
        newer = new_volume("fast", 16 * MIB)
        by = driver(group, lvm_pv_tags=["fast", "slow"])
        by.create_volume(newer)
        assert b"d" * 512 not in group.device(newer.backend_name).read_bytes()


def deleted(group: Group, pool: str) -> None:
    """Delete a volume that was filled."""
    by = driver(group, volume_clear="discard")
    volume = new_volume(pool, 8 * MIB)
    by.create_volume(volume)
    with group.device(volume.backend_name).open("r+b") as device:
        device.write(b"d" * volume.size_bytes)
        device.flush()
        os.fsync(device.fileno())
    by.delete_volume(volume)


def test_a_disk_that_can_discard_is_given_back_what_was_deleted(caplog: pytest.LogCaptureFixture) -> None:
    with volume_group(size_bytes=24 * MIB) as group:
        image = Path(run("losetup", "--noheadings", "--output", "BACK-FILE", group.devices[0]).strip())
        before = image.stat().st_blocks
        with caplog.at_level(logging.WARNING):
            deleted(group, group.name)
        assert (image.stat().st_blocks - before) * 512 < MIB
        assert b"d" * 512 not in image.read_bytes()
    assert "cannot discard" not in caplog.text


def test_a_disk_that_cannot_discard_is_overwritten(caplog: pytest.LogCaptureFixture) -> None:
    with faulty(24 * MIB) as disk:
        limit = Path("/sys/block") / disk.path.resolve().name / "queue/discard_max_bytes"
        limit.write_text("0")
        run("vgcreate", "-q", "-y", "-s", "1m", "vmtnodiscard", str(disk.path))
        try:
            with caplog.at_level(logging.WARNING):
                deleted(Group(name="vmtnodiscard", devices=(str(disk.path),)), "vmtnodiscard")
            assert b"d" * 512 not in disk.truth(disk.size_bytes)
        finally:
            run("vgremove", "-q", "-ff", "-y", "vmtnodiscard")
    assert "cannot discard" in caplog.text
