"""The pump, over a queue that answers as the test says."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig import errors
from volmig.transfer import Control
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.ends.handles import HandleEnd
from volmig.transfer.flow.arena import Arena
from volmig.transfer.flow.plan import Task, tasks
from volmig.transfer.flow.pump import Flow, Pump
from volmig.transfer.flow.request import Kind, Request, RequestQueue

from .fakes import Handle

MIB = 1024 * 1024
STEP = 64 * 1024


class Scripted(RequestQueue):
    """Answers in an order of its own what is under way.

    :param answer: called with each request when it ends; sets its result or error.
    """

    def __init__(self, answer: Callable[[Request], None], seed: int = 0) -> None:
        self.answer = answer
        self.chosen = random.Random(seed)
        self.under_way: list[Request] = []
        self.most = 0
        self.most_bytes = 0
        self.submitted: list[tuple[Kind, int, int]] = []
        self.recalled = False

    @property
    def in_flight(self) -> Collection[Request]:
        return self.under_way

    def submit(self, request: Request) -> None:
        assert not self.recalled, "begun after the end"
        self.under_way.append(request)
        self.submitted.append((request.kind, request.offset, request.length))
        self.most = max(self.most, len(self.under_way))
        self.most_bytes = max(self.most_bytes, sum(one.length for one in self.under_way))

    def wait(self, timeout_seconds: float) -> Sequence[Request]:
        count = self.chosen.randint(1 if timeout_seconds else 0, 3)
        ended = self.chosen.sample(self.under_way, min(count, len(self.under_way)))
        for request in ended:
            self.under_way.remove(request)
            self.answer(request)
        return ended

    def recall(self) -> None:
        self.recalled = True

    def close(self) -> None:
        pass


def whole(request: Request) -> None:
    request.result = request.length


class ReadWrite(Flow):
    """Reads each part in steps of 64 KiB and writes what it read; keeps a record."""

    def __init__(self, end: OpenEnd) -> None:
        self.end = end
        self.read: list[tuple[int, int]] = []
        self.written: list[tuple[int, int]] = []
        self.digests: list[int] = []
        self.finished: list[int] = []
        self.active: set[Task] = set()
        self.open = True

    def may_begin(self) -> bool:
        return self.open

    def begin(self, task: Task) -> Iterator[Request]:
        self.active.add(task)
        task.unread = sum(end - start for start, end in task.data)
        for first, end in task.data:
            for start in range(first, end, STEP):
                length = min(STEP, end - start)
                yield Request(kind=Kind.READ, end=self.end, offset=start, length=length, at=task.at, task=task)

    def ended(self, request: Request) -> Iterable[Request]:
        span = (request.first_offset, request.offset + request.length)
        if request.kind is Kind.READ:
            self.read.append(span)
            request.task.unread -= span[1] - span[0]
            yield Request(
                kind=Kind.WRITE, end=self.end, offset=span[0], length=span[1] - span[0], at=0, task=request.task
            )
        else:
            self.written.append(span)

    def digested(self, task: Task) -> None:
        assert task.unread == 0
        assert task in self.active
        self.digests.append(task.offset)

    def finish(self, task: Task) -> Iterable[Request]:
        assert task.pending == 0
        self.active.remove(task)
        self.finished.append(task.offset)
        return ()


@pytest.fixture
def flow() -> ReadWrite:
    return ReadWrite(end_of("<storage>"))


def end_of(name: str, *, is_destination: bool = False) -> HandleEnd:
    handle = Handle(bytes(16))
    handle.name = name  # type: ignore[attr-defined]
    return HandleEnd(handle, reads=True, writes=True, is_destination=is_destination)  # type: ignore[arg-type]


def pump_of(
    queue: RequestQueue, arena: Arena | None = None, control: Control | None = None, requests: int = 8
) -> tuple[Pump, Arena]:
    arena = arena or Arena(4)
    pump = Pump(queue, arena, control or Control(), requests_in_flight=requests, bytes_in_flight=8 * STEP)
    return pump, arena


@settings(max_examples=60, deadline=None)
@given(
    extents=st.lists(st.tuples(st.integers(0, 5 * MIB), st.integers(1, 2 * MIB)), max_size=5),
    seed=st.integers(0, 10**6),
    shortest=st.sampled_from([1 << 62, 40_000, 1]),
    requests=st.integers(1, 8),
)
def test_every_part_is_done_once_whatever_the_order_and_however_short(
    extents: list[tuple[int, int]], seed: int, shortest: int, requests: int
) -> None:
    position, apart = 0, []
    for gap, length in extents:
        apart.append((position + gap, position + gap + length))
        position += gap + length
    chosen = random.Random(seed)

    def some(request: Request) -> None:
        request.result = chosen.randint(min(shortest, request.length), request.length) if shortest > 1 else (
            request.length if chosen.random() < 0.8 else 1
        )  # fmt: skip

    queue = Scripted(some, seed)
    pump, arena = pump_of(queue, requests=requests)
    flow = ReadWrite(end_of("x"))
    free = sorted(arena.free)
    plan = list(tasks(apart, 0, position))
    pump.run(iter(plan), flow)
    wanted = sorted((start, min(start + STEP, end)) for t in plan for a, end in t.data for start in range(a, end, STEP))
    assert sorted(flow.read) == sorted(flow.written) == wanted
    assert sorted(flow.finished) == [task.offset for task in plan]
    assert sorted(flow.digests) == [task.offset for task in plan if task.data]
    assert sorted(arena.free) == free
    assert not queue.under_way
    assert not flow.active
    assert queue.most <= requests
    assert queue.most_bytes <= 9 * STEP


def test_a_request_of_which_a_part_was_done_goes_on_where_it_stopped(flow: ReadWrite) -> None:
    steps = iter([100, 4000, STEP - 4100])
    queue = Scripted(lambda request: setattr(request, "result", next(steps, request.length)))
    pump_of(queue, requests=1)[0].run(tasks([(0, STEP)], 0, STEP), flow)
    assert queue.submitted[:3] == [(Kind.READ, 0, STEP), (Kind.READ, 100, STEP - 100), (Kind.READ, 4100, STEP - 4100)]
    assert flow.read == flow.written == [(0, STEP)]


def test_a_short_request_is_paid_for_once() -> None:
    now = [0.0]
    control = Control(limit_bytes=1000, clock=lambda: now[0])
    end = end_of("x")

    class Paying(ReadWrite):
        def begin(self, task: Task) -> Iterator[Request]:
            for request in super().begin(task):
                request.cost = request.length
                yield request

    queue = Scripted(lambda request: setattr(request, "result", min(100, request.length)))
    pump, _ = pump_of(queue, control=control)
    pump.run(tasks([(0, 1000)], 0, 1000), Paying(end))
    assert 0.9 < control.admit(1) <= 1.0


@pytest.mark.parametrize("moved", [-1, STEP + 1])
def test_more_than_was_asked_for_is_not_believed(flow: ReadWrite, moved: int) -> None:
    queue = Scripted(lambda request: setattr(request, "result", moved))
    with pytest.raises(errors.TransferFailed, match=f"{moved} bytes were said"):
        pump_of(queue)[0].run(tasks([(0, MIB)], 0, MIB), flow)
    assert not queue.under_way


@pytest.mark.parametrize(
    ("kind", "is_destination", "error"),
    [
        (Kind.READ, False, errors.SourceTooShort),
        (Kind.READ, True, errors.DestinationTooShort),
        (Kind.WRITE, True, errors.TransferFailed),
    ],
)
def test_no_progress_is_a_failure(kind: Kind, is_destination: bool, error: type[errors.VolmigError]) -> None:
    flow = ReadWrite(end_of("<it>", is_destination=is_destination))
    queue = Scripted(lambda request: setattr(request, "result", 0 if request.kind is kind else request.length))
    with pytest.raises(error) as raised:
        pump_of(queue, requests=1)[0].run(tasks([(0, MIB)], 0, MIB), flow)
    assert raised.value.fields["path"] == "<it>"
    assert raised.value.fields.get("actual", raised.value.fields.get("offset")) == 0


@settings(max_examples=40, deadline=None)
@given(failing=st.integers(0, 63), seed=st.integers(0, 1000), kind=st.sampled_from([Kind.READ, Kind.WRITE]))
def test_an_error_of_any_request_ends_all_with_nothing_under_way(failing: int, seed: int, kind: Kind) -> None:
    def answer(request: Request) -> None:
        whole(request)
        if (request.kind, request.offset) == (kind, failing * STEP):
            request.error = OSError(errno.EIO, os.strerror(errno.EIO))

    queue, flow = Scripted(answer, seed), ReadWrite(end_of("<broken>"))
    with pytest.raises(errors.TransferFailed) as raised:
        pump_of(queue)[0].run(tasks([(0, 4 * MIB)], 0, 4 * MIB), flow)
    assert raised.value.fields["offset"] == failing * STEP
    assert isinstance(raised.value.__cause__, OSError)
    assert not queue.under_way
    assert "hangs" not in raised.value.hint


class Together(Scripted):
    """Answers only when all that may be under way is."""

    def wait(self, timeout_seconds: float) -> Sequence[Request]:
        ended, self.under_way = self.under_way, []
        self.chosen.shuffle(ended)
        for request in ended:
            self.answer(request)
        return ended


@pytest.mark.parametrize("seed", range(5))
def test_of_several_failures_the_lowest_is_reported(flow: ReadWrite, seed: int) -> None:
    def answer(request: Request) -> None:
        whole(request)
        if request.offset == 4 * STEP:
            request.result = 0
        elif request.offset >= 3 * STEP:
            request.error = OSError(errno.EIO, str(request.offset))

    queue = Together(answer, seed)
    with pytest.raises(errors.TransferFailed) as raised:
        pump_of(queue)[0].run(tasks([(0, MIB)], 0, MIB), flow)
    assert raised.value.fields["offset"] == 3 * STEP

    queue = Together(lambda request: setattr(request, "result", 0 if request.offset >= 2 * STEP else STEP), seed)
    with pytest.raises(errors.SourceTooShort) as short:
        pump_of(queue)[0].run(tasks([(0, MIB)], 0, MIB), flow)
    assert short.value.fields["actual"] == 2 * STEP


@pytest.mark.parametrize("method", ["begin", "ended", "digested", "finish", "may_begin"])
@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, errors.VerificationFailed])
def test_what_the_flow_raises_is_raised_with_nothing_under_way(
    flow: ReadWrite, monkeypatch: pytest.MonkeyPatch, method: str, kind: type[BaseException]
) -> None:
    error = errors.VerificationFailed(path="x", offset=0) if kind is errors.VerificationFailed else kind()
    real, left = getattr(flow, method), [3 if method in ("begin", "may_begin") else 1]

    def failing(*arguments: object) -> object:
        left[0] -= 1
        if left[0] <= 0:
            raise error
        return real(*arguments)

    monkeypatch.setattr(flow, method, failing)
    queue = Scripted(whole)
    with pytest.raises(kind) as raised:
        pump_of(queue)[0].run(tasks([(0, 8 * MIB)], 0, 8 * MIB), flow)
    assert raised.value is error
    assert not queue.under_way
    assert queue.recalled


def test_a_source_s_map_that_fails_is_raised_with_nothing_under_way(flow: ReadWrite) -> None:
    def extents() -> Iterator[tuple[int, int]]:
        yield 0, MIB
        yield 2 * MIB, 3 * MIB
        raise errors.TransferFailed(path="map", offset=0, reason="lost")

    queue = Scripted(whole)
    with pytest.raises(errors.TransferFailed, match="lost"):
        pump_of(queue)[0].run(tasks(extents(), 0, 4 * MIB), flow)
    assert not queue.under_way


def test_a_flow_that_may_not_begin_is_no_success(flow: ReadWrite) -> None:
    flow.open = False
    with pytest.raises(errors.InternalError, match="standstill"):
        pump_of(Scripted(whole))[0].run(tasks([(0, MIB)], 0, MIB), flow)
    assert not flow.finished


def test_a_flow_goes_on_when_it_may_begin_again(flow: ReadWrite, monkeypatch: pytest.MonkeyPatch) -> None:
    # One part at a time: what opens the flow again is a request that follows the end of a part.
    def begin(task: Task) -> Iterator[Request]:
        flow.open = False
        return ReadWrite.begin(flow, task)

    def finish(task: Task) -> Iterable[Request]:
        ReadWrite.finish(flow, task)
        return [Request(kind=Kind.FLUSH, end=flow.end, offset=0, length=0)]

    def ended(request: Request) -> Iterable[Request]:
        if request.kind is Kind.FLUSH:
            flow.open = True
            return ()
        return ReadWrite.ended(flow, request)

    for method in (begin, finish, ended):
        monkeypatch.setattr(flow, method.__name__, method)
    queue = Scripted(whole)
    pump_of(queue)[0].run(tasks([(0, MIB), (2 * MIB, 3 * MIB)], 0, 5 * MIB), flow)
    assert flow.finished == [0, MIB, 2 * MIB, 3 * MIB]
    assert [kind for kind, _, _ in queue.submitted].count(Kind.FLUSH) == 4


def test_what_follows_the_last_part_is_done(flow: ReadWrite, monkeypatch: pytest.MonkeyPatch) -> None:
    last = Request(kind=Kind.WRITE_BACK, end=flow.end, offset=0, length=5)
    monkeypatch.setattr(flow, "finish", lambda _: [last])
    queue = Scripted(whole)
    # A part that is a hole, for which nothing is asked.
    pump_of(queue)[0].run(tasks([], 0, MIB), flow)
    assert queue.submitted == [(Kind.WRITE_BACK, 0, 5)]
    assert not queue.under_way


def test_what_is_asked_for_first_is_done_first(flow: ReadWrite) -> None:
    queue = Scripted(whole)
    pump, _ = pump_of(queue, requests=1)
    flush = Request(kind=Kind.FLUSH, end=flow.end, offset=0, length=0)
    pump.run(tasks([(0, 1)], 0, 1), flow, [flush])
    assert [kind for kind, _, _ in queue.submitted] == [Kind.FLUSH, Kind.READ, Kind.WRITE]


class Silent(Scripted):
    """Never answers."""

    def wait(self, timeout_seconds: float) -> Sequence[Request]:
        self.waits = getattr(self, "waits", 0) + 1
        if self.waits == 3:
            self.control.cancel()
        return ()

    control: Control


@pytest.mark.parametrize("requests", [1, 3, 100])
def test_a_cancellation_is_heard_when_all_that_may_be_under_way_hangs(
    flow: ReadWrite, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    monkeypatch.setattr("volmig.transfer.flow.pump._CANCEL_GRACE_SECONDS", 0.01)
    queue = Silent(whole)
    queue.control = Control()
    with pytest.raises(errors.TransferCancelled) as raised:
        pump_of(queue, control=queue.control, requests=requests)[0].run(tasks([(0, 8 * MIB)], 0, 8 * MIB), flow)
    assert "the read of 65536 bytes at byte 0 of <storage> has not been answered" in raised.value.hint
    more = min(requests, 8) - 1
    assert (f"(and {more} more)" in raised.value.hint) == bool(more)
    assert raised.value.hint.startswith("The destination is incomplete")


def test_what_hangs_after_a_failure_is_named_too(flow: ReadWrite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volmig.transfer.flow.pump._FAILURE_GRACE_SECONDS", 0.01)

    class OneAnswer(Scripted):
        def wait(self, timeout_seconds: float) -> Sequence[Request]:
            if self.recalled or len(self.under_way) < 2:
                return ()
            failed = self.under_way.pop()
            failed.error = OSError(errno.EIO, os.strerror(errno.EIO))
            return [failed]

    with pytest.raises(errors.TransferFailed) as raised:
        pump_of(OneAnswer(whole), requests=2)[0].run(tasks([(0, MIB)], 0, MIB), flow)
    assert "The storage hangs: the read of 65536 bytes at byte 0 of <storage>" in raised.value.hint
