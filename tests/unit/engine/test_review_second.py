"""What a second look at the ends of migrations found: backends that are gone for good, and deletions that hang."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.engine.test_hostile import adopt, no_calls_of
from tests.unit.engine.test_recovery import give_to_another, take_from
from tests.unit.engine.world import DESTINATION, SOURCE, World
from tests.unit.waiting import LONG, let_go, until
from volmig import Engine, errors
from volmig import conf as configuration
from volmig.engine import MigrationHandle
from volmig.migration.steps import Copy, RetireSource, Step
from volmig.model import Phase, RequestContext, Volume

MakeWorld = Callable[..., World]
WEEK = 7 * 86400


def engine_without(world: World, backend: str) -> Engine:
    """Return an engine of the same host whose configuration lacks a backend."""
    overrides = {name: dict(group) for name, group in world._overrides.items() if name != backend}
    overrides["DEFAULT"]["enabled_backends"] = [name for name in ("left", "right") if name != backend]
    engine = Engine(configuration.load([], overrides=overrides), store=world.store, context=RequestContext(user="x"))
    world._opened.append((engine, world.store))
    return engine


def begin_and_die(world: World, monkeypatch: pytest.MonkeyPatch, volume: Volume, step: type[Step]) -> MigrationHandle:
    """Begin a migration whose worker is gone when a step begins."""

    def die(self: Step, move: Any) -> Any:
        raise errors.LeaseLost(migration="m", owner="o", epoch=1)

    with monkeypatch.context() as patch:
        patch.setattr(step, "run", die)
        handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
        until(lambda: world.engine._migrations.owned(handle.id) is None)
    return handle


def test_past_the_commit_point_the_source_is_not_waited_for(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its hosts were evacuated because its backend goes out of service."""
    world = make_world(kind="path")
    volume = world.create()
    handle = begin_and_die(world, monkeypatch, volume, RetireSource)
    take_from(world, handle.id)
    engine = engine_without(world, "left")
    (taken,) = engine.recover()
    assert taken.wait(LONG).phase is Phase.SUCCESS
    now = engine.show_volume(volume.id)
    assert (now.host, now.migration_id) == (DESTINATION, None)
    # What could not be deleted is on record.
    assert [retired.host for retired in world.rows()["retired"]] == [SOURCE]
    world.engine.recover()
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_the_way_back_does_not_wait_for_the_destination(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is gone, and that is why."""
    world = make_world(kind="path")
    volume = world.create()
    handle = begin_and_die(world, monkeypatch, volume, Copy)
    give_to_another(world, handle.id, phase=Phase.ROLLING_BACK, error_code="driver-failed", error_message="x")
    take_from(world, handle.id)
    engine = engine_without(world, "right")
    (taken,) = engine.recover()
    assert taken.wait(LONG).phase is Phase.ERROR
    now = engine.show_volume(volume.id)
    assert (now.host, now.migration_id) == (SOURCE, None)


@pytest.mark.parametrize("seconds", [0, WEEK])
def test_what_is_being_deleted_is_not_adopted(make_world: MakeWorld, seconds: int) -> None:
    world = make_world(kind="path", left={"driver_call_timeouts": {"delete_object": "0.3"}})
    volume = world.create()
    world.fake("left").faults.add("delete_object@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, source_retention_seconds=seconds)
    handle.wait(LONG)
    if seconds:
        world.engine.retire_migration(handle.id)
    (retired,) = world.rows()["retired"]
    assert retired.deletion_begun_at is not None
    world.engine.unmanage_volume(volume.id)
    with pytest.raises(errors.NotManageable, match="waits for its deletion"):
        world.engine.manage_volume(volume.backend_name, host=SOURCE)
    let_go(world.fake("left"), lambda: no_calls_of("left"))
    world.engine.recover()
    assert world.objects("left") == []
    assert world.rows()["retired"] == []


def test_a_volume_is_not_deleted_twice_at_once(make_world: MakeWorld) -> None:
    """The first call could hit what has taken the name since."""
    world = make_world(kind="path", left={"driver_call_timeouts": {"delete_volume": "0.3"}})
    volume = adopt(world)
    world.fake("left").faults.add("delete_volume@1:hang")
    with pytest.raises(errors.DriverTimeout):
        world.engine.delete_volume(volume.id)
    with pytest.raises(errors.StorageBusy):
        world.engine.delete_volume(volume.id)
    let_go(world.fake("left"), lambda: no_calls_of("left"))
    world.engine.delete_volume(volume.id)
    assert world.rows()["volumes"] == []


def test_the_deletion_of_what_a_volume_leaves_begins_when_it_was_seen_to_have_arrived(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(kind="path")
    volume = world.create()
    handle = begin_and_die(world, monkeypatch, volume, RetireSource)
    (retired,) = world.rows()["retired"]
    assert retired.deletion_begun_at is None
    take_from(world, handle.id)
    world.engine.recover()
    world.engine.migration(handle.id).wait(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)
