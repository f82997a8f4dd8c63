"""What is refused before the first write, and what is noticed afterwards."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.transfer import CopyOptions, CopyStage, TransferProgress, Verify, copy, copy_data, digest_of, verify_copy
from volmig.transfer.base import Checkpoint, EndMark
from volmig.transfer.digest import ALGORITHM

from .fakes import Handle, make_file, pattern

MIB = 1024 * 1024
SIZE = 3 * MIB
ENGINES = ("chunked", "dd")
Pair = tuple[Path, Path]
pytestmark = pytest.mark.usefixtures("means")


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(pattern(SIZE))
    destination.write_bytes(b"\xee" * SIZE)
    return source, destination


def refused(source: Any, destination: Any, kind: type[errors.VolmigError], size: int = SIZE, **options: Any) -> Any:
    """Copy, expect the error *kind*, and return it."""
    with pytest.raises(kind) as raised:
        copy(source, destination, size_bytes=size, options=CopyOptions(**options))
    assert type(raised.value) is kind
    return raised.value


@pytest.mark.parametrize("engine", ENGINES)
def test_ends_of_a_wrong_size(pair: Pair, engine: str) -> None:
    source, destination = pair
    destination.write_bytes(b"\xee" * (SIZE + 1))
    error = refused(source, destination, errors.SourceTooShort, SIZE + 1, engine=engine)
    assert error.fields == {"path": str(source), "actual": SIZE, "expected": SIZE + 1}
    destination.write_bytes(b"\xee" * (SIZE - 1))
    error = refused(source, destination, errors.DestinationTooShort, engine=engine)
    assert error.fields == {"path": str(destination), "actual": SIZE - 1, "expected": SIZE}
    assert destination.read_bytes() == b"\xee" * (SIZE - 1)


def test_the_same_file_by_any_name(pair: Pair, tmp_path: Path) -> None:
    source, _ = pair
    content = source.read_bytes()
    symbolic, hard = tmp_path / "symbolic", tmp_path / "hard"
    symbolic.symlink_to(source)
    hard.hardlink_to(source)
    with source.open("r+b") as handle:
        for other in (source, symbolic, hard, f"/proc/self/fd/{handle.fileno()}", handle):
            error = refused(source, other, errors.RequestInvalid)
            assert "same storage" in error.message
    assert source.read_bytes() == content


def test_what_is_no_storage(pair: Pair, tmp_path: Path) -> None:
    source, destination = pair
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for odd, word in ((tmp_path, "directory"), (pipe, "pipe"), ("/dev/null", "character device")):
        assert word in refused(odd, destination, errors.RequestInvalid).message
        assert word in refused(source, odd, errors.RequestInvalid).message
    assert destination.read_bytes() == b"\xee" * SIZE


def test_what_cannot_be_opened(pair: Pair, tmp_path: Path) -> None:
    source, destination = pair
    absent = tmp_path / "absent"
    for ends in ((absent, destination), (source, absent)):
        error = refused(*ends, errors.TransferFailed)
        assert error.fields["path"] == str(absent)
        assert "No such file" in error.message
        assert isinstance(error.__cause__, FileNotFoundError)
    assert not absent.exists()
    assert "null byte" in refused("a\0b", destination, errors.TransferFailed).message


def test_what_is_neither_path_nor_usable_handle(pair: Pair) -> None:
    source, destination = pair
    with source.open() as text, source.open("rb") as read_only, destination.open("ab") as write_only:
        assert "binary" in refused(text, destination, errors.RequestInvalid).message
        assert "writing" in refused(source, read_only, errors.RequestInvalid).message
        assert "reading" in refused(write_only, destination, errors.RequestInvalid).message
        # It could be written to, but not read back.
        assert "reading" in refused(source, write_only, errors.RequestInvalid).message
    assert "seek" in refused(42, destination, errors.RequestInvalid).message
    closed = io.BytesIO(b"x")
    closed.close()
    assert isinstance(refused(closed, destination, errors.TransferFailed).__cause__, ValueError)


@pytest.mark.parametrize(
    "options", [*({"chunk_bytes": size} for size in (0, 4095, 4097, MIB + 4096)), {"bandwidth_limit_bytes": -1}]
)
def test_options_out_of_range(pair: Pair, options: dict[str, int]) -> None:
    refused(*pair, errors.RequestInvalid, **options)
    assert pair[1].read_bytes() == b"\xee" * SIZE


def test_negative_size(pair: Pair) -> None:
    refused(*pair, errors.SizeInvalid, size=-1)
    with pytest.raises(errors.SourceTooShort):
        digest_of(pair[0], size_bytes=SIZE + 1)


def test_a_checkpoint_is_refused_and_not_ignored(pair: Pair) -> None:
    unknown = EndMark(identity=None, version=None)
    checkpoint = Checkpoint(
        size_bytes=SIZE,
        position_bytes=SIZE,
        generation=1,
        source=unknown,
        destination=unknown,
        digest_algorithm=ALGORITHM,
        segments=bytes(32),
    )
    with pytest.raises(errors.UnsupportedTransfer, match="checkpoint"):
        copy(*pair, size_bytes=SIZE, options=CopyOptions(engine="dd"), checkpoint=checkpoint)
    with pytest.raises(errors.CheckpointMismatch, match="another source"):
        copy(*pair, size_bytes=SIZE, checkpoint=checkpoint)
    assert pair[1].read_bytes() == b"\xee" * SIZE


# --- while it runs ----------------------------------------------------------------------------


def failing_at(offset: int, number: int) -> Callable[[int, bytes], bytes]:
    def act(position: int, data: bytes) -> bytes:
        if position <= offset < position + len(data):
            raise OSError(number, os.strerror(number))
        return data

    return act


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room(pair: Pair, number: int) -> None:
    error = refused(pair[0], Handle(bytes(SIZE), on_write=failing_at(MIB + 5, number)), errors.DiskFull)
    assert error.fields == {"path": "<Handle>", "offset": MIB}
    assert isinstance(error.__cause__, OSError)


@pytest.mark.parametrize("verify", list(Verify))
def test_an_input_or_output_error_at_any_place(pair: Pair, verify: Verify) -> None:
    broken = Handle(pattern(SIZE), on_read=failing_at(2 * MIB + 1, errno.EIO))
    error = refused(broken, pair[1], errors.TransferFailed, verify=verify)
    assert error.fields["offset"] == 2 * MIB
    assert "Input/output error" in error.message
    broken = Handle(pattern(SIZE), on_write=failing_at(0, errno.EIO))
    assert refused(pair[0], broken, errors.TransferFailed, verify=verify).fields["offset"] == 0


def test_an_error_that_only_the_flush_tells(pair: Pair) -> None:
    class Lying(Handle):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    refused(pair[0], Lying(bytes(SIZE)), errors.DiskFull)


def test_an_error_of_a_handle_s_own_kind(pair: Pair) -> None:
    def act(position: int, data: bytes) -> bytes:
        raise KeyError("session expired")

    error = refused(Handle(pattern(SIZE), on_read=act), pair[1], errors.TransferFailed)
    assert isinstance(error.__cause__, KeyError)
    assert "session expired" in error.message


def test_handles_that_break_the_rules(pair: Pair) -> None:
    class TakesNothing(Handle):
        def write(self, data: Any) -> int:
            return 0

    class SaysTooMuch(Handle):
        def write(self, data: Any) -> int:
            return super().write(data) + 1

    class SaysNothing(Handle):
        def write(self, data: Any) -> Any:
            super().write(data)

    class NotReady(Handle):
        def read(self, size: int) -> Any:
            return None

    class GivesTooMuch(Handle):
        def read(self, size: int) -> bytes:
            return bytes(size + 1)

    for destination in (TakesNothing(bytes(SIZE)), SaysTooMuch(bytes(SIZE))):
        refused(pair[0], destination, errors.TransferFailed)
    for source in (NotReady(bytes(SIZE)), GivesTooMuch(bytes(SIZE))):
        refused(source, pair[1], errors.TransferFailed)
    silent = SaysNothing(bytes(SIZE))
    copy(pair[0], silent, size_bytes=SIZE)  # type: ignore[arg-type]
    assert silent.content == pattern(SIZE)


def test_a_handle_that_ends_before_its_size(pair: Pair) -> None:
    source = Handle(pattern(SIZE), on_read=lambda position, data: data[: max(0, 2 * MIB + 3 - position)])
    error = refused(source, pair[1], errors.SourceTooShort)
    assert error.fields["actual"] == 2 * MIB + 3


# --- verification -----------------------------------------------------------------------------


def test_a_write_that_was_lost(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 10 * MIB, [(0, 10 * MIB)])

    def lose(position: int, data: bytes) -> bytes:
        return b"" if position == 9 * MIB else data

    for verify in (Verify.DIGEST, Verify.COMPARE):
        destination = Handle(bytes(10 * MIB), on_write=lose)
        error = refused(source, destination, errors.VerificationFailed, 10 * MIB, verify=verify)
        assert error.fields == {"path": "<Handle>", "offset": 9 * MIB}
    unseen = Handle(bytes(10 * MIB), on_write=lose)
    options = CopyOptions(verify=Verify.NONE)
    copy(source, unseen, size_bytes=10 * MIB, options=options)  # type: ignore[arg-type]


@pytest.mark.parametrize("offset", [0, 1, 65_536, MIB - 1, MIB, SIZE - 1])
def test_a_flipped_bit_is_found_to_the_byte(pair: Pair, offset: int) -> None:
    def flip(position: int, data: bytes) -> bytes:
        if not position <= offset < position + len(data):
            return data
        at = offset - position
        return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]

    for verify in (Verify.DIGEST, Verify.COMPARE):
        for faults in ({"on_write": flip}, {"on_read": flip}):
            destination = Handle(bytes(SIZE), **faults)
            error = refused(pair[0], destination, errors.VerificationFailed, verify=verify)
            assert error.fields["offset"] == offset


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_a_destination_wrongly_said_to_be_zero(tmp_path: Path, engine: str, verify: Verify) -> None:
    source, destination = make_file(tmp_path / "source", 9 * MIB, [(0, MIB)]), tmp_path / "destination"
    destination.write_bytes(bytes(7 * MIB) + b"\x01" + bytes(2 * MIB))
    error = refused(
        source,
        destination,
        errors.VerificationFailed,
        9 * MIB,
        engine=engine,
        verify=verify,
        destination_is_zero=True,
    )
    assert error.fields["offset"] == 7 * MIB


# --- somebody else meddles --------------------------------------------------------------------


def meddling(act: Callable[[], object], stage: CopyStage) -> Callable[[TransferProgress], None]:
    """Return a progress callback that acts once, at the start of a stage."""
    left = [act]

    def report(event: TransferProgress) -> None:
        if event.stage is stage and left:
            left.pop()()

    return report


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"other")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stage", list(CopyStage))
@pytest.mark.parametrize("verify", list(Verify))
def test_a_source_that_is_written_to(pair: Pair, engine: str, stage: CopyStage, verify: Verify, means: str) -> None:
    # Without a verification it has no such stage, and dd makes its requests itself, by the means that it has.
    if (verify, stage) == (Verify.NONE, CopyStage.VERIFY) or (engine, means) == ("dd", "threads"):
        return
    source, destination = pair
    for act, word in (
        (lambda: os.truncate(source, MIB), "size"),
        (lambda: append(source), "size"),
        (lambda: overwrite(source), "time"),
    ):
        source.write_bytes(pattern(SIZE))
        os.utime(source, ns=(0, 0))
        with pytest.raises(errors.SourceChanged, match=word):
            copy(
                source,
                destination,
                size_bytes=SIZE,
                options=CopyOptions(engine=engine, verify=verify),
                progress=meddling(act, stage),
            )


def test_an_end_that_is_replaced(pair: Pair, tmp_path: Path) -> None:
    source, destination = pair
    (tmp_path / "other").write_bytes(bytes(SIZE))
    with pytest.raises(errors.SourceChanged, match="path"):
        copy(
            source,
            destination,
            size_bytes=SIZE,
            progress=meddling(lambda: (tmp_path / "other").rename(source), CopyStage.COPY),
        )
    (tmp_path / "other").write_bytes(bytes(SIZE))
    with pytest.raises(errors.TransferFailed, match="took its place"):
        copy(
            source,
            destination,
            size_bytes=SIZE,
            options=CopyOptions(verify=Verify.NONE),
            progress=meddling(lambda: (tmp_path / "other").rename(destination), CopyStage.COPY),
        )


def test_a_destination_that_shrinks(pair: Pair) -> None:
    with pytest.raises((errors.DestinationTooShort, errors.VerificationFailed)):
        copy(*pair, size_bytes=SIZE, progress=meddling(lambda: os.truncate(pair[1], MIB), CopyStage.VERIFY))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stage", list(CopyStage))
def test_what_the_callback_raises_stops_the_copy(pair: Pair, engine: str, stage: CopyStage) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        copy(*pair, size_bytes=SIZE, options=CopyOptions(engine=engine), progress=meddling(fail, stage))


# --- in two steps -----------------------------------------------------------------------------


def test_verifying_without_knowing_the_copy_reads_the_source_again(pair: Pair) -> None:
    copied = copy_data(*pair, size_bytes=SIZE)
    known, unknown = (verify_copy(*pair, size_bytes=SIZE, copied=one) for one in (copied, None))
    assert known.source_digest == unknown.source_digest == unknown.destination_digest == digest_of(pair[1])
    with pair[1].open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"rot")
    for one in (copied, None):
        with pytest.raises(errors.VerificationFailed):
            verify_copy(*pair, size_bytes=SIZE, copied=one)


def test_verifying_writes_nothing_and_needs_no_right_to(pair: Pair) -> None:
    copy_data(*pair, size_bytes=SIZE)
    changed = pair[1].stat().st_mtime_ns
    with pair[1].open("rb") as read_only:
        verify_copy(pair[0], read_only, size_bytes=SIZE, options=CopyOptions(verify=Verify.COMPARE))
    verify_copy(*pair, size_bytes=SIZE)
    assert pair[1].stat().st_mtime_ns == changed


def test_a_source_that_changes_between_copying_and_verifying(pair: Pair) -> None:
    copied = copy_data(*pair, size_bytes=SIZE)
    os.utime(pair[0], ns=(0, 0))
    with pytest.raises(errors.SourceChanged):
        verify_copy(*pair, size_bytes=SIZE, copied=copied)
    # Nobody knows of the change, but the data is the same.
    verify_copy(*pair, size_bytes=SIZE)


def test_a_digest_that_says_nothing_of_where_is_not_used(pair: Pair) -> None:
    copied = copy_data(*pair, size_bytes=SIZE)
    stripped = dataclasses.replace(copied, source_segments=b"")
    assert verify_copy(*pair, size_bytes=SIZE, copied=stripped).source_digest == copied.source_digest
