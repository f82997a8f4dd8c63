"""A process is suspended while its storage makes a volume; another one makes it, and somebody uses it by then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.engine.world import World
from volmig.model import Volume, VolumeStatus

from ..cli_support import until
from .creator import GO, SIZE, open_world

ROOT = Path(__file__).parents[3]
DATA = b"customer data".ljust(SIZE, b".")


class Creator:
    """The process, as its parent sees it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.functional.ownership.creator", str(directory)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.volume_id = self.line().split()[-1]

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def suspend(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def wake_up(self, *, is_late: bool) -> str:
        """Let it go on until its end, and return what it said to its user.

        :param is_late: whether its storage makes the object only when its user has been told.
        """
        if not is_late:
            (self.directory / GO).touch()
        self.process.send_signal(signal.SIGCONT)
        told = self.line().strip()
        (self.directory / GO).touch()
        _, complaints = self.process.communicate(timeout=30)
        assert "Traceback" not in complaints
        assert self.process.returncode == 0, complaints
        return told

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("volmig.manager.volumes.operations.MARGIN_SECONDS", 0.0)
    made = open_world(tmp_path)
    yield made
    made.close()


@pytest.fixture
def creator(world: World) -> Iterator[Creator]:
    made = Creator(world.directory)
    made.suspend()
    yield made
    made.close()


def made_by_another(world: World, creator: Creator) -> Volume:
    def is_made() -> bool:
        world.engine.recover()
        return world.engine.show_volume(creator.volume_id).status is VolumeStatus.AVAILABLE

    until(is_made, "another one has made it")
    volume = world.engine.show_volume(creator.volume_id)
    world.path(volume).write_bytes(DATA)
    return volume


@pytest.mark.parametrize("is_late", [False, True])
def test_a_volume_in_use_stays(world: World, creator: Creator, is_late: bool) -> None:
    volume = made_by_another(world, creator)
    world.engine.attach_volume(volume.id, instance="vm")
    rows = world.rows()
    told = creator.wake_up(is_late=is_late)
    assert told in ("store-conflict", "driver-timeout")
    assert world.rows() == rows
    world.engine.recover()
    assert world.path(volume).read_bytes() == DATA
    assert world.engine.show_volume(volume.id).status is VolumeStatus.IN_USE


@pytest.mark.parametrize("is_late", [False, True])
def test_an_unmanaged_volume_stays(world: World, creator: Creator, is_late: bool) -> None:
    """No record names it any more, and its data is somebody's all the same."""
    volume = made_by_another(world, creator)
    world.engine.unmanage_volume(volume.id)
    creator.wake_up(is_late=is_late)
    world.engine.recover()
    assert world.rows()["retired"] == []
    assert world.path(volume).read_bytes() == DATA


@pytest.mark.parametrize("is_late", [False, True])
def test_a_second_object_of_a_volume_that_has_moved_is_deleted(world: World, creator: Creator, is_late: bool) -> None:
    volume = made_by_another(world, creator)
    moved = world.engine.migrate(volume.id, "here@right#right", force_host_copy=True).result(30)
    assert world.objects("left") == []
    creator.wake_up(is_late=is_late)
    assert world.objects("left") == [volume.backend_name]
    world.engine.recover()
    assert world.objects("left") == []
    assert world.rows()["retired"] == []
    assert world.path(moved).read_bytes() == DATA
