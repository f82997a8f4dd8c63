"""Whether a volume can be moved to another pool by LVM itself, and having it done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from volmig import errors
from volmig.drivers.lvm import names
from volmig.drivers.lvm.group import Group
from volmig.drivers.lvm.leaving import Leavings
from volmig.drivers.lvm.moves import PhysicalMove
from volmig.drivers.lvm.options import LvmType
from volmig.drivers.lvm.reports import LogicalVolume
from volmig.drivers.lvm.tidying import Tidying

if TYPE_CHECKING:
    from volmig.drivers.base import MigrationHost
    from volmig.model import Volume


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A pool of an ``lvm`` backend, as its ``location_info`` tells."""

    host: str
    vg_uuid: str
    vg: str
    kind: str
    pool: str

    @classmethod
    def parse(cls, capabilities: Mapping[str, Any]) -> Place | None:
        """Return the place that a pool's capabilities tell of; None when it is none of this driver's."""
        parts = str(capabilities.get("location_info", "")).rsplit(":", 4)
        if len(parts) != 5 or not parts[0].startswith("lvm:"):
            return None
        return cls(host=parts[0].removeprefix("lvm:"), vg_uuid=parts[1], vg=parts[2], kind=parts[3], pool=parts[4])


def are_same(one: Place | None, other: Place | None) -> bool:
    """Say whether volumes in one pool are also in the other: the whole group, as a pool, has those of all its tags."""
    if one is None or other is None:
        return False
    if (one.host, one.vg_uuid, one.vg, one.kind) != (other.host, other.vg_uuid, other.vg, other.kind):
        return False
    is_whole = one.kind == LvmType.THICK.value and one.vg in {one.pool, other.pool}
    return is_whole or one.pool == other.pool


@dataclass(frozen=True, kw_only=True, slots=True)
class Moving:
    """Moves volumes between the physical volumes of one group."""

    group: Group
    host: str

    def can_reach(self, source_pool: str, host: MigrationHost) -> Place | None:
        """Return the destination when it is another tag's pool of this volume group on this host; else None."""
        place = Place.parse(host["capabilities"])
        if place is None or not self.group.settings.tagged:
            return None
        if (place.host, place.vg_uuid, place.vg) != (self.host, self.group.expected, self.group.vg):
            return None
        if place.kind != LvmType.THICK.value or place.pool == self.group.vg or names.tag_fault(place.pool):
            return None
        return place if place.pool != source_pool else None

    def move(self, volume: Volume, lv: LogicalVolume, source_pool: str, place: Place, host: MigrationHost) -> bool:
        """Have LVM move a volume; return False when it cannot, and nothing was changed.

        What the volume has left is cleared then. Where that fails it is told in the log, and tried again later. When
        the move fails, :meth:`recover` sees to it: a program that was left may still begin or end what is on record.
        """
        move = self.prepared(volume, lv, source_pool, place, host)
        if move is None or move.obstacle():
            return False
        move.carry_out()
        Tidying(group=self.group).after_move(lv)
        return True

    def recover(self, volume: Volume, lv: LogicalVolume, source_pool: str, place: Place, host: MigrationHost) -> bool:
        """Settle a :meth:`move` that nobody waits for any more; return whether the volume is at the destination.

        :raises volmig.errors.LocationDoubtful: when a pool's physical volumes are not known any more.
        """
        move = self.prepared(volume, lv, source_pool, place, host)
        if move is None:
            raise self._doubtful(volume, host)
        has_arrived = move.settle()
        Tidying(group=self.group).after_recovery(lv)
        return has_arrived

    def prepared(
        self, volume: Volume, lv: LogicalVolume, source_pool: str, place: Place, host: MigrationHost
    ) -> PhysicalMove | None:
        """Return the move, not begun; None when either pool has no physical volumes of its own."""
        devices = self.group.physical_volumes()
        source = [pv.name for pv in devices if source_pool in pv.tags]
        destination = [pv.name for pv in devices if place.pool in pv.tags]
        if not source or not destination or set(source) & set(destination):
            return None
        leavings = Leavings(group=self.group)
        return PhysicalMove(
            self.group.commands,
            volume=volume,
            vg=self.group.vg,
            lv=names.lv_name(lv.name),
            destination=host["host"],
            source_pvs=source,
            destination_pvs=destination,
            record=lambda extents: leavings.record(lv, extents),
            within=leavings.within,
        )

    def _doubtful(self, volume: Volume, host: MigrationHost) -> errors.LocationDoubtful:
        """Return the error of a move that cannot be settled, since a pool's physical volumes are not known."""
        return errors.LocationDoubtful(
            volume=volume.id,
            source=volume.host,
            destination=host["host"],
            reason="the tags of the physical volumes have changed since it was to be moved",
        )
