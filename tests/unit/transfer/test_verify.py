"""Proof: what is on the destination is compared with what was read, and a difference is named to the byte."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig import errors
from volmig.transfer import Control, CopyOptions, Tail, Verify, copy, copy_data, digest_of, verify_copy
from volmig.transfer.digest import TreeDigest
from volmig.transfer.flow.arena import Arena
from volmig.transfer.flow.leaves import CompareFlow
from volmig.transfer.flow.plan import tasks
from volmig.transfer.flow.pump import Pump
from volmig.transfer.flow.request import Request

from .fakes import Handle, make_file, pattern
from .memory_end import MemoryEnd
from .test_pump import Scripted

MIB = 1024 * 1024
SIZE = 20 * MIB + 513


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
@pytest.mark.parametrize("offset", [0, 65535, 9 * MIB + 3, 16 * MIB, SIZE - 1])
def test_a_flipped_bit_on_the_storage_is_found_to_the_byte(tmp_path: Path, verify: Verify, offset: int) -> None:
    source = make_file(tmp_path / "source", SIZE, [(0, 9 * MIB), (16 * MIB, SIZE)])
    destination = make_file(tmp_path / "destination", SIZE)
    copied = copy_data(source, destination, size_bytes=SIZE)
    options = CopyOptions(verify=verify)
    assert verify_copy(source, destination, size_bytes=SIZE, copied=copied, options=options).source_digest
    with destination.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 0x80]))
    with pytest.raises(errors.VerificationFailed) as raised:
        verify_copy(source, destination, size_bytes=SIZE, copied=copied, options=options)
    assert raised.value.fields == {"path": str(destination), "offset": offset}


@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
@pytest.mark.parametrize("kind", ["lost", "short", "torn", "misplaced"])
@pytest.mark.parametrize("where", [0, 5 * MIB, 20 * MIB])
def test_writes_that_go_wrong_in_silence_are_found(verify: Verify, kind: str, where: int) -> None:
    def act(position: int, data: bytes) -> bytes:
        if position != where:
            return data
        if kind == "lost":
            return b""
        if kind == "short":
            return data[:-1]
        if kind == "torn":
            return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
        destination.content[position + 512 : position + 512 + len(data) - 512] = data[: len(data) - 512]
        return b""

    destination: Any = Handle(b"\xee" * SIZE, on_write=act)
    source: Any = Handle(pattern(SIZE))
    with pytest.raises(errors.VerificationFailed) as raised:
        copy(source, destination, size_bytes=SIZE, options=CopyOptions(verify=verify))
    length = min(MIB, SIZE - where)
    expected = {"lost": where, "short": where + length - 1, "torn": where + length // 2, "misplaced": where}
    assert raised.value.fields["offset"] == expected[kind]


def test_without_verification_no_digest_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a digest is computed")

    monkeypatch.setattr("volmig.transfer.flow.leaves.leaf_hash", refuse)
    source = make_file(tmp_path / "source", SIZE, [(0, MIB)])
    destination = make_file(tmp_path / "destination", SIZE)
    result = copy(source, destination, size_bytes=SIZE, options=CopyOptions(verify=Verify.NONE))
    assert (result.digest_algorithm, result.source_digest, result.destination_digest) == ("", "", "")
    with pytest.raises(AssertionError, match="computed"):
        copy(source, destination, size_bytes=SIZE)


def test_the_digest_does_not_read_the_source_twice_and_comparing_does() -> None:
    for verify, times in ((Verify.NONE, 1), (Verify.DIGEST, 1), (Verify.COMPARE, 2)):
        read = [0]

        def note(position: int, data: bytes, read: list[int] = read) -> bytes:
            read[0] += len(data) if len(data) > 65536 or position >= SIZE // MIB * MIB else 0
            return data

        source: Any = Handle(pattern(SIZE), on_read=note)
        destination: Any = Handle(bytes(SIZE))
        copy(source, destination, size_bytes=SIZE, options=CopyOptions(verify=verify, ignore_header=True))
        assert read[0] == pytest.approx(times * SIZE, abs=8192)


def test_a_source_that_reads_differently_the_second_time() -> None:
    passes = [0]

    def unsteady(position: int, data: bytes) -> bytes:
        if position == 5 * MIB:
            passes[0] += 1
            return data if passes[0] == 1 else b"\x00" + data[1:]
        return data

    source: Any = Handle(pattern(SIZE), on_read=unsteady)
    with pytest.raises(errors.VerificationFailed) as raised:
        copy(source, Handle(bytes(SIZE)), size_bytes=SIZE, options=CopyOptions(verify=Verify.COMPARE))  # type: ignore[arg-type]
    assert raised.value.fields["offset"] == 5 * MIB


def test_a_destination_that_reads_well_the_second_time_is_still_a_failure() -> None:
    reads = [0]

    def once(position: int, data: bytes) -> bytes:
        if position == 17 * MIB:
            reads[0] += 1
            return data if reads[0] > 1 else b"\x00" + data[1:]
        return data

    destination: Any = Handle(bytes(SIZE), on_read=once)
    with pytest.raises(errors.VerificationFailed) as raised:
        copy(Handle(pattern(SIZE)), destination, size_bytes=SIZE)  # type: ignore[arg-type]
    assert raised.value.fields["offset"] == 16 * MIB, "the segment in which it was"


@settings(max_examples=20, deadline=None)
@given(places=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_the_first_difference_is_named_whatever_ends_first(places: list[int], seed: int) -> None:
    contents = {"one": pattern(SIZE), "other": bytearray(pattern(SIZE))}
    for place in set(places):
        contents["other"][place] ^= 1  # type: ignore[index]

    def answer(request: Request) -> None:
        data = contents[request.end.name][request.offset : request.offset + request.length]
        request.result = random.Random(seed + request.offset).choice([1, len(data), len(data)])
        arena.view[request.at : request.at + request.result] = data[: request.result]

    arena = Arena(8)
    one, other = MemoryEnd("one", b""), MemoryEnd("other", b"")
    flow = CompareFlow(
        one, other, arena, Control(), CopyOptions(), digest=TreeDigest(SIZE), advance=lambda *_: None
    )  # fmt: skip
    pump = Pump(Scripted(answer, seed), arena, Control(), requests_in_flight=8, bytes_in_flight=8 * MIB)
    with pytest.raises(errors.VerificationFailed) as raised:
        pump.run(tasks([(0, SIZE)], 0, SIZE), flow)
    assert raised.value.fields == {"path": "other", "offset": min(places)}


@pytest.mark.parametrize("first", ["lowest", "highest"])
def test_a_difference_is_kept_until_all_before_it_was_compared(first: str) -> None:
    """Leaves end in an order that the test gives, but for the first, which ends last."""

    class Ordered(Scripted):
        def wait(self, timeout_seconds: float) -> list[Request]:
            def turn(request: Request) -> tuple[bool, int]:
                return request.offset < MIB, request.offset if first == "lowest" else -request.offset

            if not self.under_way or not timeout_seconds:
                return []
            ended = min(self.under_way, key=turn)
            self.under_way.remove(ended)
            self.answer(ended)
            return [ended]

    def answer(request: Request) -> None:
        data = bytearray(pattern(request.length))
        if request.end.name == "other" and request.offset >= MIB:
            data[request.offset // MIB] ^= 1
        arena.view[request.at : request.at + request.length] = data
        request.result = request.length

    size, arena = 4 * MIB, Arena(16)
    flow = CompareFlow(
        MemoryEnd("one", b""),
        MemoryEnd("other", b""),
        arena,
        Control(),
        CopyOptions(),
        digest=TreeDigest(size),
        advance=lambda *_: None,
    )
    pump = Pump(Ordered(answer), arena, Control(), requests_in_flight=16, bytes_in_flight=16 * MIB)
    with pytest.raises(errors.VerificationFailed) as raised:
        pump.run(tasks([(0, size)], 0, size), flow)
    assert raised.value.fields["offset"] == MIB + 1


def test_what_lies_before_a_difference_is_compared_first() -> None:
    """The first part ends while the second, which differs too, is still under way."""
    content = {"one": pattern(3 * MIB), "other": pattern(3 * MIB)[:-1] + b"\x00"}
    content["other"] = content["other"][: MIB + 9] + b"\x00" + content["other"][MIB + 10 :]
    order = [2, 0, 1]

    class Ordered(Scripted):
        def wait(self, timeout_seconds: float) -> list[Request]:
            if not self.under_way or not timeout_seconds:
                return []
            ended = min(self.under_way, key=lambda request: order.index(request.offset // MIB))
            self.under_way.remove(ended)
            self.answer(ended)
            return [ended]

    def answer(request: Request) -> None:
        data = content[request.end.name][request.offset : request.offset + request.length]
        arena.view[request.at : request.at + request.length] = data
        request.result = request.length

    size, arena = 3 * MIB, Arena(16)
    ends = MemoryEnd("one", b""), MemoryEnd("other", b"")
    flow = CompareFlow(*ends, arena, Control(), CopyOptions(), digest=TreeDigest(size), advance=lambda *_: None)
    pump = Pump(Ordered(answer), arena, Control(), requests_in_flight=16, bytes_in_flight=16 * MIB)
    with pytest.raises(errors.VerificationFailed) as raised:
        pump.run(tasks([(0, size)], 0, size), flow)
    assert raised.value.fields["offset"] == MIB + 9


def test_an_even_digest_of_ends_that_are_alike(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", SIZE, [(3, 4), (17 * MIB, 18 * MIB)])
    destination = tmp_path / "destination"
    destination.write_bytes(source.read_bytes())
    for verify in (Verify.DIGEST, Verify.COMPARE):
        found = verify_copy(source, destination, size_bytes=SIZE, options=CopyOptions(verify=verify))
        assert found.source_digest == found.destination_digest == digest_of(source) == digest_of(destination)


@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_a_tail_that_was_to_be_zero_is_read_back(tmp_path: Path, verify: Verify) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(os.urandom(5 * MIB + 7))
    destination.write_bytes(bytes(9 * MIB))
    options = CopyOptions(verify=verify, tail=Tail.ZERO)
    copied = copy_data(source, destination, size_bytes=5 * MIB + 7, options=options)
    verify_copy(source, destination, size_bytes=5 * MIB + 7, options=options, copied=copied)
    with destination.open("r+b") as file:
        file.seek(7 * MIB + 3)
        file.write(b"x")
    with pytest.raises(errors.VerificationFailed) as caught:
        verify_copy(source, destination, size_bytes=5 * MIB + 7, options=options, copied=copied)
    assert 7 * MIB <= caught.value.fields["offset"] <= 7 * MIB + 3
    kept = CopyOptions(verify=verify)
    verify_copy(source, destination, size_bytes=5 * MIB + 7, options=kept, copied=copied)
