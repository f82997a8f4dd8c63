"""Making volumes: each has its name only when it is whole.

What lies beyond a volume's size in its last extent must show nobody's data. So where the storage itself does not make
zeroes of it, the volume is made under the name ``making-<id>``, zeroed there, and then renamed. Whoever works on it
has locked its device, and holds it open so that it is known which volume it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from volmig import errors
from volmig.drivers.lvm import devices, names
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.connecting import is_still_there, without_device
from volmig.drivers.lvm.devices import NotThatVolume
from volmig.drivers.lvm.group import Group, View, is_for_room, is_in_use
from volmig.drivers.lvm.reports import LogicalVolume, LvKind

if TYPE_CHECKING:
    from volmig.model import Volume

_ATTEMPTS: Final = 5
FULL_PERCENT: Final = 98.0
"""From where on a thin pool's metadata has no room for another volume that is written to."""
_OUT_OF_SPACE: Final = "D"
"""LVM's letter for the health of a thin pool that has no room for data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """Makes volumes in one group."""

    group: Group

    def make(self, volume: Volume, pool: str) -> None:
        """Make the object of *volume*; succeed without change when it is there.

        :raises volmig.errors.PoolFull: when there is no room for it.
        :raises volmig.errors.VolumeSizeMismatch: when it is there with another size.
        """
        name, making = names.volume_name(volume.backend_id), names.making_name(volume.backend_id)
        if not names.fits(self.group.vg, name):
            raise errors.UnsafePath(path=name, reason="with its volume group's name it is too long for a device")
        failure: CommandFailed | None = None
        for _ in range(_ATTEMPTS):
            view = self._view(name, making)
            present = view.get(name)
            if present is not None:
                self._require_same(volume, present, view, pool)
                return
            try:
                if self._attempt(volume, pool, view, name, making):
                    return
            except CommandFailed as exc:
                # Made, renamed or cleared away by somebody else meanwhile, if it is nothing worse: the next look tells.
                if is_for_room(exc):
                    raise pool_full(self.group, f"volume {volume.id}", pool, volume.size_bytes) from exc
                failure = exc
        if failure is None:
            raise errors.StorageBusy(backend=self.group.backend, reason=f"others make and remove {making} all the time")
        raise self.group.failed("create_volume", failure) from failure

    def _view(self, name: str, making: str) -> View:
        # For a thin volume all are looked at, since they show what the pool has promised.
        return self.group.view() if self.group.settings.is_thin else self.group.view(name, making)

    def _require_same(self, volume: Volume, present: LogicalVolume, view: View, pool: str) -> None:
        if not self.group.in_pool(present, pool, volume):
            raise errors.ObjectNameTaken(
                backend=self.group.backend,
                location=self.group.path(present.name),
                holder=f"a {present.kind.value} volume that is not in the pool {pool}",
            )
        self.group.require_size(volume, present, view.group)

    def _attempt(self, volume: Volume, pool: str, view: View, name: str, making: str) -> bool:
        """Go one way from what is there to the volume; return whether it is there now."""
        stored = self.group.stored(volume.size_bytes, view.group.extent_bytes)
        half = view.get(making)
        if half is not None and not (half.size_bytes == stored and self.group.in_pool(half, pool, volume)):
            self._remove_half(half, view)
            return False
        if half is None:
            zeroed = self._require_room(volume, pool, view, stored)
            whole = zeroed or stored == volume.size_bytes
            self._create(name if whole else making, stored, pool)
            if whole:
                return True
            half = self.group.view(making).get(making)
        return half is not None and self._finish(volume, half, view, stored, name)

    def _require_room(self, volume: Volume, pool: str, view: View, stored: int) -> bool:
        """Refuse what a thin pool has no room for; return whether the storage makes zeroes of new volumes."""
        if not self.group.settings.is_thin:
            return False
        return require_thin_room(self.group, view, f"volume {volume.id}", pool, stored).zeroes

    def _create(self, name: str, stored: int, pool: str) -> None:
        vg = self.group.vg
        if self.group.settings.is_thin:
            self.group.commands.run(
                *("lvcreate", "-q", "-y", "-Wn", "--setactivationskip", "n", "--type", "thin"),
                *("--virtualsize", f"{stored}b", "--thinpool", pool, "--name", name, vg),
            )
            return
        self.group.commands.run(
            *("lvcreate", "-q", "-y", "-Wy", "-Zy", "--size", f"{stored}b", "--name", name, vg),
            *self.group.allocation(pool),
        )

    def _finish(self, volume: Volume, half: LogicalVolume, view: View, stored: int, name: str) -> bool:
        group = self.group
        group.activate(half)
        try:
            with (
                group.devices.opened(group.path(half.name), vg_uuid=view.group.uuid, lv_uuid=half.uuid) as fd,
                devices.locked(fd),
            ):
                # Another one may have finished it while this one waited: then it may hold data by now.
                now = group.view(half.name).get(half.name)
                if now is None or now.uuid != half.uuid:
                    return False
                devices.zero(fd, volume.size_bytes, stored)
                group.commands.run("lvrename", "-q", "-y", group.vg, half.name, name)
        except NotThatVolume as exc:
            if is_still_there(group, half):
                raise without_device(group, half, exc) from exc
            return False
        return True

    def _remove_half(self, half: LogicalVolume, view: View) -> None:
        if not self._is_left(half, view.group.uuid):
            raise errors.StorageBusy(
                backend=self.group.backend, reason=f"somebody makes {half.name} with another size or in another pool"
            )
        self.group.remove(half)

    def _is_left(self, half: LogicalVolume, vg_uuid: str) -> bool:
        """Say whether nobody works on a half-made volume."""
        if not half.is_active:
            return True
        try:
            with self.group.devices.opened(self.group.path(half.name), vg_uuid=vg_uuid, lv_uuid=half.uuid) as fd:
                return not devices.is_locked(fd)
        except NotThatVolume:
            return False

    def remove_leftovers(self, *only: str) -> None:
        """Remove half-made volumes that nobody works on, or only those of these names."""
        view = self.group.view(*only)
        for half in view.volumes:
            if names.is_making(half.name) and half.kind in {LvKind.THICK, LvKind.THIN} and not half.is_open:
                try:
                    if self._is_left(half, view.group.uuid):
                        self.group.remove(half)
                except CommandFailed as exc:
                    if not is_in_use(exc):  # else somebody has begun to work on it
                        raise self.group.failed("do_setup", exc) from exc


def is_full(pool: LogicalVolume) -> bool:
    """Say whether a thin pool has no room for another volume that is written to, whatever it has promised."""
    return pool.metadata_percent >= FULL_PERCENT or pool.data_percent >= 100 or pool.health == _OUT_OF_SPACE


def is_damaged(pool: LogicalVolume) -> bool:
    """Say whether a thin pool has worse than no room for data."""
    return pool.health not in {"", _OUT_OF_SPACE}


def require_thin_room(group: Group, view: View, what: str, pool: str, stored: int) -> LogicalVolume:
    """Return a thin pool that so many more bytes can be promised of; *view* is of the whole group.

    :raises volmig.errors.PoolFull: when its data or metadata is full, or it would promise more than it may.
    :raises volmig.errors.BackendDown: when it is not there, or damaged.
    """
    found = view.get(pool)
    if found is None or found.kind is not LvKind.THIN_POOL:
        raise group.down(f"there is no thin pool {group.vg}/{pool}")
    # First, since what is full shows as damage too.
    if is_full(found):
        raise pool_full(group, what, pool, stored)
    if is_damaged(found):
        raise group.down(f"the thin pool {group.vg}/{pool} is not well: lvs shows {found.attr!r}")
    if promised(view, pool) + stored > int(found.size_bytes * group.settings.ratio):
        raise pool_full(group, what, pool, stored)
    return found


def promised(view: View, pool: str) -> int:
    """Return the sum of the sizes of all volumes and snapshots in a thin pool, in bytes."""
    return sum(lv.size_bytes for lv in view.volumes if lv.pool == pool)


def pool_full(group: Group, what: str, pool: str, needed: int) -> errors.PoolFull:
    """Return the error of a pool without room, with what room there is now."""
    return errors.PoolFull(pool=f"{group.vg} (pool {pool})", what=what, needed=needed, free=room(group, pool))


def room(group: Group, pool: str) -> int:
    """Return how many bytes new volumes can take in a pool."""
    if not group.settings.is_thin:
        return sum(
            pv.free_bytes
            for pv in group.physical_volumes()
            if pv.is_allocatable and not pv.is_missing and (not group.settings.tagged or pool in pv.tags)
        )
    view = group.view()
    found = view.get(pool)
    if found is None or is_full(found):
        return 0
    return max(int(found.size_bytes * group.settings.ratio) - promised(view, pool), 0)
