"""The contract between volmig and the authors of backend drivers.

A driver is a class derived from :class:`VolumeDriver`, offered by a distribution as an entry point in the
namespace ``volmig.drivers``. Names and signatures follow Cinder's habit; sizes are in bytes.

Every call may be repeated: a crash can fall between a call and the record of its outcome, and recovery then
makes the call again. Which repetitions must succeed is said at each method.

Drivers raise the errors of :mod:`volmig.errors` where one fits, which then reach the user as they are; any other
exception is reported as ``driver-failed`` with the exception as its cause.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TypedDict

from volmig import errors

if TYPE_CHECKING:
    from oslo_config import cfg

    from volmig.model import RequestContext, Volume

INTERFACE_VERSION = (1, 0)
"""Version of this contract: the first number changes when a driver must change with it."""


class Capability(enum.Enum):
    """A promise that a driver makes; each is checked by the conformance suite."""

    ZEROED_ON_CREATE = "zeroed_on_create"
    """A new volume reads as zeroes everywhere, so that a copy need not write zeroes to it."""
    SPARSE = "sparse"
    """Parts never written take no room in the pool, and a hole in the source stays one in a copy."""
    NATIVE_MIGRATION = "native_migration"
    """``migrate_volume`` moves a volume between some pairs of pools without the host copying data."""
    RENAME = "rename"
    """``update_migrated_volume`` gives the copied object the original volume's id."""
    FILE_MODE = "file_mode"
    """``open_volume`` gives a file-like handle to a volume."""
    LOCAL_PATH = "local_path"
    """``initialize_connection`` gives a path on this host that a copy can open."""
    MANAGE = "manage"
    """``manage_existing`` takes over objects that volmig did not make, and ``unmanage`` leaves them."""
    SNAPSHOTS = "snapshots"
    """Snapshots can be made and deleted."""
    LIST = "list"
    """``list_objects`` tells every object of a pool that can be the storage of a volume."""
    ONLINE_MIGRATION = "online_migration"
    """``migrate_volume`` also moves volumes that are in use."""


class VolumeUpdate(TypedDict, total=False):
    """Changes to a volume's record that a driver asks for; Cinder's keys."""

    _name_id: str | None
    provider_location: str | None
    provider_id: str | None
    metadata: dict[str, str]


class PoolStats(TypedDict, total=False):
    """What a driver says of one pool.

    ``pool_name``, ``total_capacity_bytes`` and ``free_capacity_bytes`` are required.
    """

    pool_name: str
    total_capacity_bytes: int
    free_capacity_bytes: int
    provisioned_capacity_bytes: int
    """Sum of the sizes of the volumes in it; needed for thin pools."""
    reserved_percentage: int
    """Part of the total capacity that is kept free, 0 to 100."""
    max_over_subscription_ratio: float
    """How many times its capacity a thin pool may promise; at least 1."""
    thin_provisioning: bool
    location_info: str
    """Where the pool's storage lies, in the driver's own terms. ``migrate_volume`` reads the destination's to judge
    whether it can move a volume there; to the core it says no more than :meth:`VolumeDriver.is_same_pool` makes of it.
    """
    read_only: bool
    """No new volumes can be made in it."""
    limits: dict[str, int]


class VolumeStats(TypedDict, total=False):
    """What a driver says of its backend. All but ``down_reason`` are required."""

    volume_backend_name: str
    vendor_name: str
    driver_version: str
    storage_protocol: str
    """How volumes are reached: ``local``, ``iSCSI``, ``NVMe-oF``, ``ceph``, ``nfs`` …"""
    pools: list[PoolStats]
    down_reason: str
    """Present and not empty when the backend is out of service."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredObject:
    """An object in a pool, as the storage tells of it."""

    name: str
    """What it is called there, unique in its pool: what ``provider_id`` or ``volume-<backend_id>`` would say."""
    size_bytes: int
    backend_id: str | None = None
    """The ``backend_id`` of the volume that it would be the object of; None when its name is none that the driver
    gives."""


class ConnectionInfo(TypedDict):
    """How a host reaches a volume; Cinder's keys."""

    driver_volume_type: str
    """Which connector opens it: the name of an entry point in ``volmig.connectors``."""
    data: dict[str, Any]
    """For the connector ``local``: ``device_path`` and ``format``."""


class ConnectorProperties(TypedDict, total=False):
    """What a driver is told of the host that wants to attach; Cinder's keys."""

    host: str
    """Name of the host."""
    read_only: bool
    """The host only wants to read."""
    ip: str
    """Address of the host."""
    initiator: str
    """Its iSCSI qualified name; absent where it has none."""
    nqn: str
    """Its NVMe qualified name; absent where it has none."""
    multipath: bool
    """The host can use several paths to a volume."""
    only_look: bool
    """The host only wants to know whether the volume is there as recorded: nothing need be made reachable for it, and
    nothing that others use may be taken back when it ends this connection."""


class MigrationHost(TypedDict):
    """Destination of a driver's migration; Cinder's keys."""

    host: str
    """The pool, as ``host@backend#pool``."""
    capabilities: dict[str, Any]
    """The destination pool's stats (see :class:`PoolStats`) with the backend's: ``volume_backend_name``,
    ``vendor_name``, ``driver_version`` and ``storage_protocol``."""


class VolumeDriver(abc.ABC):
    """Base of all backend drivers.

    One object serves one backend for as long as the process lives; its methods are called from several threads.
    Volumes come as :class:`volmig.model.Volume`. The object in the storage is known by ``volume.backend_id``
    (``volume.backend_name`` is a fit name for it) and lies in the pool that ``volume.host`` names.
    """

    interface_version: ClassVar[tuple[int, int]] = INTERFACE_VERSION
    """Version of the contract that the driver was written for."""
    capabilities: frozenset[Capability] = frozenset()
    """What it promises beyond the required methods. The class names all that it can do; an object may promise less,
    where its options say so."""
    storage_identity: str | None = None
    """What tells the backend's storage from other storage that could be in its place, such as the directory under a
    file system that is not mounted. The core sets it before :meth:`do_setup` to what it has on record, or to None when
    it has nothing on record; ``do_setup`` raises :class:`volmig.errors.BackendDown`, and changes nothing, when it finds
    another storage or none, and sets it to what it found when it was None. It stays None where a driver cannot tell."""
    vendor_name: ClassVar[str] = "unknown"
    driver_version: ClassVar[str] = "0"

    def __init__(self, *, host: str, backend: str, options: Mapping[str, Any]) -> None:
        """Keep what the driver is configured with; touch nothing yet.

        :param host: name of this host, as in ``host@backend#pool``.
        :param backend: name of the backend.
        :param options: values of the options of :meth:`get_driver_options`, by name (dashes as underscores).
        """
        self.host = host
        self.backend = backend
        self.options = options

    def address(self, pool: str) -> str:
        """Return ``host@backend#pool`` for a pool of this backend."""
        return f"{self.host}@{self.backend}#{pool}"

    @staticmethod
    def get_driver_options() -> Sequence[cfg.Opt]:
        """Return the oslo.config options that the driver reads from its backend's group."""
        return ()

    # --- life of the backend ------------------------------------------------------------------

    @abc.abstractmethod
    def do_setup(self, ctxt: RequestContext) -> None:
        """Prepare the driver for work: connect, create what it needs. Called once, before any other call."""

    @abc.abstractmethod
    def check_for_setup_error(self) -> None:
        """Check that the backend can be used as configured.

        :raises volmig.errors.ConfigurationError: naming the option or the storage that is wrong.
        """

    @abc.abstractmethod
    def get_volume_stats(self, refresh: bool = False) -> VolumeStats:
        """Return the backend's and its pools' present state; *refresh* asks for fresh figures."""

    def is_same_pool(self, own: PoolStats, other: PoolStats) -> bool:
        """Say whether a pool of this backend has the same volumes as a pool of another backend.

        Asked at set-up, of another backend on this host that has the same driver and the same
        :attr:`storage_identity`: the later one of two that share volumes is refused. By default pools are the same that
        have the same name and the same ``location_info``.
        """
        place = other.get("location_info")
        return bool(place) and (own["pool_name"], own.get("location_info")) == (other["pool_name"], place)

    def setup_storage(self, ctxt: RequestContext) -> None:
        """Make the storage that the backend's options describe, for drivers that make their own. Called instead of
        :meth:`do_setup`, when an operator asks for it. Succeeds without change when it is there already.

        :raises volmig.errors.UnsupportedOperation: from this default.
        """
        raise self._unsupported("setting its storage up")

    def teardown_storage(self, ctxt: RequestContext, *, delete_data: bool = False) -> None:
        """Take back :meth:`setup_storage`: let go of the storage, and remove it with all that is in it when
        *delete_data* is set. Succeeds when there is none.

        :raises volmig.errors.BackendInUse: when something in it is in use, or volumes are in it and *delete_data* is
            not set and they could not be reached again.
        :raises volmig.errors.UnsupportedOperation: from this default.
        """
        raise self._unsupported("taking its storage down")

    def stored_size(self, size_bytes: int, pool: str) -> int:
        """Return the size in bytes of the object of a volume of *size_bytes* in a pool: not below it, and a matter of
        arithmetic only. Storage that allocates in steps rounds up; this default returns the size itself.
        """
        return size_bytes

    # --- life of a volume ---------------------------------------------------------------------

    @abc.abstractmethod
    def create_volume(self, volume: Volume) -> VolumeUpdate | None:
        """Make the object for *volume*, of exactly ``volume.size_bytes`` bytes, or of :meth:`stored_size`, where what
        lies beyond the volume's size shows nobody's data.

        Succeeds without change when an object of that id and size is there already.

        :raises volmig.errors.DiskFull: when there is no room.
        """

    @abc.abstractmethod
    def delete_volume(self, volume: Volume) -> None:
        """Remove the object of *volume* from the pool that ``volume.host`` names. Succeeds when there is none."""

    @abc.abstractmethod
    def extend_volume(self, volume: Volume, new_size_bytes: int) -> None:
        """Enlarge the object to *new_size_bytes*. Succeeds without change when it has that size."""

    @abc.abstractmethod
    def volume_exists(self, volume: Volume) -> bool:
        """Say whether the object of *volume* is in the pool that ``volume.host`` names.

        Answers from the storage, never from memory. Raises when it cannot tell.
        """

    @abc.abstractmethod
    def initialize_connection(self, volume: Volume, connector: ConnectorProperties) -> ConnectionInfo:
        """Make *volume* reachable for the host that *connector* describes. Repeating it gives the same answer.

        A driver without ``LOCAL_PATH`` whose volumes are reached by ``open_volume`` is not asked during a copy.

        :raises volmig.errors.VolumeObjectMissing: when the object is not there.
        :raises volmig.errors.VolumeSizeMismatch: when it has another size than recorded.
        """

    @abc.abstractmethod
    def terminate_connection(self, volume: Volume, connector: ConnectorProperties) -> None:
        """Take back :meth:`initialize_connection`. Succeeds when there is no connection."""

    # --- migration ----------------------------------------------------------------------------

    def migrate_volume(
        self, ctxt: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate | None]:
        """Move *volume* to the pool *host* within the driver's own storage.

        :returns: ``(True, update)`` when the volume is there now, and ``(False, None)`` when the driver cannot do
            it, whereupon the core copies the data itself. An exception means that it failed and that the source
            is still whole.

        Repeated after success it succeeds again. The object keeps its data and its size; it is known by
        ``volume.backend_id`` afterwards, unless the update gives another ``_name_id``.
        """
        return False, None

    def update_migrated_volume(
        self, ctxt: RequestContext, volume: Volume, new_volume: Volume, original_volume_status: str
    ) -> VolumeUpdate:
        """Finish a copy at the destination: called on the destination's driver when the data is complete.

        :param volume: the volume as it was, with its old host.
        :param new_volume: the copy: the destination's host, and its own id.
        :param original_volume_status: status of the volume before the migration.
        :returns: the final values for the volume's record. Typically the object is renamed to the original's id
            and the answer is ``{'_name_id': None, 'provider_location': None}``. A driver that finds the name taken
            leaves the object as it is and returns its id as ``_name_id``.
        :raises NotImplementedError: from this default; the core then keeps ``_name_id = new_volume.id``.

        Repeated after success it gives the same answer.
        """
        raise NotImplementedError

    def recover_migration(
        self, ctxt: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate | None]:
        """Say where *volume* is after a :meth:`migrate_volume` whose end nobody saw.

        :returns: as :meth:`migrate_volume`: ``(True, update)`` when the move is complete, ``(False, None)`` when
            the volume is whole at its source. Raises when it cannot tell.
        :raises NotImplementedError: from this default; the core then asks :meth:`volume_exists` of both places.
        """
        raise NotImplementedError

    # --- telling objects of one name apart ----------------------------------------------------

    def identify_object(self, volume: Volume) -> str | None:
        """Return what tells the object of *volume* from a later one of the same name, such as an inode and its time of
        birth; None when the storage has no such thing. It stays the same when the object is renamed or extended.

        :raises volmig.errors.VolumeObjectMissing: when there is no object.
        """
        return None

    def delete_object(self, volume: Volume, identity: str | None) -> None:
        """Remove the object of *volume* if it is still the one with this *identity*; succeed and change nothing if
        there is none, or another one.

        The core deletes what a volume has left by this method: a call that is late must not hit the object that has
        taken the name meanwhile. A driver should compare and remove in one action, if its storage can. This default
        looks first, and removes whatever has the name when *identity* is None.
        """
        if identity is not None and (not self.volume_exists(volume) or self.identify_object(volume) != identity):
            return
        self.delete_volume(volume)

    def list_objects(self, pool: str) -> Sequence[StoredObject]:
        """Return all objects in a pool that are, or could be, the storage of a volume, from the storage itself
        (capability ``LIST``).

        What the driver keeps for its own use, such as half-made objects that it removes itself, is not among them.
        """
        raise self._unsupported("listing its objects")

    # --- what a driver may offer beside -------------------------------------------------------

    def open_volume(self, volume: Volume, mode: str) -> BinaryIO:
        """Open *volume* as a file-like handle (capability ``FILE_MODE``).

        :param mode: ``"rb"`` to read or ``"r+b"`` to read and write; never truncates.
        :returns: an unbuffered handle with ``read``/``readinto``, ``write``, ``seek``, ``tell``, ``flush``, ``close``.
        """
        raise self._unsupported("open_volume")

    def manage_existing_get_size(self, volume: Volume, existing_ref: Mapping[str, str]) -> int:
        """Return the size in bytes of an object that volmig did not make (capability ``MANAGE``).

        :param existing_ref: ``{'source-name': …}``, the object's name or path.
        :raises volmig.errors.NotManageable: when it is not this backend's, or not fit to be a volume.
        """
        raise self._unsupported("managing existing objects")

    def manage_existing(self, volume: Volume, existing_ref: Mapping[str, str]) -> VolumeUpdate | None:
        """Take over an object that volmig did not make (capability ``MANAGE``); its data stays as it is.

        :returns: usually ``provider_id``, by which the driver finds the object from now on.
        """
        raise self._unsupported("managing existing objects")

    def unmanage(self, volume: Volume) -> None:
        """Let go of *volume*; its object and data stay (capability ``MANAGE``)."""
        raise self._unsupported("managing existing objects")

    def create_snapshot(self, volume: Volume, snapshot_id: str) -> None:
        """Make a snapshot of *volume* (capability ``SNAPSHOTS``). Succeeds when it is there."""
        raise self._unsupported("snapshots")

    def delete_snapshot(self, volume: Volume, snapshot_id: str) -> None:
        """Delete a snapshot of *volume* (capability ``SNAPSHOTS``). Succeeds when there is none."""
        raise self._unsupported("snapshots")

    def retype(self, ctxt: RequestContext, volume: Volume, new_type: str) -> tuple[bool, VolumeUpdate | None]:
        """Change the volume's type in place; ``(False, None)`` where that takes a migration."""
        return False, None

    def create_export(self, ctxt: RequestContext, volume: Volume) -> VolumeUpdate | None:
        """Make *volume* visible to other hosts; nothing to do for local storage."""
        return None

    def remove_export(self, ctxt: RequestContext, volume: Volume) -> None:
        """Take back :meth:`create_export`, and whatever else shows *volume* to any host, half-made or not. Succeeds
        when there is nothing, also where the volume's object is gone.

        The core calls it before it deletes an object of which its records say that nobody uses it.

        :raises volmig.errors.VolumeInUse: when a host is seen to use it; nothing was changed.
        """

    def list_exports(self) -> Sequence[str]:
        """Return the ``backend_id`` of each volume that this backend shows to any host, in whatever pool, from what
        the system has, so that leftovers are found. This default tells of none.
        """
        return ()

    def _unsupported(self, operation: str) -> errors.UnsupportedOperation:
        return errors.UnsupportedOperation(backend=self.backend, operation=operation)
