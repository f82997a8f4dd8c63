"""Ctrl-C and its like, looked at between calls instead of tearing one apart."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked for the work to stop."""


class Interrupts:
    """Hold back SIGINT, SIGTERM and SIGHUP while it is entered, except in :meth:`waiting`.

    A migration is started, recorded and cancelled by calls that must not break off in the middle, while waiting for
    news of it may end at any time. Only the main thread may enter it.
    """

    def __init__(self) -> None:
        self._pending = 0
        self._waiting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in SIGNALS:
            # Started by nohup or as a background job: whoever set that up wants the signal ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._arrive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        self._pending += 1
        if self._waiting:
            self._take()

    def _take(self) -> None:
        self._pending -= 1
        self._waiting = False
        raise Interrupted

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let a signal, also one that was held back, raise :class:`Interrupted` inside the block."""
        try:
            self._waiting = True
            if self._pending:
                self._take()
            yield
        finally:
            self._waiting = False

    def check(self) -> None:
        """Raise :class:`Interrupted` when a signal was held back."""
        if self._pending:
            self._take()
