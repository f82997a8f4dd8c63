"""Calling a driver so that it can neither hang volmig nor surprise it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from volmig import errors

LOG = logging.getLogger(__name__)

T = TypeVar("T")

_NOT_FOR_DRIVERS = (errors.LeaseLost, errors.EngineClosed, errors.CancelledError)
"""Errors by which the core steers itself; a driver that raises one must not steer it."""


class _Call:
    """One call of a driver, in a thread of its own."""

    def __init__(self, function: Callable[[], Any], when_late: Callable[[Any], None] | None) -> None:
        self._function = function
        self._when_late = when_late
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
        if late and self.error is None and self._when_late is not None:
            try:
                self._when_late(self.result)
            except Exception:
                LOG.exception("undoing a driver call that ended after its time failed")

    def wait(self, timeout_seconds: float) -> bool:
        """Return whether the call ended in time; if not, nobody will look at its result."""
        if self._ended.wait(timeout_seconds):
            return True
        with self._lock:
            if self._ended.is_set():
                return True
            self._abandoned = True
            return False


def call_with_timeout(
    function: Callable[[], T],
    *,
    backend: str,
    method: str,
    timeout_seconds: float,
    when_late: Callable[[T], None] | None = None,
) -> T:
    """Return what *function* returns, waiting *timeout_seconds* at most.

    A call cannot be stopped from outside. One that does not end in time goes on in its thread, and when it succeeds
    after all, *when_late* gets its result in order to undo it.

    :raises volmig.errors.DriverTimeout: when it does not end in time.
    :raises volmig.errors.VolmigError: as the driver raised it.
    :raises volmig.errors.DriverFailed: for any other exception of the driver, which is its cause; also for one that
        would end a thread, such as SystemExit.
    :raises NotImplementedError: as the driver raised it; the contract gives it a meaning for some methods.
    """
    call = _Call(function, when_late)
    # A daemon, so that a hung driver cannot keep the process from ending.
    threading.Thread(target=call.run, name=f"volmig-{backend}-{method}", daemon=True).start()
    if not call.wait(timeout_seconds):
        raise errors.DriverTimeout(backend=backend, method=method, seconds=f"{timeout_seconds:g}")
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
