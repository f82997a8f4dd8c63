"""Storage that fails beneath the engine: queues that lose, tear, misplace, refuse and delay requests."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from unittest import mock

from volmig.transfer.control import Control
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.flow import setup
from volmig.transfer.flow.arena import Arena
from volmig.transfer.flow.request import Kind, Request, RequestQueue
from volmig.transfer.flow.ring import RingQueue, RingUnavailable
from volmig.transfer.flow.threads import ThreadQueue


class Fault(enum.Enum):
    """What becomes of one request."""

    SHORT = "only a part of it is done, and it says so"
    ERROR = "it fails (EIO)"
    FULL = "there is no room (ENOSPC)"
    LOST = "nothing is done, and it says that all is"
    TORN = "only its beginning is done, and it says that all is"
    MISPLACED = "it is done 4 KiB before its place"
    FLIPPED = "a bit of what it moves is another"
    NOTHING = "it says that nothing more can be moved"


SILENT = frozenset({Fault.LOST, Fault.TORN, Fault.MISPLACED, Fault.FLIPPED})
"""Faults that say that all is well."""


@dataclass
class Plan:
    """Which requests meet with which fault: the *n*-th of a kind to an end."""

    faults: dict[tuple[Kind, bool, int], Fault] = field(default_factory=dict)
    """By kind, whether it goes to the destination, and its number among these."""
    flip: Callable[[int], None] | None = None
    """Flips a bit of the destination at an offset, behind everybody's back."""
    acts: dict[int, Callable[[], object]] = field(default_factory=dict)
    """What happens before the request with that number, of all that are made."""
    met: list[Fault] = field(default_factory=list)
    """Faults that requests have met with."""
    counts: dict[tuple[Kind, bool], int] = field(default_factory=dict)
    made: int = 0
    on_submit: Callable[[Request], None] = lambda _: None
    on_end: Callable[[Request], None] = lambda _: None

    def fault_of(self, request: Request) -> Fault | None:
        act = self.acts.pop(self.made, None)
        self.made += 1
        if act is not None:
            act()
        key = request.kind, request.end.is_destination
        number = self.counts.get(key, 0)
        self.counts[key] = number + 1
        return self.faults.get((*key, number))


class FaultyQueue(RequestQueue):
    """Another queue whose requests may meet with faults."""

    def __init__(self, inner: RequestQueue, arena: Arena, plan: Plan) -> None:
        self._inner = inner
        self._arena = arena
        self._plan = plan
        self._ended: list[Request] = []
        self._changed: dict[Request, tuple[Fault, int, int]] = {}

    @property
    def in_flight(self) -> Collection[Request]:
        return [*self._inner.in_flight, *self._ended]

    def submit(self, request: Request) -> None:
        self._plan.on_submit(request)
        fault = self._plan.fault_of(request)
        if fault is None:
            self._inner.submit(request)
            return
        self._plan.met.append(fault)
        offset, length = request.offset, request.length
        if fault is Fault.SHORT and request.kind is Kind.ZERO:
            # A zeroing is done or refused, and never done by half.
            fault = Fault.NOTHING
        if fault in (Fault.SHORT, Fault.TORN) and length > 1:
            request.length = max(1, length // 2 // 512 * 512)
        elif fault is Fault.MISPLACED and offset >= 4096:
            request.offset -= 4096
        elif fault in (Fault.ERROR, Fault.FULL, Fault.LOST, Fault.NOTHING):
            self._answer(request, fault)
            return
        self._changed[request] = fault, offset, length
        self._inner.submit(request)

    def _answer(self, request: Request, fault: Fault) -> None:
        """End a request without doing it."""
        if fault is Fault.ERROR:
            request.error = OSError(errno.EIO, os.strerror(errno.EIO))
        elif fault is Fault.FULL:
            request.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif fault is Fault.LOST:
            request.result = 1 if request.kind is Kind.ZERO else request.length
        self._ended.append(request)

    def kick(self) -> None:
        self._inner.kick()

    def recall(self) -> None:
        self._inner.recall()

    def wait(self, timeout_seconds: float) -> Sequence[Request]:
        ended, self._ended = self._ended, []
        ended.extend(self._inner.wait(0.0 if ended else timeout_seconds))
        for request in ended:
            if request in self._changed:
                self._restore(request, *self._changed.pop(request))
            self._plan.on_end(request)
        return ended

    def _restore(self, request: Request, fault: Fault, offset: int, length: int) -> None:
        request.offset, request.length = offset, length
        if request.error is not None:
            return
        if fault in (Fault.TORN, Fault.MISPLACED) and request.kind is not Kind.ZERO:
            request.result = length
        elif fault is Fault.FLIPPED and request.kind is Kind.READ:
            self._arena.view[request.at + length // 2] ^= 0x20
        elif fault is Fault.FLIPPED and self._plan.flip is not None:
            self._plan.flip(offset + length // 2)

    def close(self) -> None:
        self._inner.close()


@contextlib.contextmanager
def faulty(plan: Plan, *, ring: bool = True) -> Iterator[None]:
    """Let all requests of the block meet with the faults of a plan.

    :param ring: by io_uring where the kernel has it, else by threads always.
    """

    def make_ring(arena: Arena, entries: int, control: Control) -> RequestQueue:
        if not ring:
            raise RingUnavailable("the test wants threads")
        return FaultyQueue(RingQueue(arena, entries, control), arena, plan)

    def make_threads(arena: Arena, ends: Sequence[OpenEnd], control: Control) -> RequestQueue:
        return FaultyQueue(ThreadQueue(arena, ends, control), arena, plan)

    with mock.patch.object(setup, "RingQueue", make_ring), mock.patch.object(setup, "ThreadQueue", make_threads):
        yield


class LateQueue(RequestQueue):
    """Another queue, some of whose requests end only when no other is under way."""

    def __init__(self, inner: RequestQueue, is_late: Callable[[Request], bool]) -> None:
        self._inner = inner
        self._is_late = is_late
        self._late: list[Request] = []

    @property
    def in_flight(self) -> Collection[Request]:
        return [*self._inner.in_flight, *self._late]

    def submit(self, request: Request) -> None:
        if self._is_late(request):
            self._late.append(request)
        else:
            self._inner.submit(request)

    def kick(self) -> None:
        self._inner.kick()

    def recall(self) -> None:
        self._inner.recall()

    def wait(self, timeout_seconds: float) -> Sequence[Request]:
        if not self._inner.in_flight and self._late:
            self._inner.submit(self._late.pop(0))
        return self._inner.wait(timeout_seconds)

    def close(self) -> None:
        self._inner.close()
