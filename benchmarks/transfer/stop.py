"""Stopping in good order: a signal is noted, and the work ends at its next check, so nothing is left behind."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stopped(Exception):
    """Somebody pressed Ctrl-C, or sent SIGTERM."""


class Stop:
    """Whether the run is to end."""

    def __init__(self) -> None:
        self.signal = 0

    def check(self) -> None:
        """Return when the run goes on.

        :raises Stopped: after a signal.
        """
        if self.signal:
            raise Stopped(signal.Signals(self.signal).name)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Note signals within the block in place of dying by them."""

        def note(number: int, _: FrameType | None) -> None:
            self.signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
