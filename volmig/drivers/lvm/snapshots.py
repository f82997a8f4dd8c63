"""Snapshots: of a thin volume a thin one, of a thick volume one that has room for every change of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from volmig import errors
from volmig.drivers.lvm import devices, names
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.group import Group, is_for_room, is_in_use
from volmig.drivers.lvm.making import pool_full
from volmig.drivers.lvm.reports import LogicalVolume, LvKind

if TYPE_CHECKING:
    from volmig.model import Volume

_ATTEMPTS: Final = 3
_TIMES: Final = 6
_PAUSE_SECONDS: Final = 0.5


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
                self._remove_half(present)
            try:
                self._create(lv, name, pool)
            except CommandFailed as exc:
                if is_for_room(exc):
                    raise pool_full(self.group, f"a snapshot of volume {volume.id}", pool, lv.size_bytes) from exc
                failure = exc  # somebody else may have made it meanwhile
                continue
            return
        if failure is not None:
            raise self.group.failed("create_snapshot", failure) from failure

    def _create(self, lv: LogicalVolume, name: str, pool: str) -> None:
        origin = f"{self.group.vg}/{lv.name}"
        if self.group.settings.is_thin:
            self.group.commands.run(
                "lvcreate", "-q", "-y", "--snapshot", "--setactivationskip", "n", "--name", name, origin
            )
            return
        # All that LVM can use, so that it cannot overflow and be lost.
        self.group.commands.run(
            *("lvcreate", "-q", "-y", "--snapshot", "--extents", "100%ORIGIN", "--name", name, origin),
            *self.group.allocation(pool),
        )

    def _remove_half(self, present: LogicalVolume) -> None:
        """Remove what a killed lvcreate has left: room for changes that is not a snapshot yet."""
        if self.group.settings.is_thin or present.kind is not LvKind.THICK:
            raise errors.ObjectNameTaken(
                backend=self.group.backend,
                location=self.group.path(present.name),
                holder=f"a {present.kind.value} volume that is no snapshot of this volume",
            )
        try:
            self.group.remove(present)
        except CommandFailed as exc:
            raise self.group.failed("create_snapshot", exc) from exc

    def delete(self, snapshot_id: str) -> None:
        """Remove a snapshot; succeed when there is none. :raises volmig.errors.StorageBusy: when it is in use."""
        name = names.snapshot_name(snapshot_id)
        lv = self.group.view(name).get(name)
        if lv is None:
            return
        failures: list[CommandFailed] = []

        def is_removed() -> bool:
            try:
                self.group.remove(lv)
            except CommandFailed as exc:
                if not is_in_use(exc):
                    raise self.group.failed("delete_snapshot", exc) from exc
                failures.append(exc)
                return False
            return True

        if not devices.patiently(is_removed, times=_TIMES, pause_seconds=_PAUSE_SECONDS, pause=self.group.pause):
            raise errors.StorageBusy(
                backend=self.group.backend, reason=f"snapshot {snapshot_id} is open"
            ) from failures[-1]
