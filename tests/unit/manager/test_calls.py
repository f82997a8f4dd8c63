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

from volmig import errors
from volmig.manager.calls import call_with_timeout


def call(function: Callable[[], Any], *, timeout_seconds: float = 10.0, **options: Any) -> Any:
    return call_with_timeout(
        function, backend="san", method="create_volume", timeout_seconds=timeout_seconds, **options
    )


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def function() -> NoReturn:
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
