"""What all tests need that run in the virtual machine: to be in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_CONTROL = Path("/dev/mapper/control")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse to run these tests where they cannot work: a skip would look like a pass."""
    if any(_HERE in item.path.parents for item in items):
        reason = _why_not_here()
        if reason:
            raise pytest.UsageError(
                f"The tests in tests/vm need root and a device mapper, and here {reason}. "
                "Run them in the virtual machine: tox -e functional-vm -- tests/vm/FILE"
            )


def _why_not_here() -> str:
    if os.geteuid() != 0:
        return "the user is not root"
    try:
        os.close(os.open(_CONTROL, os.O_RDWR))
    except OSError as error:
        return f"{_CONTROL} cannot be opened ({error.strerror})"
    return ""
