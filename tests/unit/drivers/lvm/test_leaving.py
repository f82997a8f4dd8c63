"""What a volume leaves behind that pvmove moves: cleared as volume_clear says, whoever is killed when."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.drivers.lvm import support
from tests.unit.drivers.lvm.fake_lines import Failed
from tests.unit.drivers.lvm.fake_lvm import GARBAGE, MIB, Died, FakeLvm, Pv
from volmig import errors
from volmig.drivers.base import MigrationHost
from volmig.drivers.lvm import LvmDriver
from volmig.drivers.lvm.layouts import Extents
from volmig.drivers.lvm.leaving import Leavings
from volmig.drivers.lvm.reports import LogicalVolume
from volmig.model import Volume

OLD, NEW = "/dev/a", "/dev/b"
TAGS = ["fast", "slow"]
DATA = b"D" * (3 * MIB)
_LOOKING = frozenset({"lvs", "vgs", "pvs", "dmsetup", "lvm"})


@pytest.fixture
def lvm(tmp_path: Path) -> FakeLvm:
    return FakeLvm(tmp_path, pvs=[Pv(name=OLD, extents=64, tags=("fast",)), Pv(name=NEW, extents=64, tags=("slow",))])


def ready(lvm: FakeLvm, **changes: Any) -> LvmDriver:
    return support.ready(lvm, **({"lvm_pv_tags": TAGS} | changes))


def made(lvm: FakeLvm, driver: LvmDriver) -> Volume:
    volume = support.volume("conformance@lvm#fast", len(DATA))
    driver.create_volume(volume)
    lvm.path(volume.backend_name).write_bytes(DATA)
    return volume


def destination(driver: LvmDriver, pool: str = "slow") -> MigrationHost:
    stats = driver.get_volume_stats()
    found = next(each for each in stats["pools"] if each["pool_name"] == pool)
    return {"host": f"conformance@lvm#{pool}", "capabilities": {**stats, **found}}  # type: ignore[dict-item]


def migrate(driver: LvmDriver, volume: Volume) -> bool:
    return driver.migrate_volume(support.CTXT, volume, destination(driver))[0]


def left_on(lvm: FakeLvm, pv: str) -> bytes:
    """Return what the free extents of a physical volume hold."""
    device = next(each for each in lvm.pvs if each.name == pv)
    return b"".join(lvm.left.get((pv, n), b"") for n in lvm._free_extents(device))


def tags(lvm: FakeLvm, volume: Volume) -> list[str]:
    return lvm.lvs[volume.backend_name].tags


def require_clean(lvm: FakeLvm, volume: Volume) -> None:
    assert list(lvm.lvs) == [volume.backend_name]
    assert tags(lvm, volume) == []
    assert lvm.path(volume.backend_name).read_bytes() == DATA
    assert b"D" not in left_on(lvm, OLD) + left_on(lvm, NEW)


def fails(program: str, *words: str) -> Callable[[tuple[str, ...]], None]:
    def fail(command: tuple[str, ...]) -> None:
        if command[0] == program and set(words) <= set(command):
            raise Failed("it is broken")

    return fail


def dies_after(program: str, *words: str) -> Callable[[tuple[str, ...]], None]:
    def die(command: tuple[str, ...]) -> None:
        if program in command and set(words) <= set(command):
            raise Died

    return die


def left_uncleared(lvm: FakeLvm, **changes: Any) -> Volume:
    """Return a volume that has moved; nobody has cleared what it has left, since they were killed."""
    driver = ready(lvm, **changes)
    volume = made(lvm, driver)
    lvm.after = dies_after("pvmove")
    with pytest.raises(Died):
        migrate(driver, volume)
    lvm.after = lambda _: None
    assert left_on(lvm, OLD) == DATA
    assert len(tags(lvm, volume)) == 1
    return volume


def test_the_next_volume_shows_nothing_of_one_that_has_moved(lvm: FakeLvm) -> None:
    driver = ready(lvm)
    volume = made(lvm, driver)
    assert migrate(driver, volume)
    require_clean(lvm, volume)
    newer = support.volume("conformance@lvm#fast", len(DATA))
    driver.create_volume(newer)
    assert lvm.path(newer.backend_name).read_bytes() == bytes(len(DATA))


def test_what_is_discarded_is_discarded(lvm: FakeLvm) -> None:
    driver = ready(lvm, volume_clear="discard")
    volume = made(lvm, driver)
    assert migrate(driver, volume)
    require_clean(lvm, volume)
    assert left_on(lvm, OLD) == GARBAGE * len(DATA), "the fake does not forget what is discarded"


def test_nothing_is_cleared_nor_kept_on_record_when_that_is_not_wanted(lvm: FakeLvm) -> None:
    driver = ready(lvm, volume_clear="none")
    volume = made(lvm, driver)
    assert migrate(driver, volume)
    assert left_on(lvm, OLD) == DATA
    assert not lvm.commands("blkdiscard")
    assert not [command for command in lvm.commands("lvchange") if "--addtag" in command]


def test_what_was_promised_is_kept_when_it_is_not_wanted_any_more(lvm: FakeLvm) -> None:
    volume = left_uncleared(lvm)
    ready(lvm, volume_clear="none")
    require_clean(lvm, volume)


def test_no_more_is_cleared_than_of_a_volume_that_is_deleted(lvm: FakeLvm) -> None:
    driver = ready(lvm, volume_clear_size_bytes=MIB + 1)
    volume = made(lvm, driver)
    assert migrate(driver, volume)
    assert left_on(lvm, OLD) == bytes(2 * MIB) + b"D" * MIB


def killed_at(lvm: FakeLvm, when: str, number: int) -> bool:
    """Have a move killed before or after one of its commands that change something, and go on with it.

    :returns: False when there were no more commands than that.
    """
    driver = ready(lvm)
    volume = made(lvm, driver)
    count = 0

    def die(command: tuple[str, ...]) -> None:
        nonlocal count
        if not set(command) & _LOOKING:
            count += 1
            if count > number:
                raise Died

    setattr(lvm, when, die)
    try:
        was_killed = not migrate(driver, volume)
    except Died:
        was_killed = True
    setattr(lvm, when, lambda _: None)
    again = ready(lvm)
    has_moved, _ = again.recover_migration(support.CTXT, volume, destination(again))
    require_clean(lvm, volume)
    assert has_moved or migrate(again, volume)
    require_clean(lvm, volume)
    return was_killed


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_each_command(tmp_path: Path, when: str) -> None:
    """Whoever comes next, and asks where the volume is, or moves it, leaves nothing of it at its old place."""
    for number in range(100):
        pvs = [Pv(name=OLD, extents=8, tags=("fast",)), Pv(name=NEW, extents=8, tags=("slow",))]
        if not killed_at(FakeLvm(tmp_path / str(number), pvs=pvs), when, number):
            break
    assert 5 < number < 99


@pytest.mark.parametrize("step", ["lvcreate", "blkdiscard", "lvremove", "--deltag"])
def test_the_start_goes_on_with_what_was_killed(lvm: FakeLvm, step: str) -> None:
    driver = ready(lvm)
    volume = made(lvm, driver)
    lvm.after = dies_after(step)
    with pytest.raises(Died):
        migrate(driver, volume)
    lvm.after = lambda _: None
    ready(lvm)
    require_clean(lvm, volume)


def test_a_volume_that_has_died_on_the_way_is_cleared_before_it_is_removed(lvm: FakeLvm) -> None:
    """Also when the tags that told of it are gone."""
    volume = left_uncleared(lvm)
    lvm.after = dies_after("lvcreate")
    with pytest.raises(Died):
        ready(lvm)
    lvm.after = lambda _: None
    tags(lvm, volume).clear()
    ready(lvm)
    require_clean(lvm, volume)


def test_a_deletion_clears_what_was_left_before_nothing_tells_of_it(lvm: FakeLvm) -> None:
    driver = ready(lvm)
    volume = left_uncleared(lvm)
    driver.delete_volume(support.volume("conformance@lvm#slow", len(DATA), id=volume.id))
    assert lvm.lvs == {}
    assert b"D" not in left_on(lvm, OLD) + left_on(lvm, NEW)


def test_a_deletion_that_cannot_clear_what_was_left_fails(lvm: FakeLvm) -> None:
    driver = ready(lvm)
    volume = left_uncleared(lvm)
    moved = support.volume("conformance@lvm#slow", len(DATA), id=volume.id)
    lvm.before = _answering(lvm, fails("blkdiscard"))
    with pytest.raises(errors.DriverFailed):
        driver.delete_volume(moved)
    assert len(tags(lvm, volume)) == 1
    lvm.restore()  # type: ignore[attr-defined]
    driver.delete_volume(moved)
    assert lvm.lvs == {}
    assert b"D" not in left_on(lvm, OLD)


def _answering(lvm: FakeLvm, fail: Callable[[tuple[str, ...]], None]) -> Callable[[tuple[str, ...]], None]:
    """Have a command answer with an error, in place of what it does."""
    dispatch = lvm._dispatch

    def instead(words: tuple[str, ...]) -> str:
        fail(words)
        return dispatch(words)

    lvm._dispatch = instead  # type: ignore[method-assign]
    lvm.restore = lambda: setattr(lvm, "_dispatch", dispatch)  # type: ignore[attr-defined]
    return lambda _: None


@pytest.mark.parametrize("program", ["lvcreate", "blkdiscard", "lvremove"])
def test_a_move_does_not_fail_since_what_is_left_cannot_be_cleared(
    lvm: FakeLvm, program: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = ready(lvm)
    volume = made(lvm, driver)
    _answering(lvm, fails(program))
    with caplog.at_level(logging.WARNING):
        assert migrate(driver, volume)
    assert "not cleared yet" in caplog.text
    assert len(tags(lvm, volume)) == 1
    lvm.restore()  # type: ignore[attr-defined]
    ready(lvm)
    require_clean(lvm, volume)


def test_a_move_is_not_begun_when_no_record_can_be_kept(lvm: FakeLvm) -> None:
    driver = ready(lvm)
    volume = made(lvm, driver)
    _answering(lvm, fails("lvchange", "--addtag"))
    with pytest.raises(errors.TransferFailed):
        migrate(driver, volume)
    assert lvm.lvs[volume.backend_name].pv == OLD
    assert not [command for command in lvm.log if "--atomic" in command]


def test_what_others_were_given_meanwhile_is_theirs(lvm: FakeLvm, caplog: pytest.LogCaptureFixture) -> None:
    volume = left_uncleared(lvm)
    lvm.add("theirs", MIB, places=[(OLD, 1, 1)], pv=OLD)
    lvm.path("theirs").write_bytes(b"T" * MIB)
    with caplog.at_level(logging.WARNING):
        ready(lvm)
    assert lvm.path("theirs").read_bytes() == b"T" * MIB
    assert "theirs of vg may show old data" in caplog.text
    lvm._forget(lvm.lvs["theirs"])
    require_clean(lvm, volume)


def test_what_others_are_given_in_the_last_moment_is_theirs(lvm: FakeLvm) -> None:
    volume = left_uncleared(lvm)

    def take(command: tuple[str, ...]) -> None:
        if command[0] == "lvcreate":
            lvm.before = lambda _: None
            lvm.add("theirs", MIB, places=[(OLD, 0, 1)], pv=OLD)
            lvm.path("theirs").write_bytes(b"T" * MIB)

    lvm.before = take
    ready(lvm)
    assert lvm.path("theirs").read_bytes() == b"T" * MIB
    lvm._forget(lvm.lvs["theirs"])
    require_clean(lvm, volume)


def test_what_a_volume_has_again_is_forgotten_and_not_cleared(lvm: FakeLvm) -> None:
    """The move was recorded, and never took effect."""
    driver = ready(lvm)
    volume = made(lvm, driver)
    lvm.after = dies_after("lvchange", "--addtag")
    with pytest.raises(Died):
        migrate(driver, volume)
    lvm.after = lambda _: None
    again = ready(lvm)
    assert len(tags(lvm, volume)) == 1, "somebody may be about to begin"
    assert again.recover_migration(support.CTXT, volume, destination(again)) == (False, None)
    require_clean(lvm, volume)
    assert not lvm.commands("blkdiscard")


def test_nothing_is_cleared_of_other_extents_than_was_asked_for(lvm: FakeLvm) -> None:
    volume = left_uncleared(lvm)
    take = lvm._make_of

    def elsewhere(name: str, extents: int, line: Any) -> None:
        take(name, extents, line)
        lvm.lvs[name].places = [(OLD, 40, extents)]

    lvm._make_of = elsewhere  # type: ignore[method-assign]
    ready(lvm)
    assert not lvm.commands("blkdiscard")
    assert len(tags(lvm, volume)) == 1
    assert list(lvm.lvs) == [volume.backend_name]


def test_a_strangers_volume_of_that_name_is_left_alone(lvm: FakeLvm) -> None:
    driver = ready(lvm)
    volume = made(lvm, driver)
    name = f"clearing-{lvm.lvs[volume.backend_name].uuid}"
    lvm.add(name, MIB, pv=NEW)
    lvm.path(name).write_bytes(b"S" * MIB)
    assert migrate(driver, volume)
    ready(lvm)
    assert lvm.path(name).read_bytes() == b"S" * MIB
    assert len(tags(lvm, volume)) == 1


def test_the_start_leaves_to_others_what_they_are_clearing(lvm: FakeLvm) -> None:
    volume = left_uncleared(lvm)
    lvm.after = dies_after("lvcreate")
    with pytest.raises(Died):
        ready(lvm)
    lvm.after = lambda _: None
    name = f"clearing-{lvm.lvs[volume.backend_name].uuid}"
    with lvm.path(name).open("rb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        ready(lvm)
        assert name in lvm.lvs
        assert not lvm.commands("blkdiscard")
    ready(lvm)
    require_clean(lvm, volume)


def test_a_move_waits_for_others_that_clear_what_it_has_left(lvm: FakeLvm) -> None:
    """Another process has started when the volume to clear through had just been made."""
    driver = ready(lvm)
    volume = made(lvm, driver)

    def other(command: tuple[str, ...]) -> None:
        if command[0] == "lvcreate":
            lvm.after = lambda _: None
            ready(lvm)
            assert len(lvm.lvs) == 1

    lvm.after = other
    assert migrate(driver, volume)
    require_clean(lvm, volume)


def test_what_lies_where_nothing_can_be_made_stays_on_record(lvm: FakeLvm, caplog: pytest.LogCaptureFixture) -> None:
    """A physical volume that is being emptied takes nothing new; a volume is deleted all the same."""
    driver = ready(lvm)
    volume = made(lvm, driver)
    lvm.pvs[0].allocatable = False
    with caplog.at_level(logging.WARNING):
        assert migrate(driver, volume)
    assert "--allocatable n" in caplog.text
    assert len(tags(lvm, volume)) == 1
    lvm.pvs[0].allocatable = True
    ready(lvm)
    require_clean(lvm, volume)
    volume = left_uncleared(lvm)
    lvm.pvs[0].allocatable = False
    driver.delete_volume(support.volume("conformance@lvm#slow", len(DATA), id=volume.id))
    assert volume.backend_name not in lvm.lvs


def test_a_long_clearing_is_not_waited_for_at_the_start(lvm: FakeLvm, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = left_uncleared(lvm)
    monkeypatch.setattr("volmig.drivers.lvm.tidying._PATIENCE_SECONDS", 0.05)
    reader, writer = os.pipe()

    def wait(command: tuple[str, ...]) -> None:
        if command[0] == "blkdiscard":
            os.read(reader, 1)

    lvm.before = wait
    driver = ready(lvm)
    assert left_on(lvm, OLD) == b""
    os.close(writer)
    # Who needs it done waits for it.
    Leavings(group=driver._group).settle(driver._group.view(volume.backend_name).volumes[0])
    os.close(reader)
    require_clean(lvm, volume)


def test_a_move_that_failed_keeps_its_record_until_it_is_settled(lvm: FakeLvm) -> None:
    """A program that was left by it may still bring it to its end."""
    driver = ready(lvm)
    volume = made(lvm, driver)
    _answering(lvm, fails("timeout"))
    with pytest.raises(errors.TransferFailed):
        migrate(driver, volume)
    assert len(tags(lvm, volume)) == 1
    lvm.restore()  # type: ignore[attr-defined]
    assert driver.recover_migration(support.CTXT, volume, destination(driver)) == (False, None)
    require_clean(lvm, volume)


def recorded(driver: LvmDriver, volume: Volume) -> tuple[LogicalVolume, Leavings]:
    """Have on record what the volume has, and what a move that was taken back has filled elsewhere."""
    [lv] = driver._group.view(volume.backend_name).volumes
    leavings = Leavings(group=driver._group)
    leavings.record(lv, [Extents(pv=OLD, first=0, count=3)])
    leavings.record(lv, [Extents(pv=NEW, first=0, count=3)])
    return lv, leavings


def test_what_a_move_that_was_taken_back_has_filled_is_cleared_by_a_later_start(lvm: FakeLvm) -> None:
    driver = ready(lvm)
    volume = made(lvm, driver)
    recorded(driver, volume)
    lvm.left |= {(NEW, number): b"D" * MIB for number in range(3)}
    _answering(lvm, fails("lvcreate"))
    assert driver.recover_migration(support.CTXT, volume, destination(driver)) == (False, None)
    lvm.restore()  # type: ignore[attr-defined]
    assert len(tags(lvm, volume)) == 1
    ready(lvm)
    require_clean(lvm, volume)


def test_who_clears_late_leaves_the_record_of_the_next_move(lvm: FakeLvm) -> None:
    driver = ready(lvm)
    volume = made(lvm, driver)
    lv, leavings = recorded(driver, volume)
    lvm.left |= {(NEW, number): b"D" * MIB for number in range(3)}

    def record_again(command: tuple[str, ...]) -> None:
        if "blkdiscard" in command:
            lvm.before = lambda _: None
            leavings.record(lv, [Extents(pv=OLD, first=0, count=3)])

    lvm.before = record_again
    assert leavings.settle(lv)
    [kept] = tags(lvm, volume)
    assert "-0-3." in kept


def test_a_disk_that_cannot_be_cleared_keeps_no_other_waiting(lvm: FakeLvm) -> None:
    driver = ready(lvm)
    volumes = [made(lvm, driver) for _ in range(3)]
    _answering(lvm, fails("blkdiscard"))
    for volume in volumes:
        assert migrate(driver, volume)
    lvm.restore()  # type: ignore[attr-defined]
    bad = min(name for name in lvm.lvs if name.startswith("clearing-"))
    number = lvm.path(bad).stat().st_ino

    def fail(command: tuple[str, ...]) -> None:
        if "blkdiscard" in command and Path(command[-1]).stat().st_ino == number:
            raise Failed("it is broken")

    _answering(lvm, fail)
    ready(lvm)
    assert [name for name in lvm.lvs if name.startswith("clearing-")] == [bad]


def test_a_broken_disk_does_not_keep_a_volume_from_being_deleted(lvm: FakeLvm) -> None:
    driver = ready(lvm)
    volume = made(lvm, driver)
    _answering(lvm, fails("blkdiscard"))
    assert migrate(driver, volume)
    moved = support.volume("conformance@lvm#slow", len(DATA), id=volume.id)
    with pytest.raises(errors.DriverFailed) as refused:
        driver.delete_volume(moved)
    assert "--allocatable n" in str(refused.value.__notes__)
    lvm.restore()  # type: ignore[attr-defined]
    lvm.pvs[0].allocatable = False
    driver.delete_volume(moved)
    assert lvm.lvs == {}


def test_a_clearing_goes_on_where_it_was(lvm: FakeLvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volmig.drivers.lvm.clearing._STEP_BYTES", MIB)
    monkeypatch.setattr("volmig.drivers.lvm.clearing._NOTE_STEPS", 1)
    volume = left_uncleared(lvm)
    for _ in range(3):
        lvm.after = dies_after("lvchange", "--addtag")
        with pytest.raises(Died):
            ready(lvm)
    lvm.after = lambda _: None
    ready(lvm)
    offsets = [command[command.index("--offset") + 1] for command in lvm.log if "blkdiscard" in command]
    assert offsets == ["0", str(MIB), str(2 * MIB)]
    require_clean(lvm, volume)
