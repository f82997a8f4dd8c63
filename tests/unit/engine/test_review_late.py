"""Objects that are made too late are deleted by the next recovery, and never when anything names them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.engine.test_recovery import take_from
from tests.unit.engine.world import DESTINATION, SIZE, SOURCE, World
from tests.unit.waiting import LONG, let_go, until
from volmig import errors
from volmig.manager.late import enter_late, retired_object, why_copy_kept
from volmig.manager.processes import ProcessIdentity
from volmig.manager.volumes import VolumeManager
from volmig.manager.volumes.operations import Operation
from volmig.migration.steps import CutOver
from volmig.model import EntryKind, Method, Migration, Phase, Volume, VolumeStatus

MakeWorld = Callable[..., World]
SHORT = {"driver_timeout_seconds": 0.2}


class Killed(BaseException):
    """The end of a worker: nothing of it runs any more."""


def no_calls_of(backend: str) -> bool:
    return not any(thread.name.startswith(f"volmig-{backend}-") for thread in threading.enumerate())


def is_cleared_up(world: World) -> bool:
    world.engine.recover()
    return not world.rows()["retired"]


# --- volumes --------------------------------------------------------------------------------------


def test_a_creation_that_ends_long_after_it_was_looked_for(make_world: MakeWorld) -> None:
    world = make_world(kind="handle", left=SHORT)
    driver = world.fake("left")
    driver.faults.add("create_volume@1:hang")
    with pytest.raises(errors.DriverTimeout):
        world.engine.create_volume(host=SOURCE, size_bytes=SIZE)
    until(lambda: is_cleared_up(world))
    let_go(driver, lambda: no_calls_of("left"))
    (late,) = world.rows()["retired"]
    assert late.identity
    assert len(world.objects("left")) == 1
    world.engine.recover()
    assert (world.objects("left"), world.rows()["retired"]) == ([], [])


def test_a_late_end_waits_for_the_end_of_its_request(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call ends when its object was removed, and before the volume is forgotten."""
    world = make_world(kind="handle", left=SHORT)
    driver = world.fake("left")
    driver.faults.add("create_volume@1:hang")
    real = driver.delete_volume

    def delete(volume: Volume) -> None:
        monkeypatch.undo()
        real(volume)
        let_go(driver, lambda: world.objects("left"))

    monkeypatch.setattr(driver, "delete_volume", delete)
    with pytest.raises(errors.DriverTimeout):
        world.engine.create_volume(host=SOURCE, size_bytes=SIZE)
    until(lambda: no_calls_of("left"))
    until(lambda: is_cleared_up(world))
    assert world.objects("left") == []


def test_whoever_takes_over_a_creation_that_is_being_undone_undoes_it(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one may wake up in the middle of its deletion: nobody may use the object by then."""
    world = make_world(kind="handle")
    driver = world.fake("left")
    driver.faults.add("create_volume@1:fail_after")
    backend = world.engine._backends.get("left")
    seen: list[dict[str, Any]] = []

    def die(_: Volume) -> None:
        (volume,) = world.rows()["volumes"]
        seen.append(dict(volume.operation["arguments"]))
        raise Killed

    monkeypatch.setattr(backend, "delete_volume", die)
    with pytest.raises(Killed):
        world.engine.create_volume(host=SOURCE, size_bytes=SIZE)
    assert "FakeFault" in seen[0]["undo"]
    monkeypatch.undo()
    with world.store.writing() as transaction:
        (volume,) = transaction.list_volumes()
        record = {**volume.operation, "until": transaction.now().isoformat()}
        transaction.update_volume(volume, operation=record)
    driver.calls.clear()
    world.engine.recover()
    assert "create_volume" not in [method for method, _ in driver.calls]
    assert (world.rows()["volumes"], world.objects("left")) == ([], [])
    # The first one lives, as far as anybody knows.
    assert len(world.rows()["retired"]) == 1


def test_a_late_object_that_cannot_be_entered_is_logged(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(kind="handle", left=SHORT)
    driver = world.fake("left")
    driver.faults.add("create_volume@1:hang")
    with pytest.raises(errors.DriverTimeout):
        world.engine.create_volume(host=SOURCE, size_bytes=SIZE)
    monkeypatch.setattr(world.store, "writing", lambda: 1 / 0)
    let_go(driver, lambda: no_calls_of("left"))
    monkeypatch.undo()
    (name,) = world.objects("left")
    assert f"object {name.removeprefix('volume-')} in {SOURCE} was made too late, and cannot be entered" in caplog.text


def test_a_child_is_another_process(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(kind="handle")
    manager = VolumeManager(world.store, world.engine._backends, settle=lambda *_: None)
    child = replace(ProcessIdentity.own("here"), pid=os.getpid() + 1)
    monkeypatch.setattr(ProcessIdentity, "own", lambda _: child)
    seen: list[Volume] = []
    driver = world.fake("left")
    monkeypatch.setattr(driver, "create_volume", lambda _: seen.extend(world.rows()["volumes"]))
    manager.create(Volume(id="v", name="", size_bytes=SIZE, host=SOURCE))
    operation = Operation.of(seen[0])
    assert operation is not None
    assert operation.process == child


# --- copies ---------------------------------------------------------------------------------------


def test_a_copy_that_is_made_long_after_its_migration_ended(make_world: MakeWorld) -> None:
    world = make_world(kind="handle", right=SHORT)
    volume = world.create()
    driver = world.fake("right")
    driver.faults.add("create_volume@1:hang")
    final = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True).wait(LONG)
    until(lambda: is_cleared_up(world))
    let_go(driver, lambda: no_calls_of("right"))
    assert world.objects("right") == [f"volume-{final.destination_id}"]
    world.engine.recover()
    world.assert_failed(volume, final, "driver-timeout")


def test_a_copy_that_its_worker_made_after_it_had_lost_the_lease(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped in its call, which ends in time when it goes on; what looked for the object has looked by then."""
    world = make_world(kind="handle", right={"driver_call_timeouts": {"create_volume": "30"}})
    volume = world.create()
    driver = world.fake("right")
    driver.faults.add("create_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    until(lambda: "create_volume" in [method for method, _ in driver.calls])
    owned = handle._owned
    assert owned is not None
    given_up = owned.migration.destination_id
    take_from(world, handle.id)
    other, _ = world.open_engine()
    final = other.run_migration(handle.id).wait(LONG)
    assert final.phase is Phase.SUCCESS
    with world.store.writing() as transaction:
        for look in transaction.list_retired():
            transaction.remove_retired(look.id)
    owned.control.deadline_seconds = 0.0
    let_go(driver, lambda: owned.ended)
    assert f"volume-{given_up}" in world.objects("right")
    (late,) = world.rows()["retired"]
    assert (late.name_id, late.migration_id) == (given_up, handle.id)
    assert late.identity
    other.recover()
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_what_a_driver_calls_the_copy_is_known_at_once(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver finds the copy by what it returned only, and fails to identify it in the end."""
    world = make_world(kind="handle")
    volume = world.create()
    driver = world.fake("right")
    real, identify = driver.create_volume, driver.identify_object
    asked: list[Volume] = []

    def create(made: Volume) -> Any:
        real(replace(made, provider_id=f"lun-{made.id[:8]}"))
        return {"provider_id": f"lun-{made.id[:8]}"}

    def ask(made: Volume) -> str | None:
        asked.append(made)
        identify(made)
        raise OSError("it cannot tell now")

    monkeypatch.setattr(driver, "create_volume", create)
    monkeypatch.setattr(driver, "identify_object", ask)
    final = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True).wait(LONG)
    assert {made.provider_id for made in asked} == {f"lun-{final.destination_id[:8]}"}
    world.assert_failed(volume, final, "driver-failed")
    monkeypatch.setattr(driver, "identify_object", identify)
    again = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True).wait(LONG)
    assert again.phase is Phase.SUCCESS
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_a_second_life_of_cut_over_knows_that_the_copy_was_renamed(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(kind="handle")
    volume = world.create()
    ended = threading.Event()

    def die(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(CutOver, "commit", die)
    monkeypatch.setattr(threading, "excepthook", lambda _: ended.set())
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    assert ended.wait(LONG)
    monkeypatch.undo()
    assert world.objects("right") == [volume.backend_name]
    take_from(world, handle.id)
    other, _ = world.open_engine()
    driver = world.fake("right", other)
    driver.faults.add("update_migrated_volume:fail")
    (taken,) = other.recover()
    assert taken.wait(LONG).phase is Phase.ERROR
    driver.faults.clear()
    other.recover()
    assert world.objects("right") == []
    world.assert_at(volume, SOURCE, Phase.ERROR)


# --- the rule -------------------------------------------------------------------------------------


def migration(**changes: Any) -> Migration:
    fields: dict[str, Any] = {
        "id": "m",
        "volume_id": "v",
        "source": SOURCE,
        "destination": DESTINATION,
        "destination_id": "copy",
        "method": Method.BLOCK,
    }
    return Migration(**{**fields, **changes})


def enter(world: World, name_id: str = "copy", **changes: Any) -> bool:
    """Enter an object that migration ``m`` has made too late."""
    made = Volume(id="v", name="", size_bytes=SIZE, host=DESTINATION, **{"name_id": name_id, **changes})
    retired = retired_object(made, volume_id="v", migration_id="m", identity="i")
    return enter_late(world.store, retired, why_kept=lambda view: why_copy_kept(view, "m", "copy"))


@pytest.mark.parametrize(
    ("changes", "is_entered"),
    [
        ({"phase": Phase.STARTING}, False),
        ({"phase": Phase.MIGRATING}, False),
        ({"phase": Phase.COMPLETING}, False),
        ({"phase": Phase.PAUSED}, False),
        ({"phase": Phase.MIGRATING, "destination_id": "another"}, True),
        ({"phase": Phase.CANCELLING}, True),
        ({"phase": Phase.ROLLING_BACK}, True),
        ({"phase": Phase.CANCELLED}, True),
        ({"phase": Phase.ERROR}, True),
        ({"phase": Phase.SUCCESS}, True),
        ({"phase": Phase.ERROR, "error_code": errors.LocationDoubtful.code}, False),
    ],
)
def test_what_its_migration_says(make_world: MakeWorld, changes: dict[str, Any], is_entered: bool) -> None:
    world = make_world(kind="handle")
    with world.store.writing() as transaction:
        transaction.add_migration(migration(**changes))
    assert enter(world) is is_entered
    assert len(world.rows()["retired"]) == int(is_entered)


@pytest.mark.parametrize(
    ("recorded", "made"),
    [
        ({"id": "v", "name_id": "copy"}, {}),
        ({"id": "another", "provider_id": "volume-copy"}, {}),
        ({"id": "another", "provider_id": "lun"}, {"provider_id": "lun"}),
    ],
)
def test_what_a_volume_has_stays(make_world: MakeWorld, recorded: dict[str, Any], made: dict[str, Any]) -> None:
    world = make_world(kind="handle")
    volume = Volume(name="", size_bytes=SIZE, host=DESTINATION, status=VolumeStatus.AVAILABLE, **recorded)
    with world.store.writing() as transaction:
        transaction.add_migration(migration(phase=Phase.SUCCESS))
        transaction.add_volume(volume)
    assert not enter(world, **made)
    assert world.rows()["retired"] == []


def test_what_is_kept_for_a_rollback_stays(make_world: MakeWorld) -> None:
    world = make_world(kind="handle")
    kept = Volume(id="v", name="", size_bytes=SIZE, host=DESTINATION, name_id="copy")
    with world.store.writing() as transaction:
        transaction.add_migration(migration(phase=Phase.SUCCESS))
        transaction.add_retired(retired_object(kept, volume_id="v", migration_id="next", identity="i"))
    assert not enter(world)


def test_what_another_migration_may_name_stays(make_world: MakeWorld) -> None:
    world = make_world(kind="handle")
    with world.store.writing() as transaction:
        transaction.add_migration(migration(phase=Phase.SUCCESS))
        transaction.add_migration(migration(id="next", phase=Phase.MIGRATING, destination_id="other", volume_id="copy"))
    assert not enter(world)


def test_two_late_objects_of_one_name_are_both_entered(make_world: MakeWorld) -> None:
    """The first one's deletion may be under way, and forgets its own record only."""
    world = make_world(kind="handle")
    assert enter(world)
    assert enter(world)
    assert len(world.rows()["retired"]) == 2


def test_the_history_has_what_the_driver_returned(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(kind="handle")
    volume = world.create()
    driver = world.fake("right")
    real = driver.create_volume
    monkeypatch.setattr(driver, "create_volume", lambda made: real(made) or {"provider_location": "portal"})
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    handle.result(LONG)
    facts = [(e.kind, dict(e.data)) for e in world.engine.history(handle.id) if e.subject == "create_destination"]
    assert facts[1] == (EntryKind.NOTE, {"provider_location": "portal"})
    assert (facts[2][0], facts[2][1]["provider_location"]) == (EntryKind.DONE, "portal")
