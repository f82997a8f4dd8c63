from __future__ import annotations

import pytest

from volmig.transfer import CopyStage, TransferProgress
from volmig.transfer.progress import StageMeter


class Recorder:
    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[TransferProgress] = []

    def meter(self, total: int) -> StageMeter:
        return StageMeter(CopyStage.COPY, total, self.events.append, clock=lambda: self.now)


def test_first_and_last_event_come_whatever_happens() -> None:
    recorder = Recorder()
    meter = recorder.meter(100)
    meter.advance(100, 0)
    meter.finish()
    assert [event.bytes_done for event in recorder.events] == [0, 100]
    assert recorder.events[0].eta_seconds is None
    assert recorder.events[-1].eta_seconds == 0.0


def test_at_most_five_events_a_second() -> None:
    recorder = Recorder()
    meter = recorder.meter(10_000)
    for _ in range(10_000):
        recorder.now += 0.001
        meter.advance(1, 0)
    assert 45 <= len(recorder.events) <= 51


def test_rate_is_that_of_the_last_seconds() -> None:
    recorder = Recorder()
    meter = recorder.meter(1_000_000)
    for rate in (1000, 50):
        for _ in range(100):
            recorder.now += 0.1
            meter.advance(rate // 10, 0)
    assert recorder.events[-1].rate_bytes == pytest.approx(50, rel=0.01)


def test_time_to_the_end_is_judged_by_data_and_not_by_holes() -> None:
    recorder = Recorder()
    meter = recorder.meter(1000)
    meter.expect(200)
    recorder.now = 1.0
    meter.advance(500, 400)
    assert recorder.events[-1].bytes_skipped == 400
    assert recorder.events[-1].rate_bytes == pytest.approx(500)
    # 100 bytes of data took a second and 100 are left, though 500 bytes of volume are.
    assert recorder.events[-1].eta_seconds == pytest.approx(1.0)


def test_nothing_moved_yet_gives_no_time() -> None:
    recorder = Recorder()
    meter = recorder.meter(1000)
    recorder.now = 1.0
    meter.advance(500, 500)
    assert recorder.events[-1].eta_seconds is None


def test_what_the_callback_raises_comes_out() -> None:
    def report(event: TransferProgress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        StageMeter(CopyStage.COPY, 1, report)
