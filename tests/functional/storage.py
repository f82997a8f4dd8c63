"""Real block devices and file systems, made of files: loop devices, mounts, and mounts that hang. Needs root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

MIB = 1024 * 1024
KIB = 1024


def run(*command: str | Path) -> str:
    """Run a program to its end; return what it printed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


def must_be_root() -> None:
    """Fail clearly without the rights that loop devices ask for: these tests are never passed over."""
    assert os.geteuid() == 0, "run the functional tests as root: they make loop devices and mount file systems"


@contextlib.contextmanager
def loop(file: Path, *, sector_bytes: int = 512, read_only: bool = False) -> Iterator[Path]:
    """Give a loop device over a file."""
    must_be_root()
    options = ["--sector-size", str(sector_bytes), *(["--read-only"] if read_only else [])]
    device = run("losetup", *options, "--show", "--find", file)
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(folder: Path, size_bytes: int, *options: str) -> Iterator[Path]:
    """Give a new ext4 of a size, mounted in a folder under *folder*."""
    must_be_root()
    image, place = folder / "fs.img", folder / "fs"
    place.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(size_bytes)
    with loop(image) as device:
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", *options, device)
        run("mount", device, place)
        try:
            yield place
        finally:
            unmount(place)
    image.unlink()


def unmount(place: Path, seconds: float = 20.0) -> None:
    """Unmount a file system; the kernel lets go of what a process had under way some time after its end."""
    end = time.monotonic() + seconds
    while subprocess.run(["umount", str(place)], capture_output=True, timeout=60, check=False).returncode:
        assert time.monotonic() < end, f"{place} cannot be unmounted"
        time.sleep(0.1)


@contextlib.contextmanager
def thawed(place: Path) -> Iterator[None]:
    """See to it that a mounted file system is not frozen when the block ends."""
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(place)], capture_output=True, timeout=60, check=False)


def noise(size: int, seed: int = 1) -> bytes:
    """Return data that cannot be told from noise, 4 MiB of it again and again."""
    block = random.Random(seed).randbytes(min(size, 4 * MIB))
    return (block * (size // max(1, len(block)) + 1))[:size]


def fill(path: Path, data: bytes, offset: int = 0) -> Path:
    """Write to a file or a device, without cutting it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        view = memoryview(data)
        while view:
            count = os.pwrite(fd, view, offset)
            view, offset = view[count:], offset + count
        os.fsync(fd)
    finally:
        os.close(fd)
    return path


def content(path: Path, size: int = -1, offset: int = 0) -> bytes:
    """Read a file or a device, plainly."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(offset)
        return file.read(size)


def taken(path: Path) -> int:
    """Return the bytes that a file takes on its disk."""
    os.sync()
    return path.stat().st_blocks * 512


def holes(path: Path, start: int, end: int) -> int:
    """Return how many bytes of a range of a file are holes."""
    found, offset = 0, start
    with path.open("rb") as file:
        while offset < end:
            try:
                data = min(os.lseek(file.fileno(), offset, os.SEEK_DATA), end)
            except OSError:
                return found + end - offset
            found += data - offset
            offset = os.lseek(file.fileno(), data, os.SEEK_HOLE) if data < end else end
    return found


def cached_bytes(path: Path) -> int:
    """Return how much of a file the system has in its page cache (mincore)."""
    length = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
    page = os.sysconf("SC_PAGESIZE")
    states = (ctypes.c_ubyte * (-(-length // page)))()
    fd = os.open(path, os.O_RDONLY)
    try:
        address = libc.mmap(None, length, 1, 1, fd, 0)
        try:
            assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), states) == 0, os.strerror(
                ctypes.get_errno()
            )
        finally:
            libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(length))
    finally:
        os.close(fd)
    return sum(state & 1 for state in states) * page
