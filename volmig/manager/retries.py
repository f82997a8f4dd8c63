"""Repeating a driver's call that the storage has failed for the moment only."""

from __future__ import annotations

import errno
import itertools
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

from volmig import errors
from volmig.manager.policies import Repetition

LOG = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_PAUSE_SECONDS: Final = 60.0
"""Pauses double up to this, or stay at ``driver_retry_delay_seconds`` when that is longer."""
_JITTER: Final = 0.25
_PASSING: Final = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT})


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    """How often the calls of one backend are repeated.

    A call is repeated *count* times at most, whether its caller still waits for it or not. That adds *count* pauses,
    each at most ``max(delay_seconds, LONGEST_PAUSE_SECONDS)``, and *count* times what the call itself may take.
    """

    count: int
    delay_seconds: float
    """The first pause; each further one is twice as long, less a random part so that many callers do not come back
    at once."""
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random
    """Return a number from 0 to 1."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Retries:
        """Take them from a backend's options; without those, nothing is repeated."""
        return cls(
            count=options.get("driver_retries") or 0, delay_seconds=options.get("driver_retry_delay_seconds") or 0.0
        )

    def run(self, call: Callable[[], T], *, backend: str, method: str, repetition: Repetition) -> T:
        """Make a call, and repeat it as long as the storage fails it for the moment only.

        That is what StorageBusy says, and for calls with ``RETRY`` also the errors EAGAIN, EBUSY, EINTR and ETIMEDOUT
        of the system. All else is raised at once; so is DriverTimeout, since the call that did not end still runs.

        :raises volmig.errors.VolmigError: what the last attempt raised; it says how often it was tried.
        """
        for attempt in itertools.count(1):
            try:
                return call()
            except Exception as error:
                if not _can_be_repeated(error, repetition):
                    raise
                if attempt > self.count:
                    _raise_tried(error, attempt, backend, method)
                pause = self.pause_before(attempt)
                LOG.warning(
                    "backend %s: attempt %d of %d of %s failed for the moment, trying again in %.1f s: %s",
                    backend,
                    attempt,
                    self.count + 1,
                    method,
                    pause,
                    error,
                )
            self.sleep(pause)
        raise errors.InternalError(reason="counting the attempts of a call came to an end")

    def pause_before(self, repetition: int) -> float:
        """Return the seconds to wait before a repetition, counted from 1."""
        longest = max(self.delay_seconds, LONGEST_PAUSE_SECONDS)
        # An exponent of 64 is past any bound, and a larger one could be past what a float can hold.
        pause = min(self.delay_seconds * 2.0 ** min(repetition - 1, 64), longest)
        return pause * (1 - _JITTER * self.random())


def _can_be_repeated(error: Exception, repetition: Repetition) -> bool:
    if repetition is Repetition.FAIL:
        return False
    if isinstance(error, errors.StorageBusy):
        return True
    cause = error.__cause__ if isinstance(error, errors.DriverFailed) else error
    return repetition is Repetition.RETRY and isinstance(cause, OSError) and cause.errno in _PASSING


def _raise_tried(error: Exception, attempts: int, backend: str, method: str) -> NoReturn:
    """Raise the error that ended the attempts, which then says how many there were."""
    if attempts == 1 or not isinstance(error, errors.StorageBusy | errors.DriverFailed):
        raise error
    reason = f"{error.fields.get('reason', error.message)} ({method} was tried {attempts} times)"
    if isinstance(error, errors.StorageBusy):
        raise errors.StorageBusy(hint=error.hint, backend=backend, reason=reason) from error
    raise errors.DriverFailed(hint=error.hint, backend=backend, method=method, reason=reason) from error.__cause__
