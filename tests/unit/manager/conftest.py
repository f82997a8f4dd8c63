"""A world that is given back in the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.manager.world import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.driver.faults.clear()
    made.driver.close()
