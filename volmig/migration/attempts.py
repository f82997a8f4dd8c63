"""Trying again what must come to an end in the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from volmig import errors
from volmig.migration.move import Move
from volmig.migration.settings import Settings
from volmig.migration.steps import CannotGoBack

LOG = logging.getLogger(__name__)

T = TypeVar("T")


class Attempts:
    """Repeats, with growing pauses, as often as the settings say; a lost lease ends it at once."""

    def __init__(self, settings: Settings, move: Move) -> None:
        self._settings = settings
        self._move = move

    def persistently(self, end: Callable[[], T]) -> T | None:
        """Bring the migration to its end, beginning again when the way there fails, as when the store is busy.

        What was done already is in the journal and is not done twice.
        """
        delay = self._settings.cleanup_delay_seconds
        for left in reversed(range(self._settings.cleanup_attempts)):
            try:
                return end()
            except errors.LeaseLost:
                raise
            except Exception as error:
                if not left:
                    raise
                LOG.warning("migration %s: beginning again after: %s", self._move.migration.id, error, exc_info=error)
            time.sleep(delay)
            delay *= 2
            self._move.refresh()
            if self._move.migration.phase.is_final:
                return None
        return None

    def repeatedly(self, name: str, attempt: Callable[[], None]) -> errors.VolmigError | None:
        """Call *attempt* until it succeeds or its attempts are used up; return the last error, if any."""
        delay = self._settings.cleanup_delay_seconds
        last: errors.VolmigError | None = None
        for number in range(self._settings.cleanup_attempts):
            if number:
                time.sleep(delay)
                delay *= 2
            try:
                self._move.owned.check()
                attempt()
            except (errors.LeaseLost, errors.LocationDoubtful, CannotGoBack):
                raise
            except Exception as error:  # noqa: BLE001
                # Clearing up goes on with what is left; the error is recorded by the caller.
                last = as_volmig_error(error)
                LOG.warning("migration %s: %s failed, attempt %d: %s", self._move.migration.id, name, number + 1, last)
            else:
                return None
        return last


def as_volmig_error(error: Exception) -> errors.VolmigError:
    """Return *error*, or an internal error with it as its cause."""
    if isinstance(error, errors.VolmigError):
        return error
    found = errors.InternalError(reason=f"{type(error).__name__}: {error}")
    found.__cause__ = error
    return found
