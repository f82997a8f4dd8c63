"""All that the contract promises, checked on a real directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shelf_driver import ShelfDriver

from volmig.testing.conformance import Backend, DriverConformance


class TestShelfDriver(DriverConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        def make() -> ShelfDriver:
            return ShelfDriver(host="test", backend="shelf", options={"shelf_directory": str(tmp_path)})

        yield Backend(driver=make(), restart=make)
        assert list(tmp_path.iterdir()) == [], "something was left behind"
