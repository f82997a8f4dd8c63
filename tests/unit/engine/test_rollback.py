"""The old storage is kept for a while, and the volume can go back to it; nothing written since is lost unasked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.unit.engine.test_recovery import mortal_engine, take_from
from tests.unit.engine.world import DESTINATION, SOURCE, STORES, World, pattern_of
from tests.unit.waiting import LONG, until
from volmig import errors
from volmig.model import EntryKind, Migration, Phase, RetiredObject, Volume
from volmig.testing import patterns

MakeWorld = Callable[..., World]
WEEK = 7 * 86400


def moved(world: World, *, seconds: int = WEEK) -> tuple[Volume, Migration]:
    volume = world.create()
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, source_retention_seconds=seconds)
    handle.result(LONG)
    return volume, handle.status()


def kept(world: World) -> RetiredObject:
    (retired,) = world.rows()["retired"]
    assert isinstance(retired, RetiredObject)
    return retired


def write(world: World, volume: Volume, *, offset: int = 5, data: bytes = b"changed") -> None:
    with world.path(world.engine.show_volume(volume.id)).open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("kind", ["file", "path", "handle"])
@pytest.mark.parametrize("store", STORES)
def test_the_volume_goes_back(make_world: MakeWorld, kind: str, store: str) -> None:
    world = make_world(kind=kind, store=store)
    volume, done = moved(world)
    retired = kept(world)
    assert retired.delete_after is not None
    assert done.finished_at is not None
    assert abs(retired.delete_after - done.finished_at - timedelta(seconds=WEEK)) < timedelta(seconds=30)
    assert len(world.objects("left")) == len(world.objects("right")) == 1
    world.engine.recover()
    assert kept(world) == retired
    back = world.engine.rollback_migration(done.id)
    assert back.result(LONG).host == SOURCE
    assert back.status().rolls_back == done.id
    world.assert_at(volume, SOURCE, Phase.SUCCESS)
    now = world.engine.show_volume(volume.id)
    assert (now.name_id, now.provider_id) == (volume.name_id, volume.provider_id)
    (asked,) = (entry for entry in world.engine.history(done.id) if entry.kind is EntryKind.REQUEST)
    assert (asked.subject, asked.data["migration"]) == ("rollback", back.id)
    with pytest.raises(errors.RollbackImpossible, match="not kept any more"):
        world.engine.rollback_migration(done.id)


@pytest.mark.parametrize("kind", ["file", "handle"])
def test_what_was_written_since_is_not_lost(make_world: MakeWorld, kind: str) -> None:
    world = make_world(kind=kind)
    volume, done = moved(world)
    write(world, volume)
    final = world.engine.rollback_migration(done.id).wait(LONG)
    assert (final.phase, final.error_code) == (Phase.ERROR, "changes-would-be-lost")
    assert "--discard-changes" in final.error_hint
    now = world.engine.show_volume(volume.id)
    assert (now.host, now.migration_id) == (DESTINATION, None)
    assert world.path(now).read_bytes()[5:12] == b"changed"
    # The way back stays open.
    assert kept(world).migration_id == done.id
    back = world.engine.rollback_migration(done.id, discard_changes=True)
    back.result(LONG)
    # What was given up is kept for as long as that was for which it is given up.
    assert (kept(world).migration_id, back.status().source_retention_seconds) == (back.id, WEEK)
    assert world.path(now).read_bytes()[5:12] == b"changed"
    assert world.engine.retire_migration(back.id) == []
    world.assert_at(volume, SOURCE, Phase.SUCCESS)


def test_a_driver_that_moved_the_volume_has_kept_nothing(make_world: MakeWorld) -> None:
    world = make_world()
    volume = world.create()
    handle = world.engine.migrate(volume.id, DESTINATION, source_retention_seconds=WEEK)
    handle.result(LONG)
    with pytest.raises(errors.RollbackImpossible, match="kept nothing"):
        world.engine.rollback_migration(handle.id)
    with pytest.raises(errors.NothingRetained):
        world.engine.retire_migration(handle.id)


def test_without_a_time_nothing_is_kept(make_world: MakeWorld) -> None:
    world = make_world()
    _, done = moved(world, seconds=0)
    with pytest.raises(errors.RollbackImpossible, match="not kept any more"):
        world.engine.rollback_migration(done.id)


def test_the_configured_time(make_world: MakeWorld) -> None:
    world = make_world(migration={"source_retention_seconds": 3600})
    volume = world.create()
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    handle.result(LONG)
    assert handle.status().source_retention_seconds == 3600
    assert kept(world).migration_id == handle.id


@pytest.mark.parametrize("seconds", [-1, True, 1.5, 10**12])
def test_a_time_that_is_none(make_world: MakeWorld, seconds: int) -> None:
    world = make_world()
    volume = world.create()
    with pytest.raises(errors.RequestInvalid, match="whole number of seconds"):
        world.engine.migrate(volume.id, DESTINATION, source_retention_seconds=seconds)


def test_old_storage_goes_when_its_time_has_come(make_world: MakeWorld) -> None:
    world = make_world()
    volume, _ = moved(world, seconds=1)
    until(lambda: world.engine.recover() or not world.rows()["retired"])
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_old_storage_is_retired_early(make_world: MakeWorld) -> None:
    world = make_world(kind="path")
    volume, done = moved(world)
    world.fake("left").faults.add("delete_object@1:fail")
    (left,) = world.engine.retire_migration(done.id)
    assert kept(world).id == left.id
    assert "delete_object" in kept(world).last_error
    assert world.engine.retire_migration(done.id) == []
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)
    with pytest.raises(errors.NothingRetained):
        world.engine.retire_migration(done.id)
    asked = [entry.subject for entry in world.engine.history(done.id) if entry.kind is EntryKind.REQUEST]
    assert asked == ["retire", "retire"]


def test_a_volume_that_was_extended_does_not_go_back(make_world: MakeWorld) -> None:
    world = make_world()
    volume, done = moved(world)
    world.engine.extend_volume(volume.id, volume.size_bytes * 2)
    with pytest.raises(errors.RollbackImpossible, match="extended since"):
        world.engine.rollback_migration(done.id, discard_changes=True)


def test_a_volume_that_has_moved_on_does_not_go_back(make_world: MakeWorld) -> None:
    world = make_world()
    volume, done = moved(world)
    world.engine.migrate(volume.id, SOURCE, force_host_copy=True).result(LONG)
    with pytest.raises(errors.RollbackImpossible, match="by now"):
        world.engine.rollback_migration(done.id)
    # What it had left before is still what it was.
    assert kept(world).migration_id == done.id
    patterns.check(world.path(world.engine.show_volume(volume.id)), pattern_of(volume))


def test_a_volume_in_use_does_not_go_back(make_world: MakeWorld) -> None:
    world = make_world()
    volume, done = moved(world)
    world.engine.attach_volume(volume.id, instance="vm")
    with pytest.raises(errors.VolumeInUse):
        world.engine.rollback_migration(done.id, discard_changes=True)


def test_a_migration_that_failed_is_not_rolled_back(make_world: MakeWorld) -> None:
    world = make_world(kind="path")
    volume = world.create()
    world.fake("right").faults.add("create_volume@1:fail")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    handle.wait(LONG)
    with pytest.raises(errors.RollbackImpossible, match="'error'"):
        world.engine.rollback_migration(handle.id)


def test_old_storage_that_is_gone_leaves_the_volume_where_it_is(make_world: MakeWorld) -> None:
    world = make_world()
    volume, done = moved(world)
    (name,) = world.objects("left")
    (world.pool("left") / name).unlink()
    final = world.engine.rollback_migration(done.id, discard_changes=True).wait(LONG)
    assert (final.phase, final.error_code) == (Phase.ERROR, "volume-missing")
    assert world.engine.show_volume(volume.id).host == DESTINATION
    patterns.check(world.path(world.engine.show_volume(volume.id)), pattern_of(volume))


def test_a_stranger_in_place_of_the_old_storage_is_not_taken(make_world: MakeWorld) -> None:
    world = make_world()
    volume, done = moved(world)
    (name,) = world.objects("left")
    stranger = world.pool("left") / "stranger"
    stranger.write_bytes((world.pool("left") / name).read_bytes())
    stranger.rename(world.pool("left") / name)
    final = world.engine.rollback_migration(done.id, discard_changes=True).wait(LONG)
    assert (final.phase, final.error_code) == (Phase.ERROR, "volume-missing")
    assert world.engine.show_volume(volume.id).host == DESTINATION


def test_old_storage_stays_while_the_volume_goes_back_to_it(make_world: MakeWorld) -> None:
    world = make_world()
    volume, done = moved(world, seconds=1)
    queued = world.engine.request_rollback(done.id)
    due = kept(world).delete_after
    assert due is not None

    def is_due() -> bool:
        with world.store.reading() as view:
            return view.now() > due

    until(is_due)
    other, _ = world.open_engine()
    other.retire_migration(done.id)
    assert kept(world).migration_id == done.id
    other.run_migration(queued.id).result(LONG)
    world.assert_at(volume, SOURCE, Phase.SUCCESS)


def test_a_rollback_is_cancelled(make_world: MakeWorld) -> None:
    world = make_world()
    volume, done = moved(world)
    queued = world.engine.request_rollback(done.id)
    world.engine.cancel_migration(queued.id)
    assert world.engine.migration(queued.id).wait(LONG).phase is Phase.CANCELLED
    assert world.engine.show_volume(volume.id).host == DESTINATION
    assert kept(world).migration_id == done.id
    world.engine.rollback_migration(done.id).result(LONG)
    world.assert_at(volume, SOURCE, Phase.SUCCESS)


def test_what_is_written_after_a_worker_died_is_not_lost_either(make_world: MakeWorld) -> None:
    """Wherever that was: who takes over proves anew that the volume still holds what the old storage does."""
    seen: set[bool] = set()
    die_at = 1
    while True:
        world = make_world(kind="path", migration={"heartbeat_seconds": 10.0, "cleanup_attempts": 1})
        volume, done = moved(world)
        mortal, _ = mortal_engine(world, die_at=die_at)
        die_at += 1
        try:
            handle = mortal.rollback_migration(done.id)
        except errors.StoreUnreachable:
            continue
        with contextlib.suppress(errors.VolmigError):
            handle.wait(LONG)
        entries = world.engine.history(handle.id)
        if any((entry.kind, entry.subject) == (EntryKind.INTENT, "cut_over") for entry in entries):
            break
        seen.add(any((entry.kind, entry.subject) == (EntryKind.DONE, "verify") for entry in entries))
        write(world, volume)
        take_from(world, handle.id)
        assert [taken.id for taken in world.engine.recover()] == [handle.id]
        final = world.engine.migration(handle.id).wait(LONG)
        assert (final.phase, final.error_code) == (Phase.ERROR, "changes-would-be-lost")
        assert world.path(world.engine.show_volume(volume.id)).read_bytes()[5:12] == b"changed"
    assert seen == {False, True}
