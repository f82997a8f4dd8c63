"""The flow of a copy: what was read is written, and what is zero is made zero by the cheapest means."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Iterator

from volmig.transfer.base import CopyJob
from volmig.transfer.digest import HASH_BYTES, TreeDigest
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.flow.arena import Arena
from volmig.transfer.flow.destination import Zeroing
from volmig.transfer.flow.leaves import WINDOW_BYTES, ReadingFlow
from volmig.transfer.flow.plan import Task
from volmig.transfer.flow.request import Kind, Request

_FLUSH_BYTES = 16 * 1024 * 1024
_FLUSH_SECONDS = 2.0
_AT_RISK_BYTES = 64 * 1024 * 1024
_AT_RISK_FRACTION = 100


class CopyFlow(ReadingFlow):
    """Writes what it reads.

    When the job asks for checkpoints, the destination is flushed each time that 16 MiB of data, or 0.25% of the volume
    if that is more, were dealt with, and every 2 s, while the copy goes on. Not more than 64 MiB of data, or 1% of the
    volume, are ever begun beyond what the last flush has made safe, however long it takes.
    """

    def __init__(
        self,
        job: CopyJob,
        source: OpenEnd,
        destination: OpenEnd,
        arena: Arena,
        *,
        digest: TreeDigest,
        hashes: bool,
    ) -> None:
        super().__init__(source, arena, job.control, job.options, digest=digest, advance=job.advance, hashes=hashes)
        self.bytes_done = 0
        """All that was dealt with."""
        self.bytes_copied = 0
        """The part of it that was not zero."""
        self._job = job
        self._destination = destination
        self._zeroing = Zeroing(
            destination,
            arena,
            job.control,
            is_zero=job.options.destination_is_zero,
            chunk_bytes=job.options.chunk_bytes,
        )
        self._most_at_risk = max(_AT_RISK_BYTES, job.size_bytes // _AT_RISK_FRACTION)
        self._flush_bytes = max(_FLUSH_BYTES, self._most_at_risk // 4)
        self._at_risk: collections.deque[tuple[int, int]] = collections.deque()
        """Parts that were begun and are not safe yet: their ends, and the bytes of data in each."""
        self._at_risk_bytes = 0
        self._unflushed = 0
        self._window = job.begin_bytes
        self._flushed_at = time.monotonic()
        self._flush: Request | None = None
        self._flushing_to = job.begin_bytes

    def may_begin(self) -> bool:
        return self._at_risk_bytes < self._most_at_risk

    def begin(self, task: Task) -> Iterator[Request]:
        reads = super().begin(task)
        if self._job.finished is not None and task.data:
            self._at_risk.append((task.end, task.unread))
            self._at_risk_bytes += task.unread
        for start, end in task.holes():
            yield from self._zeroing.requests(task, start, end)
        yield from reads

    def ended(self, request: Request) -> Iterable[Request]:
        if request.kind is Kind.READ:
            return self._arrived(request)
        if request.kind is Kind.WRITE:
            self._count(request)
        elif request.kind is Kind.ZERO and not request.result:
            return self._zeroing.writes(request.task, request.offset, request.offset + request.length)
        elif request is self._flush:
            self._flushed()
            # Everything that may be begun may have ended while this was under way.
            return self._flush_if_due()
        elif request.kind is Kind.WRITE_BACK:
            self._destination.release_cache(request.offset, request.length)
        return ()

    def _arrived(self, request: Request) -> Iterator[Request]:
        task: Task = request.task
        for start, end, is_zero in self._runs(request):
            offset, length = task.offset + start - task.at, end - start
            if is_zero:
                yield from self._zeroing.requests(task, offset, offset + length, paid=True)
                continue
            self.bytes_copied += length
            yield Request(kind=Kind.WRITE, end=self._destination, offset=offset, length=length, at=start, task=task)

    def finish(self, task: Task) -> Iterable[Request]:
        self.bytes_done += task.end - task.offset
        self._unflushed += sum(end - start for start, end in task.data)
        return super().finish(task)

    def _reached(self, position_bytes: int) -> Iterator[Request]:
        yield from super()._reached(position_bytes)
        if not self._destination.is_direct and position_bytes - self._window >= WINDOW_BYTES:
            length = position_bytes - self._window
            yield Request(kind=Kind.WRITE_BACK, end=self._destination, offset=self._window, length=length)
            self._window = position_bytes
        yield from self._flush_if_due()

    def _flush_if_due(self) -> Iterator[Request]:
        if self._job.finished is not None and self._flush is None and self._is_flush_due():
            self._flushing_to = self._digest.position_bytes
            self._unflushed = 0
            self._flush = Request(kind=Kind.FLUSH, end=self._destination, offset=0, length=0)
            yield self._flush

    def _is_flush_due(self) -> bool:
        enough = (
            self._unflushed >= self._flush_bytes
            or time.monotonic() - self._flushed_at >= _FLUSH_SECONDS
            or not self.may_begin()
        )
        return enough and self._digest.position_bytes > self._flushing_to

    def _flushed(self) -> None:
        self._flush = None
        self._flushed_at = time.monotonic()
        while self._at_risk and self._at_risk[0][0] <= self._flushing_to:
            self._at_risk_bytes -= self._at_risk.popleft()[1]
        if self._job.finished is not None:
            count = -(-self._flushing_to // self._digest.segment_bytes)
            self._job.finished(self._flushing_to, self._digest.segments[: count * HASH_BYTES])
