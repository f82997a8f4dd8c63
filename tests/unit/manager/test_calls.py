"""A driver's call can neither hang volmig nor surprise it."""

from __future__ import annotations

import asyncio
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any, NoReturn

import ddt
import pytest

from tests.unit.waiting import until
from volmig import errors
from volmig.manager.calls import HangingCalls, call_with_timeout


def call(function: Callable[[], Any], *, timeout_seconds: float = 10.0, **options: Any) -> Any:
    return call_with_timeout(
        function, backend="san", method="create_volume", timeout_seconds=timeout_seconds, **options
    )


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def function(*_: object) -> NoReturn:
        raise error

    return function


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("volmig-san-")]


def test_what_it_returns_is_returned() -> None:
    assert call(lambda: {"a": 1}) == {"a": 1}
    assert call(lambda: None) is None


def test_it_runs_in_a_thread_that_keeps_no_process_alive() -> None:
    thread = call(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert thread.name == "volmig-san-create_volume"


@ddt.ddt
class DriversErrors(unittest.TestCase):
    @ddt.data(
        RuntimeError("no licence"),
        OSError(5, "Input/output error"),
        KeyError("volume"),
        StopIteration(),
        MemoryError(),
        TimeoutError("array"),
        SystemExit("no licence"),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
    )
    def test_an_exception_of_its_own_becomes_driver_failed(self, error: BaseException) -> None:
        with pytest.raises(errors.DriverFailed) as caught:
            call(raising(error))
        assert caught.value.__cause__ is error
        assert type(error).__name__ in caught.value.message
        assert "'san'" in caught.value.message
        assert "create_volume" in caught.value.message

    @ddt.data(
        errors.DiskFull(path="pool", offset=7),
        errors.BackendDown(backend="san", reason="no power"),
        errors.VolumeObjectMissing(volume="v", location="there"),
        errors.LocationDoubtful(volume="v", source="a", destination="b", reason="both"),
    )
    def test_an_error_of_volmig_is_passed_on(self, error: errors.VolmigError) -> None:
        with pytest.raises(type(error)) as caught:
            call(raising(error))
        assert caught.value is error

    @ddt.data(
        errors.LeaseLost(migration="m", owner="o", epoch=1),
        errors.MigrationCancelled(migration="m", requested_by="driver"),
        errors.TransferCancelled(bytes_done=1, bytes_total=2),
    )
    def test_a_driver_cannot_speak_for_the_core(self, error: errors.VolmigError) -> None:
        """These steer a migration: a lease that is not lost would leave it lying, with the volume locked."""
        with pytest.raises(errors.DriverFailed) as caught:
            call(raising(error))
        assert caught.value.__cause__ is error

    def test_what_is_not_implemented_is_passed_on(self) -> None:
        with pytest.raises(NotImplementedError):
            call(raising(NotImplementedError()))


def test_a_call_that_hangs_is_given_up_in_time() -> None:
    release = threading.Event()
    started = time.monotonic()
    with pytest.raises(errors.DriverTimeout) as caught:
        call(lambda: release.wait(30), timeout_seconds=0.05)
    assert time.monotonic() - started < 5
    assert caught.value.fields == {"backend": "san", "method": "create_volume", "seconds": "0.05"}
    assert "driver_call_timeouts in [san]" in caught.value.hint
    (thread,) = own_threads()
    release.set()
    thread.join(10)
    assert not own_threads()


def test_a_late_success_is_undone_with_its_result() -> None:
    release, undone = threading.Event(), threading.Event()
    results: list[str] = []

    def function() -> str:
        release.wait(30)
        return "made"

    def undo(result: str) -> None:
        results.append(result)
        undone.set()

    with pytest.raises(errors.DriverTimeout):
        call(function, timeout_seconds=0.02, when_late=undo)
    assert results == []
    release.set()
    assert undone.wait(10)
    assert results == ["made"]


@pytest.mark.parametrize("error", [RuntimeError("too late"), SystemExit()])
def test_a_late_failure_needs_no_undoing(error: BaseException) -> None:
    release = threading.Event()
    results: list[object] = []

    def function() -> None:
        release.wait(30)
        raise error

    with pytest.raises(errors.DriverTimeout):
        call(function, timeout_seconds=0.02, when_late=results.append)
    (thread,) = own_threads()
    release.set()
    thread.join(10)
    assert results == []


def test_undoing_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    with pytest.raises(errors.DriverTimeout):
        call(lambda: release.wait(30), timeout_seconds=0.02, when_late=lambda _: raising(OSError("gone"))())
    (thread,) = own_threads()
    release.set()
    thread.join(10)
    assert "undoing" in caplog.text
    assert "gone" in caplog.text


def test_a_call_in_time_is_never_undone() -> None:
    undone: list[object] = []
    for _ in range(50):
        call(lambda: None, when_late=undone.append)
    assert undone == []


@pytest.mark.parametrize("number", range(40))
def test_at_the_edge_of_its_time_a_call_is_either_used_or_undone(number: int) -> None:
    undone = threading.Event()
    timeout_seconds = 0.0015 + number % 5 / 4000
    try:
        call(lambda: time.sleep(0.002), timeout_seconds=timeout_seconds, when_late=lambda _: undone.set())
    except errors.DriverTimeout:
        assert undone.wait(10)
    else:
        assert not undone.is_set()


# --- calls that hang --------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["success", "failure", "failing undo"])
def test_a_hanging_call_is_counted_until_it_and_its_undoing_have_ended(outcome: str) -> None:
    hanging = HangingCalls("san")
    release, undo_may_end, undoing = threading.Event(), threading.Event(), threading.Event()

    def function() -> None:
        release.wait(30)
        if outcome == "failure":
            raise OSError("gone")

    def undo(_: object) -> None:
        undoing.set()
        undo_may_end.wait(30)
        if outcome == "failing undo":
            raise OSError("gone")

    with pytest.raises(errors.DriverTimeout):
        call(function, timeout_seconds=0.02, when_late=undo, hanging=hanging)
    assert (hanging.by_method(), hanging.total) == ({"create_volume": 1}, 1)
    release.set()
    if outcome != "failure":
        assert undoing.wait(10)
        assert hanging.total == 1
    undo_may_end.set()
    until(lambda: hanging.total == 0)
    assert hanging.by_method() == {}


def test_calls_in_time_are_not_counted() -> None:
    hanging = HangingCalls("san")
    call(lambda: None, hanging=hanging)
    with pytest.raises(errors.DriverFailed):
        call(raising(OSError("gone")), hanging=hanging)
    assert hanging.total == 0


def test_too_many_hanging_calls_are_enough() -> None:
    hanging = HangingCalls("san", most=3)
    release = threading.Event()
    for _ in range(3):
        with pytest.raises(errors.DriverTimeout):
            call(lambda: release.wait(30), timeout_seconds=0.01, hanging=hanging)
    made: list[int] = []
    with pytest.raises(errors.BackendDown, match=r"3 calls of its driver hang \(3 of create_volume\)"):
        call(lambda: made.append(1), hanging=hanging)
    assert made == []
    release.set()
    until(lambda: hanging.total == 0)
    call(lambda: made.append(1), hanging=hanging)
    assert made == [1]


@pytest.mark.parametrize("number", range(20))
def test_the_count_is_right_for_calls_that_end_at_the_edge_of_their_time(number: int) -> None:
    hanging = HangingCalls("san")
    try:
        call(lambda: time.sleep(0.002), timeout_seconds=0.0015 + number % 5 / 4000, hanging=hanging)
    except errors.DriverTimeout:
        until(lambda: hanging.total == 0)
    assert hanging.total == 0


def test_a_call_whose_caller_is_interrupted_is_undone_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = HangingCalls("san")
    release, undone = threading.Event(), threading.Event()
    waiting = threading.current_thread()
    real = threading.Event.wait

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is waiting and timeout == 7.5:
            raise KeyboardInterrupt
        return real(self, timeout)

    monkeypatch.setattr(threading.Event, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        call(lambda: real(release, 30), timeout_seconds=7.5, when_late=lambda _: undone.set(), hanging=hanging)
    assert hanging.total == 1
    release.set()
    assert undone.wait(10)
    until(lambda: hanging.total == 0)


def test_a_thread_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", raising(RuntimeError("can't start new thread")))
    with pytest.raises(errors.ResourcesExhausted, match="thread for create_volume of backend 'san'"):
        call(lambda: None)
