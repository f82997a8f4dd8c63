"""Setting a backend up once, however many callers need it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable

from volmig import errors


class _Attempt:
    """One attempt, for those who wait for its outcome."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.error: errors.VolmigError | None = None


class SetUp:
    """A backend's set-up: done by the first caller, while the others wait for what comes of it.

    One that failed is tried again by the next caller.

    :param carry_out: does it, or raises.
    """

    def __init__(self, carry_out: Callable[[], None], *, backend: str) -> None:
        self._carry_out = carry_out
        self._backend = backend
        self._lock = threading.Lock()
        self._done = False
        self._attempt: _Attempt | None = None

    def require(self, wait_seconds: float) -> None:
        """Return when the backend is set up.

        :param wait_seconds: how long to wait for another caller's attempt.
        :raises volmig.errors.BackendDown: when that attempt takes longer.
        :raises volmig.errors.VolmigError: what the attempt raised, this caller's or another's.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            with self._lock:
                if self._done:
                    return
                attempt = self._attempt
                if attempt is None:
                    own = self._attempt = _Attempt()
                    break
            if not attempt.ended.wait(max(deadline - time.monotonic(), 0.0)):
                reason = f"another request has been setting it up for more than {wait_seconds:g} seconds"
                raise errors.BackendDown(backend=self._backend, reason=reason)
            if attempt.error is not None:
                # A copy, since each thread puts its own trace into what it raises.
                raise copy.copy(attempt.error) from attempt.error
            # It succeeded, or its caller was interrupted: then this one makes an attempt of its own.
        self._lead(own)

    def forget(self) -> None:
        """Have the next caller set the backend up again."""
        with self._lock:
            self._done = False

    def _lead(self, attempt: _Attempt) -> None:
        done = False
        try:
            self._carry_out()
            done = True
        except errors.VolmigError as error:
            attempt.error = error
            raise
        finally:
            with self._lock:
                self._done = done
                self._attempt = None
            attempt.ended.set()
