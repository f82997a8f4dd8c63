"""What ``volmig copy`` checks of its words before it touches anything."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from volmig import errors
from volmig.transfer.ends import opening
from volmig.transfer.nbd.address import is_address

if TYPE_CHECKING:
    from volmig.transfer import CopyOptions

_OF_THE_REQUEST = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.ENODEV,
        errno.ENOMEDIUM,
    }
)
"""What the system says of a path that was mistyped, or that this user may not use, and not of failing storage."""


@contextlib.contextmanager
def usable() -> Iterator[None]:
    """Turn the failure to open a path into one of the request, where the request is to blame.

    :raises volmig.errors.PathUnusable:
    """
    try:
        yield
    except errors.TransferFailed as error:
        cause = error.__cause__
        if not isinstance(cause, ValueError) and not (isinstance(cause, OSError) and cause.errno in _OF_THE_REQUEST):
            raise
        reason = str(error.fields["reason"]).removeprefix("opening: ")
        hint = error.hint if error.hint != error.hint_template else None
        raise errors.PathUnusable(path=error.fields["path"], reason=reason, hint=hint) from error


def source_size(path: str, options: CopyOptions, asked_bytes: int | None) -> int:
    """Return how much is to be copied, after a look at the source.

    :param asked_bytes: what the user wants of it; None for all.
    :raises volmig.errors.RequestError: when there is no such source, or not so much of it.
    """
    if not path:
        raise errors.PathUnusable(path="The source ''", reason="it has no name", hint="Name what is to be copied.")
    with usable(), opening.open_source(path, options) as source:
        size_bytes = source.size_bytes
    if not size_bytes and not is_address(path):
        _check_empty(path)
    if asked_bytes is not None and asked_bytes > size_bytes:
        raise errors.RequestInvalid(
            what="--size",
            reason=f"{path} has {size_bytes} bytes, and {asked_bytes} are to be copied",
            hint="Copy less of it, or leave out --size.",
        )
    return size_bytes if asked_bytes is None else asked_bytes


def _check_empty(path: str) -> None:
    """Check that a regular file without a size has no content: those of /proc are made while they are read."""
    try:
        # Those that wait for something to happen must not be waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not _gives(fd):
            return
    finally:
        os.close(fd)
    raise errors.RequestInvalid(
        what=path,
        reason="it says that it has 0 bytes, but there is something to read in it",
        hint="Such a file, as in /proc, is made by the kernel while it is read; copy it with cat.",
    )


def _gives(fd: int) -> bool:
    try:
        return bool(os.read(fd, 1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def check_checkpoint_apart(checkpoint: str, source: str, destination: str) -> None:
    """Check that the file for the checkpoint is none of the ends.

    :raises volmig.errors.RequestInvalid:
    """
    for what, end in (("source", source), ("destination", destination)):
        if not is_address(end) and _is_same(checkpoint, end):
            raise errors.RequestInvalid(
                what="--resume",
                reason=f"{checkpoint} is the {what} of the copy",
                hint="Name a file of its own, which need not exist.",
            )


def _is_same(one: str, other: str) -> bool:
    """Say whether two paths lead to one file, or would if it was made."""
    try:
        return os.path.samestat(Path(one).stat(), Path(other).stat())
    except (OSError, ValueError):
        pass
    try:
        # Of a file that does not exist, where it would be made.
        there, here = Path(one), Path(other)
        return there.name == here.name and os.path.samestat(there.parent.stat(), here.parent.stat())
    except (OSError, ValueError):
        return False
