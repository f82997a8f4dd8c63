"""Dividing a volume into what is worked on at a time: leaves with data in them, and ranges without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from volmig.transfer.flow.arena import BUFFER_BYTES

LEAF_BYTES = BUFFER_BYTES
"""A leaf fills one buffer."""


class Task:
    """A part of the volume while it is worked on: a leaf with data, or a range that is a hole."""

    __slots__ = ("at", "blocks", "data", "end", "moved", "offset", "other_at", "pending", "unread")

    def __init__(self, offset: int, end: int, data: list[tuple[int, int]]) -> None:
        self.offset = offset
        self.end = end
        self.data = data
        """Ranges that hold data, as (start, end) in the volume; none in a range that is a hole."""
        self.at = 0
        """Position of its buffer in the arena."""
        self.other_at = 0
        """Position of its second buffer, when it has two."""
        self.blocks = 0
        """Which blocks of the leaf are not all zero, one bit each; complete when all was read."""
        self.unread = 0
        """Bytes that have not been read yet."""
        self.pending = 0
        """Requests that have not ended, and reads that were not submitted yet."""
        self.moved = 0
        """Bytes that were moved, and not passed over."""

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges between the data."""
        position = self.offset
        for start, end in self.data:
            if position < start:
                yield position, start
            position = end
        if position < self.end:
            yield position, self.end


def tasks(extents: Iterable[tuple[int, int]], begin: int, end: int) -> Iterator[Task]:
    """Yield the tasks of a volume from *begin*, a multiple of the leaf, up to *end*, in order and without a gap.

    :param extents: what holds data, ascending and apart; what lies before *begin* is passed over.
    """
    leaf: Task | None = None
    position = begin
    for extent_start, extent_end in extents:
        start, stop = max(extent_start, begin), min(extent_end, end)
        while start < stop:
            if leaf is None or start >= leaf.end:
                if leaf is not None:
                    yield leaf
                    position = leaf.end
                leaf_start = start // LEAF_BYTES * LEAF_BYTES
                if position < leaf_start:
                    yield Task(position, leaf_start, [])
                leaf = Task(leaf_start, min(leaf_start + LEAF_BYTES, end), [])
            part = min(stop, leaf.end)
            if leaf.data and leaf.data[-1][1] == start:
                leaf.data[-1] = (leaf.data[-1][0], part)
            else:
                leaf.data.append((start, part))
            start = part
    if leaf is not None:
        yield leaf
        position = leaf.end
    if position < end:
        yield Task(position, end, [])
