"""What a server says about the zeroes of a range, in bounded memory."""

from __future__ import annotations

import array
from collections.abc import Iterator

MOST_PARTS = 64 * 1024
"""Most that is kept of one answer: 0.5 MiB. What lies behind is asked for again."""


class ZeroMap:
    """Parts that follow each other from the beginning of a range, by turns zero and not known to be."""

    def __init__(self) -> None:
        self._lengths = array.array("Q")
        self._begins_zero = False
        self._is_full = False

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self._lengths)

    def add(self, length: int, is_zero: bool) -> None:
        """Add a part; once the map is full, the parts that come are dropped."""
        if self._is_full:
            return
        count = len(self._lengths)
        if not count:
            self._begins_zero = is_zero
        elif is_zero == self._is_zero(count - 1):
            self._lengths[-1] += length
            return
        elif count >= MOST_PARTS:
            self._is_full = True
            return
        self._lengths.append(length)

    def behind(self, skipped_bytes: int) -> Iterator[tuple[int, bool]]:
        """Yield (length, whether it reads as zeroes) of the parts behind the first bytes."""
        for index, length in enumerate(self._lengths):
            if length > skipped_bytes:
                yield length - skipped_bytes, self._is_zero(index)
            skipped_bytes = max(0, skipped_bytes - length)

    def _is_zero(self, index: int) -> bool:
        return self._begins_zero != bool(index % 2)
