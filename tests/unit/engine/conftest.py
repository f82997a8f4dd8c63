"""Worlds that are closed in the end, and leave no thread and no process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.world import World, children, threads
from tests.unit.waiting import until


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []
    children_before = children()

    def make(**options: Any) -> World:
        directory = tmp_path / f"world-{len(made)}"
        directory.mkdir()
        made.append(World(directory, **options))
        return made[-1]

    yield make
    for world in made:
        world.close()
    # A call of a driver that was given up ends in its own time, once it is released.
    until(lambda: not threads(), 10)
    assert children() == children_before
