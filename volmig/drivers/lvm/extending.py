"""Extending volumes.

What lies beyond the new size in the last extent is zeroed after the extension. Until that is done a tag of LVM's tells
so: it is set only on a volume that has its old size, and taken away when the zeroes are written. So a repeated call
does what is left to do, and one that comes late, when others have written to the volume, does nothing.

A call that was given up may have left its tag, and may still come back to it. So no call succeeds before it has taken
away all such tags, in turn with those that write zeroes. They are taken away only from a volume that has its new size:
when this call fails instead, one that is still to enlarge the volume has to find its tag.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from volmig import errors
from volmig.drivers.lvm import devices, names
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.connecting import is_still_there, without_device
from volmig.drivers.lvm.devices import NotThatVolume
from volmig.drivers.lvm.group import Group, View, is_for_room
from volmig.drivers.lvm.making import pool_full, promised
from volmig.drivers.lvm.reports import LogicalVolume

if TYPE_CHECKING:
    from volmig.model import Volume

LOG = logging.getLogger(__name__)

_TAG: Final = "volmig-tail-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Extending:
    """Extends volumes of one group."""

    group: Group

    def extend(self, volume: Volume, pool: str, new_size_bytes: int) -> None:
        """Enlarge the object of *volume* to *new_size_bytes*; succeed without change when it has that size.

        :raises volmig.errors.SizeTooSmall: when it is larger.
        :raises volmig.errors.PoolFull: when there is no room.
        :raises volmig.errors.StorageBusy: when there is something to zero and its device is not there.
        """
        view, lv = self.group.found(volume, pool)
        stored = self.group.stored(new_size_bytes, view.group.extent_bytes)
        if lv.size_bytes > stored or (lv.size_bytes == stored and new_size_bytes < volume.size_bytes):
            raise errors.SizeTooSmall(volume=volume.id, present=lv.size_bytes, wanted=new_size_bytes)
        if lv.size_bytes < stored:
            self.group.require_size(volume, lv, view.group)
            lv = self._enlarge(volume, pool, lv, new_size_bytes, stored)
        if _tails(lv):
            self._settle_tail(volume, lv, view, new_size_bytes, stored)

    def _enlarge(self, volume: Volume, pool: str, lv: LogicalVolume, new_size_bytes: int, stored: int) -> LogicalVolume:
        if self.group.settings.is_thin:
            self._require_promise(volume, pool, stored - lv.size_bytes)
        path = f"{self.group.vg}/{lv.name}"
        try:
            if stored != new_size_bytes:
                self._run("lvchange", "--addtag", _tag(new_size_bytes), "-S", _is_still(lv), self.group.vg)
            self._run("lvextend", "--size", f"{stored}b", path, *self.group.allocation(pool))
        except CommandFailed as exc:
            now = self._again(lv)
            if now is None:
                raise errors.VolumeObjectMissing(volume=volume.id, location=path) from exc
            if now.size_bytes != stored:
                self._take_back(now, lv, new_size_bytes)
                if is_for_room(exc):
                    raise pool_full(self.group, f"volume {volume.id}", pool, stored - lv.size_bytes) from exc
                if lv.has_snapshots:
                    raise errors.VolumeHasSnapshots(operation="extend", volume=volume.id, count="its") from exc
                raise self.group.failed("extend_volume", exc) from exc
        now = self._again(lv)
        if now is None or now.size_bytes != stored:
            raise errors.VolumeObjectMissing(volume=volume.id, location=path)
        return now

    def _take_back(self, now: LogicalVolume, lv: LogicalVolume, new_size_bytes: int) -> None:
        """Take this call's tag away from a volume that it has not enlarged."""
        if _tag(new_size_bytes) not in now.tags:
            return
        try:
            self._run("lvchange", "--deltag", _tag(new_size_bytes), "-S", _is_still(lv), self.group.vg)
        except CommandFailed as exc:  # the next extension takes it away
            LOG.warning("%s keeps a tag of an extension that failed: %s", self.group.path(lv.name), exc)

    def _require_promise(self, volume: Volume, pool: str, more_bytes: int) -> None:
        view = self.group.view()
        found = view.get(pool)
        if found is None:
            raise self.group.down(f"there is no thin pool {self.group.vg}/{pool}")
        if promised(view, pool) + more_bytes > int(found.size_bytes * self.group.settings.ratio):
            raise pool_full(self.group, f"volume {volume.id}", pool, more_bytes)

    def _settle_tail(self, volume: Volume, lv: LogicalVolume, view: View, new_size_bytes: int, stored: int) -> None:
        """Zero the tail unless that is done, and take away the tags of all extensions up to this one."""
        path = self.group.path(lv.name)
        try:
            self.group.activate(lv)
            with self.group.devices.opened(path, vg_uuid=view.group.uuid, lv_uuid=lv.uuid) as fd, devices.locked(fd):
                now = self._again(lv)
                if now is None or now.size_bytes != stored:
                    return  # somebody else has removed it, or enlarged it further, while this call waited
                if _tag(new_size_bytes) in now.tags:
                    devices.zero(fd, new_size_bytes, stored)
                for tag in _tails(now):
                    self._run("lvchange", "--deltag", tag, f"{self.group.vg}/{lv.name}")
        except NotThatVolume as exc:
            if is_still_there(self.group, lv):
                raise without_device(self.group, lv, exc) from exc
            raise errors.VolumeObjectMissing(volume=volume.id, location=path) from exc
        except CommandFailed as exc:
            raise self.group.failed("extend_volume", exc) from exc

    def _again(self, lv: LogicalVolume) -> LogicalVolume | None:
        now = self.group.view(lv.name).get(lv.name)
        return now if now is not None and now.uuid == lv.uuid else None

    def _run(self, command: str, *arguments: str) -> None:
        self.group.commands.run(command, "-q", "-y", *arguments)


def _tag(new_size_bytes: int) -> str:
    return f"{_TAG}{new_size_bytes}"


def _tails(lv: LogicalVolume) -> list[str]:
    """Return the tags of extensions whose tail may not be zeroed yet."""
    return [tag for tag in lv.tags if tag.startswith(_TAG)]


def _is_still(lv: LogicalVolume) -> str:
    """Select the volume if it has the size that it was seen with."""
    return f'lv_name="{names.lv_name(lv.name)}" && lv_uuid="{lv.uuid}" && lv_size={lv.size_bytes}b'
