"""A store without a database, for tests of programs that embed volmig."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from volmig import errors
from volmig.model import JournalEntry, Migration, Reservation, RetiredObject, Volume
from volmig.store import MigrationQuery, VolumeQuery, requests, rules

_Record = TypeVar("_Record", Volume, Migration)


@dataclass
class _State:
    """All records; a state that was committed is never changed again."""

    volumes: dict[str, Volume] = field(default_factory=dict)
    migrations: dict[str, Migration] = field(default_factory=dict)
    journal: dict[str, tuple[JournalEntry, ...]] = field(default_factory=dict)
    checkpoints: dict[str, bytes] = field(default_factory=dict)
    retired: dict[str, RetiredObject] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    releases: dict[str, int] = field(default_factory=dict)
    storage_identities: dict[str, str] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(**{item.name: dict(getattr(self, item.name)) for item in dataclasses.fields(self)})


class MemoryStore:
    """Keeps volumes and migrations in this process, and nothing after its end.

    It behaves as :class:`volmig.store.sql.SqlStore` does, checked by the same suite, and is safe to use from several
    threads. Readers see the last committed state and never wait.

    :param busy_timeout_seconds: how long a writer waits for its turn.
    :param clock: the store's clock; the host's when not given.
    """

    label = "in memory (keeps nothing)"

    def __init__(self, *, busy_timeout_seconds: float = 30.0, clock: Callable[[], datetime] | None = None) -> None:
        self._busy_timeout_seconds = busy_timeout_seconds
        self._clock = clock or _host_clock
        self._state = _State()
        self._turn = threading.Lock()
        self._thread = threading.local()
        self._closed = False

    def __repr__(self) -> str:
        return f"<MemoryStore {self.label}>"

    @contextlib.contextmanager
    def reading(self) -> Iterator[MemoryReadTransaction]:
        """Begin a consistent view."""
        with self._using():
            transaction = MemoryReadTransaction(self._state, self._clock)
            try:
                yield transaction
            finally:
                transaction.end()

    @contextlib.contextmanager
    def writing(self) -> Iterator[MemoryWriteTransaction]:
        """Begin a change, which happens when the block ends, and does not when it raises."""
        with self._using():
            if not self._turn.acquire(timeout=self._busy_timeout_seconds):
                raise errors.StoreBusy(database=self.label, seconds=f"{self._busy_timeout_seconds:g}")
            try:
                state = self._state.copy()
                transaction = MemoryWriteTransaction(state, self._clock)
                try:
                    yield transaction
                finally:
                    transaction.end()
                self._state = state
            finally:
                self._turn.release()

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        if self._closed:
            raise errors.InternalError(reason=f"the store {self.label} is used after it was closed")
        if getattr(self._thread, "is_busy", False):
            raise errors.InternalError(reason="a transaction of the store was begun inside another one of its thread")
        self._thread.is_busy = True
        try:
            yield
        finally:
            self._thread.is_busy = False

    def close(self) -> None:
        """Refuse further use."""
        self._closed = True


class MemoryReadTransaction:
    """A consistent view of a :class:`MemoryStore`."""

    def __init__(self, state: _State, clock: Callable[[], datetime]) -> None:
        self._open_state: _State | None = state
        self._clock = clock

    def end(self) -> None:
        """Refuse further use."""
        self._open_state = None

    @property
    def _state(self) -> _State:
        if self._open_state is None:
            raise errors.InternalError(reason="a transaction of the store is used after its end")
        return self._open_state

    def now(self) -> datetime:
        return self._clock().astimezone(UTC)

    def get_volume(self, volume_id: str) -> Volume:
        if volume_id not in self._state.volumes:
            raise errors.VolumeNotFound(volume=volume_id)
        return _own(self._state.volumes[volume_id])

    def list_volumes(self, query: VolumeQuery = VolumeQuery()) -> Sequence[Volume]:  # noqa: B008 - immutable
        rules.check_limit(query.limit)
        if query.marker is not None:
            self.get_volume(query.marker)
        found = (
            volume
            for volume in self._state.volumes.values()
            if query.name in (None, volume.name)
            and (query.host is None or rules.host_matches(query.host, volume.host))
            and query.status in (None, volume.status)
            and query.project_id in (None, volume.project_id)
        )
        marker = None if query.marker is None else _age(self._state.volumes[query.marker])
        later = [volume for volume in sorted(found, key=_age) if marker is None or _age(volume) > marker]
        return [_own(volume) for volume in later[: query.limit]]

    def get_migration(self, migration_id: str) -> Migration:
        if migration_id not in self._state.migrations:
            raise errors.MigrationNotFound(migration=migration_id)
        return self._state.migrations[migration_id]

    def list_migrations(self, query: MigrationQuery = MigrationQuery()) -> Sequence[Migration]:  # noqa: B008
        rules.check_limit(query.limit)
        marker = None if query.marker is None else _age(self.get_migration(query.marker))
        found = (
            migration
            for migration in self._state.migrations.values()
            if query.volume_id in (None, migration.volume_id)
            and (query.phases is None or migration.phase in query.phases)
            and query.method in (None, migration.method)
            and query.destination_id in (None, migration.destination_id)
            and (query.min_epoch is None or migration.epoch >= query.min_epoch)
            and (marker is None or _age(migration) < marker)
        )
        return sorted(found, key=_age, reverse=True)[: query.limit]

    def read_journal(self, migration_id: str) -> Sequence[JournalEntry]:
        entries = self._state.journal.get(migration_id, ())
        return [dataclasses.replace(entry, data=copy.deepcopy(entry.data)) for entry in entries]

    def load_checkpoint(self, migration_id: str) -> bytes | None:
        return self._state.checkpoints.get(migration_id)

    def list_checkpoints(self) -> Sequence[str]:
        return sorted(self._state.checkpoints)

    def list_retired(
        self, *, due_at: datetime | None = None, migration_id: str | None = None, volume_id: str | None = None
    ) -> Sequence[RetiredObject]:
        found = (
            item
            for item in self._state.retired.values()
            if migration_id in (None, item.migration_id)
            and volume_id in (None, item.volume_id)
            and (due_at is None or (item.delete_after is not None and item.delete_after <= due_at))
        )
        return sorted(found, key=rules.retired_order)

    def list_reservations(self, host: str | None = None) -> Sequence[Reservation]:
        found = (item for item in self._state.reservations.values() if host in (None, item.host))
        return sorted(found, key=lambda item: (item.host, item.id))

    def get_storage_identity(self, backend: str) -> str | None:
        return self._state.storage_identities.get(backend)

    def count_releases(self, host: str) -> int:
        return self._state.releases.get(host, 0)


class MemoryWriteTransaction(MemoryReadTransaction):
    """A view that can change a :class:`MemoryStore`."""

    def add_volume(self, volume: Volume) -> Volume:
        if volume.id in self._state.volumes:
            raise errors.VolumeExists(volume=volume.id)
        return self._keep_volume(rules.new_volume(volume, now=self.now()))

    def update_volume(self, volume: Volume, **changes: Any) -> Volume:
        present = self._present_volume(volume)
        return self._keep_volume(rules.changed_volume(present, changes, now=self.now()))

    def remove_volume(self, volume: Volume) -> None:
        self._present_volume(volume)
        del self._state.volumes[volume.id]

    def _present_volume(self, volume: Volume) -> Volume:
        present = self._state.volumes.get(volume.id)
        if present is None or present.version != volume.version:
            raise rules.volume_conflict(volume)
        return present

    def _keep_volume(self, volume: Volume) -> Volume:
        self._state.volumes[volume.id] = volume
        return _own(volume)

    def add_migration(self, migration: Migration) -> Migration:
        if migration.id in self._state.migrations:
            raise errors.InternalError(reason=f"migration {migration.id} is recorded already")
        return self._keep_migration(rules.new_migration(migration, now=self.now()))

    def claim_migration(self, migration_id: str, *, owner: str, lease_seconds: float) -> Migration:
        present = self.get_migration(migration_id)
        return self._keep_migration(
            rules.claimed_migration(present, owner=owner, lease_seconds=lease_seconds, now=self.now())
        )

    def update_migration(self, migration: Migration, **changes: Any) -> Migration:
        present = self.get_migration(migration.id)
        return self._keep_migration(rules.changed_migration(present, migration, changes, now=self.now()))

    def renew_lease(self, migration: Migration, *, lease_seconds: float) -> Migration:
        present = self.get_migration(migration.id)
        return self._keep_migration(
            rules.renewed_migration(present, migration, lease_seconds=lease_seconds, now=self.now())
        )

    def request_cancel(self, migration_id: str, *, requested_by: str) -> Migration:
        present = self.get_migration(migration_id)
        return self._keep_migration(requests.cancel_requested(present, requested_by=requested_by, now=self.now()))

    def request_pause(self, migration_id: str, *, requested_by: str) -> Migration:
        present = self.get_migration(migration_id)
        return self._keep_migration(requests.pause_requested(present, requested_by=requested_by, now=self.now()))

    def request_resume(self, migration_id: str, *, requested_by: str) -> Migration:
        present = self.get_migration(migration_id)
        return self._keep_migration(requests.resume_requested(present, requested_by=requested_by, now=self.now()))

    def set_bandwidth_limit(self, migration_id: str, *, bandwidth_limit_bytes: int) -> Migration:
        present = self.get_migration(migration_id)
        return self._keep_migration(
            requests.limit_requested(present, bandwidth_limit_bytes=bandwidth_limit_bytes, now=self.now())
        )

    def _keep_migration(self, migration: Migration) -> Migration:
        self._state.migrations[migration.id] = migration
        return migration

    def save_checkpoint(self, migration: Migration, data: bytes) -> None:
        present = self.get_migration(migration.id)
        kept = rules.new_checkpoint(migration, data, present_epoch=present.epoch)
        self._state.checkpoints[migration.id] = kept

    def remove_checkpoint(self, migration_id: str) -> None:
        self._state.checkpoints.pop(migration_id, None)

    def append_journal(self, *entries: JournalEntry) -> None:
        if not entries:
            return
        migration_id = entries[0].migration_id
        self.get_migration(migration_id)
        present = self._state.journal.get(migration_id, ())
        added = rules.new_entries(entries, after=len(present), now=self.now())
        self._state.journal[migration_id] = (*present, *added)

    def reserve(self, reservation: Reservation, *, limit_bytes: int, releases: int | None = None) -> None:
        rules.check_reservation(reservation)
        if rules.reservation_is_repeated(self._state.reservations.get(reservation.id), reservation):
            return
        rules.check_releases(reservation, seen=releases, present=self.count_releases(reservation.host))
        reserved = sum(item.size_bytes for item in self.list_reservations(reservation.host))
        if reserved + reservation.size_bytes > limit_bytes:
            raise rules.no_room(reservation, reserved_bytes=reserved, limit_bytes=limit_bytes)
        self._state.reservations[reservation.id] = reservation

    def release(self, reservation_id: str) -> None:
        released = self._state.reservations.pop(reservation_id, None)
        if released is not None:
            self._state.releases[released.host] = self.count_releases(released.host) + 1

    def set_storage_identity(self, backend: str, identity: str) -> None:
        rules.check_text("backend", backend)
        rules.check_text("storage_identity", identity)
        self._state.storage_identities[backend] = identity

    def add_retired(self, retired: RetiredObject) -> None:
        if retired.id in self._state.retired:
            raise errors.InternalError(reason=f"retired object {retired.id} is recorded already")
        self._state.retired[retired.id] = rules.new_retired(retired)

    def update_retired(self, retired_id: str, *, attempts: int, last_error: str) -> None:
        rules.check_text("last_error", last_error)
        present = self._state.retired.get(retired_id)
        if present is None:
            raise errors.StoreConflict(kind="retired object", id=retired_id)
        self._state.retired[retired_id] = dataclasses.replace(present, attempts=attempts, last_error=last_error)

    def schedule_retired(self, retired_id: str, *, delete_after: datetime) -> None:
        time = rules.deletion_time(delete_after)
        present = self._state.retired.get(retired_id)
        if present is None:
            raise errors.StoreConflict(kind="retired object", id=retired_id)
        self._state.retired[retired_id] = dataclasses.replace(present, delete_after=time)

    def begin_deletion(self, retired_id: str) -> RetiredObject:
        present = self._state.retired.get(retired_id)
        if present is None:
            raise errors.StoreConflict(kind="retired object", id=retired_id)
        self._state.retired[retired_id] = rules.deletion_begun(present, now=self.now())
        return self._state.retired[retired_id]

    def remove_retired(self, retired_id: str) -> None:
        self._state.retired.pop(retired_id, None)


def _host_clock() -> datetime:
    return datetime.now(UTC)


def _age(record: _Record) -> tuple[datetime, str]:
    if record.created_at is None:
        raise errors.InternalError(reason=f"the record {record.id} has no time of creation")
    return record.created_at, record.id


def _own(volume: Volume) -> Volume:
    """Return *volume* with dicts of its own, since a caller can change them."""
    return dataclasses.replace(volume, metadata=dict(volume.metadata), operation=copy.deepcopy(dict(volume.operation)))
