from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig.transfer import digest as digests
from volmig.transfer.digest import LEAF_BYTES, TreeDigest

from .fakes import pattern


def by_definition(content: bytes) -> str:
    """The digest as its documentation states it, without the class."""
    leaves = [
        hashlib.blake2b(content[start : start + LEAF_BYTES], digest_size=32).digest()
        for start in range(0, len(content), LEAF_BYTES)
    ]
    head = b"blake2b-256-tree-4m\0" + len(content).to_bytes(8, "big")
    return hashlib.blake2b(head + b"".join(leaves), digest_size=32).hexdigest()


@pytest.mark.parametrize(
    "size", [0, 1, 511, 513, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 2 * LEAF_BYTES, 2 * LEAF_BYTES + 7]
)
def test_is_what_its_definition_says(size: int) -> None:
    for content in (pattern(size), bytes(size)):
        digest = TreeDigest()
        digest.update(memoryview(content))
        assert digest.hexdigest() == by_definition(content)
        assert digest.size_bytes == size


PIECES = st.lists(
    st.tuples(st.booleans(), st.one_of(st.integers(0, 70_000), st.integers(LEAF_BYTES - 2, LEAF_BYTES + 2))),
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(PIECES, st.integers(3000, 5_000_000))
def test_depends_on_the_bytes_alone(pieces: list[tuple[bool, int]], step: int) -> None:
    content = b"".join(bytes(length) if zero else pattern(length) for zero, length in pieces)
    whole = TreeDigest()
    whole.update(memoryview(content))
    mixed = TreeDigest()
    for zero, length in pieces:
        if zero:
            mixed.update_zeroes(length)
            continue
        data = memoryview(pattern(length))
        for start in range(0, length, step):
            mixed.update(data[start : start + step])
    assert mixed.hexdigest() == whole.hexdigest()
    assert mixed.leaves == whole.leaves


def test_a_tebibyte_of_zeroes_costs_no_hashing() -> None:
    assert digests.zero_leaf(LEAF_BYTES) == hashlib.blake2b(bytes(LEAF_BYTES), digest_size=32).digest()
    digest = TreeDigest()
    digest.update_zeroes(1 << 40)
    assert len(digest.leaves) == 32 * (1 << 40) // LEAF_BYTES
    assert set(digest.leaves[:32]) <= set(digests.zero_leaf(LEAF_BYTES))


def test_tells_of_each_complete_leaf() -> None:
    seen: list[tuple[int, bytes]] = []
    digest = TreeDigest(on_leaf=lambda offset, leaf: seen.append((offset, leaf)))
    digest.update(memoryview(pattern(LEAF_BYTES + 1)))
    digest.update_zeroes(2 * LEAF_BYTES)
    assert [offset for offset, _ in seen] == [0, LEAF_BYTES, 2 * LEAF_BYTES]
    assert b"".join(leaf for _, leaf in seen) == digest.leaves[:96]
    assert len(digest.leaves) == 128


def test_size_and_content_both_count() -> None:
    def root(size: int) -> str:
        digest = TreeDigest()
        digest.update_zeroes(size)
        return digest.hexdigest()

    assert len({root(size) for size in (0, 1, 4096, LEAF_BYTES, LEAF_BYTES + 1)}) == 5
