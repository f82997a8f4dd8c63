"""Doubts about where a volume is are settled when nothing can move it any more, and once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.engine.test_hostile import no_calls_of
from tests.unit.engine.test_recovery import take_from
from tests.unit.engine.world import DESTINATION, SOURCE, World
from tests.unit.waiting import LONG, let_go, until
from volmig import errors
from volmig.manager.processes import ProcessIdentity
from volmig.migration.driver_calls import DRIVER_CALL, DRIVER_MOVE, DriverCalls
from volmig.migration.takeover import WORKER
from volmig.model import EntryKind, JournalEntry, Phase, Volume, VolumeStatus

MakeWorld = Callable[..., World]
SHORT = 0.2
"""Seconds that a driver gets for an answer, where it hangs."""
SLOW_MOVE = {"driver_migrate_timeout_seconds": SHORT}


def hang_in_move(world: World) -> tuple[Volume, str]:
    """Return a volume in doubt, whose driver still moves it, and the migration."""
    volume = world.create()
    world.fake("left").faults.add("migrate_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION)
    assert handle.wait(LONG).error_code == "location-doubtful"
    return volume, handle.id


def end_the_move(world: World) -> None:
    let_go(world.fake("left"), lambda: no_calls_of("left"))


def notes(world: World, migration_id: str, subject: str) -> list[JournalEntry]:
    return [entry for entry in world.engine.history(migration_id) if entry.subject == subject]


@pytest.mark.parametrize("offers", [True, False])
def test_nothing_is_settled_while_the_driver_still_moves_the_volume(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, offers: bool
) -> None:
    world = make_world(kind="path", left=SLOW_MOVE)
    volume, migration_id = hang_in_move(world)
    if not offers:
        monkeypatch.delattr("volmig.drivers.fake.FakeDriver.recover_migration")
    other, _ = world.open_engine()
    for engine in (world.engine, other):
        engine.recover()
        assert engine.show_volume(volume.id).status is VolumeStatus.ERROR
    [found] = [each for each in world.engine.examine(grace_seconds=0).findings if each.volume_id == volume.id]
    assert f"process {os.getpid()} of here may still be moving it" in found.explanation
    with pytest.raises(errors.LocationDoubtful):
        world.engine.extend_volume(volume.id, 2 * volume.size_bytes)
    end_the_move(world)
    [ended] = notes(world, migration_id, DRIVER_CALL)
    assert ended.actor == "here@left"
    assert "it has answered" in ended.data["reason"]
    other.recover()
    now = world.assert_at(volume, DESTINATION, Phase.ERROR)
    assert now.status_reason == ""
    [settled] = notes(world, migration_id, "doubt-settled")
    assert settled.data["host"] == DESTINATION
    assert f"process {os.getpid()}" in settled.actor


def test_a_destination_that_appears_first_is_not_taken_for_the_volume(make_world: MakeWorld) -> None:
    """A driver that copies makes the object before its data is there, and may have hidden the source."""
    world = make_world(kind="path", left=SLOW_MOVE)
    volume, _ = hang_in_move(world)
    (world.pool("right")).mkdir(parents=True, exist_ok=True)
    world.path(volume).rename(world.pool("right") / volume.backend_name)
    world.engine.recover()
    assert world.engine.show_volume(volume.id).status is VolumeStatus.ERROR
    (world.pool("right") / volume.backend_name).rename(world.path(volume))
    end_the_move(world)
    world.engine.recover()
    world.assert_at(volume, DESTINATION, Phase.ERROR)


def test_a_late_move_that_fails_leaves_the_volume_at_its_source(make_world: MakeWorld) -> None:
    world = make_world(kind="path", left=SLOW_MOVE)
    volume = world.create()
    driver = world.fake("left")
    driver.faults.add("migrate_volume@1:hang")
    driver.faults.add("migrate_volume@1:fail")
    handle = world.engine.migrate(volume.id, DESTINATION)
    assert handle.wait(LONG).error_code == "location-doubtful"
    world.engine.recover()
    assert world.engine.show_volume(volume.id).status is VolumeStatus.ERROR
    end_the_move(world)
    assert "it has failed" in notes(world, handle.id, DRIVER_CALL)[-1].data["reason"]
    world.engine.recover()
    world.assert_at(volume, SOURCE, Phase.ERROR)


def test_the_end_of_the_process_ends_its_call(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(kind="path", left=SLOW_MOVE)
    volume, migration_id = hang_in_move(world)
    own = ProcessIdentity.own("here")
    monkeypatch.setattr(ProcessIdentity, "is_gone", lambda self, host: self == own and host == "here")
    world.engine.recover()
    world.assert_at(volume, SOURCE, Phase.ERROR)
    assert notes(world, migration_id, "doubt-settled")


@pytest.mark.parametrize("operation", ["delete", "extend"])
def test_a_doubt_that_was_settled_does_not_end_another_error(make_world: MakeWorld, operation: str) -> None:
    call = {"delete": "delete_volume", "extend": "extend_volume"}[operation]
    world = make_world(kind="path", left=SLOW_MOVE, right={"driver_call_timeouts": {call: "0.2"}})
    volume, migration_id = hang_in_move(world)
    end_the_move(world)
    world.engine.recover()
    world.fake("right").faults.add(f"{call}@1:hang")
    request: Callable[[], object] = {
        "delete": lambda: world.engine.delete_volume(volume.id),
        "extend": lambda: world.engine.extend_volume(volume.id, 2 * volume.size_bytes),
    }[operation]
    with pytest.raises(errors.DriverTimeout):
        request()
    before = world.engine.show_volume(volume.id)
    assert before.status is VolumeStatus.ERROR
    for _ in range(2):
        world.engine.recover()
        assert world.engine.show_volume(volume.id) == before
    assert len(notes(world, migration_id, "doubt-settled")) == 1
    codes = [each.code.value for each in world.engine.examine(grace_seconds=0).findings]
    assert "location-doubtful" not in codes
    assert "volume-in-error" in codes
    let_go(world.fake("right"), lambda: no_calls_of("right"))


def test_a_volume_in_doubt_whose_deletion_hangs_is_not_freed(make_world: MakeWorld) -> None:
    world = make_world(kind="path", left={**SLOW_MOVE, "driver_call_timeouts": {"delete_volume": "0.2"}})
    volume = world.create()
    driver = world.fake("left")
    driver.faults.add("migrate_volume@1:hang")
    driver.faults.add("migrate_volume@1:fail")
    assert world.engine.migrate(volume.id, DESTINATION).wait(LONG).error_code == "location-doubtful"
    end_the_move(world)
    driver.faults.add("delete_volume@1:hang")
    with pytest.raises(errors.DriverTimeout):
        world.engine.delete_volume(volume.id)
    world.engine.recover()
    assert world.engine.show_volume(volume.id).status is VolumeStatus.ERROR
    [found] = [each for each in world.engine.examine(grace_seconds=0).findings if each.volume_id == volume.id]
    assert "Something else has gone wrong since" in found.explanation
    with pytest.raises(errors.LocationDoubtful):
        world.engine.extend_volume(volume.id, 2 * volume.size_bytes)


def test_a_request_that_is_at_work_is_not_disturbed(make_world: MakeWorld) -> None:
    world = make_world(kind="path", left=SLOW_MOVE)
    volume, _ = hang_in_move(world)
    end_the_move(world)
    process = ProcessIdentity.own("here").facts()
    entered = world.change(volume, operation={"id": "o", "name": "delete", "arguments": {}, "process": process})
    world.engine.recover()
    assert world.engine.show_volume(volume.id) == entered


def test_two_recoveries_at_once_settle_it_once(make_world: MakeWorld) -> None:
    world = make_world(kind="path", left=SLOW_MOVE)
    volume, migration_id = hang_in_move(world)
    end_the_move(world)
    other, _ = world.open_engine()
    driver = world.fake("right")
    begun: list[bool] = []
    exists = driver.volume_exists

    def exists_after_another(volume: Volume) -> bool:
        answer = exists(volume)
        if not begun:
            begun.append(True)
            other.recover()
        return answer

    driver.volume_exists = exists_after_another  # type: ignore[method-assign]
    world.engine.recover()
    world.assert_at(volume, DESTINATION, Phase.ERROR)
    assert len(notes(world, migration_id, "doubt-settled")) == 1


def test_a_volume_that_was_taken_over_is_looked_for_once(make_world: MakeWorld) -> None:
    world = make_world(kind="path", store="sqlite")
    volume = world.create()
    driver = world.fake("left")
    driver.faults.add("migrate_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION)
    until(lambda: "migrate_volume" in [name for name, _ in driver.calls])
    with world.store.writing() as transaction:
        transaction.request_cancel(handle.id, requested_by="someone")
    take_from(world, handle.id)
    other, _ = world.open_engine()
    assert other.run_migration(handle.id).wait(LONG).error_code == "location-doubtful"
    for _ in range(2):
        other.recover()
        assert world.engine.show_volume(volume.id).status is VolumeStatus.ERROR
    end_the_move(world)
    for _ in range(2):
        other.recover()
    calls = len(world.fake("left", other).calls)
    other.recover()
    assert len(world.fake("left", other).calls) == calls
    world.assert_at(volume, DESTINATION, Phase.ERROR)


def test_a_driver_that_declines_beside_a_call_that_may_run_stops_the_migration(make_world: MakeWorld) -> None:
    """The host must not copy what an earlier worker's call may yet move away."""
    world = make_world(kind="path", store="sqlite")
    volume = world.create()
    driver = world.fake("left")
    driver.faults.add("migrate_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION)
    until(lambda: "migrate_volume" in [name for name, _ in driver.calls])
    take_from(world, handle.id)
    other, _ = world.open_engine()
    world.fake("left", other).migrate_volume = lambda *_: (False, None)  # type: ignore[method-assign]
    final = other.run_migration(handle.id).wait(LONG)
    assert final.error_code == "location-doubtful"
    other.recover()
    assert world.engine.show_volume(volume.id).status is VolumeStatus.ERROR
    end_the_move(world)
    other.recover()
    world.assert_at(volume, DESTINATION, Phase.ERROR)


def test_a_backend_that_hangs_holds_up_no_other(make_world: MakeWorld) -> None:
    world = make_world(kind="path", left={**SLOW_MOVE, "driver_timeout_seconds": SHORT})
    first, second = world.create(name="one"), world.create(name="two")
    driver = world.fake("left")
    driver.faults.add("migrate_volume:hang")
    for volume in (first, second):
        assert world.engine.migrate(volume.id, DESTINATION).wait(LONG).error_code == "location-doubtful"
    end_the_move(world)
    driver.faults.add("recover_migration:hang")
    before = len(driver.calls)
    world.engine.recover()
    # One volume has shown that the backend hangs, so the other one is not asked for.
    assert [name for name, _ in driver.calls[before:]].count("recover_migration") == 1
    driver.faults.clear()
    until(lambda: no_calls_of("left"))
    world.engine.recover()
    for volume in (first, second):
        assert world.engine.show_volume(volume.id).host == DESTINATION


class TestJournal:
    """What a journal says of the calls."""

    def of(self, *entries: tuple[int, EntryKind, str, dict[str, Any]], worker: dict[str, Any] | None = None) -> Any:
        facts = ProcessIdentity.own("here").facts() if worker is None else worker
        workers = [(epoch, EntryKind.NOTE, WORKER, facts) for epoch in {entry[0] for entry in entries}]
        return DriverCalls.of(
            [
                JournalEntry(
                    migration_id="m", kind=kind, subject=subject, actor="w", epoch=epoch, data=data, sequence=n
                )
                for n, (epoch, kind, subject, data) in enumerate([*workers, *entries])
            ]
        )

    def test_without_any(self) -> None:
        calls = self.of((1, EntryKind.INTENT, "copy", {}))
        assert (calls.begun, calls.running("here")) == ((), [])

    @pytest.mark.parametrize("kind", [EntryKind.DONE, EntryKind.UNDONE])
    def test_outcome_ends_the_last_call_of_its_epoch_only(self, kind: EntryKind) -> None:
        begun = (1, EntryKind.INTENT, DRIVER_MOVE, {"call": "a"})
        assert self.of(begun).running("here")
        assert not self.of(begun, (1, kind, DRIVER_MOVE, {})).running("here")
        assert self.of(begun, (2, kind, DRIVER_MOVE, {})).running("here")
        again = (1, EntryKind.NOTE, DRIVER_CALL, {"call": "b", "state": "begun", "way": "back"})
        assert [call.id for call in self.of(begun, again, (1, kind, DRIVER_MOVE, {})).unended] == ["a"]

    def test_end_of_one_call_is_not_that_of_another(self) -> None:
        begun = (1, EntryKind.INTENT, DRIVER_MOVE, {"call": "a"})
        ended = (1, EntryKind.NOTE, DRIVER_CALL, {"call": "b", "state": "ended", "way": "there"})
        assert [call.id for call in self.of(begun, ended).unended] == ["a"]

    def test_process_that_is_not_known_counts_as_running(self) -> None:
        assert self.of((1, EntryKind.INTENT, DRIVER_MOVE, {}), worker={}).running("here")

    def test_failure_of_the_driver_is_not_its_end(self) -> None:
        calls = self.of((1, EntryKind.INTENT, DRIVER_MOVE, {}), (1, EntryKind.FAILED, DRIVER_MOVE, {"code": "x"}))
        assert calls.running("here")
