"""Finding out that somebody wrote to the source of a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from volmig import errors
from volmig.transfer.base import EndMark
from volmig.transfer.ends import OpenEnd


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
    reason = _change(source, before)
    if reason:
        raise errors.SourceChanged(path=source.name, reason=reason)


def _change(source: OpenEnd, before: EndMark) -> str:
    now = source.mark()
    if now.identity != before.identity or not source.is_still_in_place():
        return "its path no longer leads to it"
    if before.version is None or now.version is None:
        return ""
    if now.version[0] != before.version[0]:
        return f"its size went from {before.version[0]} to {now.version[0]} bytes"
    return "its time of change is another" if now.version != before.version else ""
