"""An export that a process has left, when it was killed, does not keep a volume from being deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.engine.world import DESTINATION, World
from tests.unit.exporting import NAME, ExportingDriver
from tests.unit.waiting import LONG, until
from volmig import errors
from volmig.model import RequestContext, Volume, VolumeStatus

MakeWorld = Callable[..., World]


def exporting(make_world: MakeWorld, **options: Any) -> tuple[World, ExportingDriver]:
    world = make_world(kind="path", left={"volume_driver": NAME, **options})
    driver = world.fake("left")
    assert isinstance(driver, ExportingDriver)
    return world, driver


def test_a_volume_is_deleted_with_the_export_that_was_left(make_world: MakeWorld) -> None:
    world, driver = exporting(make_world)
    volume = world.create()
    driver.exported[volume.id] = []
    world.engine.delete_volume(volume.id)
    assert (driver.exported, world.objects("left"), world.engine.list_volumes()) == ({}, [], [])


def test_an_export_that_a_host_uses_keeps_its_volume(make_world: MakeWorld) -> None:
    world, driver = exporting(make_world)
    volume = world.create()
    driver.exported[volume.id] = ["iqn.of.other"]
    with pytest.raises(errors.VolumeInUse, match=r"iqn\.of\.other"):
        world.engine.delete_volume(volume.id)
    assert driver.exported == {volume.id: ["iqn.of.other"]}
    assert world.objects("left") == [volume.backend_name]
    assert world.engine.show_volume(volume.id).status is VolumeStatus.ERROR
    driver.exported[volume.id] = []
    world.engine.delete_volume(volume.id)
    assert world.objects("left") == []


def test_old_storage_is_deleted_with_its_export(make_world: MakeWorld) -> None:
    world, driver = exporting(make_world)
    volume = world.create()
    driver.exported[volume.id] = []
    world.engine.migrate(volume.id, DESTINATION, force_host_copy=True).result(LONG)
    assert (driver.exported, world.objects("left"), world.rows()["retired"]) == ({}, [], [])


def test_the_export_of_another_object_of_the_name_stays(make_world: MakeWorld) -> None:
    world, driver = exporting(make_world)
    volume = world.create()
    driver.exported[volume.id] = []
    world.engine._backends.of(volume).delete_object(volume, "that of one that is gone")
    assert driver.exported == {volume.id: []}
    assert world.objects("left") == [volume.backend_name]


def test_no_second_deletion_beside_a_removal_that_hangs(make_world: MakeWorld) -> None:
    world, driver = exporting(make_world, driver_call_timeouts={"remove_export": "0.2"}, driver_retries=0)
    volume = world.create()
    driver.exported[volume.id] = []
    driver.may_go_on.clear()
    try:
        with pytest.raises(errors.DriverTimeout):
            world.engine.delete_volume(volume.id)
        with pytest.raises(errors.StorageBusy, match="still runs"):
            world.engine.delete_volume(volume.id)
        assert world.objects("left") == [volume.backend_name]
    finally:
        driver.may_go_on.set()
    until(lambda: not world.engine.show_backend("left").calls_hanging)
    world.engine.delete_volume(volume.id)
    assert world.objects("left") == []


class _Earlier(ExportingDriver):
    """One that was written when the core never called it: it says by an error that there is nothing."""

    def remove_export(self, ctxt: RequestContext, volume: Volume) -> None:
        raise errors.VolumeObjectMissing(volume=volume.id, location="nowhere")


class _Stub(ExportingDriver):
    def remove_export(self, ctxt: RequestContext, volume: Volume) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("kind", [_Earlier, _Stub])
def test_drivers_of_an_earlier_contract_still_delete(make_world: Callable[..., World], kind: type) -> None:
    world = make_world(kind="path", left={"volume_driver": f"{__name__}:{kind.__name__}"})
    volume = world.create()
    world.engine.delete_volume(volume.id)
    assert world.engine.list_volumes() == []
