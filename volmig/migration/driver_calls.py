"""Knowing whether a driver may still be moving a volume.

A call of ``migrate_volume`` cannot be stopped, and one that was given up may take effect at any time. While one may
still run, nobody can say where the volume is: it may be seen at its source because the move is not done, and at its
destination because it is half done. So the journal says which calls were begun. One is over when the journal says that
it has ended, or when the process that made it is certainly gone.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from volmig import errors
from volmig.drivers.base import MigrationHost, VolumeUpdate
from volmig.manager.backend import Backend
from volmig.manager.processes import ProcessIdentity
from volmig.migration.move import Move
from volmig.migration.takeover import WORKER
from volmig.model import EntryKind, JournalEntry, Volume

LOG = logging.getLogger(__name__)

DRIVER_MOVE: Final = "driver_move"
"""Name of the step; its intent begins the call that moves the volume there."""

DRIVER_CALL: Final = "driver-call"
"""Subject of the notes that say that a call began, or has ended."""

_ID, _STATE, _WAY, _PLACE = "call", "state", "way", "place"
_BEGUN, _ENDED = "begun", "ended"


class Way(enum.StrEnum):
    """Where a call moves the volume to."""

    THERE = "there"
    """From the migration's source to its destination."""
    BACK = "back"


@dataclass(frozen=True, kw_only=True, slots=True)
class BegunCall:
    """A call of ``migrate_volume``, as the journal tells of it."""

    id: str
    epoch: int
    way: Way
    place: Mapping[str, Any] = field(default_factory=dict)
    """Name and provider fields of the volume at its destination, of a call that brings it back from there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverCalls:
    """What a journal says of the calls that a migration has made."""

    begun: tuple[BegunCall, ...]
    """All of them, the oldest first."""
    unended: tuple[BegunCall, ...]
    """Those whose end is not on record."""
    workers: Mapping[int, Mapping[str, Any]]
    """The process that made the calls of each epoch."""

    @classmethod
    def of(cls, journal: Sequence[JournalEntry]) -> DriverCalls:
        """Read a journal."""
        begun: list[BegunCall] = []
        unended: dict[str, BegunCall] = {}
        last: dict[int, str] = {}
        for entry in journal:
            if entry.subject == DRIVER_MOVE and entry.kind in (EntryKind.DONE, EntryKind.UNDONE):
                # Recorded after the answer to the worker's last call. One that it gave up before may still run.
                unended.pop(last.pop(entry.epoch, ""), None)
            elif _is_note(entry, DRIVER_CALL) and entry.data.get(_STATE) == _ENDED:
                unended.pop(str(entry.data.get(_ID)), None)
            elif (call := _begun_by(entry)) is not None:
                begun.append(call)
                unended[call.id] = call
                last[call.epoch] = call.id
        workers = {entry.epoch: entry.data for entry in journal if _is_note(entry, WORKER)}
        return cls(begun=tuple(begun), unended=tuple(unended.values()), workers=workers)

    def running(self, host: str) -> list[str]:
        """Return who may still have a call running, for people; empty when all of them are over.

        :param host: what this host is called.
        """
        found = []
        for epoch in sorted({call.epoch for call in self.unended}):
            process = ProcessIdentity.from_facts(self.workers.get(epoch, {}))
            if process is None:
                found.append("a worker that has not said which process it is")
            elif not process.is_gone(host):
                found.append(str(process))
        return list(dict.fromkeys(found))


def new_call_facts() -> dict[str, Any]:
    """Return what the intent of the step says of the call that it is about to make."""
    return {_ID: str(uuid.uuid4())}


def _is_note(entry: JournalEntry, subject: str) -> bool:
    return entry.kind is EntryKind.NOTE and entry.subject == subject


def _begun_by(entry: JournalEntry) -> BegunCall | None:
    if entry.kind is EntryKind.INTENT and entry.subject == DRIVER_MOVE:
        call_id = entry.data.get(_ID) or f"{DRIVER_MOVE}-{entry.sequence}"
        return BegunCall(id=str(call_id), epoch=entry.epoch, way=Way.THERE)
    if _is_note(entry, DRIVER_CALL) and entry.data.get(_STATE) == _BEGUN:
        place = entry.data.get(_PLACE) or {}
        return BegunCall(id=str(entry.data.get(_ID)), epoch=entry.epoch, way=Way(entry.data[_WAY]), place=place)
    return None


class WatchedCall:
    """A call of ``migrate_volume`` whose end is entered in the journal, whenever that comes.

    The thread that makes the call enters and leaves this object around the driver's method. It writes the end by
    itself: the worker may own the migration no more by then, and have nothing to do with it.
    """

    def __init__(self, move: Move, way: Way, call_id: str) -> None:
        self._move = move
        self._way = way
        self._id = call_id
        # As they are now: another worker may own the migration when the call ends.
        self._migration_id, self._epoch = move.migration.id, move.migration.epoch
        self._address = ""
        self._lock = threading.Lock()
        self._has_ended = False
        self._is_given_up = False
        self._is_recorded = False

    @classmethod
    def there(cls, move: Move) -> WatchedCall:
        """Return the call that the last intent of the step has begun."""
        return cls(move, Way.THERE, str(move.intended(DRIVER_MOVE, _ID)))

    @classmethod
    def back(cls, move: Move, place: Mapping[str, Any]) -> WatchedCall:
        """Record that the volume is about to be brought back, and return that call.

        :param place: where it is at its destination.
        :raises volmig.errors.LeaseLost: when another owns the migration by now.
        """
        facts = {**new_call_facts(), _STATE: _BEGUN, _WAY: Way.BACK.value, _PLACE: dict(place)}
        with move.recording():
            move.note(EntryKind.NOTE, DRIVER_CALL, {**facts, "reason": "the driver is to bring the volume back"})
        return cls(move, Way.BACK, facts[_ID])

    def make(self, mover: Backend, volume: Volume, host: MigrationHost) -> tuple[bool, VolumeUpdate]:
        """Make the call, and return its answer; raises as :meth:`volmig.manager.backend.Backend.migrate_volume`."""
        self._address = f"{mover.host}@{mover.name}"
        try:
            return mover.migrate_volume(self._move.context, volume, host, watch=self)
        except errors.DriverTimeout:
            with self._lock:
                # Unless it has ended: the driver may raise that error, too.
                self._is_given_up = not self._has_ended
            if self._is_given_up:
                self._move.left_running.add(DRIVER_MOVE)
            raise

    @contextlib.contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Note that the call was not made at all, when the context is left by an error without it."""
        try:
            yield
        except BaseException as error:
            if not self._is_given_up and not self._is_recorded:
                self._move.note(EntryKind.NOTE, DRIVER_CALL, self._end_facts(str(error)))
            raise

    def __enter__(self) -> None:
        with self._lock:
            self._has_ended = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._lock:
            # The storage was busy, and had not begun: another attempt may follow.
            self._has_ended = not isinstance(error, errors.StorageBusy)
            is_over = self._has_ended or self._is_given_up
        if is_over:
            self._write("it has answered" if error is None else f"it has failed: {error}")

    def _end_facts(self, outcome: str) -> dict[str, Any]:
        reason = f"the call of migrate_volume has ended: {outcome}"
        return {_ID: self._id, _STATE: _ENDED, _WAY: self._way.value, "reason": reason}

    def _write(self, outcome: str) -> None:
        """Record that the call has ended."""
        entry = JournalEntry(
            migration_id=self._migration_id,
            kind=EntryKind.NOTE,
            subject=DRIVER_CALL,
            # Not the worker: what that has written is counted.
            actor=self._address,
            epoch=self._epoch,
            data=self._end_facts(outcome),
        )
        settings = self._move.settings
        delay = settings.cleanup_delay_seconds
        for left in reversed(range(settings.cleanup_attempts)):
            try:
                with self._move.store.writing() as transaction:
                    transaction.append_journal(entry)
            except Exception as failure:  # noqa: BLE001
                # Unless the worker records its outcome, it then counts as running until the process ends.
                LOG.warning("migration %s: the end of a call cannot be recorded: %s", self._migration_id, failure)
            else:
                self._is_recorded = True
                return
            if left:
                time.sleep(delay)
                delay *= 2
