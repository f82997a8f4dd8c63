"""Moving volumes through the engine: every way succeeds, is followed truthfully, and can be called off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.engine.world import DESTINATION, KIB, MIB, SOURCE, STORES, World
from tests.unit.waiting import LONG, let_go, until
from volmig import Engine, errors
from volmig.engine import MigrationHandle
from volmig.model import Method, Phase, Volume, VolumeStatus

SLOW = 512 * KIB
"""Bytes a second: a volume of 2 MiB takes long enough to be met in the middle of its copy."""
SOON = 2.0
"""Seconds within which a request to cancel has taken effect."""

WAYS = [
    ("file", False, Method.DRIVER),
    ("file", True, Method.BLOCK),
    ("path", False, Method.DRIVER),
    ("path", True, Method.BLOCK),
    ("handle", False, Method.DRIVER),
    ("handle", True, Method.FILE),
]


def begin_slowly(world: World, *, size_bytes: int = 2 * MIB, **options: Any) -> tuple[Volume, MigrationHandle]:
    """Begin to copy a volume, and return when data is under way."""
    volume = world.create(size_bytes=size_bytes, **{"name": options.pop("name", "data")})
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=SLOW, **options)
    until(lambda: handle.status().stage == "copy" and handle.status().bytes_done > 0)
    return volume, handle


# --- ways to the end ----------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("kind", "force_host_copy", "method"), WAYS)
def test_every_way_succeeds(
    make_world: Callable[..., World], kind: str, force_host_copy: bool, method: Method, store: str
) -> None:
    world = make_world(kind=kind, store=store)
    volume = world.create()
    handle = world.engine.migrate("data", DESTINATION, force_host_copy=force_host_copy)
    moved = handle.result(LONG)
    final = handle.status()
    assert (final.phase, final.method, final.requested_by) == (Phase.SUCCESS, method, "someone")
    assert (final.source, final.destination) == (SOURCE, DESTINATION)
    assert final.bytes_done == final.bytes_total == volume.size_bytes
    assert (final.owner, final.error_code, final.stage) == ("", "", "")
    assert final.started_at is not None
    assert final.finished_at is not None
    assert final.created_at is not None
    assert final.created_at <= final.started_at <= final.finished_at
    assert moved == world.assert_at(volume, DESTINATION, Phase.SUCCESS)
    if method is not Method.DRIVER:
        assert final.source_digest == final.destination_digest != ""
    assert world.engine.show_migration(handle.id) == final


@pytest.mark.parametrize("engine", ["auto", "chunked", "dd"])
@pytest.mark.parametrize("verify", ["none", "digest", "compare"])
def test_engines_and_ways_to_verify(make_world: Callable[..., World], engine: str, verify: str) -> None:
    world = make_world(kind="file")
    volume = world.create()
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, engine=engine, verify=verify)
    handle.result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)
    assert bool(handle.status().source_digest) == (verify != "none")


@pytest.mark.parametrize(("kind", "force_host_copy", "method"), WAYS)
def test_there_and_back_again(
    make_world: Callable[..., World], kind: str, force_host_copy: bool, method: Method
) -> None:
    world = make_world(kind=kind)
    volume = world.create()
    for host in (DESTINATION, SOURCE, DESTINATION, SOURCE):
        world.engine.migrate(volume.id, host, force_host_copy=force_host_copy).result(LONG)
        world.assert_at(volume, host, Phase.SUCCESS)
    world.engine.delete_volume(volume.id)
    assert world.objects("left") == world.objects("right") == []


@pytest.mark.parametrize("force_host_copy", [False, True])
def test_an_adopted_volume_is_moved(make_world: Callable[..., World], force_host_copy: bool) -> None:
    world = make_world(kind="file")
    original = world.create()
    path = world.path(original)
    world.engine.unmanage_volume(original.id)
    path.rename(path.with_name("disk.img"))
    volume = world.engine.manage_volume(str(path.with_name("disk.img")), name="data", project_id="owner")
    world.engine.migrate(volume.id, DESTINATION, force_host_copy=force_host_copy).result(LONG)
    moved = world.assert_at(volume, DESTINATION, Phase.SUCCESS)
    assert moved.provider_id is None


def test_the_locked_volume_is_in_maintenance_while_it_moves(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file")
    volume, handle = begin_slowly(world, lock_volume=True)
    assert world.engine.show_volume(volume.id).status is VolumeStatus.MAINTENANCE
    handle.cancel()
    handle.wait(LONG)
    world.assert_at(volume, SOURCE, Phase.CANCELLED)


# --- following ----------------------------------------------------------------------------------


def test_events_end_with_the_final_state_and_never_go_back(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file")
    volume = world.create(size_bytes=2 * MIB)
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=4 * MIB)
    events = list(handle.events(0.01))
    assert events[-1].migration == handle.status()
    assert events[-1].migration.phase is Phase.SUCCESS
    assert [event.migration.phase.is_final for event in events].count(True) == 1
    order = [Phase.QUEUED, Phase.STARTING, Phase.MIGRATING, Phase.COMPLETING, Phase.SUCCESS]
    positions = [order.index(event.migration.phase) for event in events]
    assert positions == sorted(positions)
    stages = list(dict.fromkeys(event.stage for event in events if event.stage))
    assert stages[0] == "copy"
    assert stages[-1] == "verify"
    for stage in stages:
        done = [event.migration.bytes_done for event in events if event.stage == stage]
        assert done == sorted(done), stage
        assert len(done) == 1 or done[-1] > done[0] or stage == "flush"
        assert all(0 <= each <= 2 * MIB for each in done)
    assert len(events) > 5


def test_events_come_no_faster_than_asked_for(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file")
    volume = world.create(size_bytes=MIB)
    started = time.monotonic()
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=4 * MIB)
    events = list(handle.events(0.1))
    assert len(events) <= (time.monotonic() - started) / 0.1 + 2


def test_a_finished_migration_has_one_event(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file")
    volume = world.create()
    handle = world.engine.migrate(volume.id, DESTINATION)
    handle.wait(LONG)
    for each in (handle, world.engine.migration(handle.id)):
        (event,) = each.events()
        assert event.migration.phase is Phase.SUCCESS
        assert event.stage == ""


def test_another_engine_sees_it_move(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file", store="sqlite")
    volume = world.create(size_bytes=MIB)
    handle = world.engine.migrate(
        volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=MIB, verify="none"
    )
    other, _ = world.open_engine()
    events = list(other.migration(handle.id).events(0.02))
    assert events[-1].migration.phase is Phase.SUCCESS
    done = [event.migration.bytes_done for event in events if event.migration.stage == "copy"]
    assert done == sorted(done)
    assert any(0 < each < MIB for each in done)
    assert other.migration(handle.id).result(LONG).host == DESTINATION


@pytest.mark.parametrize("is_own", [True, False])
def test_waiting_ends_when_its_time_is_over(make_world: Callable[..., World], is_own: bool) -> None:
    world = make_world(kind="file")
    _, handle = begin_slowly(world)
    if not is_own:
        other, _ = world.open_engine()
        handle = other.migration(handle.id)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        handle.wait(0.1)
    with pytest.raises(TimeoutError):
        handle.result(0.0)
    assert time.monotonic() - started < SOON
    assert not handle.status().phase.is_final
    handle.cancel()
    assert handle.wait(LONG).phase is Phase.CANCELLED


# --- cancelling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "store", "lock_volume"),
    [("file", "sqlite", False), ("file", "memory", True), ("handle", "memory", False), ("handle", "sqlite", True)],
)
def test_a_copy_is_cancelled_soon_and_leaves_nothing(
    make_world: Callable[..., World], kind: str, store: str, lock_volume: bool
) -> None:
    world = make_world(kind=kind, store=store)
    volume, handle = begin_slowly(world, lock_volume=lock_volume)
    started = time.monotonic()
    asked = handle.cancel()
    assert asked.cancel_requested_by == "someone"
    final = handle.wait(LONG)
    assert time.monotonic() - started < SOON
    assert (final.phase, final.error_code) == (Phase.CANCELLED, "migration-cancelled")
    now = world.assert_at(volume, SOURCE, Phase.CANCELLED)
    assert now.status_reason == ""
    with pytest.raises(errors.MigrationCancelled, match="someone"):
        handle.result()
    world.engine.migrate(volume.id, DESTINATION).result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_cancelling_twice_is_the_same(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file")
    volume, handle = begin_slowly(world)
    assert handle.cancel().cancel_requested_by == handle.cancel().cancel_requested_by
    assert handle.wait(LONG).phase is Phase.CANCELLED
    world.assert_at(volume, SOURCE, Phase.CANCELLED)


@pytest.mark.parametrize("phase", [Phase.SUCCESS, Phase.ERROR, Phase.CANCELLED])
def test_an_ended_migration_cannot_be_cancelled(make_world: Callable[..., World], phase: Phase) -> None:
    world = make_world(kind="handle")
    if phase is Phase.CANCELLED:
        _, handle = begin_slowly(world)
        handle.cancel()
    else:
        volume = world.create()
        if phase is Phase.ERROR:
            world.fake("right").faults.add("write@0:enospc")
        handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    assert handle.wait(LONG).phase is phase
    before = world.snapshot()
    with pytest.raises(errors.CancelTooLate) as caught:
        handle.cancel()
    assert repr(phase.value) in caught.value.message
    assert world.snapshot() == before


def test_the_commit_cannot_be_cancelled(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path")
    volume = world.create()
    world.fake("right").faults.add("update_migrated_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    until(lambda: handle.status().phase is Phase.COMPLETING)
    with pytest.raises(errors.CancelTooLate, match="completing"):
        handle.cancel()
    let_go(world.fake("right"), lambda: handle.status().phase.is_final)
    handle.result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_a_move_by_the_driver_that_was_cancelled_is_brought_back(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path")
    volume = world.create()
    world.fake("left").faults.add("migrate_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION)
    until(lambda: "migrate_volume" in [name for name, _ in world.fake("left").calls])
    handle.cancel()
    let_go(world.fake("left"), lambda: handle.status().phase.is_final)
    assert handle.wait(LONG).phase is Phase.CANCELLED
    world.assert_at(volume, SOURCE, Phase.CANCELLED)


def test_what_cannot_be_cleared_up_after_a_cancellation_is_told(make_world: Callable[..., World]) -> None:
    """Cancelled means that nothing of it is left."""
    world = make_world(kind="path")
    volume, handle = begin_slowly(world)
    world.fake("right").faults.add("delete_object:fail")
    handle.cancel()
    final = handle.wait(LONG)
    assert (final.phase, final.error_code) == (Phase.ERROR, "object-left-behind")
    (retired,) = world.rows()["retired"]
    assert (retired.host, retired.migration_id) == (DESTINATION, handle.id)
    now = world.engine.show_volume(volume.id)
    assert (now.host, now.status) == (SOURCE, VolumeStatus.AVAILABLE)


@pytest.mark.parametrize("store", STORES)
def test_another_engine_cancels_it(make_world: Callable[..., World], store: str) -> None:
    world = make_world(kind="file", store=store)
    volume, handle = begin_slowly(world)
    other, _ = world.open_engine(user="somebody else")
    started = time.monotonic()
    assert other.cancel_migration(handle.id).cancel_requested_by == "somebody else"
    final = other.migration(handle.id).wait(LONG)
    assert time.monotonic() - started < SOON
    assert final.phase is Phase.CANCELLED
    assert "somebody else" in final.error_message
    with pytest.raises(errors.MigrationCancelled, match="somebody else"):
        handle.result(LONG)
    world.assert_at(volume, SOURCE, Phase.CANCELLED)


# --- other requests for a volume that moves -----------------------------------------------------

REQUESTS: dict[str, Callable[[Engine, Volume], object]] = {
    "delete": lambda engine, volume: engine.delete_volume(volume.id),
    "extend": lambda engine, volume: engine.extend_volume(volume.id, 3 * MIB),
    "attach": lambda engine, volume: engine.attach_volume(volume.id, instance="vm-7"),
    "unmanage": lambda engine, volume: engine.unmanage_volume(volume.id),
}


@pytest.mark.parametrize(("operation", "is_own"), [*((name, True) for name in REQUESTS), ("delete", False)])
def test_an_unlocked_migration_gives_way(make_world: Callable[..., World], operation: str, is_own: bool) -> None:
    world = make_world(kind="file", store="memory" if is_own else "sqlite")
    volume, handle = begin_slowly(world)
    engine = world.engine if is_own else world.open_engine()[0]
    started = time.monotonic()
    REQUESTS[operation](engine, volume)
    assert time.monotonic() - started < 2 * SOON
    assert handle.wait(LONG).phase is Phase.CANCELLED
    assert world.objects("right") == []
    assert world.rows()["reservations"] == []
    if operation == "delete":
        assert world.objects("left") == []
        assert world.rows()["volumes"] == []
    elif operation == "unmanage":
        assert world.objects("left") == [volume.backend_name]
        assert world.rows()["volumes"] == []
    elif operation == "extend":
        now = world.engine.show_volume(volume.id)
        assert (now.size_bytes, now.host, now.status) == (3 * MIB, SOURCE, VolumeStatus.AVAILABLE)
        assert world.path(now).stat().st_size == 3 * MIB
    else:
        now = world.engine.show_volume(volume.id)
        assert (now.status, now.host) == (VolumeStatus.IN_USE, SOURCE)


@pytest.mark.parametrize("operation", REQUESTS)
def test_a_locked_migration_does_not(make_world: Callable[..., World], operation: str) -> None:
    world = make_world(kind="file")
    volume, handle = begin_slowly(world, lock_volume=True)
    with pytest.raises(errors.VolumeMigrating) as caught:
        REQUESTS[operation](world.engine, volume)
    assert handle.id in caught.value.message
    assert operation in caught.value.message
    assert handle.status().phase is Phase.MIGRATING
    assert not handle.status().cancel_requested_by
    handle.cancel()
    handle.wait(LONG)
    world.assert_at(volume, SOURCE, Phase.CANCELLED)


def test_a_request_waits_for_a_migration_that_is_about_to_end(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path")
    volume = world.create()
    world.fake("right").faults.add("update_migrated_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    until(lambda: handle.status().phase is Phase.COMPLETING)
    releasing = threading.Timer(0.2, let_go, (world.fake("right"), lambda: handle.status().phase.is_final))
    releasing.start()
    grown = world.engine.extend_volume(volume.id, 2 * volume.size_bytes)
    releasing.join()
    assert (grown.host, grown.size_bytes) == (DESTINATION, 2 * volume.size_bytes)
    assert handle.status().phase is Phase.SUCCESS
    assert world.objects("left") == []


def test_a_volume_that_moves_is_not_moved_again(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file")
    volume, handle = begin_slowly(world)
    with pytest.raises(errors.AlreadyMigrating, match=handle.id):
        world.engine.migrate(volume.id, DESTINATION)
    handle.cancel()
    handle.wait(LONG)


# --- many at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2])
def test_migrations_beyond_the_limit_wait_in_their_order(make_world: Callable[..., World], limit: int) -> None:
    world = make_world(kind="path", migration={"max_concurrent_migrations": limit})
    driver = world.fake("right")
    driver.faults.add("create_volume:hang")
    volumes = [world.create(name="x" * (number + 1)) for number in range(5)]
    handles = [world.engine.migrate(volume.id, DESTINATION, force_host_copy=True) for volume in volumes]
    until(lambda: [name for name, _ in driver.calls].count("create_volume") == limit)
    time.sleep(0.1)
    phases = [handle.status().phase for handle in handles]
    assert phases == [Phase.STARTING] * limit + [Phase.QUEUED] * (5 - limit)
    # All of them hold their room already.
    assert len(world.rows()["reservations"]) == 5
    driver.faults.clear()
    let_go(driver, lambda: all(handle.status().phase.is_final for handle in handles))
    finals = [handle.wait(LONG) for handle in handles]
    assert {final.phase for final in finals} == {Phase.SUCCESS}
    if limit == 1:
        begun = [final.started_at for final in finals]
        assert begun == sorted(begun)  # type: ignore[type-var]
    for volume in volumes:
        world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_many_migrations_at_once_in_both_directions(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file", store="sqlite", migration={"max_concurrent_migrations": 4})
    volumes = [world.create(name="y" * (number + 1), host=SOURCE if number % 2 else DESTINATION) for number in range(8)]
    handles = [
        world.engine.migrate(
            volume.id, DESTINATION if volume.host == SOURCE else SOURCE, force_host_copy=number % 3 > 0
        )
        for number, volume in enumerate(volumes)
    ]
    for handle in handles:
        handle.result(LONG)
    for volume, handle in zip(volumes, handles, strict=True):
        world.assert_at(volume, handle.status().destination, Phase.SUCCESS)
        assert handle.status().destination != volume.host


def test_of_two_requests_at_once_one_moves_the_volume(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file", store="sqlite")
    volume = world.create()
    other, _ = world.open_engine()
    outcomes: list[object] = []
    barrier = threading.Barrier(2)

    def move(engine: Engine) -> None:
        barrier.wait()
        try:
            outcomes.append(engine.migrate(volume.id, DESTINATION, force_host_copy=True).result(LONG).host)
        except errors.VolmigError as error:
            outcomes.append(error.code)

    both = [threading.Thread(target=move, args=(engine,)) for engine in (world.engine, other)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert DESTINATION in outcomes
    assert set(outcomes) <= {DESTINATION, "already-migrating", "same-pool", "store-conflict", "volume-missing"}
    assert len(world.engine.list_migrations()) == 1
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)
