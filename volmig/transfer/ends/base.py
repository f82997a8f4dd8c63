"""The two ends of a copy, opened: one face for paths and for file-like handles."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from volmig import errors
from volmig.transfer.base import EndMark
from volmig.transfer.ends.holes import Holes

if TYPE_CHECKING:
    from types import TracebackType

    from volmig.transfer.base import End

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class OpenEnd(abc.ABC):
    """One end while it is open. Positions and sizes are in bytes; nothing here ever creates or truncates.

    Every failure of the storage is raised as an :class:`volmig.errors.OperatorError` that names the end and the
    offset, or as what the system says. Not thread-safe beyond :attr:`concurrency`.
    """

    name: str
    """The path, or what describes the handle, for messages."""
    size_bytes: int
    """Size when it was opened."""
    identity: tuple[str, ...] | None
    """As in :class:`volmig.transfer.base.EndMark`."""
    is_destination: bool
    """Whether it is the end that is written to; for messages."""
    concurrency: int = 1
    """How many threads may use :meth:`read_some`, :meth:`write_some` and :meth:`zero` at once."""

    is_pinned: bool = False
    """Whether requests to it that outlive their process can be seen by the next one; see :mod:`.pins`."""

    map_is_believed: bool = True
    """Whether :meth:`extents` can serve to prove what was written: False when others than this host's kernel and our
    own programs tell it, so that what they call zero must be read."""

    zero_step_bytes: int = 1
    """:meth:`zero` takes ranges whose place and length are multiples of this."""
    _holes: Holes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def identities(self) -> frozenset[tuple[str, ...]]:
        """Identities of all storage that its content comes from."""
        return frozenset() if self.identity is None else frozenset({self.identity})

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what opening took; a handle is its owner's and stays open."""

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[None]:
        """Let a thread use the end: a :meth:`close` meanwhile takes effect when the thread is done.

        :raises ValueError: when it is closed already.
        """
        yield

    @abc.abstractmethod
    def extents(self, size_bytes: int, begin_bytes: int = 0) -> Iterator[tuple[int, int]]:
        """Yield the parts between *begin_bytes* and *size_bytes* that hold data, as (start, end), ascending and apart.

        The rest reads as zeroes.
        """

    def data_bytes(self, size_bytes: int, begin_bytes: int = 0) -> int:
        """Return about how much between *begin_bytes* and *size_bytes* is data."""
        return sum(end - start for start, end in self.extents(size_bytes, begin_bytes))

    @abc.abstractmethod
    def read_some(self, view: memoryview, offset: int) -> int:
        """Read at *offset* into *view*; return how many bytes came, 0 at the end."""

    @abc.abstractmethod
    def write_some(self, view: memoryview, offset: int) -> int:
        """Write *view* at *offset*; return how many bytes were taken."""

    @property
    def zeroes_cheaply(self) -> bool:
        """Whether :meth:`zero` is likely to do it."""
        return False

    def zero(self, offset: int, length: int) -> bool:
        """Make a range read as zeroes without sending any; return False where that cannot be done."""
        return False

    def survey(self, begin_bytes: int, end_bytes: int) -> None:
        """Find out, before the first write to that range, what :meth:`known_zero` is to say of it.

        Once and beforehand: asked while a request hangs, the storage could let this wait for that one's end.
        """
        self._holes = Holes(self.extents(end_bytes, begin_bytes), begin_bytes, end_bytes)

    def known_zero(self, offset: int, length: int) -> bool:
        """Say whether a range is known, without reading it, to have been zeroes when it was looked at."""
        return self._holes is not None and self._holes.cover(offset, length)

    @abc.abstractmethod
    def flush(self) -> None:
        """Bring everything written to stable storage."""

    @abc.abstractmethod
    def drop_cache(self) -> None:
        """Ask the system to forget its copy of the content, so that reading asks the storage. Needs a flush before."""

    @property
    def is_direct(self) -> bool:
        """Whether requests go past the system's cache."""
        return False

    def write_back(self, offset: int, length: int) -> None:
        """Bring a range from the system's cache to storage, without the promise that :meth:`flush` makes."""

    def release_cache(self, offset: int, length: int) -> None:
        """Do as :meth:`drop_cache` does for a range, if this end can."""

    @abc.abstractmethod
    def version(self) -> tuple[int, ...] | None:
        """Return what changes when somebody writes to it, as in :class:`volmig.transfer.base.EndMark`."""

    @abc.abstractmethod
    def settle(self) -> None:
        """Bring to storage what others wrote before, so that :meth:`version` tells of all that they write now.

        Does nothing where the file system cannot do it on a file open for reading.

        :raises volmig.errors.TransferFailed: when what was written before is lost.
        """

    @abc.abstractmethod
    def is_still_in_place(self) -> bool:
        """Say whether the name still leads to what was opened."""

    def mark(self) -> EndMark:
        """Return what it is at present."""
        return EndMark(identity=self.identity, version=self.version())


def is_path(end: End) -> bool:
    """Say whether an end is a path, and not a handle."""
    return isinstance(end, str | os.PathLike)


def name_of(end: End) -> str:
    """Return what to call an end in messages: its path, or what its handle says of itself."""
    if isinstance(end, str | os.PathLike):
        return os.fsdecode(end)
    name = getattr(end, "name", None)
    return name if isinstance(name, str) and name else f"<{type(end).__name__}>"


@contextlib.contextmanager
def reading(name: str, offset: int) -> Iterator[None]:
    """Turn whatever an end raises while it is read into an error that says where."""
    try:
        yield
    except errors.VolmigError:
        raise
    except Exception as exc:
        raise errors.TransferFailed(path=name, offset=offset, reason=f"reading: {describe(exc)}") from exc


def failure(end: OpenEnd, exc: Exception, *, offset: int, writing: bool) -> errors.VolmigError:
    """Return the error for what an end raised."""
    if isinstance(exc, errors.VolmigError):
        return exc
    if writing and isinstance(exc, OSError) and exc.errno in _FULL:
        return errors.DiskFull(path=end.name, offset=offset)
    doing = "writing" if writing else "reading"
    return errors.TransferFailed(path=end.name, offset=offset, reason=f"{doing}: {describe(exc)}")


def describe(exc: BaseException) -> str:
    """Return what an exception says, without the path that the message has already."""
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
