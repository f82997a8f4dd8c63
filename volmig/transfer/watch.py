"""Finding out that somebody wrote to the source of a copy.

A regular file is known by its size and two times. Its time of modification can be set to anything (``utime``, as
``rsync -t`` and ``cp -p`` do); its time of status change (``ctime``) cannot, so both are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from volmig import errors
from volmig.transfer.base import CopiedData, CopyOptions, End, EndMark
from volmig.transfer.ends import opening
from volmig.transfer.ends.base import OpenEnd, name_of
from volmig.transfer.ends.identity import FILE_VERSION

_ELSEWHERE = "its path no longer leads to it"


def first_mark(source: OpenEnd) -> EndMark:
    """Return what a source is before its copy, after bringing to storage what was written to it earlier.

    :raises volmig.errors.TransferFailed: when that fails: part of what somebody wrote is lost.
    """
    source.settle()
    return source.mark()


def check_unchanged(source: End, copied: CopiedData, options: CopyOptions | None = None) -> None:
    """Check that the source is still what was copied, right before somebody relies on the copy.

    For a regular file, by a path or by a handle with a descriptor (whose position it moves), this compares the size,
    the time of modification and the time of status change with those from before the copy. A change of status
    alone, such as by ``chmod`` or a new hard link, is reported too: it looks the same as a write whose time of
    modification was put back. Of a block device only the identity is compared. Nothing is done for other handles.

    Not found out: a write within the tick of the system's clock (up to 10 ms) in which the last earlier one fell and
    the copy began; stores through a memory map of a file in ``tmpfs``; what another host wrote while this one's
    view of the file's times is behind.

    :param copied: what :func:`copy_data` returned for this source.
    :param options: with which that was called; needed when the source is an image.
    :raises volmig.errors.SourceChanged: naming what is different; also when the path leads nowhere, or elsewhere.
    :raises volmig.errors.TransferFailed: when the source cannot be looked at.
    """
    before = copied.source_mark
    if before.identity is None and before.version is None:
        return
    try:
        opened = opening.open_source(source, options)
    except (errors.TransferFailed, errors.RequestInvalid) as exc:
        if isinstance(exc, errors.RequestInvalid) or isinstance(exc.__cause__, FileNotFoundError | NotADirectoryError):
            raise errors.SourceChanged(path=name_of(source), reason=_ELSEWHERE) from exc
        raise
    with opened:
        _compare(opened, before)


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


def _compare(source: OpenEnd, before: EndMark) -> None:
    reason = _change(source, before)
    if reason:
        raise errors.SourceChanged(path=source.name, reason=reason)


def _change(source: OpenEnd, before: EndMark) -> str:
    now = source.mark()
    if now.identity != before.identity or not source.is_still_in_place():
        return _ELSEWHERE
    if before.version is None or now.version is None:
        return ""
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
