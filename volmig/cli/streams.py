"""The standard streams, made safe to write to, and able to tell that nobody reads them any more."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class OutputLost(OSError):
    """Output could not be written: its reader is gone, or the disk under it is full.

    Tells such an error from those of the work itself, which the command has to report.
    """

    @property
    def is_closed_pipe(self) -> bool:
        """Whether the reader went away, which is its good right."""
        return isinstance(self.__cause__, BrokenPipeError)


class _Output:
    """A text stream whose failures are :class:`OutputLost`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from error

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from error


@contextmanager
def standard_streams() -> Iterator[None]:
    """Let ``sys.stdout`` and ``sys.stderr`` raise :class:`OutputLost`, and be flushed at the end of the block.

    Streams that were closed swallow what they are given; characters that a stream's encoding lacks are escaped.
    What cannot be written then goes nowhere, so that the interpreter does not try it again as it ends.
    """
    _occupy_standard_descriptors()
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - closed below
    try:
        for name, stream in before.items():
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, cast("TextIO", _Output(nowhere if stream is None else stream)))
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before["stdout"], before["stderr"]
        for stream in before.values():
            if stream is not None:
                _flush_or_discard(stream, nowhere.fileno())
        nowhere.close()


def _occupy_standard_descriptors() -> None:
    """Put the null device where a standard stream is closed; a volume opened there would be written over as one."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _flush_or_discard(stream: TextIO, nowhere: int) -> None:
    """Write what *stream* holds; if it cannot be written, let that and all that follows go nowhere."""
    try:
        stream.flush()
    except OSError:
        os.dup2(nowhere, stream.fileno())
