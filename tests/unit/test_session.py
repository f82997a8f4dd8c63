"""The tests are the same however they are started."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys

import pytest

from tests.conftest import hear_signals

SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
SHOW = "import signal; print(*(int(signal.getsignal(n) is signal.SIG_IGN) for n in {numbers}))"


def test_no_signal_is_ignored_by_inheritance() -> None:
    assert [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN] == []


def test_ignored_signals_are_heard_again_and_by_children_too() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        hear_signals()
        shown = subprocess.run(
            [sys.executable, "-c", SHOW.format(numbers=[int(number) for number in SIGNALS])],
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.split() == ["0"] * len(SIGNALS)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_handler_that_somebody_has_set_stays() -> None:
    def handler(*_: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGHUP, handler)
    try:
        hear_signals()
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_was_collected_is_not_searched_for_garbage() -> None:
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
