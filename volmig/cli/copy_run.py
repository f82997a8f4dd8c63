"""Running a copy while the terminal, its user and its signals are attended to."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, Self

from volmig.cli import sizes
from volmig.cli.interrupts import Interrupted, Interrupts
from volmig.cli.progress import Progress, Snapshot, line_of
from volmig.cli.report import ExitStatus
from volmig.transfer import Control, TransferProgress, TransferResult

_LOOK_SECONDS = 0.2
_JOIN_SECONDS = 0.5
_CANCEL_SECONDS = 10.0

Work = Callable[[Callable[[TransferProgress], None]], TransferResult]
"""The copy; it is given what to call with its progress."""


class StatusRequests:
    """Takes SIGUSR1, by which one asks a running copy how far it is, as with dd. Only the main thread may enter it."""

    def __init__(self) -> None:
        self._asked = False
        self._before: object = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGUSR1, self._arrive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGUSR1, self._before)  # type: ignore[arg-type]

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def take(self) -> bool:
        """Say whether somebody has asked since the last call."""
        asked, self._asked = self._asked, False
        return asked


class CopyRun:
    """One copy in a thread of its own, and this thread to watch over it.

    The first signal that asks to stop cancels the copy, the second tells what it waits for, and the third leaves
    at once.

    :param tell: shows a line that was asked for, also when nothing else is to be shown.
    :param leaving: returns what to say when the process is left with the copy unfinished.
    """

    def __init__(
        self,
        *,
        control: Control,
        progress: Progress,
        interrupts: Interrupts,
        status: StatusRequests,
        tell: Callable[[str], None],
        leaving: Callable[[], str],
    ) -> None:
        self._control = control
        self._progress = progress
        self._interrupts = interrupts
        self._status = status
        self._tell = tell
        self._leaving = leaving
        self._news: queue.SimpleQueue[TransferProgress | None] = queue.SimpleQueue()
        self._result: TransferResult | None = None
        self._error: BaseException | None = None
        self._last: TransferProgress | None = None
        self._presses = 0
        # The thread itself may last longer: the system lets it go only when no request of its is under way.
        self._ended = threading.Event()

    def run(self, work: Work) -> TransferResult:
        """Do the work; return what it returns, and raise what it raises."""
        thread = threading.Thread(target=self._work, args=(work,), name="copy", daemon=True)
        thread.start()
        try:
            while not self._ended.is_set() or not self._news.empty():
                self._look()
        except BaseException:
            self._control.cancel()
            self._ended.wait(_CANCEL_SECONDS)
            raise
        thread.join(_JOIN_SECONDS)
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RuntimeError("the copy ended without a result")
        self._progress.show(Snapshot(label="done", is_final=True, is_success=True))
        return self._result

    def _work(self, work: Work) -> None:
        try:
            self._result = work(self._news.put)
        except BaseException as exc:  # noqa: BLE001 - raised in the thread that waits for it
            self._error = exc
        finally:
            self._ended.set()
            # Wakes the other thread.
            self._news.put(None)

    def _look(self) -> None:
        try:
            with self._interrupts.waiting():
                news = self._news.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            news = None
        except Interrupted:
            self._interrupt()
            return
        if news is not None:
            self._last = news
            self._progress.show(snapshot_of(news))
        if self._status.take():
            self._tell(status_line(self._last))

    def _interrupt(self) -> None:
        self._presses += 1
        if self._presses == 1:
            self._control.cancel()
            self._progress.note("Cancelling the copy.")
        elif self._presses == 2:
            self._progress.note(
                f"Still waiting for the storage to answer. Press Ctrl-C once more to leave at once. {self._leaving()}"
            )
        else:
            self._leave()

    def _leave(self) -> None:
        leave(f"Left the copy unfinished. {self._leaving()}\n", ExitStatus.CANCELLED)


def leave(text: str, status: int) -> NoReturn:
    """Say something and end the process at once, without anything that waits for storage."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
        sys.stdout.flush()
    finally:
        os._exit(status)


def snapshot_of(news: TransferProgress) -> Snapshot:
    """Return what is shown of a copy."""
    return Snapshot(
        label=news.stage.value,
        stage=news.stage.value,
        bytes_done=news.bytes_done,
        bytes_total=news.bytes_total,
        rate_bytes=news.rate_bytes,
        eta_seconds=news.eta_seconds,
    )


def status_line(news: TransferProgress | None) -> str:
    """Return how far a copy is, in one line, for somebody who asked."""
    if news is None:
        return "copy: not begun yet"
    skipped = f", {sizes.format_approximate(news.bytes_skipped)} of it holes and zeroes" if news.bytes_skipped else ""
    return f"{line_of(snapshot_of(news))}; {news.bytes_done} bytes{skipped}"
