"""The driver contract on a FAKE of LVM's programs; `tests/vm` runs the same suite on real ones."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.unit.drivers.lvm import support
from tests.unit.drivers.lvm.fake_lvm import MIB, FakeLvm, Pv
from volmig.testing.conformance import Backend, DriverConformance

# The driver looks for the programs that it needs; the fake has no others.
pytestmark = pytest.mark.usefixtures("_programs")


@pytest.fixture
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program, **_: f"/usr/sbin/{program}")


def presented(lvm: FakeLvm, **options: object) -> Backend:
    def make_object(pool: str, data: bytes) -> str:
        name = f"stranger{uuid.uuid4().hex[:8]}"
        fields = {"kind": "thin", "pool": pool} if options.get("lvm_type") == "thin" else {}
        if options.get("lvm_pv_tags"):
            fields = {"pv": next(pv.name for pv in lvm.pvs if pool in pv.tags)}
        lvm.add(name, len(data), **fields)
        lvm.path(name).write_bytes(data)
        return name

    def make() -> object:
        return support.driver(lvm, **options)

    return Backend(driver=make(), restart=make, make_object=make_object, size_step_bytes=MIB)  # type: ignore[arg-type]


class TestThin(DriverConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        lvm = FakeLvm(tmp_path)
        lvm.make_pool("pool", 200 * MIB)
        return presented(lvm, lvm_type="thin", lvm_thin_pools=["pool"])


class TestThick(DriverConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        return presented(FakeLvm(tmp_path))


class TestThickByTags(DriverConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        pvs = [Pv(name="/dev/a", extents=128, tags=("fast",)), Pv(name="/dev/b", extents=128, tags=("slow",))]
        return presented(FakeLvm(tmp_path, pvs=pvs), lvm_pv_tags=["fast", "slow"])
