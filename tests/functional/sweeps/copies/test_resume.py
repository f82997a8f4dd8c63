"""Going on from a checkpoint: nothing twice that was safe, and nothing believed that is not."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.transfer.fakes import Handle, make_file, pattern
from tests.unit.transfer.memory_end import MemoryEnd, let_open
from tests.unit.transfer.test_pump import Scripted, whole
from volmig import errors
from volmig.transfer import Control, CopyOptions, TransferResult, Verify, copy, copy_data, digest_of
from volmig.transfer import digest as digests
from volmig.transfer.base import Checkpoint, CopyJob, EndMark
from volmig.transfer.digest import ALGORITHM, TreeDigest
from volmig.transfer.ends.pins import pin
from volmig.transfer.engines.chunked import ChunkedEngine
from volmig.transfer.flow import copying
from volmig.transfer.flow.arena import Arena
from volmig.transfer.flow.plan import tasks
from volmig.transfer.flow.pump import Pump
from volmig.transfer.flow.request import Kind, Request
from volmig.transfer.resume.run import Run

MIB = 1024 * 1024
SIZE = 34 * MIB + 5
SEGMENT = 8 * MIB
AT_RISK = 16 * MIB
GARBAGE = b"\xee"
Pair = tuple[Path, Path]
pytestmark = pytest.mark.usefixtures("_small")


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything smaller, by the same measure, so that a test takes no time."""
    monkeypatch.setattr(digests, "_SMALLEST_SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(copying, "_FLUSH_BYTES", 4 * MIB)
    monkeypatch.setattr(copying, "_AT_RISK_BYTES", AT_RISK)
    monkeypatch.setattr(copying, "_AT_RISK_FRACTION", 1 << 40)


@pytest.fixture
def _each_segment(_small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a checkpoint come at the end of each segment, whichever of reads, writes and flushes are the slowest."""
    monkeypatch.setattr(copying, "_AT_RISK_BYTES", SEGMENT)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    source = make_file(tmp_path / "source", SIZE, [(0, 20 * MIB), (22 * MIB + 4096, SIZE)])
    os.utime(source, ns=(0, 0))
    destination = tmp_path / "destination"
    destination.write_bytes(GARBAGE * (SIZE + 3))
    return source, destination


class Stop(Exception):
    """The run ends here."""


def stopped_at(number: int, pair: Sequence[Any], **how: Any) -> Checkpoint:
    """Copy until the checkpoint with that number, and return it."""
    seen: list[Checkpoint] = []

    def stop(checkpoint: Checkpoint) -> None:
        seen.append(checkpoint)
        if len(seen) > number:
            raise Stop

    with pytest.raises(Stop):
        copy(*pair, size_bytes=SIZE, on_checkpoint=stop, **how)
    positions = [one.position_bytes for one in seen]
    assert positions == sorted(set(positions))
    assert all(position % SEGMENT == 0 or position == SIZE for position in positions)
    return seen[-1]


def check_arrived(pair: Pair, result: TransferResult, checkpoint: Checkpoint) -> None:
    assert pair[1].read_bytes() == pair[0].read_bytes() + GARBAGE * 3
    assert result.bytes_resumed == checkpoint.position_bytes
    assert result.bytes_copied + result.bytes_zero + result.bytes_resumed == result.bytes_total == SIZE
    assert result.source_digest == result.destination_digest == digest_of(pair[0])


@pytest.mark.usefixtures("means", "_each_segment")
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_a_copy_goes_on_from_any_checkpoint(pair: Pair, number: int, verify: Verify) -> None:
    checkpoint = stopped_at(number, pair)
    assert 0 < checkpoint.position_bytes <= SIZE
    content = pair[1].read_bytes()
    safe = checkpoint.position_bytes
    assert content[:safe] == pair[0].read_bytes()[:safe]
    later: list[Checkpoint] = []
    result = copy(
        *pair, size_bytes=SIZE, options=CopyOptions(verify=verify), checkpoint=checkpoint, on_checkpoint=later.append
    )
    check_arrived(pair, result, checkpoint)
    assert {one.generation for one in later} <= {2}
    assert all(one.position_bytes > safe for one in later)


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("number", [0, 1])
def test_little_is_begun_beyond_a_checkpoint(pair: Pair, number: int) -> None:
    position = stopped_at(number, pair).position_bytes
    content = pair[1].read_bytes()
    changed = sum(
        content[at : at + MIB].count(GARBAGE) < MIB // 2 for at in range(position // MIB * MIB, SIZE // MIB * MIB, MIB)
    )
    assert changed <= AT_RISK // MIB


def test_one_comes_before_as_much_is_copied_without(pair: Pair) -> None:
    seen = [0]
    copy(*pair, size_bytes=SIZE, on_checkpoint=lambda checkpoint: seen.append(checkpoint.position_bytes))
    assert len(seen) > 2
    gaps = [other - one for one, other in zip(seen, [*seen[1:], SIZE], strict=True)]
    assert max(gaps) <= AT_RISK + SEGMENT


def test_what_was_safe_is_not_copied_again(pair: Pair) -> None:
    checkpoint = stopped_at(1, pair)
    untouched = checkpoint.position_bytes
    with pair[1].open("r+b") as file:
        file.write(b"damage")
    result = copy(*pair, size_bytes=SIZE, options=CopyOptions(verify=Verify.NONE), checkpoint=checkpoint)
    assert pair[1].read_bytes()[:6] == b"damage"
    assert pair[1].read_bytes()[6:SIZE] == pair[0].read_bytes()[6:]
    assert result.bytes_resumed == untouched


@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_damage_before_the_checkpoint_is_found(pair: Pair, verify: Verify) -> None:
    checkpoint = stopped_at(1, pair)
    with pair[1].open("r+b") as file:
        file.seek(MIB + 7)
        file.write(b"damage")
    with pytest.raises(errors.VerificationFailed) as raised:
        copy(*pair, size_bytes=SIZE, options=CopyOptions(verify=verify), checkpoint=checkpoint)
    assert raised.value.fields["offset"] == MIB + 7


@pytest.mark.usefixtures("_each_segment")
def test_runs_follow_one_another(pair: Pair) -> None:
    first = stopped_at(0, pair)
    second = stopped_at(0, pair, checkpoint=first)
    third = stopped_at(0, pair, checkpoint=second)
    assert [one.generation for one in (first, second, third)] == [1, 2, 3]
    assert first.position_bytes < second.position_bytes < third.position_bytes
    assert third.segments.startswith(second.segments)
    assert third.source == first.source
    check_arrived(pair, copy(*pair, size_bytes=SIZE, checkpoint=third), third)


def test_a_checkpoint_at_the_end_leaves_only_the_proof(pair: Pair) -> None:
    copy(*pair, size_bytes=SIZE)
    mark = stopped_at(0, pair)
    known = copy_data(pair[0], Handle(bytes(SIZE)), size_bytes=SIZE)  # type: ignore[arg-type]
    checkpoint = dataclasses.replace(mark, position_bytes=SIZE, segments=known.source_segments)
    copy(*pair, size_bytes=SIZE)
    result = copy(*pair, size_bytes=SIZE, checkpoint=checkpoint)
    assert (result.bytes_copied, result.bytes_zero, result.bytes_resumed) == (0, 0, SIZE)
    assert result.source_digest == digest_of(pair[0])


@pytest.mark.usefixtures("means")
def test_a_cancelled_copy_goes_on(pair: Pair) -> None:
    control, seen = Control(), []

    def cancel(checkpoint: Checkpoint) -> None:
        seen.append(checkpoint)
        control.cancel()

    with pytest.raises(errors.TransferCancelled):
        copy(*pair, size_bytes=SIZE, control=control, on_checkpoint=cancel)
    check_arrived(pair, copy(*pair, size_bytes=SIZE, checkpoint=seen[-1]), seen[-1])


class Failing:
    """A file that fails once, at one place."""

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("r+b", buffering=0)
        self.offset = offset
        self.name = str(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        position = self._file.tell()
        if position <= self.offset < position + len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._file.write(data)


@pytest.mark.parametrize("offset", [9 * MIB, SIZE - 1])
def test_a_copy_that_failed_goes_on(pair: Pair, offset: int) -> None:
    seen: list[Checkpoint] = []
    failing = Failing(pair[1], offset)
    with failing._file, pytest.raises(errors.TransferFailed):
        copy(pair[0], failing, size_bytes=SIZE, on_checkpoint=seen.append)  # type: ignore[arg-type]
    # Nothing is said to be safe that comes behind the failure; a handle to a file is that file.
    assert all(one.position_bytes <= offset for one in seen)
    last = seen[-1] if seen else None
    result = copy(*pair, size_bytes=SIZE, checkpoint=last)
    assert pair[1].read_bytes() == pair[0].read_bytes() + GARBAGE * 3
    assert result.bytes_resumed == (last.position_bytes if last else 0)


def test_a_handle_gets_no_checkpoints(pair: Pair) -> None:
    """What a library has under way when its process dies, nobody could tell."""
    handle = Handle(GARBAGE * SIZE)
    copy(pair[0], handle, size_bytes=SIZE, options=CopyOptions(verify=Verify.NONE))  # type: ignore[arg-type]
    quiet, handle.flushes = handle.flushes, 0
    told: list[Checkpoint] = []
    copy(
        pair[0],
        handle,  # type: ignore[arg-type]
        size_bytes=SIZE,
        options=CopyOptions(verify=Verify.NONE),
        on_checkpoint=told.append,
    )
    assert (told, handle.flushes) == ([], quiet)


def descriptor_of(path: Path) -> int:
    """Return a descriptor with a request of an earlier copy under way, as far as a lock can tell."""
    fd = os.open(path, os.O_RDWR)
    assert pin(fd)
    return fd


def test_requests_of_an_earlier_run_that_are_under_way_are_waited_for(pair: Pair) -> None:
    told: list[Checkpoint] = []
    copy(*pair, size_bytes=SIZE, on_checkpoint=told.append)
    before = pair[1].read_bytes()
    fd = descriptor_of(pair[1])
    try:
        with pytest.raises(errors.DestinationBusy) as raised:
            copy(*pair, size_bytes=SIZE, checkpoint=told[0])
        assert raised.value.fields["path"] == str(pair[1])
        with pytest.raises(errors.DestinationBusy):
            copy_data(*pair, size_bytes=SIZE, sole_writer=True)
        assert pair[1].read_bytes() == before
        # Who begins anew, and does not rely upon what was there, may do so.
        copy(*pair, size_bytes=SIZE)
    finally:
        os.close(fd)
    copy(*pair, size_bytes=SIZE, checkpoint=told[0])


def test_a_destination_that_somebody_holds_for_himself_gets_no_checkpoints(pair: Pair) -> None:
    """As under flock(1): nobody could see then whether a request is still under way."""
    fd = os.open(pair[1], os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        told: list[Checkpoint] = []
        copy(*pair, size_bytes=SIZE, on_checkpoint=told.append)
        assert told == []
    finally:
        os.close(fd)


def test_a_handle_has_no_sole_writer(pair: Pair) -> None:
    handle = Handle(GARBAGE * SIZE)
    with pytest.raises(errors.DestinationBusy):
        copy_data(pair[0], handle, size_bytes=SIZE, sole_writer=True)  # type: ignore[arg-type]


def test_a_checkpoint_is_told_only_after_its_flush(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    let_open(monkeypatch)
    source: Any = MemoryEnd("source", pattern(SIZE))
    destination: Any = MemoryEnd("destination", bytes(SIZE), is_destination=True)

    def check(checkpoint: Checkpoint) -> None:
        log = destination.log
        flushed = max(index for index, (what, _, _) in enumerate(log) if what == "flush")
        safe = {
            at for what, start, length in log[:flushed] if what == "write" for at in range(start, start + length, MIB)
        }
        assert safe >= set(range(0, checkpoint.position_bytes, MIB))

    copy(source, destination, size_bytes=SIZE, on_checkpoint=check)


# --- what does not belong ---------------------------------------------------------------------


OTHER = EndMark(identity=("file", "1", "2", ""), version=(1, 2, 3))


def test_a_checkpoint_that_does_not_belong_is_refused(pair: Pair) -> None:
    checkpoint = stopped_at(0, pair)
    before = pair[1].read_bytes()
    source, segments = checkpoint.source, checkpoint.segments
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"size_bytes": SIZE + 1}, f"of a copy of {SIZE + 1} bytes, and this one is of {SIZE}"),
        ({"source": dataclasses.replace(OTHER, version=source.version)}, "another source"),
        ({"source": EndMark(identity=source.identity, version=(SIZE, 1, 1))}, "the source was written to since"),
        ({"source": EndMark(identity=source.identity, version=None)}, "the source was written to since"),
        ({"source": EndMark(identity=None, version=source.version)}, "another source"),
        ({"destination": OTHER}, "another destination"),
        ({"destination": EndMark(identity=None, version=None)}, "another destination"),
        ({"digest_algorithm": "md5"}, "digests of another kind"),
        ({"position_bytes": SEGMENT + 1}, "none at which a copy can go on"),
        ({"position_bytes": -SEGMENT}, "none at which a copy can go on"),
        ({"position_bytes": 5 * SEGMENT}, "none at which a copy can go on"),
        ({"segments": segments + bytes(32)}, "not as many digests"),
        ({"segments": segments[:-1]}, "not as many digests"),
        ({"segments": b""}, "not as many digests"),
    ]
    for change, reason in wrong:
        with pytest.raises(errors.CheckpointMismatch) as raised:
            copy(*pair, size_bytes=SIZE, checkpoint=dataclasses.replace(checkpoint, **change))
        assert reason in raised.value.message
        assert pair[1].read_bytes() == before


def test_ends_that_are_others_now(pair: Pair, tmp_path: Path) -> None:
    checkpoint = stopped_at(0, pair)
    twin = tmp_path / "twin"
    twin.write_bytes(pair[0].read_bytes())
    with pytest.raises(errors.CheckpointMismatch, match="another source"):
        copy(twin, pair[1], size_bytes=SIZE, checkpoint=checkpoint)
    twin.write_bytes(pair[1].read_bytes())
    with pytest.raises(errors.CheckpointMismatch, match="another destination"):
        copy(pair[0], twin, size_bytes=SIZE, checkpoint=checkpoint)
    # By another name, or by a handle, they are the same.
    twin.unlink()
    twin.symlink_to(pair[0])
    with pair[1].open("r+b") as handle:
        result = copy(twin, handle, size_bytes=SIZE, checkpoint=checkpoint)
    assert result.bytes_resumed == checkpoint.position_bytes
    with pair[0].open("r+b") as file:
        file.write(b"x")
    with pytest.raises(errors.CheckpointMismatch, match="written to since"):
        copy(*pair, size_bytes=SIZE, checkpoint=checkpoint)


def test_a_handle_with_nothing_behind_it_cannot_go_on(pair: Pair) -> None:
    source = Handle(pattern(SIZE))
    checkpoint = stopped_at(0, (source, pair[1]))
    assert checkpoint.source == EndMark(identity=None, version=None)
    with pytest.raises(errors.CheckpointMismatch, match="another source"):
        copy(source, pair[1], size_bytes=SIZE, checkpoint=checkpoint)  # type: ignore[arg-type]


def test_a_source_of_which_nobody_tells_is_read_again_to_be_sure(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    let_open(monkeypatch)
    source: Any = MemoryEnd("source", pattern(SIZE))
    source.stamp = None
    checkpoint = stopped_at(1, (source, pair[1]))
    source.log.clear()
    result = copy(source, pair[1], size_bytes=SIZE, checkpoint=checkpoint)
    assert result.bytes_resumed == checkpoint.position_bytes
    assert {offset for offset, _ in source.of("read")} >= set(range(0, checkpoint.position_bytes, MIB))
    source.content[5] ^= 1
    for verify, error in ((Verify.DIGEST, errors.SourceChanged), (Verify.COMPARE, errors.VerificationFailed)):
        with pytest.raises(error):
            copy(source, pair[1], size_bytes=SIZE, options=CopyOptions(verify=verify), checkpoint=checkpoint)


def stamped(pair: Pair, monkeypatch: pytest.MonkeyPatch, stamp: tuple[int, ...] | None) -> tuple[Any, Checkpoint]:
    let_open(monkeypatch)
    source: Any = MemoryEnd("source", pattern(SIZE))
    source.stamp = stamp
    return source, stopped_at(1, (source, pair[1]))


@pytest.mark.parametrize("stamp", [(0, 0, 0, 0, 42, 7), (0, 0, 0, 0, 41, 8), (0, 1, 0, 0, 41, 7)])
def test_a_device_that_was_detached_is_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, stamp: tuple[int, ...]
) -> None:
    source, checkpoint = stamped(pair, monkeypatch, (0, 0, 0, 0, 41, 7))
    source.stamp = stamp
    with pytest.raises(errors.CheckpointMismatch, match="or was detached, or the machine restarted: nobody can tell"):
        copy(source, pair[1], size_bytes=SIZE, checkpoint=checkpoint)
    source.stamp = (0, 0, 0, 0, 41, 7)
    assert copy(source, pair[1], size_bytes=SIZE, checkpoint=checkpoint).bytes_resumed == checkpoint.position_bytes


@pytest.mark.parametrize("stamp", [(0, 0, 0, 0), None])
def test_a_source_that_may_have_been_written_to_unseen_is_copied_afresh_when_nothing_is_proved(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, stamp: tuple[int, ...] | None
) -> None:
    source, checkpoint = stamped(pair, monkeypatch, stamp)
    source.content[5] ^= 1
    result = copy(source, pair[1], size_bytes=SIZE, options=CopyOptions(verify=Verify.NONE), checkpoint=checkpoint)
    assert result.bytes_resumed == 0
    assert pair[1].read_bytes()[:SIZE] == source.content


@pytest.mark.parametrize("stamp", [(0, 0, 0, 0), None])
def test_a_source_that_may_have_been_written_to_unseen_is_read_again_to_prove_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, stamp: tuple[int, ...] | None
) -> None:
    source, checkpoint = stamped(pair, monkeypatch, stamp)
    assert copy(source, pair[1], size_bytes=SIZE, checkpoint=checkpoint).bytes_resumed == checkpoint.position_bytes
    source.content[5] ^= 1
    with pytest.raises(errors.SourceChanged):
        copy(source, pair[1], size_bytes=SIZE, checkpoint=checkpoint)


def test_a_destination_that_may_be_another_device_by_now_is_refused(pair: Pair) -> None:
    checkpoint = stopped_at(0, pair)
    mark = EndMark(identity=("device", "number", "7:0", "", ""), version=None)
    run = Run(ChunkedEngine(), "source", SIZE, checkpoint.source, mark, CopyOptions())
    with pytest.raises(errors.CheckpointMismatch, match="nobody can tell whether the destination is still"):
        run.begin(dataclasses.replace(checkpoint, destination=mark))


# --- with and without digests -----------------------------------------------------------------


def test_without_digests_nothing_could_be_proved_so_that_all_is_copied(pair: Pair) -> None:
    checkpoint = stopped_at(1, pair, options=CopyOptions(verify=Verify.NONE))
    assert (checkpoint.digest_algorithm, checkpoint.segments) == ("", b"")
    seen: list[Checkpoint] = []
    result = copy(*pair, size_bytes=SIZE, checkpoint=checkpoint, on_checkpoint=seen.append)
    assert result.bytes_resumed == 0
    assert seen[0].generation == 2
    assert pair[1].read_bytes()[:SIZE] == pair[0].read_bytes()


@pytest.mark.usefixtures("_each_segment")
@pytest.mark.parametrize("first", [Verify.NONE, Verify.DIGEST])
@pytest.mark.parametrize("junk", [b"", bytes(32 * 9)])
def test_without_verification_it_goes_on_from_either(pair: Pair, first: Verify, junk: bytes) -> None:
    checkpoint = stopped_at(1, pair, options=CopyOptions(verify=first))
    if first is Verify.NONE:
        checkpoint = dataclasses.replace(checkpoint, segments=junk)
    options = CopyOptions(verify=Verify.NONE)
    later = stopped_at(0, pair, options=options, checkpoint=checkpoint)
    assert checkpoint.position_bytes < later.position_bytes
    assert later.digest_algorithm == ""
    result = copy(*pair, size_bytes=SIZE, options=options, checkpoint=later)
    assert pair[1].read_bytes()[:SIZE] == pair[0].read_bytes()
    assert result.bytes_resumed == later.position_bytes
    # What has no digests is not passed off as proved.
    with pytest.raises(errors.CheckpointMismatch, match="not as many"):
        copy(*pair, size_bytes=SIZE, checkpoint=dataclasses.replace(later, digest_algorithm=ALGORITHM))


def test_a_hole_that_takes_long_does_not_bring_it_to_a_standstill() -> None:
    """The flush that a slow hole asks for makes nothing safe of what was begun behind it meanwhile."""

    class Late(Scripted):
        """Answers all but one write, then the hole, then that write, and a flush last of all."""

        def wait(self, timeout_seconds: float) -> list[Request]:
            if not self.under_way:
                return []
            first = min(self.under_way, key=self._turn)
            self.under_way.remove(first)
            self.answer(first)
            return [first]

        @staticmethod
        def _turn(request: Request) -> tuple[int, int]:
            if request.kind is Kind.FLUSH:
                return 9, 0
            if request.kind is Kind.ZERO:
                return 2, 0
            late = request.kind is Kind.WRITE and request.offset == 12 * MIB
            return (3 if late else 1), request.offset

    def answer(request: Request) -> None:
        whole(request)
        if request.kind is Kind.READ:
            arena.view[request.at : request.at + request.length] = b"x" * request.length

    source = MemoryEnd("source", bytes(SIZE), extents=[(SEGMENT, SIZE)])
    destination = MemoryEnd("destination", bytes(SIZE), zeroing=100, is_destination=True)
    arena, control, seen = Arena(32), Control(), []
    job: Any = CopyJob(
        source=source,  # type: ignore[arg-type]
        destination=destination,  # type: ignore[arg-type]
        size_bytes=SIZE,
        options=CopyOptions(),
        control=control,
        advance=lambda *_: None,
        on_process=lambda _: None,
        finished=lambda position, _: seen.append(position),
    )
    flow = copying.CopyFlow(job, source, destination, arena, digest=TreeDigest(SIZE), hashes=False)
    queue = Late(answer)
    pump = Pump(queue, arena, control, requests_in_flight=64, bytes_in_flight=64 * MIB)
    pump.run(tasks(source.extents(SIZE), 0, SIZE), flow)
    assert flow.bytes_done == SIZE
    assert seen[0] == SEGMENT
    assert seen == sorted(seen)
