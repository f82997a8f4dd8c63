"""Digesting an end from its beginning, piece by piece, under a copy's control."""

from __future__ import annotations

from collections.abc import Callable

from volmig import errors
from volmig.transfer import opening
from volmig.transfer.base import CopyOptions, End
from volmig.transfer.control import Control
from volmig.transfer.digest import TreeDigest
from volmig.transfer.ends import OpenEnd
from volmig.transfer.requests import check_request, unwatched


def digest_end(
    end: OpenEnd,
    size_bytes: int,
    digest: TreeDigest,
    *,
    chunk_bytes: int,
    control: Control,
    advance: Callable[[int, int], None],
) -> None:
    """Give the first *size_bytes* of an end to a fresh *digest*. Holes are not read.

    Memory: one buffer of *chunk_bytes*.

    :param advance: called with (bytes dealt with, bytes of these passed over as holes) since the last call.
    :raises volmig.errors.SourceTooShort: when a source has fewer bytes.
    :raises volmig.errors.DestinationTooShort: when a destination has.
    """

    def pass_over(to_offset: int) -> None:
        length = to_offset - digest.size_bytes
        if length:
            control.check()
            digest.update_zeroes(length)
            advance(length, length)

    view = memoryview(bytearray(min(chunk_bytes, size_bytes)))
    control.check()
    for start, stop in end.extents(size_bytes):
        pass_over(start)
        while digest.size_bytes < stop:
            length = min(control.request_bytes(len(view)), stop - digest.size_bytes)
            end.read_exactly(view[:length], digest.size_bytes, size_bytes)
            digest.update(view[:length])
            advance(length, 0)
            control.throttle(length)
    pass_over(size_bytes)


def digest_of(
    end: End,
    *,
    size_bytes: int | None = None,
    chunk_bytes: int = 1024 * 1024,
    control: Control | None = None,
) -> str:
    """Return the tree digest, in hexadecimal, of the first *size_bytes* of an end; of all of it when None.

    It is the digest that :class:`TransferResult` reports; :data:`volmig.transfer.digest.ALGORITHM` names it.

    :raises volmig.errors.SourceTooShort: when the end has fewer bytes.
    :raises volmig.errors.TransferFailed: when it cannot be read.
    """
    with opening.open_source(end) as opened:
        size = opened.size_bytes if size_bytes is None else size_bytes
        check_request(size, CopyOptions(chunk_bytes=chunk_bytes))
        if opened.size_bytes < size:
            raise errors.SourceTooShort(path=opened.name, actual=opened.size_bytes, expected=size)
        digest = TreeDigest()
        digest_end(
            opened,
            size,
            digest,
            chunk_bytes=chunk_bytes,
            control=control or Control(),
            advance=unwatched,
        )
        return digest.hexdigest()
