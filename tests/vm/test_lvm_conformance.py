"""The driver contract on real logical volumes: thin, thick, and thick with pools by tags of physical volumes.

Each test takes some seconds under emulation. The suite runs whole on a fake LVM among the unit tests; here each kind
has every time those tests that show what is its own, and ``--long`` runs all for each.
"""

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
    EVERY_TIME = frozenset(
        {
            "test_stats_count_a_volume",
            "test_create_repeated_leaves_data_alone",
            "test_create_over_an_object_of_another_size_is_refused",
            "test_data_comes_back",
            "test_new_volume_reads_as_zeroes_if_claimed",
            "test_holes_take_no_room_if_claimed",
            "test_extend_keeps_data_and_adds_zeroes_if_claimed",
            "test_late_delete_object_leaves_the_successor_alone",
            "test_rename_gives_the_original_id_if_claimed",
            "test_rename_leaves_a_taken_name_alone",
            "test_managed_object_keeps_its_data_if_claimed",
            "test_snapshots_come_and_go_if_claimed",
            "test_too_large_a_volume_leaves_nothing_behind",
            "test_one_volume_is_made_once_by_many",
            "test_storage_that_is_there_is_set_up_without_change",
        }
    )

    @pytest.fixture
    def backend(self, group: Group) -> Backend:
        def make_lv(pool: str, size: int, vg: str) -> list[str]:
            return ["--virtualsize", f"{size}b", "--type", "thin", "--thinpool", pool, vg]

        return presented(group, make_lv, lvm_type="thin", lvm_thin_pools=["pool"])


class TestThick(DriverConformance):
    EVERY_TIME = frozenset(
        {
            "test_size_is_exact",
            "test_stats_count_a_volume",
            "test_extend_keeps_data_and_adds_zeroes_if_claimed",
            "test_late_delete_object_leaves_the_successor_alone",
            "test_rename_repeated_gives_the_same_answer",
            "test_managed_object_is_deleted_as_a_volume_if_claimed",
            "test_snapshots_come_and_go_if_claimed",
            "test_too_large_a_volume_leaves_nothing_behind",
        }
    )

    @pytest.fixture
    def backend(self, group: Group) -> Backend:
        def make_lv(pool: str, size: int, vg: str) -> list[str]:
            return ["-Zn", "--size", f"{size}b", vg]

        return presented(group, make_lv)


class TestThickByTags(DriverConformance):
    EVERY_TIME = frozenset(
        {
            "test_a_volume_is_in_its_own_pool_only",
            "test_stats_count_a_volume",
            "test_native_migration_keeps_the_data_if_claimed",
            "test_native_migration_by_a_restarted_driver_repeats_too",
            "test_native_migration_never_replaces_another_object",
            "test_volume_in_use_moves_if_claimed",
            "test_recovery_finds_a_volume_that_did_not_move",
            "test_recovery_finds_a_volume_that_moved",
            "test_list_follows_a_native_migration",
        }
    )

    @pytest.fixture
    def backend(self, group: Group) -> Backend:
        def make_lv(pool: str, size: int, vg: str) -> list[str]:
            return ["-Zn", "--size", f"{size}b", vg, f"@{pool}"]

        return presented(group, make_lv, lvm_pv_tags=["fast", "slow"])
