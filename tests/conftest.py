"""Options of all tests, and what those share that measure something."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests that kill processes everywhere."""
    group = parser.getgroup("volmig")
    group.addoption("--long", action="store_true", help="kill at every pair of points, and at many more instants")
    group.addoption("--seed", type=int, metavar="NUMBER", help="what all chance depends on; another one each time")


@pytest.fixture
def measured(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Give what shows a figure that a test has measured, also when it passes."""

    def show(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return show
