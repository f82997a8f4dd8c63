"""Calling a driver so that it can neither hang volmig nor surprise it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeVar

from volmig import errors

LOG = logging.getLogger(__name__)

T = TypeVar("T")

_NOT_FOR_DRIVERS = (errors.LeaseLost, errors.EngineClosed, errors.CancelledError)
"""Errors by which the core steers itself; a driver that raises one must not steer it."""


MOST_HANGING: Final = 64
"""How many calls of one backend may hang before it is not called any more: each holds a thread."""


class HangingCalls:
    """Counts the calls of one backend that were given up and still run."""

    def __init__(self, backend: str, *, most: int = MOST_HANGING) -> None:
        self._backend = backend
        self._most = most
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def by_method(self) -> dict[str, int]:
        """Return how many there are of each method that has any."""
        with self._lock:
            return {method: count for method, count in sorted(self._counts.items()) if count}

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.by_method().values())

    def begin(self, method: str) -> None:
        """Count one more."""
        with self._lock:
            self._counts[method] += 1

    def end(self, method: str) -> None:
        """Count one less: it has ended."""
        with self._lock:
            self._counts[method] -= 1

    def require_few(self) -> None:
        """Refuse another call when too many hang. :raises volmig.errors.BackendDown:"""
        counts = self.by_method()
        if sum(counts.values()) >= self._most:
            which = ", ".join(f"{count} of {method}" for method, count in counts.items())
            reason = f"{sum(counts.values())} calls of its driver hang ({which}), and no more are made until they end"
            raise errors.BackendDown(backend=self._backend, reason=reason)


class _Call:
    """One call of a driver, in a thread of its own."""

    def __init__(
        self,
        function: Callable[[], Any],
        method: str,
        when_late: Callable[[Any], object] | None,
        hanging: HangingCalls | None,
    ) -> None:
        self._function = function
        self._method = method
        self._when_late = when_late
        self._hanging = hanging
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._abandoned = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001
            # Handed to the caller, who raises it.
            self.error = error
        with self._lock:
            self._ended.set()
            late = self._abandoned
        if not late:
            return
        try:
            self._undo()
        finally:
            if self._hanging is not None:
                self._hanging.end(self._method)

    def _undo(self) -> None:
        if self.error is not None or self._when_late is None:
            return
        try:
            self._when_late(self.result)
        except Exception:
            LOG.exception("undoing a driver call that ended after its time failed")

    def wait(self, timeout_seconds: float) -> bool:
        """Return whether the call ended in time; if not, nobody will look at its result."""
        try:
            self._ended.wait(timeout_seconds)
        except BaseException:  # the caller is interrupted, and will not come back for the result
            self._give_up()
            raise
        return not self._give_up()

    def _give_up(self) -> bool:
        """Leave a call that has not ended to itself; return whether it had not."""
        with self._lock:
            if self._ended.is_set():
                return False
            self._abandoned = True
            if self._hanging is not None:
                self._hanging.begin(self._method)
            return True


def call_with_timeout(
    function: Callable[[], T],
    *,
    backend: str,
    method: str,
    timeout_seconds: float,
    when_late: Callable[[T], object] | None = None,
    hanging: HangingCalls | None = None,
) -> T:
    """Return what *function* returns, waiting *timeout_seconds* at most.

    A call cannot be stopped from outside. One that does not end in time goes on in its thread, and when it succeeds
    after all, *when_late* gets its result in order to undo it. Until then it is counted in *hanging*.

    :raises volmig.errors.BackendDown: when too many calls hang already.
    :raises volmig.errors.ResourcesExhausted: when there is no thread for it.
    :raises volmig.errors.DriverTimeout: when it does not end in time.
    :raises volmig.errors.VolmigError: as the driver raised it.
    :raises volmig.errors.DriverFailed: for any other exception of the driver, which is its cause; also for one that
        would end a thread, such as SystemExit.
    :raises NotImplementedError: as the driver raised it; the contract gives it a meaning for some methods.
    """
    if hanging is not None:
        hanging.require_few()
    call = _Call(function, method, when_late, hanging)
    # A daemon, so that a hung driver cannot keep the process from ending.
    thread = threading.Thread(target=call.run, name=f"volmig-{backend}-{method}", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise errors.ResourcesExhausted(what=f"thread for {method} of backend {backend!r}", reason=error) from error
    if not call.wait(timeout_seconds):
        raise errors.DriverTimeout(
            backend=backend,
            method=method,
            seconds=f"{timeout_seconds:g}",
            hint=f"Check the storage; if it is only slow, give {method} more time by driver_call_timeouts in "
            f"[{backend}].",
        )
    if call.error is None:
        result: T = call.result
        return result
    if isinstance(call.error, errors.VolmigError | NotImplementedError) and not isinstance(
        call.error, _NOT_FOR_DRIVERS
    ):
        raise call.error
    raise errors.DriverFailed(backend=backend, method=method, reason=_one_line(call.error)) from call.error


def _one_line(error: BaseException) -> str:
    """Describe an error of a driver, which may have several lines, or fail to say what it is."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001
        text = "it has no text"
    return f"{type(error).__name__}: {text}"
