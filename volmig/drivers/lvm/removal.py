"""Removing volumes, and clearing what they held before their room is given to others."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from volmig import errors
from volmig.drivers.lvm import devices, names
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.connecting import is_still_there, without_device
from volmig.drivers.lvm.devices import NotThatVolume
from volmig.drivers.lvm.group import Group, is_in_use
from volmig.drivers.lvm.making import Making
from volmig.drivers.lvm.reports import LogicalVolume, LvKind

if TYPE_CHECKING:
    from volmig.model import Volume

LOG = logging.getLogger(__name__)

_TIMES: Final = 6
_PAUSE_SECONDS: Final = 0.5
_STEP_BYTES: Final = 256 * 1024**2
"""How much is cleared by one program, so that a process that ends does not leave one at work for long."""
_GRAIN_BYTES: Final = 1024**2
"""What is cleared is a multiple of it: blkdiscard(8) takes whole sectors only, whose size is the device's."""
_NOT_OFFERED: Final = re.compile(r"not supported", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """Removes volumes of one group."""

    group: Group

    def remove(self, volume: Volume, pool: str, identity: str | None) -> None:
        """Remove the object of *volume*, or only if it is the one of this UUID; succeed when it is not there.

        :raises volmig.errors.VolumeInUse: when its device is open, and stays so for some seconds.
        :raises volmig.errors.VolumeHasSnapshots: when it has snapshots.
        :raises volmig.errors.StorageBusy: when it is to be cleared and its device is not there.
        """
        name = names.object_name(volume)
        making = names.making_name(volume.backend_id)
        view = self.group.view(name, making)
        if view.get(making) is not None and identity is None:
            Making(group=self.group).remove_leftovers(making)
        lv = view.get(name)
        if lv is None or identity not in {None, lv.uuid} or not self.group.in_pool(lv, pool, volume):
            return
        self._require_no_snapshots(volume, lv)
        self._require_closed(volume, lv)
        if lv.kind is LvKind.THICK and self.group.settings.clear != "none":
            try:
                self.clear(lv, view.group.uuid)
            except NotThatVolume as exc:
                if is_still_there(self.group, lv):
                    raise without_device(self.group, lv, exc) from exc
                return  # somebody else has removed it
            except CommandFailed as exc:
                if is_in_use(exc):
                    raise _in_use(volume) from exc
                raise self.group.failed("delete_volume", exc) from exc
        self._remove(volume, lv)

    def _require_no_snapshots(self, volume: Volume, lv: LogicalVolume) -> None:
        if lv.has_snapshots:
            count = sum(other.origin == lv.name for other in self.group.view().volumes)
            raise errors.VolumeHasSnapshots(operation="delete", volume=volume.id, count=count)

    def _require_closed(self, volume: Volume, lv: LogicalVolume) -> None:
        def is_closed() -> bool:
            now = self.group.view(lv.name).get(lv.name)
            return now is None or now.uuid != lv.uuid or not now.is_open

        if lv.is_open and not self._patiently(is_closed):
            raise _in_use(volume)

    def _remove(self, volume: Volume, lv: LogicalVolume) -> None:
        failures: list[CommandFailed] = []

        def is_removed() -> bool:
            try:
                self.group.remove(lv)
            except CommandFailed as exc:
                if not is_in_use(exc):
                    raise self.group.failed("delete_volume", exc) from exc
                failures.append(exc)
                return False
            return True

        if not self._patiently(is_removed):
            raise _in_use(volume) from failures[-1]
        now = self.group.view(lv.name).get(lv.name)
        if now is not None and now.uuid == lv.uuid:
            self._require_no_snapshots(volume, now)  # one was made since it was looked at

    def _patiently(self, attempt: Callable[[], bool]) -> bool:
        return devices.patiently(
            attempt,
            times=_TIMES,
            pause_seconds=_PAUSE_SECONDS,
            pause=self.group.pause,
        )

    # --- clearing -----------------------------------------------------------------------------

    def clear(self, lv: LogicalVolume, vg_uuid: str) -> None:
        """Overwrite or discard what a thick volume holds, as the options say.

        :raises NotThatVolume: when it is not there, or its device is not.
        """
        settings = self.group.settings
        wanted = settings.clear_size_bytes or lv.size_bytes
        end = min(-(-wanted // _GRAIN_BYTES) * _GRAIN_BYTES, lv.size_bytes)
        self.group.activate(lv)
        found = self.group.devices
        path = self.group.path(lv.name)
        # What clears is given the device that is held open here, not a name that can come to mean another volume.
        with found.opened(path, vg_uuid=vg_uuid, lv_uuid=lv.uuid, flags=os.O_RDONLY) as fd:
            node = found.node(fd)
            zeroing = settings.clear == "zero"
            for start in range(0, end, _STEP_BYTES):
                length = min(_STEP_BYTES, end - start)
                try:
                    self._blkdiscard(node, start, length, zeroing=zeroing)
                except CommandFailed as exc:
                    if zeroing or not _NOT_OFFERED.search(exc.stderr):
                        raise
                    LOG.warning("%s cannot discard; it is overwritten with zeroes", path, extra={"lv": lv.name})
                    zeroing = True
                    self._blkdiscard(node, start, length, zeroing=True)

    def _blkdiscard(self, node: Path, start: int, length: int, *, zeroing: bool) -> None:
        ionice = self.group.settings.clear_ionice
        self.group.commands.run(
            *(("ionice", *ionice) if ionice else ()),
            *("blkdiscard", *(("--zeroout",) if zeroing else ())),
            *("--offset", str(start), "--length", str(length), str(node)),
        )


def _in_use(volume: Volume) -> errors.VolumeInUse:
    return errors.VolumeInUse(volume=volume.id, users="its device is held open: a mount, a process or an export")
