"""What all flows share: reading leaves, seeing which blocks are zero, and digesting them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from volmig import errors
from volmig.transfer.base import CopyOptions
from volmig.transfer.control import Control
from volmig.transfer.digest import BLOCK_BYTES, TreeDigest, leaf_hash
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.flow.arena import Arena
from volmig.transfer.flow.plan import Task
from volmig.transfer.flow.pump import Flow
from volmig.transfer.flow.request import Kind, Request

WINDOW_BYTES = 16 * 1024 * 1024
"""What goes through the cache is dropped from it each time that so much is done."""


class ReadingFlow(Flow):
    """Reads an end, leaf by leaf, and digests it.

    :param advance: called with (bytes dealt with, bytes of these passed over) since the last call.
    :param hashes: whether to compute the digest; without, it only keeps account of how far all is done.
    """

    def __init__(
        self,
        end: OpenEnd,
        arena: Arena,
        control: Control,
        options: CopyOptions,
        *,
        digest: TreeDigest,
        advance: Callable[[int, int], None],
        hashes: bool = True,
    ) -> None:
        self._end = end
        self._arena = arena
        self._control = control
        self._chunk = options.chunk_bytes
        self._digest = digest
        self._advance = advance
        self._hashes = hashes
        self._active: dict[Task, None] = {}
        self._begun_to = 0
        self._read_to = 0

    def begin(self, task: Task) -> Iterator[Request]:
        self._active[task] = None
        self._begun_to = task.end
        task.unread = sum(end - start for start, end in task.data)
        if task.data and self._hashes:
            self._blank(task)
        return self._reads(task, self._end, task.at)

    def _reads(self, task: Task, end: OpenEnd, at: int, *, cost: bool = True) -> Iterator[Request]:
        for start, stop in task.data:
            while start < stop:
                length = min(self._control.request_bytes(self._chunk), stop - start)
                place = at + start - task.offset
                charged = length if cost else 0
                yield Request(kind=Kind.READ, end=end, offset=start, length=length, at=place, cost=charged, task=task)
                start += length

    def _blank(self, task: Task) -> None:
        """Fill with zeroes what is not read of the blocks that hold data."""
        memory, blank = self._arena.view, self._arena.zeroes
        for start, end in task.holes():
            first, last = start - task.offset, end - task.offset
            inner_first = -(-first // BLOCK_BYTES) * BLOCK_BYTES
            inner_last = last // BLOCK_BYTES * BLOCK_BYTES
            parts = [(first, min(inner_first, last)), (max(inner_last, first), last)]
            if inner_first > inner_last:
                parts = [(first, last)]
            for left, right in parts:
                if left < right:
                    memory[task.at + left : task.at + right] = memory[blank : blank + right - left]

    def ended(self, request: Request) -> Iterable[Request]:
        for _ in self._runs(request):
            pass
        self._count(request)
        return ()

    def _count(self, request: Request) -> None:
        """Count what a request has moved."""
        moved = request.offset + request.length - request.first_offset
        request.task.moved += moved
        self._advance(moved, 0)

    def _runs(self, request: Request) -> Iterator[tuple[int, int, bool]]:
        """Yield what was read as runs of blocks, noting which blocks hold data."""
        task: Task = request.task
        base = task.at
        first = base + request.first_offset - task.offset
        task.unread -= request.offset + request.length - request.first_offset
        for start, end, is_zero in self._arena.runs(base, first, base + request.offset + request.length - task.offset):
            if not is_zero:
                low, high = (start - base) // BLOCK_BYTES, (end - 1 - base) // BLOCK_BYTES
                task.blocks |= (1 << (high + 1)) - (1 << low)
            yield start, end, is_zero

    def digested(self, task: Task) -> None:
        if self._hashes and task.blocks:
            self._digest.add(task.offset, leaf_hash(list(self._pieces(task)), task.blocks))

    def _pieces(self, task: Task) -> Iterator[memoryview]:
        view, length = self._arena.view, task.end - task.offset
        index, blocks = 0, task.blocks
        while blocks:
            skip = (blocks & -blocks).bit_length() - 1
            index, blocks = index + skip, blocks >> skip
            count = (~blocks & (blocks + 1)).bit_length() - 1
            start = index * BLOCK_BYTES
            yield view[task.at + start : task.at + min(start + count * BLOCK_BYTES, length)]
            index, blocks = index + count, blocks >> count

    def finish(self, task: Task) -> Iterable[Request]:
        passed_over = task.end - task.offset - task.moved
        if passed_over:
            self._advance(passed_over, passed_over)
        return self._reached(self.position_bytes) if self._end_of(task) else ()

    def _end_of(self, task: Task) -> bool:
        """Take a part off the list, and say whether it was the first on it."""
        was_first = next(iter(self._active)) is task
        del self._active[task]
        return was_first

    @property
    def position_bytes(self) -> int:
        """Everything before this is done with."""
        first = next(iter(self._active), None)
        return self._begun_to if first is None else first.offset

    def _reached(self, position_bytes: int) -> Iterable[Request]:
        """Do what is to be done when everything before a position is done with."""
        self._digest.close_before(position_bytes)
        if position_bytes - self._read_to >= WINDOW_BYTES or position_bytes == self._digest.size_bytes:
            if not self._end.is_direct:
                self._end.release_cache(self._read_to, position_bytes - self._read_to)
            self._read_to = position_bytes
        return ()


class DigestFlow(ReadingFlow):
    """Reads and digests, and tells whenever segments may have been closed."""

    def __init__(
        self,
        end: OpenEnd,
        arena: Arena,
        control: Control,
        options: CopyOptions,
        *,
        digest: TreeDigest,
        advance: Callable[[int, int], None],
        closed: Callable[[TreeDigest], None],
    ) -> None:
        super().__init__(end, arena, control, options, digest=digest, advance=advance)
        self._closed = closed

    def _reached(self, position_bytes: int) -> Iterable[Request]:
        super()._reached(position_bytes)
        self._closed(self._digest)
        return ()


class BlankFlow(ReadingFlow):
    """Reads, and finds out whether all is zero."""

    _found: int | None = None

    def ended(self, request: Request) -> Iterable[Request]:
        for start, _, is_zero in self._runs(request):
            if not is_zero:
                task: Task = request.task
                found = task.offset + start - task.at
                self._found = found if self._found is None else min(found, self._found)
        self._count(request)
        return ()

    def _reached(self, position_bytes: int) -> Iterable[Request]:
        # Only now, so that it is the first, to the block in which it is.
        if self._found is not None and position_bytes > self._found:
            raise errors.VerificationFailed(path=self._end.name, offset=self._found)
        return super()._reached(position_bytes)


class CompareFlow(ReadingFlow):
    """Reads two ends, compares each byte, and digests the first.

    :ivar difference: offset of the first byte that differs, once all before it was compared; None until then.
    """

    buffers = 2

    def __init__(
        self,
        end: OpenEnd,
        other: OpenEnd,
        arena: Arena,
        control: Control,
        options: CopyOptions,
        *,
        digest: TreeDigest,
        advance: Callable[[int, int], None],
    ) -> None:
        super().__init__(end, arena, control, options, digest=digest, advance=advance)
        self._other = other
        self._found: int | None = None

    def begin(self, task: Task) -> Iterator[Request]:
        reads = super().begin(task)
        task.unread *= 2
        yield from reads
        yield from self._reads(task, self._other, task.other_at, cost=False)

    def ended(self, request: Request) -> Iterable[Request]:
        if request.end is self._end:
            return super().ended(request)
        task: Task = request.task
        task.unread -= request.offset + request.length - request.first_offset
        return ()

    def digested(self, task: Task) -> None:
        length = task.end - task.offset
        same = self._arena.difference(task.at, task.other_at, length)
        if same < length:
            found = task.offset + same
            self._found = found if self._found is None else min(found, self._found)
        super().digested(task)

    def _reached(self, position_bytes: int) -> Iterable[Request]:
        if self._found is not None and position_bytes > self._found:
            raise errors.VerificationFailed(path=self._other.name, offset=self._found)
        if position_bytes - self._read_to >= WINDOW_BYTES and not self._other.is_direct:
            self._other.release_cache(self._read_to, position_bytes - self._read_to)
        return super()._reached(position_bytes)
