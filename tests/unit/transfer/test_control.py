from __future__ import annotations

import threading
import time

import pytest

from tests.unit.waiting import LONG, SOON
from volmig import errors
from volmig.transfer import Control
from volmig.transfer.control import Pacer

MIB = 1024 * 1024


def test_pacer_asks_for_exactly_the_time_that_the_bytes_cost() -> None:
    pacer = Pacer(10 * MIB, 0.0)
    pacer.charge(5 * MIB, 0.0)
    assert pacer.delay_seconds(0.0) == pytest.approx(0.5)
    assert pacer.delay_seconds(0.4) == pytest.approx(0.1)
    assert pacer.delay_seconds(0.6) == 0.0


def test_pacer_counts_the_time_of_the_work_itself() -> None:
    pacer = Pacer(10 * MIB, 0.0)
    pacer.charge(5 * MIB, 0.3)
    assert pacer.delay_seconds(0.3) == pytest.approx(0.2)


def test_idle_time_earns_no_burst() -> None:
    pacer = Pacer(10 * MIB, 0.0)
    pacer.charge(MIB, 100.0)
    pacer.charge(10 * MIB, 100.0)
    assert pacer.delay_seconds(100.0) == pytest.approx(0.95)


def test_pause_earns_no_burst() -> None:
    pacer = Pacer(10 * MIB, 0.0)
    pacer.rest(1000.0)
    pacer.charge(10 * MIB, 1000.0)
    assert pacer.delay_seconds(1000.0) == pytest.approx(0.95)


def test_a_new_limit_applies_to_what_is_owed() -> None:
    pacer = Pacer(1, 0.0)
    pacer.charge(MIB, 0.0)
    assert pacer.delay_seconds(0.0) > 1_000_000
    pacer.set_limit(MIB, 0.0)
    assert pacer.delay_seconds(0.0) == pytest.approx(1.0)
    pacer.set_limit(0, 0.0)
    assert pacer.delay_seconds(0.0) == 0.0
    pacer.set_limit(MIB, 0.0)
    assert pacer.delay_seconds(0.0) == 0.0, "lifting the limit forgives what was owed"


def test_no_limit_owes_nothing() -> None:
    pacer = Pacer(0, 0.0)
    pacer.charge(1 << 50, 0.0)
    assert pacer.delay_seconds(0.0) == 0.0
    pacer.set_limit(MIB, 0.0)
    assert pacer.delay_seconds(0.0) == 0.0


def test_average_over_many_requests_is_the_limit() -> None:
    pacer = Pacer(MIB, 0.0)
    now = 0.0
    for _ in range(100):
        now += 0.01  # the work
        pacer.charge(100_000, now)
        now += pacer.delay_seconds(now) + 0.003  # waking up late
    assert 100 * 100_000 / now == pytest.approx(MIB, rel=0.02)


def test_cancel_ends_a_wait_at_once_and_says_how_far_it_was() -> None:
    control = Control(limit_bytes=1)
    control.note(300, 1000)
    raised: list[tuple[float, errors.TransferCancelled]] = []

    def wait() -> None:
        try:
            control.throttle(1000)
        except errors.TransferCancelled as exc:
            raised.append((time.monotonic(), exc))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    cancelled_at = time.monotonic()
    control.cancel()
    thread.join(LONG)
    assert raised[0][0] - cancelled_at < SOON
    assert raised[0][1].fields == {"bytes_done": 300, "bytes_total": 1000}
    assert control.cancelled


@pytest.mark.parametrize("way", ["resume", "cancel"])
def test_pause_holds_until(way: str) -> None:
    control = Control()
    control.pause()
    assert control.paused
    ended = threading.Event()

    def wait() -> None:
        try:
            control.check()
        except errors.TransferCancelled:
            assert way == "cancel"
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not ended.wait(0.15)
    getattr(control, way)()
    assert ended.wait(LONG)
    thread.join(LONG)


def test_limit_changes_while_waiting() -> None:
    control = Control(limit_bytes=10)
    timer = threading.Timer(0.05, setattr, (control, "limit_bytes", 0))
    timer.start()
    begun = time.monotonic()
    control.throttle(1000)
    assert time.monotonic() - begun < SOON
    timer.join()


def test_waits_by_the_clock_that_it_was_given() -> None:
    now = [0.0]
    control = Control(limit_bytes=1, clock=lambda: now[0])
    timer = threading.Timer(0.05, now.__setitem__, (0, 3600.0))
    timer.start()
    control.throttle(3600)
    timer.join()
    assert now[0] == 3600.0


def test_requests_shrink_under_a_limit() -> None:
    control = Control()
    assert control.request_bytes(MIB) == MIB
    control.limit_bytes = MIB
    assert control.request_bytes(MIB) <= MIB // 10
    control.limit_bytes = 1
    assert control.request_bytes(MIB) == 4096
    assert control.request_bytes(100) == 100


def test_negative_limit_is_refused() -> None:
    with pytest.raises(errors.RequestInvalid):
        Control(limit_bytes=-1)
    control = Control(limit_bytes=5)
    with pytest.raises(errors.RequestInvalid):
        control.limit_bytes = -1
    assert control.limit_bytes == 5
