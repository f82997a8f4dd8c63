"""What fails for the moment is tried again, within bounds; all else is not."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volmig import errors
from volmig.manager.policies import Repetition
from volmig.manager.retries import LONGEST_PAUSE_SECONDS, Retries

BUSY = errors.StorageBusy(backend="the array", reason="it rebuilds", hint="Wait for the rebuild.")
PASSING = [errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT]


class Call:
    """Raises what it is given, one after the other, and then succeeds."""

    def __init__(self, *outcomes: BaseException) -> None:
        self.outcomes = list(outcomes)
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self.outcomes:
            raise self.outcomes.pop(0)
        return "done"


def run(call: Callable[[], Any], repetition: Repetition = Repetition.RETRY, *, count: int = 3, **options: Any) -> Any:
    pauses: list[float] = options.setdefault("pauses", [])
    retries = Retries(count=count, delay_seconds=0.5, sleep=pauses.append, random=lambda: 0.0)
    return retries.run(call, backend="san", method="create_volume", repetition=repetition)


def failed_with(cause: OSError) -> errors.DriverFailed:
    error = errors.DriverFailed(backend="san", method="create_volume", reason=str(cause))
    error.__cause__ = cause
    return error


def test_success_is_not_repeated() -> None:
    call, pauses = Call(), list[float]()
    assert run(call, pauses=pauses) == "done"
    assert (call.count, pauses) == (1, [])


@pytest.mark.parametrize("repetition", [Repetition.RETRY, Repetition.ASK])
def test_busy_is_tried_again_until_it_works(repetition: Repetition) -> None:
    call, pauses = Call(BUSY, BUSY, BUSY), list[float]()
    assert run(call, repetition, pauses=pauses) == "done"
    assert pauses == [0.5, 1.0, 2.0]


def test_busy_for_too_long_says_how_often_it_was_tried() -> None:
    call = Call(*[BUSY] * 9)
    with pytest.raises(errors.StorageBusy) as caught:
        run(call, count=3)
    assert call.count == 4
    assert caught.value.message == "Backend 'san' is busy: it rebuilds (create_volume was tried 4 times)."
    assert caught.value.hint == "Wait for the rebuild."
    assert caught.value.__cause__ is BUSY


@pytest.mark.parametrize("number", PASSING)
def test_passing_errors_of_the_system_are_tried_again(number: int) -> None:
    cause = OSError(number, "text")
    call = Call(failed_with(cause), failed_with(cause))
    assert run(call) == "done"
    assert call.count == 3
    with pytest.raises(errors.DriverFailed, match="was tried 3 times") as caught:
        run(Call(*[failed_with(cause) for _ in range(5)]), count=2)
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("number", PASSING)
@pytest.mark.parametrize("repetition", [Repetition.ASK, Repetition.FAIL])
def test_passing_errors_leave_an_unknown_outcome_elsewhere(number: int, repetition: Repetition) -> None:
    error = failed_with(OSError(number, "text"))
    call = Call(error)
    with pytest.raises(errors.DriverFailed) as caught:
        run(call, repetition)
    assert (call.count, caught.value) == (1, error)


def test_what_is_made_once_is_made_once() -> None:
    call = Call(BUSY)
    with pytest.raises(errors.StorageBusy) as caught:
        run(call, Repetition.FAIL)
    assert (call.count, caught.value) == (1, BUSY)


@pytest.mark.parametrize(
    "error",
    [
        errors.DriverTimeout(backend="san", method="create_volume", seconds="1"),
        errors.BackendDown(backend="san", reason="no power"),
        errors.DiskFull(path="p", offset=0),
        failed_with(OSError(errno.EIO, "text")),
        failed_with(OSError(errno.ENOSPC, "text")),
        failed_with(TimeoutError("without a number")),
        errors.DriverFailed(backend="san", method="create_volume", reason="without a cause"),
        NotImplementedError(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("repetition", list(Repetition))
def test_all_else_is_told_at_once(error: BaseException, repetition: Repetition) -> None:
    call, pauses = Call(error), list[float]()
    with pytest.raises(type(error)) as caught:
        run(call, repetition, pauses=pauses)
    assert caught.value is error
    assert (call.count, pauses) == (1, [])


def test_another_error_ends_the_repetitions() -> None:
    full = errors.DiskFull(path="p", offset=0)
    call = Call(BUSY, full, BUSY)
    with pytest.raises(errors.DiskFull) as caught:
        run(call)
    assert (call.count, caught.value) == (2, full)


def test_without_retries_the_error_is_as_it_was() -> None:
    with pytest.raises(errors.StorageBusy) as caught:
        run(Call(BUSY), count=0)
    assert caught.value is BUSY
    assert caught.value.__cause__ is None


def test_each_repetition_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run(Call(BUSY, BUSY))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    first, second = (record.getMessage() for record in caplog.records)
    assert "san" in first
    assert "attempt 1 of 4 of create_volume" in first
    assert "it rebuilds" in first
    assert "attempt 2 of 4" in second


@given(delay=st.floats(0, 300), random=st.floats(0, 1), repetition=st.integers(1, 1000))
def test_pauses_are_bounded(delay: float, random: float, repetition: int) -> None:
    retries = Retries(count=1000, delay_seconds=delay, random=lambda: random)
    pause = retries.pause_before(repetition)
    assert 0 <= pause <= max(delay, LONGEST_PAUSE_SECONDS)
    full = min(delay * 2.0 ** min(repetition - 1, 64), max(delay, LONGEST_PAUSE_SECONDS))
    assert pause >= 0.75 * full
