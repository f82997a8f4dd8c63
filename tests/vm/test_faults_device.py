"""Copies between devices that fail, lie, linger or vanish: the device mapper's faults under the transfer itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from volmig import errors
from volmig.transfer import Control, CopyOptions, CopyStage, TransferProgress, TransferResult, Verify, copy

from .bench import Content, sha256, write
from .devices import SECTOR, Faulty, faulty, nothing_left, unplug, unpluggable
from .support import MIB

__all__ = ["nothing_left"]

SIZE = 8 * MIB
CONTENT = Content(size_bytes=SIZE, seed=3)
BAD = 5 * MIB + 3 * SECTOR
"""Where a fault is; within a request."""
REQUEST = MIB
"""Largest request of a copy: an error is told at its beginning, or nearer."""

Pair = tuple[Faulty, Faulty]


@pytest.fixture(scope="module")
def devices() -> Iterator[Pair]:
    with faulty(SIZE, "source") as source, faulty(SIZE, "destination") as destination:
        source.store(CONTENT.data)
        yield source, destination


@pytest.fixture
def pair(devices: Pair) -> Iterator[Pair]:
    """Give a source with data and a destination full of garbage. Whatever happens, the source is not touched."""
    source, destination = devices
    destination.store(b"\xa5" * SIZE)
    yield source, destination
    for device in devices:
        device.heal()
    assert sha256(source.truth(SIZE)) == CONTENT.sha256


def moved(pair: Pair, engine: str = "chunked", *, verify: Verify = Verify.DIGEST, **more: object) -> TransferResult:
    source, destination = pair
    options = CopyOptions(engine=engine, verify=verify, chunk_bytes=int(str(more.pop("chunk_bytes", MIB))))
    return copy(str(source.path), str(destination.path), size_bytes=SIZE, options=options, **more)  # type: ignore[arg-type]


def once(stage: CopyStage, act: Callable[[], None]) -> Callable[[TransferProgress], None]:
    """Return a callback of progress that acts when *stage* is first told of."""
    acted: list[TransferProgress] = []

    def watch(event: TransferProgress) -> None:
        if event.stage is stage and not acted:
            acted.append(event)
            act()

    return watch


# --- I/O errors at chosen places ------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, BAD, SIZE - SECTOR])
def test_a_sector_of_the_source_that_cannot_be_read(pair: Pair, offset: int) -> None:
    pair[0].fail_at((offset, offset + SECTOR))
    with pytest.raises(errors.TransferFailed, match="Input/output error") as caught:
        moved(pair)
    assert caught.value.fields["path"] == str(pair[0].path)
    assert caught.value.fields["offset"] <= offset < caught.value.fields["offset"] + REQUEST


@pytest.mark.parametrize("offset", [0, BAD, SIZE - SECTOR])
def test_a_sector_of_the_destination_that_cannot_be_written(pair: Pair, offset: int) -> None:
    pair[1].fail_writes_at((offset, offset + SECTOR))
    with pytest.raises(errors.TransferFailed, match="Input/output error") as caught:
        moved(pair)
    assert caught.value.fields["path"] == str(pair[1].path)
    assert caught.value.fields["offset"] <= offset < caught.value.fields["offset"] + REQUEST


def test_dd_tells_where_it_could_not_read(pair: Pair) -> None:
    pair[0].fail_at((BAD, BAD + SECTOR))
    with pytest.raises(errors.TransferFailed, match="Input/output error") as caught:
        moved(pair, "dd")
    assert caught.value.fields["path"] == str(pair[0].path)
    assert caught.value.fields["offset"] <= BAD < caught.value.fields["offset"] + REQUEST


def test_dd_tells_that_it_could_not_write(pair: Pair) -> None:
    # It writes through the cache, so that the system tells it of the error only at the end, and not where it was.
    pair[1].fail_writes_at((BAD, BAD + SECTOR))
    with pytest.raises(errors.TransferFailed, match="Input/output error") as caught:
        moved(pair, "dd")
    assert caught.value.fields["path"] == str(pair[1].path)


@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_what_arrived_cannot_be_read_back(pair: Pair, verify: Verify) -> None:
    go_bad = once(CopyStage.VERIFY, lambda: pair[1].fail_at((BAD, BAD + SECTOR)))
    with pytest.raises(errors.TransferFailed, match="Input/output error") as caught:
        moved(pair, verify=verify, progress=go_bad)
    assert caught.value.fields["path"] == str(pair[1].path)
    assert caught.value.fields["offset"] <= BAD < caught.value.fields["offset"] + REQUEST


# --- devices that lie -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["chunked", "dd"])
@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_a_write_that_was_dropped_is_found(pair: Pair, engine: str, verify: Verify) -> None:
    destination = pair[1]
    destination.drop_writes((BAD, BAD + SECTOR))
    with pytest.raises(errors.VerificationFailed) as caught:
        moved(pair, engine, verify=verify, progress=once(CopyStage.VERIFY, destination.heal))
    assert caught.value.fields["offset"] == BAD
    # All but this one sector has arrived, and it has what was there before.
    expected = bytearray(CONTENT.data)
    expected[BAD : BAD + SECTOR] = b"\xa5" * SECTOR
    assert sha256(destination.truth(SIZE)) == sha256(expected)


@pytest.mark.parametrize("engine", ["chunked", "dd"])
def test_nobody_notices_a_dropped_write_without_verification(pair: Pair, engine: str) -> None:
    # What shows that the verification above does what it is there for.
    pair[1].drop_writes((BAD, BAD + SECTOR))
    moved(pair, engine, verify=Verify.NONE)
    assert pair[1].truth(SECTOR, BAD) == b"\xa5" * SECTOR


@pytest.mark.parametrize(("engine", "verify"), [("dd", Verify.DIGEST), ("chunked", Verify.COMPARE)])
def test_a_byte_that_is_damaged_on_its_way_is_found(pair: Pair, engine: str, verify: Verify) -> None:
    # This kernel's dm-flakey damages the very memory that is written from. The digest of ``chunked`` is computed of
    # that memory while it is written, so that only reading the source again shows it.
    pair[1].corrupt_writes(0x5A)
    with pytest.raises(errors.VerificationFailed) as caught:
        moved(pair, engine, verify=verify, progress=once(CopyStage.VERIFY, pair[1].heal))
    assert pair[1].truth(1, caught.value.fields["offset"]) == b"\x5a"


@pytest.mark.parametrize("engine", ["chunked", "dd"])
def test_a_byte_that_is_damaged_where_it_lies_is_found(pair: Pair, engine: str) -> None:
    damaged = bytes([CONTENT.data[BAD + 7] ^ 1])
    with pytest.raises(errors.VerificationFailed) as caught:
        moved(pair, engine, progress=once(CopyStage.VERIFY, lambda: pair[1].store(damaged, BAD + 7)))
    assert caught.value.fields["offset"] == BAD + 7


def test_a_source_that_was_misread_is_found_by_comparing(pair: Pair) -> None:
    # No digest can show this: it is the digest of what was read.
    source = pair[0]
    good = CONTENT.data[BAD : BAD + 1]
    source.store(bytes([good[0] ^ 1]), BAD)
    with pytest.raises(errors.VerificationFailed) as caught:
        moved(pair, verify=Verify.COMPARE, progress=once(CopyStage.VERIFY, lambda: source.store(good, BAD)))
    assert caught.value.fields["offset"] == BAD


# --- slow devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", ["source", "destination"])
def test_a_copy_with_a_slow_device_tells_and_ends_when_it_is_told_to(pair: Pair, slow: str) -> None:
    pair[slow == "destination"].delay(*((400, 0) if slow == "source" else (0, 400)))
    control, told = Control(), list[TransferProgress]()
    ended: list[BaseException] = []

    def run() -> None:
        try:
            moved(pair, chunk_bytes=4096, control=control, progress=told.append)
        except errors.VolmigError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 30
    while len({event.bytes_done for event in told}) < 3:
        assert thread.is_alive()
        assert time.monotonic() < deadline, f"progress was told as {told}"
        time.sleep(0.05)
    began = time.monotonic()
    control.cancel()
    thread.join(30)
    assert time.monotonic() - began < 2
    assert isinstance(ended[0], errors.TransferCancelled)
    assert 0 < told[-1].bytes_done < SIZE


# --- devices that vanish --------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["chunked", "dd"])
@pytest.mark.parametrize("which", ["source", "destination"])
def test_a_device_that_fails_altogether(pair: Pair, engine: str, which: str) -> None:
    lost = pair[which == "destination"]
    # Slow at first, so that requests are under way when it happens.
    lost.delay(50, 50)
    with pytest.raises(errors.TransferFailed, match="Input/output error") as caught:
        moved(pair, engine, chunk_bytes=65536, progress=once(CopyStage.COPY, lost.vanish))
    assert caught.value.fields["path"] == str(lost.path)


@pytest.mark.parametrize("which", ["source", "destination"])
def test_a_disk_that_is_pulled_out(pair: Pair, which: str) -> None:
    with unpluggable(SIZE // MIB) as disk:
        write(disk, CONTENT.data)
        ends = {"source": str(pair[0].path), "destination": str(pair[1].path), which: str(disk)}
        options = CopyOptions(engine="chunked", chunk_bytes=65536, bandwidth_limit_bytes=4 * MIB)
        pull = once(CopyStage.COPY, lambda: unplug(disk))
        with pytest.raises(errors.TransferFailed) as caught:
            copy(ends["source"], ends["destination"], size_bytes=SIZE, options=options, progress=pull)
    assert caught.value.fields["path"] == str(disk)
    assert not disk.exists()
