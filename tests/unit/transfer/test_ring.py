"""Queues of requests: io_uring, and threads, which are to behave alike."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import resource
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.waiting import LONG, SOON, until
from volmig import errors
from volmig.transfer import Control, copy
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.ends.handles import HandleEnd
from volmig.transfer.flow import ring
from volmig.transfer.flow.arena import BUFFER_BYTES, Arena
from volmig.transfer.flow.request import Kind, Request, RequestQueue
from volmig.transfer.flow.ring import RingQueue, RingUnavailable
from volmig.transfer.flow.threads import ThreadQueue

from .fakes import Handle, blocks_of, make_file, pattern

MIB = 1024 * 1024
Make = Callable[..., RequestQueue]


@pytest.fixture
def arena() -> Arena:
    return Arena(8)


@pytest.fixture
def end(tmp_path: Path) -> Iterator[FileEnd]:
    path = tmp_path / "file"
    path.write_bytes(pattern(4 * MIB))
    with FileEnd(str(path), os.O_RDWR, is_destination=True) as opened:
        yield opened


@pytest.fixture(params=["io_uring", "threads"])
def queue(request: pytest.FixtureRequest, arena: Arena, end: FileEnd) -> Iterator[RequestQueue]:
    made: RequestQueue = (
        RingQueue(arena, 64, Control()) if request.param == "io_uring" else ThreadQueue(arena, [end], Control())
    )
    with contextlib.closing(made):
        yield made


def all_of(queue: RequestQueue, seconds: float = LONG) -> list[Request]:
    """Wait for everything that is under way."""
    ended: list[Request] = []
    end = time.monotonic() + seconds
    while queue.in_flight:
        assert time.monotonic() < end, f"{len(queue.in_flight)} requests do not end"
        ended.extend(queue.wait(0.1))
    return ended


def one(queue: RequestQueue, request: Request) -> Request:
    queue.submit(request)
    assert all_of(queue) == [request]
    return request


def replaced(end: FileEnd, fd: int) -> None:
    """Let an end's requests go to another descriptor."""
    os.dup2(fd, end.buffered)
    end.give_up_direct()


def test_reading_and_writing(queue: RequestQueue, arena: Arena, end: FileEnd) -> None:
    for offset, length in ((0, MIB), (4096, 8192), (MIB, 1), (12345, 777), (4 * MIB - 5, 5)):
        at = arena.free[-1]
        read = one(queue, Request(kind=Kind.READ, end=end, offset=offset, length=length, at=at))
        assert (read.result, read.error) == (length, None)
        assert bytes(arena.view[at : at + length]) == pattern(4 * MIB)[offset : offset + length]
        arena.view[at : at + length] = b"\xab" * length
        written = one(queue, Request(kind=Kind.WRITE, end=end, offset=offset, length=length, at=at))
        assert (written.result, written.error) == (length, None)
        assert os.pread(end.buffered, length, offset) == b"\xab" * length
        os.pwrite(end.buffered, pattern(4 * MIB), 0)


def test_the_end_of_a_file_is_a_short_read_and_then_none(queue: RequestQueue, arena: Arena, end: FileEnd) -> None:
    at = arena.free[-1]
    assert one(queue, Request(kind=Kind.READ, end=end, offset=4 * MIB - 10, length=100, at=at)).result == 10
    assert one(queue, Request(kind=Kind.READ, end=end, offset=5 * MIB, length=4096, at=at)).result == 0


def test_many_at_once_each_to_its_own_place(queue: RequestQueue, arena: Arena, end: FileEnd) -> None:
    expected = bytearray(pattern(4 * MIB))
    for index in range(64):
        at = arena.free[index % 8] + index // 8 * 4096
        arena.view[at : at + 4096] = bytes([index + 1]) * 4096
        offset = index * 64 * 1024
        expected[offset : offset + 4096] = bytes([index + 1]) * 4096
        queue.submit(Request(kind=Kind.WRITE, end=end, offset=offset, length=4096, at=at))
        assert len(queue.in_flight) <= 64
    ended = all_of(queue)
    assert sorted(request.offset for request in ended) == [index * 64 * 1024 for index in range(64)]
    assert Path(end.name).read_bytes() == expected


def test_more_requests_than_entries(arena: Arena, end: FileEnd) -> None:
    with contextlib.closing(RingQueue(arena, 4, Control())) as queue:
        for index in range(20):
            at = arena.free[-1] + index * 4096
            arena.view[at : at + 4096] = bytes([index + 1]) * 4096
            queue.submit(Request(kind=Kind.WRITE, end=end, offset=index * 4096, length=4096, at=at))
        assert len(all_of(queue)) == 20
    content = Path(end.name).read_bytes()
    assert content[: 20 * 4096] == b"".join(bytes([index + 1]) * 4096 for index in range(20))


def test_zeroing_and_flushing(queue: RequestQueue, end: FileEnd) -> None:
    assert one(queue, Request(kind=Kind.FLUSH, end=end, offset=0, length=0)).error is None
    before = blocks_of(Path(end.name))
    zeroed = one(queue, Request(kind=Kind.ZERO, end=end, offset=4096, length=MIB))
    assert (zeroed.result, zeroed.error) == (1, None)
    expected = pattern(4 * MIB)[:4096] + bytes(MIB) + pattern(4 * MIB)[4096 + MIB :]
    assert Path(end.name).read_bytes() == expected
    assert blocks_of(Path(end.name)) <= before - MIB + 65536
    for length in (MIB, 1 << 33):
        written = one(queue, Request(kind=Kind.WRITE_BACK, end=end, offset=0, length=length))
        assert written.error is None, "a window behind a large hole is long"


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.ZERO])
def test_an_end_that_may_not_be_written(queue: RequestQueue, arena: Arena, end: FileEnd, kind: Kind) -> None:
    read_only = os.open(end.name, os.O_RDONLY)
    replaced(end, read_only)
    os.close(read_only)
    failed = one(queue, Request(kind=kind, end=end, offset=0, length=4096, at=arena.free[-1]))
    assert isinstance(failed.error, OSError)
    assert failed.error.errno == errno.EBADF
    assert Path(end.name).read_bytes() == pattern(4 * MIB)


def test_no_room_is_a_short_write_and_then_an_error(queue: RequestQueue, arena: Arena, end: FileEnd) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    end.give_up_direct()
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * MIB, limits[1]))
    try:
        at = arena.free[-1]
        short = one(queue, Request(kind=Kind.WRITE, end=end, offset=5 * MIB - 4096, length=8192, at=at))
        assert (short.result, short.error) == (4096, None)
        failed = one(queue, Request(kind=Kind.WRITE, end=end, offset=5 * MIB, length=4096, at=at))
        assert isinstance(failed.error, OSError)
        assert failed.error.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", [Kind.READ, Kind.WRITE])
def test_direct_requests_that_are_refused_go_through_the_cache(
    queue: RequestQueue, arena: Arena, end: FileEnd, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct, refused = end.direct, []
    push, preadv, pwrite = ring._Ring.push, os.preadv, os.pwrite

    def push_to(to: ring._Ring, request: Request, operation: int, fd: int, offset: int, *others: int) -> None:
        if fd == direct:
            refused.append(offset)
        # The kernel refuses a negative offset as it refuses what is not aligned.
        push(to, request, operation, fd, offset | 1 << 63 if fd == direct else offset, *others)

    def refusing_direct(call: Callable[..., int]) -> Callable[..., int]:
        def act(fd: int, data: object, offset: int) -> int:
            if fd == direct:
                refused.append(offset)
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return call(fd, data, offset)

        return act

    monkeypatch.setattr(ring._Ring, "push", push_to)
    monkeypatch.setattr(os, "preadv", refusing_direct(preadv))
    monkeypatch.setattr(os, "pwrite", refusing_direct(pwrite))
    requests = [Request(kind=kind, end=end, offset=index * MIB, length=MIB, at=arena.free[index]) for index in range(4)]
    for request in requests:
        arena.view[request.at : request.at + MIB] = b"\xcd" * MIB
        queue.submit(request)
    all_of(queue)
    assert refused
    assert end.direct is None
    assert [(request.result, request.error) for request in requests] == [(MIB, None)] * 4
    if kind is Kind.READ:
        assert b"".join(arena.view[request.at : request.at + MIB] for request in requests) == pattern(4 * MIB)
    else:
        assert Path(end.name).read_bytes() == b"\xcd" * (4 * MIB)


def test_zeroing_that_cannot_be_done_tells_so_to_all_that_wait(queue: RequestQueue, end: FileEnd) -> None:
    # Modes that there are not: EOPNOTSUPP.
    end._zero_modes = [0x400, 0x800]
    requests = [Request(kind=Kind.ZERO, end=end, offset=index * MIB + 1, length=5) for index in range(8)]
    for request in requests:
        queue.submit(request)
    all_of(queue)
    assert [(request.result, request.error) for request in requests] == [(0, None)] * 8
    assert not end.zeroes_cheaply
    assert one(queue, Request(kind=Kind.ZERO, end=end, offset=0, length=4096)).result == 0
    assert Path(end.name).read_bytes() == pattern(4 * MIB)


def test_the_second_way_of_zeroing_is_tried_for_what_the_first_refused(queue: RequestQueue, end: FileEnd) -> None:
    end._zero_modes = [0x400, 0x03]
    requests = [Request(kind=Kind.ZERO, end=end, offset=index * 8192 + 1, length=4096) for index in range(8)]
    for request in requests:
        queue.submit(request)
    all_of(queue)
    assert [request.result for request in requests] == [1] * 8
    content = Path(end.name).read_bytes()
    assert all(not any(content[request.offset : request.offset + 4096]) for request in requests)


@pytest.fixture
def silent(end: FileEnd) -> Iterator[int]:
    """Make an end one whose reads are never answered, and return where to write the answer."""
    reading, writing = os.pipe()
    replaced(end, reading)
    os.close(reading)
    yield writing
    with contextlib.suppress(OSError):
        os.close(writing)


def test_waiting_ends_in_time(arena: Arena, end: FileEnd, silent: int) -> None:
    with contextlib.closing(RingQueue(arena, 4, Control())) as queue:
        queue.submit(Request(kind=Kind.READ, end=end, offset=0, length=10, at=arena.free[-1]))
        for seconds in (0.0, 0.1):
            begun = time.monotonic()
            assert list(queue.wait(seconds)) == []
            assert seconds <= time.monotonic() - begun < SOON
        os.write(silent, b"answer")
        (ended,) = queue.wait(LONG)
        assert ended.result == 6
        assert bytes(arena.view[arena.free[-1] :][:6]) == b"answer"


def test_an_abandoned_request_keeps_its_memory(end: FileEnd, silent: int) -> None:
    arena = Arena(1)
    queue = RingQueue(arena, 4, Control())
    queue.submit(Request(kind=Kind.READ, end=end, offset=0, length=4096, at=arena.free[-1]))
    assert list(queue.wait(0.0)) == []
    begun = time.monotonic()
    queue.close()
    end.close()
    assert time.monotonic() - begun < SOON
    alive = weakref.ref(arena)
    del arena, queue
    gc.collect()
    assert alive() is not None
    os.write(silent, b"late")
    until(lambda: (gc.collect(), alive())[1] is None)


def test_what_was_not_begun_is_taken_back(arena: Arena, end: FileEnd) -> None:
    for begun in (0, 2):
        with contextlib.closing(RingQueue(arena, 8, Control())) as queue:
            requests = [
                Request(kind=Kind.WRITE, end=end, offset=index * 4096, length=4096, at=arena.zeroes)
                for index in range(5)
            ]
            for request in requests[:begun]:
                queue.submit(request)
            queue.kick()
            for request in requests[begun:]:
                queue.submit(request)
            queue.recall()
            # What was begun ends one way or the other; the rest never happened.
            assert set(all_of(queue)) == set(requests[:begun])
            assert list(queue.wait(0.0)) == []
        assert Path(end.name).read_bytes()[begun * 4096 :] == pattern(4 * MIB)[begun * 4096 :]


def test_what_waits_for_a_thread_is_taken_back(arena: Arena) -> None:
    handle = Handle(bytes(MIB))
    going, begun = threading.Event(), threading.Event()

    def hold(position: int, data: bytes) -> bytes:
        begun.set()
        assert going.wait(LONG)
        return data

    handle.on_write = hold
    end = HandleEnd(handle, reads=False, writes=True, is_destination=True)  # type: ignore[arg-type]
    arena.view[arena.free[-1] : arena.free[-1] + 4096] = b"x" * 4096
    requests = [
        Request(kind=Kind.WRITE, end=end, offset=index * 4096, length=4096, at=arena.free[-1]) for index in range(5)
    ]
    with contextlib.closing(ThreadQueue(arena, [end], Control())) as queue:
        for request in requests:
            queue.submit(request)
        assert begun.wait(LONG)
        queue.recall()
        assert list(queue.in_flight) == requests[:1]
        going.set()
        assert all_of(queue) == requests[:1]
    assert handle.content == b"x" * 4096 + bytes(MIB - 4096)


def test_a_descriptor_outlives_the_thread_that_hangs_in_it(arena: Arena, end: FileEnd, silent: int) -> None:
    queue = ThreadQueue(arena, [end], Control())
    number, asked = end.buffered, threading.Event()

    def read_some(view: memoryview, offset: int) -> int:
        asked.set()
        return os.readv(number, [view])

    end.read_some = read_some  # type: ignore[method-assign]
    queue.submit(Request(kind=Kind.READ, end=end, offset=0, length=16, at=arena.free[-1]))
    assert asked.wait(LONG)
    queue.close()
    end.close()
    os.fstat(number)
    os.write(silent, b"late")
    until(lambda: not Path(f"/proc/self/fd/{number}").exists())


def test_an_interrupted_request_is_made_again_unless_cancelled(
    monkeypatch: pytest.MonkeyPatch, arena: Arena, end: FileEnd
) -> None:
    control = Control()
    collect, left = ring._Ring._collect, [3]

    def interrupted(self: ring._Ring) -> None:
        before = len(self.answers)
        collect(self)
        if len(self.answers) > before and left[0]:
            left[0] -= 1
            answers = [(number, -errno.EINTR) for number, _ in self.answers]
            self.answers.clear()
            self.answers.extend(answers)

    monkeypatch.setattr(ring._Ring, "_collect", interrupted)
    with contextlib.closing(RingQueue(arena, 8, control)) as queue:
        assert one(queue, Request(kind=Kind.READ, end=end, offset=0, length=9, at=arena.free[-1])).result == 9
        assert left == [0]
        left[0] = 1
        queue.submit(Request(kind=Kind.READ, end=end, offset=0, length=9, at=arena.free[-1]))
        control.cancel()
        (ended,) = all_of(queue)
        assert isinstance(ended.error, errors.TransferCancelled)


# --- where there is no io_uring ---------------------------------------------------------------


def refusing(number: int, syscall: int) -> Callable[..., int]:
    call = ring._call

    def act(*arguments: int) -> int:
        if arguments[0] == syscall:
            raise OSError(number, os.strerror(number))
        return call(*arguments)

    return act


@pytest.mark.parametrize("syscall", [ring._SYS_IO_URING_SETUP, ring._SYS_IO_URING_ENTER])
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.ENOMEM])
def test_threads_take_over_where_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, syscall: int
) -> None:
    monkeypatch.setattr(ring, "_call", refusing(number, syscall))
    source = make_file(tmp_path / "source", 3 * MIB, [(0, MIB), (2 * MIB, 2 * MIB + 5)])
    destination = tmp_path / "destination"
    destination.write_bytes(b"\xee" * (3 * MIB))
    result = copy(source, destination, size_bytes=3 * MIB)
    assert destination.read_bytes() == source.read_bytes()
    assert f"threads, since io_uring is refused ({os.strerror(number)})" in result.means


def test_an_old_kernel_s_ring_is_not_used(monkeypatch: pytest.MonkeyPatch, arena: Arena) -> None:
    # NODROP only, as in Linux 5.5.
    monkeypatch.setattr(ring, "_FEATURES", ring._FEATURES | 1 << 31)
    with pytest.raises(RingUnavailable, match="too old"):
        RingQueue(arena, 4, Control())


def test_memory_that_cannot_be_mapped_is_a_refusal(monkeypatch: pytest.MonkeyPatch, arena: Arena) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(ring.mmap, "mmap", refuse)
    with pytest.raises(RingUnavailable, match="Cannot allocate memory"):
        RingQueue(arena, 4, Control())


def test_it_is_said_how_the_requests_were_made(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", MIB, [(0, MIB)])
    result = copy(source, make_file(tmp_path / "destination", MIB), size_bytes=MIB)
    with contextlib.suppress(RingUnavailable):
        RingQueue(Arena(1), 1, Control()).close()
        assert result.means.startswith("io_uring; source ")
    assert "destination past the cache" in result.means or "destination through the cache" in result.means


def test_an_arena_is_aligned_and_its_buffers_are_apart() -> None:
    for buffers in (1, 2, 7, 64):
        arena = Arena(buffers)
        places = sorted([arena.zeroes, *arena.free])
        assert len(places) == buffers + 1
        assert all((arena.address + place) % 4096 == 0 for place in places)
        assert all(other - one >= BUFFER_BYTES for one, other in itertools.pairwise(places))
        assert places[-1] + BUFFER_BYTES <= len(arena.view)
        assert len(arena.view) <= (buffers + 3) * BUFFER_BYTES


def test_the_first_byte_that_differs_is_found() -> None:
    arena = Arena(2)
    one, other = arena.free
    data = pattern(BUFFER_BYTES)
    for place in (0, 1, 7, 4095, 4096, 65536, BUFFER_BYTES - 2, BUFFER_BYTES - 1):
        for more in (0, 1, 1000):
            arena.view[one : one + BUFFER_BYTES] = data
            arena.view[other : other + BUFFER_BYTES] = data
            assert arena.difference(one, other, BUFFER_BYTES) == BUFFER_BYTES
            arena.view[other + place] ^= 1
            if more and place + more < BUFFER_BYTES:
                arena.view[other + place + more] ^= 1
            assert arena.difference(one, other, BUFFER_BYTES) == place
            assert arena.difference(one, other, place) == place
            assert arena.difference(one, other, place + 1) == place
