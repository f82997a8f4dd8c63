"""The engine that copies by itself, with many requests under way, and sees every byte that it moves."""

from __future__ import annotations

from volmig.transfer.base import CopyJob, CopyOptions, End, EngineOutcome, TransferEngine, Verify
from volmig.transfer.digest import TreeDigest
from volmig.transfer.ends import opening
from volmig.transfer.flow.copying import CopyFlow
from volmig.transfer.flow.lookup import looking
from volmig.transfer.flow.plan import tasks
from volmig.transfer.flow.request import Kind, Request
from volmig.transfer.flow.setup import machinery
from volmig.transfer.requests import refuse_images


class ChunkedEngine(TransferEngine):
    """Copies paths, NBD exports and handles, with up to 64 requests and 16 MiB under way at once.

    Holes of a source are not read. What is zero, known by the source's map or found in what was read (in blocks of
    64 KiB), is not written where the destination is known to read as zeroes; elsewhere it is put there, as holes where
    the destination can have them, as the device's own zeroing, or by writing zeroes.

    Between files and block devices requests are made by io_uring, else by threads; they go past the system's cache
    where the file system offers that, else through it, of which 16 MiB at a time are used. Memory: 65 MiB of buffers,
    and 32 bytes of digest for each segment, 2 MiB at most. The control is asked before each request.
    """

    name = "chunked"
    resumes = True

    def refusal(self, source: End, destination: End, options: CopyOptions) -> str:
        return refuse_images(options)

    def run(self, job: CopyJob) -> EngineOutcome:
        size, begin = job.size_bytes, job.begin_bytes
        hashes = job.options.verify is not Verify.NONE
        digest = TreeDigest(size, job.begin_segments)
        with (
            looking(job.control) as lookup,
            opening.open_source(job.source, lookup=lookup) as source,
            opening.open_destination(job.destination, lookup=lookup) as destination,
            machinery([source, destination], size - begin, job.control) as parts,
        ):
            if not job.options.destination_is_zero:
                lookup.survey(destination, begin, size)
            if job.options.destination_is_zero or destination.zeroes_cheaply:
                job.expect(lookup.data_bytes(source, size, begin))
            flow = CopyFlow(job, source, destination, parts.arena, digest=digest, hashes=hashes)
            parts.pump.run(tasks(lookup.extents(source, size, begin), begin, size), flow)
            job.flushing()
            flush = Request(kind=Kind.FLUSH, end=destination, offset=0, length=0)
            parts.pump.run(iter(()), flow, [flush])
            means = parts.means
        return EngineOutcome(
            bytes_copied=flow.bytes_copied,
            bytes_zero=flow.bytes_done - flow.bytes_copied,
            source_digest=digest.hexdigest() if hashes else "",
            source_segments=digest.segments if hashes else b"",
            means=means,
        )
