"""Finding out that the source of a copy was changed."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from volmig import errors
from volmig.transfer import CopiedData, CopyOptions, CopyStage, TransferProgress, check_unchanged, copy, copy_data

from .fakes import Handle, pattern

MIB = 1024 * 1024
SIZE = 2 * MIB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(pattern(SIZE))
    # Long ago, so that no change falls into the same tick of the clock.
    os.utime(path, ns=(0, 0))
    return path


def copied_from(source: object) -> CopiedData:
    return copy_data(source, Handle(bytes(SIZE)), size_bytes=SIZE)  # type: ignore[arg-type]


def later(path: Path, act: Callable[[], object]) -> None:
    """Do something to a file until its time of status change is another."""
    before, end = path.stat().st_ctime_ns, time.monotonic() + 2
    while path.stat().st_ctime_ns == before:
        assert time.monotonic() < end, "its times do not tell of it"
        act()


def forge(path: Path) -> None:
    """Write, and put the time of modification back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("engine", ["chunked", "dd"])
def test_a_forged_time_of_modification_is_found_out(source: Path, tmp_path: Path, engine: str) -> None:
    destination = tmp_path / "destination"
    destination.write_bytes(bytes(SIZE))
    modified = source.stat().st_mtime_ns

    def meddle(event: TransferProgress) -> None:
        if event.stage is CopyStage.FLUSH:
            later(source, lambda: forge(source))

    with pytest.raises(errors.SourceChanged, match="ctime"):
        copy(source, destination, size_bytes=SIZE, options=CopyOptions(engine=engine), progress=meddle)
    assert source.stat().st_mtime_ns == modified


def test_reading_is_no_change(source: Path) -> None:
    copied = copied_from(source)
    os.utime(source.parent)
    assert source.read_bytes() == pattern(SIZE)
    check_unchanged(source, copied)
    check_unchanged(source, copied)


def _link(source: Path) -> None:
    other = source.with_name("link")
    os.link(source, other)
    other.unlink()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda path: os.truncate(path, MIB), f"size went from {SIZE} to {MIB}"),
        (lambda path: path.write_bytes(pattern(SIZE, seed=2)), "time of modification is another"),
        (forge, r"status was changed \(ctime\), though not"),
        (lambda path: path.chmod(0o600), r"status was changed \(ctime\), though not"),
        (_link, r"status was changed \(ctime\), though not"),
    ],
)
def test_the_reason_says_what_is_different(source: Path, change: Callable[[Path], object], word: str) -> None:
    copied = copied_from(source)
    later(source, lambda: change(source))
    with pytest.raises(errors.SourceChanged, match=word):
        check_unchanged(source, copied)
    with source.open("rb") as handle, pytest.raises(errors.SourceChanged, match=word):
        check_unchanged(handle, copied)


def test_a_source_that_is_gone_or_another(source: Path) -> None:
    copied = copied_from(source)
    kept = source.rename(source.with_name("kept"))
    with pytest.raises(errors.SourceChanged, match="no longer leads"):
        check_unchanged(source, copied)
    source.mkdir()
    with pytest.raises(errors.SourceChanged, match="no longer leads"):
        check_unchanged(source, copied)
    source.rmdir()
    source.write_bytes(kept.read_bytes())
    with pytest.raises(errors.SourceChanged, match="no longer leads"):
        check_unchanged(source, copied)


def test_a_source_that_cannot_be_looked_at_is_another_failure(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = copied_from(source)

    def refuse(path: str, flags: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(errors.TransferFailed):
        check_unchanged(source, copied)


def test_a_handle_without_a_file_is_left_alone() -> None:
    handle = Handle(pattern(SIZE))
    copied = copied_from(handle)
    handle.content[:5] = b"other"
    handle.position = 7
    check_unchanged(handle, copied)  # type: ignore[arg-type]
    assert handle.position == 7


def test_pages_that_were_dirty_before_the_copy_do_not_hide_a_later_store(source: Path) -> None:
    with source.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as mapped:
        mapped[0] = 1
        copied = copied_from(source)
        check_unchanged(source, copied)
        if _lives_in_memory(source):
            return
        later(source, lambda: mapped.__setitem__(0, 2))
        with pytest.raises(errors.SourceChanged, match="time of modification"):
            check_unchanged(source, copied)


def _lives_in_memory(path: Path) -> bool:
    """Say whether a file is in tmpfs, which keeps no account of stores to a page that is mapped already."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [fields for fields in mounts if path.resolve().is_relative_to(fields[1])]
    return max(holding, key=lambda fields: len(fields[1]))[2] in ("tmpfs", "ramfs")


def fail_fsync(monkeypatch: pytest.MonkeyPatch, source: Path, number: int) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.fstat(fd).st_ino == source.stat().st_ino:
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EROFS, errno.EBADF, errno.EOPNOTSUPP, errno.EACCES])
def test_a_file_system_that_cannot_flush_a_source(source: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fail_fsync(monkeypatch, source, number)
    check_unchanged(source, copied_from(source))


def test_earlier_writes_that_are_lost_are_a_failure(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_fsync(monkeypatch, source, errno.EIO)
    destination = Handle(bytes(SIZE))
    with pytest.raises(errors.TransferFailed, match="earlier writes"):
        copy(source, destination, size_bytes=SIZE)  # type: ignore[arg-type]
    assert destination.bytes_written == 0
