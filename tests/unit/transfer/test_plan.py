"""Dividing a volume: nothing twice, nothing left out."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from volmig.transfer.flow.plan import LEAF_BYTES, Task, tasks

MIB = 1024 * 1024


@st.composite
def volumes(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int, int]:
    """Draw extents that are ascending and apart, where to begin, and where to end."""
    lengths = draw(st.lists(st.one_of(st.integers(1, 5 * MIB), st.sampled_from([1, 4096, MIB, 2 * MIB])), max_size=20))
    position = draw(st.integers(0, 2 * MIB))
    extents = []
    for data, gap in itertools.zip_longest(lengths[::2], lengths[1::2], fillvalue=1):
        extents.append((position, position + data))
        position += data + gap
    size = draw(st.one_of(st.just(position), st.integers(0, position + 3 * MIB)))
    begin = draw(st.integers(0, size // MIB)) * MIB
    return extents, begin, size


def ranges(plan: list[Task]) -> list[tuple[int, int]]:
    return [(task.offset, task.end) for task in plan]


@given(volumes())
def test_the_parts_cover_the_volume_in_order_and_keep_the_data(volume: tuple[list[tuple[int, int]], int, int]) -> None:
    extents, begin, size = volume
    plan = list(tasks(extents, begin, size))
    position = begin
    for task in plan:
        assert task.offset == position < task.end <= size
        assert task.offset % LEAF_BYTES == 0
        assert task.end % LEAF_BYTES == 0 or task.end == size
        if task.data:
            assert task.end == min(task.offset + LEAF_BYTES, size)
        position = task.end
        inner = [task.offset, *(edge for part in task.data for edge in part), task.end]
        assert inner == sorted(inner), "data in order, within its part"
        assert all(start < end for start, end in task.data)
        assert all(one[1] < other[0] for one, other in itertools.pairwise(task.data)), "joined where they touch"
        both = sorted([*task.data, *task.holes()])
        assert [edge for part in both for edge in part][:: len(both) * 2 - 1 or 1] == [task.offset, task.end]
        assert all(one[1] == other[0] for one, other in itertools.pairwise(both))
    assert position == size
    wanted = [(max(start, begin), min(end, size)) for start, end in extents if max(start, begin) < min(end, size)]
    assert joined([part for task in plan for part in task.data]) == wanted
    assert not any(not one.data and not other.data for one, other in itertools.pairwise(plan)), "holes are one part"


def joined(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    whole: list[tuple[int, int]] = []
    for start, end in parts:
        if whole and whole[-1][1] == start:
            whole[-1] = (whole[-1][0], end)
        else:
            whole.append((start, end))
    return whole


def test_extents_are_taken_one_at_a_time() -> None:
    taken: list[int] = []

    def endless() -> itertools.chain[tuple[int, int]]:
        def note(index: int) -> tuple[int, int]:
            taken.append(index)
            return 4 * index * MIB, (4 * index + 1) * MIB

        return itertools.chain(map(note, range(10**9)))

    found = list(itertools.islice(tasks(endless(), 0, 1 << 60), 5))
    assert ranges(found) == [(0, MIB), (MIB, 4 * MIB), (4 * MIB, 5 * MIB), (5 * MIB, 8 * MIB), (8 * MIB, 9 * MIB)]
    assert len(taken) < 6


def test_extents_that_touch_are_one() -> None:
    (leaf,) = tasks([(10, 20), (20, 30), (40, 50)], 0, 60)
    assert leaf.data == [(10, 30), (40, 50)]
    assert list(leaf.holes()) == [(0, 10), (30, 40), (50, 60)]


def test_nothing_is_nothing() -> None:
    assert list(tasks([], 0, 0)) == []
    assert list(tasks([(0, 5)], MIB, MIB)) == []
    (hole,) = tasks([], MIB, 3 * MIB)
    assert (hole.offset, hole.end, hole.data) == (MIB, 3 * MIB, [])
