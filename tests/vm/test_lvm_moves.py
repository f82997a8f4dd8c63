"""Logical volumes that are moved to other physical volumes by pvmove: in use, killed, and several at once."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import random
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.waiting import until
from volmig import errors
from volmig.drivers.base import MigrationHost
from volmig.drivers.lvm import LvmDriver
from volmig.drivers.lvm.commands import Commands, Completed, run_process
from volmig.drivers.lvm.layouts import read_layout
from volmig.drivers.lvm.moves import PhysicalMove
from volmig.drivers.lvm.pvmove import pvmove_at_work
from volmig.model import RequestContext, Volume, VolumeStatus

from .devices import faulty
from .support import MIB, Group, driver_options, logical_volumes, run, volume_group

LV_BYTES = 16 * MIB
BLOCK_BYTES = 64 * 1024
LONG_SECONDS = 300.0
_THROTTLE = Path("/sys/module/dm_mirror/parameters/raid1_resync_throttle")
"""Part of the time in which the kernel may copy, in percent."""


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with volume_group(size_bytes=48 * MIB, tags=("fast", "slow")) as made:
        yield made


@pytest.fixture
def lv(group: Group, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a logical volume on the first physical volume, and see to it that nothing of a move is left."""
    name = f"lv{abs(hash(request.node.name)) % 10**8}"
    make(group, name, LV_BYTES)
    yield name
    assert logical_volumes(group) == [name], "something of a move is left"
    run("lvremove", "-q", "-y", f"{group.name}/{name}")


def make(group: Group, name: str, size_bytes: int) -> None:
    run("lvcreate", "-q", "-y", "-Wn", "-L", f"{size_bytes}b", "-n", name, group.name, group.devices[0])
    with group.device(name).open("r+b", buffering=0) as device:
        for _ in range(size_bytes // MIB):
            device.write(random.randbytes(MIB))


@contextlib.contextmanager
def slow_mirrors() -> Iterator[None]:
    """Make the kernel copy slowly, so that there is a middle."""
    run("modprobe", "dm_mirror")
    before = _THROTTLE.read_text()
    _THROTTLE.write_text("1")
    try:
        yield
    finally:
        _THROTTLE.write_text(before)


def move(group: Group, lv: str, destination: str = "") -> PhysicalMove:
    return PhysicalMove(
        Commands(),
        volume=Volume(id=lv, name=lv, size_bytes=LV_BYTES, host="here@lvm#fast", status=VolumeStatus.IN_USE),
        vg=group.name,
        lv=lv,
        destination="here@lvm#slow",
        source_pvs=group.devices[:1],
        destination_pvs=[destination or group.devices[1]],
    )


def places(group: Group, lv: str) -> tuple[str, ...]:
    layout = read_layout(Commands(), group.name, lv)
    assert layout is not None
    assert not layout.moves
    return tuple(layout.extents)


def digest(group: Group, lv: str) -> str:
    """Read it past the page cache, which would show what was written and not what is there."""
    state = hashlib.sha256()
    with open_directly(group.device(lv)) as fd, mmap.mmap(-1, BLOCK_BYTES) as block:
        while os.readv(fd, [block]):
            state.update(block)
    return state.hexdigest()


@contextlib.contextmanager
def open_directly(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class Writer(threading.Thread):
    """Writes blocks at random places of a device all the time, and reads each back from it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.written = 0
        self.wrong: list[int] = []
        self.last: dict[int, bytes] = {}
        self._path = path
        self._is_over = threading.Event()

    def run(self) -> None:
        chance = random.Random(7)
        with open_directly(self._path) as fd, mmap.mmap(-1, BLOCK_BYTES) as block, mmap.mmap(-1, BLOCK_BYTES) as seen:
            while not self._is_over.is_set():
                at = chance.randrange(LV_BYTES // BLOCK_BYTES) * BLOCK_BYTES
                text = f"{self.written} {at} ".encode() * 64
                block[: len(text)] = text
                self.last[at] = bytes(block)
                os.pwritev(fd, [block], at)
                os.preadv(fd, [seen], at)
                self.wrong += [at] if seen[:] != block[:] else []
                self.written += 1

    def __enter__(self) -> Writer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()


def test_a_volume_moves_while_it_is_written_to(group: Group, lv: str) -> None:
    with Writer(group.device(lv)) as writer:
        until(lambda: writer.written > 10, LONG_SECONDS)
        before = writer.written
        move(group, lv).carry_out()
        during = writer.written - before
    assert places(group, lv) == tuple(group.devices[1:])
    assert during > 20, "it was hardly written to while it moved"
    assert not writer.wrong
    with open_directly(group.device(lv)) as fd, mmap.mmap(-1, BLOCK_BYTES) as block:
        for at, content in writer.last.items():
            os.preadv(fd, [block], at)
            assert block[:] == content, f"what was written last at {at} is not there"
    assert move(group, lv).settle() is True


@dataclass
class Worker:
    """A process that moves a volume."""

    pid: int

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def in_another_process(act: Callable[[], None]) -> Worker:
    pid = os.fork()
    if not pid:
        try:
            act()
        finally:
            os._exit(1)
    return Worker(pid)


def programs(group: Group, lv: str) -> list[int]:
    """Return the pvmove processes of a volume."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{group.name}/{lv}" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    ("percent", "also"),
    [
        pytest.param(None, "", marks=pytest.mark.long, id="begun"),
        pytest.param(0.0, "", id="worker"),
        pytest.param(20.0, "pvmove", marks=pytest.mark.long, id="worker-and-pvmove"),
        pytest.param(40.0, "reboot", id="reboot"),
        pytest.param(60.0, "end", marks=pytest.mark.long, id="copied"),
    ],
)
def test_a_killed_move_is_settled(group: Group, lv: str, percent: float | None, also: str) -> None:
    """Killed when its program has only begun, in the middle with its program or without, and when all is copied.

    In each case whoever asks gets a true answer, and another move brings the volume to its destination.
    """
    before = digest(group, lv)
    with slow_mirrors():
        worker = in_another_process(move(group, lv).carry_out)
        try:
            until(lambda: programs(group, lv), LONG_SECONDS)
            if percent is not None:
                until(lambda: copied(group, lv) >= percent, LONG_SECONDS)
        finally:
            worker.kill()
        for pid in programs(group, lv) if also else ():
            os.kill(pid, signal.SIGKILL)
        until(lambda: not also or not programs(group, lv), LONG_SECONDS)
        if also == "reboot":
            run("vgchange", "-q", "-an", group.name)
            run("vgchange", "-q", "-aay", group.name)
        if also != "end":
            has_arrived = move(group, lv).settle()
    if also == "end":
        # Nobody has looked since, and so the metadata does not say that it has arrived.
        until(lambda: copied(group, lv) == 100.0, LONG_SECONDS)
        has_arrived = move(group, lv).settle()
    assert places(group, lv) == tuple(group.devices[1:] if has_arrived else group.devices[:1])
    until(lambda: not pvmove_at_work(group.name, lv), LONG_SECONDS)
    assert digest(group, lv) == before
    if not has_arrived:
        move(group, lv).carry_out()
    assert places(group, lv) == tuple(group.devices[1:])
    assert digest(group, lv) == before


def driver(group: Group, dies_at: str = "") -> LvmDriver:
    """Return a driver with a pool on each disk; its process dies before it runs the program *dies_at*."""

    def run_or_die(command: Sequence[str], stdin: bytes | None) -> Completed:
        if command[0] == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return run_process(command, stdin)

    made = LvmDriver(
        host="here", backend="lvm", options=driver_options(group, lvm_pv_tags=["fast", "slow"]), run=run_or_die
    )
    made.do_setup(RequestContext())
    return made


def destination(by: LvmDriver, pool: str) -> MigrationHost:
    stats = by.get_volume_stats()
    found = next(each for each in stats["pools"] if each["pool_name"] == pool)
    return {"host": f"here@lvm#{pool}", "capabilities": {**stats, **found}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "dies_at", ["", "lvcreate", pytest.param("blkdiscard", marks=pytest.mark.long)], ids=["alive", "moved", "made"]
)
def test_what_a_volume_leaves_shows_nothing_of_it(group: Group, lv: str, dies_at: str) -> None:
    """Also when the worker is killed between the move's commit and the clearing, or before what is made for it is
    cleared; and what is written to the volume from then on is there.
    """
    volume = Volume(
        id=str(uuid.uuid4()),
        name=lv,
        size_bytes=LV_BYTES,
        host="here@lvm#fast",
        status=VolumeStatus.AVAILABLE,
        provider_id=lv,
    )
    ready = driver(group)
    host = destination(ready, "slow")
    before = digest(group, lv)
    if dies_at:
        by = driver(group, dies_at)
        worker = in_another_process(lambda: by.migrate_volume(RequestContext(), volume, host) and None)
        os.waitpid(worker.pid, 0)
        assert "volmig-leaves-" in run("lvs", "--noheadings", "-o", "lv_tags", f"{group.name}/{lv}")
        assert ("clearing-" in "".join(logical_volumes(group))) == (dies_at == "blkdiscard")
        with open_directly(group.device(lv)) as fd, mmap.mmap(-1, BLOCK_BYTES) as block:
            block[:] = b"w" * BLOCK_BYTES
            os.pwritev(fd, [block], 0)
        before = digest(group, lv)
        ready = driver(group)
        assert ready.recover_migration(RequestContext(), volume, host)[0]
    else:
        assert ready.migrate_volume(RequestContext(), volume, host)[0]
    assert places(group, lv) == tuple(group.devices[1:])
    assert logical_volumes(group) == [lv]
    assert not run("lvs", "--noheadings", "-o", "lv_tags", f"{group.name}/{lv}").strip()
    run("lvcreate", "-q", "-y", "-Wn", "-Zn", "-l", "16", "-n", "newer", group.name, f"{group.devices[0]}:0-15")
    try:
        assert not group.device("newer").read_bytes().strip(b"\0"), "it shows what the volume has left"
    finally:
        run("lvremove", "-q", "-y", f"{group.name}/newer")
    assert digest(group, lv) == before


def copied(group: Group, lv: str) -> float:
    layout = read_layout(Commands(), group.name, lv)
    assert layout is not None
    return max((float(each.percent or 0) for each in layout.moves), default=-1.0)


def test_an_interrupted_move_goes_on_where_it_was(group: Group, lv: str) -> None:
    before = digest(group, lv)
    with slow_mirrors():
        worker = in_another_process(move(group, lv).carry_out)
        until(lambda: copied(group, lv) > 0, LONG_SECONDS)
        worker.kill()
        for pid in programs(group, lv):
            os.kill(pid, signal.SIGKILL)
        left_at = copied(group, lv)
    move(group, lv).carry_out()
    assert left_at > 0
    assert places(group, lv) == tuple(group.devices[1:])
    assert digest(group, lv) == before


def test_two_moves_off_one_disk_wait_for_each_other(group: Group, lv: str) -> None:
    other = f"{lv}b"
    make(group, other, 8 * MIB)
    try:
        before = [digest(group, name) for name in (lv, other)]
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(move(group, name).carry_out) for name in (lv, other)]:
                done.result(LONG_SECONDS)
        assert [places(group, name) for name in (lv, other)] == [tuple(group.devices[1:])] * 2
        assert [digest(group, name) for name in (lv, other)] == before
    finally:
        run("lvremove", "-q", "-y", f"{group.name}/{other}")


def test_without_room_nothing_is_begun(group: Group, lv: str) -> None:
    in_the_way = f"{lv}c"
    run("lvcreate", "-q", "-y", "-Wn", "-l", "32", "-n", in_the_way, group.name, group.devices[1])
    try:
        with pytest.raises(errors.DiskFull):
            move(group, lv).carry_out()
        assert places(group, lv) == tuple(group.devices[:1])
    finally:
        run("lvremove", "-q", "-y", f"{group.name}/{in_the_way}")


def test_a_disk_that_cannot_be_written_to_does_not_get_the_volume(group: Group, lv: str) -> None:
    """pvmove by itself would say that all went well, and the volume would be on a disk where data is missing."""
    before = digest(group, lv)
    with faulty(48 * MIB) as disk:
        device = str(disk.path)
        run("vgextend", "-q", group.name, device)
        try:
            disk.fail_writes_at((8 * MIB, disk.size_bytes))
            with pytest.raises(errors.TransferFailed, match="its sides differ"):
                move(group, lv, device).carry_out()
            assert places(group, lv) == tuple(group.devices[:1])
            assert digest(group, lv) == before
            disk.heal()
            move(group, lv, device).carry_out()
            assert places(group, lv) == (device,)
            assert digest(group, lv) == before
        finally:
            disk.heal()
            run("pvmove", "-q", "--atomic", device, group.devices[0], check=False)
            run("vgreduce", "-q", group.name, device)
