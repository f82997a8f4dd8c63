"""What the guest says of itself, told apart from what the commands in it print.

Both come through one channel, so that a command's end is seen after the last byte that it printed. A mark is
``NUL token : name : value NUL``, with a token that each boot draws anew: no program can print it by chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that the guest said: what, and its value."""

    name: str
    value: str


class MarkReader:
    """Split a stream of bytes into output and marks; bytes may come cut anywhere."""

    def __init__(self, token: str) -> None:
        self._start = b"\0" + token.encode() + b":"
        self._pending = b""

    def feed(self, data: bytes) -> Iterator[bytes | Mark]:
        """Yield output and marks, in order; a mark that is not complete yet is kept for the next call."""
        self._pending += data
        while self._pending:
            found = self._pending.find(self._start)
            if found < 0:
                keep = self._length_of_possible_start()
                yield from self._take(len(self._pending) - keep)
                return
            yield from self._take(found)
            end = self._pending.find(b"\0", len(self._start))
            if end < 0:
                return
            body = self._pending[len(self._start) : end].decode("utf-8", "replace")
            name, _, value = body.partition(":")
            self._pending = self._pending[end + 1 :]
            yield Mark(name=name, value=value)

    def finish(self) -> bytes:
        """Return what is left when the stream has ended."""
        left, self._pending = self._pending, b""
        return left

    def _take(self, length: int) -> Iterator[bytes]:
        taken, self._pending = self._pending[:length], self._pending[length:]
        if taken:
            yield taken

    def _length_of_possible_start(self) -> int:
        longest = min(len(self._start) - 1, len(self._pending))
        return next((n for n in range(longest, 0, -1) if self._pending.endswith(self._start[:n])), 0)
