"""Waiting for what other threads do."""

from __future__ import annotations

import time
from collections.abc import Callable

from volmig.drivers.fake import FakeDriver

LONG = 30.0
"""Seconds that nothing takes unless it hangs."""

SOON = 10.0
"""Seconds within which what is to come at once has come on a busy machine too, and what waits has not."""


def until(condition: Callable[[], object], seconds: float = LONG) -> None:
    """Wait until something is so; look often at first, and then more seldom, since a look can be work."""
    deadline = time.monotonic() + seconds
    pause = 0.005
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(pause)
        pause = min(pause * 1.2, 0.015)


def let_go(driver: FakeDriver, has_ended: Callable[[], object]) -> None:
    """Let calls that hang go on until something is so; also one that is only about to hang."""

    def released() -> object:
        driver.faults.release()
        return has_ended()

    until(released)
