"""The patterns show every misplaced byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig.testing import patterns

SIZE = 3 * 4096 + 77


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "target"
    path.write_bytes(b"\xff" * SIZE)
    return path


@pytest.mark.parametrize("name", ["dense", "holed", "edges", "zeroes"])
def test_filled_target_checks_out(target, name):
    pattern = patterns.standard(SIZE)[name]
    patterns.fill(target, pattern)
    patterns.check(target, pattern)
    with target.open("r+b", buffering=0) as handle:
        patterns.check(handle, pattern)


def test_exchanged_blocks_show(target):
    pattern = patterns.dense(SIZE)
    data = pattern.read(0, SIZE)
    target.write_bytes(data[:4096] + data[8192:12288] + data[4096:8192] + data[12288:])
    with pytest.raises(patterns.PatternMismatch) as caught:
        patterns.check(target, pattern)
    assert caught.value.offset == 4096


@pytest.mark.parametrize("delta", [-1, 1])
def test_wrong_length_shows(target, delta):
    pattern = patterns.dense(SIZE)
    target.write_bytes((pattern.read(0, SIZE) + b"\0")[: SIZE + delta])
    with pytest.raises(patterns.PatternMismatch) as caught:
        patterns.check(target, pattern)
    assert caught.value.offset == SIZE + min(delta, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_part_is_a_part_of_the_whole(data):
    size = data.draw(st.integers(1, 40000))
    pattern = data.draw(st.sampled_from(list(patterns.standard(size).values())))
    whole = pattern.read(0, size)
    assert len(whole) == size
    start = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size))
    assert pattern.read(start, length) == whole[start : start + length]
