"""The bandwidth limit, over every five seconds, by a clock that the test moves and by the real one."""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG
from volmig.transfer import Control, CopyOptions, Verify, copy
from volmig.transfer.base import Tail

from .fakes import Handle, make_file, pattern

KIB = 1024
MIB = 1024 * 1024
UNVERIFIED = CopyOptions(verify=Verify.NONE)


class Simulated(Control):
    """A control whose waiting moves its clock."""

    def __init__(self, limit_bytes: int) -> None:
        self.now = 0.0
        self.at: list[tuple[float, Callable[[], None]]] = []
        super().__init__(limit_bytes=limit_bytes, clock=lambda: self.now)

    def check(self) -> None:
        while delay := self.admit(4096 if self.limit_bytes else 0):
            self.wait(delay)

    def wait(self, timeout_seconds: float) -> None:
        # Not less than a clock can tell.
        self.now += max(timeout_seconds, 1e-6)
        while self.at and self.now >= self.at[0][0]:
            self.at.pop(0)[1]()


def worst(moved: list[tuple[float, int]], seconds: float) -> tuple[float, float]:
    """Return the most and the least bytes a second over any such stretch within a copy."""
    times = [at for at, _ in moved]
    total = [0, *itertools.accumulate(count for _, count in moved)]
    most, least = 0.0, float("inf")
    for first, at in enumerate(times):
        last = bisect.bisect_left(times, at + seconds)
        most = max(most, (total[last] - total[first]) / seconds)
        if at + seconds <= times[-1]:
            least = min(least, (total[bisect.bisect_right(times, at + seconds)] - total[first]) / seconds)
    return most, least


def recorder(control: Simulated) -> tuple[list[tuple[float, int]], Callable[[int, bytes], bytes]]:
    moved: list[tuple[float, int]] = []

    def note(position: int, data: bytes) -> bytes:
        moved.append((control.now, len(data)))
        return data

    return moved, note


@pytest.mark.parametrize("limit", [100_000, MIB, 3 * MIB + 7])
@pytest.mark.parametrize("most", [1 << 30, 3000])
def test_within_five_percent_over_any_five_seconds(limit: int, most: int) -> None:
    control = Simulated(limit)
    moved, note = recorder(control)
    size = min(12 * limit, 24 * MIB) // 4096 * 4096
    source: Any = Handle(pattern(size), on_read=note, most=most)
    copy(source, Handle(bytes(size)), size_bytes=size, options=UNVERIFIED, control=control)  # type: ignore[arg-type]
    fastest, slowest = worst(moved, 5.0)
    assert fastest <= 1.05 * limit
    if control.now > 6:
        assert slowest >= 0.95 * limit
    assert size / limit * 0.95 - 0.1 <= control.now <= size / limit * 1.05 + 0.1


@pytest.mark.parametrize("kind", ["zeroes read", "holes", "tail"])
def test_each_byte_counts_once(tmp_path: Path, kind: str) -> None:
    limit, size = MIB, 8 * MIB
    control = Simulated(limit)
    destination: Any = Handle(b"\xee" * size)
    source: Any = Handle(bytes(size)) if kind == "zeroes read" else make_file(tmp_path / "source", size)
    copied = 0 if kind == "tail" else size
    options = CopyOptions(verify=Verify.NONE, tail=Tail.ZERO)
    copy(source, destination, size_bytes=copied, options=options, control=control)
    assert destination.content == bytes(size)
    assert 7.6 <= control.now <= 8.4


def test_a_change_applies_at_once() -> None:
    control = Simulated(MIB)
    moved, note = recorder(control)
    size = 20 * MIB
    control.at = [
        (5.0, lambda: setattr(control, "limit_bytes", 4 * MIB)),
        (7.0, lambda: setattr(control, "limit_bytes", MIB // 2)),
    ]
    source: Any = Handle(pattern(size), on_read=note)
    copy(source, Handle(bytes(size)), size_bytes=size, options=UNVERIFIED, control=control)  # type: ignore[arg-type]
    by = {at: sum(count for when, count in moved if when < at) for at in (5.0, 7.0, 12.0)}
    assert by[5.0] == pytest.approx(5 * MIB, rel=0.05)
    assert by[7.0] - by[5.0] == pytest.approx(8 * MIB, rel=0.08)
    assert by[12.0] - by[7.0] == pytest.approx(2.5 * MIB, rel=0.2)


def test_a_pause_earns_no_burst() -> None:
    control = Simulated(MIB)
    moved, note = recorder(control)
    control.at = [(2.0, control.pause), (30.0, control.resume)]
    source: Any = Handle(pattern(8 * MIB), on_read=note)
    copy(source, Handle(bytes(8 * MIB)), size_bytes=8 * MIB, options=UNVERIFIED, control=control)  # type: ignore[arg-type]
    assert not [at for at, _ in moved if 2.2 < at < 29.9]
    assert worst(moved, 2.0)[0] <= 1.15 * MIB
    assert control.now == pytest.approx(36.0, abs=0.5)


def test_a_storage_that_stood_still_earns_no_burst() -> None:
    control = Simulated(MIB)
    for _ in range(3):
        control.now += 100.0
        assert control.admit(102_400) == 0.0
        assert control.admit(102_400) == pytest.approx(102_400 / MIB - 0.05)


def test_verification_keeps_the_limit_too() -> None:
    control = Simulated(MIB)
    source, destination = Handle(pattern(4 * MIB)), Handle(bytes(4 * MIB))
    copy(source, destination, size_bytes=4 * MIB, control=control)  # type: ignore[arg-type]
    assert control.now == pytest.approx(8.0, abs=0.5)


@pytest.mark.usefixtures("means")
def test_in_real_time(tmp_path: Path) -> None:
    limit = 16 * MIB
    source = make_file(tmp_path / "source", 8 * MIB, [(0, 8 * MIB)])
    control, samples = Control(limit_bytes=limit), []
    destination = make_file(tmp_path / "destination", 8 * MIB)
    begun = time.monotonic()

    def advance(*_: object) -> None:
        samples.append(time.monotonic() - begun)

    result = copy(source, destination, size_bytes=8 * MIB, options=UNVERIFIED, control=control, progress=advance)
    # Half a second, less a tenth for the last request, which nobody waits for, and the credit of 50 ms.
    assert result.copy_seconds >= 0.34
    assert len(samples) > 4


def test_a_limit_that_is_lifted_is_lifted_at_once(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 8 * MIB, [(0, 8 * MIB)])
    control = Control(limit_bytes=1000)
    timer = threading.Timer(0.1, setattr, (control, "limit_bytes", 0))
    timer.start()
    begun = time.monotonic()
    destination = make_file(tmp_path / "destination", 8 * MIB)
    copy(source, destination, size_bytes=8 * MIB, options=UNVERIFIED, control=control)
    timer.join()
    assert time.monotonic() - begun < LONG, "and not two hours"
    assert destination.read_bytes() == source.read_bytes()
