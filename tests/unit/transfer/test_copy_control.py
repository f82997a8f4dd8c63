"""Cancelling, pausing and limiting a running copy, and what it reports."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import pytest

from tests.unit.waiting import LONG
from volmig import errors
from volmig.transfer import Control, CopyOptions, CopyStage, TransferProgress, Verify, copy

from .fakes import Handle, make_file, pattern

MIB = 1024 * 1024
pytestmark = pytest.mark.usefixtures("means")


def slow(seconds: float) -> Handle:
    """A destination whose every write takes a while."""

    def wait(position: int, data: bytes) -> bytes:
        time.sleep(seconds)
        return data

    return Handle(bytes(64 * MIB), on_write=wait)


def test_cancel_ends_a_running_copy_soon(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 64 * MIB, [(0, 64 * MIB)])
    destination, control = slow(0.02), Control()
    at: list[int] = []

    def cancel_once_under_way() -> None:
        while destination.bytes_written < 2 * MIB:
            time.sleep(0.01)
        control.cancel()
        at.append(destination.bytes_written)

    thread = threading.Thread(target=cancel_once_under_way)
    thread.start()
    with pytest.raises(errors.TransferCancelled) as raised:
        copy(source, destination, size_bytes=64 * MIB, control=control)  # type: ignore[arg-type]
    thread.join()
    assert destination.bytes_written <= at[0] + MIB, "what was under way, and no other"
    assert 0 < raised.value.fields["bytes_done"] < raised.value.fields["bytes_total"] == 64 * MIB


@pytest.mark.parametrize("stage", [CopyStage.COPY, CopyStage.VERIFY])
@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_cancel_is_heard_in_each_stage(tmp_path: Path, stage: CopyStage, verify: Verify) -> None:
    source = make_file(tmp_path / "source", 4 * MIB, [(0, 4 * MIB)])
    control = Control()

    def report(event: TransferProgress) -> None:
        if event.stage is stage:
            control.cancel()

    with pytest.raises(errors.TransferCancelled) as raised:
        copy(
            source,
            Handle(bytes(4 * MIB)),  # type: ignore[arg-type]
            size_bytes=4 * MIB,
            options=CopyOptions(verify=verify),
            control=control,
            progress=report,
        )
    assert raised.value.fields["bytes_done"] == (0 if stage is CopyStage.COPY else 4 * MIB)


@pytest.mark.parametrize("engine", ["chunked", "dd"])
def test_a_copy_cancelled_beforehand_writes_nothing(tmp_path: Path, engine: str) -> None:
    source, destination = make_file(tmp_path / "source", MIB, [(0, MIB)]), tmp_path / "destination"
    destination.write_bytes(b"\xee" * MIB)
    control = Control()
    control.cancel()
    with pytest.raises(errors.TransferCancelled):
        copy(source, destination, size_bytes=MIB, options=CopyOptions(engine=engine), control=control)
    assert destination.read_bytes() == b"\xee" * MIB


def test_pause_stops_the_writes_until_resume(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 8 * MIB, [(0, 8 * MIB)])
    destination, control = slow(0.0), Control()
    control.pause()
    thread = threading.Thread(
        target=copy, args=(source, destination), kwargs={"size_bytes": 8 * MIB, "control": control}
    )
    thread.start()
    time.sleep(0.1)
    assert destination.bytes_written == 0
    control.resume()
    thread.join(LONG)
    assert destination.content[: 8 * MIB] == source.read_bytes()


@pytest.mark.parametrize("through", ["options", "control"])
def test_the_limit_is_kept(tmp_path: Path, through: str) -> None:
    source = make_file(tmp_path / "source", 4 * MIB, [(0, 4 * MIB)])
    destination = Handle(bytes(4 * MIB))
    rate = 8 * MIB
    options = CopyOptions(verify=Verify.NONE, bandwidth_limit_bytes=rate if through == "options" else 0)
    control = Control(limit_bytes=rate) if through == "control" else None
    begun = time.monotonic()
    result = copy(source, destination, size_bytes=4 * MIB, options=options, control=control)  # type: ignore[arg-type]
    # Half a second, less a tenth for the last request, which nobody waits for, and the credit of 50 ms.
    assert time.monotonic() - begun >= 0.34
    assert result.copy_seconds >= 0.34


def test_holes_are_not_held_up_by_the_limit(tmp_path: Path) -> None:
    source, destination = (
        make_file(tmp_path / "source", 1 << 40, [(1 << 39, (1 << 39) + 100)]),
        tmp_path / "destination",
    )
    make_file(destination, 1 << 40)
    begun = time.monotonic()
    options = CopyOptions(destination_is_zero=True, bandwidth_limit_bytes=MIB)
    result = copy(source, destination, size_bytes=1 << 40, options=options)
    assert time.monotonic() - begun < LONG, "and not two weeks"
    assert result.bytes_copied <= MIB


def test_stages_come_in_order_and_each_is_begun_and_ended(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 8 * MIB, [(0, 2 * MIB)])
    events: list[TransferProgress] = []
    destination = slow(0.05)
    copy(source, destination, size_bytes=8 * MIB, progress=events.append)  # type: ignore[arg-type]
    stages = [stage for stage, _ in itertools.groupby(event.stage for event in events)]
    assert stages == [CopyStage.COPY, CopyStage.FLUSH, CopyStage.VERIFY]
    for stage in stages:
        mine = [event for event in events if event.stage is stage]
        assert (mine[0].bytes_done, mine[-1].bytes_done) == (0, 8 * MIB)
        assert [event.bytes_done for event in mine] == sorted(event.bytes_done for event in mine)
        assert mine[-1].eta_seconds == 0.0
    assert len(events) > 6
    assert all(event.rate_bytes > 0 for event in events if event.stage is CopyStage.COPY and event.bytes_done)


def test_skipped_bytes_are_told(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 8 * MIB, [(0, MIB)])
    destination = make_file(tmp_path / "destination", 8 * MIB)
    events: list[TransferProgress] = []
    options = CopyOptions(destination_is_zero=True)
    copy(source, destination, size_bytes=8 * MIB, options=options, progress=events.append)
    copied = [event for event in events if event.stage is CopyStage.COPY][-1]
    assert copied.bytes_skipped == 7 * MIB
    assert source.read_bytes()[:MIB] == pattern(MIB)
