"""What the store says, read at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from volmig import errors
from volmig.manager.processes import ProcessIdentity
from volmig.migration.takeover import WORKER
from volmig.model import (
    EntryKind,
    JournalEntry,
    Migration,
    Phase,
    Reservation,
    RetiredObject,
    Volume,
    VolumeStatus,
)
from volmig.store import MigrationQuery, Store
from volmig.store.base import ReadTransaction

UNFINISHED = tuple(phase for phase in Phase if not phase.is_final)
FINAL = tuple(phase for phase in Phase if phase.is_final)

_USABLE = (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE, VolumeStatus.MAINTENANCE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claims:
    """Which objects belong to something."""

    names: frozenset[tuple[str, str]]
    """Pool and name."""
    ids: frozenset[tuple[str, str]]
    """Pool and ``backend_id``."""

    def include(self, pool: str, name: str, backend_id: str | None) -> bool:
        """Say whether an object belongs to something."""
        return (pool, name) in self.names or (backend_id is not None and (pool, backend_id) in self.ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """All records that an examination needs, from one transaction."""

    now: datetime
    volumes: Mapping[str, Volume]
    unfinished: Mapping[str, Migration]
    journals: Mapping[str, Sequence[JournalEntry]]
    """Of the unfinished migrations."""
    named: Mapping[str, Migration]
    """Ended migrations that a volume's lock or a checkpoint names, as far as they are on record."""
    latest: Mapping[str, Migration]
    """The last migration of each volume that is in ``error``, or in ``maintenance`` without a lock."""
    retired: Sequence[RetiredObject]
    reservations: Sequence[Reservation]
    checkpoints: Sequence[str]

    @classmethod
    def read(cls, store: Store) -> Records:
        """Read everything in one transaction."""
        with store.reading() as view:
            return cls.of(view)

    @classmethod
    def of(cls, view: ReadTransaction) -> Records:
        """Read everything in a transaction."""
        volumes = {volume.id: volume for volume in view.list_volumes()}
        unfinished = {each.id: each for each in view.list_migrations(MigrationQuery(phases=UNFINISHED))}
        checkpoints = view.list_checkpoints()
        locks = (volume.migration_id for volume in volumes.values() if volume.migration_id is not None)
        named = {*locks, *checkpoints} - unfinished.keys()
        return cls(
            now=view.now(),
            volumes=volumes,
            unfinished=unfinished,
            journals={migration_id: view.read_journal(migration_id) for migration_id in unfinished},
            named={each.id: each for each in find_migrations(view, sorted(named))},
            latest={
                each.volume_id: each
                for volume in volumes.values()
                if _is_out_of_order(volume)
                for each in view.list_migrations(MigrationQuery(volume_id=volume.id, limit=1))
            },
            retired=view.list_retired(),
            reservations=view.list_reservations(),
            checkpoints=checkpoints,
        )

    def is_at_rest(self, volume: Volume) -> bool:
        """Say whether nothing changes a volume's storage, and nothing is said to have gone wrong with it."""
        if volume.operation or volume.status not in _USABLE:
            return False
        migration = self.unfinished.get(volume.migration_id or "")
        return migration is None or (migration.phase is Phase.PAUSED and not migration.cancel_requested_by)

    def claims(self) -> Claims:
        """Return which objects belong to a volume, to an unfinished migration, or wait for their deletion."""
        names: set[tuple[str, str]] = set()
        ids: set[tuple[str, str]] = set()

        def claim(pool: str, backend_id: str, provider_id: str | None = None) -> None:
            names.add((pool, provider_id or f"volume-{backend_id}"))
            if not provider_id:
                ids.add((pool, backend_id))

        for volume in self.volumes.values():
            claim(volume.host, volume.backend_id, volume.provider_id)
        for retired in self.retired:
            claim(retired.host, retired.name_id, retired.provider_id)
        for migration in self.unfinished.values():
            for backend_id in self.ids_of(migration):
                # On its way back as well as on its way there.
                claim(migration.destination, backend_id)
                claim(migration.source, backend_id)
        return Claims(names=frozenset(names), ids=frozenset(ids))

    def ids_of(self, migration: Migration) -> set[str]:
        """Return the ids under which a migration may have made an object, also before it was taken over."""
        found = {migration.volume_id, migration.destination_id}
        for entry in self.journals[migration.id]:
            found.update(value for key in ("id", "name_id") if isinstance(value := entry.data.get(key), str))
        return found

    def worker_is_gone(self, migration: Migration, *, epoch: int, host: str) -> bool:
        """Say whether the process is certainly gone that took an unfinished migration for the *epoch*-th time."""
        for entry in self.journals[migration.id]:
            if entry.kind is EntryKind.NOTE and entry.subject == WORKER and entry.epoch == epoch:
                process = ProcessIdentity.from_facts(entry.data)
                return process is not None and process.is_gone(host)
        return False


def _is_out_of_order(volume: Volume) -> bool:
    stuck = volume.status is VolumeStatus.MAINTENANCE and volume.migration_id is None
    return volume.status is VolumeStatus.ERROR or stuck


def find_migrations(view: ReadTransaction, ids: Iterable[str]) -> list[Migration]:
    """Return those of the migrations that are on record."""
    found = []
    for migration_id in ids:
        try:
            found.append(view.get_migration(migration_id))
        except errors.MigrationNotFound:
            continue
    return found
