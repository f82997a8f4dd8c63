"""One copy from its checks to its proof."""

from __future__ import annotations

import time
from collections.abc import Callable

from volmig import errors
from volmig.transfer.base import (
    Checkpoint,
    CopiedData,
    CopyJob,
    CopyOptions,
    CopyStage,
    End,
    EndMark,
    EngineOutcome,
    HelperProcess,
    Tail,
    TransferProgress,
    TransferResult,
    Verify,
)
from volmig.transfer.control import Control
from volmig.transfer.ends import opening
from volmig.transfer.ends.base import OpenEnd, is_path
from volmig.transfer.engines.choice import choose
from volmig.transfer.flow.destination import flush, zero_tail
from volmig.transfer.flow.lookup import looking
from volmig.transfer.nbd.address import is_address
from volmig.transfer.progress import StageMeter
from volmig.transfer.requests import RAW, agree_on_limit, check_request, unwatched
from volmig.transfer.resume.run import Run
from volmig.transfer.verify import verify_copy
from volmig.transfer.watch import watched, watched_backing


def copy(
    source: End,
    destination: End,
    *,
    size_bytes: int,
    options: CopyOptions | None = None,
    checkpoint: Checkpoint | None = None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    progress: Callable[[TransferProgress], None] | None = None,
    control: Control | None = None,
    on_process: Callable[[HelperProcess], None] = unwatched,
) -> TransferResult:
    """Copy the first *size_bytes* bytes from one end to the other, flush them and prove that they arrived.

    Does :func:`copy_data` and then :func:`verify_copy`, and keeps the promises of both.

    :raises volmig.errors.VolmigError: as both do.
    """
    options = options or CopyOptions()
    control = control or Control()
    copied = copy_data(
        source,
        destination,
        size_bytes=size_bytes,
        options=options,
        checkpoint=checkpoint,
        on_checkpoint=on_checkpoint,
        progress=progress,
        control=control,
        on_process=on_process,
    )
    verified = verify_copy(
        source,
        destination,
        size_bytes=size_bytes,
        options=options,
        copied=copied,
        progress=progress,
        control=control,
        on_process=on_process,
    )
    return TransferResult(
        engine=copied.engine,
        engine_reason=copied.engine_reason,
        bytes_total=size_bytes,
        bytes_copied=copied.bytes_copied,
        bytes_zero=copied.bytes_zero,
        copy_seconds=copied.seconds,
        verify_seconds=verified.seconds,
        verify=options.verify,
        digest_algorithm=verified.digest_algorithm,
        source_digest=verified.source_digest,
        destination_digest=verified.destination_digest,
        means=copied.means,
        bytes_resumed=copied.bytes_resumed,
    )


def _goes_on(destination: End, checkpoint: Checkpoint | None) -> bool:
    return checkpoint is not None and is_path(destination) and not is_address(destination)


def copy_data(
    source: End,
    destination: End,
    *,
    size_bytes: int,
    options: CopyOptions | None = None,
    checkpoint: Checkpoint | None = None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    progress: Callable[[TransferProgress], None] | None = None,
    control: Control | None = None,
    on_process: Callable[[HelperProcess], None] = unwatched,
    sole_writer: bool = False,
    backing: End | None = None,
) -> CopiedData:
    """Copy the first *size_bytes* bytes from one end to the other and flush them, without verifying.

    Both ends must exist; nothing is created or truncated. What a larger destination has behind *size_bytes* stays, or
    is made zero (``options.tail``). Everything that can be checked is checked before the first byte is written. The
    source is only read; what others wrote to it before is brought to its storage first. A source that somebody
    writes to meanwhile is found out by a file's size and times, or by what the kernel counts for a block device,
    within the limits that :func:`check_unchanged` names. When this returns, the data is on stable storage. When it
    raises, the destination's first *size_bytes* bytes are undefined but for those that a checkpoint names, every
    program that was started has ended (or the error says that it does not), and no descriptor is left open.

    :param size_bytes: 0 is allowed and copies nothing.
    :param options: how to copy; the defaults of :class:`CopyOptions` when None. A copy that is to be verified must
        have a destination that can be read.
    :param checkpoint: where an earlier run of the same copy stopped; what lies before is not copied again. It is
        believed that nobody has written to the destination since; a verification finds out.
    :param on_checkpoint: called in this thread with each new checkpoint: as long as more than 64 MiB, or 1% of the
        size if that is more, remain to be copied, one comes before that much was copied without. What it raises
        stops the copy and is raised here.
    :param progress: called in this thread; what it raises stops the copy and is raised here.
    :param control: cancels, pauses or limits the copy from another thread. A limit in the options is set on it
        unless it has one. A cancellation ends the copy within a second, also when the storage hangs in a request
        of the engine ``chunked``: the error then names the request, which stays under way.
    :param on_process: called with each program that is started; what it raises ends the program and is raised here.
    :param sole_writer: refuse a destination to which an earlier copy, of a process that has ended meanwhile, may still
        have requests under way, as when its storage hangs. With a checkpoint that is always so.
    :param backing: a path by which this host reaches what the source is an export of. What is written there is found
        out as well; nothing is read from it.
    :raises volmig.errors.DestinationBusy: when that may be; nothing was written.
    :raises volmig.errors.CheckpointMismatch: when the checkpoint belongs to another copy; nothing was written.
    :raises volmig.errors.RequestError: when this copy cannot be made; nothing was written.
    :raises volmig.errors.ConfigurationError: when the engine is not installed or broken; nothing was written.
    :raises volmig.errors.SourceTooShort:
    :raises volmig.errors.DestinationTooShort:
    :raises volmig.errors.SourceChanged: when the source was written to during the copy.
    :raises volmig.errors.DiskFull:
    :raises volmig.errors.TransferFailed: when an end cannot be opened, read or written.
    :raises volmig.errors.TransferCancelled: after :meth:`Control.cancel`, or :attr:`Control.deadline_seconds`.
    """
    options = options or CopyOptions()
    control = control or Control()
    check_request(size_bytes, options)
    options = agree_on_limit(options, control)
    reads = options.verify is not Verify.NONE
    with (
        looking(control) as lookup,
        opening.open_checked_source(source, options, lookup, on_process) as opened_source,
        opening.opened_backing(backing, lookup) as opened_backing,
        opening.open_destination(
            destination, reads=reads, lookup=lookup, sole_writer=sole_writer or _goes_on(destination, checkpoint)
        ) as opened_destination,
    ):
        makes_image = options.destination_format != RAW
        opening.check_ends(opened_source, opened_destination, size_bytes, sized=not makes_image)
        if opened_backing is not None:
            opening.check_ends(opened_backing, opened_destination, size_bytes, sized=not makes_image)
        engine, reason = choose(source, destination, options)
        mark = lookup.mark(opened_source)
        # Last: what the source held in its cache still reaches it.
        backing_mark = lookup.mark(opened_backing) if opened_backing else None
        # Its writes are this copy's own.
        place = EndMark(identity=opened_destination.identity, version=None)
        run = Run(
            *(engine, opened_source.name, size_bytes, mark, place, options),
            is_backed=opened_backing is not None,
        )
        begin_bytes, begin_segments = run.begin(checkpoint)
        stages = _Stages(size_bytes, progress or unwatched, control)
        if begin_bytes:
            stages.advance(begin_bytes, begin_bytes)
        with watched(opened_source, mark), watched_backing(opened_backing, backing_mark, lookup):
            outcome = engine.run(
                CopyJob(
                    source=source,
                    destination=destination,
                    size_bytes=size_bytes,
                    options=options,
                    control=control,
                    advance=stages.advance,
                    on_process=on_process,
                    expect=stages.copying.expect,
                    flushing=stages.flushing,
                    begin_bytes=begin_bytes,
                    begin_segments=begin_segments,
                    # Another run could not go on from it: nobody could tell what this one may yet have under way.
                    finished=run.reporter(on_checkpoint if opened_destination.is_pinned else None),
                )
            )
            stages.flushing()
            if options.tail is Tail.ZERO and not makes_image:
                zero_tail(opened_destination, size_bytes, options, control)
            # Opened before the first write, this also hears of a write that failed behind the engine's back.
            flush(opened_destination, control)
            stages.finish()
            _check_outcome(outcome, engine.name, opened_destination, size_bytes - begin_bytes)
    return CopiedData(
        engine=engine.name,
        engine_reason=reason,
        bytes_copied=outcome.bytes_copied,
        bytes_zero=outcome.bytes_zero,
        seconds=time.monotonic() - stages.started_at,
        source_digest=outcome.source_digest,
        source_segments=outcome.source_segments,
        source_mark=mark,
        backing_mark=backing_mark,
        means=outcome.means,
        bytes_resumed=begin_bytes,
    )


class _Stages:
    """The progress of a copy: first copying, then flushing."""

    def __init__(self, size_bytes: int, report: Callable[[TransferProgress], None], control: Control) -> None:
        self.started_at = time.monotonic()
        self._size = size_bytes
        self._report = report
        self._control = control
        control.note(0, size_bytes)
        self.copying = StageMeter(CopyStage.COPY, size_bytes, report)
        self._flush: StageMeter | None = None

    def advance(self, done: int, skipped: int) -> None:
        """Count for the copy, and for what a cancellation says."""
        self.copying.advance(done, skipped)
        self._control.note(self.copying.bytes_done, self._size)

    def flushing(self) -> None:
        """End the copying and begin the flush, the first time."""
        if self._flush is None:
            self.copying.finish()
            self._flush = StageMeter(CopyStage.FLUSH, self._size, self._report)

    def finish(self) -> None:
        """End the flush."""
        if self._flush is not None:
            self._flush.finish()


def _check_outcome(outcome: EngineOutcome, engine: str, destination: OpenEnd, size_bytes: int) -> None:
    done = outcome.bytes_copied + outcome.bytes_zero
    if done != size_bytes:
        raise errors.TransferFailed(
            path=destination.name,
            offset=done,
            reason=f"the engine {engine!r} ended after {done} of {size_bytes} bytes",
        )
    if not destination.is_still_in_place():
        raise errors.TransferFailed(
            path=destination.name, offset=0, reason="something else took its place during the copy"
        )
