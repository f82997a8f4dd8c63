"""Copies to and from block devices: loop devices over files, as root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from volmig import errors
from volmig.transfer import CopyOptions, CopyStage, Tail, TransferProgress, Verify, copy, digest_of
from volmig.transfer.ends import sparse

from .storage import KIB, MIB, content, fill, holes, loop, noise, run

SIZE = 24 * MIB
HOLES = ((2 * MIB, 6 * MIB), (10 * MIB, 10 * MIB + 64 * KIB), (20 * MIB + 512, 23 * MIB))
"""Parts of the volume that are holes."""


def volume(path: Path, size: int = SIZE) -> Path:
    """Make a file with data and holes."""
    fill(path, noise(size))
    with path.open("r+b") as file:
        for start, end in HOLES:
            assert sparse.fallocate(file.fileno(), 3, start, end - start) == 0
        os.fsync(file.fileno())
    return path


def garbage(path: Path, size: int = SIZE) -> Path:
    return fill(path, b"\xa5" * size)


Ends = tuple[Path, Path]


@contextlib.contextmanager
def ends(folder: Path, kind: str, size: int = SIZE, *, room: int = 0, sector_bytes: int = 512) -> Iterator[Ends]:
    """Give a source with data and holes, and a destination full of garbage, with *room* more in it."""
    source, destination = volume(folder / "source", size), garbage(folder / "destination", size + room)
    of_source, of_destination = kind.split("->")
    with contextlib.ExitStack() as stack:
        if of_source == "loop":
            source = stack.enter_context(loop(source, sector_bytes=sector_bytes))
        if of_destination == "loop":
            destination = stack.enter_context(loop(destination, sector_bytes=sector_bytes))
        yield source, destination


@pytest.mark.parametrize("kind", ["loop->loop", "file->loop", "loop->file"])
@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_garbage_becomes_the_volume(tmp_path: Path, kind: str, verify: Verify) -> None:
    with ends(tmp_path, kind) as (source, destination):
        result = copy(source, destination, size_bytes=SIZE, options=CopyOptions(verify=verify))
        assert content(destination) == content(source)
        assert result.source_digest == digest_of(tmp_path / "source")
        assert result.bytes_zero >= 6 * MIB
    assert content(tmp_path / "destination") == content(tmp_path / "source")


def test_a_hole_is_punched_under_the_device(tmp_path: Path) -> None:
    with ends(tmp_path, "file->loop") as (source, destination):
        copy(source, destination, size_bytes=SIZE)
        assert content(destination) == content(source)
    assert holes(tmp_path / "destination", 2 * MIB, 6 * MIB) == 4 * MIB


def refusing(*modes: int) -> tuple[Callable[[int, int, int, int], int], list[tuple[int, int]]]:
    """Return a ``fallocate`` that does not know some modes, and a list of what it did: mode and length."""
    real, done = sparse.fallocate, []

    def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
        if mode in modes:
            return 95
        done.append((mode, length))
        return real(fd, mode, offset, length)

    return fallocate, done


@pytest.mark.parametrize("refused", [(), (3,), (3, 17)], ids=["unmap", "zero range", "written"])
def test_each_way_of_zeroing_a_device(
    tmp_path: Path, refused: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # By threads, since their way to the kernel can be intercepted.
    by_threads(monkeypatch)
    fallocate, done = refusing(*refused)
    with ends(tmp_path, "file->loop") as (source, destination):
        monkeypatch.setattr(sparse, "fallocate", fallocate)
        copy(source, destination, size_bytes=SIZE)
        assert content(destination) == content(source)
    assert {mode for mode, _ in done} == ({3, 17} - set(refused) if refused else {3})


def test_what_the_kernel_cannot_do_itself_is_written(tmp_path: Path) -> None:
    # A tail that begins within a sector: the device refuses to zero it, whoever asks.
    with ends(tmp_path, "file->loop", room=4 * MIB) as (source, destination):
        copy(source, destination, size_bytes=5 * MIB + 100, options=CopyOptions(tail=Tail.ZERO))
        found = content(destination)
        assert found == content(source, 5 * MIB + 100) + bytes(len(found) - 5 * MIB - 100)


def by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from volmig.transfer.flow import setup
    from volmig.transfer.flow.ring import RingUnavailable

    def refuse(*_: object) -> None:
        raise RingUnavailable("the test wants threads")

    monkeypatch.setattr(setup, "RingQueue", refuse)


@pytest.mark.parametrize("tail", list(Tail))
@pytest.mark.parametrize("size", [SIZE, SIZE - 4096 + 511, 5 * MIB + 1], ids=["whole", "odd", "small"])
def test_a_larger_device_keeps_its_tail_or_has_it_zeroed(tmp_path: Path, tail: Tail, size: int) -> None:
    with ends(tmp_path, "file->loop", room=3 * MIB) as (source, destination):
        copy(source, destination, size_bytes=size, options=CopyOptions(tail=tail))
        found = content(destination)
        assert found[:size] == content(source, size)
        rest = len(found) - size
        assert found[size:] == (bytes(rest) if tail is Tail.ZERO else b"\xa5" * rest)


@pytest.mark.parametrize("kind", ["loop->loop", "file->loop", "loop->file"])
@pytest.mark.parametrize("size", [1, 511, 512, 4095, 4097, MIB + 513, SIZE - 1])
@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_odd_sizes_for_any_size_of_sector(tmp_path: Path, kind: str, size: int, sector_bytes: int) -> None:
    with ends(tmp_path, kind, sector_bytes=sector_bytes) as (source, destination):
        for verify in (Verify.DIGEST, Verify.COMPARE):
            garbage(destination)
            copy(source, destination, size_bytes=size, options=CopyOptions(verify=verify))
            found = content(destination)
            assert found[:size] == content(source, size)
            assert found[size:] == b"\xa5" * (len(found) - size)


@pytest.mark.parametrize("chunk_bytes", [4096, 12 * KIB, 1020 * KIB])
def test_sizes_of_requests_on_large_sectors(tmp_path: Path, chunk_bytes: int) -> None:
    with ends(tmp_path, "loop->loop", sector_bytes=4096) as (source, destination):
        copy(source, destination, size_bytes=SIZE, options=CopyOptions(chunk_bytes=chunk_bytes))
        assert content(destination) == content(source)


def test_a_source_that_can_only_be_read(tmp_path: Path) -> None:
    volume(tmp_path / "source")
    garbage(tmp_path / "destination")
    with loop(tmp_path / "source", read_only=True) as source, loop(tmp_path / "destination") as destination:
        copy(source, destination, size_bytes=SIZE, options=CopyOptions(verify=Verify.COMPARE))
        assert content(destination) == content(source)
        with pytest.raises(errors.TransferFailed):
            copy(tmp_path / "destination", source, size_bytes=SIZE)
    assert content(tmp_path / "destination") == content(tmp_path / "source")


@pytest.mark.parametrize("stage", [CopyStage.COPY, CopyStage.VERIFY])
def test_a_device_that_is_written_to_is_noticed(tmp_path: Path, stage: CopyStage) -> None:
    with ends(tmp_path, "loop->loop") as (source, destination):
        left = [stage]

        def meddle(event: TransferProgress) -> None:
            if event.stage is stage and left:
                left.pop()
                fill(source, b"\x00\x01" * 2048, 8 * MIB)

        with pytest.raises(errors.SourceChanged, match="counted writes"):
            copy(source, destination, size_bytes=SIZE, progress=meddle)


def test_the_same_storage_by_any_name(tmp_path: Path) -> None:
    one, other = volume(tmp_path / "one"), volume(tmp_path / "other")
    before = content(one)
    (tmp_path / "link").symlink_to(one)
    (tmp_path / "hard").hardlink_to(one)
    with loop(one) as first, loop(one) as second, loop(other) as third:
        run("mknod", tmp_path / "node", "b", str(os.major(first.stat().st_rdev)), str(os.minor(first.stat().st_rdev)))
        names = [one, first, second, tmp_path / "link", tmp_path / "hard", tmp_path / "node"]
        for source in names:
            for destination in names:
                with pytest.raises(errors.RequestInvalid, match="same storage"):
                    copy(source, destination, size_bytes=SIZE)
        with first.open("rb", buffering=0) as handle, pytest.raises(errors.RequestInvalid, match="same storage"):
            copy(handle, second, size_bytes=SIZE)
        copy(third, first, size_bytes=SIZE)
        assert before == content(first)


def test_devices_of_a_wrong_size(tmp_path: Path) -> None:
    volume(tmp_path / "source")
    garbage(tmp_path / "destination", SIZE - 4096)
    with loop(tmp_path / "source") as source, loop(tmp_path / "destination") as destination:
        with pytest.raises(errors.DestinationTooShort):
            copy(source, destination, size_bytes=SIZE)
        with pytest.raises(errors.SourceTooShort):
            copy(source, destination, size_bytes=SIZE + 1)
        assert content(destination) == b"\xa5" * (SIZE - 4096)
