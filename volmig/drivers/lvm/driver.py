"""The driver ``lvm`` itself: the contract's methods, each handed to the part that knows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from volmig import errors
from volmig.drivers import _checks
from volmig.drivers.base import (
    Capability,
    ConnectionInfo,
    ConnectorProperties,
    MigrationHost,
    PoolStats,
    StoredObject,
    VolumeDriver,
    VolumeStats,
    VolumeUpdate,
)
from volmig.drivers.lvm import names
from volmig.drivers.lvm.adoption import Adoption
from volmig.drivers.lvm.commands import Commands, Runner
from volmig.drivers.lvm.connecting import Connecting
from volmig.drivers.lvm.devices import Devices
from volmig.drivers.lvm.extending import Extending
from volmig.drivers.lvm.group import Group
from volmig.drivers.lvm.handover import Handover
from volmig.drivers.lvm.loopback import Loopback
from volmig.drivers.lvm.making import Making
from volmig.drivers.lvm.moving import Moving, Place, are_same
from volmig.drivers.lvm.options import Settings, storage_options
from volmig.drivers.lvm.pools import Pools
from volmig.drivers.lvm.removal import Removal
from volmig.drivers.lvm.reports import LvKind
from volmig.drivers.lvm.snapshots import Snapshots
from volmig.drivers.lvm.tidying import Tidying
from volmig.drivers.targets import exporter
from volmig.drivers.targets.options import target_options
from volmig.model import PoolAddress

if TYPE_CHECKING:
    from oslo_config import cfg

    from volmig.model import RequestContext, Volume

_COMMON = frozenset(
    {Capability.RENAME, Capability.LOCAL_PATH, Capability.MANAGE, Capability.SNAPSHOTS, Capability.LIST}
)
_MOVING = frozenset({Capability.NATIVE_MIGRATION, Capability.ONLINE_MIGRATION})


class LvmDriver(VolumeDriver):
    """Keeps each volume as the logical volume ``volume-<id>`` of one volume group.

    * A volume is a whole number of extents; what lies beyond its recorded size reads as zeroes when it is made.
    * A volume is removed by its name and its UUID in one command: a late call cannot hit another one of that name.
    * The volume group is known by its UUID once it has been seen: another one of its name is not touched.
    * Every change is one of LVM's own transactions, or a sequence of them that a repeated call goes on with.
    * A group that misses physical volumes, is exported, read-only or another host's is out of service as a whole.
    """

    capabilities = _COMMON | _MOVING | {Capability.ZEROED_ON_CREATE, Capability.SPARSE}
    vendor_name = "volmig"
    driver_version = "1.0"

    def __init__(
        self,
        *,
        host: str,
        backend: str,
        options: Mapping[str, Any],
        run: Runner | None = None,
        devices: Devices | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(host=host, backend=backend, options=options)
        self._run = run
        self._devices = devices or Devices()
        self._pause = pause
        self._group_or_none: Group | None = None
        self._extent_bytes = 1
        self.capabilities = _COMMON
        if options["lvm_type"] == "thin":
            self.capabilities |= {Capability.SPARSE, Capability.ZEROED_ON_CREATE}
        elif options["lvm_pv_tags"]:
            self.capabilities |= _MOVING

    @staticmethod
    def get_driver_options() -> Sequence[cfg.Opt]:
        return [*storage_options(), *target_options()]

    # --- parts --------------------------------------------------------------------------------

    @property
    def _group(self) -> Group:
        if self._group_or_none is None:
            settings = Settings.from_options(self.options, backend=self.backend)
            commands = Commands(
                backend=self.backend,
                prefix=settings.prefix,
                lock_retries=settings.lock_retries,
                run=self._run,
                pause=self._pause,
            )
            self._group_or_none = Group(
                backend=self.backend, settings=settings, commands=commands, devices=self._devices, pause=self._pause
            )
        return self._group_or_none

    @property
    def _pools(self) -> Pools:
        return Pools(group=self._group, host=self.host)

    @property
    def _connecting(self) -> Connecting:
        group = self._group
        exports = exporter(self.options, backend=self.backend, host=self.host, prefix=group.settings.prefix)
        return Connecting(
            group=group, host=self.host, exporter=exports, always_export=bool(self.options["export_to_own_host"])
        )

    def _loopback(self) -> Loopback | None:
        settings = self._group.settings
        if settings.loopback_file is None:
            return None
        return Loopback(
            self._group.commands,
            backend=self.backend,
            file=settings.loopback_file,
            size_bytes=settings.loopback_size_bytes,
            vg=settings.vg,
        )

    def _pool(self, host: str) -> str:
        address = PoolAddress.parse(host)
        pools = self._group.settings.pools
        if address.backend != self.backend or address.pool not in pools:
            raise errors.PoolNotFound(
                backend=self.backend, pool=str(address), known=", ".join(self.address(pool) for pool in pools)
            )
        return address.pool

    # --- life of the backend ------------------------------------------------------------------

    def do_setup(self, ctxt: RequestContext) -> None:
        group = self._group
        group.expected = self.storage_identity
        loopback = self._loopback()
        if loopback is not None:
            loopback.attach(create=False)
        self._take_up()
        if group.settings.is_thin and not self._pools.are_zeroing():
            self.capabilities -= {Capability.ZEROED_ON_CREATE}
        Making(group=group).remove_leftovers()
        Tidying(group=group).at_setup()

    def _take_up(self) -> None:
        """Find the volume group, and remember which one it is."""
        group = self._group
        try:
            found = group.verified()
        except errors.BackendDown as exc:
            if self.storage_identity is not None:
                raise
            raise self._pools.setup_failed(exc.fields["reason"]) from exc
        self.storage_identity = group.expected = found.uuid
        self._extent_bytes = found.extent_bytes

    def check_for_setup_error(self) -> None:
        self._pools.check()

    def is_same_pool(self, own: PoolStats, other: PoolStats) -> bool:
        return are_same(Place.parse(own), Place.parse(other))

    def setup_storage(self, ctxt: RequestContext) -> None:
        self._group.expected = self.storage_identity
        loopback = self._loopback()
        if loopback is not None:
            # What is on record is never replaced by something new and empty.
            loopback.attach(create=self.storage_identity is None)
        self._take_up()
        self._pools.make_missing()

    def teardown_storage(self, ctxt: RequestContext, *, delete_data: bool = False) -> None:
        loopback = self._loopback()
        if loopback is None:
            raise errors.UnsupportedOperation(
                backend=self.backend,
                operation="taking down a volume group that it has not made",
                hint=f"`vgremove {self._group.vg}` removes it with all that is in it, if that is what you want.",
            )
        loopback.detach(delete=delete_data)

    def get_volume_stats(self, refresh: bool = False) -> VolumeStats:
        stats = VolumeStats(
            volume_backend_name=self.backend,
            vendor_name=self.vendor_name,
            driver_version=self.driver_version,
            storage_protocol=_PROTOCOLS[self.options["target_protocol"]],
        )
        try:
            stats["pools"] = self._pools.stats()
        except errors.BackendDown as exc:
            stats["pools"] = self._pools.none()
            stats["down_reason"] = str(exc.fields["reason"])
        return stats

    def stored_size(self, size_bytes: int, pool: str) -> int:
        return self._group.stored(size_bytes, self._extent_bytes)

    # --- life of a volume ---------------------------------------------------------------------

    def create_volume(self, volume: Volume) -> VolumeUpdate | None:
        _checks.require_raw(volume, "lvm")
        if volume.provider_id is not None:
            # Else deleting a failed copy of an adopted volume could hit a stranger's volume of that name.
            raise errors.InternalError(reason=f"volume {volume.id} is to be made, but has the provider_id of another")
        Making(group=self._group).make(volume, self._pool(volume.host))
        return None

    def delete_volume(self, volume: Volume) -> None:
        self.delete_object(volume, None)

    def delete_object(self, volume: Volume, identity: str | None) -> None:
        Removal(group=self._group).remove(volume, self._pool(volume.host), identity)

    def identify_object(self, volume: Volume) -> str | None:
        return self._group.found(volume, self._pool(volume.host))[1].uuid

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> None:
        _checks.require_raw(volume, "lvm")
        Extending(group=self._group).extend(volume, self._pool(volume.host), new_size_bytes)

    def volume_exists(self, volume: Volume) -> bool:
        pool, name = self._pool(volume.host), names.object_name(volume)
        lv = self._group.view(name).get(name)
        return lv is not None and self._group.in_pool(lv, pool, volume)

    def list_objects(self, pool: str) -> Sequence[StoredObject]:
        group = self._group
        self._pool(self.address(pool))
        candidates = [lv for lv in group.view().volumes if not names.is_own_use(lv.name)]
        if group.settings.is_thin:
            own = [lv for lv in candidates if lv.kind is LvKind.THIN and lv.pool == pool]
        else:
            own = [lv for lv in candidates if lv.kind is LvKind.THICK]
            if group.settings.tagged:
                devices = group.physical_volumes()
                own = [lv for lv in own if pool in group.pools_of(lv, devices)]
        return [names.stored_object(lv.name, lv.size_bytes) for lv in own]

    def initialize_connection(self, volume: Volume, connector: ConnectorProperties) -> ConnectionInfo:
        _checks.require_raw(volume, "lvm")
        return self._connecting.connect(volume, self._pool(volume.host), connector)

    def terminate_connection(self, volume: Volume, connector: ConnectorProperties) -> None:
        self._pool(volume.host)
        self._connecting.disconnect(volume, connector)

    def remove_export(self, ctxt: RequestContext, volume: Volume) -> None:
        self._connecting.remove(volume)

    def list_exports(self) -> Sequence[str]:
        return self._connecting.exports()

    # --- migration ----------------------------------------------------------------------------

    def migrate_volume(
        self, ctxt: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate | None]:
        _checks.require_raw(volume, "lvm")
        pool = self._pool(volume.host)
        moving = Moving(group=self._group, host=self.host)
        place = moving.can_reach(pool, host)
        if place is None:
            return False, None
        name = names.object_name(volume)
        view = self._group.view(name)
        lv = view.get(name)
        if lv is None or lv.kind is not LvKind.THICK:
            raise errors.VolumeObjectMissing(volume=volume.id, location=self._group.path(name))
        self._group.require_size(volume, lv, view.group)
        return (True, _moved(volume)) if moving.move(volume, lv, pool, place, host) else (False, None)

    def recover_migration(
        self, ctxt: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate | None]:
        pool = self._pool(volume.host)
        moving = Moving(group=self._group, host=self.host)
        place = moving.can_reach(pool, host)
        if place is None:
            # This driver never moved it there; what remains to be known is that the source is whole.
            self._group.found(volume, pool)
            return False, None
        name = names.object_name(volume)
        lv = self._group.view(name).get(name)
        if lv is None:
            raise errors.VolumeObjectMissing(volume=volume.id, location=self._group.path(name))
        return (True, _moved(volume)) if moving.recover(volume, lv, pool, place, host) else (False, None)

    def update_migrated_volume(
        self, ctxt: RequestContext, volume: Volume, new_volume: Volume, original_volume_status: str
    ) -> VolumeUpdate:
        return Handover(group=self._group).rename(volume, new_volume, self._pool(new_volume.host))

    # --- taking over present volumes ------------------------------------------------------------

    def manage_existing_get_size(self, volume: Volume, existing_ref: Mapping[str, str]) -> int:
        return self._adoption(volume, existing_ref).size_bytes()

    def manage_existing(self, volume: Volume, existing_ref: Mapping[str, str]) -> VolumeUpdate | None:
        _checks.require_raw(volume, "lvm")
        return VolumeUpdate(provider_id=self._adoption(volume, existing_ref).take(volume))

    def unmanage(self, volume: Volume) -> None:
        """Nothing to do: the logical volume keeps its name and its data."""

    def _adoption(self, volume: Volume, existing_ref: Mapping[str, str]) -> Adoption:
        reference = str(existing_ref.get("source-name", ""))
        return Adoption(group=self._group, reference=reference, pool=self._pool(volume.host))

    # --- snapshots ------------------------------------------------------------------------------

    def create_snapshot(self, volume: Volume, snapshot_id: str) -> None:
        Snapshots(group=self._group).make(volume, self._pool(volume.host), snapshot_id)

    def delete_snapshot(self, volume: Volume, snapshot_id: str) -> None:
        self._pool(volume.host)
        Snapshots(group=self._group).delete(snapshot_id)


_PROTOCOLS = {"none": "local", "iscsi": "iSCSI", "nvmet_tcp": "NVMe-oF", "nbd": "NBD"}


def _moved(volume: Volume) -> VolumeUpdate:
    """The logical volume keeps its name, so nothing of the record changes but the pool."""
    return VolumeUpdate(_name_id=volume.name_id, provider_location=None, provider_id=volume.provider_id)
