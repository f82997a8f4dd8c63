"""The pump: takes the parts of a volume one after the other, and keeps requests for them under way."""

from __future__ import annotations

import abc
import collections
import time
from collections.abc import Iterable, Iterator

from volmig import errors
from volmig.transfer.control import Control
from volmig.transfer.ends.base import failure
from volmig.transfer.flow.arena import Arena
from volmig.transfer.flow.plan import Task
from volmig.transfer.flow.request import Kind, Request, RequestQueue

_POLL_SECONDS = 0.1
"""How long it may take until a cancellation is seen."""

_CANCEL_GRACE_SECONDS = 0.4
"""How long requests under way are waited for after a cancellation."""

_FAILURE_GRACE_SECONDS = 5.0
"""How long the others are waited for after one has failed."""


class Flow(abc.ABC):
    """What is done with each part of a volume; the pump does the asking and the waiting."""

    buffers: int = 1
    """Buffers that a leaf takes."""

    def may_begin(self) -> bool:
        """Say whether another part may be begun now; if not, requests are under way that change that."""
        return True

    @abc.abstractmethod
    def begin(self, task: Task) -> Iterator[Request]:
        """Yield the requests that a part begins with, each made when it is about to be submitted."""

    @abc.abstractmethod
    def ended(self, request: Request) -> Iterable[Request]:
        """Take note of a request that moved all it was asked for; return what follows from it."""

    def digested(self, task: Task) -> None:
        """Do what takes processor time with a leaf that was read, while other requests are under way."""

    @abc.abstractmethod
    def finish(self, task: Task) -> Iterable[Request]:
        """Take note that nothing is left to be done for a part; return requests that belong to none."""


class Pump:
    """Runs one flow over the parts of a volume.

    Memory: the arena's. All is done in the calling thread, which waits in the queue, for 0.1 s at a time.
    """

    def __init__(
        self, queue: RequestQueue, arena: Arena, control: Control, *, requests_in_flight: int, bytes_in_flight: int
    ) -> None:
        self._queue = queue
        self._arena = arena
        self._control = control
        self._most_requests = requests_in_flight
        self._most_bytes = bytes_in_flight
        self._bytes = 0
        self._following: collections.deque[Request] = collections.deque()
        self._to_digest: collections.deque[Task] = collections.deque()
        self._beginning: Iterator[Request] | None = None
        self._task: Task | None = None
        self._held_seconds = 0.0
        self._exhausted = False

    def run(self, tasks: Iterator[Task], flow: Flow, first: Iterable[Request] = ()) -> None:
        """Do the requests in *first* and all of *tasks*.

        When it raises, requests may be under way only where they do not end; the error's hint names them then.

        :raises volmig.errors.TransferCancelled: within a second of the cancellation.
        :raises volmig.errors.OperatorError: when a request failed.
        """
        self._following.extend(first)
        self._exhausted = False
        try:
            while self._step(tasks, flow):
                pass
        except BaseException as exc:
            self._drain(_CANCEL_GRACE_SECONDS if isinstance(exc, errors.TransferCancelled) else _FAILURE_GRACE_SECONDS)
            if isinstance(exc, errors.VolmigError):
                exc.hint = f"{exc.hint} {self._stuck()}".strip()
            if isinstance(exc, errors.TransferCancelled):
                exc.storage_hangs = bool(self._queue.in_flight)
            raise

    def _step(self, tasks: Iterator[Task], flow: Flow) -> bool:
        """Submit what can be, and take note of what has ended; return False when all is done."""
        self._submit(tasks, flow)
        if self._to_digest:
            self._queue.kick()
            self._digest(flow)
            self._complete(self._queue.wait(0.0), flow)
        elif self._queue.in_flight:
            self._complete(self._queue.wait(min(self._held_seconds or _POLL_SECONDS, _POLL_SECONDS)), flow)
        elif self._held_seconds:
            self._control.wait(min(self._held_seconds, _POLL_SECONDS))
        elif self._exhausted:
            return False
        else:
            raise errors.InternalError(reason="a copy came to a standstill before its end")
        return True

    # --- submitting ---------------------------------------------------------------------------

    def _submit(self, tasks: Iterator[Task], flow: Flow) -> None:
        self._held_seconds = 0.0
        if self._control.cancelled:
            # Here too, since everything that may be under way may hang, so that nothing is asked to be admitted.
            raise self._control.cancellation()
        while len(self._queue.in_flight) < self._most_requests and self._bytes < self._most_bytes:
            if not self._following:
                self._begin(tasks, flow)
            if not self._following:
                return
            self._held_seconds = self._control.admit(self._following[0].cost)
            if self._held_seconds:
                return
            self._send(self._following.popleft())

    def _begin(self, tasks: Iterator[Task], flow: Flow) -> None:
        """Put the next request of the part that is being begun in line, if there is one and it may be begun.

        What follows from a part that turns out to need no requests is put there too.
        """
        while not self._following:
            if self._beginning is None:
                if len(self._arena.free) < flow.buffers or not flow.may_begin():
                    return
                task = next(tasks, None)
                if task is None:
                    self._exhausted = True
                    return
                if task.data:
                    task.at = self._arena.free.pop()
                    task.other_at = self._arena.free.pop() if flow.buffers > 1 else 0
                task.pending = 1
                self._task, self._beginning = task, flow.begin(task)
            request = next(self._beginning, None)
            if request is not None:
                if request.task is not None:
                    request.task.pending += 1
                self._following.append(request)
                return
            begun, self._task, self._beginning = self._task, None, None
            if begun is not None:
                self._done_with(begun, flow)

    def _send(self, request: Request) -> None:
        request.started_at = time.monotonic()
        if request.kind in (Kind.READ, Kind.WRITE):
            self._bytes += request.length
        self._queue.submit(request)

    # --- completing ---------------------------------------------------------------------------

    def _complete(self, requests: Iterable[Request], flow: Flow) -> None:
        failed: list[tuple[int, errors.VolmigError]] = []
        for request in requests:
            if request.kind in (Kind.READ, Kind.WRITE):
                self._bytes -= request.length
            error = self._problem(request)
            if error is not None:
                failed.append((request.offset, error))
            elif request.kind in (Kind.READ, Kind.WRITE) and request.result != request.length:
                self._shorten(request)
            else:
                self._note(request, flow)
        if failed:
            raise min(failed, key=lambda found: found[0])[1]

    def _problem(self, request: Request) -> errors.VolmigError | None:
        """Return why a request that has ended failed; None when it did not."""
        cause = request.error
        if cause is not None:
            error = failure(request.end, cause, offset=request.offset, writing=request.kind is not Kind.READ)
            if error is not cause:
                error.__cause__ = cause
            return error
        if request.kind not in (Kind.READ, Kind.WRITE):
            return None
        moved = request.result
        if not 0 <= moved <= request.length:
            return errors.TransferFailed(
                path=request.end.name,
                offset=request.offset,
                reason=f"{moved} bytes were said to be moved where {request.length} were asked for",
            )
        return None if moved else self._no_progress(request)

    def _shorten(self, request: Request) -> None:
        """Ask for the rest of a request of which only a part was done."""
        moved = request.result
        request.offset += moved
        request.at += moved
        request.length -= moved
        request.result = 0
        # It has been paid for as a whole.
        request.cost = 0
        self._following.appendleft(request)

    def _no_progress(self, request: Request) -> errors.VolmigError:
        end = request.end
        if request.kind is Kind.WRITE:
            return errors.TransferFailed(path=end.name, offset=request.offset, reason="it takes no more data")
        error = errors.DestinationTooShort if end.is_destination else errors.SourceTooShort
        return error(path=end.name, actual=request.offset, expected=end.size_bytes)

    def _note(self, request: Request, flow: Flow) -> None:
        task: Task | None = request.task
        for follower in flow.ended(request):
            if follower.task is not None:
                follower.task.pending += 1
            self._following.append(follower)
        if task is None:
            return
        if task.data and task.unread == 0 and request.kind is Kind.READ:
            task.pending += 1
            self._to_digest.append(task)
        self._done_with(task, flow)

    def _digest(self, flow: Flow) -> None:
        task = self._to_digest.popleft()
        flow.digested(task)
        self._done_with(task, flow)

    def _done_with(self, task: Task, flow: Flow) -> None:
        task.pending -= 1
        if task.pending:
            return
        if task.data:
            self._arena.free.append(task.at)
            if flow.buffers > 1:
                self._arena.free.append(task.other_at)
        self._following.extend(flow.finish(task))

    # --- ending early -------------------------------------------------------------------------

    def _drain(self, grace_seconds: float) -> None:
        """Wait for what is under way, so that nothing is written after the end; not for ever."""
        self._queue.recall()
        until = time.monotonic() + grace_seconds
        while self._queue.in_flight and (left := until - time.monotonic()) > 0:
            if self._control.cancelled:
                until = min(until, time.monotonic() + _CANCEL_GRACE_SECONDS)
                grace_seconds = _CANCEL_GRACE_SECONDS
            self._queue.wait(min(left, _POLL_SECONDS))

    def _stuck(self) -> str:
        """Say what does not end; empty when everything has."""
        stuck = sorted(self._queue.in_flight, key=lambda request: request.started_at)
        if not stuck:
            return ""
        more = f" (and {len(stuck) - 1} more)" if len(stuck) > 1 else ""
        return f"The storage hangs: {stuck[0].describe()}{more}. Do not use the destination before that has ended."
