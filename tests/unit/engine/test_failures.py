"""A migration that fails in the middle leaves the volume available at its source, byte for byte, and nothing else."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.engine.world import DESTINATION, KIB, SOURCE, STORES, World, files_below, pattern_of
from tests.unit.waiting import LONG, let_go, until
from volmig import errors
from volmig.model import MigrationStatus, Phase, VolumeStatus
from volmig.testing import patterns

IN_DATA = 130 * KIB
"""An offset at which the pattern has data."""
LAST = 5 * 64 * KIB - 1
"""The last such offset."""

COPIES = [
    # (way to the volumes, backend, fault, code of the error)
    ("handle", "right", f"write@{IN_DATA}:enospc", "disk-full"),
    ("handle", "right", "write@0:enospc", "disk-full"),
    ("handle", "right", f"write@{LAST}:enospc", "disk-full"),
    ("handle", "right", f"write@{IN_DATA}:eio", "transfer-failed"),
    ("handle", "right", f"write@{IN_DATA}:lost", "verification-failed"),
    ("handle", "right", f"write@{LAST}:lost", "verification-failed"),
    ("handle", "right", f"write@{IN_DATA}:flip", "verification-failed"),
    ("handle", "left", f"read@{IN_DATA}:eio", "transfer-failed"),
    ("handle", "left", "read@0:eio", "transfer-failed"),
    ("handle", "left", f"read@{IN_DATA}:short", "source-too-short"),
    ("handle", "right", "create_volume:garbage", "verification-failed"),
    ("path", "right", "create_volume:garbage", "verification-failed"),
    ("handle", "right", "create_volume:wrong_size=-1", "volume-size-mismatch"),
    ("path", "right", "create_volume:wrong_size=-1", "volume-size-mismatch"),
    ("path", "right", "create_volume:wrong_size=4096", "volume-size-mismatch"),
    ("path", "right", "create_volume:wrong_size=-999999999", "volume-size-mismatch"),
]
CALLS = [
    (kind, backend, f"{method}@1:{action}", code)
    for action, code in (
        ("fail", "driver-failed"),
        ("fail_after", "driver-failed"),
        ("nonsense", "driver-contract-broken"),
        ("fail=lease-lost", "driver-failed"),
        ("fail=transfer-cancelled", "driver-failed"),
        ("fail=disk-full", "disk-full"),
    )
    for kind, backend, method in (
        ("path", "right", "create_volume"),
        ("path", "right", "initialize_connection"),
        ("path", "right", "update_migrated_volume"),
        ("handle", "right", "open_volume"),
    )
]


@pytest.mark.parametrize(("kind", "backend", "fault", "code"), [*COPIES, *CALLS])
def test_a_failure_in_the_middle(
    make_world: Callable[..., World], kind: str, backend: str, fault: str, code: str
) -> None:
    world = make_world(kind=kind)
    volume = world.create()
    world.fake(backend).faults.add(fault)
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    final = handle.wait(LONG)
    world.assert_failed(volume, final, code)
    with pytest.raises(errors.VolmigError) as caught:
        handle.result()
    assert (caught.value.code, caught.value.message) == (code, final.error_message)
    # Another engine only has the record, and says the same.
    engine, _ = world.open_engine()
    with pytest.raises(errors.MigrationFailed) as told:
        engine.migration(final.id).result(LONG)
    assert code in told.value.message
    assert final.error_message in told.value.message


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("lock_volume", [False, True])
def test_after_a_failure_the_next_attempt_succeeds(
    make_world: Callable[..., World], store: str, lock_volume: bool
) -> None:
    world = make_world(kind="handle", store=store)
    volume = world.create()
    world.fake("right").faults.add(f"write@{IN_DATA}:enospc")
    failed = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, lock_volume=lock_volume).wait(LONG)
    world.assert_failed(volume, failed, "disk-full")
    world.fake("right").faults.clear()
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, lock_volume=lock_volume)
    assert handle.result(LONG).host == DESTINATION
    now = world.assert_at(volume, DESTINATION, Phase.SUCCESS)
    assert now.status_reason == ""
    assert [migration.phase for migration in world.engine.list_migrations()] == [Phase.SUCCESS, Phase.ERROR]


@pytest.mark.parametrize("method", ["create_volume", "initialize_connection", "update_migrated_volume"])
def test_a_driver_that_hangs_past_its_time(make_world: Callable[..., World], method: str) -> None:
    world = make_world(kind="path", right={"driver_timeout_seconds": 0.2})
    volume = world.create()
    driver = world.fake("right")
    driver.faults.add(f"{method}@1:hang")
    final = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True).wait(LONG)
    late_call = method == "create_volume"
    world.assert_failed(volume, final, "driver-timeout", late_call=late_call)
    assert method in final.error_message
    driver.faults.release()
    until(lambda: not any(thread.name.startswith("volmig-right-") for thread in threading.enumerate()))
    if late_call:
        # It is made after all, and left to the next recovery.
        assert world.objects("right") == [f"volume-{final.destination_id}"]
        assert any(retired.identity for retired in world.rows()["retired"])
        until(lambda: not world.engine.recover() and not world.rows()["retired"])
    world.assert_failed(volume, final, "driver-timeout")


def test_a_handle_that_comes_past_its_time_is_closed(make_world: Callable[..., World]) -> None:
    world = make_world(kind="handle", right={"driver_timeout_seconds": 0.2})
    volume = world.create()
    before = len(list(Path("/proc/self/fd").iterdir()))
    world.fake("right").faults.add("open_volume@1:hang")
    final = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True).wait(LONG)
    world.assert_failed(volume, final, "driver-timeout")
    world.fake("right").faults.release()
    until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


@pytest.mark.parametrize(
    ("fault", "code"),
    [("fail", "driver-failed"), ("nonsense", "driver-contract-broken"), ("fail_after", "driver-failed")],
)
def test_a_driver_that_fails_to_move_the_volume_itself(make_world: Callable[..., World], fault: str, code: str) -> None:
    """Whether or not the driver moved it before it failed, it is brought back."""
    world = make_world(kind="path")
    volume = world.create()
    world.fake("left").faults.add(f"migrate_volume@1:{fault}")
    final = world.engine.migrate(volume.id, DESTINATION).wait(LONG)
    world.assert_failed(volume, final, code)


def test_a_driver_that_hangs_while_it_moves_the_volume_leaves_both_places_alone(
    make_world: Callable[..., World],
) -> None:
    world = make_world(kind="path", left={"driver_migrate_timeout_seconds": 0.2})
    volume = world.create()
    world.fake("left").faults.add("migrate_volume@1:hang")
    before = files_below(world.directory / "fake" / "left")
    final = world.engine.migrate(volume.id, DESTINATION).wait(LONG)
    assert (final.phase, final.error_code) == (Phase.ERROR, "location-doubtful")
    now = world.engine.show_volume(volume.id)
    assert (now.status, now.migration_status, now.migration_id) == (VolumeStatus.ERROR, MigrationStatus.ERROR, None)
    assert SOURCE in now.status_reason
    assert DESTINATION in now.status_reason
    assert files_below(world.directory / "fake" / "left") == before
    assert world.rows()["reservations"] == []
    with pytest.raises(errors.WrongStatus):
        world.engine.migrate(volume.id, DESTINATION)


def test_a_driver_that_declines_leaves_it_to_the_host(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path", left={"fake_native_migration": False})
    volume = world.create()
    assert world.engine.migrate(volume.id, DESTINATION).result(LONG).host == DESTINATION
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_a_source_that_somebody_writes_to_is_found_out(make_world: Callable[..., World]) -> None:
    world = make_world(kind="file")
    volume = world.create(size_bytes=1024 * KIB)
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=2048 * KIB)
    until(lambda: handle.status().stage == "copy" and handle.status().bytes_done > 0)
    with world.path(volume).open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(byte)
        file.flush()
        os.fsync(file.fileno())
    final = handle.wait(LONG)
    world.assert_failed(volume, final, "source-changed")


def test_a_source_that_vanishes_is_never_made_up_for_by_its_copy(make_world: Callable[..., World]) -> None:
    """With the source gone, the copy is the only data left: it is kept, and the doubt is told."""
    world = make_world(kind="path")
    volume = world.create()
    driver = world.fake("right")
    driver.faults.add("update_migrated_volume@1:hang")
    driver.faults.add("update_migrated_volume@1:fail_after")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    until(lambda: "update_migrated_volume" in [name for name, _ in driver.calls])
    world.path(volume).unlink()
    let_go(driver, lambda: handle.status().phase.is_final)
    final = handle.wait(LONG)
    assert (final.phase, final.error_code) == (Phase.ERROR, "location-doubtful")
    assert SOURCE in final.error_message
    assert DESTINATION in final.error_message
    assert world.engine.show_volume(volume.id).status is VolumeStatus.ERROR
    (name,) = world.objects("right")
    patterns.check(world.pool("right") / name, pattern_of(volume))


@pytest.mark.parametrize("store", STORES)
def test_the_history_tells_of_the_failure(make_world: Callable[..., World], store: str) -> None:
    world = make_world(kind="handle", store=store)
    volume = world.create()
    world.fake("right").faults.add(f"write@{IN_DATA}:enospc")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    final = handle.wait(LONG)
    entries = world.engine.history(handle.id)
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
    phases = [entry.subject for entry in entries if entry.kind.value == "phase"]
    assert phases == ["queued", "starting", "migrating", "rolling_back", "error"]
    (failed,) = [entry for entry in entries if entry.kind.value == "failed"]
    assert (failed.subject, failed.data["code"]) == ("copy", "disk-full")
    assert failed.data["message"] == final.error_message
    assert {entry.subject for entry in entries if entry.kind.value == "undone"} >= {"create_destination", "connect"}
