"""Turning the steps of a copy into a few progress events a second."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable

from volmig.transfer.base import CopyStage, TransferProgress

_EVENT_SECONDS = 0.2
_WINDOW_SECONDS = 5.0
_SHORTEST_WINDOW_SECONDS = 0.05


class StageMeter:
    """Reports one stage: at its start, at most five times a second on the way, and at its end.

    :param report: the caller's callback; what it raises goes to whoever moved the bytes, and so ends the copy.
    :param clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        stage: CopyStage,
        bytes_total: int,
        report: Callable[[TransferProgress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._total = bytes_total
        self._report = report
        self._clock = clock
        self._expected = bytes_total
        self._done = 0
        self._skipped = 0
        now = clock()
        # Of the last few seconds: when, bytes dealt with, bytes really moved.
        self._samples: collections.deque[tuple[float, int, int]] = collections.deque([(now, 0, 0)])
        self._reported_at = now
        self._emit(now)

    @property
    def bytes_done(self) -> int:
        """Bytes dealt with so far."""
        return self._done

    def expect(self, data_bytes: int) -> None:
        """Judge the time to the end by *data_bytes* to be moved, the rest being passed over."""
        self._expected = data_bytes

    def advance(self, done: int, skipped: int) -> None:
        """Count *done* more bytes, *skipped* of them passed over."""
        self._done += done
        self._skipped += skipped
        now = self._clock()
        if now - self._reported_at >= _EVENT_SECONDS:
            self._samples.append((now, self._done, self._done - self._skipped))
            while len(self._samples) > 2 and now - self._samples[1][0] >= _WINDOW_SECONDS:
                self._samples.popleft()
            self._emit(now)

    def finish(self) -> None:
        """Report the end of the stage, with everything dealt with."""
        self._done = self._total
        self._emit(self._clock())

    def _emit(self, now: float) -> None:
        self._reported_at = now
        then, done_then, moved_then = self._samples[0]
        moved = self._done - self._skipped
        seconds = now - then
        known = seconds >= _SHORTEST_WINDOW_SECONDS
        self._report(
            TransferProgress(
                stage=self._stage,
                bytes_total=self._total,
                bytes_done=self._done,
                bytes_skipped=self._skipped,
                rate_bytes=(self._done - done_then) / seconds if known else 0.0,
                eta_seconds=self._eta(moved, (moved - moved_then) / seconds if known else 0.0),
            )
        )

    def _eta(self, moved: int, data_rate: float) -> float | None:
        # Zeroes that are found among the data make the expectation too high, but never more than what is left at all.
        left = min(max(self._expected - moved, 0), self._total - self._done)
        if not left:
            return 0.0
        return left / data_rate if data_rate > 0 else None
