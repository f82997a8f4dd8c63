"""What once went wrong in the engine, and must not again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.engine.test_recovery import moved_with_leftover
from tests.unit.engine.world import DESTINATION, SOURCE, World
from tests.unit.manager.drivers import SmallDriver
from tests.unit.waiting import until
from volmig import errors
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.volumes import VolumeManager, new_volume
from volmig.migration import ownership
from volmig.migration.ownership import OwnedMigration
from volmig.model import Method, Migration, Phase, VolumeStatus
from volmig.testing.memory_store import MemoryStore
from volmig.transfer import boottime_seconds

MakeWorld = Callable[..., World]


def test_stale_statistics_overcommit() -> None:
    """B reads the statistics; A creates and ends; B reserves by the old figures."""
    gib = 1024**3
    made: list[int] = []
    gate, seen = threading.Event(), threading.Event()

    class Pool(SmallDriver):
        def get_volume_stats(self, refresh=False):
            used = sum(made)
            pool = {
                "pool_name": "p",
                "total_capacity_bytes": 10 * gib,
                "free_capacity_bytes": 10 * gib,
                "provisioned_capacity_bytes": used,
                "thin_provisioning": True,
            }
            stats = {
                "volume_backend_name": "s",
                "vendor_name": "v",
                "driver_version": "1",
                "storage_protocol": "x",
                "pools": [pool],
            }
            if threading.current_thread().name.startswith("volmig-") and self.hold:
                self.hold = False
                seen.set()
                gate.wait(10)
            return stats

        hold = False

        def create_volume(self, volume):
            made.append(volume.size_bytes)

    driver = Pool()
    manager = VolumeManager(
        MemoryStore(),
        Backends({"small": Backend(driver, name="small", driver_name="x")}, host="here"),
        settle=lambda *_: None,
    )

    def rec() -> Any:
        return new_volume(
            host="here@small#p", size_bytes=6 * gib, name="", volume_type=None, project_id=None, metadata=None
        )

    driver.hold = True
    out: list[Any] = []

    def b() -> None:
        try:
            out.append(manager.create(rec()))
        except errors.VolmigError as error:
            out.append(error.code)

    t = threading.Thread(target=b)
    t.start()
    seen.wait(10)
    manager.create(rec())
    gate.set()
    t.join()
    assert out == ["destination-too-small"]


def test_waiting_migration_is_cancelled_soon(make_world: MakeWorld) -> None:
    world = make_world(kind="path", migration={"max_concurrent_migrations": 1})
    driver = world.fake("right")
    driver.faults.add("create_volume@1:hang")
    one, two = world.create(name="a"), world.create(name="bb")
    world.engine.migrate(one.id, DESTINATION, force_host_copy=True)
    h2 = world.engine.migrate(two.id, DESTINATION, force_host_copy=True)
    until(lambda: "create_volume" in [name for name, _ in driver.calls])
    h2.cancel()
    assert h2.wait(2).phase is Phase.CANCELLED


def test_ambiguous_count(make_world: MakeWorld) -> None:
    world = make_world()
    for _ in range(12):
        world.create(size_bytes=1)
    with pytest.raises(errors.VolumeNameAmbiguous, match="12 volumes"):
        world.engine.migrate("data", DESTINATION)


def test_native_way_back_with_leftover(make_world: MakeWorld) -> None:
    world = make_world(kind="path")
    volume, _ = moved_with_leftover(world)
    final = world.engine.migrate(volume.id, SOURCE).wait(30)
    now = world.engine.show_volume(volume.id)
    assert now.status is VolumeStatus.AVAILABLE, (final.error_code, final.error_message)


def test_limit_changed(make_world: MakeWorld) -> None:
    m = Migration(
        id="m",
        volume_id="v",
        source="a@b#c",
        destination="a@b#d",
        destination_id="x",
        method=Method.BLOCK,
        bandwidth_limit_bytes=100,
    )
    owned = OwnedMigration(m)
    owned.record(replace(m, bandwidth_limit_bytes=0))
    assert owned.control.limit_bytes == 0


def test_dd_limit(make_world: MakeWorld) -> None:
    world = make_world(kind="file")
    volume = world.create()
    with pytest.raises(errors.RequestError):
        world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, engine="dd", bandwidth_limit_bytes=1024)


def test_dd_handle(make_world: MakeWorld) -> None:
    world = make_world(kind="handle")
    volume = world.create()
    with pytest.raises(errors.RequestError):
        world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, engine="dd")


def test_events_unchanged(make_world: MakeWorld) -> None:
    world = make_world(kind="file")
    volume = world.create()
    q = world.engine.request_migration(volume.id, DESTINATION)
    seen: list[Any] = []
    follower = threading.Thread(target=lambda: seen.extend(world.engine.migration(q.id).events(0.01)))
    follower.start()
    time.sleep(0.3)
    world.engine.cancel_migration(q.id)
    follower.join()
    # The queued state once, however often it was looked at; then what the cancellation made of it.
    assert len([event for event in seen if event.migration.phase is Phase.QUEUED]) <= 2
    assert seen[-1].migration.phase is Phase.CANCELLED


def test_cancel_closed(make_world: MakeWorld) -> None:
    world = make_world(kind="file")
    volume = world.create()
    q = world.engine.request_migration(volume.id, DESTINATION)
    world.engine.close()
    with pytest.raises(errors.EngineClosed):
        world.engine.cancel_migration(q.id)
    assert world.rows()["migrations"][0].cancel_requested_by == ""


def test_driver_migration_when_retire_points_elsewhere(make_world: MakeWorld) -> None:
    """delete of a volume whose old storage is still retired, then recover."""
    world = make_world(kind="path")
    volume, _ = moved_with_leftover(world)
    world.fake("left").faults.clear()
    world.engine.delete_volume(volume.id)
    world.engine.recover()
    assert world.objects("left") == world.objects("right") == []
    assert world.rows()["retired"] == []


def test_spurious_warning(make_world: MakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    world = make_world(kind="file", store="sqlite", migration={"heartbeat_seconds": 0.05})
    volumes = [world.create(name="z" * (number + 1)) for number in range(12)]
    handles = [world.engine.migrate(volume.id, DESTINATION, force_host_copy=True) for volume in volumes]
    for handle in handles:
        handle.result(60)
    bad = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert not bad, bad[:3]


def test_what_a_slow_backend_takes_to_answer_is_not_taken_from_the_lease(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statistics, asked for before the migration is accepted, once left nothing of the lease that came after."""
    world = make_world(kind="path")
    volume = world.create()
    driver = world.engine._backends.at(DESTINATION).driver
    passed, statistics = [0.0], driver.get_volume_stats

    def slowly(refresh: bool = False) -> Any:
        passed[0] = 100_000.0
        return statistics(refresh)

    monkeypatch.setattr(driver, "get_volume_stats", slowly)
    monkeypatch.setattr(ownership, "boottime_seconds", lambda: boottime_seconds() + passed[0])
    world.engine.migrate(volume.id, DESTINATION).result(30)
    assert passed[0]
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)
