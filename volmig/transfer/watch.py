"""Finding out that somebody wrote to the source of a copy.

A regular file is known by its size and two times. Its time of modification can be set to anything (``utime``, as
``rsync -t`` and ``cp -p`` do); its time of status change (``ctime``) cannot, so both are compared.

A source may be an export of something that this host has too, its *backing*: a device that was attached over the
network, though the target is here. What a program writes to the backing is not counted for the attached device, so
that the backing is looked at as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from volmig import errors
from volmig.transfer.base import CopiedData, CopyOptions, End, EndMark, VerifiedData
from volmig.transfer.ends import opening
from volmig.transfer.ends.base import OpenEnd, name_of, reading
from volmig.transfer.ends.identity import FILE_VERSION

if TYPE_CHECKING:
    from volmig.transfer.flow.lookup import Lookup

_ELSEWHERE = "its path no longer leads to it"


def first_mark(source: OpenEnd) -> EndMark:
    """Return what a source is before its copy, after bringing to storage what was written to it earlier.

    :raises volmig.errors.TransferFailed: when that fails: part of what somebody wrote is lost.
    """
    source.settle()
    return source.mark()


def check_unchanged(
    source: End,
    seen: CopiedData | VerifiedData,
    options: CopyOptions | None = None,
    *,
    backing: End | None = None,
) -> None:
    """Check that the source is still what was copied or compared, right before somebody relies on the copy.

    For a regular file, by a path or by a handle with a descriptor (whose position it moves), this compares the size,
    the time of modification and the time of status change with those from before the copy. A change of status
    alone, such as by ``chmod`` or a new hard link, is reported too: it looks the same as a write whose time of
    modification was put back. Of a block device only the identity is compared. Nothing is done for other handles.

    Not found out: a write within the tick of the system's clock (up to 10 ms) in which the last earlier one fell and
    the copy began; stores through a memory map of a file in ``tmpfs``; what another host wrote while this one's
    view of the file's times is behind.

    :param seen: what :func:`copy_data` returned for this source, or :func:`verify_copy` where that has read it again.
    :param options: with which that was called; needed when the source is an image.
    :param backing: as it was given there. What waits in its cache is brought on its way to the storage first.
    :raises volmig.errors.SourceChanged: naming what is different; also when the path leads nowhere, or elsewhere.
    :raises volmig.errors.TransferFailed: when the source cannot be looked at.
    """
    _check(source, seen.source_mark, options)
    if backing is not None:
        _check(backing, seen.backing_mark, None, is_backing=True)


def _check(end: End, before: EndMark | None, options: CopyOptions | None, *, is_backing: bool = False) -> None:
    if before is None or (before.identity is None and before.version is None):
        return
    try:
        opened = opening.open_source(end, options)
    except (errors.TransferFailed, errors.RequestInvalid) as exc:
        if isinstance(exc, errors.RequestInvalid) or isinstance(exc.__cause__, FileNotFoundError | NotADirectoryError):
            raise errors.SourceChanged(path=name_of(end), reason=_ELSEWHERE) from exc
        raise
    with opened:
        if is_backing:
            bring_in(opened)
        _compare(opened, before)


def bring_in(backing: OpenEnd) -> None:
    """Let the kernel count what programs wrote to a backing and what is still in its cache.

    It is not written when such a program closes the device, since the target has that open too. It
    need not be flushed for that.
    """
    with reading(backing.name, 0):
        backing.write_back(0, 0)


@contextmanager
def watched(source: OpenEnd, before: EndMark) -> Iterator[None]:
    """Raise SourceChanged when the source is no longer *before* after the work within.

    That also holds for work that fails: a source that shrinks is the cause of a short read.

    :raises volmig.errors.SourceChanged:
    """
    try:
        yield
    except (errors.SourceTooShort, errors.VerificationFailed) as exc:
        reason = _change(source, before)
        if reason:
            raise errors.SourceChanged(path=source.name, reason=reason) from exc
        raise
    _compare(source, before)


@contextmanager
def watched_backing(backing: OpenEnd | None, before: EndMark | None, lookup: Lookup) -> Iterator[None]:
    """Do as :func:`watched` for what a source is an export of; nothing when that is not known.

    :param lookup: takes the look afterwards, which waits for the storage.
    """
    if backing is None or before is None:
        yield
        return
    what = "the writing of what is in the cache"
    with watched(backing, before):
        try:
            yield
        except (errors.SourceTooShort, errors.VerificationFailed):
            lookup.ask(backing, lambda: bring_in(backing), what)
            raise
        lookup.ask(backing, lambda: bring_in(backing), what)


def _compare(source: OpenEnd, before: EndMark) -> None:
    reason = _change(source, before)
    if reason:
        raise errors.SourceChanged(path=source.name, reason=reason)


def _change(source: OpenEnd, before: EndMark) -> str:
    now = source.mark()
    if now.identity != before.identity or not source.is_still_in_place():
        return _ELSEWHERE
    if before.version is None:
        return ""
    if now.version is None:
        return "what the kernel has counted of writes to it cannot be read any more"
    if len(before.version) != FILE_VERSION:
        if now.version == before.version:
            return ""
        return "the kernel has counted writes to it, or it was detached and attached again"
    size, modified, changed = before.version
    size_now, modified_now, changed_now = now.version
    if size_now != size:
        return f"its size went from {size} to {size_now} bytes"
    if modified_now != modified:
        return "its time of modification is another"
    if changed_now != changed:
        return "its status was changed (ctime), though not its time of modification"
    return ""
