"""The two ends of a copy, opened: one face for paths and for file-like handles."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self

from volmig import errors
from volmig.transfer.base import EndMark

if TYPE_CHECKING:
    from types import TracebackType

    from volmig.transfer.base import End

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class OpenEnd(abc.ABC):
    """One end while it is open. Positions and sizes are in bytes; nothing here ever creates or truncates.

    Every failure of the storage is raised as an :class:`volmig.errors.OperatorError` that names the end and the
    offset. Not thread-safe.
    """

    name: str
    """The path, or what describes the handle, for messages."""
    size_bytes: int
    """Size when it was opened."""
    identity: tuple[str, int, int] | None
    """As in :class:`volmig.transfer.base.EndMark`."""
    is_destination: bool
    """Whether it is the end that is written to; for messages."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what opening took; a handle is its owner's and stays open."""

    @abc.abstractmethod
    def extents(self, size_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of the first *size_bytes* that hold data, as (start, end); the rest reads as zeroes."""

    def data_bytes(self, size_bytes: int) -> int:
        """Return how much of the first *size_bytes* is data."""
        return sum(end - start for start, end in self.extents(size_bytes))

    @abc.abstractmethod
    def read_some(self, view: memoryview, offset: int) -> int:
        """Read at *offset* into *view*; return how many bytes came, 0 at the end."""

    @abc.abstractmethod
    def write_some(self, view: memoryview, offset: int) -> int:
        """Write *view* at *offset*; return how many bytes were taken."""

    @property
    @abc.abstractmethod
    def punches(self) -> bool:
        """Whether :meth:`punch` is likely to do it."""

    @abc.abstractmethod
    def punch(self, offset: int, length: int, before: Callable[[], None]) -> bool:
        """Make a range read as zeroes without writing them; return False where that cannot be done.

        :param before: as for :meth:`write_all`.
        """

    @abc.abstractmethod
    def flush(self) -> None:
        """Bring everything written to stable storage."""

    @abc.abstractmethod
    def drop_cache(self) -> None:
        """Ask the system to forget its copy of the content, so that reading asks the storage. Needs a flush before."""

    @abc.abstractmethod
    def version(self) -> tuple[int, int, int] | None:
        """Return what changes when somebody writes to it, as in :class:`volmig.transfer.base.EndMark`."""

    @abc.abstractmethod
    def settle(self) -> None:
        """Bring to storage what others wrote to a regular file before, so that its times tell of all they write now.

        Does nothing for anything else, nor where the file system cannot do it on a file open for reading.

        :raises volmig.errors.TransferFailed: when what was written before is lost.
        """

    @abc.abstractmethod
    def is_still_in_place(self) -> bool:
        """Say whether the name still leads to what was opened."""

    def mark(self) -> EndMark:
        """Return what it is at present."""
        return EndMark(identity=self.identity, version=self.version())

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill *view* from *offset*; return how many bytes came, fewer only at the end.

        :raises volmig.errors.TransferFailed: when reading fails.
        """
        done = 0
        while done < len(view):
            with reading(self.name, offset + done):
                count = self.read_some(view[done:], offset + done)
                _check_count(count, len(view) - done)
            if not count:
                break
            done += count
        return done

    def read_exactly(self, view: memoryview, offset: int, size_bytes: int) -> None:
        """Fill *view* from *offset*; *size_bytes* is what the end was to have at least, for the message.

        :raises volmig.errors.SourceTooShort: when a source ends before.
        :raises volmig.errors.DestinationTooShort: when a destination does.
        """
        actual = offset + self.read_into(view, offset)
        if actual < offset + len(view):
            error = errors.DestinationTooShort if self.is_destination else errors.SourceTooShort
            raise error(path=self.name, actual=actual, expected=size_bytes)

    def write_all(self, view: memoryview, offset: int, before: Callable[[], None]) -> None:
        """Write all of *view* at *offset*.

        :param before: called before each of the requests that it takes; what it raises is raised here.
        :raises volmig.errors.DiskFull: when there is no room.
        :raises volmig.errors.TransferFailed: when writing fails otherwise.
        """
        done = 0
        while done < len(view):
            before()
            with writing(self.name, offset + done):
                count = self.write_some(view[done:], offset + done)
                _check_count(count, len(view) - done)
            if not count:
                raise errors.TransferFailed(path=self.name, offset=offset + done, reason="it takes no more data")
            done += count


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


@contextlib.contextmanager
def writing(name: str, offset: int) -> Iterator[None]:
    """Turn whatever an end raises while it is written into an error that says where."""
    try:
        yield
    except errors.VolmigError:
        raise
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno in _FULL:
            raise errors.DiskFull(path=name, offset=offset) from exc
        raise errors.TransferFailed(path=name, offset=offset, reason=f"writing: {describe(exc)}") from exc


def describe(exc: BaseException) -> str:
    """Return what an exception says, without the path that the message has already."""
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def _check_count(count: int, wanted: int) -> None:
    if not 0 <= count <= wanted:
        raise ValueError(f"{count} bytes were said to be moved where {wanted} were asked for")
