"""What a copy takes while it runs: bandwidth, page cache, memory, and what it does without io_uring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .cli_support import environment
from .storage import MIB, cached_bytes, mounted, noise

PREAMBLE = """
import ctypes, json, os, struct, sys, threading, time
from volmig.transfer import Control, CopyOptions, Verify, copy
from volmig.transfer.ends import files
source, destination = sys.argv[1], sys.argv[2]
size = os.stat(source).st_size
"""


def child(source: Path, destination: Path, body: str) -> Any:
    command = [sys.executable, "-c", PREAMBLE + body, str(source), str(destination)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def volume(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for _ in range(size // (64 * MIB)):
            file.write(noise(64 * MIB))
        os.fsync(file.fileno())
    return path


def room(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


LIMIT = """
control = Control(limit_bytes=20_000_000)
samples = []
def written():
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes"))
def sample():
    started = time.monotonic()
    while not ended.wait(0.25):
        now = time.monotonic() - started
        samples.append((now, written()))
        if now > 6 and control.limit_bytes == 20_000_000:
            control.limit_bytes = 40_000_000
            samples.append(("changed", now))
        if now > 13.5:
            control.cancel()
ended = threading.Event()
sampler = threading.Thread(target=sample)
sampler.start()
try:
    copy(source, destination, size_bytes=size, options=CopyOptions(verify=Verify.NONE), control=control)
except Exception as error:
    pass
finally:
    ended.set()
    sampler.join()
print(json.dumps(samples))
"""


def test_the_limit_is_kept_over_any_five_seconds(tmp_path: Path, measured: Callable[[str], None]) -> None:
    source, destination = volume(tmp_path / "source", 512 * MIB), room(tmp_path / "destination", 512 * MIB)
    told = child(source, destination, LIMIT)
    [changed] = [when for word, when in told if word == "changed"]
    samples = [(when, count) for when, count in told if when != "changed"]
    worst = 0.0
    for first, (begin, before) in enumerate(samples):
        for end, after in samples[first:]:
            # A window of five seconds, as closely as the samples allow.
            if 4.9 <= end - begin <= 5.3 and end < 13.2:
                slow = max(0.0, min(end, changed) - begin)
                allowed = 20e6 * slow + 40e6 * (end - begin - slow)
                worst = max(worst, abs((after - before) / allowed - 1), key=abs)
    measured(f"bandwidth: at most {worst:.1%} off over any 5 s")
    assert len(samples) > 40
    assert worst <= 0.05


CACHE = """
if {buffered}:
    files._open_direct = lambda *_: None
result = copy(source, destination, size_bytes=size, options=CopyOptions(verify=Verify.DIGEST))
print(json.dumps(result.means))
"""


@pytest.mark.parametrize(("buffered", "most"), [(True, 64 * MIB), (False, MIB)], ids=["buffered", "direct"])
def test_the_page_cache_is_left_alone(
    tmp_path: Path, buffered: bool, most: int, measured: Callable[[str], None]
) -> None:
    source, destination = volume(tmp_path / "source", 512 * MIB), room(tmp_path / "destination", 512 * MIB)
    fd = os.open(source, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert cached_bytes(source) == 0
    means = child(source, destination, CACHE.format(buffered=buffered))
    assert ("past the cache" in means) is not buffered
    left = cached_bytes(source), cached_bytes(destination)
    measured(f"cache after 512 MiB: source {left[0] / MIB:.1f} MiB, destination {left[1] / MIB:.1f} MiB ({means})")
    assert max(left) <= most


PEAK = """
if {buffered}:
    files._open_direct = lambda *_: None
def peak(kind):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(kind))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak("VmRSS")
result = copy(source, destination, size_bytes=size, options=CopyOptions(verify=Verify.COMPARE))
print(json.dumps([peak("VmHWM") - before, result.means]))
"""


@pytest.mark.parametrize("buffered", [False, True])
def test_memory_stays_within_its_bound(tmp_path: Path, buffered: bool, measured: Callable[[str], None]) -> None:
    source, destination = volume(tmp_path / "source", 512 * MIB), room(tmp_path / "destination", 1024 * MIB)
    os.truncate(source, 1024 * MIB)
    grown, means = child(source, destination, PEAK.format(buffered=buffered))
    measured(f"memory: {grown / MIB:.1f} MiB more at its peak ({means})")
    assert grown < 128 * MIB


REFUSED = """
# A filter of system calls, as containers have them: io_uring_setup is answered with EPERM.
def instruction(code, jt, jf, k):
    return struct.pack("=HBBI", code, jt, jf, k)
program = b"".join([
    instruction(0x20, 0, 0, 0),
    instruction(0x15, 0, 1, 425),
    instruction(0x06, 0, 0, 0x00050000 | 1),
    instruction(0x06, 0, 0, 0x7FFF0000),
])
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, program)), 0, 0) == 0, os.strerror(ctypes.get_errno())
result = copy(source, destination, size_bytes=size)
print(json.dumps([result.means, result.source_digest == result.destination_digest != ""]))
"""


def test_threads_take_over_where_io_uring_is_refused(tmp_path: Path) -> None:
    source, destination = volume(tmp_path / "source", 64 * MIB), room(tmp_path / "destination", 64 * MIB)
    means, same = child(source, destination, REFUSED)
    assert "threads" in means
    assert "io_uring is refused (Operation not permitted)" in means
    assert same
    assert source.read_bytes() == destination.read_bytes()


def test_small_blocks_do_not_lead_through_the_cache(tmp_path: Path) -> None:
    # Extents of a file system with blocks of 1 KiB begin and end anywhere in a page.
    with mounted(tmp_path, 400 * MIB, "-b", "1024") as place:
        source = place / "source"
        with source.open("wb") as file:
            file.truncate(128 * MIB)
            for offset in range(0, 128 * MIB, 128 * 1024):
                file.seek(offset + 1024)
                file.write(noise(60 * 1024, offset))
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        destination = room(place / "destination", 128 * MIB)
        child(source, destination, CACHE.format(buffered=False))
        assert cached_bytes(source) + cached_bytes(destination) <= MIB
        assert source.read_bytes() == destination.read_bytes()
