"""Following one migration, and steering it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from volmig import errors
from volmig.migration.ownership import OwnedMigration
from volmig.model import Migration, Phase, Volume

if TYPE_CHECKING:
    from volmig.engine.engine import Engine

_ABANDONED_SECONDS = 10.0
"""How long a migration must have been without a worker before those who wait for it are told."""

_POLL_SECONDS = 0.1
"""How often the record of a migration that another process runs is read while waiting for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationEvent:
    """A state of a migration as it went by."""

    migration: Migration
    """Its record, with live figures of progress."""

    @property
    def stage(self) -> str:
        """What the transfer is doing: ``copy``, ``flush`` or ``verify``; empty outside of it."""
        return self.migration.stage


class MigrationHandle:
    """Follows one migration, and steers it. Made by :class:`Engine`."""

    def __init__(self, engine: Engine, migration_id: str, owned: OwnedMigration | None) -> None:
        self.id = migration_id
        self._engine = engine
        self._owned = owned

    @property
    def runs_here(self) -> bool:
        """Whether this process runs it at present."""
        self._follow_on()
        return self._owned is not None and not self._owned.ended

    def status(self) -> Migration:
        """Return the migration as it is now; live where this process runs it."""
        self._follow_on()
        if self._owned is not None and not self._owned.is_lost:
            return self._owned.migration
        return self._engine.show_migration(self.id)

    def events(self, interval_seconds: float = 0.25) -> Iterator[MigrationEvent]:
        """Yield the migration at each change, at most once an interval, until its end; the last one is final."""
        told: Migration | None = None
        while True:
            seen = self.status()
            ended = self._has_ended(seen)
            if ended:
                yield MigrationEvent(migration=self.status())
                return
            if seen != told:
                yield MigrationEvent(migration=seen)
                told = seen
            began = time.monotonic()
            if self._owned is None:
                self._look_after(seen)
                time.sleep(interval_seconds)
            elif not self._owned.wait_for_change(seen, None):
                time.sleep(max(0.0, interval_seconds - (time.monotonic() - began)))

    def wait(self, timeout_seconds: float | None = None) -> Migration:
        """Wait for the end and return the migration, however it ended. The end of one that is paused can take long.

        :raises TimeoutError: when it does not end in time.
        :raises volmig.errors.MigrationAbandoned: when its worker, of another process, is gone.
        :raises volmig.errors.VolmigError: when this process could not bring it to an end, and left it for recovery.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            migration = self.status()
            owned = self._owned
            if self._has_ended(migration):
                if owned is not None:
                    migration = self.status()
                    if not migration.phase.is_final and owned.error is not None:
                        raise owned.error
                return migration
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"migration {self.id} did not end within {timeout_seconds} seconds")
            if owned is not None:
                owned.wait_for_end(left)
            else:
                self._look_after(migration)
                time.sleep(_POLL_SECONDS)

    def result(self, timeout_seconds: float | None = None) -> Volume:
        """Wait for the end and return the volume at its destination.

        :raises TimeoutError: when it does not end in time.
        :raises volmig.errors.MigrationCancelled: when it was cancelled.
        :raises volmig.errors.VolmigError: what it failed of.
        """
        final = self.wait(timeout_seconds)
        if final.phase is Phase.SUCCESS:
            return self._engine.show_volume(final.volume_id)
        if self._owned is not None and self._owned.error is not None:
            raise self._owned.error
        if final.phase is Phase.CANCELLED:
            raise errors.MigrationCancelled(migration=final.id, requested_by=final.cancel_requested_by)
        raise errors.MigrationFailed(
            migration=final.id, error_code=final.error_code, reason=final.error_message, hint=final.error_hint
        )

    def cancel(self) -> Migration:
        """Ask for it to be undone; see :meth:`Engine.cancel_migration`."""
        return self._engine.cancel_migration(self.id)

    def pause(self) -> Migration:
        """Ask for it to be held until it is resumed; see :meth:`Engine.pause_migration`."""
        return self._engine.pause_migration(self.id)

    def resume(self) -> None:
        """Let it go on in this process, if it is paused; see :meth:`Engine.resume_migration`."""
        self._engine.resume_migration(self.id)

    def limit(self, bandwidth_limit_bytes: int) -> Migration:
        """Change how fast it may copy; see :meth:`Engine.limit_migration`."""
        return self._engine.limit_migration(self.id, bandwidth_limit_bytes)

    def _follow_on(self) -> None:
        """Follow the record where this process has let go of it without its end, since somebody has paused it."""
        if self._owned is not None and self._owned.was_let_go:
            self._owned = self._engine.migration(self.id)._owned

    def _look_after(self, migration: Migration) -> None:
        """Undo a migration that was cancelled and has no worker, and tell of any other that has none.

        :raises volmig.errors.MigrationAbandoned: when nobody runs it.
        """
        if migration.phase.is_final:
            return
        if migration.cancel_requested_by:
            self._engine.take_over_if_abandoned(migration)
        elif self._engine.is_abandoned(migration, grace_seconds=_ABANDONED_SECONDS):
            raise errors.MigrationAbandoned(migration=migration.id, reason="the one that did is gone")

    def _has_ended(self, migration: Migration) -> bool:
        if self._owned is None:
            return migration.phase.is_final
        return self._owned.ended and not self._owned.was_let_go
