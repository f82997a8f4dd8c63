"""A signal's handler may raise between any two lines of the thread that copies."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest

from tests.unit.transfer.fakes import make_file
from tests.unit.waiting import until
from volmig.transfer import Checkpoint, CopyOptions, Verify, copy, digest
from volmig.transfer.flow import copying as flow

MIB = 1024 * 1024
SIZE = 26 * MIB + 5
_WATCHED = tuple(
    f"volmig/transfer/flow/{name}.py" for name in ("ring", "threads", "pump", "leaves", "copying", "setup")
)


class Interrupted(BaseException):
    """What the handler raises."""


def raising_at(number: int) -> Callable[[FrameType, str, Any], Any]:
    """Return a tracer that raises at a line of the code that moves bytes, counted from the beginning."""
    left = [number]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(_WATCHED):
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise Interrupted
        return trace

    return trace


@pytest.mark.usefixtures("means")
def test_what_a_checkpoint_names_stays_whole_wherever_the_copy_is_interrupted(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", SIZE, [(0, SIZE)])
    expected = source.read_bytes()
    draw = random.Random(8)
    checkpoints: list[Checkpoint] = []
    destination = tmp_path / "destination"
    threads, files = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    options = CopyOptions(verify=Verify.NONE, chunk_bytes=64 * 1024)
    with (
        mock.patch.object(digest, "_SMALLEST_SEGMENT_BYTES", 8 * MIB),
        mock.patch.object(flow, "_FLUSH_BYTES", MIB),
        mock.patch.object(flow, "_FLUSH_SECONDS", 0.0),
    ):
        interruptions = 0
        for _ in range(10):
            destination.write_bytes(b"\xff" * SIZE)
            checkpoints.clear()
            sys.settrace(raising_at(draw.randint(1, 60_000)))
            try:
                copy(source, destination, size_bytes=SIZE, options=options, on_checkpoint=checkpoints.append)
            except Interrupted:
                interruptions += 1
            finally:
                sys.settrace(None)
            after = destination.read_bytes()
            time.sleep(0.01)
            assert destination.read_bytes() == after, "something is still written"
            last = checkpoints[-1] if checkpoints else None
            if last is not None:
                assert after[: last.position_bytes] == expected[: last.position_bytes]
            copy(source, destination, size_bytes=SIZE, options=options, checkpoint=last)
            assert destination.read_bytes() == expected
        assert interruptions > 2
    until(lambda: threading.active_count() <= threads)
    assert len(list(Path("/proc/self/fd").iterdir())) <= files
