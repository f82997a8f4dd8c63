"""Extending volumes: the record says how large one is, whatever fails."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from tests.unit.manager.world import SIZE, World
from tests.unit.waiting import let_go, until
from volmig import errors
from volmig.model import Reservation, Volume, VolumeStatus

# --- extend -------------------------------------------------------------------------------------


def test_extend_keeps_the_data_and_adds_zeroes(world: World) -> None:
    volume = world.create()
    pattern = world.fill(volume)
    grown = world.manager.extend(volume.id, 2 * SIZE)
    assert (grown.size_bytes, grown.status) == (2 * SIZE, VolumeStatus.AVAILABLE)
    assert world.get(volume) == grown
    world.check(grown, replace(pattern, size_bytes=2 * SIZE))
    assert world.rows()["reservations"] == []


@pytest.mark.parametrize("fault", ["extend_volume@1:fail", "extend_volume@1:fail=disk-full"])
def test_an_extension_that_fails_before_its_effect(world: World, fault: str) -> None:
    volume = world.create()
    pattern = world.fill(volume)
    world.driver.faults.add(fault)
    with pytest.raises(errors.OperatorError):
        world.manager.extend(volume.id, 2 * SIZE)
    left = world.get(volume)
    assert (left.size_bytes, left.status, left.status_reason) == (SIZE, VolumeStatus.AVAILABLE, "")
    world.check(left, pattern)
    assert world.rows()["reservations"] == []
    assert world.manager.extend(volume.id, 2 * SIZE).size_bytes == 2 * SIZE


@pytest.mark.parametrize("fault", ["extend_volume@1:fail_after", "extend_volume@1:nonsense"])
def test_an_extension_that_is_reported_as_failed_after_its_effect(world: World, fault: str) -> None:
    volume = world.create()
    pattern = world.fill(volume)
    world.driver.faults.add(fault)
    grown = world.manager.extend(volume.id, 2 * SIZE)
    assert (grown.size_bytes, grown.status) == (2 * SIZE, VolumeStatus.AVAILABLE)
    world.check(grown, replace(pattern, size_bytes=2 * SIZE))
    assert world.rows()["reservations"] == []


@pytest.mark.parametrize("fault", ["extend_volume@1:fail", "extend_volume@1:fail_after"])
def test_an_extension_whose_outcome_cannot_be_seen_is_an_error_that_can_be_mended(fault: str) -> None:
    world = World(fake_connection="handle")
    volume = world.create()
    pattern = world.fill(volume)
    world.driver.faults.add(fault)
    with pytest.raises(errors.DriverFailed):
        world.manager.extend(volume.id, 2 * SIZE)
    left = world.get(volume)
    assert left.status is VolumeStatus.ERROR
    assert "extend_volume" in left.status_reason
    assert world.rows()["reservations"] == []
    grown = world.manager.extend(volume.id, 2 * SIZE)
    assert (grown.status, grown.status_reason) == (VolumeStatus.AVAILABLE, "")
    world.check(grown, replace(pattern, size_bytes=2 * SIZE))
    world.driver.close()


def test_an_extension_that_may_come_yet_is_not_taken_for_one_that_failed() -> None:
    world = World(driver_timeout_seconds=0.1)
    volume = world.create()
    world.driver.faults.add("extend_volume@1:hang")
    with pytest.raises(errors.DriverTimeout):
        world.manager.extend(volume.id, 2 * SIZE)
    assert world.get(volume).status is VolumeStatus.ERROR
    assert world.rows()["reservations"] == []
    world.driver.faults.release()
    until(lambda: world.provisioned() == 2 * SIZE)
    grown = world.manager.extend(volume.id, 2 * SIZE)
    assert (grown.size_bytes, grown.status, grown.status_reason) == (2 * SIZE, VolumeStatus.AVAILABLE, "")
    world.driver.close()


def test_an_extension_beyond_the_pool_changes_nothing() -> None:
    world = World(fake_capacity_bytes=2 * SIZE)
    volume = world.create()
    before = world.rows()
    with pytest.raises(errors.DestinationTooSmall):
        world.manager.extend(volume.id, 2 * SIZE + 1)
    assert world.rows() == before
    assert world.manager.extend(volume.id, 2 * SIZE).size_bytes == 2 * SIZE
    world.driver.close()


def test_extensions_at_once_never_overcommit_a_pool() -> None:
    world = World(fake_capacity_bytes=5 * SIZE)
    volumes = [world.create() for _ in range(3)]
    world.driver.faults.add("extend_volume:delay=0.05")
    outcomes: list[object] = []

    def extend(volume: Volume) -> None:
        try:
            outcomes.append(world.manager.extend(volume.id, 2 * SIZE))
        except errors.VolmigError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=extend, args=(volume,)) for volume in volumes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome for outcome in outcomes if isinstance(outcome, str)) == ["destination-too-small"]
    assert world.provisioned() == 5 * SIZE
    assert world.rows()["reservations"] == []
    world.driver.close()


def test_a_volume_that_is_being_extended_is_not_extended_again(world: World) -> None:
    volume = world.create()
    world.driver.faults.add("extend_volume@1:hang")
    thread = threading.Thread(target=world.manager.extend, args=(volume.id, 2 * SIZE))
    thread.start()
    until(lambda: "extend_volume" in [method for method, _ in world.driver.calls])
    before = world.rows()
    with pytest.raises(errors.OperationInProgress, match="extend is under way"):
        world.manager.extend(volume.id, 3 * SIZE)
    assert world.rows() == before
    let_go(world.driver, lambda: not thread.is_alive())
    assert world.manager.extend(volume.id, 3 * SIZE).size_bytes == 3 * SIZE
    assert world.provisioned() == 3 * SIZE
    assert world.rows()["reservations"] == []


def test_an_extension_that_a_dead_process_left_can_be_repeated(world: World) -> None:
    volume = world.create()
    world.change(volume, status=VolumeStatus.EXTENDING)
    world.driver.extend_volume(volume, 3 * SIZE)
    grown = world.manager.extend(volume.id, 3 * SIZE)
    assert (grown.size_bytes, grown.status) == (3 * SIZE, VolumeStatus.AVAILABLE)


def test_deleting_a_volume_gives_back_the_room_of_its_lost_extension(world: World) -> None:
    volume = world.create()
    reservation = Reservation(id=f"extend-{volume.id}", host=volume.host, size_bytes=SIZE)
    with world.store.writing() as transaction:
        transaction.reserve(reservation, limit_bytes=10 * SIZE)
        transaction.update_volume(volume, status=VolumeStatus.EXTENDING)
    world.manager.delete(volume.id)
    world.assert_nothing_there()
