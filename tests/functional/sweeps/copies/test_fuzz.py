"""Any volume, any ends, any fault: the destination is identical afterwards, or there is a clear error."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import random
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.unit.transfer.fakes import Handle, ReadintoHandle, descriptors
from tests.unit.transfer.faults import SILENT, Fault, Plan, faulty
from volmig import errors
from volmig.transfer import Checkpoint, CopyOptions, Tail, TransferResult, Verify, copy, digest_of
from volmig.transfer import digest as tree
from volmig.transfer.ends import files
from volmig.transfer.flow import copying, setup
from volmig.transfer.flow.request import Kind, Request

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
MEMORY = Path("/dev", "shm")
LEAF, SEGMENT = tree.LEAF_BYTES, 16 * MIB

few = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

EDGES = [0, 1, 511, 512, 513, 4095, 4096, 4097, 64 * KIB - 1, 64 * KIB + 1, LEAF - 1, LEAF, LEAF + 1]
SIZES = st.one_of(st.sampled_from(EDGES), st.integers(0, 3 * MIB))
LARGE_SIZES = st.sampled_from([SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT + 4097])
CHUNKS = st.one_of(st.sampled_from([4 * KIB, 64 * KIB, MIB]), st.integers(1, 256).map(lambda count: count * 4 * KIB))


class Content(str):
    """What the destination holds before."""


HOLE, GARBAGE, EQUAL, PARTLY, ZEROES = (Content(name) for name in ("hole", "garbage", "equal", "partly", "zeroes"))


@dataclass(frozen=True)
class Ends:
    """How the two ends are given, and how requests are made."""

    source: str = "path"
    destination: str = "path"
    ring: bool = True
    direct: bool = True
    buffers: int = 64
    """Few are used again and again, with what was in them before."""
    most: int = 1 << 30
    """What a handle moves at once."""


ENDS = st.builds(
    Ends,
    source=st.sampled_from(["path", "path", "file", "handle", "readinto"]),
    destination=st.sampled_from(["path", "path", "file", "handle"]),
    ring=st.booleans(),
    direct=st.booleans(),
    buffers=st.sampled_from([1, 2, 64]),
    most=st.sampled_from([777, 4096, 100_000, 1 << 30]),
)
PATHS = st.builds(Ends, ring=st.booleans(), direct=st.booleans(), buffers=st.sampled_from([1, 2, 64]))


@dataclass(frozen=True)
class Shape:
    """A volume: where it has data, and what lies in the destination before."""

    size: int
    extents: tuple[tuple[int, int, str], ...] = ()
    """Start, length, and whether it is full of data, or data and blocks of zeroes in turn, or zeroes."""
    before: Content = GARBAGE
    tail: int = 0
    seed: int = 1

    def content(self) -> bytearray:
        data = bytearray(self.size)
        maker = random.Random(self.seed)
        for start, length, kind in self.extents:
            stop = min(start + length, self.size)
            if start < stop:
                data[start:stop] = _filling(maker, stop - start, kind)
        return data


def _filling(maker: random.Random, length: int, kind: str) -> bytes:
    if kind == "zeroes":
        return bytes(length)
    data = bytearray(maker.randbytes(length))
    if kind == "mixed":
        for start in range(0, length, 128 * KIB):
            end = min(start + 64 * KIB, length)
            data[start:end] = bytes(end - start)
    return bytes(data)


def shapes(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[Shape]:
    def extents(size: int) -> st.SearchStrategy[Any]:
        starts = st.one_of(st.integers(0, size), st.integers(0, size // LEAF).map(lambda index: index * LEAF))
        lengths = st.one_of(st.sampled_from([1, 512, 4096, 64 * KIB, LEAF, 5 * MIB]), st.integers(1, max(1, size)))
        kinds = st.sampled_from(["data", "mixed", "zeroes"])
        return st.lists(st.tuples(starts, lengths, kinds), max_size=5).map(tuple)

    return sizes.flatmap(
        lambda size: st.builds(
            Shape,
            size=st.just(size),
            extents=extents(size),
            before=st.sampled_from([HOLE, GARBAGE, EQUAL, PARTLY, ZEROES]),
            tail=st.sampled_from([0, 1, 511, 4096, 70_001]),
            seed=st.integers(0, 1000),
        )
    )


class Scene:
    """A volume on disk, and a destination that holds something else."""

    def __init__(self, folder: Path, shape: Shape, ends: Ends) -> None:
        self.shape = shape
        self.ends = ends
        self.expected = bytes(shape.content())
        self.source_path, self.destination_path = folder / "source", folder / "destination"
        self._make_source()
        self.tail = random.Random(shape.seed + 1).randbytes(shape.tail)
        self.source = self._end(ends.source, self.source_path)
        before = self._before()
        with self.destination_path.open("wb") as file:
            file.truncate(len(before))
            if shape.before is not HOLE:
                file.write(before)
            elif shape.tail:
                file.seek(shape.size)
                file.write(self.tail)
        self.destination = self._end(ends.destination, self.destination_path)

    def _make_source(self) -> None:
        with self.source_path.open("wb") as file:
            file.truncate(self.shape.size)
            for start, length, _ in self.shape.extents:
                file.seek(start)
                file.write(self.expected[start : start + length])

    def _before(self) -> bytes:
        size, before = self.shape.size, self.shape.before
        maker = random.Random(self.shape.seed + 2)
        if before is EQUAL:
            return self.expected + self.tail
        if before in (HOLE, ZEROES):
            return bytes(size) + self.tail
        garbage = bytearray(maker.randbytes(size))
        if before is PARTLY:
            for _ in range(4):
                start = maker.randrange(size + 1)
                stop = min(size, start + maker.randrange(1, MIB))
                garbage[start:stop] = bytes(stop - start)
        return bytes(garbage) + self.tail

    @property
    def is_zero(self) -> bool:
        return self.shape.before in (HOLE, ZEROES) and not self.shape.tail

    def _end(self, kind: str, path: Path) -> Any:
        if kind == "path":
            return path
        if kind == "file":
            return path.open("r+b", buffering=0)
        return (ReadintoHandle if kind == "readinto" else Handle)(path.read_bytes(), most=self.ends.most)

    def close(self) -> None:
        for end in (self.source, self.destination):
            if not isinstance(end, Path) and hasattr(end, "close"):
                end.close()

    # --- an independent look --------------------------------------------------------------

    def arrived(self) -> bytes:
        return _content(self.destination, self.destination_path)

    def check_source(self) -> None:
        assert _content(self.source, self.source_path) == self.expected, "the source was written to"

    def check(self, options: CopyOptions, *, tail: bool = True) -> None:
        found, size = self.arrived(), self.shape.size
        assert len(found) == size + self.shape.tail
        assert found[:size] == self.expected, f"differs from byte {_difference(found, self.expected)} on"
        assert not tail or found[size:] == (bytes(self.shape.tail) if options.tail is Tail.ZERO else self.tail)

    def flip(self, offset: int) -> None:
        """Flip a bit of the destination behind everybody's back."""
        if isinstance(self.destination, Handle):
            self.destination.content[offset] ^= 4
            return
        with self.destination_path.open("r+b", buffering=0) as file:
            byte = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 4]), offset)


def _content(end: Any, path: Path) -> bytes:
    return bytes(end.content) if isinstance(end, Handle) else path.read_bytes()


def _difference(one: bytes, other: bytes) -> int:
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


@contextlib.contextmanager
def scene(shape: Shape, ends: Ends, plan: Plan | None = None) -> Iterator[Scene]:
    # Flushes cost nothing where files live in memory; what needs direct I/O goes to a disk.
    memory = None if ends.direct or not MEMORY.is_dir() else MEMORY
    with tempfile.TemporaryDirectory(dir=memory) as folder, contextlib.ExitStack() as stack:
        made = Scene(Path(folder), shape, ends)
        stack.callback(made.close)
        before = descriptors(), set(threading.enumerate())
        stack.enter_context(faulty(plan or Plan(), ring=ends.ring))
        stack.enter_context(mock.patch.object(setup, "_BUFFERS", ends.buffers))
        if not ends.direct:
            stack.enter_context(mock.patch.object(files, "_open_direct", return_value=None))
        if plan is not None:
            plan.flip = made.flip
        yield made
        assert (descriptors(), set(threading.enumerate())) == before, "something was left behind"


def run(made: Scene, options: CopyOptions, **more: Any) -> TransferResult:
    return copy(
        cast("Path | BinaryIO", made.source),
        cast("Path | BinaryIO", made.destination),
        size_bytes=made.shape.size,
        options=options,
        **more,
    )


OPTIONS = st.builds(
    CopyOptions, verify=st.sampled_from(list(Verify)), chunk_bytes=CHUNKS, tail=st.sampled_from(list(Tail))
)


# --- without faults ---------------------------------------------------------------------------


@settings(few, max_examples=60)
@given(shape=shapes(SIZES), ends=ENDS, options=OPTIONS, says_zero=st.booleans())
@example(
    shape=Shape(3 * MIB, ((0, MIB, "data"), (MIB + 5000, 1, "data"), (2 * MIB + 70_000, 9000, "data"))),
    ends=Ends(buffers=1),
    options=CopyOptions(),
    says_zero=False,
)
def test_any_volume_between_any_ends(shape: Shape, ends: Ends, options: CopyOptions, says_zero: bool) -> None:
    with scene(shape, ends) as made:
        options = dataclasses.replace(options, destination_is_zero=says_zero and made.is_zero)
        result = run(made, options)
        made.check(options)
        made.check_source()
        assert result.bytes_copied + result.bytes_zero == result.bytes_total == shape.size
        if options.verify is not Verify.NONE:
            # Of the content alone: what has no holes gives the same.
            dense = digest_of(io.BytesIO(made.expected))
            assert result.source_digest == result.destination_digest == dense == digest_of(made.source_path)


@settings(few, max_examples=6)
@given(shape=shapes(LARGE_SIZES), ends=PATHS, options=OPTIONS)
def test_around_the_end_of_a_segment(shape: Shape, ends: Ends, options: CopyOptions) -> None:
    with scene(shape, ends) as made:
        run(made, options)
        made.check(options)
        made.check_source()


@settings(few, max_examples=5)
@given(
    size=st.sampled_from([4 * GIB - 1, 4 * GIB, 4 * GIB + 1, 5 * GIB + 511]),
    places=st.lists(st.integers(0, 5 * GIB), max_size=4),
    garbage=st.lists(st.integers(0, 5 * GIB), max_size=4),
    ends=PATHS,
)
@example(size=4 * GIB + 513, places=[4 * GIB - 1, 4 * GIB], garbage=[2 * GIB - 1, 4 * GIB + 100], ends=Ends())
def test_more_than_four_gib(size: int, places: Sequence[int], garbage: Sequence[int], ends: Ends) -> None:
    with scene(Shape(size=0), ends) as made:
        data = _scatter(made.source_path, size, places, b"data")
        _scatter(made.destination_path, size + 9, garbage, b"\xff\xfe")
        os.truncate(made.destination_path, size)
        result = copy(made.source_path, made.destination_path, size_bytes=size)
        assert result.bytes_total == size
        assert _scattered(made.destination_path) == _scattered(made.source_path) == data
        assert made.destination_path.stat().st_size == size


def _scatter(path: Path, size: int, places: Sequence[int], what: bytes) -> dict[int, int]:
    """Make a sparse file with something at *places*; return its bytes that are not zero."""
    found = {}
    with path.open("wb") as file:
        file.truncate(size)
        for place in places:
            for index, value in enumerate(what):
                if place + index < size:
                    file.seek(place + index)
                    file.write(bytes([value]))
                    found[place + index] = value
    return found


def _scattered(path: Path) -> dict[int, int]:
    """Return the bytes of a sparse file that are not zero."""
    found = {}
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        offset = 0
        while offset < end:
            try:
                start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            offset = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            data = os.pread(file.fileno(), offset - start, start)
            found.update({start + index: value for index, value in enumerate(data) if value})
    return found


def test_one_handle_as_both_ends() -> None:
    handle = io.BytesIO(bytes(range(256)) * 4096)
    with pytest.raises(errors.RequestInvalid, match="same storage"):
        copy(handle, handle, size_bytes=MIB)
    assert handle.getvalue() == bytes(range(256)) * 4096


# --- with faults ------------------------------------------------------------------------------

TO_DESTINATION = st.tuples(st.sampled_from([Kind.WRITE, Kind.ZERO, Kind.READ]), st.just(True), st.integers(0, 12))
FROM_SOURCE = st.tuples(st.just(Kind.READ), st.just(False), st.integers(0, 12))
LOUD = st.sampled_from([fault for fault in Fault if fault not in SILENT])


def not_agreeing(faults: dict[Any, Fault]) -> dict[Any, Fault]:
    """Leave out silent faults of reads beside other silent ones: lies that happen to agree cannot be found out.

    Such as a write and the read that is to prove it, which flip the same bit.
    """
    silent = [key for key, fault in faults.items() if fault in SILENT]
    agreeing = {key for key in silent if key[0] is Kind.READ} if len(silent) > 1 else set()
    return {key: fault for key, fault in faults.items() if key not in agreeing}


@settings(few, max_examples=60)
@given(
    shape=shapes(SIZES),
    ends=ENDS,
    options=OPTIONS,
    at_destination=st.dictionaries(TO_DESTINATION, st.sampled_from(list(Fault)), max_size=3),
    at_source=st.dictionaries(FROM_SOURCE, st.sampled_from(list(Fault)), max_size=2),
    loud_at_source=st.dictionaries(FROM_SOURCE, LOUD, max_size=2),
)
def test_identical_or_an_error_whatever_the_storage_does(
    shape: Shape,
    ends: Ends,
    options: CopyOptions,
    at_destination: dict[Any, Fault],
    at_source: dict[Any, Fault],
    loud_at_source: dict[Any, Fault],
) -> None:
    # A source that lies the one time that it is read is found out by reading it again, and not otherwise.
    faults = at_destination | (at_source if options.verify is Verify.COMPARE else loud_at_source)
    plan = Plan(faults=not_agreeing(faults))
    with scene(shape, ends, plan) as made:
        try:
            run(made, options)
        except errors.VolmigError:
            pass
        else:
            if options.verify is not Verify.NONE or not SILENT & set(plan.met):
                # What lies behind the copy is not read back.
                made.check(options, tail=not SILENT & set(plan.met))
        made.check_source()


@settings(few, max_examples=30)
@given(
    shape=shapes(st.integers(64 * KIB, 3 * MIB)),
    ends=PATHS,
    options=OPTIONS,
    when=st.integers(0, 30),
    share=st.floats(0, 0.999),
)
def test_a_source_that_is_cut_meanwhile(
    shape: Shape, ends: Ends, options: CopyOptions, when: int, share: float
) -> None:
    plan = Plan()
    with scene(shape, ends, plan) as made:
        plan.acts[when] = lambda: os.truncate(made.source_path, int(shape.size * share))
        try:
            run(made, options)
        except errors.VolmigError:
            assert not plan.acts
        else:
            assert plan.acts, "the source was cut, and nobody noticed"
            made.check(options)
        assert made.source_path.read_bytes() == made.expected[: made.source_path.stat().st_size]


# --- stopping, losing power, and going on -----------------------------------------------------


class Storage:
    """What of a destination is on stable storage: what a flush covered that was asked for after it was written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.durable = bytearray(path.read_bytes())
        self.volatile: list[tuple[int, int]] = []
        self._covered: dict[Request, list[tuple[int, int]]] = {}

    def on_submit(self, request: Request) -> None:
        if request.kind is Kind.FLUSH:
            self._covered[request] = list(self.volatile)

    def on_end(self, request: Request) -> None:
        if request.kind is Kind.FLUSH:
            with self._path.open("rb") as file:
                for offset, length in self._covered.pop(request):
                    self.durable[offset : offset + length] = os.pread(file.fileno(), length, offset)
                    self.volatile.remove((offset, length))
        elif request.end.is_destination and request.kind in (Kind.WRITE, Kind.ZERO):
            self.volatile.append((request.first_offset, request.offset + request.length - request.first_offset))

    def lose_power(self, maker: random.Random) -> None:
        """Undo what was written and not flushed, or some of it; a part of a request may have come through."""
        with self._path.open("r+b") as file:
            for offset, length in self.volatile:
                for start in range(offset, offset + length, 64 * KIB):
                    if maker.random() < 0.7:
                        file.seek(start)
                        file.write(self.durable[start : min(start + 64 * KIB, offset + length)])
        # What has come through is on the storage now.
        self.durable = bytearray(self._path.read_bytes())
        self.volatile.clear()
        self._covered.clear()


class Stopped(Exception):
    """The copy was stopped here."""


RESUMED = st.integers(20 * MIB, 44 * MIB) | st.sampled_from([16 * MIB, 24 * MIB, 40 * MIB + 1])


# It depends on the order in which requests end: a failure cannot be made smaller, since it may not come again.
@settings(few, max_examples=5, phases=[Phase.explicit, Phase.generate])
@given(
    shape=shapes(RESUMED),
    ends=PATHS,
    verify=st.sampled_from([Verify.DIGEST, Verify.COMPARE, Verify.NONE]),
    says_zero=st.booleans(),
    stops=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    seed=st.integers(0, 1 << 30),
)
@example(
    shape=Shape(size=40 * MIB, extents=((0, 40 * MIB, "data"),)),
    ends=Ends(),
    verify=Verify.DIGEST,
    says_zero=False,
    stops=[60, 60, 60],
    seed=5,
)
def test_stopped_anywhere_and_gone_on_without_what_was_not_flushed(
    shape: Shape, ends: Ends, verify: Verify, says_zero: bool, stops: list[int], seed: int
) -> None:
    plan, maker = Plan(), random.Random(seed)
    checkpoints: list[Checkpoint] = []
    with (
        scene(shape, ends, plan) as made,
        mock.patch.object(tree, "_SMALLEST_SEGMENT_BYTES", 8 * MIB),
        mock.patch.object(copying, "_FLUSH_BYTES", MIB),
        mock.patch.object(copying, "_FLUSH_SECONDS", 0.0),
        mock.patch.object(copying, "_AT_RISK_BYTES", 12 * MIB),
    ):
        storage = Storage(made.destination_path)
        plan.on_submit, plan.on_end = storage.on_submit, storage.on_end
        options = CopyOptions(verify=verify, destination_is_zero=says_zero and made.is_zero)

        def keep(checkpoint: Checkpoint) -> None:
            position = checkpoint.position_bytes
            assert storage.durable[:position] == made.expected[:position], "a checkpoint before its flush"
            checkpoints.append(checkpoint)

        def stop() -> None:
            raise Stopped

        for stop_after in stops:
            plan.acts = {plan.made + stop_after: stop}
            with contextlib.suppress(Stopped):
                run(made, options, checkpoint=checkpoints[-1] if checkpoints else None, on_checkpoint=keep)
            storage.lose_power(maker)
        plan.acts = {}
        last = checkpoints[-1] if checkpoints else None
        result = run(made, options, checkpoint=last, on_checkpoint=keep)
        made.check(options)
        made.check_source()
        assert result.bytes_resumed == (last.position_bytes if last else 0)
        assert result.bytes_copied + result.bytes_zero + result.bytes_resumed == shape.size
        if verify is not Verify.NONE:
            assert result.source_digest == result.destination_digest == digest_of(made.source_path)
