from __future__ import annotations

from collections.abc import Iterator

import pytest

from .fakes import nothing_left


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield
