"""The fake driver passes the conformance suite in every configuration."""

from __future__ import annotations

from typing import ClassVar

import pytest

from volmig.testing.conformance import Backend, DriverConformance

from .support import busy, fake_driver


class _MemoryConformance(DriverConformance):
    __test__ = False
    options: ClassVar[dict] = {}

    @pytest.fixture
    def backend(self):
        driver = fake_driver(setup=False, **self.options)

        def make_object(pool, data):
            driver.add_foreign(pool, "foreign", data)
            return "foreign"

        yield Backend(driver=driver, restart=lambda: driver, make_object=make_object, make_busy=busy)
        driver.close()


class TestMemoryByPath(_MemoryConformance):
    __test__ = True


class TestMemoryByHandle(_MemoryConformance):
    __test__ = True
    options: ClassVar[dict] = {"fake_connection": "handle"}


class TestMemoryWithoutNativeMigration(_MemoryConformance):
    __test__ = True
    options: ClassVar[dict] = {"fake_native_migration": False}


class TestMemoryWithHonestGarbage(_MemoryConformance):
    __test__ = True
    options: ClassVar[dict] = {"fake_zeroed": False}


class TestDirectory(DriverConformance):
    @pytest.fixture
    def backend(self, tmp_path):
        def make():
            return fake_driver(setup=False, fake_directory=str(tmp_path), fake_pools=["one"])

        def make_object(pool, data):
            (tmp_path / "fakes" / pool / "foreign").write_bytes(data)
            return "foreign"

        return Backend(
            driver=make(),
            restart=make,
            make_object=make_object,
            make_busy=busy,
            peer=fake_driver(backend="peer", setup=False, fake_directory=str(tmp_path)),
        )
