"""Looking at storage: all backends at the same time, so that one that hangs holds up no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from volmig import errors
from volmig.drivers.base import Capability, StoredObject
from volmig.manager.backend import Backend
from volmig.model import PoolAddress, Volume


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What is in one pool."""

    objects: Sequence[StoredObject]
    by_name: Mapping[str, StoredObject]
    by_id: Mapping[str, StoredObject]

    @classmethod
    def of(cls, objects: Sequence[StoredObject]) -> Listing:
        return cls(
            objects=objects,
            by_name={found.name: found for found in objects},
            by_id={found.backend_id: found for found in objects if found.backend_id is not None},
        )

    def find(self, volume: Volume) -> StoredObject | None:
        """Return the object of a volume; None when there is none."""
        if volume.provider_id:
            return self.by_name.get(volume.provider_id)
        return self.by_id.get(volume.backend_id) or self.by_name.get(volume.backend_name)


@dataclass(kw_only=True, slots=True)
class Sight:
    """What one backend has told."""

    address: str
    """``host@backend``."""
    down: str = ""
    """Why it told nothing; empty when it did."""
    lists: bool = True
    """Whether it can list its objects."""
    pools: frozenset[str] = frozenset()
    """Addresses of its pools."""
    listings: dict[str, Listing] = field(default_factory=dict)
    """By the pool's address."""
    pools_down: dict[str, str] = field(default_factory=dict)
    """Pools that could not be listed, with the reason."""
    exports: tuple[str, ...] = ()
    """What it shows to other hosts, by ``backend_id``."""
    exports_down: str = ""
    """Why that could not be listed; empty when it was."""


def look(backend: Backend) -> Sight:
    """Return what a backend tells of its pools. Whatever it fails with is a part of that."""
    sight = Sight(address=f"{backend.host}@{backend.name}", lists=backend.can(Capability.LIST))
    try:
        sight.pools = frozenset(pool.address for pool in backend.pools().values())
    except errors.VolmigError as error:
        sight.down = reason_of(error)
        return sight
    for pool in sorted(sight.pools) if sight.lists else ():
        try:
            sight.listings[pool] = list_pool(backend, pool)
        except errors.DriverTimeout as error:
            # The others would most likely hang as well, each for its time.
            sight.down = reason_of(error)
            return sight
        except errors.VolmigError as error:
            sight.pools_down[pool] = reason_of(error)
    if backend.offers("list_exports"):
        try:
            sight.exports = backend.list_exports()
        except errors.VolmigError as error:
            sight.exports_down = reason_of(error)
    return sight


def list_pool(backend: Backend, pool: str) -> Listing:
    """List the objects of one pool.

    :param pool: ``host@backend#pool``.
    """
    return Listing.of(backend.list_objects(PoolAddress.parse(pool).pool))


def is_seen_whole(backend: Backend, volume: Volume) -> bool:
    """Say whether a volume's object is at its recorded place, with its recorded size.

    :raises volmig.errors.VolmigError: when nobody can tell, as where it is in use and only a connection would show.
    """
    if backend.can(Capability.LIST):
        found = list_pool(backend, volume.host).find(volume)
        return found is not None and found.size_bytes == backend.stored_size(volume) and backend.volume_exists(volume)
    if not backend.volume_exists(volume):
        return False
    if volume.attachments:
        users = ", ".join(attachment.instance for attachment in volume.attachments)
        raise errors.VolumeInUse(volume=volume.id, users=f"attached to {users}")
    backend.check_object(volume)
    return True


def reason_of(error: errors.VolmigError) -> str:
    """Return why a backend is down, without the words that its finding has already."""
    return str(error.fields["reason"]) if isinstance(error, errors.BackendDown) else error.message
