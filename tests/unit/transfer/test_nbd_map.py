"""What an NBD server says about zeroes: kept in bounded memory, and never wrong."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig.transfer.nbd import map as maps
from volmig.transfer.nbd.end import NbdEnd
from volmig.transfer.nbd.map import ZeroMap

from .nbd_server import ALL_FLAGS, CONTEXT_ID, MULTI, STATUS, NbdServer, chunk

MIB = 1024 * 1024


class Huge(bytearray):
    """Pretends to be large."""

    def __len__(self) -> int:
        return 1 << 30


def served(directory: Path, payload: bytes) -> NbdServer:
    answer = chunk(1, 5, struct.pack(">I", CONTEXT_ID) + payload, last=True)
    server = NbdServer(
        b"",
        directory=directory,
        flags=ALL_FLAGS & ~MULTI,
        tamper=lambda command, true: answer if command == STATUS else true,
    )
    server.content = Huge()
    server.map = lambda _offset, _length: iter([(512, False)])  # type: ignore[method-assign]
    return server


def first(end: NbdEnd) -> tuple[tuple[int, int], int]:
    """Return the first extent, and the most memory that it took to find it."""
    extents = end.extents(1 << 30)
    tracemalloc.start()
    try:
        found = next(extents)
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("states", [(0, 3), (0, 0)])
def test_an_answer_in_the_smallest_parts_takes_little_memory(tmp_path: Path, states: tuple[int, int]) -> None:
    payload = struct.pack(">IIII", 512, states[0], 512, states[1]) * (96 * 1024)
    with (
        served(tmp_path, payload) as server,
        NbdEnd.connect(server.address, reads=True, writes=False, is_destination=False) as end,
    ):
        if states == (0, 0):
            assert len(end._all[0].block_status(0, 1 << 30)) == 1
            return
        found, peak = first(end)
    assert found == (0, 512)
    assert peak < 3 * MIB


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=30),
    skipped=st.integers(0, 60),
    most=st.integers(1, 8),
)
def test_a_map_says_what_it_was_told(parts: list[tuple[int, bool]], skipped: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "MOST_PARTS", most)
        kept = ZeroMap()
        for length, is_zero in parts:
            kept.add(length, is_zero)
    told = [is_zero for length, is_zero in parts for _ in range(length)][skipped:]
    found = list(kept.behind(skipped))
    assert all(length > 0 for length, _ in found)
    assert all(one != other for (_, one), (_, other) in itertools.pairwise(found))
    said = [is_zero for length, is_zero in found for _ in range(length)]
    assert len(kept) <= most
    runs = [len(list(group)) for _, group in itertools.groupby(is_zero for n, is_zero in parts for _ in range(n))]
    assert said == told[: max(0, sum(runs[:most]) - skipped)], "all of it, but for what was too much"


def test_what_was_too_much_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "MOST_PARTS", 3)
    content = bytearray(40 * 4096)
    for index in (3, 4, 9, *range(12, 36, 2), 39):
        content[index * 4096] = 1
    with (
        NbdServer(content) as server,
        NbdEnd.connect(server.address, reads=True, writes=False, is_destination=False) as end,
    ):
        found = [at for start, stop in end.extents(len(content)) for at in range(start, stop, 4096)]
    assert found == [index * 4096 for index in (3, 4, 9, *range(12, 36, 2), 39)]
