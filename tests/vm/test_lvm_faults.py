"""Volume groups that fail under a migration: pools that fill up, devices that fail, vanish or are not there, locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from volmig import errors
from volmig.engine import MigrationHandle
from volmig.model import MigrationStatus, Volume

from .bench import Bench, Content, bench, files, objects, read_sha256
from .devices import Faulty, faulty, nothing_left
from .support import MIB, logical_volumes, new_name, remove_group, run

__all__ = ["nothing_left"]

SIZE = 8 * MIB
BAD = 5 * MIB + 4096
BLOCK = 4096
REQUEST = 65536
SLOWLY = 4 * MIB
"""Bytes a second of a copy in whose middle something is to happen."""
CRAWLING = MIB // 8
"""Bytes a second of a copy that must not come to a place before that has gone bad."""
CONTENT = Content(size_bytes=SIZE, seed=21)
LARGE = Content(size_bytes=24 * MIB, seed=22)
POOL_BYTES = 16 * MIB


@dataclass(frozen=True, kw_only=True)
class Yard:
    """A volume group on a device that fails on command, a directory, and an engine with both."""

    bench: Bench
    device: Faulty
    group: str
    directory: Path

    def logical_volumes(self) -> list[str]:
        """Return the names of all that the group has beside its thin pool."""
        return [name for name in logical_volumes(self.group) if "pool" not in name and "pmspare" not in name]

    def places(self) -> tuple[str, str, str]:
        return "files", f"thick#{self.group}", "thin#pool"

    def move(self, volume: Volume, place: str, **options: object) -> MigrationHandle:
        address = place if "#" in place else f"{place}#{place}"
        return self.bench.engine.migrate(volume.id, f"here@{address}", **options)  # type: ignore[arg-type]

    def assert_stayed(self, volume: Volume, place: str, content: Content = CONTENT) -> None:
        """Check that the volume is where it was, whole, and its object the only one anywhere."""
        self.bench.assert_stayed(volume, place, content)
        self._assert_only(volume, place)

    def assert_moved(self, volume: Volume, place: str, content: Content = CONTENT) -> None:
        self.bench.assert_moved(volume, place, content)
        self._assert_only(volume, place)

    def _assert_only(self, volume: Volume, place: str) -> None:
        names = [self.bench.engine.show_volume(volume.id).backend_name]
        assert objects(self.directory) == (names if place == "files" else [])
        assert self.logical_volumes() == (names if place != "files" else [])

    def place_on_device(self, name: str, offset: int) -> int:
        """Return where on the device a thick volume has its byte at *offset*."""
        first = run("lvs", "--noheadings", "-o", "seg_pe_ranges", f"{self.group}/{name}").split(":")[-1].split("-")[0]
        start, extent = run(
            *("pvs", "--noheadings", "--nosuffix", "--units", "b", "-o", "pe_start,vg_extent_size"),
            str(self.device.path),
        ).split()
        return int(start) + int(first) * int(extent) + offset


@pytest.fixture(scope="module")
def whole_yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    root = tmp_path_factory.mktemp("yard")
    (root / "files").mkdir()
    group = new_name()
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(faulty(96 * MIB, "pv"))
        run("vgcreate", "-q", "-y", "-s", "1m", group, str(device.path))
        stack.callback(remove_group, group)
        run(
            *("lvcreate", "-q", "-y", "--type", "thin-pool", "--size", f"{POOL_BYTES}b", "--chunksize", "64k"),
            *("--poolmetadatasize", "4m", "--zero", "y", "--name", "pool", group),
        )
        run("lvchange", "-q", "--errorwhenfull", "y", f"{group}/pool")
        backends = {
            "files": files(root / "files"),
            "thick": {"volume_driver": "lvm", "lvm_volume_group": group, "driver_retries": 0},
            "thin": {
                "volume_driver": "lvm",
                "lvm_volume_group": group,
                "lvm_type": "thin",
                "lvm_thin_pools": "pool",
                "max_over_subscription_ratio": 10.0,
            },
        }
        made = stack.enter_context(
            bench(
                root / "state",
                backends,
                lease_seconds=10.0,
                heartbeat_seconds=0.3,
                cleanup_attempts=2,
                cleanup_delay_seconds=0.1,
                chunk_bytes=REQUEST,
            )
        )
        yield Yard(bench=made, device=device, group=group, directory=root / "files")


@pytest.fixture
def yard(whole_yard: Yard) -> Iterator[Yard]:
    """Give the yard with good devices and no volumes, and leave it so."""
    yield whole_yard
    whole_yard.device.heal()
    for volume in whole_yard.bench.engine.list_volumes():
        whole_yard.bench.engine.delete_volume(volume.id)
    whole_yard.bench.assert_nothing_left()
    assert whole_yard.logical_volumes() == []


def after(handle: MigrationHandle, bytes_done: int, act: Callable[[], object]) -> None:
    """Do something when that much was copied."""
    for event in handle.events(0.05):
        assert not event.migration.phase.is_final, f"it ended before: {event.migration.error_message}"
        if event.stage == "copy" and event.migration.bytes_done >= bytes_done:
            act()
            return


def before_it_goes_on(handle: MigrationHandle, act: Callable[[], object]) -> None:
    """Do something when the copy has just begun, and let it go on at full speed."""
    after(handle, 1, act)
    handle.limit(0)


# --- thin pools that fill up ----------------------------------------------------------------------


def test_a_thin_pool_that_fills_up(yard: Yard) -> None:
    files, _, thin = yard.places()
    volume = yard.bench.volume(files, LARGE)
    with pytest.raises(errors.DiskFull) as caught:
        yard.move(volume, thin).result(120)
    assert caught.value.hint
    yard.assert_stayed(volume, files, LARGE)
    # The pool is fit for what fits into it.
    small = yard.bench.volume(files, CONTENT)
    yard.bench.engine.delete_volume(volume.id)
    yard.move(small, thin).result(120)
    yard.assert_moved(small, thin)


def test_a_thin_pool_that_lets_writers_wait_when_it_is_full(yard: Yard) -> None:
    """As long as the kernel is told to (60 s unless told otherwise); then they fail, and so does the copy."""
    files, _, thin = yard.places()
    volume = yard.bench.volume(files, LARGE)
    with waiting_pool(yard, seconds=4):
        began = time.monotonic()
        with pytest.raises((errors.DiskFull, errors.TransferFailed)):
            yard.move(volume, thin).result(200)
        assert time.monotonic() - began > 4
        yard.assert_stayed(volume, files, LARGE)


@contextlib.contextmanager
def waiting_pool(yard: Yard, seconds: int) -> Iterator[None]:
    parameter = Path("/sys/module/dm_thin_pool/parameters/no_space_timeout")
    before = parameter.read_text()
    parameter.write_text(str(seconds))
    run("lvchange", "-q", "--errorwhenfull", "n", f"{yard.group}/pool")
    try:
        yield
    finally:
        run("lvchange", "-q", "--errorwhenfull", "y", f"{yard.group}/pool")
        parameter.write_text(before)


# --- physical volumes that fail -------------------------------------------------------------------


def test_a_block_of_a_physical_volume_that_cannot_be_read(yard: Yard) -> None:
    files, thick, _ = yard.places()
    volume = yard.bench.volume(thick, CONTENT)
    place = yard.place_on_device(volume.backend_name, BAD)
    yard.device.fail_at((place, place + BLOCK))
    with pytest.raises(errors.TransferFailed, match="Input/output error") as caught:
        yard.move(volume, files).result(120)
    assert volume.backend_name in caught.value.fields["path"]
    assert caught.value.fields["offset"] <= BAD < caught.value.fields["offset"] + REQUEST
    yard.device.heal()
    yard.assert_stayed(volume, thick)


def test_a_block_of_a_physical_volume_that_cannot_be_written(yard: Yard) -> None:
    files, thick, _ = yard.places()
    volume = yard.bench.volume(files, CONTENT)
    handle = yard.move(volume, thick, bandwidth_limit_bytes=CRAWLING)

    def go_bad() -> None:
        (name,) = yard.logical_volumes()
        place = yard.place_on_device(name, BAD)
        yard.device.fail_writes_at((place, place + BLOCK))

    before_it_goes_on(handle, go_bad)
    with pytest.raises(errors.TransferFailed, match="Input/output error") as caught:
        handle.result(120)
    assert caught.value.fields["offset"] <= BAD < caught.value.fields["offset"] + REQUEST
    yard.device.heal()
    yard.bench.recover()
    yard.assert_stayed(volume, files)


def test_writes_that_a_physical_volume_drops(yard: Yard) -> None:
    files, thick, _ = yard.places()
    volume = yard.bench.volume(files, CONTENT)
    handle = yard.move(volume, thick, bandwidth_limit_bytes=CRAWLING)

    def drop() -> None:
        (name,) = yard.logical_volumes()
        place = yard.place_on_device(name, BAD)
        yard.device.drop_writes((place, place + BLOCK))

    before_it_goes_on(handle, drop)
    with pytest.raises(errors.VerificationFailed):
        handle.result(120)
    yard.device.heal()
    yard.bench.recover()
    yard.assert_stayed(volume, files)


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_a_destination_whose_device_vanishes(yard: Yard, kind: str) -> None:
    """What cannot be deleted without the device is on record, and goes when the device is back."""
    files, thick, thin = yard.places()
    volume = yard.bench.volume(files, CONTENT)
    handle = yard.move(volume, thick if kind == "thick" else thin, bandwidth_limit_bytes=SLOWLY)
    after(handle, 2 * MIB, yard.device.vanish)
    with pytest.raises(errors.VolmigError):
        handle.result(240)
    found = yard.bench.engine.show_volume(volume.id)
    assert (found.host, found.migration_status) == ("here@files#files", MigrationStatus.ERROR)
    assert read_sha256(yard.bench.path(found), SIZE) == CONTENT.sha256
    come_back(yard)
    yard.assert_stayed(volume, files)
    yard.move(volume, thick if kind == "thick" else thin).result(120)


def test_a_source_whose_device_vanishes(yard: Yard) -> None:
    files, thick, _ = yard.places()
    volume = yard.bench.volume(thick, CONTENT)
    handle = yard.move(volume, files, bandwidth_limit_bytes=SLOWLY)
    after(handle, 2 * MIB, yard.device.vanish)
    with pytest.raises(errors.VolmigError):
        handle.result(240)
    come_back(yard)
    yard.assert_stayed(volume, thick)


def come_back(yard: Yard) -> None:
    """Have the device back, as after a repair: what the kernel remembers of the failure is dropped; recover."""
    yard.device.heal()
    run("vgchange", "-q", "-an", yard.group)
    run("vgchange", "-q", "-ay", yard.group)
    yard.bench.recover()


def test_a_volume_group_that_is_missing_at_the_start(yard: Yard) -> None:
    """Its backend is down, with the reason; all others work; it is up as soon as the group is there."""
    files, thick, _ = yard.places()
    run("vgchange", "-q", "-an", yard.group)
    yard.device.vanish()
    yard.bench.restart()
    info = yard.bench.engine.show_backend("thick")
    assert not info.up
    assert yard.group in info.down_reason
    assert yard.bench.engine.show_backend("files").up
    volume = yard.bench.volume(files, CONTENT)
    with pytest.raises(errors.BackendDown, match=yard.group):
        yard.move(volume, thick)
    yard.device.heal()
    run("vgchange", "-q", "-ay", yard.group)
    deadline = time.monotonic() + 30
    while not yard.bench.engine.show_backend("thick").up:
        assert time.monotonic() < deadline, yard.bench.engine.show_backend("thick").down_reason
        time.sleep(0.5)
    yard.move(volume, thick).result(120)
    yard.assert_moved(volume, thick)


# --- others at work -------------------------------------------------------------------------------


def test_a_source_that_is_held_open(yard: Yard) -> None:
    """It is not torn away from who has it open: it is on record, and goes when they let go of it."""
    files, thick, _ = yard.places()
    volume = yard.bench.volume(thick, CONTENT)
    fd = os.open(yard.bench.path(volume), os.O_RDONLY)
    try:
        yard.move(volume, files).result(120)
        found = yard.bench.engine.show_volume(volume.id)
        assert found.host == "here@files#files"
        assert read_sha256(yard.bench.path(found), SIZE) == CONTENT.sha256
        assert yard.logical_volumes() == [volume.backend_name]
        assert os.pread(fd, 4096, 0) == CONTENT.data[:4096]
    finally:
        os.close(fd)
    yard.bench.recover()
    yard.assert_moved(volume, files)


def test_the_lock_of_a_volume_group_is_held(yard: Yard) -> None:
    """Another program changes the group for long: the migration waits for it, and makes no half of anything."""
    files, thick, _ = yard.places()
    volume = yard.bench.volume(files, CONTENT)
    seen: list[Path] = []

    def let_go() -> None:
        seen.extend(Path("/dev", yard.group).glob("volume-*"))
        fcntl.flock(lock, fcntl.LOCK_UN)

    with Path(f"/run/lock/lvm/V_{yard.group}").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        timer = threading.Timer(4.0, let_go)
        timer.start()
        yard.move(volume, thick).result(120)
        timer.join()
    assert time.monotonic() - began >= 4.0
    assert not seen
    yard.assert_moved(volume, thick)
