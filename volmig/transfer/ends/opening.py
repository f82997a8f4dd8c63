"""Opening the ends of a copy, and checking that they can be one."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from volmig import errors
from volmig.transfer.ends.base import OpenEnd, is_path, name_of
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.ends.handles import HandleEnd
from volmig.transfer.nbd.address import is_address
from volmig.transfer.requests import RAW, unwatched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from volmig.transfer.base import CopyOptions, End, HelperProcess
    from volmig.transfer.flow.lookup import Lookup


def open_source(
    end: End,
    options: CopyOptions | None = None,
    on_process: Callable[[HelperProcess], None] = unwatched,
    *,
    lookup: Lookup | None = None,
) -> OpenEnd:
    """Open an end for reading; see :class:`OpenEnd` for its errors.

    :param options: says the format. The content of an image is read by a program, which *on_process* is told of.
    :param lookup: opens it, so that a cancellation is seen meanwhile. The program of an image is started by the
        caller's thread, in which *on_process* is called.
    """
    opened = _open_by(lookup, end, reads=True, writes=False, is_destination=False)
    format_name = options.source_format if options else RAW
    if options is None or format_name == RAW:
        return opened
    with opened:
        return _image(opened, end, format_name, options, on_process)


def open_checked_source(
    end: End, options: CopyOptions, lookup: Lookup, on_process: Callable[[HelperProcess], None]
) -> OpenEnd:
    """Open a source whose format nobody has looked at yet; *lookup* does the looking.

    :raises volmig.errors.UnsupportedFormat: when it does not have the format that the options say.
    """
    from volmig.transfer.images.formats import check_source

    with _open_by(lookup, end, reads=True, writes=False, is_destination=False) as stored:
        lookup.ask(stored, lambda: check_source(stored, options), "the reading of the header")
    return open_source(end, options, on_process, lookup=lookup)


@contextlib.contextmanager
def opened_backing(end: End | None, lookup: Lookup) -> Iterator[OpenEnd | None]:
    """Open what a source is an export of, for looking at it; None when that is not given."""
    if end is None:
        yield None
        return
    with open_source(end, lookup=lookup) as opened:
        yield opened


def open_destination(
    end: End, *, reads: bool = False, writes: bool = True, lookup: Lookup | None = None, sole_writer: bool = False
) -> OpenEnd:
    """Open an end for writing, for reading back, or for both, as it is stored; it must exist, and is left as it is.

    :param lookup: as for :func:`open_source`.
    :param sole_writer: refuse it while requests of an earlier copy may be under way to it.
    :raises volmig.errors.DestinationBusy: when they may be.
    """
    return _open_by(lookup, end, reads=reads, writes=writes, is_destination=True, sole_writer=sole_writer)


def open_arrived(
    end: End, options: CopyOptions, on_process: Callable[[HelperProcess], None], lookup: Lookup
) -> OpenEnd:
    """Open a destination for reading back what was copied to it, in the format that it was given."""
    opened = open_destination(end, reads=True, writes=False, lookup=lookup)
    if options.destination_format == RAW:
        return opened
    with opened:
        return _image(opened, end, options.destination_format, options, on_process)


def check_ends(source: OpenEnd, destination: OpenEnd, size_bytes: int, *, sized: bool = True) -> None:
    """Check that *size_bytes* can be copied from one end to the other.

    :param sized: whether the destination has its size already; an image that is made by the copy has not.

    :raises volmig.errors.RequestInvalid: when both are the same storage.
    :raises volmig.errors.SourceTooShort:
    :raises volmig.errors.DestinationTooShort:
    """
    is_one_handle = (
        isinstance(source, HandleEnd) and isinstance(destination, HandleEnd) and source.handle is destination.handle
    )
    if is_one_handle or (destination.identity is not None and destination.identity in source.identities):
        raise errors.RequestInvalid(what=destination.name, reason="it is the same storage as the source of the copy")
    if source.size_bytes < size_bytes:
        raise errors.SourceTooShort(path=source.name, actual=source.size_bytes, expected=size_bytes)
    if sized and destination.size_bytes < size_bytes:
        raise errors.DestinationTooShort(path=destination.name, actual=destination.size_bytes, expected=size_bytes)


def _open_by(
    lookup: Lookup | None, end: End, *, reads: bool, writes: bool, is_destination: bool, sole_writer: bool = False
) -> OpenEnd:
    def work() -> OpenEnd:
        return _open(end, reads=reads, writes=writes, is_destination=is_destination, sole_writer=sole_writer)

    return work() if lookup is None else lookup.open(name_of(end), work)


def _open(end: End, *, reads: bool, writes: bool, is_destination: bool, sole_writer: bool = False) -> OpenEnd:
    if sole_writer and (is_address(end) or not is_path(end)):
        # What a server or a library still does for a client that is gone, nobody can tell.
        raise errors.DestinationBusy(path=name_of(end))
    if is_address(end):
        # Not loaded by everyone who copies files.
        from volmig.transfer.nbd.end import NbdEnd

        return NbdEnd.connect(end, reads=reads, writes=writes, is_destination=is_destination)
    if isinstance(end, str | os.PathLike):
        mode = os.O_RDONLY if not writes else os.O_RDWR if reads else os.O_WRONLY
        return FileEnd(os.fsdecode(end), mode, is_destination=is_destination, sole_writer=sole_writer)
    return HandleEnd(end, reads=reads, writes=writes, is_destination=is_destination)


def _image(
    stored: OpenEnd, end: End, format_name: str, options: CopyOptions, on_process: Callable[[HelperProcess], None]
) -> OpenEnd:
    from volmig.transfer.images.end import open_image

    if not isinstance(stored, FileEnd):
        raise errors.UnsupportedFormat(
            what=stored.name,
            format=format_name,
            reason="an image can be read only by its path",
            hint="Name the image by its path.",
        )
    return open_image(
        name_of(end), format_name, options=options, is_destination=stored.is_destination, on_process=on_process
    )
