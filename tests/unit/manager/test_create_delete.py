"""Making and deleting volumes: whatever fails, nothing is left behind, and the record says what is there."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from tests.unit.manager.world import SIZE, World
from tests.unit.waiting import let_go, until
from volmig import errors
from volmig.manager.volumes import VolumeManager
from volmig.model import Volume, VolumeStatus
from volmig.testing import patterns
from volmig.testing.faults import FailingStore, InjectedFailure, When

# --- create -------------------------------------------------------------------------------------


def test_a_new_volume_is_there_and_available(world: World) -> None:
    volume = world.create()
    assert volume.status is VolumeStatus.AVAILABLE
    assert world.get(volume) == volume
    assert world.rows()["reservations"] == []
    assert world.provisioned() == SIZE
    world.check(volume, patterns.zeroes(SIZE))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("create_volume:fail", "driver-failed"),
        ("create_volume:fail_after", "driver-failed"),
        ("create_volume:fail=disk-full", "disk-full"),
        ("create_volume:fail_after=disk-full", "disk-full"),
        ("create_volume:nonsense", "driver-contract-broken"),
        ("do_setup:fail", "backend-down"),
        ("get_volume_stats:nonsense", "driver-contract-broken"),
    ],
)
def test_a_creation_that_fails_leaves_nothing(world: World, fault: str, code: str) -> None:
    world.driver.faults.add(fault)
    with pytest.raises(errors.VolmigError) as caught:
        world.create()
    assert caught.value.code == code
    world.assert_nothing_there()


def test_a_creation_that_comes_too_late_is_left_to_the_next_recovery() -> None:
    world = World(driver_timeout_seconds=0.1)
    world.driver.faults.add("create_volume:hang")
    with pytest.raises(errors.DriverTimeout):
        world.create()
    assert world.rows()["volumes"] == []
    # It is looked for once more, since the process could die before the call ends.
    (look,) = world.rows()["retired"]
    assert look.delete_after is not None
    assert look.identity is None
    world.driver.faults.release()
    until(lambda: len(world.rows()["retired"]) == 2)
    assert "delete_object" not in [method for method, _ in world.driver.calls]
    assert world.provisioned() == SIZE
    with world.store.reading() as view:
        due = view.list_retired(due_at=view.now())
    (late,) = (each for each in due if each.id != look.id)
    assert late.name_id == look.name_id
    assert late.identity is not None


def test_what_cannot_be_cleared_up_stays_on_record(world: World) -> None:
    world.driver.faults.add("create_volume:fail_after")
    world.driver.faults.add("delete_volume:fail")
    with pytest.raises(errors.DriverFailed):
        world.create()
    (volume,) = world.rows()["volumes"]
    assert volume.status is VolumeStatus.ERROR
    assert "create_volume" in volume.status_reason
    assert "delete_volume" in volume.status_reason
    assert world.rows()["reservations"] == []
    world.driver.faults.clear()
    world.manager.delete(volume.id)
    world.assert_nothing_there()


def test_a_volume_that_is_being_made_is_not_deleted(world: World) -> None:
    world.driver.faults.add("create_volume@1:hang")
    made: list[Volume] = []
    thread = threading.Thread(target=lambda: made.append(world.create()))
    thread.start()
    until(lambda: "create_volume" in [method for method, _ in world.driver.calls])
    (volume,) = world.rows()["volumes"]
    assert volume.status is VolumeStatus.CREATING
    with pytest.raises(errors.OperationInProgress, match="create is under way in process"):
        world.manager.delete(volume.id)
    let_go(world.driver, lambda: not thread.is_alive())
    assert [each.id for each in made] == [volume.id]
    world.manager.delete(volume.id)
    world.assert_nothing_there()


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_store_that_fails_during_a_creation_leaves_nothing_unrecorded(world: World, fail_at: int) -> None:
    store = FailingStore(world.store, fail_at=fail_at, when=When.BEFORE)
    manager = VolumeManager(store, world.backends, settle=world._settle)
    with pytest.raises(InjectedFailure):
        manager.create(world.record())
    recorded = world.rows()["volumes"]
    if not recorded:
        world.assert_nothing_there()
        return
    (volume,) = recorded
    world.manager.delete(volume.id)
    world.assert_nothing_there()


@pytest.mark.parametrize("number", [4, 16])
def test_creations_at_once_never_overcommit_a_pool(number: int) -> None:
    world = World(fake_capacity_bytes=3 * SIZE)
    world.driver.faults.add("create_volume:delay=0.05")
    outcomes: list[object] = []

    def create() -> None:
        try:
            outcomes.append(world.create())
        except errors.VolmigError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=create) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [outcome for outcome in outcomes if isinstance(outcome, Volume)]
    assert {outcome for outcome in outcomes if not isinstance(outcome, Volume)} <= {"destination-too-small"}
    assert len(made) == 3
    assert world.provisioned() == 3 * SIZE
    assert world.rows()["reservations"] == []
    world.driver.close()


# --- delete -------------------------------------------------------------------------------------


def test_delete(world: World) -> None:
    world.manager.delete(world.create().id)
    world.assert_nothing_there()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("delete_volume@1:fail", "driver-failed"),
        ("delete_volume@1:fail_after", "driver-failed"),
        ("delete_volume@1:fail=volume-in-use", "volume-in-use"),
        ("delete_volume@1:nonsense", "driver-contract-broken"),
    ],
)
def test_a_deletion_that_fails_can_be_repeated(world: World, fault: str, code: str) -> None:
    volume = world.create()
    world.driver.faults.add(fault)
    with pytest.raises(errors.VolmigError) as caught:
        world.manager.delete(volume.id)
    assert caught.value.code == code
    left = world.get(volume)
    assert left.status is VolumeStatus.ERROR
    assert left.status_reason
    world.manager.delete(volume.id)
    world.assert_nothing_there()


def test_a_deletion_that_hangs_can_be_repeated() -> None:
    world = World(driver_timeout_seconds=0.1)
    volume = world.create()
    world.driver.faults.add("delete_volume@1:hang")
    with pytest.raises(errors.DriverTimeout):
        world.manager.delete(volume.id)
    assert world.get(volume).status is VolumeStatus.ERROR
    # As long as the first call runs, a second one is refused.
    let_go(world.driver, lambda: not any(each.name.endswith("-delete_volume") for each in threading.enumerate()))
    world.manager.delete(volume.id)
    world.assert_nothing_there()


@pytest.mark.parametrize("status", [VolumeStatus.CREATING, VolumeStatus.DELETING])
def test_what_a_dead_process_left_can_be_deleted(world: World, status: VolumeStatus) -> None:
    with world.store.writing() as transaction:
        transaction.add_volume(replace(world.record(), status=status))
    (volume,) = world.rows()["volumes"]
    world.driver.create_volume(volume)
    world.manager.delete(volume.id)
    world.assert_nothing_there()
