"""Whether a connection that a call has made may be ended again, when other calls could have made it or use it.

A call that was given up goes on, and when it succeeds after all, the connection is to be ended. But by then a
repetition of it may have succeeded: it was given the connection that the late call had made, and its caller uses it.
Ending that would take it from them. So each call claims what it makes, and only what nobody else has claimed since is
taken back.

This holds among the calls of one process, which is who the connections are made for.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from volmig import errors


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """A connection of this process to a volume."""

    host: str
    name: str


class Claim:
    """One call's claim to what it makes; it exists as long as somebody could take that back."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.under_way = True
        """Somebody waits for the call."""
        self.void = False
        """Somebody else uses what it has made, or may have made."""
        self.being_taken_back = False


class Claims:
    """The claims of all calls of one backend that have not ended."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._changed = threading.Condition()
        # A call that was given up holds its claim for as long as it runs, and nobody else does.
        self._open: weakref.WeakSet[Claim] = weakref.WeakSet()

    @contextlib.contextmanager
    def making(self, connection: Connection, *, wait_seconds: float) -> Iterator[Claim]:
        """Claim a connection for the call in the context. If that succeeds, no other claim to it is any good.

        :param wait_seconds: how long to wait for a late one to be ended.
        :raises volmig.errors.StorageBusy: when that takes longer; nothing was changed.
        """
        with self._changed:
            self._wait_for_undoing(connection, wait_seconds)
            claim = Claim(connection)
            self._open.add(claim)
        accepted = False
        try:
            yield claim
            accepted = True
        finally:
            with self._changed:
                claim.under_way = False
                if accepted:
                    self._void_all(connection, but=claim)
                self._changed.notify_all()

    def take_back(self, claim: Claim, undo: Callable[[], None]) -> bool:
        """End a connection that a late call has made, unless somebody else has it; wait until that is known.

        :returns: whether *undo* was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: claim.void or not self._others_under_way(claim))
            if claim.void:
                return False
            claim.being_taken_back = True
        try:
            undo()
        finally:
            with self._changed:
                claim.being_taken_back = False
                self._changed.notify_all()
        return True

    def _others_under_way(self, claim: Claim) -> bool:
        return any(other.under_way for other in self._of(claim.connection) if other is not claim)

    def _void_all(self, connection: Connection, but: Claim) -> None:
        for claim in self._of(connection):
            if claim is not but:
                claim.void = True
        self._changed.notify_all()

    def _wait_for_undoing(self, connection: Connection, wait_seconds: float) -> None:
        def is_at_rest() -> bool:
            return not any(claim.being_taken_back for claim in self._of(connection))

        if not self._changed.wait_for(is_at_rest, wait_seconds):
            raise errors.StorageBusy(
                backend=self._backend,
                reason=f"a connection to {connection.name} in {connection.host} that came too late is being ended",
            )

    def _of(self, connection: Connection) -> list[Claim]:
        return [claim for claim in self._open if claim.connection == connection]
