"""Finding out that somebody wrote to what the source of a copy is an export of."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from volmig import errors
from volmig.transfer import (
    Checkpoint,
    CopyOptions,
    EndMark,
    TransferProgress,
    Verify,
    check_unchanged,
    copy_data,
    verify_copy,
)
from volmig.transfer.digest import ALGORITHM
from volmig.transfer.ends.files import FileEnd

from .fakes import pattern

SIZE = 2 * 1024 * 1024


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return _made(tmp_path / "source")


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    return _made(tmp_path / "backing")


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    path = tmp_path / "destination"
    path.write_bytes(bytes(SIZE))
    return path


def _made(path: Path) -> Path:
    path.write_bytes(pattern(SIZE))
    # Long ago, so that no change falls into the same tick of the clock.
    os.utime(path, ns=(0, 0))
    return path


def _write_to(path: Path) -> None:
    before, end = path.stat().st_ctime_ns, time.monotonic() + 2
    while path.stat().st_ctime_ns == before:
        assert time.monotonic() < end, "its times do not tell of it"
        with path.open("r+b") as file:
            file.write(b"other")


def test_a_write_during_the_copy_is_found_out(source: Path, backing: Path, destination: Path) -> None:
    def meddle(_: TransferProgress) -> None:
        _write_to(backing)

    with pytest.raises(errors.SourceChanged, match=str(backing)):
        copy_data(source, destination, size_bytes=SIZE, backing=backing, progress=meddle)


@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
@pytest.mark.parametrize("is_own_copy", [True, False])
def test_a_write_until_the_end_of_the_verification_is_found_out(
    source: Path, backing: Path, destination: Path, verify: Verify, is_own_copy: bool
) -> None:
    copied = copy_data(source, destination, size_bytes=SIZE, backing=backing)

    def meddle(_: TransferProgress) -> None:
        _write_to(backing)

    with pytest.raises(errors.SourceChanged, match=str(backing)):
        verify_copy(
            source,
            destination,
            size_bytes=SIZE,
            options=CopyOptions(verify=verify),
            copied=copied if is_own_copy else None,
            backing=backing,
            progress=meddle,
        )


def test_a_write_after_the_verification_is_found_out(source: Path, backing: Path, destination: Path) -> None:
    copied = copy_data(source, destination, size_bytes=SIZE, backing=backing)
    verified = verify_copy(source, destination, size_bytes=SIZE, backing=backing)
    for seen in (copied, verified):
        check_unchanged(source, seen, backing=backing)
    _write_to(backing)
    for seen in (copied, verified):
        with pytest.raises(errors.SourceChanged, match=str(backing)):
            check_unchanged(source, seen, backing=backing)


def test_a_difference_that_is_found_is_put_down_to_the_write(source: Path, backing: Path, destination: Path) -> None:
    copied = copy_data(source, destination, size_bytes=SIZE, backing=backing)
    _write_to(backing)
    with destination.open("r+b") as file:
        file.write(b"damage")
    with pytest.raises(errors.SourceChanged, match=str(backing)):
        verify_copy(source, destination, size_bytes=SIZE, copied=copied, backing=backing)


def test_what_is_not_written_to_is_no_reason_to_fail(source: Path, backing: Path, destination: Path) -> None:
    copied = copy_data(source, destination, size_bytes=SIZE, backing=backing)
    verify_copy(source, destination, size_bytes=SIZE, copied=copied, backing=backing)
    check_unchanged(source, copied, backing=backing)


def test_nothing_is_copied_to_what_the_source_is_an_export_of(source: Path, backing: Path) -> None:
    with pytest.raises(errors.RequestInvalid, match="same storage"):
        copy_data(source, backing, size_bytes=SIZE, backing=backing)
    assert backing.read_bytes() == pattern(SIZE)


def _unnoticed_since(source: Path, destination: Path) -> Checkpoint:
    """Return a checkpoint of a source whose data is another since, though its own version tells nothing of that."""
    copied = copy_data(source, destination, size_bytes=SIZE)
    _write_to(source)
    with FileEnd(str(source), os.O_RDONLY, is_destination=False) as end:
        mark = end.mark()
    with FileEnd(str(destination), os.O_RDONLY, is_destination=True) as end:
        arrived = EndMark(identity=end.identity, version=None)
    return Checkpoint(
        size_bytes=SIZE,
        position_bytes=SIZE,
        generation=1,
        source=mark,
        destination=arrived,
        digest_algorithm=ALGORITHM,
        segments=copied.source_segments,
    )


@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_a_write_between_two_runs_is_found_out(source: Path, backing: Path, destination: Path, verify: Verify) -> None:
    checkpoint = _unnoticed_since(source, destination)
    options = CopyOptions(verify=verify)
    copied = copy_data(source, destination, size_bytes=SIZE, options=options, checkpoint=checkpoint, backing=backing)
    assert copied.bytes_resumed == SIZE
    with pytest.raises((errors.SourceChanged, errors.VerificationFailed)):
        verify_copy(source, destination, size_bytes=SIZE, options=options, copied=copied, backing=backing)


def test_without_a_proof_the_second_run_begins_anew(source: Path, backing: Path, destination: Path) -> None:
    checkpoint = _unnoticed_since(source, destination)
    options = CopyOptions(verify=Verify.NONE)
    copied = copy_data(source, destination, size_bytes=SIZE, options=options, checkpoint=checkpoint, backing=backing)
    assert copied.bytes_resumed == 0
    assert destination.read_bytes() == source.read_bytes()
