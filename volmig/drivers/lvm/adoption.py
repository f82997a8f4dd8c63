"""Judging whether a present logical volume can be taken over as a volume."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from volmig import errors
from volmig.drivers import _images
from volmig.drivers.lvm import names
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.devices import NotThatVolume, size_of
from volmig.drivers.lvm.group import Group, View
from volmig.drivers.lvm.reports import LogicalVolume, LvKind

if TYPE_CHECKING:
    from volmig.model import Volume


@dataclass(frozen=True, kw_only=True, slots=True)
class Adoption:
    """A request to take over the logical volume that *reference* names, in the pool *pool*."""

    group: Group
    reference: str
    """``name``, ``vg/name`` or ``/dev/vg/name``."""
    pool: str

    def size_bytes(self) -> int:
        """Return the volume's size when it is fit to be taken over."""
        return self._found()[1].size_bytes

    def take(self, volume: Volume) -> str:
        """Check the volume once more, and that it has the size recorded; return its name.

        :raises volmig.errors.NotManageable: when it lies elsewhere or is not fit to be a volume.
        :raises volmig.errors.UnsupportedFormat: when it holds a disk image format.
        :raises volmig.errors.VolumeInUse: when its device is open.
        """
        _, lv = self._found()
        if lv.size_bytes != volume.size_bytes:
            raise errors.VolumeSizeMismatch(
                volume=volume.id, recorded=volume.size_bytes, actual=lv.size_bytes, location=self.group.path(lv.name)
            )
        return lv.name

    def _found(self) -> tuple[View, LogicalVolume]:
        name = self._name()
        view = self.group.view(name)
        lv = view.get(name)
        if lv is None:
            raise self._refused(f"there is no such logical volume in {self.group.vg}")
        self._require_kind(lv)
        if lv.is_open:
            raise errors.VolumeInUse(volume=self.reference, users="its device is open")
        self._require_raw(view, lv)
        return view, lv

    def _name(self) -> str:
        vg, _, name = self.reference.removeprefix("/dev/").rpartition("/")
        if (self.reference.startswith("/") and not self.reference.startswith("/dev/")) or "/" in vg:
            raise self._refused("it must be a logical volume's name, vg/name or /dev/vg/name")
        if (vg or self.reference.startswith("/")) and vg != self.group.vg:
            raise self._refused(f"it does not lie in the volume group {self.group.vg}")
        if names.is_own_use(name):
            raise self._refused("volmig gives such names to what it keeps beside volumes")
        try:
            return names.lv_name(name)
        except errors.UnsafePath as exc:
            raise self._refused(str(exc.fields["reason"])) from exc

    def _require_kind(self, lv: LogicalVolume) -> None:
        wanted = LvKind.THIN if self.group.settings.is_thin else LvKind.THICK
        if lv.kind is LvKind.SNAPSHOT:
            raise self._refused(f"it is a snapshot of {lv.origin}")
        if lv.kind is not wanted:
            raise self._refused(f"it is {lv.kind.value}, and this backend keeps {wanted.value} volumes")
        if lv.has_snapshots:
            raise self._refused("it has snapshots that volmig does not know")
        if lv.health:
            raise self._refused(f"it is not well: lvs shows {lv.attr!r}")
        try:
            is_here = self.group.in_pool(lv, self.pool)
        except errors.LocationDoubtful as exc:
            raise self._refused(str(exc.fields["reason"])) from exc
        if not is_here:
            place = f"in the thin pool {lv.pool}" if lv.pool else f"on {', '.join(lv.devices)}"
            raise self._refused(f"it lies {place}, not in the pool {self.pool}")

    def _require_raw(self, view: View, lv: LogicalVolume) -> None:
        path = self.group.path(lv.name)
        try:
            self.group.activate(lv)
            with self.group.devices.opened(path, vg_uuid=view.group.uuid, lv_uuid=lv.uuid, flags=os.O_RDONLY) as fd:
                detected = _images.image_format(fd, size_bytes=size_of(fd))
        except (NotThatVolume, OSError, CommandFailed) as exc:
            raise self._refused(f"{path} cannot be read: {exc}") from exc
        if detected != "raw":
            raise errors.UnsupportedFormat(
                what=self.reference,
                format=detected,
                reason="it would be presented as raw, and its users would see the container instead of the disk",
                hint=f"Convert it first: qemu-img convert -f {detected} -O raw, then take over the result.",
            )

    def _refused(self, reason: str) -> errors.NotManageable:
        return errors.NotManageable(
            reference=repr(self.reference[:200]),
            reason=reason,
            hint=f"Name a logical volume of the volume group {self.group.vg} that nothing uses; `lvs` shows them.",
        )
