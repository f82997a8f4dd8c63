"""A copy that is killed at any moment, again and again, and goes on from its checkpoint."""

from __future__ import annotations

import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from volmig.transfer import digest_of
from volmig.transfer.resume.recording import decode_record

from .cli_support import environment
from .storage import KIB, MIB, noise

SIZE = 384 * MIB
KILLS = 30
STEP = 64 * KIB

COPIER = """
import dataclasses, json, sys
from volmig.transfer import Control, CopyOptions, Verify, copy
from volmig.transfer.resume.checkpoints import CheckpointFile
from volmig.transfer.flow import setup
from volmig.transfer.flow.ring import RingUnavailable

source, destination, kept, size, limit, means = sys.argv[1:]
if means == "threads":
    def refuse(*_):
        raise RingUnavailable("the test wants threads")
    setup.RingQueue = refuse
with CheckpointFile(kept) as file:
    checkpoint = file.begin()
    print("begun", flush=True)
    result = copy(source, destination, size_bytes=int(size), checkpoint=checkpoint, on_checkpoint=file.save,
                  options=CopyOptions(verify=Verify.DIGEST), control=Control(limit_bytes=int(limit)))
    file.finish()
print(json.dumps(dataclasses.asdict(result)), flush=True)
"""


def ahead(source: Path, destination: Path, position: int) -> int:
    """Return how much behind a position has been copied already: it will be copied again."""
    found = 0
    with source.open("rb") as one, destination.open("rb") as other:
        one.seek(position)
        other.seek(position)
        while piece := one.read(STEP):
            arrived = other.read(STEP)
            # Of a block that has arrived in part, that part.
            found += (
                sum(512 for at in range(0, len(piece), 512) if piece[at : at + 512] == arrived[at : at + 512])
                if arrived != piece
                else len(piece)
            )
    return found


@pytest.mark.timeout(400)
@pytest.mark.parametrize("means", ["io_uring", "threads"])
def test_killed_at_any_moment(tmp_path: Path, means: str, measured: Callable[[str], None]) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    maker = random.Random(seed)
    source, destination, kept = (tmp_path / name for name in ("source", "destination", "checkpoint"))
    source.write_bytes(noise(SIZE - 1000, seed) + b"the last bytes".ljust(1000, b"."))
    with source.open("r+b") as file:
        file.seek(100 * MIB)
        file.write(bytes(40 * MIB))
    expected = digest_of(source)
    kills, completed, most_again, resumed = 0, 0, 0, 0
    while kills < KILLS:
        destination.write_bytes(b"\xa5" * SIZE)
        result: dict[str, Any] | None = None
        while result is None:
            limit = maker.choice([0, 200 * MIB, 400 * MIB])
            result = attempt(source, destination, kept, limit, means, maker.uniform(0.0, 1.2))
            if result is None and not kept.exists():
                # It was complete, and killed before it could say so.
                result = {"source_digest": expected, "destination_digest": digest_of(destination)}
            if result is None:
                kills += 1
                position, generation = recorded(kept)
                again = ahead(source, destination, position)
                most_again = max(most_again, again)
                resumed = max(resumed, position)
                assert again <= 64 * MIB, f"seed {seed}: {again} bytes are copied again from {position} on"
                if generation > 6:
                    result = attempt(source, destination, kept, 0, means, 60.0)
                    assert result is not None
        completed += 1
        assert filecmp.cmp(source, destination, shallow=False), f"seed {seed}: the content differs"
        assert result["source_digest"] == result["destination_digest"] == expected
        assert not kept.exists()
    measured(
        f"{means}: seed {seed}, {kills} kills in {completed} copies; copied again at most {most_again / MIB:.1f} MiB; "
        f"furthest checkpoint {resumed / MIB:.0f} MiB"
    )
    assert resumed > 0, "no run was killed after a checkpoint: this test has shown nothing"


def recorded(kept: Path) -> tuple[int, int]:
    """Return where the next run goes on, and how many runs there were."""
    record = decode_record(kept.read_bytes(), str(kept))
    return (record.checkpoint.position_bytes if record.checkpoint else 0), record.generation


def attempt(
    source: Path, destination: Path, kept: Path, limit: int, means: str, seconds: float
) -> dict[str, Any] | None:
    """Run the copy and kill it after so many seconds; return its result if it was faster."""
    command = [sys.executable, "-c", COPIER, str(source), str(destination), str(kept), str(SIZE), str(limit), means]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "begun\n"
            end = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
        finally:
            process.send_signal(signal.SIGKILL)
        told = process.stdout.read()
        process.wait()
    if told:
        result: dict[str, Any] = json.loads(told)
        return result
    assert process.returncode == -signal.SIGKILL, process.returncode
    os.sync()
    return None
