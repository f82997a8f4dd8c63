"""Snapshots: of a thin volume a thin one, of a thick volume one that has room for every change of it."""

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
from volmig.drivers.lvm.group import Group, is_for_room, is_in_use
from volmig.drivers.lvm.making import pool_full, require_thin_room
from volmig.drivers.lvm.reports import LogicalVolume, LvKind

if TYPE_CHECKING:
    from volmig.model import Volume

_ATTEMPTS: Final = 3
_TIMES: Final = 6
_PAUSE_SECONDS: Final = 0.5
_CHUNK_BYTES: Final = 4096
"""What a thick snapshot keeps at once of its origin, before it is overwritten there."""
_CHUNKS_OF_AREA: Final = _CHUNK_BYTES // 16
"""How many chunks the kernel describes in one chunk of exceptions, of 16 bytes each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshots:
    """Makes and removes snapshots in one group."""

    group: Group

    def make(self, volume: Volume, pool: str, snapshot_id: str) -> None:
        """Make a snapshot; succeed when it is there. :raises volmig.errors.PoolFull: when there is no room."""
        name = names.snapshot_name(snapshot_id)
        failure: CommandFailed | None = None
        for _ in range(_ATTEMPTS):
            view, lv = self.group.found(volume, pool, name)
            self.group.require_size(volume, lv, view.group)
            present = view.get(name)
            if present is not None:
                if present.kind is LvKind.SNAPSHOT and present.origin == lv.name:
                    return
                self._remove_half(present, view.group.uuid)
            what = f"a snapshot of volume {volume.id}"
            needed = lv.size_bytes
            try:
                if self.group.settings.is_thin:
                    # All are looked at, since they show what the pool has promised.
                    require_thin_room(self.group, self.group.view(), what, pool, needed)
                    self._create_thin(lv, name)
                else:
                    extents = room_for_all(lv.size_bytes, view.group.extent_bytes)
                    needed = extents * view.group.extent_bytes
                    self._create_thick(lv, name, pool, extents)
            except CommandFailed as exc:
                if is_for_room(exc):
                    raise pool_full(self.group, what, pool, needed) from exc
                failure = exc  # somebody else may have made it meanwhile
                continue
            return
        if failure is not None:
            raise self.group.failed("create_snapshot", failure) from failure

    def _create_thin(self, lv: LogicalVolume, name: str) -> None:
        self.group.commands.run(
            *("lvcreate", "-q", "-y", "--snapshot", "--setactivationskip", "n", "--name", name),
            f"{self.group.vg}/{lv.name}",
        )

    def _create_thick(self, lv: LogicalVolume, name: str, pool: str, extents: int) -> None:
        # Not a share: of that LVM takes what is free, and a snapshot that becomes full is lost.
        self.group.commands.run(
            *("lvcreate", "-q", "-y", "--snapshot", "--chunksize", f"{_CHUNK_BYTES}b", "--extents", str(extents)),
            *("--name", name, f"{self.group.vg}/{lv.name}", *self.group.allocation(pool)),
        )

    def _remove_half(self, present: LogicalVolume, vg_uuid: str) -> None:
        """Remove what is no snapshot yet, since lvcreate was killed, or no more, since its deletion was."""
        if self.group.settings.is_thin or present.kind is not LvKind.THICK:
            raise errors.ObjectNameTaken(
                backend=self.group.backend,
                location=self.group.path(present.name),
                holder=f"a {present.kind.value} volume that is no snapshot of this volume",
            )
        try:
            self._clear(present, vg_uuid)
            self.group.remove(present)
        except CommandFailed as exc:
            if is_in_use(exc):
                raise self._is_open(present) from exc
            raise self.group.failed("create_snapshot", exc) from exc

    # --- deleting -----------------------------------------------------------------------------

    def delete(self, snapshot_id: str) -> None:
        """Remove a snapshot; succeed when there is none.

        What a thick one has kept of its origin is cleared as a volume's data is. A call that was killed is gone on
        with: it has left a plain volume of the snapshot's name.

        :raises volmig.errors.StorageBusy: when it is in use.
        """
        name = names.snapshot_name(snapshot_id)
        view = self.group.view(name)
        lv = view.get(name)
        if lv is None:
            return
        if not self.group.settings.is_thin and self.group.settings.clear != "none":
            lv = self._split(lv)
            if lv is None:
                return
            self._patiently("delete_snapshot", lv, lambda: self._clear(lv, view.group.uuid))
        self._patiently("delete_snapshot", lv, lambda: self.group.remove(lv))

    def _split(self, lv: LogicalVolume) -> LogicalVolume | None:
        """Make of a thick snapshot the plain volume that holds what it has kept; None when somebody has removed it."""
        if lv.kind is LvKind.SNAPSHOT:
            self._require_closed(lv)
            # The first half of what lvremove does: LVM takes it from its origin, unless it is open.
            self._patiently(
                "delete_snapshot",
                lv,
                lambda: self.group.commands.run(
                    "lvconvert", "-q", "-y", "--splitsnapshot", f"{self.group.vg}/{lv.name}"
                ),
            )
        now = self.group.view(lv.name).get(lv.name)
        return now if now is not None and now.uuid == lv.uuid else None

    def _require_closed(self, lv: LogicalVolume) -> None:
        def is_closed() -> bool:
            now = self.group.view(lv.name).get(lv.name)
            return now is None or now.uuid != lv.uuid or not now.is_open

        if not devices.patiently(is_closed, times=_TIMES, pause_seconds=_PAUSE_SECONDS, pause=self.group.pause):
            raise self._is_open(lv)

    def _clear(self, lv: LogicalVolume, vg_uuid: str) -> None:
        if self.group.settings.clear == "none":
            return
        try:
            Clearing(group=self.group).clear(lv, vg_uuid)
        except NotThatVolume as exc:
            if is_still_there(self.group, lv):
                raise without_device(self.group, lv, exc) from exc

    def _patiently(self, method: str, lv: LogicalVolume, change: Callable[[], object]) -> None:
        """Make a change as soon as the snapshot is not open; succeed when somebody has removed it."""
        failures: list[CommandFailed] = []

        def is_done() -> bool:
            try:
                change()
            except CommandFailed as exc:
                failures.append(exc)
                if is_in_use(exc):
                    return False
                now = self.group.view(lv.name).get(lv.name)
                if now is not None and now.uuid == lv.uuid and now.kind is lv.kind:
                    raise self.group.failed(method, exc) from exc
            return True

        if not devices.patiently(is_done, times=_TIMES, pause_seconds=_PAUSE_SECONDS, pause=self.group.pause):
            raise self._is_open(lv) from failures[-1]

    def _is_open(self, lv: LogicalVolume) -> errors.StorageBusy:
        return errors.StorageBusy(backend=self.group.backend, reason=f"snapshot {self.group.vg}/{lv.name} is open")


def room_for_all(origin_bytes: int, extent_bytes: int) -> int:
    """Return how many extents a thick snapshot needs so that no change of its whole origin can fill it.

    It has a header, every chunk of the origin, and chunks that say where each is, the last of which ends the list.
    LVM reduces it to what it holds to be the most of use.
    """
    chunks = -(-origin_bytes // _CHUNK_BYTES)
    areas = chunks // _CHUNKS_OF_AREA + 1
    return -(-(1 + chunks + areas) * _CHUNK_BYTES // extent_bytes) + 1
