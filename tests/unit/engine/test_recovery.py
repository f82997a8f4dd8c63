"""When a worker is gone, another one brings its migrations to an end; the first one touches nothing more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.engine.world import DESTINATION, MIB, SOURCE, STORES, World, files_below
from tests.unit.waiting import LONG, let_go, until
from volmig import Engine, errors
from volmig.engine import MigrationHandle
from volmig.model import EntryKind, Migration, Phase, RequestContext, RetiredObject, Volume, VolumeStatus
from volmig.store import Store
from volmig.testing import patterns

SLOW = 256 * 1024


class MortalStore:
    """A store whose writes all fail once it is told to die, or from a number of writes on."""

    def __init__(self, store: Store, *, die_at: int | None = None) -> None:
        self._store = store
        self.die_at = die_at
        self.writes = 0

    def reading(self) -> Any:
        return self._store.reading()

    def writing(self) -> Any:
        self.writes += 1
        if self.die_at is not None and self.writes >= self.die_at:
            raise errors.StoreUnreachable(database="test", reason="this worker is dead")
        return self._store.writing()

    def close(self) -> None:
        self._store.close()


def mortal_engine(world: World, **options: Any) -> tuple[Engine, MortalStore]:
    store = MortalStore(world.open_engine()[1], **options)
    engine = Engine(world.conf(), store=store, context=RequestContext(user="the dead"))
    world._opened.append((engine, store))
    return engine, store


def take_from(world: World, migration_id: str) -> None:
    """Make it so, by force, that nobody owns a migration: as when the owner's lease has expired."""
    with world.store.writing() as transaction:
        transaction.update_migration(transaction.get_migration(migration_id), owner="")


def give_to_another(world: World, migration_id: str, **changes: Any) -> Migration:
    """Take a migration from its owner by force, for another one that will soon be gone."""
    with world.store.writing() as transaction:
        transaction.update_migration(transaction.get_migration(migration_id), owner="")
        taken = transaction.claim_migration(migration_id, owner="second", lease_seconds=0.3)
        return transaction.update_migration(taken, **changes)


def begin_slowly(engine: Engine, world: World) -> tuple[Volume, MigrationHandle]:
    volume = world.create(size_bytes=2 * MIB)
    handle = engine.migrate(volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=SLOW)
    until(lambda: handle.status().stage == "copy" and handle.status().bytes_done > 0)
    return volume, handle


# --- queued by one, run by another --------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_a_queued_migration_waits_and_is_run_by_another_engine(make_world: Callable[..., World], store: str) -> None:
    world = make_world(kind="file", store=store)
    volume = world.create()
    queued = world.engine.request_migration(volume.id, DESTINATION, force_host_copy=True)
    assert (queued.phase, queued.owner, queued.epoch) == (Phase.QUEUED, "", 0)
    assert world.objects("right") == []
    assert [held.size_bytes for held in world.rows()["reservations"]] == [volume.size_bytes]
    with pytest.raises(errors.AlreadyMigrating):
        world.engine.migrate(volume.id, DESTINATION)
    other, _ = world.open_engine()
    other.run_migration(queued.id).result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)
    with pytest.raises(errors.LeaseLost):
        world.engine.run_migration(queued.id)


def test_a_migration_is_run_by_one_engine_only(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file", store="sqlite")
    volume, handle = begin_slowly(world.engine, world)
    other, _ = world.open_engine()
    with pytest.raises(errors.LeaseLost):
        other.run_migration(handle.id)
    with pytest.raises(errors.LeaseLost):
        world.engine.run_migration(handle.id)
    assert other.recover() == []
    handle.cancel()
    handle.wait(LONG)
    world.assert_at(volume, SOURCE, Phase.CANCELLED)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_queued_migration_is_cancelled(make_world: Callable[..., World], is_own: bool) -> None:
    world = make_world(kind="file", store="sqlite")
    volume = world.create()
    queued = world.engine.request_migration(volume.id, DESTINATION, lock_volume=True)
    engine = world.engine if is_own else world.open_engine()[0]
    engine.cancel_migration(queued.id)
    assert engine.migration(queued.id).wait(LONG).phase is Phase.CANCELLED
    world.assert_at(volume, SOURCE, Phase.CANCELLED)


def test_a_queued_migration_gives_way_to_a_deletion(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file")
    volume = world.create()
    world.engine.request_migration(volume.id, DESTINATION)
    world.engine.delete_volume(volume.id)
    assert world.rows()["volumes"] == world.rows()["reservations"] == []
    assert world.objects("left") == world.objects("right") == []


def test_recover_runs_what_was_queued(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file")
    volume = world.create()
    queued = world.engine.request_migration(volume.id, DESTINATION)
    (taken,) = world.engine.recover()
    assert taken.id == queued.id
    world.engine.migration(queued.id).result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)
    assert world.engine.recover() == []


# --- a worker that vanished ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "force_host_copy"), [("file", False), ("file", True), ("path", True), ("handle", True)]
)
def test_wherever_a_worker_vanished_another_one_ends_it(
    make_world: Callable[..., World], kind: str, force_host_copy: bool
) -> None:
    die_at = 1
    while True:
        # Without heartbeats in between, each write is one of the migration itself.
        world = make_world(kind=kind, migration={"heartbeat_seconds": 10.0, "cleanup_attempts": 1})
        volume = world.create()
        mortal, store = mortal_engine(world, die_at=die_at)
        try:
            handle = mortal.migrate(volume.id, DESTINATION, force_host_copy=force_host_copy)
        except errors.StoreUnreachable:
            assert world.rows()["migrations"] == []
            die_at += 1
            continue
        try:
            final = handle.wait(LONG)
        except errors.VolmigError:
            final = None
        if store.writes < die_at:
            assert final is not None
            break
        left = world.engine.show_migration(handle.id)
        assert not left.phase.is_final
        take_from(world, handle.id)
        assert [taken.id for taken in world.engine.recover()] == [handle.id]
        world.engine.migration(handle.id).result(LONG)
        # What a creation whose end nobody saw may make yet is on record, under the id that was given up.
        world.assert_at(volume, DESTINATION, Phase.SUCCESS, late_call=True)
        final = world.engine.show_migration(handle.id)
        given_up = {left.destination_id} - {final.destination_id}
        assert {retired.name_id for retired in world.rows()["retired"]} <= given_up
        assert final.epoch == 2
        die_at += 1
    assert die_at > 4


def test_a_vanished_worker_is_followed_up_when_its_lease_has_expired(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file", store="sqlite", migration={"lease_seconds": 2.0, "heartbeat_seconds": 0.1})
    mortal, store = mortal_engine(world)
    volume, handle = begin_slowly(mortal, world)
    store.die_at = 0
    assert world.engine.recover() == []
    began = time.monotonic()
    until(lambda: [taken.id for taken in world.engine.recover()] == [handle.id])
    assert time.monotonic() - began < 4.0
    # The first one had given up before its lease was over.
    with pytest.raises(errors.VolmigError):
        handle.wait(LONG)
    world.engine.migration(handle.id).cancel()
    world.engine.migration(handle.id).wait(LONG)
    world.assert_at(volume, SOURCE, Phase.CANCELLED)


@pytest.mark.parametrize("phase", [Phase.CANCELLING, Phase.ROLLING_BACK])
def test_a_worker_that_vanished_on_its_way_back(make_world: Callable[..., World], phase: Phase) -> None:
    world = make_world(kind="path", migration={"cleanup_attempts": 1})
    mortal, store = mortal_engine(world)
    volume, handle = begin_slowly(mortal, world)
    right = world.fake("right", mortal)
    right.faults.add("volume_exists@1:hang")
    if phase is Phase.CANCELLING:
        handle.cancel()
    else:
        with world.path(volume).open("r+b") as file:
            file.write(file.read(1) and patterns.holed(2 * MIB, seed=4).read(0, 1))
        handle._owned.control.limit_bytes = 0  # type: ignore[union-attr]
    until(lambda: handle.status().phase is phase)
    until(lambda: "volume_exists" in [name for name, _ in right.calls])
    store.die_at = 0
    let_go(right, lambda: handle._owned.ended)  # type: ignore[union-attr]
    with pytest.raises(errors.VolmigError):
        handle.wait(LONG)
    take_from(world, handle.id)
    world.engine.recover()
    final = world.engine.migration(handle.id).wait(LONG)
    assert final.phase is (Phase.CANCELLED if phase is Phase.CANCELLING else Phase.ERROR)
    assert world.objects("right") == []
    assert world.rows()["reservations"] == []
    now = world.engine.show_volume(volume.id)
    assert (now.host, now.status, now.migration_id) == (SOURCE, VolumeStatus.AVAILABLE, None)
    if phase is Phase.CANCELLING:
        world.assert_at(volume, SOURCE, Phase.CANCELLED)


# --- a worker that lost its lease ---------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_who_lost_the_lease_writes_nothing_more(make_world: Callable[..., World], store: str) -> None:
    world = make_world(kind="file", store=store)
    volume, handle = begin_slowly(world.engine, world)
    taken = give_to_another(world, handle.id, bandwidth_limit_bytes=0)
    with pytest.raises(errors.LeaseLost):
        handle.wait(LONG)
    entries = world.engine.history(handle.id)
    files = files_below(world.directory)
    record = world.engine.show_migration(handle.id)
    assert (record.owner, record.epoch) == ("second", taken.epoch)
    time.sleep(0.2)
    assert world.engine.show_migration(handle.id) == record
    assert world.engine.history(handle.id) == entries
    assert files_below(world.directory) == files
    assert all(entry.epoch < taken.epoch for entry in entries)
    # Nobody has deleted what the second one goes on with, and it does.
    other, _ = world.open_engine()
    until(lambda: other.recover())
    final = other.migration(handle.id).wait(LONG)
    assert final.phase is Phase.SUCCESS
    # The first one's handle tells of it too, from the record.
    assert handle.status().phase is Phase.SUCCESS
    assert handle.result(LONG).host == DESTINATION
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_who_lost_the_lease_before_the_commit_does_not_commit(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path", store="sqlite")
    volume = world.create()
    driver = world.fake("right")
    driver.faults.add("update_migrated_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    until(lambda: "update_migrated_volume" in [name for name, _ in driver.calls])
    give_to_another(world, handle.id)
    let_go(driver, lambda: handle._owned.ended)  # type: ignore[union-attr]
    with pytest.raises(errors.LeaseLost):
        handle.wait(LONG)
    assert world.engine.show_volume(volume.id).host == SOURCE
    other, _ = world.open_engine()
    until(other.recover)
    other.migration(handle.id).result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


# --- storage that was left for later ------------------------------------------------------------


def moved_with_leftover(world: World) -> tuple[Volume, RetiredObject]:
    """Move a volume whose old storage cannot be deleted."""
    volume = world.create()
    world.fake("left").faults.add("delete_object:fail")
    world.engine.migrate(volume.id, DESTINATION, force_host_copy=True).result(LONG)
    (retired,) = world.rows()["retired"]
    assert (retired.host, retired.volume_id) == (SOURCE, volume.id)
    assert len(world.objects("left")) == len(world.objects("right")) == 1
    return volume, retired


@pytest.mark.parametrize("store", STORES)
def test_old_storage_that_could_not_be_deleted_is_deleted_later(make_world: Callable[..., World], store: str) -> None:
    world = make_world(kind="path", store=store)
    volume, retired = moved_with_leftover(world)
    world.engine.recover()
    (tried,) = world.rows()["retired"]
    assert tried.attempts > retired.attempts
    assert "delete_object" in tried.last_error
    world.fake("left").faults.clear()
    world.engine.recover()
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_a_half_made_copy_that_could_not_be_deleted_is_deleted_later(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path")
    volume = world.create()
    world.fake("right").faults.add("initialize_connection:fail")
    world.fake("right").faults.add("delete_object:fail")
    final = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True).wait(LONG)
    assert final.error_code == "driver-failed"
    assert len(world.objects("right")) == 1
    world.fake("right").faults.clear()
    world.engine.recover()
    world.assert_failed(volume, final, "driver-failed")


@pytest.mark.parametrize("doubt", ["missing", "down", "cannot tell", "error"])
def test_old_storage_is_kept_while_the_volume_is_not_seen(make_world: Callable[..., World], doubt: str) -> None:
    """It may be the only copy that is left."""
    world = make_world(kind="path")
    volume, _ = moved_with_leftover(world)
    world.fake("left").faults.clear()
    moved = world.engine.show_volume(volume.id)
    if doubt == "missing":
        world.path(moved).unlink()
    elif doubt == "down":
        world.fake("right").down_reason = "no power"
    elif doubt == "cannot tell":
        world.fake("right").faults.add("volume_exists:fail")
    else:
        world.change(moved, status=VolumeStatus.ERROR)
    for _ in range(2):
        world.engine.recover()
        assert len(world.objects("left")) == 1
        assert len(world.rows()["retired"]) == 1
    (name,) = world.objects("left")
    patterns.check(world.pool("left") / name, patterns.holed(volume.size_bytes, seed=len(volume.name)))


def test_old_storage_to_which_the_volume_came_back_is_kept(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path")
    volume, retired = moved_with_leftover(world)
    world.fake("left").faults.clear()
    world.change(volume, host=SOURCE, name_id=None)
    with world.store.writing() as transaction:
        transaction.remove_retired(retired.id)
        transaction.add_retired(replace(retired, delete_after=transaction.now()))
    world.engine.recover()
    assert len(world.objects("left")) == 1


def test_a_volume_comes_back_while_its_old_storage_is_still_there(make_world: Callable[..., World]) -> None:
    """The old object has the volume's own name; the copy that comes back must not be taken for it, nor replace it."""
    world = make_world(kind="path")
    volume, _ = moved_with_leftover(world)
    world.engine.migrate(volume.id, SOURCE, force_host_copy=True).result(LONG)
    now = world.engine.show_volume(volume.id)
    assert now.host == SOURCE
    assert now.name_id not in (None, volume.id)
    patterns.check(world.path(now), patterns.holed(volume.size_bytes, seed=len(volume.name)))


def test_storage_of_a_migration_that_goes_on_is_not_deleted(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file")
    volume, handle = begin_slowly(world.engine, world)
    (name,) = world.objects("right")
    with world.store.writing() as transaction:
        migration: Migration = transaction.get_migration(handle.id)
        transaction.add_retired(
            RetiredObject(
                id="r",
                migration_id=handle.id,
                volume_id=volume.id,
                host=DESTINATION,
                name_id=migration.destination_id,
                size_bytes=volume.size_bytes,
                delete_after=transaction.now(),
            )
        )
    other, _ = world.open_engine()
    other.recover()
    assert world.objects("right") == [name]
    assert len(world.rows()["retired"]) == 1
    handle.cancel()
    handle.wait(LONG)


def test_recovery_notes_every_new_owner(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file", migration={"cleanup_attempts": 1})
    mortal, store = mortal_engine(world)
    volume, handle = begin_slowly(mortal, world)
    store.die_at = 0
    handle._owned.control.cancel()  # type: ignore[union-attr]
    with pytest.raises(errors.VolmigError):
        handle.wait(LONG)
    take_from(world, handle.id)
    world.engine.recover()
    until(lambda: any(entry.epoch == 2 and entry.kind is EntryKind.INTENT for entry in world.engine.history(handle.id)))
    world.engine.cancel_migration(handle.id)
    world.engine.migration(handle.id).wait(LONG)
    world.assert_at(volume, SOURCE, Phase.CANCELLED)
    entries = world.engine.history(handle.id)
    intents = [entry for entry in entries if entry.kind is EntryKind.INTENT]
    assert [entry.epoch for entry in intents] == sorted(entry.epoch for entry in intents)
    assert len({(entry.epoch, entry.actor) for entry in intents}) == 2
