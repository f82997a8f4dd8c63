"""Remembering where the holes of a destination were before the copy began to write to it."""

from __future__ import annotations

import array
import bisect
import itertools
from collections.abc import Iterable

MOST_HOLES = 256 * 1024
"""Most that is remembered: 4 MiB. What lies behind is made zero as if nothing were known of it."""


class Holes:
    """The holes between two places."""

    def __init__(self, data: Iterable[tuple[int, int]], begin_bytes: int, end_bytes: int) -> None:
        """Take the gaps between parts that hold *data*, which come as (start, end), ascending and apart."""
        self._starts = array.array("q")
        self._ends = array.array("q")
        position = begin_bytes
        for start, end in itertools.islice(itertools.chain(data, [(end_bytes, end_bytes)]), MOST_HOLES):
            if position < start:
                self._starts.append(position)
                self._ends.append(start)
            position = end

    def cover(self, offset: int, length: int) -> bool:
        """Say whether a range lies in one of them."""
        index = bisect.bisect_right(self._starts, offset) - 1
        return index >= 0 and offset + length <= self._ends[index]
