"""Moving a logical volume to other physical volumes: what is begun, waited for, resumed and taken back.

LVM is a fake here (``fake_pvmove``); tests/vm/test_lvm_moves.py does it with the real one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.drivers.lvm.fake_pvmove import EXTENT_BYTES, TIMED_OUT, FakeLvm, done, failed
from volmig import errors
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.layouts import Extents, Layout, Segment
from volmig.drivers.lvm.moves import PhysicalMove
from volmig.drivers.lvm.pvmove import pvmove_at_work
from volmig.model import Volume, VolumeStatus

FAST, SLOW = ["/dev/f1", "/dev/f2"], ["/dev/s1", "/dev/s2"]
OTHER = "/dev/o1"


def storage(places: dict[str, int], *, capacity: int = 20, **fields: Any) -> FakeLvm:
    return FakeLvm(dict.fromkeys((*FAST, *SLOW, OTHER), capacity), {"lv": places, "else": {"/dev/f1": 4}}, **fields)


def move(lvm: FakeLvm, *, at_work: Iterator[bool] | None = None, lv: str = "lv") -> PhysicalMove:
    working = itertools.repeat(False) if at_work is None else itertools.chain(at_work, itertools.repeat(False))
    ticks = itertools.count(step=1.0)
    return PhysicalMove(
        lvm.commands(),
        volume=Volume(
            id="3f0b1d0e-0000-4000-8000-000000000001",
            name="a",
            size_bytes=EXTENT_BYTES,
            host="here@lvm#fast",
            status=VolumeStatus.AVAILABLE,
        ),
        vg="v",
        lv=lv,
        destination="here@lvm#slow",
        source_pvs=FAST,
        destination_pvs=SLOW,
        at_work=lambda *_: next(working),
        compare=lambda _: lvm.difference,
        pause=lambda _: None,
        clock=lambda: next(ticks),
    )


def recorded(lvm: FakeLvm, mover: PhysicalMove) -> list[tuple[str, int]]:
    """Have the records of a move kept among the calls of pvmove; return what they are of."""
    found: list[tuple[str, int]] = []

    def record(extents: Sequence[Extents]) -> None:
        found.extend((each.pv, each.count) for each in extents)
        lvm.calls.append("record " + " ".join(each.pv for each in extents))

    mover._record = record
    return found


def at(lvm: FakeLvm) -> dict[str, int]:
    return {pv: count for pv, count in lvm.volumes["lv"].items() if count}


@pytest.mark.parametrize(
    "before",
    [
        {"/dev/f1": 6},
        {"/dev/f1": 6, "/dev/f2": 3},
        {"/dev/f1": 2, "/dev/s1": 4},
        {OTHER: 5, "/dev/f2": 1},
    ],
)
def test_everything_goes_to_the_destination(before: dict[str, int]) -> None:
    lvm = storage(dict(before))
    move(lvm).carry_out()
    assert sum(at(lvm).values()) == sum(before.values())
    assert set(at(lvm)) <= set(SLOW)
    assert lvm.volumes["else"] == {"/dev/f1": 4}
    assert len(lvm.calls) == 2 * len([pv for pv in before if pv not in SLOW])
    assert all(" --name v/lv " in call for call in lvm.calls), "one that names no volume moves all of the disk"


def test_what_is_there_already_is_left_alone() -> None:
    lvm = storage({"/dev/s1": 6})
    move(lvm).carry_out()
    assert not lvm.calls


def test_an_interrupted_move_goes_on() -> None:
    lvm = storage({"/dev/f1": 6})
    lvm.begin("lv", "/dev/f1", "/dev/s2")
    move(lvm).carry_out()
    assert at(lvm) == {"/dev/s2": 6}
    assert not lvm.moves


def test_room_that_an_interrupted_move_has_already_is_not_asked_for_again() -> None:
    lvm = storage({"/dev/f1": 6}, capacity=12)
    lvm.capacity |= {"/dev/s1": 6, "/dev/s2": 0}
    lvm.begin("lv", "/dev/f1", "/dev/s1")
    move(lvm).carry_out()
    assert at(lvm) == {"/dev/s1": 6}


def test_without_room_nothing_is_begun() -> None:
    lvm = storage({"/dev/f1": 6})
    lvm.capacity |= {"/dev/s1": 3, "/dev/s2": 2}
    with pytest.raises(errors.DiskFull):
        move(lvm).carry_out()
    assert not lvm.calls


def test_room_that_is_taken_in_the_last_moment() -> None:
    lvm = storage({"/dev/f1": 6})

    def take() -> None:
        lvm.capacity |= {"/dev/s1": 0, "/dev/s2": 0}

    lvm.before_pvmove = [take]
    with pytest.raises(errors.DiskFull):
        move(lvm).carry_out()
    assert at(lvm) == {"/dev/f1": 6}


def test_a_missing_physical_volume_stops_it_before_it_begins() -> None:
    lvm = storage({"/dev/f1": 6}, missing_pvs=1)
    with pytest.raises(errors.BackendDown, match="missing"):
        move(lvm).carry_out()
    assert not lvm.calls


def test_a_volume_that_is_not_there() -> None:
    lvm = storage({"/dev/f1": 6})
    for call in (move(lvm, lv="no").carry_out, move(lvm, lv="no").settle):
        with pytest.raises(errors.VolumeObjectMissing):
            call()


@pytest.mark.parametrize(
    ("fields", "telling"),
    [({"segtypes": {"lv": "raid1"}}, "raid1"), ({"roles": {"lv": "public,origin,thickorigin"}}, "snapshots")],
)
def test_what_pvmove_cannot_move_as_one_is_refused(fields: dict[str, Any], telling: str) -> None:
    lvm = storage({"/dev/f1": 6}, **fields)
    assert telling in move(lvm).obstacle()
    with pytest.raises(errors.UnsupportedOperation, match=telling):
        move(lvm).carry_out()
    assert not lvm.calls


def test_a_pvmove_that_waited_for_another_one_is_repeated() -> None:
    lvm = storage({"/dev/f1": 6})
    lvm.before_pvmove = [lambda: done(), lambda: done()]
    move(lvm).carry_out()
    assert set(at(lvm)) <= set(SLOW)
    assert len(lvm.calls) == 4


def test_a_pvmove_that_never_moves_anything_is_an_error() -> None:
    lvm = storage({"/dev/f1": 6})
    lvm.before_pvmove = [lambda: done()] * 1000
    with pytest.raises(errors.TransferFailed, match="not begun"):
        move(lvm).carry_out()


def test_a_move_of_another_volume_off_the_same_disk_is_waited_for() -> None:
    lvm = storage({"/dev/f1": 6})
    theirs = lvm.begin("else", "/dev/f1", OTHER)
    mover = move(lvm)
    looks = []
    mover._pause = lambda _: (looks.append(1), lvm.finish(theirs) if len(looks) == 3 else None)[0]
    mover.carry_out()
    assert set(at(lvm)) <= set(SLOW)
    assert lvm.volumes["else"][OTHER] == 4
    assert len(looks) == 3


def test_a_move_of_another_volume_that_does_not_get_on_is_told_of() -> None:
    lvm = storage({"/dev/f1": 6})
    lvm.begin("else", "/dev/f1", OTHER)
    with pytest.raises(errors.StorageBusy, match="pvmove0 of v moves else off /dev/f1"):
        move(lvm).carry_out()
    assert len(lvm.moves) == 1
    assert not lvm.calls


def test_a_failure_brings_back_what_has_left() -> None:
    lvm = storage({"/dev/f1": 6, "/dev/f2": 3})
    lvm.after_begin = [lambda: None, lambda: failed("  an error")]
    lvm.copied = ["1/24", "7/24"]
    with pytest.raises(errors.TransferFailed, match="an error"):
        move(lvm).carry_out()
    assert set(at(lvm)) <= set(FAST)
    assert not lvm.moves
    assert move(lvm).settle() is False


@pytest.mark.parametrize(
    ("signs", "told"),
    [({"health": "AS"}, "the mirror's sides are AS"), ({"difference": 4096}, "its sides differ at byte 4096")],
)
def test_a_disk_that_cannot_be_written_to_does_not_get_the_volume(signs: dict[str, Any], told: str) -> None:
    """pvmove would say that all went well: the kernel counts what it could not copy as copied."""
    lvm = storage({"/dev/f1": 6}, **signs)
    with pytest.raises(errors.TransferFailed, match=told):
        move(lvm).carry_out()
    assert at(lvm) == {"/dev/f1": 6}
    assert not lvm.moves
    assert lvm.calls[-1] == "pvmove --abort /dev/f1"


def test_an_interrupted_move_that_is_not_active_is_activated() -> None:
    lvm = storage({"/dev/f1": 6}, is_active=False)
    lvm.begin("lv", "/dev/f1", "/dev/s2")
    move(lvm).carry_out()
    assert at(lvm) == {"/dev/s2": 6}
    assert lvm.is_active


def test_a_pvmove_that_could_not_begin_in_time_gets_more() -> None:
    lvm = storage({"/dev/f1": 6})
    lvm.before_pvmove = [lambda: TIMED_OUT] * 3
    move(lvm).carry_out()
    assert set(at(lvm)) <= set(SLOW)
    times = [call.partition(" pvmove ")[0].split()[2::3] for call in lvm.calls[:4]]
    assert [each[-1] for each in times] == ["3", "6", "12", "24"]
    assert all(len(each) > 1 for each in times), "a signal can be lost, and then another one must come"


def test_an_interrupted_move_is_taken_back() -> None:
    lvm = storage({"/dev/f1": 6})
    lvm.begin("lv", "/dev/f1", "/dev/s1")
    assert move(lvm).settle() is False
    assert at(lvm) == {"/dev/f1": 6}
    assert lvm.calls == ["pvmove --abort /dev/f1"]


def test_a_move_of_which_a_part_was_done_is_taken_back() -> None:
    lvm = storage({"/dev/f1": 6, "/dev/s2": 3})
    lvm.begin("lv", "/dev/f1", "/dev/s1")
    assert move(lvm).settle() is False
    assert set(at(lvm)) <= set(FAST)


@pytest.mark.parametrize(("place", "answer"), [("/dev/f1", False), ("/dev/s1", True)])
def test_what_is_in_one_place_is_only_looked_at(place: str, answer: bool) -> None:
    lvm = storage({place: 6})
    assert move(lvm).settle() is answer
    assert not lvm.calls


def test_what_cannot_be_brought_back_is_not_said_to_be_anywhere() -> None:
    lvm = storage({"/dev/f1": 6, "/dev/s2": 3})
    lvm.capacity |= {"/dev/f1": 10, "/dev/f2": 0}
    with pytest.raises(errors.DiskFull):
        move(lvm).settle()


def test_a_move_of_the_volume_by_somebody_else_is_left_alone() -> None:
    lvm = storage({"/dev/f1": 6})
    lvm.begin("lv", "/dev/f1", OTHER)
    for call in (move(lvm).settle, move(lvm).carry_out):
        with pytest.raises(errors.StorageBusy):
            call()
    assert len(lvm.moves) == 1
    assert not lvm.calls


def test_a_move_of_the_whole_disk_is_left_alone() -> None:
    lvm = storage({"/dev/f1": 6})
    lvm.begin("lv", "/dev/f1", "/dev/s1").extents["else"] = 4
    with pytest.raises(errors.StorageBusy):
        move(lvm).settle()
    assert len(lvm.moves) == 1


def test_what_a_pvmove_begins_that_was_left_by_a_dead_worker_is_taken_back() -> None:
    """It had not begun yet when it was looked at first: who answered then would be wrong soon."""
    lvm = storage({"/dev/f1": 6})

    def late() -> Iterator[bool]:
        yield True
        lvm.begin("lv", "/dev/f1", "/dev/s1")
        yield True
        yield True

    assert move(lvm, at_work=late()).settle() is False
    assert at(lvm) == {"/dev/f1": 6}
    assert not lvm.moves


def test_a_pvmove_left_by_a_dead_worker_may_have_come_to_its_end() -> None:
    lvm = storage({"/dev/f1": 6})

    def late() -> Iterator[bool]:
        yield True
        lvm.finish(lvm.begin("lv", "/dev/f1", "/dev/s1"))
        yield False

    assert move(lvm, at_work=late()).settle() is True


def test_a_process_that_does_not_end_makes_it_impossible_to_say() -> None:
    lvm = storage({"/dev/f1": 6})
    for call in (move(lvm, at_work=itertools.repeat(True)).settle, move(lvm, at_work=itertools.repeat(True)).carry_out):
        with pytest.raises(errors.StorageBusy):
            call()


def test_what_a_move_will_leave_is_on_record_before_it_begins() -> None:
    lvm = storage({"/dev/f1": 6, "/dev/f2": 3, "/dev/s1": 1})
    mover = move(lvm)
    found = recorded(lvm, mover)
    mover.carry_out()
    assert sorted(found) == [("/dev/f1", 6), ("/dev/f2", 3)]
    assert lvm.calls[0].startswith("record ")
    assert len(lvm.calls) == 5, "all at once: when one disk is left, it must be seen that others are still to be"


def test_what_a_move_has_filled_is_on_record_before_it_is_taken_back() -> None:
    lvm = storage({"/dev/f1": 6, "/dev/s2": 3})
    lvm.begin("lv", "/dev/f1", "/dev/s1")
    mover = move(lvm)
    found = recorded(lvm, mover)
    assert mover.settle() is False
    assert found == [("/dev/s1", 6), ("/dev/s2", 3)]
    assert [call.split()[0] for call in lvm.calls[:3]] == ["record", "pvmove", "record"]
    assert set(at(lvm)) <= set(FAST)


def test_a_copy_that_failed_is_on_record_before_it_is_taken_back() -> None:
    lvm = storage({"/dev/f1": 6}, difference=4096)
    mover = move(lvm)
    found = recorded(lvm, mover)
    with pytest.raises(errors.TransferFailed):
        mover.carry_out()
    assert found == [("/dev/f1", 6), ("/dev/s1", 6)]
    assert lvm.calls[-2:] == ["record /dev/s1", "pvmove --abort /dev/f1"]


@pytest.mark.parametrize(
    ("within", "found"),
    [
        (None, [("/a", 0, 4), ("/a", 9, 2), ("/b", 9, 2)]),
        (2, [("/a", 0, 2)]),
        (5, [("/a", 0, 4), ("/a", 9, 2), ("/b", 9, 2)]),
        (0, []),
    ],
)
def test_a_striped_part_is_left_as_a_whole(within: int | None, found: list[tuple[str, int, int]]) -> None:
    segments = (
        Segment(start=0, places=(Extents(pv="/a", first=0, count=4),)),
        Segment(start=4, places=(Extents(pv="/a", first=9, count=2), Extents(pv="/b", first=9, count=2))),
        Segment(start=8, places=(Extents(pv="/c", first=0, count=1),)),
    )
    places = Layout(extents={}, segments=segments).places(["/a", "/b"], within=within)
    assert [(each.pv, each.first, each.count) for each in places] == found


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pvmove", "-qq", "--name", "v/lv", "/dev/a", "/dev/b"], True),
        (["sudo", "-n", "/sbin/pvmove", "--name", "v/lv", "/dev/a"], True),
        (["pvmove", "--name", "v/other", "/dev/a"], False),
        (["lvs", "v/lv"], False),
    ],
)
def test_processes_are_known_by_their_arguments(tmp_path: Path, words: list[str], found: bool) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "17").mkdir()
    (tmp_path / "18").mkdir()  # has ended since the directory was read
    (tmp_path / "17" / "cmdline").write_bytes(b"\0".join(word.encode() for word in words) + b"\0")
    assert pvmove_at_work("v", "lv", processes=tmp_path) is found


@pytest.mark.parametrize(
    "failure", [CommandFailed(("lvchange",), 5, "no room for tags"), errors.StorageBusy(backend="lvm", reason="a lock")]
)
def test_a_bad_move_is_taken_back_also_when_that_cannot_be_recorded(failure: Exception) -> None:
    lvm = storage({"/dev/f1": 6}, difference=4096)
    mover = move(lvm)
    outcomes = iter([None, failure, failure])

    def record(_: object) -> None:
        error = next(outcomes)
        if error is not None:
            raise error

    mover._record = record
    with pytest.raises(errors.TransferFailed):
        mover.carry_out()
    assert lvm.moves == []
    assert lvm.volumes == storage({"/dev/f1": 6}).volumes
