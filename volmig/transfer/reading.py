"""Digesting an end, under a copy's control."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from volmig import errors
from volmig.transfer.base import CopyOptions, CopyStage, End, TransferProgress
from volmig.transfer.control import Control
from volmig.transfer.digest import TreeDigest
from volmig.transfer.ends import opening
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.flow.leaves import DigestFlow
from volmig.transfer.flow.lookup import Lookup, looking
from volmig.transfer.flow.plan import tasks
from volmig.transfer.flow.setup import machinery
from volmig.transfer.progress import StageMeter
from volmig.transfer.requests import agree_on_limit, check_request, unwatched


def digest_end(
    end: OpenEnd,
    digest: TreeDigest,
    *,
    to_bytes: int,
    options: CopyOptions,
    control: Control,
    lookup: Lookup,
    advance: Callable[[int, int], None],
    closed: Callable[[TreeDigest], None] = unwatched,
) -> None:
    """Give the content of an end up to *to_bytes* to a fresh *digest*. Holes are not read, as far as they are believed.

    :param advance: called with (bytes dealt with, bytes of these passed over as holes) since the last call.
    :param closed: called when segments of the digest may have been closed; what it raises is raised here.
    :raises volmig.errors.SourceTooShort: when a source has fewer bytes.
    :raises volmig.errors.DestinationTooShort: when a destination has.
    """
    control.check()
    with machinery([end], to_bytes, control) as parts:
        flow = DigestFlow(end, parts.arena, control, options, digest=digest, advance=advance, closed=closed)
        parts.pump.run(tasks(extents_to_read(end, lookup, to_bytes), 0, to_bytes), flow)
    digest.close_before(to_bytes)
    closed(digest)


def extents_to_read(end: OpenEnd, lookup: Lookup, size_bytes: int, begin_bytes: int = 0) -> Iterator[tuple[int, int]]:
    """Return what of an end must be read to know its content: its data; all of a destination whose map proves nothing.

    A destination is read to find out what was lost on its way to the storage. Whoever lost it may well believe that
    it is zero.
    """
    if _needs_all(end):
        return iter([(begin_bytes, size_bytes)] if begin_bytes < size_bytes else [])
    return lookup.extents(end, size_bytes, begin_bytes)


def data_bytes_to_read(end: OpenEnd, lookup: Lookup, size_bytes: int) -> int:
    """Return about how much :func:`extents_to_read` tells of."""
    return size_bytes if _needs_all(end) else lookup.data_bytes(end, size_bytes)


def _needs_all(end: OpenEnd) -> bool:
    return end.is_destination and not end.map_is_believed


def digest_of(
    end: End,
    *,
    size_bytes: int | None = None,
    chunk_bytes: int = 1024 * 1024,
    format_name: str = "raw",
    control: Control | None = None,
    progress: Callable[[TransferProgress], None] | None = None,
    has_arrived: bool = False,
) -> str:
    """Return the tree digest, in hexadecimal, of the first *size_bytes* of an end; of all of it when None.

    It is the digest that :class:`TransferResult` reports; :data:`volmig.transfer.digest.ALGORITHM` names it.

    :param format_name: the end's format; of an image the content is digested.
    :param progress: called in this thread; what it raises is raised here.
    :param has_arrived: read it as the destination of a copy is read back: past the cache, as far as the system allows.
    :raises volmig.errors.SourceTooShort: when the end has fewer bytes.
    :raises volmig.errors.TransferFailed: when it cannot be read.
    """
    options = CopyOptions(source_format=format_name, destination_format=format_name, chunk_bytes=chunk_bytes)
    control = control or Control()
    options = agree_on_limit(options, control)
    with looking(control) as lookup, _opened(end, options, lookup, has_arrived=has_arrived) as opened:
        size = opened.size_bytes if size_bytes is None else size_bytes
        check_request(size, options)
        if opened.size_bytes < size:
            raise errors.SourceTooShort(path=opened.name, actual=opened.size_bytes, expected=size)
        digest = TreeDigest(size)
        meter = StageMeter(CopyStage.VERIFY, size, progress or unwatched)
        if has_arrived:
            opened.drop_cache()
        digest_end(
            opened, digest, to_bytes=size, options=options, control=control, lookup=lookup, advance=meter.advance
        )
        meter.finish()
        return digest.hexdigest()


def _opened(end: End, options: CopyOptions, lookup: Lookup, *, has_arrived: bool) -> OpenEnd:
    if has_arrived:
        return opening.open_arrived(end, options, unwatched, lookup)
    return opening.open_source(end, options, lookup=lookup)
