"""What arrives: every byte, nothing else, and as few blocks as there were."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig.transfer import CopyOptions, Verify, copy, digest_of

from .fakes import Handle, ReadintoHandle, blocks_of, make_file, pattern

KIB = 1024
MIB = 1024 * 1024
ENGINES = ("chunked", "dd")

SIZES = st.one_of(
    st.sampled_from(
        [0, 1, 511, 512, 513, 4095, 4097, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 256 * KIB - 1, 256 * KIB + 1]
    ),
    st.integers(0, 600 * KIB),
)
EXTENTS = st.lists(st.tuples(st.integers(0, 600 * KIB), st.integers(1, 200 * KIB)), max_size=4)
CHUNKS = st.one_of(
    st.sampled_from([4 * KIB, 64 * KIB, 256 * KIB, MIB]), st.integers(1, 75).map(lambda steps: steps * 4 * KIB)
)
pytestmark = pytest.mark.usefixtures("means")


@settings(max_examples=20, deadline=None)
@given(
    size=SIZES,
    extents=EXTENTS,
    chunk_bytes=CHUNKS,
    tail=st.sampled_from([0, 1, 5000]),
    garbage=st.booleans(),
    verify=st.sampled_from(list(Verify)),
)
def test_any_volume_arrives_and_the_tail_stays(
    size: int, extents: list[tuple[int, int]], chunk_bytes: int, tail: int, garbage: bool, verify: Verify
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = make_file(Path(folder, "source"), size, [(start, start + length) for start, length in extents])
        destination = Path(folder, "destination")
        destination.write_bytes((b"\xff" if garbage else b"\0") * size + b"T" * tail)
        result = copy(
            source,
            destination,
            size_bytes=size,
            options=CopyOptions(chunk_bytes=chunk_bytes, verify=verify, destination_is_zero=not garbage),
        )
        assert destination.read_bytes() == source.read_bytes() + b"T" * tail
        assert result.bytes_copied + result.bytes_zero == result.bytes_total == size
        assert result.engine == "chunked"
        if verify is Verify.NONE:
            assert (result.source_digest, result.destination_digest, result.digest_algorithm) == ("", "", "")
        else:
            assert result.source_digest == result.destination_digest == digest_of(source)


@settings(max_examples=20, deadline=None)
@given(
    content=st.lists(st.tuples(st.booleans(), st.integers(0, 80 * KIB)), max_size=5),
    chunk_bytes=CHUNKS,
    most=st.sampled_from([777, 4 * KIB, 1 << 30]),
    kind=st.sampled_from([Handle, ReadintoHandle]),
    verify=st.sampled_from(list(Verify)),
)
def test_handles_with_short_reads_and_short_writes(
    content: list[tuple[bool, int]], chunk_bytes: int, most: int, kind: type[Handle], verify: Verify
) -> None:
    data = b"".join(pattern(length) if is_data else bytes(length) for is_data, length in content)
    source, destination = kind(data, most=most), kind(b"\xaa" * len(data) + b"tail", most=most)
    result = copy(
        source,  # type: ignore[arg-type]
        destination,  # type: ignore[arg-type]
        size_bytes=len(data),
        options=CopyOptions(chunk_bytes=chunk_bytes, verify=verify),
    )
    assert destination.content == data + b"tail"
    assert source.content == data
    assert source.bytes_written == 0
    assert destination.flushes
    assert result.bytes_copied + result.bytes_zero == len(data)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [0, 1, 4097, MIB - 1, MIB, 5 * MIB + 513])
def test_engines_agree(tmp_path: Path, engine: str, size: int, means: str) -> None:
    if (engine, means) == ("dd", "threads"):
        return
    source = make_file(tmp_path / "source", size, [(100, 3000), (2 * MIB, 2 * MIB + 100)])
    destination = tmp_path / "destination"
    destination.write_bytes(b"\xff" * size + b"tail")
    result = copy(source, destination, size_bytes=size, options=CopyOptions(engine=engine))
    assert destination.read_bytes() == source.read_bytes() + b"tail"
    assert result.engine == engine
    assert result.engine_reason == "asked for"
    assert result.source_digest == result.destination_digest == digest_of(source)


def test_digest_does_not_depend_on_holes_or_requests(tmp_path: Path) -> None:
    sparse = make_file(tmp_path / "sparse", 9 * MIB + 5, [(5 * MIB, 6 * MIB)])
    full = tmp_path / "full"
    full.write_bytes(sparse.read_bytes())
    assert blocks_of(full) > blocks_of(sparse)
    found = {digest_of(path, chunk_bytes=chunk) for path in (sparse, full) for chunk in (4 * KIB, 100 * KIB, MIB)}
    with full.open("rb") as handle:
        found.add(digest_of(handle))
    assert len(found) == 1
    assert digest_of(full, size_bytes=9 * MIB) not in found


@pytest.mark.parametrize("engine", ENGINES)
def test_holes_stay_holes_where_the_destination_is_zero(tmp_path: Path, engine: str) -> None:
    source = make_file(tmp_path / "source", 64 * MIB, [(8 * MIB, 9 * MIB)])
    destination = make_file(tmp_path / "destination", 64 * MIB)
    copy(source, destination, size_bytes=64 * MIB, options=CopyOptions(engine=engine, destination_is_zero=True))
    assert blocks_of(destination) <= 2 * MIB
    assert digest_of(destination) == digest_of(source)


def test_zeroes_stored_as_data_become_holes(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", make_file(tmp_path / "destination", 8 * MIB)
    source.write_bytes(bytes(4 * MIB) + pattern(MIB) + bytes(3 * MIB))
    result = copy(source, destination, size_bytes=8 * MIB, options=CopyOptions(destination_is_zero=True))
    assert (result.bytes_copied, result.bytes_zero) == (MIB, 7 * MIB)
    assert blocks_of(destination) <= 2 * MIB


def test_garbage_gives_its_room_back_where_the_source_has_holes(tmp_path: Path) -> None:
    source, destination = make_file(tmp_path / "source", 8 * MIB, [(0, 100)]), tmp_path / "destination"
    destination.write_bytes(pattern(8 * MIB) + b"tail")
    os.sync()
    copy(source, destination, size_bytes=8 * MIB)
    assert destination.read_bytes() == source.read_bytes() + b"tail"
    assert blocks_of(destination) < 2 * MIB


def test_zeroes_are_written_where_holes_cannot_be_made(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 3 * MIB, [(MIB, MIB + 10)])
    destination = Handle(b"\xff" * 3 * MIB)
    copy(source, destination, size_bytes=3 * MIB)  # type: ignore[arg-type]
    assert destination.content == source.read_bytes()
    assert destination.bytes_written == 3 * MIB


def test_zeroes_are_not_written_where_the_destination_is_zero(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 3 * MIB, [(MIB, MIB + 10)])
    destination = Handle(bytes(3 * MIB))
    options = CopyOptions(destination_is_zero=True)
    result = copy(source, destination, size_bytes=3 * MIB, options=options)  # type: ignore[arg-type]
    assert destination.content == source.read_bytes()
    assert destination.bytes_written <= 64 * KIB
    assert result.bytes_copied == destination.bytes_written


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["/proc/self/fd/{fd}", "/proc/{pid}/fd/{fd}", "/dev/fd/{fd}"])
def test_files_that_live_in_memory(engine: str, form: str) -> None:
    content = pattern(MIB) + bytes(MIB) + pattern(10)
    source, destination = os.memfd_create("source"), os.memfd_create("destination")
    try:
        os.pwrite(source, content, 0)
        os.pwrite(destination, b"\xff" * (len(content) + 4), 0)
        paths = [form.format(fd=fd, pid=os.getpid()) for fd in (source, destination)]
        copy(*paths, size_bytes=len(content), options=CopyOptions(engine=engine))
        assert os.pread(destination, len(content) + 10, 0) == content + b"\xff" * 4
    finally:
        os.close(source)
        os.close(destination)


def test_python_s_own_handles(tmp_path: Path) -> None:
    content = pattern(300_000)
    path = tmp_path / "destination"
    path.write_bytes(b"\xff" * 300_000)
    with path.open("r+b", buffering=0) as raw:
        copy(io.BytesIO(content), raw, size_bytes=300_000)
    assert path.read_bytes() == content
    memory = io.BytesIO(bytes(300_000))
    with path.open("rb") as buffered:
        buffered.seek(17)
        copy(buffered, memory, size_bytes=300_000, options=CopyOptions(verify=Verify.COMPARE))
    assert memory.getvalue() == content


def test_names_that_look_like_options_or_commands(tmp_path: Path) -> None:
    for engine in ENGINES:
        source = tmp_path / f"-x $(touch owned) 'of={engine}\n"
        source.write_bytes(pattern(1000))
        destination = tmp_path / f"; rm -rf * {engine}"
        destination.write_bytes(bytes(1000))
        copy(source, destination, size_bytes=1000, options=CopyOptions(engine=engine))
        assert destination.read_bytes() == source.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4
