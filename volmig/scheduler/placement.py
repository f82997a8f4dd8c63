"""Whether a volume may be moved at all, and whether a named pool can take it."""

from __future__ import annotations

from volmig import errors
from volmig.manager.volumes.operations import Operation
from volmig.model import PoolAddress, Volume, VolumeStatus


def check_movable(volume: Volume) -> None:
    """Refuse a volume whose state does not allow a migration.

    :raises volmig.errors.RequestError: saying what stands against it.
    """
    if volume.migration_id is not None:
        raise errors.AlreadyMigrating(volume=volume.id, migration=volume.migration_id)
    if volume.attachments or volume.status is VolumeStatus.IN_USE:
        users = ", ".join(attachment.instance for attachment in volume.attachments)
        raise errors.VolumeInUse(volume=volume.id, users=f"attached to {users or 'somebody'}")
    if volume.snapshots:
        raise errors.VolumeHasSnapshots(operation="migrate", volume=volume.id, count=len(volume.snapshots))
    operation = Operation.of(volume)
    if operation is not None:
        raise operation.in_progress(volume)
    if volume.status is not VolumeStatus.AVAILABLE:
        raise errors.WrongStatus(
            operation="migrate", volume=volume.id, status=volume.status.value, allowed=VolumeStatus.AVAILABLE.value
        )
    if volume.format != "raw":
        raise errors.UnsupportedFormat(
            what=f"Volume {volume.id}",
            format=volume.format,
            reason="no engine that is installed translates it, and it is never copied blindly",
        )


def check_destination(volume: Volume, address: str) -> None:
    """Refuse a destination that is no pool's address, or the pool that the volume is in.

    That the pool exists, is in service and has room is checked while the room is reserved.

    :raises volmig.errors.AddressMalformed: when it is no address.
    :raises volmig.errors.SamePool: when the volume is there already.
    """
    if PoolAddress.parse(address) == PoolAddress.parse(volume.host):
        raise errors.SamePool(volume=volume.id, pool=address)
