"""Room, clearing and half-made things of the LVM driver, on a fake LVM."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.unit.drivers.lvm import support
from tests.unit.drivers.lvm.fake_lvm import MIB, Died, FakeLvm, Pv
from volmig import errors
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.group import is_for_room
from volmig.drivers.lvm.snapshots import room_for_all

HOST = "conformance@lvm#vg"
THIN_HOST = "conformance@lvm#pool"
THIN = {"lvm_type": "thin", "lvm_thin_pools": ["pool"]}
SNAPSHOT = "5ad9c2a6-0000-4000-8000-00000000000{}"
SNAP = f"snap-{SNAPSHOT.format(0)}"


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program, **_: f"/usr/sbin/{program}")


@pytest.fixture
def lvm(tmp_path: Path) -> FakeLvm:
    return FakeLvm(tmp_path)


# --- thick snapshots ---------------------------------------------------------------------------


@pytest.mark.parametrize("free", [1, 5, 10])
def test_a_thick_snapshot_that_could_overflow_is_not_made(tmp_path: Path, free: int) -> None:
    lvm = FakeLvm(tmp_path, pvs=[Pv(name="/dev/a", extents=10 + free)])
    driver, volume = support.ready(lvm), support.volume(HOST, 10 * MIB)
    driver.create_volume(volume)
    with pytest.raises(errors.PoolFull) as caught:
        driver.create_snapshot(volume, SNAPSHOT.format(0))
    assert caught.value.fields["needed"] > 10 * MIB
    assert caught.value.fields["free"] == free * MIB
    assert SNAP not in lvm.lvs


def test_a_thick_snapshot_has_room_for_every_change(lvm: FakeLvm) -> None:
    driver, volume = support.ready(lvm), support.volume(HOST, 10 * MIB)
    driver.create_volume(volume)
    driver.create_snapshot(volume, SNAPSHOT.format(0))
    # A header, 2560 chunks, and 11 chunks that describe 256 of them each: the last one ends the list.
    assert lvm.lvs[SNAP].cow_extents * MIB >= (1 + 2560 + 11) * 4096


@pytest.mark.parametrize("extent", [4096, MIB, 4 * MIB])
@pytest.mark.parametrize("size", [4096, MIB, 256 * 4096, 10 * 1024 * MIB, 10 * 1024 * MIB + 512])
def test_the_room_of_a_snapshot_is_no_less_than_its_layout(size: int, extent: int) -> None:
    chunks = -(-size // 4096)
    assert room_for_all(size, extent) * extent >= 4096 * (1 + chunks + chunks // 256 + 1)


def _snapped(lvm: FakeLvm, **options: object) -> tuple[support.LvmDriver, support.Volume]:
    driver, volume = support.ready(lvm, **options), support.volume(HOST, 10 * MIB)
    driver.create_volume(volume)
    driver.create_snapshot(volume, SNAPSHOT.format(0))
    return driver, volume


def _held_at_removal(lvm: FakeLvm) -> list[bytes]:
    """Return a list that gets what the snapshot's volume holds whenever something is removed."""
    held: list[bytes] = []

    def before(words: tuple[str, ...]) -> None:
        if words[0] == "lvremove" and SNAP in lvm.lvs:
            assert lvm.lvs[SNAP].kind == "thick"
            held.append(lvm.path(SNAP).read_bytes())

    lvm.before = before
    return held


def test_what_a_thick_snapshot_has_kept_is_cleared(lvm: FakeLvm) -> None:
    driver, volume = _snapped(lvm)
    held = _held_at_removal(lvm)
    size = lvm.lvs[SNAP].cow_extents * MIB
    driver.delete_snapshot(volume, SNAPSHOT.format(0))
    assert held == [bytes(size)]
    assert set(lvm.lvs) == {f"volume-{volume.id}"}
    driver.delete_volume(volume)


def test_a_snapshot_is_not_split_when_nothing_is_to_be_cleared(lvm: FakeLvm) -> None:
    driver, volume = _snapped(lvm, volume_clear="none")
    driver.delete_snapshot(volume, SNAPSHOT.format(0))
    assert not lvm.commands("lvconvert")
    assert not lvm.commands("blkdiscard")
    assert SNAP not in lvm.lvs


@pytest.mark.parametrize("program", ["lvconvert", "blkdiscard", "lvremove"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("then", ["delete", "make"])
def test_a_killed_deletion_of_a_thick_snapshot_is_gone_on_with(
    lvm: FakeLvm, program: str, moment: str, then: str
) -> None:
    driver, volume = _snapped(lvm)

    def die(words: tuple[str, ...]) -> None:
        if words[0] == program:
            raise Died

    setattr(lvm, moment, die)
    with pytest.raises(Died):
        driver.delete_snapshot(volume, SNAPSHOT.format(0))
    lvm.after = lambda _: None
    held = _held_at_removal(lvm)
    if then == "make":
        driver.create_snapshot(volume, SNAPSHOT.format(0))
        assert lvm.lvs[SNAP].kind == "cow"
    driver.delete_snapshot(volume, SNAPSHOT.format(0))
    assert not any(any(data) for data in held)
    assert set(lvm.lvs) == {f"volume-{volume.id}"}


def test_an_open_snapshot_is_neither_split_nor_cleared(lvm: FakeLvm) -> None:
    driver, volume = _snapped(lvm)
    lvm.lvs[SNAP].held = True
    with pytest.raises(errors.StorageBusy):
        driver.delete_snapshot(volume, SNAPSHOT.format(0))
    assert lvm.lvs[SNAP].kind == "cow"
    assert not lvm.commands("blkdiscard")
    lvm.lvs[SNAP].held = False
    driver.delete_snapshot(volume, SNAPSHOT.format(0))
    assert SNAP not in lvm.lvs


def test_a_snapshot_without_a_device_is_not_removed_uncleared(lvm: FakeLvm) -> None:
    driver, volume = _snapped(lvm)

    def hide(words: tuple[str, ...]) -> None:
        if words[0] == "lvconvert":
            lvm.path(SNAP).rename(lvm.path("hidden"))

    lvm.after = hide
    with pytest.raises(errors.StorageBusy, match="is not there"):
        driver.delete_snapshot(volume, SNAPSHOT.format(0))
    assert SNAP in lvm.lvs


# --- thin pools ----------------------------------------------------------------------------------


def test_a_thin_snapshot_is_refused_when_the_pool_has_promised_enough(lvm: FakeLvm) -> None:
    lvm.make_pool("pool", 100 * MIB)
    driver, volume = support.ready(lvm, **THIN, max_over_subscription_ratio="2.0"), support.volume(THIN_HOST, 90 * MIB)
    driver.create_volume(volume)
    driver.create_snapshot(volume, SNAPSHOT.format(0))
    with pytest.raises(errors.PoolFull) as caught:
        driver.create_snapshot(volume, SNAPSHOT.format(1))
    assert caught.value.fields["needed"] == 90 * MIB
    assert caught.value.fields["free"] == 20 * MIB
    driver.create_snapshot(volume, SNAPSHOT.format(0))  # is there


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"metadata_percent": 98.5}, errors.PoolFull),
        ({"data_percent": 100.0, "health": "D"}, errors.PoolFull),
        ({"health": "D"}, errors.PoolFull),
        ({"metadata_percent": 100.0, "health": "M"}, errors.PoolFull),
        ({"health": "M"}, errors.BackendDown),
        ({"health": "F"}, errors.BackendDown),
    ],
)
@pytest.mark.parametrize("what", ["volume", "snapshot"])
def test_what_is_wrong_with_a_thin_pool_is_told_for_what_it_is(
    lvm: FakeLvm, changes: dict[str, object], error: type[errors.VolmigError], what: str
) -> None:
    pool = lvm.make_pool("pool", 100 * MIB)
    driver, volume = support.ready(lvm, **THIN), support.volume(THIN_HOST, 9 * MIB)
    driver.create_volume(volume)
    for name, value in changes.items():
        setattr(pool, name, value)
    more = support.volume(THIN_HOST, MIB)
    make = {
        "volume": lambda: driver.create_volume(more),
        "snapshot": lambda: driver.create_snapshot(volume, SNAPSHOT.format(0)),
    }[what]
    with pytest.raises(error):
        make()
    (stats,) = driver.get_volume_stats()["pools"]
    if error is errors.PoolFull:
        assert stats["free_capacity_bytes"] == 0
    assert stats["read_only"] is (pool.health in {"M", "F"})


@pytest.mark.parametrize(("zeroes", "clear", "warned"), [(False, "zero", 1), (True, "zero", 0), (False, "none", 0)])
def test_a_pool_that_does_not_zero_is_used_with_a_warning(
    lvm: FakeLvm, caplog: pytest.LogCaptureFixture, zeroes: bool, clear: str, warned: int
) -> None:
    lvm.make_pool("pool", 100 * MIB, zeroes=zeroes)
    driver = support.ready(lvm, **THIN, volume_clear=clear)
    with caplog.at_level(logging.WARNING):
        driver.check_for_setup_error()
    assert ["vg/pool" in record.getMessage() for record in caplog.records] == [True] * warned


# --- making thin pools ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["thick", "pool"])
def test_what_a_killed_setup_has_left_of_a_thin_pool_is_no_obstacle(lvm: FakeLvm, kind: str) -> None:
    def die(words: tuple[str, ...]) -> None:
        if words[0] == "lvcreate":
            (left,) = lvm.lvs.values()
            if kind == "thick":  # as LVM leaves it when it is killed before the pool is one
                lvm.add(left.name, left.size)
            raise Died

    lvm.after = die
    with pytest.raises(Died):
        support.driver(lvm, **THIN).setup_storage(support.CTXT)
    assert set(lvm.lvs) == {"volmig-new-pool"}
    assert lvm.lvs["volmig-new-pool"].kind == kind
    lvm.after = lambda _: None
    driver = support.driver(lvm, **THIN)
    driver.setup_storage(support.CTXT)
    driver.do_setup(support.CTXT)
    driver.check_for_setup_error()
    assert {lv.name: lv.kind for lv in lvm.lvs.values()} == {"pool": "pool"}


@pytest.mark.parametrize("use", ["open", "snapshots", "thin", "volumes"])
def test_what_has_the_name_of_a_pool_to_be_made_is_kept_when_it_is_used(lvm: FakeLvm, use: str) -> None:
    kind = {"thin": "thin", "volumes": "pool"}.get(use, "thick")
    lvm.add("volmig-new-pool", MIB, kind=kind, held=use == "open")
    if use == "snapshots":
        lvm.add("more", MIB, kind="cow", origin="volmig-new-pool")
    elif use == "volumes":
        lvm.add("more", MIB, kind="thin", pool="volmig-new-pool")
    names = set(lvm.lvs)
    with pytest.raises(errors.BackendSetupFailed, match=r"vg/volmig-new-pool.*in use"):
        support.driver(lvm, **THIN).setup_storage(support.CTXT)
    assert set(lvm.lvs) == names


def test_a_plain_volume_of_a_pools_name_is_named_with_what_to_do(lvm: FakeLvm) -> None:
    lvm.add("pool", 4 * MIB)
    with pytest.raises(errors.BackendSetupFailed, match="vg/pool is not a thin pool") as caught:
        support.driver(lvm, **THIN).setup_storage(support.CTXT)
    assert "lvremove vg/pool" in caught.value.hint
    assert "pool" in lvm.lvs


# --- what errors mean ------------------------------------------------------------------------------


def test_a_warning_of_room_is_no_lack_of_room() -> None:
    warning = "  WARNING: Sum of all thin volume sizes exceeds the amount of free space in volume group\n"
    assert not is_for_room(CommandFailed(["lvcreate"], 5, warning + "  Aborting. Failed to activate thin.\n"))
    assert is_for_room(CommandFailed(["lvcreate"], 5, warning + "  insufficient free space: 9 extents needed\n"))


def test_a_half_made_volume_without_a_device_is_told_as_such(lvm: FakeLvm) -> None:
    def hide(words: tuple[str, ...]) -> None:
        if words[0] == "lvcreate":
            lvm.path(words[words.index("--name") + 1]).rename(lvm.path("hidden"))

    lvm.after = hide
    volume = support.volume(HOST, MIB + 512)
    with pytest.raises(errors.StorageBusy, match=f"making-{volume.id} is not there") as caught:
        support.ready(lvm).create_volume(volume)
    assert "vgmknodes vg" in caught.value.hint
    assert f"making-{volume.id}" in lvm.lvs
