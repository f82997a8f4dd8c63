"""Whether what a call has made may be taken back, when other calls could have made it or use it.

A call that was given up goes on, and when it succeeds after all, its effect is to be undone. But by then a repetition
of it may have succeeded: it found there what the late call had made, and its caller uses it. Undoing the late call
would destroy that. So each call claims what it makes, and only what nobody else has claimed since is taken back.

This holds among the calls of one process. Between processes a later object of the same name is told apart by its
identity, and by the rule that a new owner of a migration gives its copy a new id when the old one may still be at work.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from volmig import errors


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """What a call makes in a backend."""

    kind: str
    """``object`` or ``connection``."""
    host: str
    name: str


class Claim:
    """One call's claim to what it makes; it exists as long as somebody could take that back."""

    def __init__(self, thing: Thing) -> None:
        self.thing = thing
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
    def making(self, thing: Thing, *, wait_seconds: float) -> Iterator[Claim]:
        """Claim a thing for the call in the context. If that succeeds, no other claim to the thing is any good.

        :param wait_seconds: how long to wait for a late call's effect on the thing to be taken back.
        :raises volmig.errors.StorageBusy: when that takes longer; nothing was changed.
        """
        with self._changed:
            self._wait_for_undoing(thing, wait_seconds)
            claim = Claim(thing)
            self._open.add(claim)
        accepted = False
        try:
            yield claim
            accepted = True
        finally:
            with self._changed:
                claim.under_way = False
                if accepted:
                    self._void_all(thing, but=claim)
                self._changed.notify_all()

    def use(self, thing: Thing, *, wait_seconds: float) -> None:
        """Note that somebody relies on a thing: late calls that made it do not take it back from now on.

        :raises volmig.errors.StorageBusy: when one is being taken back for longer than *wait_seconds*.
        """
        with self._changed:
            self._void_all(thing)
            self._wait_for_undoing(thing, wait_seconds)

    def take_back(self, claim: Claim, undo: Callable[[], None]) -> bool:
        """Undo what a late call has made, unless somebody else has it; wait until that is known.

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
        return any(other.under_way for other in self._of(claim.thing) if other is not claim)

    def _void_all(self, thing: Thing, but: Claim | None = None) -> None:
        for claim in self._of(thing):
            if claim is not but:
                claim.void = True
        self._changed.notify_all()

    def _wait_for_undoing(self, thing: Thing, wait_seconds: float) -> None:
        def is_at_rest() -> bool:
            return not any(claim.being_taken_back for claim in self._of(thing))

        if not self._changed.wait_for(is_at_rest, wait_seconds):
            raise errors.StorageBusy(
                backend=self._backend,
                reason=f"the {thing.kind} of {thing.name} in {thing.host}, which came too late, is still being removed",
            )

    def _of(self, thing: Thing) -> list[Claim]:
        return [claim for claim in self._open if claim.thing == thing]
