"""What all tests need that run in the virtual machine: to be in it, and to be asked for when they take long.

Everything is emulated there. What is marked ``long`` runs only with ``--long``, and so do the tests of a conformance
suite that its class does not name in ``EVERY_TIME``. pytest's closing line tells how many were left out: deselected.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_CONTROL = Path("/dev/mapper/control")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long; refuse to run these tests where they cannot work: a skip would look like a pass."""
    if any(_HERE in item.path.parents for item in items):
        reason = _why_not_here()
        if reason:
            raise pytest.UsageError(
                f"The tests in tests/vm need root and a device mapper, and here {reason}. "
                "Run them in the virtual machine: tox -e functional-vm -- tests/vm/FILE"
            )
    if not config.getoption("--long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)


def _why_not_here() -> str:
    if os.geteuid() != 0:
        return "the user is not root"
    try:
        os.close(os.open(_CONTROL, os.O_RDWR))
    except OSError as error:
        return f"{_CONTROL} cannot be opened ({error.strerror})"
    return ""


@pytest.hookimpl(trylast=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what a conformance suite need not run every time."""
    every_time = getattr(getattr(item, "cls", None), "EVERY_TIME", None)
    if every_time is not None and getattr(item, "originalname", item.name) not in every_time:
        item.add_marker("long")
