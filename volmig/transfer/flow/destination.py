"""What is done to a destination beside copying to it: zeroing what lies behind the copy, and flushing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from volmig.transfer.base import CopyOptions
from volmig.transfer.control import Control
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.flow.arena import BUFFER_BYTES, Arena
from volmig.transfer.flow.lookup import looking
from volmig.transfer.flow.plan import Task
from volmig.transfer.flow.pump import Flow
from volmig.transfer.flow.request import Kind, Request
from volmig.transfer.flow.setup import machinery

_ZEROING_BYTES = 128 * 1024 * 1024
"""Most that is made zero by one request, so that it does not hold up a cancellation for long."""


class Zeroing:
    """Makes ranges of a destination zero, by the cheapest means that it has."""

    def __init__(
        self, destination: OpenEnd, arena: Arena, control: Control, *, is_zero: bool, chunk_bytes: int = BUFFER_BYTES
    ) -> None:
        """Note what to work on.

        :param chunk_bytes: most that is written at once.
        :param is_zero: the destination is known to read as zeroes everywhere.
        """
        self._destination = destination
        self._arena = arena
        self._control = control
        self._is_zero = is_zero
        self._chunk = chunk_bytes

    def requests(self, task: Task, start: int, end: int, *, paid: bool = False) -> Iterator[Request]:
        """Yield what makes a range zero; nothing for one that is known to be.

        :param paid: the range was counted for the bandwidth limit already, when it was read.
        """
        if self._is_zero or start == end or self._destination.known_zero(start, end - start):
            return
        step = self._destination.zero_step_bytes
        first, last = -(-start // step) * step, end // step * step
        if first >= last or not self._destination.zeroes_cheaply:
            yield from self.writes(task, start, end, paid=paid)
            return
        yield from self.writes(task, start, first, paid=paid)
        while first < last and self._destination.zeroes_cheaply:
            length = min(_ZEROING_BYTES, last - first)
            yield Request(kind=Kind.ZERO, end=self._destination, offset=first, length=length, task=task)
            first += length
        yield from self.writes(task, first, end, paid=paid)

    def writes(self, task: Task, start: int, end: int, *, paid: bool = False) -> Iterator[Request]:
        """Yield requests that write zeroes to a range."""
        while start < end:
            length = min(self._control.request_bytes(self._chunk), end - start)
            yield Request(
                kind=Kind.WRITE,
                end=self._destination,
                offset=start,
                length=length,
                at=self._arena.zeroes,
                cost=0 if paid else length,
                task=task,
            )
            start += length


class _ZeroFlow(Flow):
    """Makes its tasks zero."""

    def __init__(self, zeroing: Zeroing) -> None:
        self._zeroing = zeroing

    def begin(self, task: Task) -> Iterator[Request]:
        return self._zeroing.requests(task, task.offset, task.end)

    def ended(self, request: Request) -> Iterable[Request]:
        if request.kind is Kind.ZERO and not request.result:
            return self._zeroing.writes(request.task, request.offset, request.offset + request.length)
        return ()

    def finish(self, task: Task) -> Iterable[Request]:
        return ()


def zero_tail(destination: OpenEnd, size_bytes: int, options: CopyOptions, control: Control) -> None:
    """Make zero what a destination has behind *size_bytes*; it is not flushed."""
    if options.destination_is_zero or destination.size_bytes == size_bytes:
        return
    with looking(control) as lookup:
        lookup.survey(destination, size_bytes, destination.size_bytes)
    tail = Task(size_bytes, destination.size_bytes, [])
    _run(destination, control, iter([tail]))


def flush(destination: OpenEnd, control: Control) -> None:
    """Bring everything written to stable storage, without hanging longer than a cancellation allows."""
    _run(destination, control, iter(()), [Request(kind=Kind.FLUSH, end=destination, offset=0, length=0)])


def _run(end: OpenEnd, control: Control, tasks: Iterator[Task], first: Iterable[Request] = ()) -> None:
    with machinery([end], 0, control) as parts:
        zeroing = Zeroing(end, parts.arena, control, is_zero=False)
        parts.pump.run(tasks, _ZeroFlow(zeroing), first)
