"""What all functional tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def measured(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Give what shows a figure that a test has measured, also when it passes."""

    def show(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return show
