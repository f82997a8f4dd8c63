from __future__ import annotations

from collections.abc import Iterator

import pytest

from volmig.transfer.flow import setup
from volmig.transfer.flow.ring import RingUnavailable

from .fakes import nothing_left


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(scope="module", params=["io_uring", "threads"])
def means(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test by io_uring, as far as the kernel has it, and once more by threads only."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "threads":
            patch.setattr(setup, "RingQueue", no_ring)
        yield request.param


def no_ring(*_: object) -> None:
    raise RingUnavailable("the test wants threads")
