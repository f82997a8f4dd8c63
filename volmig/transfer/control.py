"""Steering a running copy from another thread: cancel, pause, limit, and the time to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from volmig import errors

_CREDIT_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 0.1
_REQUESTS_PER_SECOND = 10
_SMALLEST_REQUEST_BYTES = 4096
_EXPIRED_HINT = (
    "The time for which it was allowed to write has passed, and another may write now. The source is unchanged."
)


class Pacer:
    """Keeps the account of a bandwidth limit: bytes moved are owed, and time pays for them.

    Time without work earns nothing beyond 50 ms, which make up for waking up late; so there are no bursts.
    A change of the limit applies at once to what is owed already. Not thread-safe.
    """

    def __init__(self, limit_bytes: int, now: float) -> None:
        self._limit_bytes = limit_bytes
        self._owed_bytes = 0.0
        self._paid_at = now

    @property
    def limit_bytes(self) -> int:
        """Bytes a second; 0 for no limit."""
        return self._limit_bytes

    def set_limit(self, limit_bytes: int, now: float) -> None:
        """Change the limit from *now* on."""
        self._settle(0, now)
        self._limit_bytes = limit_bytes

    def charge(self, moved_bytes: int, now: float) -> None:
        """Note that *moved_bytes* were moved in the time since the last call."""
        # The time that the work itself took pays for this work in full; only what is left over is cut.
        self._settle(moved_bytes, now)

    def delay_seconds(self, now: float) -> float:
        """Return how long to wait before moving more; 0 when none is owed."""
        if not self._limit_bytes:
            return 0.0
        owed = self._owed_bytes - (now - self._paid_at) * self._limit_bytes
        return max(0.0, owed / self._limit_bytes)

    def rest(self, now: float) -> None:
        """End a time in which nothing was to be moved: it earned nothing for later."""
        self._settle(0, now)

    def _settle(self, moved_bytes: int, now: float) -> None:
        earned = (now - self._paid_at) * self._limit_bytes
        self._paid_at = now
        owed = self._owed_bytes + moved_bytes - earned
        self._owed_bytes = max(owed, -_CREDIT_SECONDS * self._limit_bytes) if self._limit_bytes else 0.0


def boottime_seconds() -> float:
    """Return the time since boot in seconds, with the time for which the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Control:
    """Steers one copy. All methods may be called from any thread.

    :param limit_bytes: bytes a second at most; 0 for no limit.
    :param clock: a monotonic clock in seconds.
    :param boot_clock: the clock of :attr:`deadline_seconds`, which goes on while the machine is suspended.
    """

    def __init__(
        self,
        *,
        limit_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
        boot_clock: Callable[[], float] = boottime_seconds,
    ) -> None:
        self._clock = clock
        self._boot_clock = boot_clock
        self._deadline_seconds: float | None = None
        self._expired = False
        self._changed = threading.Condition()
        self._cancelled = False
        self._paused = False
        self._pacer = Pacer(_checked_limit(limit_bytes), clock())
        self._bytes_done = 0
        self._bytes_total = 0

    def cancel(self) -> None:
        """Ask the copy to stop for good; it then raises :class:`volmig.errors.TransferCancelled`."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    @property
    def cancelled(self) -> bool:
        """Whether the copy was asked to stop, or its deadline has passed."""
        return self._cancelled or self.expired

    @property
    def deadline_seconds(self) -> float | None:
        """Time on the boot clock (:func:`boottime_seconds`) from which on nothing more may be written; None for never.

        For a worker that may write only while it holds a lease, and moves the deadline with each renewal. From the
        deadline on the copy raises :class:`volmig.errors.TransferCancelled`; once that was noticed, a later
        deadline does not bring it back.

        The fence is as good as a process can make it by itself: one that is held up between looking at the clock
        and writing still does what it was about to ask for: one request to a handle; to anything else up to 64
        requests, in which together there are 16 MiB of data at most, and beside which ranges may be made zero. What
        was written in time may lie in the system's memory, or in a handle's, and reach the storage later.
        """
        return self._deadline_seconds

    @deadline_seconds.setter
    def deadline_seconds(self, value: float | None) -> None:
        with self._changed:
            self._deadline_seconds = value
            self._changed.notify_all()

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        deadline = self._deadline_seconds
        if not self._expired and deadline is not None and self._boot_clock() >= deadline:
            self._expired = True
        return self._expired

    def pause(self) -> None:
        """Hold the copy before its next request, until :meth:`resume` or :meth:`cancel`."""
        with self._changed:
            self._paused = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Let the copy go on. Succeeds when it was not paused."""
        with self._changed:
            self._paused = False
            self._pacer.rest(self._clock())
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        """Whether the copy is to be held."""
        return self._paused

    @property
    def limit_bytes(self) -> int:
        """Bytes a second at most, 0 for no limit; a change applies to the running copy at once.

        :raises volmig.errors.RequestInvalid: when set to a negative number.
        """
        return self._pacer.limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, value: int) -> None:
        with self._changed:
            self._pacer.set_limit(_checked_limit(value), self._clock())
            self._changed.notify_all()

    # --- for engines --------------------------------------------------------------------------

    def request_bytes(self, chunk_bytes: int) -> int:
        """Return how much to move at once: *chunk_bytes*, or less where a limit would make bursts of that."""
        limit = self.limit_bytes
        if not limit:
            return chunk_bytes
        share = limit // _REQUESTS_PER_SECOND // _SMALLEST_REQUEST_BYTES * _SMALLEST_REQUEST_BYTES
        return min(chunk_bytes, max(share, _SMALLEST_REQUEST_BYTES))

    def check(self) -> None:
        """Wait while paused; return at once otherwise. To be called before each request that writes.

        :raises volmig.errors.TransferCancelled: within 0.2 s of :meth:`cancel`; at once from the deadline on.
        """
        self.throttle(0)

    def throttle(self, moved_bytes: int) -> None:
        """Note that *moved_bytes* were moved, and wait as long as a pause or the limit demands.

        :raises volmig.errors.TransferCancelled: as :meth:`check` does; a wait ends with the deadline, within 0.2 s.
        """
        with self._changed:
            if moved_bytes:
                self._pacer.charge(moved_bytes, self._clock())
            while True:
                delay = self._pacer.delay_seconds(self._clock())
                # Last of all, so that nothing comes between the look at the deadline and the return.
                if self.cancelled:
                    raise self.cancellation()
                if not self._paused and delay <= 0:
                    return
                # Bounded, since an injected clock may pass while this one does not.
                self._changed.wait(_LONGEST_WAIT_SECONDS if self._paused else min(delay, _LONGEST_WAIT_SECONDS))

    def admit(self, length: int) -> float:
        """Return 0 when a request may be made now, and charge *length* bytes to the limit.

        Otherwise return for how many seconds to wait before asking again; a pause may end sooner, and so may
        :meth:`wait`.

        :raises volmig.errors.TransferCancelled: as :meth:`check` does, without waiting.
        """
        with self._changed:
            if self.cancelled:
                raise self.cancellation()
            if self._paused:
                return _LONGEST_WAIT_SECONDS
            if not length or not self._pacer.limit_bytes:
                return 0.0
            now = self._clock()
            delay = self._pacer.delay_seconds(now)
            if delay <= 0:
                # The time before it has not paid for it: the work is yet to be done.
                self._pacer.rest(now)
                self._pacer.charge(length, now)
            return delay

    def wait(self, timeout_seconds: float) -> None:
        """Wait until something changes, for the given time at most."""
        with self._changed:
            if not self.cancelled:
                self._changed.wait(timeout_seconds)

    def charge(self, moved_bytes: int) -> float:
        """Note that *moved_bytes* were moved, and return for how many seconds the limit demands a rest.

        For engines that cannot wait themselves, since a program does their work.
        """
        with self._changed:
            now = self._clock()
            self._pacer.charge(moved_bytes, now)
            return self._pacer.delay_seconds(now)

    def note(self, bytes_done: int, bytes_total: int) -> None:
        """Remember how far the copy is, for the error that a cancellation raises."""
        self._bytes_done = bytes_done
        self._bytes_total = bytes_total

    def cancellation(self) -> errors.TransferCancelled:
        """Return the error to raise when cancelled."""
        done, total = self._bytes_done, self._bytes_total
        if self._expired and not self._cancelled:
            return errors.TransferCancelled(bytes_done=done, bytes_total=total, hint=_EXPIRED_HINT)
        return errors.TransferCancelled(bytes_done=done, bytes_total=total)


def _checked_limit(value: int) -> int:
    if value < 0:
        raise errors.RequestInvalid(what="the bandwidth limit", reason=f"{value} is negative; 0 means no limit")
    return value
