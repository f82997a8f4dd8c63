"""Yards that are closed in the end, with all their processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .yard import Setting, Yard


@pytest.fixture
def make_yard(tmp_path: Path) -> Iterator[Callable[..., Yard]]:
    made: list[Yard] = []

    def make(**setting: Any) -> Yard:
        directory = tmp_path / f"yard-{len(made)}"
        directory.mkdir()
        made.append(Yard(directory, Setting(**setting)))
        return made[-1]

    yield make
    for yard in made:
        yard.close()
        assert yard.programs() == {}


@pytest.fixture
def yard(make_yard: Callable[..., Yard]) -> Yard:
    return make_yard()


@pytest.fixture
def is_long(pytestconfig: pytest.Config) -> bool:
    """Say whether there is time."""
    return bool(pytestconfig.getoption("--long", default=False))


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """Give what all chance depends on: another one each time, or the one asked for."""
    given = pytestconfig.getoption("--seed", default=None)
    return random.SystemRandom().randrange(1 << 32) if given is None else int(given)
