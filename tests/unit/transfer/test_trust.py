"""Whom a verification believes, and whom not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.transfer import CopyOptions, Tail, Verify, copy, copy_data, verify_copy
from volmig.transfer.digest import TreeDigest

from .fakes import make_file, pattern
from .nbd_server import READ, NbdServer

MIB = 1024 * 1024
SIZE = 8 * MIB


class Claims(NbdServer):
    """Says that a range reads as zeroes, which it need not."""

    first, last = 2 * MIB, 6 * MIB

    def map(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        end = offset + length
        while offset < end:
            zero = self.first <= offset < self.last
            stop = min(end, self.first if offset < self.first else self.last if zero else end)
            yield stop - offset, zero
            offset = stop


@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
@pytest.mark.parametrize("again", [False, True])
def test_zeroes_that_a_destinations_server_claims_are_read(tmp_path: Path, verify: Verify, again: bool) -> None:
    source = make_file(tmp_path / "source", SIZE, [(0, 2 * MIB), (6 * MIB, SIZE)])
    options = CopyOptions(verify=verify)
    with Claims(b"\xee" * SIZE) as server:
        copied = copy_data(source, server.address, size_bytes=SIZE, options=options)
        assert bytes(server.content[2 * MIB : 6 * MIB]) == b"\xee" * 4 * MIB, "or there is nothing to be found"
        with pytest.raises(errors.VerificationFailed) as raised:
            verify_copy(source, server.address, size_bytes=SIZE, options=options, copied=None if again else copied)
    assert raised.value.fields["offset"] == 2 * MIB


def test_zeroes_that_are_claimed_behind_the_copy_are_read(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", MIB, [(0, MIB)])
    options = CopyOptions(tail=Tail.ZERO)

    class Behind(Claims):
        first, last = MIB, SIZE

    with Behind(b"\xee" * SIZE) as server, pytest.raises(errors.VerificationFailed) as raised:
        copy(source, server.address, size_bytes=MIB, options=options)
    assert raised.value.fields["offset"] == MIB


def test_the_map_of_a_sources_server_is_believed(tmp_path: Path) -> None:
    content = pattern(2 * MIB) + bytes(4 * MIB) + pattern(2 * MIB)
    destination = make_file(tmp_path / "destination", SIZE)
    with Claims(content) as server:
        copy(server.address, destination, size_bytes=SIZE)
        read = [offset for command, offset, _ in server.requests if command == READ]
        assert not [offset for offset in read if 2 * MIB <= offset < 6 * MIB]
    assert destination.read_bytes() == content


def test_a_verification_looks_at_each_segment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 40 * MIB
    source = make_file(tmp_path / "source", size, [(0, size)])
    destination = make_file(tmp_path / "destination", size)
    copied = copy_data(source, destination, size_bytes=size)
    looked: list[int] = []
    real = TreeDigest.segments.fget

    def segments(self: TreeDigest) -> Any:
        looked.append(self.position_bytes)
        return real(self)  # type: ignore[misc]

    monkeypatch.setattr(TreeDigest, "segments", property(segments))
    verify_copy(source, destination, size_bytes=size, copied=copied)
    assert len(looked) <= 4, "3 segments, and the root"


def test_segments_from() -> None:
    digest = TreeDigest(40 * MIB)
    assert digest.segments_from(0) == b""
    digest.close_before(32 * MIB)
    assert digest.segments_from(0) == digest.segments
    assert digest.segments_from(32) == digest.segments[32:]
    assert digest.segments_from(64) == b""
