"""The order in which requests end is the storage's; a copy with checkpoints comes to its end in any."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest

from volmig.transfer import Checkpoint, CopyOptions, Verify, copy
from volmig.transfer.control import Control
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.flow import copying, setup
from volmig.transfer.flow.arena import Arena
from volmig.transfer.flow.request import Kind, Request, RequestQueue
from volmig.transfer.flow.ring import RingUnavailable
from volmig.transfer.flow.threads import ThreadQueue

from .fakes import make_file
from .faults import LateQueue

MIB = 1024 * 1024


def lead(source: Path, destination: Path, *late: tuple[Kind, int], flush_seconds: float = 3600.0) -> list[int]:
    """Copy while the *n*-th of a kind ends last of all that are under way; return the positions of the checkpoints."""
    counts: dict[Kind, int] = {}

    def is_late(request: Request) -> bool:
        number = counts.get(request.kind, 0)
        counts[request.kind] = number + 1
        return (request.kind, number) in late or (request.kind, -1) in late

    def refuse(*_: object) -> RequestQueue:
        raise RingUnavailable("the test wants threads")

    def make(arena: Arena, ends: Sequence[OpenEnd], control: Control) -> RequestQueue:
        return LateQueue(ThreadQueue(arena, ends, control), is_late)

    checkpoints: list[Checkpoint] = []
    with (
        mock.patch.object(setup, "RingQueue", refuse),
        mock.patch.object(setup, "ThreadQueue", make),
        mock.patch.object(copying, "_FLUSH_SECONDS", flush_seconds),
    ):
        copy(
            source,
            destination,
            size_bytes=source.stat().st_size,
            options=CopyOptions(verify=Verify.NONE),
            on_checkpoint=checkpoints.append,
        )
    assert destination.read_bytes() == source.read_bytes()
    return [checkpoint.position_bytes for checkpoint in checkpoints]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("order") / "source"
    path.write_bytes(os.urandom(4 * MIB) * 24)
    return path


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return make_file(tmp_path / "destination", 96 * MIB)


@pytest.mark.parametrize(
    "late",
    [
        pytest.param([(Kind.FLUSH, -1)], id="flushes"),
        pytest.param([(Kind.READ, 17)], id="a read"),
        pytest.param([(Kind.WRITE, 17)], id="a write"),
        pytest.param([(Kind.READ, 17), (Kind.FLUSH, -1)], id="a read and flushes"),
        pytest.param([(Kind.READ, 40), (Kind.WRITE, 60), (Kind.FLUSH, 1)], id="some of each"),
    ],
)
def test_what_ends_last_does_not_bring_a_copy_to_a_standstill(
    source: Path, destination: Path, late: list[tuple[Kind, int]]
) -> None:
    positions = lead(source, destination, *late)
    assert positions == sorted(set(positions))
    # As long as more than 64 MiB are left, one comes before so many were copied without.
    for before, after in zip([0, *positions], [*positions, 96 * MIB], strict=True):
        assert after - before <= 64 * MIB


def test_a_flush_that_makes_no_data_safe_and_ends_last(destination: Path, tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 96 * MIB, [(16 * MIB, 96 * MIB)])
    # The first is asked for when the hole is dealt with, and ends when no more data may be begun.
    positions = lead(source, destination, (Kind.FLUSH, 0), flush_seconds=0.0)
    assert positions[0] == 16 * MIB
    assert len(positions) > 1
