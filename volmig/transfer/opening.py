"""Opening the ends of a copy, and checking that they can be one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from volmig import errors
from volmig.transfer.ends import OpenEnd
from volmig.transfer.files import FileEnd
from volmig.transfer.handles import HandleEnd

if TYPE_CHECKING:
    from volmig.transfer.base import End


def open_source(end: End) -> OpenEnd:
    """Open an end for reading; see :class:`OpenEnd` for its errors."""
    return _open(end, reads=True, writes=False, is_destination=False)


def open_destination(end: End, *, reads: bool = False, writes: bool = True) -> OpenEnd:
    """Open an end for writing, for reading back, or for both; it must exist, and is left as it is."""
    return _open(end, reads=reads, writes=writes, is_destination=True)


def check_ends(source: OpenEnd, destination: OpenEnd, size_bytes: int) -> None:
    """Check that *size_bytes* can be copied from one end to the other.

    :raises volmig.errors.RequestInvalid: when both are the same storage.
    :raises volmig.errors.SourceTooShort:
    :raises volmig.errors.DestinationTooShort:
    """
    if source.identity is not None and source.identity == destination.identity:
        raise errors.RequestInvalid(what=destination.name, reason="it is the same storage as the source of the copy")
    if source.size_bytes < size_bytes:
        raise errors.SourceTooShort(path=source.name, actual=source.size_bytes, expected=size_bytes)
    if destination.size_bytes < size_bytes:
        raise errors.DestinationTooShort(path=destination.name, actual=destination.size_bytes, expected=size_bytes)


def _open(end: End, *, reads: bool, writes: bool, is_destination: bool) -> OpenEnd:
    if isinstance(end, str | os.PathLike):
        mode = os.O_RDONLY if not writes else os.O_RDWR if reads else os.O_WRONLY
        return FileEnd(os.fsdecode(end), mode, is_destination=is_destination)
    return HandleEnd(end, reads=reads, writes=writes, is_destination=is_destination)
