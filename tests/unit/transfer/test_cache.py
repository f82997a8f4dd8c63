"""The system's cache, and the memory of a copy: a window of one, a bound on the other."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from volmig.transfer import CopyOptions, Verify, copy, verify_copy
from volmig.transfer.control import Control
from volmig.transfer.flow import setup
from volmig.transfer.flow.arena import BUFFER_BYTES, Arena
from volmig.transfer.flow.leaves import WINDOW_BYTES
from volmig.transfer.flow.setup import machinery

from .fakes import Handle, make_file, pattern
from .memory_end import MemoryEnd, let_open

MIB = 1024 * 1024
SIZE = 128 * MIB
ARENA_BYTES = 64 * MIB
"""What has been read and not dealt with yet."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    let_open(monkeypatch)
    # One thread each, so that the order of what is recorded is that in which it was done.
    monkeypatch.setattr(MemoryEnd, "concurrency", 1)
    return MemoryEnd("source", pattern(SIZE)), MemoryEnd("destination", bytes(SIZE), is_destination=True)


def check_released(end: MemoryEnd, what: str, *, size: int = SIZE) -> None:
    """Check that an end's cache never held more than a window and what is under way."""
    held, most, released_to = 0, 0, 0
    for kind, offset, length in end.log:
        if kind == what:
            held += length
        elif kind == "release":
            assert offset == released_to, "one after the other, and nothing left out"
            released_to += length
            held -= length
        most = max(most, held)
    assert released_to > size - WINDOW_BYTES - ARENA_BYTES
    assert most <= WINDOW_BYTES + ARENA_BYTES


def test_a_copy_through_the_cache_leaves_a_window_of_it(ends: tuple[Any, Any]) -> None:
    source, destination = ends
    copy(source, destination, size_bytes=SIZE, options=CopyOptions(verify=Verify.NONE))
    check_released(source, "read")
    check_released(destination, "write")
    # What is dirty cannot be dropped: it is written back before, and that has ended.
    for offset, length in destination.of("release"):
        assert destination.log.index(("write-back", offset, length)) < destination.log.index(
            ("release", offset, length)
        )
    written = [index for index, (kind, _, _) in enumerate(destination.log) if kind == "write"]
    for offset, length in destination.of("write-back"):
        at = destination.log.index(("write-back", offset, length))
        mine = [index for index in written if offset <= destination.log[index][1] < offset + length]
        assert len(mine) == length // MIB
        assert max(mine) < at


@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_a_verification_through_the_cache_leaves_a_window_of_it(ends: tuple[Any, Any], verify: Verify) -> None:
    source, destination = ends
    copy(source, destination, size_bytes=SIZE, options=CopyOptions(verify=Verify.NONE))
    for end in ends:
        end.log.clear()
    verify_copy(source, destination, size_bytes=SIZE, options=CopyOptions(verify=verify))
    assert destination.log[0][0] == "drop", "before the first read, so that the storage is asked"
    for end in ends:
        check_released(end, "read")


def test_what_goes_past_the_cache_releases_nothing(ends: tuple[Any, Any]) -> None:
    for end in ends:
        end.direct = True
    copy(*ends, size_bytes=SIZE, options=CopyOptions(verify=Verify.COMPARE))
    for end in ends:
        assert end.of("release") == end.of("write-back") == []


def test_a_large_hole_is_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    let_open(monkeypatch)
    size = 100 * MIB
    source: Any = MemoryEnd("source", bytes(size), extents=[(0, 4096), (size - 4096, size)])
    destination: Any = MemoryEnd("destination", bytes(size), zeroing=99, is_destination=True)
    copy(source, destination, size_bytes=size, options=CopyOptions(verify=Verify.NONE))
    ranges = destination.of("write-back")
    assert [offset for offset, _ in ranges] == [0, *itertools.accumulate(length for _, length in ranges)][:-1]


@pytest.mark.parametrize("buffers", [1, 2])
@pytest.mark.parametrize("size", [0, 1, MIB, 1 << 30, 1 << 50])
def test_the_buffers_have_a_bound(size: int, buffers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Arena):
        def __init__(self, count: int) -> None:
            made.append(count)
            super().__init__(count)

    monkeypatch.setattr(setup, "Arena", Counted)
    source: Any = MemoryEnd("source", b"")
    with machinery([source], size, Control(), buffers=buffers) as parts:
        assert len(parts.arena.view) <= 67 * BUFFER_BYTES
        assert len(parts.arena.free) >= buffers
    assert made[0] <= max(buffers, min(64, buffers * -(-size // MIB)))


@pytest.mark.usefixtures("means")
def test_a_copy_needs_no_more_memory_for_a_larger_volume(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 1 << 36, [(at << 32, (at << 32) + 3 * MIB) for at in range(16)])
    destination = make_file(tmp_path / "destination", 1 << 36)
    tracemalloc.start()
    try:
        copy(source, destination, size_bytes=1 << 36)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Beside the buffers, which are mapped and not counted here.
    assert peak < 16 * MIB


def test_no_more_than_the_bound_is_under_way() -> None:
    under_way, most = [0], [0]

    def note(position: int, data: bytes) -> bytes:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        under_way[0] -= 1
        return data

    source, destination = Handle(pattern(20 * MIB), on_read=note), Handle(bytes(20 * MIB))
    copy(source, destination, size_bytes=20 * MIB)  # type: ignore[arg-type]
    assert most == [1], "a handle is used by one thread at a time"
