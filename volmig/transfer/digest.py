"""The digest of a volume's content: a tree that costs nothing where the content is zero.

The content is divided into *blocks* of 64 KiB, *leaves* of 1 MiB and *segments* of 16 MiB or, so that there are never
more than 65,536 of them, of the next power of two times that. The last of each may be shorter. Each is named by the
BLAKE3 hash (32 bytes) of what is put together here, all numbers being unsigned and little-endian:

- a leaf: its blocks that are not all zeroes, one after the other; which blocks these are, as 2 bytes with bit *i* set
  for block *i*; the byte 0;
- a segment: the hashes of its leaves that are not all zeroes; a bitmap of these leaves, bit *i* being bit *i* % 8 of
  byte *i* // 8, as long as a segment's leaves need; the byte 1;
- the root: the hashes of all segments; the name of the algorithm; the size in bytes as 8 bytes; the byte 2.

So the root depends on the content and its size alone; leaves can be computed in any order; two contents that differ
show in which segment; and the hashes of segments are enough to go on where another process stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

ALGORITHM = "blake3-tree-64k-1m"
BLOCK_BYTES = 64 * 1024
LEAF_BYTES = 1024 * 1024
HASH_BYTES = 32

_SMALLEST_SEGMENT_BYTES = 16 * 1024 * 1024
_MOST_SEGMENTS = 65536


def segment_bytes(size_bytes: int) -> int:
    """Return the length of a segment in a content of that size."""
    length = _SMALLEST_SEGMENT_BYTES
    while length * _MOST_SEGMENTS < size_bytes:
        length *= 2
    return length


def leaf_hash(data: Sequence[memoryview], blocks: int) -> bytes:
    """Return the hash of a leaf.

    :param data: its blocks that are not all zeroes, in order, in pieces of any length.
    :param blocks: which these are, bit 0 being the first block.
    """
    state = blake3()
    for piece in data:
        state.update(piece)
    state.update(blocks.to_bytes(2, "little") + b"\0")
    return state.digest()


def root_of(size_bytes: int, segments: bytes) -> str:
    """Return the root, in hexadecimal, of a content of that size whose segments have these hashes."""
    return blake3(segments + ALGORITHM.encode() + size_bytes.to_bytes(8, "little") + b"\2").hexdigest()


class TreeDigest:
    """Puts the hashes of leaves together. What is given no hash is all zeroes.

    Memory: 32 bytes for each segment, 2 MiB at most, and 32 for each leaf of the segments that are not closed.

    :param begun: hashes of the segments at the beginning that are known already.
    """

    def __init__(self, size_bytes: int, begun: bytes = b"") -> None:
        self.size_bytes = size_bytes
        self.segment_bytes = segment_bytes(size_bytes)
        self._bitmap_bytes = self.segment_bytes // LEAF_BYTES // 8
        self._segments = bytearray(begun)
        self._count = -(-size_bytes // self.segment_bytes)
        self._zero = self._segment_hash({})
        self._open: dict[int, dict[int, bytes]] = {}

    @property
    def position_bytes(self) -> int:
        """Where the segments that are closed end."""
        return min(len(self._segments) // HASH_BYTES * self.segment_bytes, self.size_bytes)

    @property
    def segments(self) -> bytes:
        """Hashes of the segments that are closed."""
        return bytes(self._segments)

    def segments_from(self, begin: int) -> bytes:
        """Return :attr:`segments` from byte *begin* on; costs no more than what it returns."""
        return bytes(memoryview(self._segments)[begin:])

    def add(self, offset: int, leaf: bytes) -> None:
        """Take the hash of the leaf at *offset*, which lies in a segment that is not closed."""
        segment, within = divmod(offset, self.segment_bytes)
        self._open.setdefault(segment, {})[within // LEAF_BYTES] = leaf

    def close_before(self, position_bytes: int) -> None:
        """Close the segments that end at *position_bytes* or before: all their leaves that are not zero were given."""
        whole = self._count if position_bytes >= self.size_bytes else position_bytes // self.segment_bytes
        for segment in range(len(self._segments) // HASH_BYTES, whole):
            leaves = self._open.pop(segment, None)
            self._segments += self._segment_hash(leaves) if leaves else self._zero

    def hexdigest(self) -> str:
        """Return the root, in hexadecimal, and close all segments."""
        self.close_before(self.size_bytes)
        return root_of(self.size_bytes, self.segments)

    def _segment_hash(self, leaves: dict[int, bytes]) -> bytes:
        bitmap = 0
        for index in leaves:
            bitmap |= 1 << index
        hashes = b"".join(leaves[index] for index in sorted(leaves))
        return blake3(hashes + bitmap.to_bytes(self._bitmap_bytes, "little") + b"\1").digest()
