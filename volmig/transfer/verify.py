"""Proving that what arrived is what left."""

from __future__ import annotations

import time
from collections.abc import Callable

from volmig import errors
from volmig.transfer import opening
from volmig.transfer.base import CopiedData, CopyOptions, CopyStage, End, TransferProgress, VerifiedData, Verify
from volmig.transfer.control import Control
from volmig.transfer.digest import ALGORITHM, LEAF_BYTES, LEAF_DIGEST_BYTES, TreeDigest, root_of
from volmig.transfer.ends import OpenEnd
from volmig.transfer.progress import StageMeter
from volmig.transfer.reading import digest_end
from volmig.transfer.requests import agree_on_limit, check_request, unwatched
from volmig.transfer.watch import first_mark, watched


def verify_copy(
    source: End,
    destination: End,
    *,
    size_bytes: int,
    options: CopyOptions | None = None,
    copied: CopiedData | None = None,
    progress: Callable[[TransferProgress], None] | None = None,
    control: Control | None = None,
) -> VerifiedData:
    """Prove, as ``options.verify`` says, that the destination holds the first *size_bytes* bytes of the source.

    The destination is read back past the cache as far as the system allows: what lives in memory anyway, or is
    mapped by somebody, is read from there. Nothing is written.

    :param copied: what :func:`copy_data` returned for these ends. Its digest saves reading the source again, and
        the source must not have changed since. Without it the source is read again.
    :param progress: called in this thread; what it raises is raised here.
    :param control: as for :func:`copy_data`.
    :raises volmig.errors.VerificationFailed: naming the first byte that differs (``compare``), or the beginning of
        the first 4 MiB leaf that does (``digest``).
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
        opening.open_source(source) as opened_source,
        opening.open_destination(destination, reads=True, writes=False) as opened_destination,
        watched(opened_source, copied.source_mark if copied else first_mark(opened_source)),
    ):
        opening.check_ends(opened_source, opened_destination, size_bytes)
        known = copied if copied and _has_digest(copied, size_bytes) else None
        once = options.verify is Verify.DIGEST and known is not None
        meter = StageMeter(CopyStage.VERIFY, size_bytes if once else 2 * size_bytes, progress or unwatched)
        verifier = _Verifier(opened_source, opened_destination, size_bytes, options, control, meter)
        # What was written must come from the storage, and not from memory, where it may be whole while it was
        # damaged on its way.
        opened_destination.drop_cache()
        root = verifier.compare(known) if options.verify is Verify.COMPARE else verifier.compare_digests(known)
        meter.finish()
    return VerifiedData(
        digest_algorithm=ALGORITHM,
        source_digest=root,
        destination_digest=root,
        seconds=time.monotonic() - started,
    )


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
    ) -> None:
        self._source = source
        self._destination = destination
        self._size = size_bytes
        self._options = options
        self._control = control
        self._meter = meter

    def compare_digests(self, known: CopiedData | None) -> str:
        """Return the digest of both ends; the source's is taken from *known* if that is given."""
        to_read = self._destination.data_bytes(self._size)
        if known is None:
            self._meter.expect(to_read + self._source.data_bytes(self._size))
            leaves = self._digest(self._source, TreeDigest()).leaves
        else:
            self._meter.expect(to_read)
            leaves = known.source_leaves
        arrived = self._digest(self._destination, TreeDigest(on_leaf=lambda at, leaf: self._check(at, leaf, leaves)))
        last = self._size // LEAF_BYTES * LEAF_BYTES
        if last < self._size:
            self._check(last, arrived.leaves[-LEAF_DIGEST_BYTES:], leaves)
        return arrived.hexdigest()

    def _digest(self, end: OpenEnd, digest: TreeDigest) -> TreeDigest:
        digest_end(
            end,
            self._size,
            digest,
            chunk_bytes=self._options.chunk_bytes,
            control=self._control,
            advance=self._meter.advance,
        )
        return digest

    def _check(self, offset: int, leaf: bytes, expected: bytes) -> None:
        index = offset // LEAF_BYTES * LEAF_DIGEST_BYTES
        if leaf != expected[index : index + LEAF_DIGEST_BYTES]:
            raise errors.VerificationFailed(path=self._destination.name, offset=offset)

    def compare(self, known: CopiedData | None) -> str:
        """Read both ends, compare each byte, and return their digest."""
        digest = TreeDigest()
        length = min(self._options.chunk_bytes, self._size)
        left, arrived = bytearray(length), bytearray(length)
        left_view, arrived_view = memoryview(left), memoryview(arrived)
        self._control.check()
        # Neither end's map of holes is believed here: all is read.
        while digest.size_bytes < self._size:
            offset = digest.size_bytes
            length = min(self._control.request_bytes(len(left)), self._size - offset)
            self._source.read_exactly(left_view[:length], offset, self._size)
            count = self._destination.read_into(arrived_view[:length], offset)
            same = first_difference(left, arrived, count)
            if same < length:
                raise errors.VerificationFailed(path=self._destination.name, offset=offset + same)
            digest.update(left_view[:length])
            self._meter.advance(2 * length, 0)
            self._control.throttle(length)
        root = digest.hexdigest()
        if known is not None and known.source_digest != root:
            raise errors.SourceChanged(path=self._source.name, reason="reading it twice gave different data")
        return root


def _has_digest(copied: CopiedData, size_bytes: int) -> bool:
    """Say whether there is a digest that can be used: one whose leaves belong to it."""
    return copied.source_digest == root_of(size_bytes, copied.source_leaves)


def first_difference(one: bytearray, other: bytearray, length: int) -> int:
    """Return the index of the first byte in which two buffers differ; *length* if the first *length* are equal."""
    view = memoryview(other)
    if one.startswith(view[:length], 0, length):
        return length
    low, high = 0, length - 1
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(view[low:middle], low, middle):
            low = middle
        else:
            high = middle - 1
    return low
