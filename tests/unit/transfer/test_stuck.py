"""Storage that hangs: a cancellation is heard all the same, and what hangs is named."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG, SOON, until
from volmig import errors
from volmig.transfer import Control, CopyOptions, Verify, boottime_seconds, copy
from volmig.transfer.base import Tail

from .fakes import Handle, make_file, pattern

MIB = 1024 * 1024
SIZE = 24 * MIB


class Hanging:
    """Holds a request up until the test is over."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.over = threading.Event()

    def __call__(self, position: int = 0, data: bytes = b"") -> bytes:
        self.reached.set()
        self.over.wait(LONG)
        return data


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    before = set(threading.enumerate())
    yield made
    made.over.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(LONG)
        assert not thread.is_alive(), "a thread is left"


def cancelled(hanging: Hanging, control: Control, act: Callable[[], object], end: Callable[[], None]) -> Any:
    """Copy, end it once it hangs, and return its error; it must not wait for what hangs."""
    at: list[float] = []

    def watch() -> None:
        assert hanging.reached.wait(LONG)
        time.sleep(0.05)
        at.append(time.monotonic())
        end()

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(errors.TransferCancelled) as raised:
        act()
    assert time.monotonic() - at[0] < SOON
    watcher.join()
    return raised.value


@pytest.mark.parametrize(
    ("where", "end"),
    [*((where, "cancel") for where in ("read", "write", "flush", "tail", "read back")), ("write", "deadline")],
)
def test_a_cancellation_names_the_request_that_hangs(tmp_path: Path, hanging: Hanging, where: str, end: str) -> None:
    source: Any = make_file(tmp_path / "source", SIZE, [(0, SIZE)])
    destination: Any = Handle(bytes(SIZE + MIB))
    control, options = Control(), CopyOptions(verify=Verify.NONE)
    if where == "read":
        source = Handle(pattern(SIZE), on_read=lambda at, data: hanging(at, data) if 5 * MIB <= at < 20 * MIB else data)
    elif where == "write":
        destination.on_write = lambda at, data: hanging(at, data) if at >= 3 * MIB else data
    elif where == "flush":
        destination.flush = hanging
    elif where == "tail":
        options = CopyOptions(verify=Verify.NONE, tail=Tail.ZERO)
        destination.on_write = lambda at, data: hanging(at, data) if at >= SIZE else data
    else:
        options = CopyOptions()
        destination.on_read = hanging
    ends = {
        "cancel": control.cancel,
        "deadline": lambda: setattr(control, "deadline_seconds", boottime_seconds()),
    }
    error = cancelled(
        hanging,
        control,
        lambda: copy(source, destination, size_bytes=SIZE, options=options, control=control),
        ends[end],
    )
    hint = error.hint
    assert "The storage hangs: the" in hint
    assert "of <Handle> has not been answered for" in hint
    what = {"read": "read of ", "write": "write of ", "flush": "flush of", "tail": "write of", "read back": "read of "}
    assert what[where] in hint
    least = {"read": 5 * MIB, "write": 3 * MIB, "tail": SIZE, "read back": 0}
    if where != "flush":
        (place,) = re.findall(r"bytes at byte (\d+) of <Handle>", hint)
        assert least[where] <= int(place) <= least[where] + 16 * MIB
    assert "(and" not in hint, "what had not begun does not hang"
    assert ("another may write" in hint) == (end == "deadline")


def test_what_had_not_begun_never_is(tmp_path: Path, hanging: Hanging) -> None:
    source = make_file(tmp_path / "source", SIZE, [(0, SIZE)])
    destination: Any = Handle(bytes(SIZE), on_write=hanging)
    control = Control()
    cancelled(
        hanging,
        control,
        lambda: copy(source, destination, size_bytes=SIZE, options=CopyOptions(verify=Verify.NONE), control=control),
        control.cancel,
    )
    hanging.over.set()
    until(lambda: destination.bytes_written)
    time.sleep(0.1)
    assert destination.bytes_written == MIB
    assert destination.flushes == 0


def test_a_slow_handle_is_not_said_to_hang(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", SIZE, [(0, SIZE)])
    reached = threading.Event()

    def slow(position: int, data: bytes) -> bytes:
        reached.set()
        time.sleep(0.05)
        return data

    control = Control()
    threading.Thread(target=lambda: (reached.wait(LONG), control.cancel())).start()
    with pytest.raises(errors.TransferCancelled) as raised:
        copy(source, Handle(bytes(SIZE), on_write=slow), size_bytes=SIZE, control=control)  # type: ignore[arg-type]
    assert "hangs" not in raised.value.hint


def test_a_copy_that_hangs_can_be_paused_and_goes_on_when_the_storage_does(tmp_path: Path, hanging: Hanging) -> None:
    source = make_file(tmp_path / "source", 4 * MIB, [(0, 4 * MIB)])
    destination: Any = Handle(bytes(4 * MIB), on_write=hanging)
    control = Control()
    thread = threading.Thread(
        target=copy,
        args=(source, destination),
        kwargs={"size_bytes": 4 * MIB, "control": control, "options": CopyOptions(verify=Verify.NONE)},
    )
    thread.start()
    assert hanging.reached.wait(LONG)
    control.pause()
    hanging.over.set()
    until(lambda: destination.bytes_written)
    time.sleep(0.2)
    assert destination.bytes_written == MIB, "the one that was under way, and no other"
    control.resume()
    thread.join(LONG)
    assert destination.content == source.read_bytes()


@pytest.mark.usefixtures("means")
def test_a_copy_of_files_is_cancelled_in_its_flush_and_in_its_pause(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 8 * MIB, [(0, 8 * MIB)])
    destination = make_file(tmp_path / "destination", 8 * MIB)
    control = Control()
    control.pause()
    timer = threading.Timer(0.1, control.cancel)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(errors.TransferCancelled):
        copy(source, destination, size_bytes=8 * MIB, control=control)
    assert time.monotonic() - begun < SOON
    timer.join()
    assert not any(destination.read_bytes())
    with contextlib.suppress(errors.TransferCancelled):
        copy(source, destination, size_bytes=8 * MIB, control=control)
    assert not any(destination.read_bytes())


@pytest.mark.parametrize("where", ["header", "flush before"])
def test_a_source_that_hangs_before_the_copy(
    tmp_path: Path, hanging: Hanging, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    source: Any = make_file(tmp_path / "source", SIZE, [(0, SIZE)])
    destination = make_file(tmp_path / "destination", SIZE, [])
    if where == "header":
        source = Handle(pattern(SIZE), on_read=hanging)
    else:
        monkeypatch.setattr("volmig.transfer.ends.files.settle", lambda *_: hanging())
    control = Control()
    error = cancelled(
        hanging, control, lambda: copy(source, destination, size_bytes=SIZE, control=control), control.cancel
    )
    assert ("the reading of the header of <Handle>" if where == "header" else "the flush of") in error.hint
    assert not any(destination.read_bytes())
