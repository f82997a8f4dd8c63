"""One backend's volume group: what is in it, whether it may be used, and what its errors mean."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from volmig import errors
from volmig.drivers.lvm import names, reports
from volmig.drivers.lvm.commands import CommandFailed, Commands
from volmig.drivers.lvm.devices import Devices
from volmig.drivers.lvm.layouts import read_layout
from volmig.drivers.lvm.options import Settings
from volmig.drivers.lvm.reports import LogicalVolume, LvKind, PhysicalVolume, VolumeGroup

if TYPE_CHECKING:
    from volmig.model import Volume

_NO_ROOM: Final = re.compile(
    r"insufficient (?:free|suitable)|no specified pvs have space|not enough|free space|no space left|too (?:large|big)",
    re.IGNORECASE,
)
_IN_USE: Final = re.compile(r"in use|is used by|contains a filesystem|is open\b|device or resource busy", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A volume group that may be used, and some or all of its volumes at the same instant."""

    group: VolumeGroup
    volumes: Sequence[LogicalVolume]

    def get(self, name: str) -> LogicalVolume | None:
        """Return the volume of a name, or None."""
        return next((lv for lv in self.volumes if lv.name == name), None)


class Group:
    """The volume group that a backend's options name."""

    def __init__(
        self,
        *,
        backend: str,
        settings: Settings,
        commands: Commands,
        devices: Devices,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.backend = backend
        self.settings = settings
        self.commands = commands
        self.devices = devices
        self.pause = pause
        self.expected: str | None = None
        """UUID that the group must have; None while nothing is known of it."""

    @property
    def vg(self) -> str:
        """Its name."""
        return self.settings.vg

    # --- looking ------------------------------------------------------------------------------

    def verified(self) -> VolumeGroup:
        """Return the volume group when it may be used. :raises volmig.errors.BackendDown: saying why it may not."""
        try:
            found = reports.volume_groups(self.commands, self.vg)
        except CommandFailed as exc:
            raise self.down(exc.reason) from exc
        if not found:
            raise self.down(f"there is no volume group {self.vg}")
        if len(found) > 1:
            raise self.down(f"there are {len(found)} volume groups of the name {self.vg}; are there clones of disks?")
        return self._usable(found[0])

    def _usable(self, group: VolumeGroup) -> VolumeGroup:
        if self.expected is not None and group.uuid != self.expected:
            raise self.down(
                f"the volume group {self.vg} is {group.uuid}, not {self.expected} that was seen before under this name"
            )
        if group.missing_pvs:
            raise self.down(f"the volume group {self.vg} misses {group.missing_pvs} of its physical volumes")
        if group.is_exported:
            raise self.down(f"the volume group {self.vg} is exported; `vgimport {self.vg}` takes it back into use")
        if group.system_id and group.system_id != self._system_id():
            raise self.down(f"the volume group {self.vg} belongs to the host with the system ID {group.system_id!r}")
        if not group.is_writable:
            raise self.down(f"the volume group {self.vg} is read-only; `vgchange --permission rw {self.vg}` changes it")
        return group

    def _system_id(self) -> str:
        try:
            return reports.local_system_id(self.commands)
        except CommandFailed as exc:
            raise self.down(exc.reason) from exc

    def view(self, *only: str) -> View:
        """Return the group and its volumes, or those of the names *only*, from the storage.

        :raises volmig.errors.BackendDown: when the group may not be used.
        """
        try:
            group, volumes = reports.group_and_volumes(self.commands, self.vg, names=only)
        except CommandFailed as exc:
            self.verified()  # says better why
            raise self.down(exc.reason) from exc
        return View(group=self.verified() if group is None else self._usable(group), volumes=volumes)

    def physical_volumes(self) -> list[PhysicalVolume]:
        """Return the group's physical volumes. :raises volmig.errors.BackendDown: when they cannot be read."""
        try:
            return reports.physical_volumes(self.commands, self.vg)
        except CommandFailed as exc:
            raise self.down(exc.reason) from exc

    def path(self, name: str) -> Path:
        """Return the path of a volume's device."""
        return self.devices.path(self.vg, name)

    # --- judging ------------------------------------------------------------------------------

    def in_pool(self, lv: LogicalVolume, pool: str, volume: Volume | None = None) -> bool:
        """Say whether a volume is one of this backend's kind in a pool.

        :raises volmig.errors.LocationDoubtful: when it lies partly there and partly elsewhere.
        """
        if self.settings.is_thin:
            return lv.kind is LvKind.THIN and lv.pool == pool
        if lv.kind is not LvKind.THICK:
            return False
        if not self.settings.tagged:
            return True
        touched = self.pools_of(lv, self.physical_volumes())
        if touched == {pool}:
            return True
        if pool not in touched:
            return False
        raise errors.LocationDoubtful(
            volume=lv.name if volume is None else volume.id,
            source=self.vg,
            destination=pool,
            reason=f"it lies on {', '.join(lv.devices)}, which is not all in one pool",
            hint=f"`lvs -o +devices {self.vg}/{lv.name}` shows where it lies; `pvmove` brings it together.",
        )

    def pools_of(self, lv: LogicalVolume, devices: Sequence[PhysicalVolume]) -> set[str]:
        """Return the pools that a thick volume has extents in; the empty name stands for what is in no pool.

        What is being moved is where it comes from until the move has taken effect.
        """
        tags = {pv.name: pv.tags for pv in devices}
        touched: set[str] = set()
        for device in self._places(lv):
            touched |= set(tags.get(device, ())) & set(self.settings.pools) or {""}
        return touched

    def _places(self, lv: LogicalVolume) -> Sequence[str]:
        if not any(device.rpartition("/")[2].startswith("pvmove") for device in lv.devices):
            return lv.devices
        try:
            layout = read_layout(self.commands, self.vg, lv.name)
        except CommandFailed as exc:
            raise self.down(exc.reason) from exc
        return () if layout is None else tuple(layout.extents)

    def allocation(self, pool: str) -> tuple[str, ...]:
        """Return the arguments that keep LVM to a pool's physical volumes."""
        return (f"@{pool}",) if self.settings.tagged else ()

    def stored(self, size_bytes: int, extent_bytes: int) -> int:
        """Return the size of the logical volume for so many bytes."""
        return -(-size_bytes // extent_bytes) * extent_bytes

    def require_size(self, volume: Volume, lv: LogicalVolume, group: VolumeGroup) -> None:
        """Refuse a volume that is not as large as recorded."""
        if lv.size_bytes != self.stored(volume.size_bytes, group.extent_bytes):
            raise errors.VolumeSizeMismatch(
                volume=volume.id, recorded=volume.size_bytes, actual=lv.size_bytes, location=self.path(lv.name)
            )

    def found(self, volume: Volume, pool: str, *more: str) -> tuple[View, LogicalVolume]:
        """Return the object of a volume. :raises volmig.errors.VolumeObjectMissing: when it is not in its pool."""
        name = names.object_name(volume)
        view = self.view(name, *more)
        lv = view.get(name)
        if lv is None or not self.in_pool(lv, pool, volume):
            raise errors.VolumeObjectMissing(volume=volume.id, location=f"{self.path(name)} in the pool {pool}")
        return view, lv

    # --- changing -----------------------------------------------------------------------------

    def activate(self, lv: LogicalVolume) -> None:
        """Have a volume's device there, and not suspended by a command that died."""
        if not lv.is_active:
            self.commands.run("lvchange", "-q", "-y", "-ay", "-K", f"{self.vg}/{lv.name}")
        elif lv.is_suspended:
            self.commands.run("lvchange", "-q", "-y", "--refresh", f"{self.vg}/{lv.name}")

    def remove(self, lv: LogicalVolume, *, spare_origins: bool = True) -> None:
        """Remove a volume if it still is the one of this name and UUID; else change nothing.

        :param spare_origins: do not remove one that has thick snapshots, which LVM would remove along with it.
        :raises CommandFailed: as lvremove(8) fails, for instance when it is open.
        """
        which = f'lv_name="{lv.name}" && lv_uuid="{lv.uuid}"'
        if spare_origins:
            which += ' && lv_attr!~"^[oO]"'
        self.commands.run("lvremove", "-q", "-y", "-S", which, self.vg)

    # --- errors -------------------------------------------------------------------------------

    def down(self, reason: str) -> errors.BackendDown:
        """Return the error of a backend that is out of service."""
        return errors.BackendDown(backend=self.backend, reason=reason)

    def failed(self, method: str, exc: CommandFailed) -> errors.DriverFailed:
        """Return the error of an LVM that failed for a reason that the driver has no better word for."""
        return errors.DriverFailed(backend=self.backend, method=method, reason=str(exc))


def is_for_room(exc: CommandFailed) -> bool:
    """Say whether LVM failed since there is no room; its warnings tell of room too, but of no failure."""
    return bool(_NO_ROOM.search(exc.reason))


def is_in_use(exc: CommandFailed) -> bool:
    """Say whether a command failed since somebody holds the device open."""
    return bool(_IN_USE.search(exc.stderr))
