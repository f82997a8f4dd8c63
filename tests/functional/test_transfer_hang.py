"""Storage that hangs in the middle of a copy: a file system that is frozen, and one whose device is."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from volmig import errors
from volmig.transfer import Control, copy

from .cli_support import environment
from .storage import MIB, content, fill, loop, mounted, noise, run, thawed

SIZE = 256 * MIB

COPIER = """
import json, os, sys, threading, time
from volmig import errors
from volmig.transfer import Control, CopyOptions, Verify, copy
from volmig.transfer.flow import setup
from volmig.transfer.flow.ring import RingUnavailable

source, destination, size, means = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
if means == "threads":
    def refuse(*_):
        raise RingUnavailable("the test wants threads")
    setup.RingQueue = refuse

def tell(**fields):
    print(json.dumps(fields), flush=True)

def descriptors():
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{fd}"))

before = descriptors()
control = Control(limit_bytes=100_000_000)
cancelled_at = []

def listen():
    for line in sys.stdin:
        if line.strip() == "cancel":
            cancelled_at.append(time.monotonic())
            control.cancel()
            return

threading.Thread(target=listen, daemon=True).start()

def report(event):
    tell(stage=event.stage.value, done=event.bytes_done)

try:
    copy(source, destination, size_bytes=size, options=CopyOptions(verify=Verify.NONE), control=control,
         progress=report)
    tell(ended="completed")
except errors.TransferCancelled as error:
    tell(ended="cancelled", seconds=time.monotonic() - cancelled_at[0], message=str(error), hint=error.hint)
# Numbers that are free again are given to others now: none of these may be written to.
victims = [os.open(f"{source}.victim", os.O_RDWR) for _ in range(8)]
print("waiting", file=sys.stderr, flush=True)
until = time.monotonic() + 60
while time.monotonic() < until:
    if not [thread for thread in threading.enumerate() if thread.name.startswith("volmig")]:
        break
    time.sleep(0.02)
names = [thread.name for thread in threading.enumerate()]
with open(f"{source}.victim", "rb") as file:
    whole = all(piece == b"v" * len(piece) for piece in iter(lambda: file.read(1 << 20), b""))
for fd in victims:
    os.close(fd)
tell(threads=names, whole=whole, descriptors=descriptors() == before)
"""


class Copier:
    """A copy in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin: IO[str] = process.stdin
        self.stdout: IO[str] = process.stdout

    def until(self, field: str, seconds: float = 60.0) -> dict[str, Any]:
        """Return the first thing it tells with a field."""
        end = time.monotonic() + seconds
        for line in self.stdout:
            told: dict[str, Any] = json.loads(line)
            if field in told:
                return told
            assert time.monotonic() < end, f"it never told {field}"
        raise AssertionError(f"it ended without telling {field}")

    def past(self, done: int) -> None:
        while self.until("done")["done"] < done:
            pass

    def cancel(self) -> None:
        self.stdin.write("cancel\n")
        self.stdin.flush()


@contextlib.contextmanager
def copier(source: Path, destination: Path, means: str, frozen: Path) -> Iterator[Copier]:
    fill(source.with_name(f"{source.name}.victim"), b"v" * SIZE)
    command = [sys.executable, "-c", COPIER, str(source), str(destination), str(SIZE), means]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Copier(process)
        finally:
            # Before waiting for it: nothing ends a process that hangs in the kernel.
            subprocess.run(["fsfreeze", "--unfreeze", str(frozen)], capture_output=True, check=False, timeout=60)
            process.kill()


def differing(one: bytes, other: bytes, step: int = 4096) -> int:
    return sum(step for at in range(0, len(one), step) if one[at : at + step] != other[at : at + step])


def sparse(path: Path) -> Path:
    """Make a volume in which 128 KiB of data and as much of a hole take turns."""
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset in range(0, SIZE, 256 * 1024):
            file.seek(offset)
            file.write(noise(128 * 1024, offset))
    return path


@pytest.mark.parametrize("means", ["io_uring", "threads"])
@pytest.mark.parametrize("shape", ["dense", "sparse"])
def test_a_destination_that_freezes(tmp_path: Path, means: str, shape: str) -> None:
    source = fill(tmp_path / "source", noise(SIZE)) if shape == "dense" else sparse(tmp_path / "source")
    with mounted(tmp_path, 400 * MIB) as place, thawed(place):
        destination = fill(place / "destination", b"\xa5" * SIZE)
        with copier(source, destination, means, place) as child:
            child.past(40 * MIB)
            run("fsfreeze", "--freeze", place)
            time.sleep(1.5)
            child.cancel()
            ended = child.until("ended")
            assert ended["ended"] == "cancelled"
            assert ended["seconds"] < 1.0
            assert "storage hangs" in ended["hint"]
            assert str(destination) in ended["hint"]
            assert "has not been answered for" in ended["hint"]
            frozen = content(destination)
            run("fsfreeze", "--unfreeze", place)
            left = child.until("threads")
            assert not [name for name in left["threads"] if name.startswith("volmig")]
            assert left["whole"]
            assert left["descriptors"]
            assert child.process.wait(20) == 0
        after = content(destination)
        # No more than what was under way when it was cancelled: at most 16 MiB.
        assert differing(frozen, after) <= 16 * MIB
        time.sleep(0.5)
        assert content(destination) == after


@contextlib.contextmanager
def on_device(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Give a mounted file system, and another to freeze, on which the device of the first lives: so that it hangs."""
    inner = folder / "inner"
    inner.mkdir()
    with mounted(folder / "outer", 800 * MIB) as outer, thawed(outer), contextlib.ExitStack() as stack:
        with (outer / "image").open("wb") as file:
            file.truncate(600 * MIB)
        device = stack.enter_context(loop(outer / "image"))
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
        run("mount", device, inner)
        stack.callback(run, "umount", inner)
        # Before all else is undone: nothing can be unmounted whose device hangs.
        stack.enter_context(thawed(outer))
        yield inner, outer


@pytest.mark.parametrize("means", ["io_uring", "threads"])
@pytest.mark.parametrize("shape", ["dense", "sparse"])
def test_a_device_that_hangs(tmp_path: Path, means: str, shape: str) -> None:
    # Here requests hold locks of the destination while they hang, and other calls wait for these.
    source = fill(tmp_path / "source", noise(SIZE)) if shape == "dense" else sparse(tmp_path / "source")
    with on_device(tmp_path) as (inner, outer):
        destination = fill(inner / "destination", b"\xa5" * SIZE)
        with copier(source, destination, means, outer) as child:
            child.past(40 * MIB)
            run("fsfreeze", "--freeze", outer)
            time.sleep(1.5)
            child.cancel()
            ended = child.until("ended", 5.0)
            assert ended["seconds"] < 1.0
            assert "storage hangs" in ended["hint"]
            assert str(destination) in ended["hint"]
            run("fsfreeze", "--unfreeze", outer)
            left = child.until("threads")
            assert left["whole"]
            assert left["descriptors"]
            assert child.process.wait(20) == 0


class Hanging(io.RawIOBase):
    """A handle whose reading or writing hangs in its second half, until it is let go."""

    def __init__(self, size: int, reads: bool) -> None:
        self._size = size
        self._reads = reads
        self._position = 0
        self.hangs = threading.Event()
        self.goes_on = threading.Event()

    def _wait(self) -> None:
        if self._size // 2 <= self._position < self._size - MIB:
            self.hangs.set()
            self.goes_on.wait(60)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (self._size if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, view: Any) -> int:
        if self._reads:
            self._wait()
        count = min(len(view), self._size - self._position)
        view[:count] = b"x" * count
        self._position += count
        return count

    def write(self, data: Any) -> int:
        if not self._reads:
            self._wait()
        self._position += len(data)
        return len(data)


@pytest.mark.parametrize("which", ["source", "destination"])
def test_a_handle_that_hangs(which: str) -> None:
    size = 32 * MIB
    source, destination = Hanging(size, which == "source"), Hanging(size, False)
    hanging = source if which == "source" else destination
    if which == "source":
        destination.goes_on.set()
    control = Control()
    caught: list[errors.TransferCancelled] = []

    def run_copy() -> None:
        try:
            copy(source, destination, size_bytes=size, control=control)
        except errors.TransferCancelled as error:
            caught.append(error)

    copier = threading.Thread(target=run_copy)
    copier.start()
    assert hanging.hangs.wait(30)
    time.sleep(0.3)
    started = time.monotonic()
    control.cancel()
    copier.join(10)
    seconds = time.monotonic() - started
    hanging.goes_on.set()
    assert caught, "it was not cancelled"
    assert seconds < 1.0
    assert f"the {'read' if which == 'source' else 'write'} of" in caught[0].hint
    end = time.monotonic() + 10
    while time.monotonic() < end and [one for one in threading.enumerate() if one.name.startswith("volmig")]:
        time.sleep(0.01)
    assert not [one for one in threading.enumerate() if one.name.startswith("volmig")]
