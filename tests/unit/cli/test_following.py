from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from volmig import errors
from volmig.cli import following
from volmig.cli.following import follow, is_paused, run_to_end
from volmig.cli.interrupts import Interrupted, Interrupts
from volmig.model import Phase

from .fabricated import Handle, Recorder, event

FOLLOW_WITH = "volmig migration show M"


def test_all_events_are_shown_to_the_end() -> None:
    script = [event(Phase.STARTING), event(stage="copy"), event(Phase.SUCCESS)]
    progress = Recorder()
    handle: Any = Handle(script)
    with Interrupts() as interrupts:
        run_to_end(handle, progress, interrupts, follow_with=FOLLOW_WITH)
    assert progress.events == script
    assert handle.cancelled == 0


def test_the_first_interrupt_cancels_and_waits_for_the_end() -> None:
    progress = Recorder()
    handle: Any = Handle([event(), Interrupted(), event(Phase.CANCELLING), event(Phase.CANCELLED)])
    with Interrupts() as interrupts:
        run_to_end(handle, progress, interrupts, follow_with=FOLLOW_WITH)
    assert handle.cancelled == 1
    assert [shown.migration.phase for shown in progress.events][-1] is Phase.CANCELLED
    assert "stays at its source" in progress.notes[0]


def test_the_second_interrupt_tells_how_to_follow_and_goes_on_waiting() -> None:
    progress = Recorder()
    handle: Any = Handle([Interrupted(), event(Phase.CANCELLING), Interrupted(), event(Phase.CANCELLED)])
    with Interrupts() as interrupts:
        run_to_end(handle, progress, interrupts, follow_with=FOLLOW_WITH)
    assert handle.cancelled == 1
    assert FOLLOW_WITH in progress.notes[1]
    assert progress.events[-1].migration.phase is Phase.CANCELLED


def test_the_third_interrupt_leaves_at_once(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Left(BaseException):
        pass

    def leave(status: int) -> None:
        raise Left(status)

    monkeypatch.setattr(following.os, "_exit", leave)
    handle: Any = Handle([Interrupted(), Interrupted(), Interrupted(), event(Phase.CANCELLED)])
    with Interrupts() as interrupts, pytest.raises(Left) as caught:
        run_to_end(handle, Recorder(), interrupts, follow_with=FOLLOW_WITH)
    assert caught.value.args == (130,)
    assert FOLLOW_WITH in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.CancelTooLate(migration="m", phase="completing"), "Too late"),
        (errors.StoreBusy(database="d", seconds=30), "Cancelling failed"),
    ],
)
def test_a_refused_cancel_is_told_and_the_end_awaited(error: errors.VolmigError, told: str) -> None:
    progress = Recorder()
    handle: Any = Handle([Interrupted(), event(Phase.SUCCESS)], cancel_error=error)
    with Interrupts() as interrupts:
        run_to_end(handle, progress, interrupts, follow_with=FOLLOW_WITH)
    assert told in progress.notes[0]
    assert progress.events[-1].migration.phase is Phase.SUCCESS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_held_back_until_somebody_waits(number: int) -> None:
    finished = []
    with Interrupts() as interrupts:
        os.kill(os.getpid(), number)
        finished.append("the call that was under way")
        with pytest.raises(Interrupted), interrupts.waiting():
            finished.append("not reached")
        with interrupts.waiting():
            finished.append("the signal counts once")
    assert finished == ["the call that was under way", "the signal counts once"]


def test_a_signal_while_waiting_raises_there() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted), interrupts.waiting():
            os.kill(os.getpid(), signal.SIGINT)
        interrupts.check()


def test_a_held_back_signal_is_found_by_a_check() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            interrupts.check()
        interrupts.check()


def test_handlers_are_put_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.getsignal(signal.SIGINT)
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            assert signal.getsignal(signal.SIGINT) != before
            os.kill(os.getpid(), signal.SIGHUP)
            interrupts.check()
        assert signal.getsignal(signal.SIGINT) is before
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


def test_one_that_somebody_pauses_is_waited_for_and_that_is_said_once_each_time() -> None:
    paused = event(Phase.PAUSED, pause_requested_by="eve")
    script = [event(stage="copy"), paused, paused, event(Phase.QUEUED), event(), paused, event(Phase.SUCCESS)]
    progress = Recorder()
    handle: Any = Handle(script)
    with Interrupts() as interrupts:
        run_to_end(handle, progress, interrupts, follow_with=FOLLOW_WITH, resume_with="volmig migration resume M")
    assert progress.events == script
    assert progress.notes == ["Paused, as eve asked. It goes on with: volmig migration resume M"] * 2
    assert handle.cancelled == 0


def test_a_paused_one_can_be_left_or_cancelled() -> None:
    paused = event(Phase.PAUSED, pause_requested_by="eve")
    progress = Recorder()
    handle: Any = Handle([event(), paused, event(Phase.SUCCESS)])
    with Interrupts() as interrupts:
        follow(handle, progress, interrupts, until=is_paused)
    assert progress.events[-1] is paused
    assert progress.notes == []
    handle = Handle([paused, Interrupted(), event(Phase.CANCELLING), event(Phase.CANCELLED)])
    with Interrupts() as interrupts:
        run_to_end(handle, progress, interrupts, follow_with=FOLLOW_WITH)
    assert handle.cancelled == 1


def test_following_alone_never_cancels() -> None:
    handle: Any = Handle([event(), Interrupted()])
    with Interrupts() as interrupts, pytest.raises(Interrupted):
        follow(handle, Recorder(), interrupts)
    assert handle.cancelled == 0
