"""Removing volumes, when what they held, and what they have left elsewhere, is cleared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from volmig import errors
from volmig.drivers.lvm import devices, names
from volmig.drivers.lvm.clearing import Clearing
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.connecting import is_still_there, without_device
from volmig.drivers.lvm.devices import NotThatVolume
from volmig.drivers.lvm.group import Group, is_in_use
from volmig.drivers.lvm.leaving import Leavings
from volmig.drivers.lvm.making import Making
from volmig.drivers.lvm.reports import LogicalVolume, LvKind

if TYPE_CHECKING:
    from volmig.model import Volume

_TIMES: Final = 6
_PAUSE_SECONDS: Final = 0.5


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
        if lv.kind is LvKind.THICK:
            self._clear_left(lv)
        if lv.kind is LvKind.THICK and self.group.settings.clear != "none":
            try:
                Clearing(group=self.group).clear(lv, view.group.uuid)
            except NotThatVolume as exc:
                if is_still_there(self.group, lv):
                    raise without_device(self.group, lv, exc) from exc
                return  # somebody else has removed it
            except CommandFailed as exc:
                if is_in_use(exc):
                    raise _in_use(volume) from exc
                raise self.group.failed("delete_volume", exc) from exc
        self._remove(volume, lv)

    def _clear_left(self, lv: LogicalVolume) -> None:
        """Clear what moves of the volume have left elsewhere: when it is gone nothing tells of that any more."""
        try:
            is_settled = Leavings(group=self.group).settle(lv)
        except CommandFailed as exc:
            failed = self.group.failed("delete_volume", exc)
            failed.add_note(
                f"What a move of {lv.name} has left cannot be cleared. Where its disk is broken, "
                "`pvchange --allocatable n DEVICE` has it given up."
            )
            raise failed from exc
        if not is_settled:
            raise errors.StorageBusy(
                backend=self.group.backend, reason=f"what a move of {lv.name} has left is still being cleared"
            )

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


def _in_use(volume: Volume) -> errors.VolumeInUse:
    return errors.VolumeInUse(volume=volume.id, users="its device is held open: a mount, a process or an export")
