"""Taking over what volmig did not make, and letting go of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.manager.world import POOL, SIZE, World
from volmig import errors
from volmig.model import Method, Migration, Phase, RetiredObject, VolumeStatus
from volmig.testing import patterns

# --- manage and unmanage ------------------------------------------------------------------------


def foreign(world: World, name: str = "disk.img", pool: str = "p") -> patterns.Pattern:
    world.backends.pool(POOL)
    pattern = patterns.dense(SIZE)
    world.driver.add_foreign(pool, name, pattern.read(0, SIZE))
    return pattern


def test_manage_finds_the_pool_and_keeps_the_data(world: World) -> None:
    pattern = foreign(world, pool="q")
    volume = world.manager.manage("disk.img", world.record(1, host=""))
    assert (volume.host, volume.size_bytes, volume.status) == ("here@one#q", SIZE, VolumeStatus.AVAILABLE)
    world.check(volume, pattern)


def test_manage_refuses_what_belongs_to_a_volume(world: World) -> None:
    foreign(world)
    volume = world.manager.manage("disk.img", world.record(1))
    other = world.create()
    before = world.rows()
    for reference, owner in (("disk.img", volume), (other.backend_name, other)):
        with pytest.raises(errors.AlreadyManaged, match=owner.id):
            world.manager.manage(reference, world.record(1))
    assert world.rows() == before


def test_manage_refuses_what_is_about_to_be_deleted(world: World) -> None:
    """A volume moved away from it, and its deletion is still to come: it would hit the new volume's only data."""
    pattern = foreign(world)
    with world.store.writing() as transaction:
        transaction.add_retired(
            RetiredObject(
                id="r",
                migration_id="m",
                volume_id="v",
                host=POOL,
                name_id="v",
                provider_id="disk.img",
                size_bytes=SIZE,
            )
        )
    before = world.rows()
    with pytest.raises(errors.NotManageable, match="deletion"):
        world.manager.manage("disk.img", world.record(1))
    assert world.rows() == before
    world.driver.faults.clear()
    with world.driver.open_volume(replace(world.record(), provider_id="disk.img"), "rb") as handle:
        patterns.check(handle, pattern)


@pytest.mark.parametrize("phase", list(Phase))
def test_manage_refuses_what_a_migration_makes(world: World, phase: Phase) -> None:
    volume = world.manager.create(world.record(host="here@one#q"))
    migration = Migration(
        id="m",
        volume_id=volume.id,
        source=volume.host,
        destination=POOL,
        destination_id="copy",
        method=Method.BLOCK,
        phase=phase,
    )
    with world.store.writing() as transaction:
        transaction.add_migration(migration)
    for name in ("volume-copy", volume.backend_name):
        foreign(world, name=name)
        if phase.is_final:
            assert world.manager.manage(name, world.record(1)).host == POOL
            continue
        with pytest.raises(errors.NotManageable, match="migration m"):
            world.manager.manage(name, world.record(1))


def test_manage_asks_before_the_driver_touches_anything(world: World) -> None:
    foreign(world)
    world.manager.manage("disk.img", world.record(1))
    before = world.rows()
    world.driver.calls.clear()
    with pytest.raises(errors.AlreadyManaged):
        world.manager.manage("disk.img", world.record(1))
    assert "manage_existing" not in [method for method, _ in world.driver.calls]
    assert world.rows() == before


def test_manage_says_what_each_pool_says(world: World) -> None:
    with pytest.raises(errors.NotManageable) as caught:
        world.manager.manage("absent.img", world.record(1, host=""))
    assert "here@one#p" in caught.value.message
    assert "here@one#q" in caught.value.message
    with pytest.raises(errors.NotManageable) as caught:
        world.manager.manage("absent.img", world.record(1))
    assert "here@one#q" not in caught.value.message


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("manage_existing_get_size:fail", "driver-failed"),
        ("manage_existing_get_size:nonsense", "driver-contract-broken"),
        ("manage_existing:fail", "driver-failed"),
        ("manage_existing:nonsense", "driver-contract-broken"),
    ],
)
def test_a_failed_adoption_changes_nothing(world: World, fault: str, code: str) -> None:
    foreign(world)
    world.driver.faults.add(fault)
    with pytest.raises(errors.VolmigError) as caught:
        world.manager.manage("disk.img", world.record(1))
    assert caught.value.code == code
    assert world.rows()["volumes"] == []
    assert world.provisioned() == SIZE


def test_unmanage_leaves_the_object(world: World) -> None:
    volume = world.create()
    pattern = world.fill(volume)
    world.manager.unmanage(volume.id)
    assert world.rows()["volumes"] == []
    again = world.manager.manage(volume.backend_name, world.record(1))
    world.check(again, pattern)


@pytest.mark.parametrize("fault", ["unmanage:fail", "unmanage:nonsense"])
def test_unmanaging_that_fails_changes_nothing(world: World, fault: str) -> None:
    volume = world.create()
    world.driver.faults.add(fault)
    with pytest.raises(errors.VolmigError):
        world.manager.unmanage(volume.id)
    now = world.get(volume)
    assert replace(now, version=volume.version, updated_at=volume.updated_at) == volume
