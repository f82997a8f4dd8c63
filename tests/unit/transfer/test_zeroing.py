"""Zeroes: skipped where the destination has them, and put there, by some means, everywhere else."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.transfer import CopyOptions, Verify, copy, digest_of
from volmig.transfer.base import Tail
from volmig.transfer.ends import sparse
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.flow import ring

from .fakes import Handle, blocks_of, make_file, pattern
from .memory_end import MemoryEnd, let_open

KIB = 1024
MIB = 1024 * 1024
SIZE = 6 * MIB
SMALL = 3 * MIB
pytestmark = pytest.mark.usefixtures("means")


def zero_source(path: Path, *, written: bool) -> Path:
    """Make a source with data in three places, and zeroes that are holes or were written."""
    make_file(path, SMALL, [(0, 4096), (MIB + 4096, MIB + 8192), (SMALL - 100, SMALL)])
    if written:
        path.write_bytes(path.read_bytes())
    return path


@pytest.mark.parametrize("written", [False, True], ids=["holes", "zeroes"])
@pytest.mark.parametrize(
    ("modes", "chunk"),
    [*((modes, 4 * KIB) for modes in (None, [0x03], [0x11], [0x400, 0x11], [])), (None, MIB), ([], MIB)],
)
def test_garbage_becomes_zero_by_any_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool, modes: list[int] | None, chunk: int
) -> None:
    source, destination = zero_source(tmp_path / "source", written=written), tmp_path / "destination"
    destination.write_bytes(b"\xee" * (SMALL + 1))
    if modes is not None:
        monkeypatch.setattr(sparse, "ZERO_MODES", modes)
    result = copy(source, destination, size_bytes=SMALL, options=CopyOptions(chunk_bytes=chunk))
    assert destination.read_bytes() == source.read_bytes() + b"\xee"
    assert result.bytes_copied < MIB
    assert result.source_digest == digest_of(source)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
def test_zeroes_are_written_when_no_way_works_while_requests_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, means: str
) -> None:
    tried: list[int] = []
    if means == "threads":

        def refuse(fd: int, mode: int, offset: int, length: int) -> int:
            tried.append(mode)
            return number

        monkeypatch.setattr(sparse, "fallocate", refuse)
    else:
        push = ring._Ring.push

        def spoil(
            to: ring._Ring, request: object, operation: int, fd: int, offset: int, address: int, *others: int
        ) -> None:
            if operation == ring._OP_FALLOCATE:
                tried.append(others[0])
                # A mode that there is not: EOPNOTSUPP.
                others = (1 << 30, *others[1:])
            push(to, request, operation, fd, offset, address, *others)

        monkeypatch.setattr(ring._Ring, "push", spoil)
    extents = [(offset, offset + 8192) for offset in range(0, SIZE, 64 * KIB)]
    source, destination = make_file(tmp_path / "source", SIZE, extents), tmp_path / "destination"
    destination.write_bytes(b"\xee" * SIZE)
    copy(source, destination, size_bytes=SIZE)
    assert destination.read_bytes() == source.read_bytes()
    assert set(tried) == set(sparse.ZERO_MODES)


def test_zeroing_that_fails_for_good_fails_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "ZERO_MODES", [0x03])
    source, destination = make_file(tmp_path / "source", SIZE), tmp_path / "destination"
    destination.write_bytes(b"\xee" * SIZE)
    opened = FileEnd.__init__

    def read_only(self: FileEnd, path: str, flags: int, **options: Any) -> None:
        opened(self, path, os.O_RDONLY, **options)

    monkeypatch.setattr(FileEnd, "__init__", read_only)
    with pytest.raises(errors.TransferFailed, match="Bad file descriptor"):
        copy(source, destination, size_bytes=SIZE)
    assert destination.read_bytes() == b"\xee" * SIZE


@pytest.mark.parametrize("serves", [0, 1, 3, 1000])
def test_an_end_that_stops_zeroing_on_the_way(monkeypatch: pytest.MonkeyPatch, serves: int) -> None:
    let_open(monkeypatch)
    extents = [(offset, offset + 4096) for offset in range(4096, SIZE, 512 * KIB)]
    content = bytearray(SIZE)
    for start, end in extents:
        content[start:end] = pattern(end - start)
    source: Any = MemoryEnd("source", bytes(content), extents=extents)
    destination: Any = MemoryEnd("destination", b"\xee" * SIZE, zeroing=serves, is_destination=True)
    copy(source, destination, size_bytes=SIZE)
    assert destination.content == content
    assert len(destination.of("zero")) == min(serves, 18)


def test_what_is_known_to_be_zero_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    let_open(monkeypatch)
    source: Any = MemoryEnd("source", pattern(MIB) + bytes(5 * MIB), extents=[(0, MIB)])
    destination: Any = MemoryEnd("destination", bytes(4 * MIB) + b"\xee" * (2 * MIB), zeroing=9, is_destination=True)
    destination.holes = [(0, 2 * MIB)]
    copy(source, destination, size_bytes=SIZE, options=CopyOptions(tail=Tail.ZERO))
    assert destination.content == source.content
    assert destination.of("zero") == [(MIB, 5 * MIB)], "it is not known of all of the range"
    destination = MemoryEnd("destination", bytes(SIZE), zeroing=9, is_destination=True)
    destination.holes = [(0, SIZE)]
    copy(source, destination, size_bytes=SIZE)
    assert destination.of("zero") == []
    assert destination.of("write") == [(0, MIB)]


def test_small_extents_stay_small(tmp_path: Path) -> None:
    extents = [(offset, offset + 4096) for offset in range(0, 8 * MIB, 256 * KIB)]
    source, destination = make_file(tmp_path / "source", 8 * MIB, extents), make_file(tmp_path / "destination", 8 * MIB)
    for verify in Verify:
        result = copy(source, destination, size_bytes=8 * MIB, options=CopyOptions(verify=verify))
        assert destination.read_bytes() == source.read_bytes()
        assert (result.bytes_copied, result.bytes_zero) == (32 * 4096, 8 * MIB - 32 * 4096)
        assert blocks_of(destination) <= blocks_of(source) + 64 * KIB


def test_a_sparse_destination_stays_sparse_and_a_full_one_becomes_so(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 1 << 40, [(1 << 39, (1 << 39) + MIB)])
    destination = make_file(tmp_path / "destination", 1 << 40, [(5 * MIB, 9 * MIB)])
    result = copy(source, destination, size_bytes=1 << 40)
    assert blocks_of(destination) <= 2 * MIB
    assert result.bytes_copied == MIB
    assert digest_of(destination) == digest_of(source) == result.destination_digest


@pytest.mark.parametrize("size", [0, 1, 4096, MIB + 513])
@pytest.mark.parametrize("kind", ["file", "handle"])
def test_the_tail_is_kept_or_made_zero(tmp_path: Path, size: int, kind: str) -> None:
    source, path = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(pattern(size))
    for tail, what in itertools.product([1, 4095, 4096, MIB + 7], Tail):
        if kind == "file":
            path.write_bytes(b"\xee" * (size + tail))
            copy(source, path, size_bytes=size, options=CopyOptions(tail=what))
            found = path.read_bytes()
        else:
            handle: Any = Handle(b"\xee" * (size + tail))
            copy(source, handle, size_bytes=size, options=CopyOptions(tail=what))
            found = bytes(handle.content)
        assert found == pattern(size) + (bytes(tail) if what is Tail.ZERO else b"\xee" * tail)


def test_a_tail_is_flushed_and_gives_its_room_back(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(pattern(5))
    path.write_bytes(b"\xee" * (8 * MIB))
    copy(source, path, size_bytes=5, options=CopyOptions(tail=Tail.ZERO))
    assert blocks_of(path) <= MIB
    handle: Any = Handle(b"\xee" * 100)
    unflushed: list[int] = []
    handle.on_write = lambda position, data: (unflushed.append(position), data)[1]
    flush = handle.flush
    handle.flush = lambda: (unflushed.clear(), flush())
    copy(source, handle, size_bytes=5, options=CopyOptions(tail=Tail.ZERO, verify=Verify.NONE))
    assert unflushed == []
    assert handle.content == pattern(5) + bytes(95)
