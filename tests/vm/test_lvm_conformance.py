"""The driver contract on real logical volumes: thin, thick, and thick with pools by tags of physical volumes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.vm.support import MIB, Group, driver_options, run, volume_group
from volmig.drivers.lvm import LvmDriver
from volmig.testing.conformance import Backend, DriverConformance


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with volume_group(size_bytes=256 * MIB, tags=("fast", "slow"), thin_pools={"pool": 160 * MIB}) as made:
        yield made


def presented(group: Group, make_lv: Callable[[str, int, str], list[str]], **options: object) -> Backend:
    def make() -> LvmDriver:
        return LvmDriver(host="conformance", backend="lvm", options=driver_options(group, **options))

    def make_object(pool: str, data: bytes) -> str:
        name = f"stranger{uuid.uuid4().hex[:8]}"
        run("lvcreate", "-q", "-y", "-Wn", "--name", name, *make_lv(pool, len(data), group.name))
        with group.device(name).open("r+b") as device:
            device.write(data)
        return name

    return Backend(driver=make(), restart=make, make_object=make_object, size_step_bytes=MIB)


class TestThin(DriverConformance):
    @pytest.fixture
    def backend(self, group: Group) -> Backend:
        def make_lv(pool: str, size: int, vg: str) -> list[str]:
            return ["--virtualsize", f"{size}b", "--type", "thin", "--thinpool", pool, vg]

        return presented(group, make_lv, lvm_type="thin", lvm_thin_pools=["pool"])


class TestThick(DriverConformance):
    @pytest.fixture
    def backend(self, group: Group) -> Backend:
        def make_lv(pool: str, size: int, vg: str) -> list[str]:
            return ["-Zn", "--size", f"{size}b", vg]

        return presented(group, make_lv)


class TestThickByTags(DriverConformance):
    @pytest.fixture
    def backend(self, group: Group) -> Backend:
        def make_lv(pool: str, size: int, vg: str) -> list[str]:
            return ["-Zn", "--size", f"{size}b", vg, f"@{pool}"]

        return presented(group, make_lv, lvm_pv_tags=["fast", "slow"])
