"""Sources are what they are said to be, and the judge of copies is not fooled."""

from __future__ import annotations

import os

import pytest

from benchmarks.transfer import shapes
from benchmarks.transfer.content import BLOCK_BYTES, digest_of
from benchmarks.transfer.shapes import MIB, MIN_BYTES, SHAPES

_BY_NAME = {shape.name: shape for shape in SHAPES}
_GIB = 1024 * MIB


def _go_on():
    """Never give up."""


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("size_bytes", [MIN_BYTES, MIN_BYTES + shapes.STEP_BYTES, _GIB])
def test_extents_are_in_order_inside_and_in_whole_blocks(shape, size_bytes):
    end = 0
    for extent in shape.extents(shape.size_bytes(size_bytes)):
        assert extent.offset >= end
        assert extent.length > 0
        assert extent.offset % BLOCK_BYTES == extent.length % BLOCK_BYTES == 0
        end = extent.offset + extent.length
    assert end <= shape.size_bytes(size_bytes)
    assert list(shape.extents(size_bytes)) == list(shape.extents(size_bytes))


def test_shares_of_data():
    assert {shape.name: shape.data_bytes(_GIB) for shape in SHAPES} == {
        "dense": _GIB,
        "scattered": 1638 * BLOCK_BYTES,
        "zeroes": 1638 * BLOCK_BYTES,
        "pattern": _GIB // 2,
        "empty": 4 * MIB,
    }
    assert _BY_NAME["zeroes"].written_bytes(_GIB) == _GIB
    assert _BY_NAME["empty"].size_bytes(_GIB) == 4 * _GIB
    *_, last = _BY_NAME["empty"].extents(_GIB)
    assert last.offset + last.length == _GIB


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_sources_hold_their_data_and_take_their_room(shape, tmp_path):
    source = shapes.make(shape, tmp_path / "source", MIN_BYTES, _go_on)
    data = source.path.read_bytes()
    assert len(data) == source.size_bytes == shape.size_bytes(MIN_BYTES)
    blocks = [data[offset : offset + BLOCK_BYTES] for offset in range(0, len(data), BLOCK_BYTES)]
    assert sum(block != bytes(BLOCK_BYTES) for block in blocks) * BLOCK_BYTES == source.data_bytes
    assert len(set(blocks)) == source.data_bytes // BLOCK_BYTES + (source.data_bytes < len(data))
    again = shapes.make(shape, tmp_path / "again", MIN_BYTES, _go_on)
    assert again.digest == source.digest


def test_a_source_that_reads_otherwise_is_refused(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, bytes([data[0] ^ 1]) + data[1:], at))
    with pytest.raises(shapes.SourceWrong, match="does not read as it was written"):
        shapes.make(_BY_NAME["scattered"], tmp_path / "source", MIN_BYTES, _go_on)


def test_the_digest_says_nothing_of_holes(tmp_path):
    holes, zeroes = tmp_path / "holes", tmp_path / "zeroes"
    piece = os.urandom(5000)
    with holes.open("wb") as file:
        file.truncate(3 * MIB)
        file.seek(MIB + 4096)
        file.write(piece)
    zeroes.write_bytes(bytes(MIB + 4096) + piece + bytes(2 * MIB - 4096 - 5000))
    assert digest_of(holes, 3 * MIB, _go_on) == digest_of(zeroes, 3 * MIB, _go_on)


@pytest.mark.parametrize("place", [0, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * MIB - 1])
def test_the_digest_tells_a_flipped_bit_and_a_moved_block(place, tmp_path):
    data = bytearray(3 * MIB)
    data[MIB : MIB + BLOCK_BYTES] = os.urandom(BLOCK_BYTES)
    (path := tmp_path / "file").write_bytes(data)
    before = digest_of(path, 3 * MIB, _go_on)
    path.write_bytes(bytes(BLOCK_BYTES) + data[:-BLOCK_BYTES])
    assert digest_of(path, 3 * MIB, _go_on) != before
    data[place] ^= 1
    path.write_bytes(data)
    assert digest_of(path, 3 * MIB, _go_on) != before


def test_the_digest_refuses_another_size(tmp_path):
    (path := tmp_path / "file").write_bytes(bytes(MIB))
    for size_bytes in (MIB - 1, MIB + 1):
        with pytest.raises(OSError, match="bytes and not"):
            digest_of(path, size_bytes, _go_on)


def test_a_check_that_raises_ends_it(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shapes.make(_BY_NAME["dense"], tmp_path / "source", MIN_BYTES, stop)
