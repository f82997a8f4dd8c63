"""Proving that what arrived is what left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from volmig import errors
from volmig.transfer.base import (
    CopiedData,
    CopyOptions,
    CopyStage,
    End,
    EndMark,
    HelperProcess,
    Tail,
    TransferProgress,
    VerifiedData,
    Verify,
)
from volmig.transfer.control import Control
from volmig.transfer.digest import ALGORITHM, HASH_BYTES, LEAF_BYTES, TreeDigest, root_of
from volmig.transfer.ends import opening
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.ends.identity import outlasts_detaching
from volmig.transfer.flow.leaves import BlankFlow, CompareFlow
from volmig.transfer.flow.lookup import Lookup, looking
from volmig.transfer.flow.plan import tasks
from volmig.transfer.flow.setup import machinery
from volmig.transfer.progress import StageMeter
from volmig.transfer.reading import data_bytes_to_read, digest_end, extents_to_read
from volmig.transfer.requests import RAW, agree_on_limit, check_request, unwatched
from volmig.transfer.watch import watched, watched_backing


def verify_copy(
    source: End,
    destination: End,
    *,
    size_bytes: int,
    options: CopyOptions | None = None,
    copied: CopiedData | None = None,
    progress: Callable[[TransferProgress], None] | None = None,
    control: Control | None = None,
    on_process: Callable[[HelperProcess], None] = unwatched,
    backing: End | None = None,
) -> VerifiedData:
    """Prove, as ``options.verify`` says, that the destination holds the first *size_bytes* bytes of the source.

    The destination is read back past the cache as far as the system allows: what lives in memory anyway, or is
    mapped by somebody, is read from there. Nothing is written. The kernel is believed what it says of the holes of
    files, and the server of a source what it says of the zeroes of its export; of a destination that an NBD server
    has all is read, and with ``compare`` all is read of every end.

    :param copied: what :func:`copy_data` returned for these ends. Its digest saves reading the source again, and
        the source must not have changed since. Without it the source is read again.
    :param progress: called in this thread; what it raises is raised here.
    :param control: as for :func:`copy_data`.
    :param on_process: called with each program that is started to read an image.
    :param backing: as for :func:`copy_data`.
    :raises volmig.errors.VerificationFailed: naming the first byte that differs; with ``digest``, the beginning of
        the segment (16 MiB or more) that does when reading both ends again does not show it.
    :raises volmig.errors.SourceChanged: when the source was written to since the copy began.
    :raises volmig.errors.SourceTooShort:
    :raises volmig.errors.DestinationTooShort:
    :raises volmig.errors.TransferFailed: when an end cannot be opened or read.
    :raises volmig.errors.TransferCancelled: after :meth:`Control.cancel`, or :attr:`Control.deadline_seconds`.
    """
    options = options or CopyOptions()
    control = control or Control()
    check_request(size_bytes, options)
    if options.verify is Verify.NONE:
        return VerifiedData()
    options = agree_on_limit(options, control)
    control.note(size_bytes, size_bytes)
    started = time.monotonic()
    with (
        looking(control) as lookup,
        opening.open_source(source, options, on_process, lookup=lookup) as opened_source,
        opening.opened_backing(backing, lookup) as opened_backing,
        opening.open_arrived(destination, options, on_process, lookup) as opened_destination,
        contextlib.ExitStack() as watches,
    ):
        mark = copied.source_mark if copied else lookup.mark(opened_source)
        watches.enter_context(watched(opened_source, mark))
        # Last: what the source held in its cache still reaches it.
        backing_mark = _backing_mark(opened_backing, copied, lookup)
        watches.enter_context(watched_backing(opened_backing, backing_mark, lookup))
        opening.check_ends(opened_source, opened_destination, size_bytes)
        known = copied if copied and _has_digest(copied, size_bytes) else None
        once = options.verify is Verify.DIGEST and known is not None
        meter = StageMeter(CopyStage.VERIFY, size_bytes if once else 2 * size_bytes, progress or unwatched)
        verifier = _Verifier(opened_source, opened_destination, size_bytes, options, control, meter, lookup)
        # What was written must come from the storage, and not from memory, where it may be whole while it was
        # damaged on its way.
        opened_destination.drop_cache()
        root = verifier.compare(known) if options.verify is Verify.COMPARE else verifier.compare_digests(known)
        if options.tail is Tail.ZERO and options.destination_format == RAW:
            verifier.check_tail()
        meter.finish()
    return VerifiedData(
        digest_algorithm=ALGORITHM,
        source_digest=root,
        destination_digest=root,
        seconds=time.monotonic() - started,
        source_mark=mark,
        backing_mark=backing_mark,
    )


def _backing_mark(backing: OpenEnd | None, copied: CopiedData | None, lookup: Lookup) -> EndMark | None:
    if backing is None:
        return None
    return copied.backing_mark if copied else lookup.mark(backing)


class _Verifier:
    """One verification of ends that are open."""

    def __init__(
        self,
        source: OpenEnd,
        destination: OpenEnd,
        size_bytes: int,
        options: CopyOptions,
        control: Control,
        meter: StageMeter,
        lookup: Lookup,
    ) -> None:
        self._source = source
        self._destination = destination
        self._size = size_bytes
        self._options = options
        self._control = control
        self._meter = meter
        self._lookup = lookup

    def compare_digests(self, known: CopiedData | None) -> str:
        """Return the digest of both ends; the source's is taken from *known* if that is given."""
        to_read = data_bytes_to_read(self._destination, self._lookup, self._size)
        if known is None:
            self._meter.expect(to_read + self._lookup.data_bytes(self._source, self._size))
            expected = self._digest(self._source, self._size).segments
        else:
            self._meter.expect(to_read)
            expected = known.source_segments
            self._check_resumed(known)

        checked = 0

        def check(digest: TreeDigest) -> None:
            nonlocal checked
            # Called for each leaf: all the segments together would be much to look at so often.
            arrived = digest.segments_from(checked)
            if arrived != expected[checked : checked + len(arrived)]:
                raise self._difference(digest, digest.segments, expected)
            checked += len(arrived)

        return self._digest(self._destination, self._size, check).hexdigest()

    def _check_resumed(self, known: CopiedData) -> None:
        """Read once more what an earlier run had read of a source of which nobody can tell that it was written to."""
        to_bytes = known.bytes_resumed
        is_known = outlasts_detaching(known.source_mark.version) and known.backing_mark is None
        if not to_bytes or is_known:
            return
        again = self._digest(self._source, to_bytes).segments
        if again != known.source_segments[: len(again)]:
            raise errors.SourceChanged(path=self._source.name, reason="an earlier run has read something else from it")

    def _digest(self, end: OpenEnd, to_bytes: int, closed: Callable[[TreeDigest], None] = unwatched) -> TreeDigest:
        digest = TreeDigest(self._size)
        digest_end(
            end,
            digest,
            to_bytes=to_bytes,
            options=self._options,
            control=self._control,
            lookup=self._lookup,
            advance=self._meter.advance,
            closed=closed,
        )
        return digest

    def _difference(self, digest: TreeDigest, arrived: bytes, expected: bytes) -> errors.VolmigError:
        """Return the error for segments that differ, after looking for the first byte in which they do."""
        index = next(
            at
            for at in range(0, len(arrived), HASH_BYTES)
            if arrived[at : at + HASH_BYTES] != expected[at : at + HASH_BYTES]
        )
        start = index // HASH_BYTES * digest.segment_bytes
        end = min(start + digest.segment_bytes, self._size)
        self._compare_range(start, end, TreeDigest(self._size), unwatched)
        # They are the same now: what was read from one of them was not what it holds.
        return errors.VerificationFailed(path=self._destination.name, offset=start)

    def compare(self, known: CopiedData | None) -> str:
        """Read both ends, compare each byte, and return their digest."""
        digest = TreeDigest(self._size)
        # Neither end's map of holes is believed here: all is read.
        self._compare_range(0, self._size, digest, self._meter.advance)
        root = digest.hexdigest()
        if known is not None and known.source_digest != root:
            raise errors.SourceChanged(path=self._source.name, reason="reading it twice gave different data")
        return root

    def check_tail(self) -> None:
        """Check that what the destination has behind the copy reads as zeroes.

        :raises volmig.errors.VerificationFailed:
        """
        begin, end = self._size, self._destination.size_bytes
        extents = extents_to_read(self._destination, self._lookup, end, begin)
        behind = ((max(start, begin), stop) for start, stop in extents if stop > begin)
        with machinery([self._destination], end - begin, self._control) as parts:
            flow = BlankFlow(
                self._destination,
                parts.arena,
                self._control,
                self._options,
                digest=TreeDigest(end),
                advance=unwatched,
                hashes=False,
            )
            parts.pump.run(tasks(behind, begin // LEAF_BYTES * LEAF_BYTES, end), flow)

    def _compare_range(self, start: int, end: int, digest: TreeDigest, advance: Callable[[int, int], None]) -> None:
        self._control.check()
        ends = [self._source, self._destination]
        with machinery(ends, end - start, self._control, buffers=2) as parts:
            flow = CompareFlow(
                self._source,
                self._destination,
                parts.arena,
                self._control,
                self._options,
                digest=digest,
                advance=lambda done, skipped: advance(2 * done, 2 * skipped),
            )
            parts.pump.run(tasks([(start, end)], start, end), flow)


def _has_digest(copied: CopiedData, size_bytes: int) -> bool:
    """Say whether there is a digest that can be used: one whose segments belong to it."""
    return bool(copied.source_digest) and copied.source_digest == root_of(size_bytes, copied.source_segments)
