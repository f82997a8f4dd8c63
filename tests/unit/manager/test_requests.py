"""What is refused of the requests for a volume, and attaching it."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ddt
import pytest

from tests.unit.manager.world import POOL, SIZE, World
from volmig import errors
from volmig.manager.volumes import check_size, new_volume
from volmig.model import Snapshot, VolumeStatus

# --- what is refused ----------------------------------------------------------------------------


@ddt.ddt
class Sizes(unittest.TestCase):
    @ddt.data(0, -1, 1.0, 1.5, "1", "1 GiB", True, False, None, 2**63, 2**70, float("nan"), float("inf"), b"1", [1])
    def test_is_no_size(self, size_bytes: Any) -> None:
        with pytest.raises(errors.SizeInvalid) as caught:
            check_size(size_bytes)
        assert repr(size_bytes) in caught.value.message

    @ddt.data(1, 2**40, 2**63 - 1)
    def test_is_a_size(self, size_bytes: int) -> None:
        check_size(size_bytes)


@pytest.mark.parametrize(
    ("status", "operation", "is_allowed"),
    [
        (status, operation, status in allowed)
        for operation, allowed in {
            "delete": {"available", "error", "creating", "deleting", "extending"},
            "extend": {"available", "error", "extending"},
            "unmanage": {"available", "error"},
            "attach": {"available", "in-use"},
        }.items()
        for status in VolumeStatus
    ],
)
def test_the_status_decides(world: World, status: VolumeStatus, operation: str, is_allowed: bool) -> None:
    with world.store.writing() as transaction:
        volume = transaction.add_volume(replace(world.record(), status=status))
    world.driver.create_volume(volume)
    operations: dict[str, Callable[[], object]] = {
        "delete": lambda: world.manager.delete(volume.id),
        "extend": lambda: world.manager.extend(volume.id, 2 * SIZE),
        "unmanage": lambda: world.manager.unmanage(volume.id),
        "attach": lambda: world.manager.attach(volume.id, instance="vm", mountpoint=""),
    }
    before = world.rows()
    if is_allowed:
        operations[operation]()
        return
    with pytest.raises(errors.WrongStatus) as caught:
        operations[operation]()
    assert repr(status.value) in caught.value.message
    assert world.rows() == before
    assert world.provisioned() == SIZE


@pytest.mark.parametrize("size_bytes", [SIZE, SIZE - 1, 1])
def test_a_volume_does_not_shrink(world: World, size_bytes: int) -> None:
    volume = world.create()
    with pytest.raises(errors.SizeTooSmall):
        world.manager.extend(volume.id, size_bytes)
    assert world.get(volume) == volume


@pytest.mark.parametrize("operation", ["delete", "extend", "unmanage"])
def test_a_volume_in_use_is_left_alone(world: World, operation: str) -> None:
    volume = world.create()
    world.manager.attach(volume.id, instance="vm-7", mountpoint="/dev/vdb")
    before = world.rows()
    with pytest.raises(errors.VolumeInUse, match="vm-7"):
        {
            "delete": lambda: world.manager.delete(volume.id),
            "extend": lambda: world.manager.extend(volume.id, 2 * SIZE),
            "unmanage": lambda: world.manager.unmanage(volume.id),
        }[operation]()
    assert world.rows() == before


@pytest.mark.parametrize("operation", ["delete", "unmanage"])
def test_a_volume_with_snapshots_is_kept(world: World, operation: str) -> None:
    volume = world.create()
    world.change(volume, snapshots=(Snapshot(id="s"),))
    before = world.rows()
    with pytest.raises(errors.VolumeHasSnapshots):
        {"delete": world.manager.delete, "unmanage": world.manager.unmanage}[operation](volume.id)
    assert world.rows() == before
    assert world.provisioned() == SIZE


@pytest.mark.parametrize("operation", ["delete", "extend", "unmanage", "attach"])
def test_a_migration_is_asked_to_give_way_first(world: World, operation: str) -> None:
    volume = world.change(world.create(), migration_id="some-migration")
    {
        "delete": lambda: world.manager.delete(volume.id),
        "extend": lambda: world.manager.extend(volume.id, 2 * SIZE),
        "unmanage": lambda: world.manager.unmanage(volume.id),
        "attach": lambda: world.manager.attach(volume.id, instance="vm", mountpoint=""),
    }[operation]()
    assert world.settled == [operation]


# --- attachments --------------------------------------------------------------------------------


def test_attach_and_detach(world: World) -> None:
    volume = world.create()
    one = world.manager.attach(volume.id, instance="vm-1", mountpoint="/dev/vdb")
    two = world.manager.attach(volume.id, instance="vm-2", mountpoint="")
    assert one.status is two.status is VolumeStatus.IN_USE
    assert [attachment.instance for attachment in two.attachments] == ["vm-1", "vm-2"]
    with pytest.raises(errors.RequestInvalid):
        world.manager.detach(volume.id, attachment_id=None)
    with pytest.raises(errors.RequestInvalid):
        world.manager.detach(volume.id, attachment_id="another")
    left = world.manager.detach(volume.id, attachment_id=two.attachments[0].id)
    assert left.status is VolumeStatus.IN_USE
    free = world.manager.detach(volume.id, attachment_id=None)
    assert (free.status, free.attachments) == (VolumeStatus.AVAILABLE, ())
    with pytest.raises(errors.RequestInvalid, match="none"):
        world.manager.detach(volume.id, attachment_id=None)


# --- records ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 256, "a\nb", "a\0b", "\x1b[31m"])
def test_names_that_cannot_be_shown(name: str) -> None:
    with pytest.raises(errors.RequestInvalid):
        new_volume(host=POOL, size_bytes=1, name=name, volume_type=None, project_id=None, metadata=None)


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"": "a"}, {"a": None}])
def test_metadata_is_text(metadata: Any) -> None:
    with pytest.raises(errors.RequestInvalid):
        new_volume(host=POOL, size_bytes=1, name="", volume_type=None, project_id=None, metadata=metadata)
