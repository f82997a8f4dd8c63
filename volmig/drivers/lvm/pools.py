"""The pools of a backend: what is in them, whether they can be used, and making thin ones that are missing."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from typing import Final

from volmig import errors
from volmig.drivers.base import PoolStats
from volmig.drivers.lvm import names
from volmig.drivers.lvm.commands import PROGRAM_PATH, CommandFailed, missing_program
from volmig.drivers.lvm.group import Group, View
from volmig.drivers.lvm.making import is_damaged, is_full, promised
from volmig.drivers.lvm.reports import LogicalVolume, LvKind, PhysicalVolume, VolumeGroup

LOG = logging.getLogger(__name__)

_SPARE_SHARE: Final = 20
"""One part in so many of what is free is left for a thin pool's metadata, and for its repair."""
_NEW: Final = "volmig-new-"
"""What a thin pool's name begins with until it is whole: a lvcreate that dies leaves a plain volume of the name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pools:
    """The pools of one backend."""

    group: Group
    host: str
    """Name of this host, for ``location_info``."""

    # --- stats --------------------------------------------------------------------------------

    def stats(self) -> list[PoolStats]:
        """Return what there is of each pool. :raises volmig.errors.BackendDown: when the group may not be used."""
        view = self.group.view()
        if self.group.settings.is_thin:
            return [self._thin(view, pool) for pool in self.group.settings.pools]
        devices = self.group.physical_volumes()
        return [self._thick(view, devices, pool) for pool in self.group.settings.pools]

    def none(self) -> list[PoolStats]:
        """Return the pools of a group that may not be used."""
        return [self._empty(pool) for pool in self.group.settings.pools]

    def _empty(self, pool: str) -> PoolStats:
        return PoolStats(
            total_capacity_bytes=0, free_capacity_bytes=0, provisioned_capacity_bytes=0, read_only=True
        ) | self._fixed(pool, "")

    def _thin(self, view: View, pool: str) -> PoolStats:
        found = view.get(pool)
        if found is None or found.kind is not LvKind.THIN_POOL:
            return self._empty(pool)
        used = int(found.size_bytes * min(found.data_percent, 100.0) / 100)
        return PoolStats(
            total_capacity_bytes=found.size_bytes,
            free_capacity_bytes=0 if is_full(found) else found.size_bytes - used,
            provisioned_capacity_bytes=promised(view, pool),
            read_only=is_damaged(found),
        ) | self._fixed(pool, self.location(view.group, pool))

    def _thick(self, view: View, devices: list[PhysicalVolume], pool: str) -> PoolStats:
        own = [pv for pv in devices if not self.group.settings.tagged or pool in pv.tags]
        total = sum(pv.size_bytes for pv in own)
        free = sum(pv.free_bytes for pv in own if pv.is_allocatable)
        return PoolStats(
            total_capacity_bytes=total,
            free_capacity_bytes=free,
            provisioned_capacity_bytes=total - sum(pv.free_bytes for pv in own),
            read_only=not own,
        ) | self._fixed(pool, self.location(view.group, pool))

    def _fixed(self, pool: str, location: str) -> PoolStats:
        settings = self.group.settings
        return PoolStats(
            pool_name=pool,
            reserved_percentage=settings.reserved_percentage,
            max_over_subscription_ratio=settings.ratio if settings.is_thin else 1.0,
            thin_provisioning=settings.is_thin,
            location_info=location,
            limits={},
        )

    def location(self, group: VolumeGroup, pool: str) -> str:
        """Return ``lvm:<host>:<uuid of the group>:<group>:<thick|thin>:<pool>``."""
        return f"lvm:{self.host}:{group.uuid}:{group.name}:{self.group.settings.kind.value}:{pool}"

    # --- checking -----------------------------------------------------------------------------

    def check(self) -> None:
        """Check that every pool is there and of the right kind, and the programs that are needed.

        :raises volmig.errors.BackendSetupFailed: saying what is wrong and what to do.
        :raises volmig.errors.ProgramMissing: naming the program's package.
        """
        self._require_programs()
        view = self.group.view()
        if self.group.settings.is_thin:
            for pool in self.group.settings.pools:
                self._require_thin(view, pool)
            self._warn_of_old_data(view)
        elif self.group.settings.tagged:
            self._require_tags(self.group.physical_volumes())

    def _require_programs(self) -> None:
        settings = self.group.settings
        wanted = ["lvs", "lvcreate", "lvremove"]
        if settings.is_thin:
            wanted.append("thin_check")
        elif settings.clear != "none":
            wanted.append("blkdiscard")
            wanted += ["ionice"] if settings.clear_ionice else []
        wanted += settings.prefix[:1]
        path = f"{os.environ.get('PATH', os.defpath)}:{PROGRAM_PATH}"
        for program in wanted:
            if shutil.which(program, path=path) is None:
                raise missing_program(program)

    def _require_thin(self, view: View, pool: str) -> None:
        found = view.get(pool)
        vg = self.group.vg
        if found is None:
            raise self.setup_failed(
                f"there is no thin pool {pool} in the volume group {vg}",
                hint=f"`volmig backend setup {self.group.backend}` makes it; or make it by `lvcreate --type thin-pool "
                f"--size SIZE --name {pool} {vg}`, or name another one in lvm_thin_pools.",
            )
        if found.kind is not LvKind.THIN_POOL:
            raise self.setup_failed(
                f"{vg}/{pool} is not a thin pool ({', '.join(found.layout) or found.attr})",
                hint=f"If it is only what a `lvcreate` that was cut short has left of the pool, and nothing needs it, "
                f"`lvremove {vg}/{pool}` removes it, and `volmig backend setup {self.group.backend}` makes the pool.",
            )

    def _warn_of_old_data(self, view: View) -> None:
        """Say which pools cannot keep what volume_clear promises."""
        pools = (view.get(pool) for pool in self.group.settings.pools)
        showing = [f"{self.group.vg}/{pool.name}" for pool in pools if pool is not None and not pool.zeroes]
        if showing and self.group.settings.clear != "none":
            LOG.warning(
                "backend %s: new volumes can show data of deleted ones, since these thin pools do not zero what they "
                "hand out: %s; `lvchange --zero y POOL` has them do so",
                self.group.backend,
                ", ".join(showing),
            )

    def _require_tags(self, devices: list[PhysicalVolume]) -> None:
        pools = self.group.settings.pools
        for pool in pools:
            if not any(pool in pv.tags for pv in devices):
                raise self.setup_failed(
                    f"no physical volume of {self.group.vg} has the tag {pool!r}",
                    hint=f"`pvchange --addtag {pool} DEVICE` gives it to one; `pvs -o +pv_tags` shows them.",
                )
        for pv in devices:
            several = sorted(set(pv.tags) & set(pools))
            if len(several) > 1:
                raise self.setup_failed(f"the physical volume {pv.name} is in several pools: {', '.join(several)}")

    def setup_failed(self, reason: str, *, hint: str | None = None) -> errors.BackendSetupFailed:
        """Return the error of a backend that cannot work as configured."""
        return errors.BackendSetupFailed(backend=self.group.backend, reason=reason, hint=hint)

    # --- thin pools ---------------------------------------------------------------------------

    def are_zeroing(self) -> bool:
        """Say whether every thin pool is there and hands out zeroes."""
        view = self.group.view(*self.group.settings.pools)
        found = [view.get(pool) for pool in self.group.settings.pools]
        return all(pool is not None and pool.kind is LvKind.THIN_POOL and pool.zeroes for pool in found)

    def make_missing(self) -> None:
        """Make the thin pools that are missing. :raises volmig.errors.PoolFull: when there is no room for them."""
        if not self.group.settings.is_thin:
            return
        for pool in self.group.settings.pools:
            self._take_up_left(pool)
        view = self.group.view()
        missing = [pool for pool in self.group.settings.pools if view.get(pool) is None]
        for number, pool in enumerate(missing):
            self._make_thin(pool, self.group.view().group, share=len(missing) - number)
        for pool in self.group.settings.pools:
            self._require_thin(self.group.view(), pool)

    def _make_thin(self, pool: str, group: VolumeGroup, *, share: int) -> None:
        size = self.group.settings.thin_pool_size_bytes
        if not size:
            room = group.free_bytes // share
            size = room - max(room // _SPARE_SHARE, 4 * group.extent_bytes)
        size = size // group.extent_bytes * group.extent_bytes
        full = errors.PoolFull(
            pool=f"volume group {group.name}", what=f"thin pool {pool}", needed=size, free=group.free_bytes
        )
        if size <= 0 or size > group.free_bytes:
            raise full
        new = self._new_name(pool)
        try:
            self.group.commands.run(
                *("lvcreate", "-q", "-y", "--type", "thin-pool", "--zero", "y", "--size", f"{size}b"),
                *("--name", new, group.name),
            )
            self.group.commands.run("lvrename", "-q", "-y", group.name, new, pool)
        except CommandFailed as exc:
            self._accept_made(pool, exc)

    def _accept_made(self, pool: str, exc: CommandFailed) -> None:
        """Succeed when somebody else has made a thin pool meanwhile."""
        present = self._present(pool)
        if present is None or present.kind is not LvKind.THIN_POOL:
            raise self.setup_failed(f"the thin pool {pool} cannot be made: {exc.reason}") from exc

    def _new_name(self, pool: str) -> str:
        try:
            return names.lv_name(f"{_NEW}{pool}")
        except errors.UnsafePath as exc:
            raise self.setup_failed(f"the name {pool} is too long to make a thin pool of it") from exc

    def _take_up_left(self, pool: str) -> None:
        """Go on with what a call that was killed has left of a thin pool: finish a whole one, else remove it."""
        if self._present(pool) is not None:
            return
        new = self._new_name(pool)
        view = self.group.view()
        left = view.get(new)
        if left is None:
            return
        is_left = left.kind in {LvKind.THICK, LvKind.THIN_POOL} and not left.has_snapshots
        if not is_left or left.is_open or any(lv.pool == new for lv in view.volumes):
            raise self.setup_failed(
                f"{self.group.vg}/{new}, which a thin pool has while it is made, is in use",
                hint=f"Look at it: `lvs -a {self.group.vg}`; rename it when something needs it, else remove it.",
            )
        try:
            if left.kind is LvKind.THIN_POOL:
                self.group.commands.run("lvrename", "-q", "-y", self.group.vg, new, pool)
            else:
                self.group.remove(left)
        except CommandFailed as exc:
            self._accept_made(pool, exc)

    def _present(self, pool: str) -> LogicalVolume | None:
        return self.group.view(pool).get(pool)
