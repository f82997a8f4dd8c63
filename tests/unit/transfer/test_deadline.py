"""The time from which on a copy may write nothing more."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG, SOON
from volmig import errors
from volmig.transfer import Control, CopyOptions, Verify, boottime_seconds, copy
from volmig.transfer.ends import sparse
from volmig.transfer.flow import setup

from .conftest import no_ring
from .fakes import Handle, make_file
from .test_dd import state_of, wait_for

MIB = 1024 * 1024
UNVERIFIED = CopyOptions(verify=Verify.NONE)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_raised_before_and_always_from_the_deadline_on() -> None:
    clock = Clock()
    control = Control(boot_clock=clock)
    control.check()
    control.deadline_seconds = 110.0
    clock.now = 109.9
    control.check()
    assert not control.expired
    clock.now = 110.0
    for step in (control.check, lambda: control.throttle(1)):
        with pytest.raises(errors.TransferCancelled) as raised:
            step()
    assert "another may write" in raised.value.hint
    assert control.expired
    assert control.cancelled
    control.deadline_seconds = 200.0
    with pytest.raises(errors.TransferCancelled):
        control.check()


def test_a_renewed_deadline_counts() -> None:
    clock = Clock()
    control = Control(boot_clock=clock)
    control.deadline_seconds = 110.0
    control.deadline_seconds = 120.0
    clock.now = 115.0
    control.check()
    control.deadline_seconds = None
    clock.now = 1e9
    control.check()


def test_the_clock_goes_on_during_suspend() -> None:
    assert boottime_seconds() == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=1)


@pytest.mark.parametrize("wait", ["pause", "limit"])
def test_a_wait_ends_with_the_deadline(wait: str) -> None:
    control = Control(limit_bytes=1 if wait == "limit" else 0)
    if wait == "pause":
        control.pause()
    timer = threading.Timer(0.05, setattr, (control, "deadline_seconds", boottime_seconds() + 0.1))
    timer.start()
    begun = time.monotonic()
    with pytest.raises(errors.TransferCancelled):
        control.throttle(3600)
    assert time.monotonic() - begun < SOON
    timer.join()


@pytest.mark.parametrize("extents", [[(0, MIB)], []], ids=["data", "holes"])
@pytest.mark.parametrize("most", [1000, MIB])
def test_no_request_is_begun_after_the_deadline(tmp_path: Path, extents: list[tuple[int, int]], most: int) -> None:
    clock = Clock()
    control = Control(boot_clock=clock)
    control.deadline_seconds = 103.0
    requests: list[float] = []

    def write(position: int, data: bytes) -> bytes:
        requests.append(clock.now)
        clock.now += 1
        return data

    destination: Any = Handle(bytes(MIB), most=most, on_write=write)
    options = CopyOptions(verify=Verify.NONE, chunk_bytes=128 * 1024)
    with pytest.raises(errors.TransferCancelled):
        copy(
            make_file(tmp_path / "source", MIB, extents), destination, size_bytes=MIB, options=options, control=control
        )
    assert requests == [100.0, 101.0, 102.0]
    assert destination.flushes == 0, "flushing a handle may write"


def test_a_hole_is_not_tried_again_after_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "RingQueue", no_ring)
    clock = Clock()
    control = Control(boot_clock=clock)
    control.deadline_seconds = 101.0
    tries: list[int] = []

    def interrupted(fd: int, mode: int, offset: int, length: int) -> int:
        tries.append(offset)
        clock.now += 1
        ctypes.set_errno(errno.EINTR)
        return -1

    monkeypatch.setattr(sparse, "_fallocate", lambda: interrupted)
    ends = make_file(tmp_path / "source", MIB), make_file(tmp_path / "destination", MIB, [(0, MIB)])
    with pytest.raises(errors.TransferCancelled):
        copy(*ends, size_bytes=MIB, options=UNVERIFIED, control=control)
    assert tries == [0]


_CHILD = """
import io, os, sys, time
from volmig import errors
from volmig.transfer import Control, CopyOptions, Verify, copy

# The time is the size of a file, so that none passes but what the test lets pass.
control = Control(boot_clock=lambda: float(os.stat(sys.argv[3]).st_size))
control.deadline_seconds = 100.0

class Slow(io.FileIO):
    def write(self, data):
        print(len(data), flush=True)
        time.sleep(0.005)
        return super().write(data)

with Slow(sys.argv[2], "r+") as destination:
    try:
        copy(sys.argv[1], destination, size_bytes=16 << 20, control=control,
             options=CopyOptions(verify=Verify.NONE, chunk_bytes=1 << 12))
    except errors.TransferCancelled:
        sys.exit(42)
"""


def test_a_process_stopped_past_its_deadline_does_one_request_more_at_most(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 16 * MIB, [(0, 16 * MIB)])
    destination, log, clock = make_file(tmp_path / "destination", 16 * MIB), tmp_path / "log", tmp_path / "clock"
    clock.touch()
    with log.open("wb") as output:
        arguments = [sys.executable, "-c", _CHILD, str(source), str(destination), str(clock)]
        child = subprocess.Popen(arguments, stdout=output)
    try:
        wait_for(lambda: log.read_bytes().count(b"\n") > 5)
        os.kill(child.pid, signal.SIGSTOP)
        wait_for(lambda: state_of(child.pid) == "T")
        requests = log.read_bytes().count(b"\n")
        os.truncate(clock, 100)
        os.kill(child.pid, signal.SIGCONT)
        assert child.wait(LONG) == 42
    finally:
        child.kill()
        child.wait()
    lines = log.read_text().splitlines()
    assert requests <= len(lines) <= requests + 1
    assert set(lines) == {"4096"}
    assert destination.read_bytes().count(0) == (16 << 20) - (len(lines) << 12)
