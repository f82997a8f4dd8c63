"""The driver ``lvm`` on a FAKE of LVM's programs: crashes between commands, late calls, damage, and hostile names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.drivers.lvm import support
from tests.unit.drivers.lvm.fake_lvm import GARBAGE, MIB, Died, FakeLvm, Lv, Pv
from volmig import errors
from volmig.drivers.lvm import LvmDriver, names
from volmig.model import Volume

HOST = "conformance@lvm#vg"
ODD = 3 * MIB // 2
NEW_ODD = 3 * MIB + 5


@pytest.fixture
def lvm(tmp_path: Path) -> FakeLvm:
    return FakeLvm(tmp_path)


def killed_everywhere(
    make: Callable[[], FakeLvm], work: Callable[[FakeLvm], None], then: Callable[[FakeLvm], None]
) -> int:
    """Kill *work* before and after each of its commands, have a new process look by *then*; return how often."""
    times = 0
    for when in ("before", "after"):
        number = 0
        while True:
            lvm, count = make(), 0

            def die(command: tuple[str, ...], at: int = number) -> None:
                nonlocal count
                if count == at:
                    raise Died
                count += 1

            setattr(lvm, when, die)
            try:
                work(lvm)
                finished = True
            except Died:
                finished = False
            lvm.before = lvm.after = lambda _: None
            then(lvm)
            times += 1
            if finished:
                break
            number += 1
    return times


def fresh(tmp_path: Path, prepare: Callable[[FakeLvm], None] = lambda _: None) -> Callable[[], FakeLvm]:
    count = iter(range(1000))

    def make() -> FakeLvm:
        lvm = FakeLvm(tmp_path / str(next(count)))
        prepare(lvm)
        return lvm

    return make


def tail_of(lvm: FakeLvm, volume: Volume, size: int | None = None) -> bytes:
    return lvm.path(volume.backend_name).read_bytes()[size or volume.size_bytes :]


# --- killed between any two commands ----------------------------------------------------------


def test_creation_killed_anywhere_ends_right_when_repeated(tmp_path: Path) -> None:
    volume = support.volume(HOST, ODD)

    def then(lvm: FakeLvm) -> None:
        present = lvm.lvs.get(volume.backend_name)
        if present is not None:
            assert not tail_of(lvm, volume).strip(b"\0"), "a volume has its name, and shows old data"
        support.ready(lvm).create_volume(volume)
        assert sorted(lvm.lvs) == [volume.backend_name]
        assert not tail_of(lvm, volume).strip(b"\0")

    def work(lvm: FakeLvm) -> None:
        support.ready(lvm).create_volume(volume)

    assert killed_everywhere(fresh(tmp_path), work, then) > 10


def test_creation_killed_anywhere_leaves_nothing_after_a_deletion(tmp_path: Path) -> None:
    volume = support.volume(HOST, ODD)

    def then(lvm: FakeLvm) -> None:
        driver = support.driver(lvm)
        driver.storage_identity = lvm.uuid
        driver.do_setup(support.CTXT)
        driver.delete_volume(volume)
        assert lvm.lvs == {}

    killed_everywhere(fresh(tmp_path), lambda lvm: support.ready(lvm).create_volume(volume), then)


def test_extension_killed_anywhere_ends_right_when_repeated(tmp_path: Path) -> None:
    volume = support.volume(HOST, ODD)
    data = b"d" * ODD

    def prepare(lvm: FakeLvm) -> None:
        support.ready(lvm).create_volume(volume)
        with lvm.path(volume.backend_name).open("r+b") as device:
            device.write(data)

    def then(lvm: FakeLvm) -> None:
        support.ready(lvm).extend_volume(volume, NEW_ODD)
        assert lvm.lvs[volume.backend_name].size == 4 * MIB
        assert lvm.lvs[volume.backend_name].tags == []
        assert lvm.path(volume.backend_name).read_bytes()[:ODD] == data
        assert not tail_of(lvm, volume, NEW_ODD).strip(b"\0")

    killed_everywhere(fresh(tmp_path, prepare), lambda lvm: support.ready(lvm).extend_volume(volume, NEW_ODD), then)


def test_deletion_killed_anywhere_ends_right_when_repeated(tmp_path: Path) -> None:
    volume = support.volume(HOST, ODD)

    def then(lvm: FakeLvm) -> None:
        support.ready(lvm).delete_volume(volume)
        assert lvm.lvs == {}

    prepare = fresh(tmp_path, lambda lvm: support.ready(lvm).create_volume(volume))
    killed_everywhere(prepare, lambda lvm: support.ready(lvm).delete_volume(volume), then)


def test_rename_killed_anywhere_gives_the_same_answer_when_repeated(tmp_path: Path) -> None:
    copy = support.volume(HOST, ODD)
    original = replace(support.volume("elsewhere@x#y", ODD))

    def work(lvm: FakeLvm) -> None:
        support.ready(lvm).update_migrated_volume(support.CTXT, original, copy, "available")

    def then(lvm: FakeLvm) -> None:
        update = support.ready(lvm).update_migrated_volume(support.CTXT, original, copy, "available")
        assert update["_name_id"] is None
        assert sorted(lvm.lvs) == [original.backend_name]

    killed_everywhere(fresh(tmp_path, lambda lvm: support.ready(lvm).create_volume(copy)), work, then)


# --- late calls, and others at work -------------------------------------------------------------


def test_a_late_extension_does_not_touch_what_was_written_since(lvm: FakeLvm) -> None:
    """It has hung before it made a change; meanwhile the volume was extended by others, and written to."""
    driver = support.ready(lvm)
    volume = support.volume(HOST, ODD)
    driver.create_volume(volume)
    other = support.ready(lvm)
    written = b"w" * (4 * MIB)

    def overtake(command: tuple[str, ...]) -> None:
        if command[0] == "lvchange":
            lvm.before = lambda _: None
            other.extend_volume(volume, NEW_ODD)
            other.extend_volume(replace(volume, size_bytes=NEW_ODD), 4 * MIB)
            lvm.path(volume.backend_name).write_bytes(written)

    lvm.before = overtake
    driver.extend_volume(volume, NEW_ODD)
    assert lvm.path(volume.backend_name).read_bytes() == written
    assert lvm.lvs[volume.backend_name].tags == []


def test_a_late_deletion_does_not_hit_a_successor(lvm: FakeLvm) -> None:
    driver = support.ready(lvm)
    volume = support.volume(HOST, MIB)
    driver.create_volume(volume)
    identity = driver.identify_object(volume)
    driver.delete_volume(volume)
    driver.create_volume(volume)
    driver.delete_object(volume, identity)
    assert driver.volume_exists(volume)


def test_a_successor_made_just_before_the_removal_stays(lvm: FakeLvm) -> None:
    driver = support.ready(lvm, volume_clear="none")
    volume = support.volume(HOST, MIB)
    driver.create_volume(volume)

    def exchange(command: tuple[str, ...]) -> None:
        if command[0] == "lvremove":
            lvm.lvs.clear()
            lvm.add(volume.backend_name, MIB)

    lvm.before = exchange
    driver.delete_volume(volume)
    assert sorted(lvm.lvs) == [volume.backend_name]


def test_a_snapshot_made_just_before_the_removal_keeps_the_volume(lvm: FakeLvm) -> None:
    driver = support.ready(lvm, volume_clear="none")
    volume = support.volume(HOST, MIB)
    driver.create_volume(volume)

    def snap(command: tuple[str, ...]) -> None:
        if command[0] == "lvremove":
            lvm.before = lambda _: None
            driver.create_snapshot(volume, "5ad9c2a6-0000-4000-8000-000000000000")

    lvm.before = snap
    with pytest.raises(errors.VolumeHasSnapshots):
        driver.delete_volume(volume)
    assert len(lvm.lvs) == 2


def test_half_made_volumes_of_dead_processes_are_removed_at_set_up(lvm: FakeLvm) -> None:
    half = names.making_name("5ad9c2a6-0000-4000-8000-000000000000")
    lvm.add(half, MIB)
    lvm.add("making-love", MIB)
    support.ready(lvm)
    assert sorted(lvm.lvs) == ["making-love"]


# --- the volume group is not what it was --------------------------------------------------------------


def _is_another(lvm: FakeLvm) -> None:
    lvm.uuid = "other-uuid"


def _is_gone(lvm: FakeLvm) -> None:
    lvm.exists = False


def _is_partial(lvm: FakeLvm) -> None:
    lvm.missing = 1


def _is_exported(lvm: FakeLvm) -> None:
    lvm.exported = True


def _is_foreign(lvm: FakeLvm) -> None:
    lvm.system_id = "otherhost"


def _is_read_only(lvm: FakeLvm) -> None:
    lvm.read_only = True


@pytest.mark.parametrize("damage", [_is_another, _is_gone, _is_partial, _is_exported, _is_foreign, _is_read_only])
def test_a_group_that_may_not_be_used_is_not_touched(lvm: FakeLvm, damage: Callable[[FakeLvm], None]) -> None:
    driver = support.ready(lvm)
    volume = support.volume(HOST, MIB)
    driver.create_volume(volume)
    damage(lvm)
    lvm.log.clear()
    restarted = support.driver(lvm)
    restarted.storage_identity = "fake-vg-uuid"
    with pytest.raises(errors.BackendDown):
        restarted.do_setup(support.CTXT)
    other = support.volume(HOST, MIB)
    for call in (
        lambda: driver.create_volume(other),
        lambda: driver.delete_volume(volume),
        lambda: driver.extend_volume(volume, 2 * MIB),
        lambda: driver.volume_exists(volume),
        lambda: driver.create_snapshot(volume, "s"),
    ):
        with pytest.raises(errors.BackendDown):
            call()
    assert driver.get_volume_stats(refresh=True)["down_reason"]
    assert {command[0] for command in lvm.log} <= {"lvs", "vgs", "pvs", "lvm"}


# --- use, clearing, room ---------------------------------------------------------------------------------


def test_an_open_volume_is_neither_cleared_nor_removed(lvm: FakeLvm) -> None:
    driver = support.ready(lvm)
    volume = support.volume(HOST, MIB)
    driver.create_volume(volume)
    lvm.lvs[volume.backend_name].held = True
    with pytest.raises(errors.VolumeInUse):
        driver.delete_volume(volume)
    assert lvm.path(volume.backend_name).read_bytes() == GARBAGE * MIB


def test_a_volume_is_cleared_before_its_room_is_given_away(lvm: FakeLvm) -> None:
    driver = support.ready(lvm, volume_clear_ionice="-c3")
    volume = support.volume(HOST, 2 * MIB)
    driver.create_volume(volume)
    seen: list[bytes] = []

    def look(command: tuple[str, ...]) -> None:
        if command[0] == "lvremove":
            seen.append(lvm.path(volume.backend_name).read_bytes())

    lvm.before = look
    driver.delete_volume(volume)
    assert seen == [bytes(2 * MIB)]
    assert lvm.commands("ionice")[0][:3] == ("ionice", "-c3", "blkdiscard")


def test_a_full_group_says_what_is_needed_and_what_is_left(lvm: FakeLvm) -> None:
    driver = support.ready(lvm)
    driver.create_volume(support.volume(HOST, 200 * MIB))
    with pytest.raises(errors.DiskFull) as caught:
        driver.create_volume(support.volume(HOST, 100 * MIB))
    assert caught.value.fields["needed"] == 100 * MIB
    assert caught.value.fields["free"] == 56 * MIB


@pytest.mark.parametrize(("ratio", "fits"), [(1.0, False), (2.0, True)])
def test_a_thin_pool_promises_no_more_than_its_ratio(lvm: FakeLvm, ratio: float, fits: bool) -> None:
    lvm.make_pool("vg-pool", 100 * MIB)
    driver = support.ready(lvm, lvm_type="thin", max_over_subscription_ratio=ratio)
    host = "conformance@lvm#vg-pool"
    driver.create_volume(support.volume(host, 80 * MIB))
    if fits:
        driver.create_volume(support.volume(host, 80 * MIB))
        return
    with pytest.raises(errors.PoolFull):
        driver.create_volume(support.volume(host, 80 * MIB))


@pytest.mark.parametrize("state", [{"data_percent": 100.0}, {"metadata_percent": 99.5}])
def test_a_thin_pool_without_room_takes_no_volume(lvm: FakeLvm, state: dict[str, float]) -> None:
    lvm.make_pool("vg-pool", 100 * MIB, **state)
    driver = support.ready(lvm, lvm_type="thin")
    with pytest.raises(errors.PoolFull):
        driver.create_volume(support.volume("conformance@lvm#vg-pool", MIB))
    assert driver.get_volume_stats()["pools"][0]["free_capacity_bytes"] == 0


def test_a_pool_that_does_not_zero_is_not_said_to(lvm: FakeLvm) -> None:
    lvm.make_pool("vg-pool", 100 * MIB, zeroes=False)
    driver = support.ready(lvm, lvm_type="thin")
    assert "ZEROED_ON_CREATE" not in {capability.name for capability in driver.capabilities}


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "-f",
            "--force",
            "a/b",
            "/dev/sda",
            "a b",
            "a\n",
            "a\0",
            "ä",
            'a"',
            "a' || lv_name=~.",
            "@tag",
        ),
        *("x" * 128, "snapshot1", "pvmove0", "a_tdata", "a_rimage_0", "lvol0_pmspare", "a\\", "$(id)", "a:b", "*"),
    ],
)
def test_names_that_mean_something_else_are_refused(lvm: FakeLvm, name: str) -> None:
    driver = support.ready(lvm)
    lvm.log.clear()
    volume = support.volume(HOST, MIB, provider_id=name)
    for call in (driver.delete_volume, driver.volume_exists, driver.identify_object):
        with pytest.raises(errors.UnsafePath):
            call(volume)
    with pytest.raises(errors.NotManageable):
        driver.manage_existing_get_size(volume, {"source-name": name})
    assert lvm.log == []


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"lvm_volume_group": ""}, "lvm_volume_group"),
        ({"lvm_volume_group": "a/b"}, "lvm_volume_group"),
        ({"lvm_volume_group": "--all"}, "lvm_volume_group"),
        ({"lvm_type": "thin", "lvm_thin_pools": ["a_tdata"]}, "lvm_thin_pools"),
        ({"lvm_type": "thin", "lvm_thin_pools": ["a", "a"]}, "lvm_thin_pools"),
        ({"lvm_type": "thin", "lvm_pv_tags": ["a"]}, "lvm_pv_tags"),
        ({"lvm_thin_pools": ["a"]}, "lvm_thin_pools"),
        ({"lvm_pv_tags": ["vg"]}, "lvm_pv_tags"),
        ({"lvm_pv_tags": ["@fast"]}, "lvm_pv_tags"),
        ({"lvm_root_helper": 'sudo "'}, "lvm_root_helper"),
        ({"lvm_loopback_file": "relative"}, "lvm_loopback_file"),
    ],
)
def test_options_that_cannot_be_are_refused(lvm: FakeLvm, changes: dict[str, object], option: str) -> None:
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        support.driver(lvm, **changes).do_setup(support.CTXT)
    assert caught.value.fields["option"] == option
    assert lvm.log == []


# --- taking over -------------------------------------------------------------------------------------------------


def _manage(driver: LvmDriver, reference: str) -> int:
    return driver.manage_existing_get_size(support.volume(HOST, MIB), {"source-name": reference})


@pytest.mark.parametrize("reference", ["old", "vg/old", "/dev/vg/old"])
def test_a_volume_is_taken_over_by_any_of_its_names(lvm: FakeLvm, reference: str) -> None:
    lvm.add("old", 2 * MIB)
    assert _manage(support.ready(lvm), reference) == 2 * MIB


@pytest.mark.parametrize("reference", ["other/old", "/dev/other/old", "/old", "/dev/old", "gone", "vg/x/old"])
def test_what_lies_elsewhere_is_not_taken_over(lvm: FakeLvm, reference: str) -> None:
    lvm.add("old", 2 * MIB)
    with pytest.raises(errors.NotManageable):
        _manage(support.ready(lvm), reference)


@pytest.mark.parametrize("kind", ["pool", "thin", "cow", "origin"])
def test_what_is_no_volume_of_this_kind_is_not_taken_over(lvm: FakeLvm, kind: str) -> None:
    lvm.add("old", MIB, kind="thick" if kind == "origin" else kind)
    if kind == "origin":
        lvm.add("snap", MIB, kind="cow", origin="old")
    if kind == "cow":
        lvm.lvs["old"] = Lv(name="old", size=MIB, kind="cow", origin="gone", uuid=lvm.lvs["old"].uuid)
    with pytest.raises(errors.NotManageable):
        _manage(support.ready(lvm), "old")


def test_an_image_is_not_taken_over_as_raw(lvm: FakeLvm) -> None:
    lvm.add("old", MIB)
    with lvm.path("old").open("r+b") as device:
        device.write(b"QFI\xfb")
    with pytest.raises(errors.UnsupportedFormat):
        _manage(support.ready(lvm), "old")


def test_the_prefix_comes_before_every_command(lvm: FakeLvm) -> None:
    driver = support.ready(lvm, lvm_root_helper="sudo -n")
    driver.create_volume(support.volume(HOST, ODD))
    assert {command[:2] for command in lvm.log} == {("sudo", "-n")}


def test_a_volume_over_two_pools_is_in_doubt(tmp_path: Path) -> None:
    pvs = [Pv(name="/dev/a", extents=64, tags=("fast",)), Pv(name="/dev/b", extents=64, tags=("slow",))]
    lvm = FakeLvm(tmp_path, pvs=pvs)
    driver = support.ready(lvm, lvm_pv_tags=["fast", "slow"])
    volume = support.volume("conformance@lvm#fast", MIB)
    driver.create_volume(volume)
    lvm.lvs[volume.backend_name].pv = "/dev/a(0),/dev/b"
    with pytest.raises(errors.LocationDoubtful):
        driver.volume_exists(volume)
    with pytest.raises(errors.LocationDoubtful):
        driver.delete_volume(volume)
