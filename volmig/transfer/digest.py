"""The digest of a volume's content: a tree over leaves of fixed size.

Leaves can be computed in any order and by several threads, a range of zeroes costs nothing, and two digests that
differ say where. The root is BLAKE2b-256 over the algorithm's name, a NUL byte, the size as eight bytes (most
significant first) and the digests of the leaves in order.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

ALGORITHM = "blake2b-256-tree-4m"
LEAF_BYTES = 4 * 1024 * 1024
LEAF_DIGEST_BYTES = 32

_ZEROES = bytes(64 * 1024)


def _new_hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=LEAF_DIGEST_BYTES)


def _hash_zeroes(state: hashlib.blake2b, length: int) -> None:
    whole, rest = divmod(length, len(_ZEROES))
    for _ in range(whole):
        state.update(_ZEROES)
    state.update(_ZEROES[:rest])


@functools.lru_cache(maxsize=16)
def zero_leaf(length: int) -> bytes:
    """Return the digest of a leaf of *length* zero bytes."""
    state = _new_hash()
    _hash_zeroes(state, length)
    return state.digest()


def root_of(size_bytes: int, leaves: bytes) -> str:
    """Return the root, in hexadecimal, of a content of *size_bytes* with these leaf digests."""
    state = _new_hash()
    state.update(ALGORITHM.encode() + b"\0" + size_bytes.to_bytes(8, "big"))
    state.update(leaves)
    return state.hexdigest()


class TreeDigest:
    """Computes the digest of a content that comes in order, as data and as ranges of zeroes.

    The result depends on the bytes alone: not on the sizes of the pieces, nor on which zeroes came as data.
    Memory: 32 bytes for each 4 MiB of content. Not thread-safe.

    :param on_leaf: called with the offset and the digest of each leaf that is complete; what it raises goes to
        whoever gave the data.
    """

    def __init__(self, on_leaf: Callable[[int, bytes], None] | None = None) -> None:
        self._on_leaf = on_leaf
        self._leaves = bytearray()
        self._size = 0
        self._in_leaf = 0
        self._state: hashlib.blake2b | None = None  # None while the leaf has had nothing but zeroes

    @property
    def size_bytes(self) -> int:
        """Bytes taken so far."""
        return self._size

    @property
    def leaves(self) -> bytes:
        """Digests of the leaves that are complete, and of the last one, if it was begun, as if it ended here."""
        if not self._in_leaf:
            return bytes(self._leaves)
        return bytes(self._leaves) + self._leaf_digest()

    def update(self, data: memoryview) -> None:
        """Take the next bytes of the content."""
        start = 0
        while start < len(data):
            end = min(start + LEAF_BYTES - self._in_leaf, len(data))
            if self._state is None:
                self._state = _new_hash()
                _hash_zeroes(self._state, self._in_leaf)
            self._state.update(data[start:end])
            self._grow(end - start)
            start = end

    def update_zeroes(self, length: int) -> None:
        """Take *length* zero bytes as the next ones of the content."""
        while length:
            step = min(LEAF_BYTES - self._in_leaf, length)
            if self._state is not None:
                _hash_zeroes(self._state, step)
            self._grow(step)
            length -= step

    def hexdigest(self) -> str:
        """Return the digest of what was taken so far, in hexadecimal."""
        return root_of(self._size, self.leaves)

    def _grow(self, length: int) -> None:
        self._size += length
        self._in_leaf += length
        if self._in_leaf == LEAF_BYTES:
            leaf = self._leaf_digest()
            self._leaves += leaf
            self._state = None
            self._in_leaf = 0
            if self._on_leaf is not None:
                self._on_leaf(self._size - LEAF_BYTES, leaf)

    def _leaf_digest(self) -> bytes:
        return zero_leaf(self._in_leaf) if self._state is None else self._state.digest()
