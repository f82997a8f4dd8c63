"""A backend is set up once, and a set-up that hangs does not hold up those who wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.unit.manager.drivers import a_volume, small_backend
from tests.unit.waiting import until
from volmig import errors
from volmig.manager.setup import SetUp


class Work:
    """A set-up that waits to be let go, and raises what it is given, one after the other."""

    def __init__(self, *outcomes: BaseException) -> None:
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.outcomes = list(outcomes)
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        self.started.set()
        self.go_on.wait(10)
        if self.outcomes:
            raise self.outcomes.pop(0)


def test_those_who_wait_get_the_success_of_another() -> None:
    work = Work()
    setup = SetUp(work, backend="san")
    with ThreadPoolExecutor(max_workers=5) as workers:
        calls = [workers.submit(setup.require, 10.0) for _ in range(5)]
        work.started.wait(10)
        work.go_on.set()
        for call in calls:
            call.result()
    setup.require(0.0)
    assert work.count == 1


def test_those_who_wait_get_the_failure_of_another() -> None:
    work = Work(errors.BackendDown(backend="san", reason="no cable"))
    setup = SetUp(work, backend="san")
    waiting = threading.Barrier(4)

    def wait() -> None:
        waiting.wait(10)
        setup.require(10.0)

    with ThreadPoolExecutor(max_workers=4) as workers:
        first = workers.submit(setup.require, 10.0)
        work.started.wait(10)
        calls = [workers.submit(wait) for _ in range(3)]
        waiting.wait(10)
        # Until they wait for the event of the attempt.
        until(lambda: _waiters(setup) == 3)
        work.go_on.set()
        told = [call.exception(10) for call in (first, *calls)]
    assert work.count == 1
    assert all(isinstance(error, errors.BackendDown) and "no cable" in error.message for error in told)
    assert len({id(error) for error in told}) == 4, "threads share an exception, and with it their traces"


def _waiters(setup: SetUp) -> int:
    attempt: Any = setup._attempt
    return 0 if attempt is None else len(attempt.ended._cond._waiters)


def test_who_waits_too_long_is_told_so() -> None:
    work = Work()
    setup = SetUp(work, backend="san")
    with ThreadPoolExecutor(max_workers=1) as workers:
        first = workers.submit(setup.require, 10.0)
        work.started.wait(10)
        started = time.monotonic()
        with pytest.raises(errors.BackendDown, match=r"setting it up for more than 0\.1 seconds"):
            setup.require(0.1)
        assert time.monotonic() - started < 5
        work.go_on.set()
        first.result()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_an_attempt_that_was_interrupted_is_made_by_who_waited(error: BaseException) -> None:
    work = Work(error)
    setup = SetUp(work, backend="san")
    with ThreadPoolExecutor(max_workers=2) as workers:
        first = workers.submit(setup.require, 10.0)
        work.started.wait(10)
        second = workers.submit(setup.require, 10.0)
        until(lambda: _waiters(setup) == 1)
        work.go_on.set()
        assert first.exception(10) is error
        second.result(10)
    assert work.count == 2


def test_a_failure_is_tried_again_by_the_next() -> None:
    work = Work(errors.BackendDown(backend="san", reason="no cable"))
    work.go_on.set()
    setup = SetUp(work, backend="san")
    with pytest.raises(errors.BackendDown):
        setup.require(1.0)
    setup.require(1.0)
    assert work.count == 2


# --- with a driver ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["do_setup", "check_for_setup_error"])
def test_a_hanging_set_up_holds_up_nobody_for_a_multiple_of_its_time(method: str) -> None:
    seconds = 0.3
    backend, driver = small_backend(timeout_seconds=seconds)
    release = threading.Event()
    driver.answers[method] = lambda: release.wait(30) and None
    calls: list[Callable[[], Any]] = [backend.pools, lambda: backend.volume_exists(a_volume())]

    def timed(number: int) -> tuple[float, BaseException | None]:
        started = time.monotonic()
        try:
            calls[number % 2]()
        except errors.VolmigError as error:
            return time.monotonic() - started, error
        return time.monotonic() - started, None

    with ThreadPoolExecutor(max_workers=12) as workers:
        outcomes = list(workers.map(timed, range(12)))
        assert all(isinstance(error, errors.BackendDown) for _, error in outcomes)
        # One after the other they would take 12 times as long.
        assert max(took for took, _ in outcomes) < 8 * seconds
        assert driver.calls.count(method) == 1
        # While it still hangs, those who come later are told at once, and no second one is begun beside it.
        took, error = timed(0)
        assert took < seconds
        assert isinstance(error, errors.BackendDown)
        assert f"its {method} did not end in its time" in error.message
        assert driver.calls.count(method) == 1
        assert backend.info().calls_hanging == 1
    driver.answers.clear()
    release.set()
    until(lambda: backend.hanging_calls() == {})
    assert backend.volume_exists(a_volume())
