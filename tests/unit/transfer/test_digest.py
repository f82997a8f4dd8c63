from __future__ import annotations

import io
import random

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig.transfer import digest as digests
from volmig.transfer import digest_of
from volmig.transfer.digest import BLOCK_BYTES, HASH_BYTES, LEAF_BYTES, TreeDigest, leaf_hash, root_of, segment_bytes

from .fakes import pattern

KIB = 1024
MIB = 1024 * 1024


def named(content: bytes) -> bytes:
    return blake3(content).digest()


def by_definition(content: bytes, segment: int = 16 * MIB) -> tuple[str, list[bytes]]:
    """The root and the segments as the documentation states them, without the class: slow, and all in memory."""
    segments = []
    for start in range(0, len(content), segment):
        part, hashes, bits = content[start : start + segment], b"", [0] * (segment // MIB)
        for index, at in enumerate(range(0, len(part), MIB)):
            leaf = part[at : at + MIB]
            blocks = [leaf[begin : begin + 64 * KIB] for begin in range(0, len(leaf), 64 * KIB)]
            present = [any(block) for block in blocks]
            if any(present):
                data = b"".join(block for block, is_data in zip(blocks, present, strict=True) if is_data)
                mask = sum(1 << number for number, is_data in enumerate(present) if is_data)
                hashes += named(data + bytes([mask & 0xFF, mask >> 8]) + b"\x00")
                bits[index] = 1
        bitmap = bytes(
            sum(bit << place for place, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8)
        )
        segments.append(named(hashes + bitmap + b"\x01"))
    size = len(content).to_bytes(8, "little")
    return named(b"".join(segments) + b"blake3-tree-64k-1m" + size + b"\x02").hex(), segments


def leaves_of(content: bytes) -> dict[int, bytes]:
    """Return the hashes of the leaves that are not zero, by their offsets."""
    found = {}
    for offset in range(0, len(content), LEAF_BYTES):
        leaf = content[offset : offset + LEAF_BYTES]
        blocks = [leaf[at : at + BLOCK_BYTES] for at in range(0, len(leaf), BLOCK_BYTES)]
        data = [memoryview(block) for block in blocks if any(block)]
        if data:
            found[offset] = leaf_hash(data, sum(1 << index for index, block in enumerate(blocks) if any(block)))
    return found


@pytest.mark.parametrize(
    "size",
    [0, 1, 511, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB, MIB + 1, 2 * MIB + 7, 16 * MIB, 17 * MIB + 1],
)
def test_is_what_its_definition_says(size: int) -> None:
    sparse = bytearray(size)
    sparse[size // 2 : size // 2 + 100] = pattern(len(sparse[size // 2 : size // 2 + 100]))
    for content in (pattern(size), bytes(size), bytes(sparse)):
        root, segments = by_definition(content)
        digest = TreeDigest(size)
        for offset, leaf in leaves_of(content).items():
            digest.add(offset, leaf)
        assert digest.hexdigest() == root
        assert digest.segments == b"".join(segments)
        assert digest_of(io.BytesIO(content)) == root


def test_larger_segments_have_longer_bitmaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_MOST_SEGMENTS", 1)
    content = bytes(20 * MIB) + pattern(MIB) + bytes(3)
    root, segments = by_definition(content, 32 * MIB)
    digest = TreeDigest(len(content))
    assert (digest.segment_bytes, len(segments)) == (32 * MIB, 1)
    digest.add(20 * MIB, leaves_of(content)[20 * MIB])
    assert digest.hexdigest() == root


PIECES = st.lists(
    st.tuples(st.booleans(), st.one_of(st.integers(0, 70 * KIB), st.sampled_from([MIB - 1, MIB, 5 * MIB]))), max_size=4
)


@settings(max_examples=15, deadline=None)
@given(pieces=PIECES, seed=st.integers(0, 1000), chunk=st.sampled_from([4 * KIB, 60 * KIB, 128 * KIB, MIB]))
def test_any_order_and_any_requests_give_the_same_root(pieces: list[tuple[bool, int]], seed: int, chunk: int) -> None:
    content = b"".join(bytes(length) if zero else pattern(length) for zero, length in pieces)
    root, segments = by_definition(content)
    leaves = list(leaves_of(content).items())
    random.Random(seed).shuffle(leaves)
    digest = TreeDigest(len(content))
    for offset, leaf in leaves:
        digest.add(offset, leaf)
    assert digest.hexdigest() == root
    assert digest.segments == b"".join(segments)
    assert digest_of(io.BytesIO(content), chunk_bytes=chunk) == root


@settings(max_examples=15, deadline=None)
@given(stops=st.lists(st.integers(0, 40 * MIB), max_size=4), seed=st.integers(0, 1000))
def test_closing_on_the_way_and_going_on_elsewhere_change_nothing(stops: list[int], seed: int) -> None:
    size = 40 * MIB + 5
    chosen = random.Random(seed)
    leaves = {offset: chosen.randbytes(32) for offset in range(0, size, MIB) if chosen.random() < 0.5}
    whole = TreeDigest(size)
    for offset, leaf in leaves.items():
        whole.add(offset, leaf)
    root = whole.hexdigest()

    digest = TreeDigest(size)
    for stop in sorted(stops):
        begun = digest.position_bytes
        for offset, leaf in leaves.items():
            if begun <= offset < stop:
                digest.add(offset, leaf)
        digest.close_before(stop)
        assert digest.position_bytes == stop // (16 * MIB) * 16 * MIB
        # What is known of the segments that are closed is enough for another process.
        digest = TreeDigest(size, digest.segments)
        assert digest.position_bytes == stop // (16 * MIB) * 16 * MIB
    for offset, leaf in leaves.items():
        if offset >= digest.position_bytes:
            digest.add(offset, leaf)
    assert digest.hexdigest() == root
    assert digest.position_bytes == size
    assert digest.segments == whole.segments


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (0, 16 * MIB),
        (1 << 40, 16 * MIB),
        ((1 << 40) + 1, 32 * MIB),
        (1 << 41, 32 * MIB),
        (1 << 50, 16 << 30),
        ((1 << 50) + 1, 32 << 30),
        ((1 << 63) - 1, 1 << 47),
    ],
)
def test_there_are_never_more_than_65536_segments(size: int, segment: int) -> None:
    assert segment_bytes(size) == segment
    assert -(-size // segment) <= 65536


def test_a_pebibyte_of_zeroes_costs_little() -> None:
    size = 1 << 50
    digest = TreeDigest(size)
    root = digest.hexdigest()
    assert len(digest.segments) == 65536 * HASH_BYTES
    zero = named(bytes((16 << 30) // MIB // 8) + b"\x01")
    assert root == root_of(size, zero * 65536) == TreeDigest(size, zero * 65536).hexdigest()
    with_data = TreeDigest(size)
    with_data.add(size - MIB, bytes(32))
    assert with_data.hexdigest() != root
    assert with_data.segments[:-32] == digest.segments[:-32]


def test_size_and_place_and_content_all_count() -> None:
    roots = {TreeDigest(size).hexdigest() for size in (0, 1, 4096, MIB, MIB + 1, 16 * MIB, 16 * MIB + 1)}
    assert len(roots) == 7
    contents = [bytes(2 * MIB)]
    for place in (0, 1, 64 * KIB - 1, 64 * KIB, MIB - 1, MIB, 2 * MIB - 1):
        for value in (1, 128):
            content = bytearray(2 * MIB)
            content[place] = value
            contents.append(bytes(content))
    assert len({digest_of(io.BytesIO(content)) for content in contents}) == len(contents)
