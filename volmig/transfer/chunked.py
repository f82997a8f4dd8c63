"""The engine that copies by itself, chunk by chunk, and sees every byte that it moves."""

from __future__ import annotations

from volmig.transfer import opening, zeroes
from volmig.transfer.base import CopyJob, CopyOptions, End, EngineOutcome, TransferEngine
from volmig.transfer.digest import TreeDigest
from volmig.transfer.ends import OpenEnd
from volmig.transfer.requests import refuse_translation

_PUNCH_BYTES = 1024 * 1024 * 1024
"""Largest hole that is made at once, so that a cancellation is seen in between."""


class ChunkedEngine(TransferEngine):
    """Copies paths and handles in one thread.

    Holes of a source file are not read. Zeroes are not written where the destination is known to read as zeroes;
    elsewhere they are put there, as holes in a regular file and as zeroes on anything else. Memory: twice
    ``chunk_bytes``, and 32 bytes of digest for each 4 MiB of the volume. The control is asked before each request
    that changes the destination, so that no more than the one under way comes after a deadline.
    """

    name = "chunked"

    def refusal(self, source: End, destination: End, options: CopyOptions) -> str:
        return refuse_translation(options)

    def run(self, job: CopyJob) -> EngineOutcome:
        with opening.open_source(job.source) as source, opening.open_destination(job.destination) as destination:
            return _Copy(job, source, destination).run()


class _Copy:
    """One copy while it runs."""

    def __init__(self, job: CopyJob, source: OpenEnd, destination: OpenEnd) -> None:
        self._job = job
        self._source = source
        self._destination = destination
        self._buffer = bytearray(min(job.options.chunk_bytes, job.size_bytes))
        self._view = memoryview(self._buffer)
        self._zeroes = memoryview(bytes(len(self._buffer)))
        self._digest = TreeDigest()
        self._copied = 0
        self._zero = 0

    def run(self) -> EngineOutcome:
        size = self._job.size_bytes
        self._job.control.check()
        self._job.expect(self._bytes_to_move())
        position = 0
        for start, end in self._source.extents(size):
            self._zero_range(position, start)
            self._data_range(start, end)
            position = end
        self._zero_range(position, size)
        self._job.flushing()
        # A handle may write only now what it holds back.
        self._job.control.check()
        self._destination.flush()
        return EngineOutcome(
            bytes_copied=self._copied,
            bytes_zero=self._zero,
            source_digest=self._digest.hexdigest(),
            source_leaves=self._digest.leaves,
        )

    def _bytes_to_move(self) -> int:
        if not self._job.options.destination_is_zero and not self._destination.punches:
            return self._job.size_bytes
        return self._source.data_bytes(self._job.size_bytes)

    def _data_range(self, offset: int, end: int) -> None:
        control = self._job.control
        while offset < end:
            length = min(control.request_bytes(len(self._buffer)), end - offset)
            self._source.read_exactly(self._view[:length], offset, self._job.size_bytes)
            written = self._put(offset, length)
            self._job.advance(length, length - written)
            control.throttle(length)
            offset += length

    def _put(self, offset: int, length: int) -> int:
        """Put what is in the buffer to its place, and return how much of it was written."""
        written = 0
        for start, end, is_zero in zeroes.runs(self._buffer, length):
            if is_zero:
                self._zero += end - start
                self._digest.update_zeroes(end - start)
                if self._is_zero_without_writing(offset + start, end - start):
                    continue
            else:
                self._copied += end - start
                self._digest.update(self._view[start:end])
            self._destination.write_all(self._view[start:end], offset + start, self._job.control.check)
            written += end - start
        return written

    def _zero_range(self, offset: int, end: int) -> None:
        """Make a range of the destination zero that is a hole in the source."""
        control = self._job.control
        while offset < end:
            control.check()
            length = min(_PUNCH_BYTES, end - offset)
            if self._is_zero_without_writing(offset, length):
                self._job.advance(length, length)
            else:
                length = min(control.request_bytes(len(self._zeroes)), end - offset)
                self._destination.write_all(self._zeroes[:length], offset, control.check)
                self._job.advance(length, 0)
                control.throttle(length)
            self._zero += length
            self._digest.update_zeroes(length)
            offset += length

    def _is_zero_without_writing(self, offset: int, length: int) -> bool:
        if self._job.options.destination_is_zero:
            return True
        return self._destination.punch(offset, length, self._job.control.check)
