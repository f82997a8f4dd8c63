"""Whether a source is what its record says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volmig import errors
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.images.chains import FORMATS, RAW, examine, open_chain
from volmig.transfer.images.headers import probe

if TYPE_CHECKING:
    from volmig.transfer.base import CopyOptions
    from volmig.transfer.ends.base import OpenEnd

__all__ = ["FORMATS", "RAW", "check_source", "probe"]


def check_source(end: OpenEnd, options: CopyOptions) -> None:
    """Check that what is stored at the source of a copy has the format that ``options.source_format`` says.

    Reads a few KiB, and opens backing files for reading when they may be used; changes nothing.

    :param end: the storage itself, not a view through a format.
    :raises volmig.errors.UnsupportedFormat: when a raw source carries the header of an image (unless
        ``options.ignore_header``); when another does not carry the header of its format, is encrypted, keeps its data
        in another file, or is based on files that it may not name; see
        :func:`volmig.transfer.images.chains.open_chain`.
    :raises volmig.errors.TransferFailed: when it cannot be read.
    """
    backing = examine(end, options.source_format, options)
    if backing is None:
        return
    if not isinstance(end, FileEnd):
        raise errors.UnsupportedFormat(
            what=end.name,
            format=options.source_format,
            reason=f"it is based on {backing[0]!r}, which cannot be found from an end that is not a path",
            hint="Name the image by its path.",
        )
    open_chain(end.name, options.source_format, options, is_destination=end.is_destination).close()
