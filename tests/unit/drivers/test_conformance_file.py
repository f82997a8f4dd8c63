"""The file driver passes the conformance suite in every configuration."""

from __future__ import annotations

from typing import ClassVar

import pytest

from volmig.testing.conformance import Backend, DriverConformance

from .support import file_driver


class _FileConformance(DriverConformance):
    __test__ = False
    options: ClassVar[dict] = {}

    @pytest.fixture
    def backend(self, tmp_path):
        directory = tmp_path / "files"
        directory.mkdir()
        peer = tmp_path / "peer"
        peer.mkdir()

        def make():
            return file_driver(directory, setup=False, **self.options)

        def make_object(pool, data):
            place = directory / pool if self.options.get("file_pools") else directory
            (place / "foreign disk.img").write_bytes(data)
            return "foreign disk.img"

        yield Backend(
            driver=make(),
            restart=make,
            make_object=make_object,
            peer=file_driver(peer, backend="peer", setup=False),
        )
        left = [path for path in tmp_path.rglob("*") if path.name.startswith((".volmig-new", "volume-"))]
        assert left == []


class TestSinglePool(_FileConformance):
    __test__ = True


class TestSeveralPools(_FileConformance):
    __test__ = True
    options: ClassVar[dict] = {"file_pools": ["gold", "silver"]}


class TestThick(_FileConformance):
    __test__ = True
    options: ClassVar[dict] = {"file_fallocate": True, "file_pools": ["gold", "silver"]}
