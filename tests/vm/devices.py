"""Devices that fail on command: the device mapper's flakey, delay and error targets over a loop device in memory.

A :class:`Faulty` device begins as a plain one. Its table is replaced while it is open and in use, as it would be when a
disk, a cable or a controller goes bad under a running copy. Needs root and a device mapper; leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from .support import IMAGES, require_device_mapper

SECTOR = 512
_FIRST = 2048
"""Sectors of the loop device before the device's first: else the signature of a volume group or of a file system on the
device would be seen on both."""
_FOREVER = 4_000_000
"""Seconds for which a flakey target stays bad."""
_numbers = itertools.count(1)


def run(*command: str | Path, stdin: str | None = None, seconds: float = 120.0) -> str:
    """Run a program to its end; return what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False, input=stdin)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


@contextlib.contextmanager
def image(size_bytes: int, name: str = "disk") -> Iterator[Path]:
    """Give an empty sparse file in memory."""
    path = IMAGES / f"volmig-{name}-{os.getpid()}-{next(_numbers)}.img"
    with path.open("xb") as file:
        file.truncate(size_bytes)
    try:
        yield path
    finally:
        path.unlink()


@contextlib.contextmanager
def loop(file: Path, *options: str) -> Iterator[Path]:
    """Give a loop device over a file in memory."""
    device = run("losetup", *options, "--show", "--find", file)
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)
        _until(lambda: not run("losetup", "--associated", file), f"{device} stays attached")


class Faulty:
    """A device-mapper device whose behaviour can be changed while it is open.

    :ivar path: the device.
    """

    def __init__(self, name: str, image: Path, below: Path, size_bytes: int) -> None:
        self.name = name
        self._image = image
        self.path = Path("/dev/mapper") / name
        self._below = below
        self.size_bytes = size_bytes
        self._sectors = size_bytes // SECTOR

    def truth(self, size_bytes: int, offset: int = 0) -> bytes:
        """Return what is really stored, past all faults and caches."""
        with self._image.open("rb") as file:
            file.seek(_FIRST * SECTOR + offset)
            return file.read(size_bytes)

    def store(self, data: bytes, offset: int = 0) -> None:
        """Store *data* past all faults and caches."""
        with self._image.open("r+b") as file:
            file.seek(_FIRST * SECTOR + offset)
            file.write(data)

    def heal(self) -> None:
        """Pass everything on."""
        self._load(self.plain())

    def plain(self) -> str:
        """Return the table that passes everything on."""
        return self._line(0, self._sectors, "linear")

    def fail_at(self, *ranges: tuple[int, int], kind: str = "error") -> None:
        """Fail every read and write that touches one of the *ranges* (start and end in bytes, of whole sectors)."""
        lines, at = [], 0
        for start, end in sorted(ranges):
            first, last = start // SECTOR, min(end // SECTOR, self._sectors)
            if at < first:
                lines.append(self._line(at, first, "linear"))
            lines.append(f"{first} {last - first} error" if kind == "error" else self._flakey(first, last, kind))
            at = last
        if at < self._sectors:
            lines.append(self._line(at, self._sectors, "linear"))
        self._load("\n".join(lines))

    def fail_writes_at(self, *ranges: tuple[int, int]) -> None:
        """Fail every write that touches one of the *ranges*; reads go well."""
        self.fail_at(*ranges, kind="error_writes")

    def drop_writes(self, *ranges: tuple[int, int]) -> None:
        """Say that writes to the *ranges* (none: everywhere) went well, and do not do them."""
        self.fail_at(*(ranges or [(0, self.size_bytes)]), kind="drop_writes")

    def corrupt_writes(self, byte: int) -> None:
        """Set the first byte of each write's data to *byte* on its way."""
        self._load(self._flakey(0, self._sectors, "corrupt_bio_byte", "1", "w", str(byte), "0"))

    def delay(self, read_ms: int, write_ms: int) -> None:
        """Hold each request for some time."""
        self._load(f"0 {self._sectors} delay {self._below} {_FIRST} {read_ms} {self._below} {_FIRST} {write_ms}")

    def vanish(self) -> None:
        """Be gone as far as who has it open can tell: each request fails at once, those under way too."""
        run("dmsetup", "wipe_table", "--noflush", "--nolockfs", self.name)

    def _line(self, first: int, last: int, target: str) -> str:
        return f"{first} {last - first} {target} {self._below} {_FIRST + first}"

    def _flakey(self, first: int, last: int, *features: str) -> str:
        place, said = f"{self._below} {_FIRST + first}", " ".join(features)
        return f"{first} {last - first} flakey {place} 0 {_FOREVER} {len(features)} {said}"

    def _load(self, table: str) -> None:
        run("dmsetup", "load", self.name, stdin=table + "\n")
        # What waits in the device is not flushed through the old table first: the fault is there at once.
        run("dmsetup", "resume", "--noflush", "--nolockfs", self.name)


@contextlib.contextmanager
def faulty(size_bytes: int, name: str = "disk") -> Iterator[Faulty]:
    """Give a device of some size in memory that begins as a good one."""
    with image(size_bytes + _FIRST * SECTOR, name) as file, loop(file) as below:
        require_device_mapper()
        device = Faulty(f"volmig-{name}-{os.getpid()}-{next(_numbers)}", file, below, size_bytes)
        run("dmsetup", "create", device.name, stdin=device.plain() + "\n")
        try:
            yield device
        finally:
            # Requests that were held up must end before the device can be let go.
            device.heal()
            run("dmsetup", "remove", "--retry", device.name)


@contextlib.contextmanager
def unpluggable(size_mib: int) -> Iterator[Path]:
    """Give a SCSI disk in memory that :func:`unplug` takes out of the machine, whoever has it open."""
    run("modprobe", "scsi_debug", f"dev_size_mb={size_mib}", "delay=0")
    try:
        blocks = Path("/sys/bus/pseudo/drivers/scsi_debug/adapter0")
        _until(lambda: bool(list(blocks.glob("host*/target*/*/block/*"))), "scsi_debug shows no disk")
        device = Path("/dev") / next(blocks.glob("host*/target*/*/block/*")).name
        _until(device.exists, f"{device} does not appear")
        yield device
    finally:
        _until(
            lambda: not subprocess.run(["modprobe", "-r", "scsi_debug"], capture_output=True, check=False).returncode,
            "scsi_debug stays in use",
        )


def unplug(device: Path) -> None:
    """Take a SCSI disk out of the machine."""
    (Path("/sys/block") / device.name / "device/delete").write_text("1")


@contextlib.contextmanager
def file_system(kind: str, device: Faulty, place: Path, *options: str) -> Iterator[Path]:
    """Give a new ext4 or xfs on a device, mounted at *place*."""
    run(*FILE_SYSTEMS[kind], *options, device.path)
    place.mkdir(parents=True, exist_ok=True)
    run("mount", "-o", _MOUNT[kind], device.path, place)
    try:
        yield place
    finally:
        device.heal()
        if place.is_mount():
            unmount(place)


FILE_SYSTEMS: dict[str, Sequence[str]] = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"),
    # Smaller than mkfs.xfs makes them for anybody but a test.
    "xfs": ("mkfs.xfs", "-q", "-f", "-K", "--unsupported", "-d", "agcount=2"),
}
"""The commands that make file systems; the device follows."""
_MOUNT = {"ext4": "noatime,noinit_itable", "xfs": "noatime"}


def remount(device: Faulty, place: Path) -> None:
    """Unmount and mount again, as an operator does after the device was mended."""
    unmount(place)
    run("mount", device.path, place)


def unmount(place: Path) -> None:
    """Unmount a file system; the kernel lets go of what a process had under way some time after its end."""
    _until(lambda: not subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode, f"{place}")


def physical(path: Path, offset: int) -> int:
    """Return where, on its device, a file system has the byte of a file at *offset*."""
    block = path.stat().st_blksize
    for line in run("filefrag", "-v", "-s", f"-b{block}", path).splitlines():
        words = line.replace(":", " ").replace("..", " ").split()
        if len(words) > 4 and words[0].isdigit() and words[1].isdigit():
            first, last, start = int(words[1]), int(words[2]), int(words[3])
            if first <= offset // block <= last:
                return (start + offset // block - first) * block + offset % block
    raise AssertionError(f"{path} has nothing at byte {offset}")


def present() -> dict[str, set[str]]:
    """Return what there is of devices, mounts and images."""
    return {
        "device-mapper devices": {
            line.split()[0] for line in run("dmsetup", "ls").splitlines() if "No devices" not in line
        },
        "loop devices": set(run("losetup", "--noheadings", "--list", "--output", "NAME,BACK-FILE").splitlines()),
        "volume groups": set(run("vgs", "--noheadings", "--options", "vg_name").split()),
        "mounts": {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()},
        "images": {path.name for path in IMAGES.glob("*.img")},
    }


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a module whose tests leave a device, a volume group, a mount or an image. It is imported to be used."""
    before = present()
    yield
    # A loop device is let go when the last one has closed it, which may be udev.
    deadline = time.monotonic() + 20
    while (after := present()) != before and time.monotonic() < deadline:
        time.sleep(0.5)
    assert after == before, {kind: (after[kind] - before[kind], before[kind] - after[kind]) for kind in after}


def _until(is_so: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.1)
