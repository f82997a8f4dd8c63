"""Pausing, resuming and limiting a migration: the answers are true, and the work goes on where it stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.unit.engine.world import DESTINATION, MIB, SOURCE, STORES, World, threads
from tests.unit.waiting import LONG, let_go, until
from volmig import Engine, errors
from volmig.engine import MigrationHandle
from volmig.model import EntryKind, Migration, MigrationStatus, Phase, Volume
from volmig.transfer.flow import copying

MakeWorld = Callable[..., World]
SLOW = 64 * 1024


def begin(world: World, *, engine: Engine | None = None, size_bytes: int = 2 * MIB) -> tuple[Volume, MigrationHandle]:
    """Begin a copy that takes half a minute if nobody lifts its limit."""
    volume = world.create(size_bytes=size_bytes)
    handle = (engine or world.engine).migrate(volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=SLOW)
    until(lambda: handle.status().bytes_done > 0)
    return volume, handle


def paused(world: World, handle: MigrationHandle) -> Migration:
    until(lambda: world.engine.show_migration(handle.id).phase is Phase.PAUSED)
    return world.engine.show_migration(handle.id)


def requests(world: World, migration_id: str) -> list[tuple[str, str]]:
    history = world.engine.history(migration_id)
    return [(entry.subject, entry.actor) for entry in history if entry.kind is EntryKind.REQUEST]


def resume(engine: Engine, migration_id: str) -> MigrationHandle:
    engine.limit_migration(migration_id, 0)
    return engine.resume_migration(migration_id)


@pytest.mark.parametrize("kind", ["file", "path", "handle"])
@pytest.mark.parametrize("store", STORES)
def test_a_migration_is_paused_and_resumed(make_world: MakeWorld, kind: str, store: str) -> None:
    world = make_world(kind=kind, store=store)
    volume, handle = begin(world)
    asked = world.engine.pause_migration(handle.id)
    assert asked.pause_requested_by == "someone"
    held = paused(world, handle)
    assert (held.owner, held.stage, held.lease_expires_at) == ("", "", None)
    assert not held.phase.is_final
    now = world.engine.show_volume(volume.id)
    assert (now.host, now.migration_id, now.migration_status) == (SOURCE, handle.id, MigrationStatus.MIGRATING)
    # The slot is free, and nobody takes it up again by himself.
    until(lambda: "volmig-worker" not in threads())
    assert world.engine.recover() == []
    assert handle.status().phase is Phase.PAUSED
    resumed = resume(world.engine, handle.id)
    assert resumed.wait(LONG).phase is Phase.SUCCESS
    # Whoever has waited since before the pause learns of the end.
    assert handle.wait(LONG).phase is Phase.SUCCESS
    assert resumed.status().destination_id == held.destination_id
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)
    assert requests(world, handle.id) == [("pause", "someone"), ("limit", "someone"), ("resume", "someone")]


def test_the_copy_goes_on_where_it_was(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_AT_RISK_BYTES", 16 * MIB)
    world = make_world(kind="file", store="sqlite")
    volume = world.create(size_bytes=48 * MIB)
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=40 * MIB)
    until(lambda: handle.status().bytes_done > 40 * MIB)
    handle.pause()
    held = paused(world, handle)
    with world.store.reading() as view:
        assert view.list_checkpoints() == [handle.id]
    # Another process may go on with it, since this one has let go of it.
    other, _ = world.open_engine(user="other")
    resume(other, handle.id).result(LONG)
    (copied,) = (e for e in world.engine.history(handle.id) if (e.kind, e.subject) == (EntryKind.DONE, "copy"))
    assert copied.data["bytes_resumed"] >= 16 * MIB
    final = world.engine.show_migration(handle.id)
    assert final.destination_id == held.destination_id
    assert final.source_digest == final.destination_digest != ""
    with world.store.reading() as view:
        assert view.list_checkpoints() == []
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_a_pause_from_another_process_is_seen(make_world: MakeWorld) -> None:
    world = make_world(store="sqlite")
    volume, handle = begin(world)
    other, _ = world.open_engine(user="other")
    other.pause_migration(handle.id)
    paused(world, handle)
    resume(other, handle.id).result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_a_paused_migration_is_cancelled(make_world: MakeWorld) -> None:
    world = make_world(store="sqlite")
    volume, handle = begin(world)
    handle.pause()
    paused(world, handle)
    other, _ = world.open_engine(user="other")
    other.cancel_migration(handle.id)
    assert handle.wait(LONG).phase is Phase.CANCELLED
    world.assert_at(volume, SOURCE, Phase.CANCELLED)


def test_a_paused_migration_gives_way(make_world: MakeWorld) -> None:
    world = make_world()
    volume, handle = begin(world)
    handle.pause()
    paused(world, handle)
    world.engine.delete_volume(volume.id)
    assert handle.wait(LONG).phase is Phase.CANCELLED
    assert world.objects("left") == world.objects("right") == []


def test_a_waiting_migration_is_paused_at_once(make_world: MakeWorld) -> None:
    world = make_world(migration={"max_concurrent_migrations": 1})
    _, first = begin(world)
    volume = world.create(name="second")
    second = world.engine.migrate(volume.id, DESTINATION)
    assert second.status().phase is Phase.QUEUED
    second.pause()
    paused(world, second)
    first.cancel()
    first.wait(LONG)
    assert world.engine.show_migration(second.id).phase is Phase.PAUSED
    resume(world.engine, second.id).result(LONG)


def test_a_migration_without_a_worker_is_paused_at_once(make_world: MakeWorld) -> None:
    world = make_world()
    volume = world.create()
    queued = world.engine.request_migration(volume.id, DESTINATION)
    held = world.engine.pause_migration(queued.id)
    assert held.phase is Phase.PAUSED
    with pytest.raises(errors.MigrationPaused):
        world.engine.run_migration(queued.id)
    assert world.engine.request_resume(queued.id).phase is Phase.QUEUED
    world.engine.run_migration(queued.id).result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_a_pause_is_asked_for_twice_and_withdrawn_twice(make_world: MakeWorld) -> None:
    world = make_world()
    _, handle = begin(world)
    for _ in range(2):
        world.engine.pause_migration(handle.id)
    paused(world, handle)
    world.engine.pause_migration(handle.id)
    world.engine.limit_migration(handle.id, 0)
    for _ in range(2):
        world.engine.request_resume(handle.id)
    world.engine.run_migration(handle.id).result(LONG)
    assert [what for what, _ in requests(world, handle.id)] == ["pause", "limit", "resume"]


def test_a_pause_that_is_withdrawn_at_once_changes_nothing(make_world: MakeWorld) -> None:
    world = make_world(store="sqlite")
    volume, handle = begin(world)
    for _ in range(5):
        world.engine.pause_migration(handle.id)
        world.engine.resume_migration(handle.id)
    world.engine.limit_migration(handle.id, 0)
    assert handle.wait(LONG).phase is Phase.SUCCESS
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_a_driver_that_moves_the_volume_is_not_held(make_world: MakeWorld) -> None:
    world = make_world(kind="path")
    volume = world.create()
    driver = world.fake("left")
    driver.faults.add("migrate_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION)
    until(lambda: "migrate_volume" in [name for name, _ in driver.calls])
    with pytest.raises(errors.PauseImpossible, match="moves it by itself"):
        handle.pause()
    let_go(driver, lambda: handle._owned.ended)  # type: ignore[union-attr]
    assert handle.wait(LONG).phase is Phase.SUCCESS


@pytest.mark.parametrize("phase", [Phase.SUCCESS, Phase.CANCELLED])
def test_what_has_ended_is_not_steered(make_world: MakeWorld, phase: Phase) -> None:
    world = make_world()
    _, handle = begin(world)
    if phase is Phase.CANCELLED:
        handle.cancel()
    else:
        handle.limit(0)
    assert handle.wait(LONG).phase is phase
    before = world.engine.history(handle.id)
    with pytest.raises(errors.PauseImpossible):
        handle.pause()
    with pytest.raises(errors.MigrationEnded):
        handle.resume()
    with pytest.raises(errors.MigrationEnded):
        handle.limit(1)
    with pytest.raises(errors.CancelTooLate):
        handle.cancel()
    assert world.engine.history(handle.id) == before


def test_a_limit_is_lifted_from_another_process(make_world: MakeWorld) -> None:
    world = make_world(store="sqlite")
    volume, handle = begin(world)
    other, _ = world.open_engine(user="other")
    other.limit_migration(handle.id, 0)
    assert handle.wait(LONG).phase is Phase.SUCCESS
    assert requests(world, handle.id) == [("limit", "other")]
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


@pytest.mark.parametrize("limit", [-1, True, 1.5, 2**63])
def test_a_limit_that_is_none(make_world: MakeWorld, limit: int) -> None:
    world = make_world()
    _, handle = begin(world)
    with pytest.raises(errors.RequestInvalid):
        handle.limit(limit)
    handle.cancel()
    handle.wait(LONG)


def test_a_worker_that_dies_before_it_pauses(make_world: MakeWorld) -> None:
    """The next one does it."""
    world = make_world(store="sqlite")
    volume = world.create()
    queued = world.engine.request_migration(volume.id, DESTINATION, force_host_copy=True)
    with world.store.writing() as transaction:
        transaction.claim_migration(queued.id, owner="dying", lease_seconds=0.01)
        transaction.update_migration(transaction.get_migration(queued.id), phase=Phase.STARTING)
    world.engine.pause_migration(queued.id)
    assert world.engine.show_migration(queued.id).phase is Phase.STARTING
    until(lambda: world.engine.recover() or world.engine.show_migration(queued.id).phase is Phase.PAUSED)
    until(lambda: world.engine.show_migration(queued.id).phase is Phase.PAUSED)
    resume(world.engine, queued.id).result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


# --- handed over ------------------------------------------------------------------------------------


def test_a_service_that_stops_leaves_its_copies_to_the_next(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_AT_RISK_BYTES", 16 * MIB)
    world = make_world(kind="file", store="sqlite", migration={"max_concurrent_migrations": 1})
    volume, waiting = world.create(size_bytes=48 * MIB), world.create(name="second")
    stopping, _ = world.open_engine(user="stopping")
    handle = stopping.migrate(volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=40 * MIB)
    second = stopping.migrate(waiting.id, DESTINATION, force_host_copy=True)
    until(lambda: handle.status().bytes_done > 40 * MIB)
    stopping.close(hand_over=True)
    left = world.engine.show_migration(handle.id)
    assert (left.phase, left.owner) == (Phase.MIGRATING, "")
    assert world.engine.show_migration(second.id).owner == ""
    world.engine.limit_migration(handle.id, 0)
    taken = {found.id: found for found in world.engine.recover()}
    assert set(taken) == {handle.id, second.id}
    for found in taken.values():
        found.result(LONG)
    assert world.engine.show_migration(handle.id).destination_id == left.destination_id
    (copied,) = (e for e in world.engine.history(handle.id) if (e.kind, e.subject) == (EntryKind.DONE, "copy"))
    assert copied.data["bytes_resumed"] >= 16 * MIB
    for each in (volume, waiting):
        world.assert_at(each, DESTINATION, Phase.SUCCESS)


def test_what_cannot_be_handed_over_is_waited_for(make_world: MakeWorld) -> None:
    world = make_world(kind="path")
    volume = world.create()
    stopping, _ = world.open_engine(user="stopping")
    driver = world.fake("left", stopping)
    driver.faults.add("migrate_volume@1:hang")
    handle = stopping.migrate(volume.id, DESTINATION)
    until(lambda: "migrate_volume" in [name for name, _ in driver.calls])
    closing = threading.Thread(target=stopping.close, kwargs={"hand_over": True})
    closing.start()
    let_go(driver, lambda: not closing.is_alive())
    assert world.engine.show_migration(handle.id).phase is Phase.SUCCESS
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


# --- by itself --------------------------------------------------------------------------------------


def test_what_a_dead_worker_has_left_is_taken_up_by_itself(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("volmig.migration.recovery._GRACE_SECONDS", 0.0)
    world = make_world(store="sqlite")
    volume = world.create()
    queued = world.engine.request_migration(volume.id, DESTINATION, force_host_copy=True)
    with world.store.writing() as transaction:
        transaction.claim_migration(queued.id, owner="dying", lease_seconds=0.3)
    other, _ = world.open_engine(user="other")
    other.keep_recovering(0.05)
    other.keep_recovering(0.05)
    assert other.migration(queued.id).wait(LONG).phase is Phase.SUCCESS
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)
    other.close()
    assert not [name for name in threads() if name.startswith(("volmig-takeover", "volmig-requests", "volmig-retire"))]


def test_rounds_of_recovery_survive_a_store_that_fails(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volmig.migration.recovery._GRACE_SECONDS", 0.0)
    world = make_world()
    failures = iter(range(3))
    plain = world.engine._migrations.take_over_all

    def fail_first(**options: object) -> object:
        if next(failures, None) is not None:
            raise errors.StoreBusy(database="it", seconds="1")
        return plain(**options)  # type: ignore[arg-type]

    monkeypatch.setattr(world.engine._migrations, "take_over_all", fail_first)
    volume = world.create()
    queued = world.engine.request_migration(volume.id, DESTINATION)
    world.engine.keep_recovering(0.02)
    assert world.engine.migration(queued.id).wait(LONG).phase is Phase.SUCCESS
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_recovery_leaves_what_it_cannot_serve_to_others(make_world: MakeWorld) -> None:
    world = make_world(kind="path", store="sqlite")
    volume = world.create()
    queued = world.engine.request_migration(volume.id, DESTINATION, force_host_copy=True)
    world.fake("right").down_reason = "still booting"
    (handle,) = world.engine.recover()
    with pytest.raises(errors.BackendDown):
        handle.wait(LONG)
    left = world.engine.show_migration(queued.id)
    assert (left.phase, left.owner, left.error_code) == (Phase.QUEUED, "", "")
    world.fake("right").down_reason = ""
    (handle,) = world.engine.recover()
    handle.result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_what_is_to_be_cancelled_does_not_wait_for_a_backend(make_world: MakeWorld) -> None:
    world = make_world(kind="path", store="sqlite")
    volume = world.create()
    queued = world.engine.request_migration(volume.id, DESTINATION, force_host_copy=True)
    world.fake("right").down_reason = "gone for good"
    world.engine.cancel_migration(queued.id)
    assert world.engine.migration(queued.id).wait(LONG).phase is Phase.CANCELLED


# --- the history ------------------------------------------------------------------------------------


def test_each_change_of_state_has_a_time_an_actor_and_a_reason(make_world: MakeWorld) -> None:
    world = make_world(store="sqlite")
    _, handle = begin(world)
    handle.pause()
    paused(world, handle)
    resume(world.engine, handle.id).result(LONG)
    changes = [entry for entry in world.engine.history(handle.id) if entry.kind is EntryKind.PHASE]
    assert [entry.subject for entry in changes] == [
        "queued", "starting", "migrating", "paused", "queued", "starting", "migrating", "completing", "success",
    ]  # fmt: skip
    assert all(entry.at and entry.actor and entry.data["reason"] for entry in changes)
    reasons = {entry.subject: entry.data["reason"] for entry in changes}
    assert reasons["paused"] == "someone asked for it"
