"""Whether an object that a migration has made may be deleted: only when it cannot be the only copy of anything.

All of this must be so, and is looked at again right before the deletion:

* The one migration that has made the object has ended, some time ago, and was not in doubt about its end.
* Nothing else on record has its name: no volume in any pool, no old storage, no migration.
* Its volume is on record, nothing is at work on it, and it is seen at its own place with its recorded size. If it was
  never migrated since, it is the very object that the migration has found there.
* Both objects can be told apart by their identities, and are two. Where two backends reach one storage, the same object
  is seen twice, and would be deleted as its own leftover.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from volmig import errors
from volmig.doctor.records import UNFINISHED
from volmig.doctor.storage import is_seen_whole, list_pool
from volmig.manager.backends import Backends
from volmig.model import EntryKind, Method, Migration, RetiredObject, Volume, VolumeStatus
from volmig.store import MigrationQuery, Store
from volmig.store.base import ReadTransaction

_STEP = "create_destination"


class Refused(Exception):
    """What was asked for is not done; the text says why."""


class IsVolume(Refused):
    """The object is, or may be, that of a volume on record, seen by another way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """An object that may be deleted, as long as nothing of this has changed."""

    migration: Migration
    volume: Volume
    """Whose copy it was to be."""
    pool: str
    backend_id: str
    provider_location: str | None
    provider_id: str | None
    volume_identity: str | None
    """Identity that the volume's object must have; None when none is on record."""
    size_bytes: int = 0
    identity: str = ""

    def retired(self, id_: str, view: ReadTransaction) -> RetiredObject:
        """Return the record of an object that is to be deleted now."""
        return RetiredObject(
            id=id_,
            migration_id=self.migration.id,
            volume_id=self.volume.id,
            host=self.pool,
            name_id=self.backend_id,
            size_bytes=self.size_bytes,
            provider_location=self.provider_location,
            provider_id=self.provider_id,
            identity=self.identity,
            format=self.volume.format,
            delete_after=view.now(),
        )


def made_by(view: ReadTransaction, pool: str, backend_id: str) -> list[Migration]:
    """Return the migrations that made an object of this id in the pool."""
    return [
        migration
        for migration in view.list_migrations(MigrationQuery(destination_id=backend_id))
        # A rollback goes to an object that was there before.
        if migration.destination == pool and migration.method is not Method.ROLLBACK
    ]


def check_on_record(view: ReadTransaction, pool: str, backend_id: str, *, grace_seconds: float) -> Leftover:
    """Return the object if no record stands against deleting it. :raises Refused: saying what does."""
    makers = made_by(view, pool, backend_id)
    if len(makers) != 1:
        raise Refused(f"{len(makers)} migrations on record have made it")
    migration = makers[0]
    if not migration.phase.is_final or migration.finished_at is None:
        raise Refused(f"migration {migration.id}, which made it, has not ended")
    if migration.finished_at + timedelta(seconds=grace_seconds) > view.now():
        raise Refused(f"migration {migration.id}, which made it, has only just ended")
    if migration.error_code == errors.LocationDoubtful.code:
        raise Refused(f"migration {migration.id} could not tell where the volume is")
    volume = _volume_at_rest(view, migration)
    _refuse_claimed(view, pool, backend_id)
    location, provider_id = _as_made(view, migration, backend_id)
    return Leftover(
        migration=migration,
        volume=volume,
        pool=pool,
        backend_id=backend_id,
        provider_location=location,
        provider_id=provider_id,
        volume_identity=_identity_at_start(view, migration, volume),
    )


def _identity_at_start(view: ReadTransaction, migration: Migration, volume: Volume) -> str | None:
    """Return the identity of the volume's object when its last migration began, if it is still to be there."""
    (last,) = view.list_migrations(MigrationQuery(volume_id=volume.id, limit=1))
    if last.id != migration.id or volume.host != migration.source:
        return None
    for entry in view.read_journal(migration.id):
        if entry.kind is EntryKind.DONE and entry.subject == "reserve":
            return entry.data.get("identity")
    return None


def _volume_at_rest(view: ReadTransaction, migration: Migration) -> Volume:
    try:
        volume = view.get_volume(migration.volume_id)
    except errors.VolumeNotFound as gone:
        raise Refused(
            f"volume {migration.volume_id} is no longer on record, and this may be what is left of it"
        ) from gone
    is_free = volume.status in (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE)
    if not is_free or volume.operation or volume.migration_id is not None:
        raise Refused(f"something is at work on volume {volume.id}, or went wrong with it")
    if view.list_migrations(MigrationQuery(volume_id=volume.id, phases=UNFINISHED, limit=1)):
        raise Refused(f"volume {volume.id} is being migrated")
    return volume


def _refuse_claimed(view: ReadTransaction, pool: str, backend_id: str) -> None:
    """Refuse what has the name of something on record, in whatever pool: two backends may reach one storage."""
    names = {backend_id, f"volume-{backend_id}"}
    for volume in view.list_volumes():
        if names & {volume.id, volume.backend_id, volume.provider_id}:
            raise IsVolume(f"volume {volume.id} has that name, in {volume.host}")
    for retired in view.list_retired():
        if retired.host == pool and names & {retired.name_id, retired.provider_id}:
            raise Refused("it is on record already, to be deleted")


def _as_made(view: ReadTransaction, migration: Migration, backend_id: str) -> tuple[str | None, str | None]:
    """Return what the driver told of the object when it made it: provider_location and provider_id."""
    was_intended = False
    found: tuple[str | None, str | None] = (None, None)
    for entry in view.read_journal(migration.id):
        if entry.subject != _STEP:
            continue
        if entry.kind is EntryKind.INTENT:
            was_intended = entry.data.get("id") == backend_id
        elif entry.kind is EntryKind.DONE and was_intended:
            found = entry.data.get("provider_location"), entry.data.get("provider_id")
    return found


def prove(store: Store, backends: Backends, pool: str, name: str, backend_id: str, *, grace_seconds: float) -> Leftover:
    """Return the object if it can be deleted without any loss.

    :raises Refused: saying why not.
    :raises volmig.errors.VolmigError: when the storage cannot tell.
    """
    with store.reading() as view:
        leftover = check_on_record(view, pool, backend_id, grace_seconds=grace_seconds)
    volume = leftover.volume
    backend = backends.at(pool)
    found = list_pool(backend, pool).by_name.get(name)
    if found is None or found.backend_id != backend_id:
        raise Refused("it is not there any more")
    identity = backend.identify_object(_as_volume(leftover))
    if not is_seen_whole(backends.of(volume), volume):
        raise Refused(f"volume {volume.id} is not seen whole in {volume.host}, and this may be the only copy")
    own = backends.of(volume).identify_object(volume)
    if identity is None or own is None:
        raise Refused("its backend cannot tell it from another object of the same name")
    if leftover.volume_identity not in (None, own):
        raise Refused(f"the object of volume {volume.id} is another one than migration {leftover.migration.id} found")
    if identity == own:
        raise IsVolume(f"it is the very object of volume {volume.id}: both backends reach the same storage")
    return replace(leftover, size_bytes=found.size_bytes, identity=identity)


def _as_volume(leftover: Leftover) -> Volume:
    return Volume(
        id=leftover.volume.id,
        name="",
        size_bytes=max(leftover.size_bytes, 1),
        host=leftover.pool,
        status=VolumeStatus.DELETING,
        name_id=leftover.backend_id,
        provider_location=leftover.provider_location,
        provider_id=leftover.provider_id,
        format=leftover.volume.format,
    )
