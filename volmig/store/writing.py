"""Changing the tables.

Every change reads the present record first, inside the same transaction, so that what may follow it is decided by
:mod:`volmig.store.rules`. The ``UPDATE`` names the version or epoch once more: should a database not make writers
wait for each other as it was told to, the change fails and is not made over another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from volmig import errors
from volmig.model import JournalEntry, Migration, Reservation, RetiredObject, Volume
from volmig.store import requests, rows, rules, statements
from volmig.store.reading import SqlReadTransaction


class SqlWriteTransaction(SqlReadTransaction):
    """A view that can change the tables; see :class:`volmig.store.base.WriteTransaction`."""

    def add_volume(self, volume: Volume) -> Volume:
        if self._find_volume(volume.id) is not None:
            raise errors.VolumeExists(volume=volume.id)
        added = rules.new_volume(volume, now=self.now())
        self._run(statements.ADD_VOLUME, rows.to_columns(added))
        return added

    def update_volume(self, volume: Volume, **changes: Any) -> Volume:
        present = self._present_volume(volume)
        changed = rules.changed_volume(present, changes, now=self.now())
        values = rows.to_columns(changed, [*changes, "version", "updated_at"])
        values.update(key=volume.id, key_version=volume.version)
        if self._run(statements.UPDATE_VOLUME, values).rowcount != 1:
            raise rules.volume_conflict(volume)
        return changed

    def remove_volume(self, volume: Volume) -> None:
        values = {"key": volume.id, "key_version": volume.version}
        if self._run(statements.REMOVE_VOLUME, values).rowcount != 1:
            raise rules.volume_conflict(volume)

    def _present_volume(self, volume: Volume) -> Volume:
        present = self._find_volume(volume.id)
        if present is None or present.version != volume.version:
            raise rules.volume_conflict(volume)
        return present

    def add_migration(self, migration: Migration) -> Migration:
        if self._run(statements.MIGRATION_POSITION, {"key": migration.id}).one_or_none() is not None:
            raise errors.InternalError(reason=f"migration {migration.id} is recorded already")
        added = rules.new_migration(migration, now=self.now())
        self._run(statements.ADD_MIGRATION, rows.to_columns(added))
        return added

    def claim_migration(self, migration_id: str, *, owner: str, lease_seconds: float) -> Migration:
        present = self.get_migration(migration_id)
        claimed = rules.claimed_migration(present, owner=owner, lease_seconds=lease_seconds, now=self.now())
        return self._store_migration(present, claimed, ["owner", "epoch", "lease_expires_at"])

    def update_migration(self, migration: Migration, **changes: Any) -> Migration:
        present = self.get_migration(migration.id)
        changed = rules.changed_migration(present, migration, changes, now=self.now())
        return self._store_migration(present, changed, changes)

    def renew_lease(self, migration: Migration, *, lease_seconds: float) -> Migration:
        present = self.get_migration(migration.id)
        renewed = rules.renewed_migration(present, migration, lease_seconds=lease_seconds, now=self.now())
        return self._store_migration(present, renewed, ["lease_expires_at"])

    def request_cancel(self, migration_id: str, *, requested_by: str) -> Migration:
        present = self.get_migration(migration_id)
        return self._store_request(
            present, requests.cancel_requested(present, requested_by=requested_by, now=self.now())
        )

    def request_pause(self, migration_id: str, *, requested_by: str) -> Migration:
        present = self.get_migration(migration_id)
        return self._store_request(
            present, requests.pause_requested(present, requested_by=requested_by, now=self.now())
        )

    def request_resume(self, migration_id: str, *, requested_by: str) -> Migration:
        present = self.get_migration(migration_id)
        return self._store_request(
            present, requests.resume_requested(present, requested_by=requested_by, now=self.now())
        )

    def set_bandwidth_limit(self, migration_id: str, *, bandwidth_limit_bytes: int) -> Migration:
        present = self.get_migration(migration_id)
        return self._store_request(
            present, requests.limit_requested(present, bandwidth_limit_bytes=bandwidth_limit_bytes, now=self.now())
        )

    def _store_request(self, present: Migration, requested: Migration) -> Migration:
        if requested is present:
            return present
        return self._store_migration(present, requested, requests.CHANGED_FIELDS)

    def _store_migration(self, present: Migration, changed: Migration, names: Iterable[str]) -> Migration:
        values = rows.to_columns(changed, [*names, "updated_at"])
        values.update(key=present.id, key_epoch=present.epoch)
        if self._run(statements.UPDATE_MIGRATION, values).rowcount != 1:
            raise rules.lease_lost(present)
        return changed

    def save_checkpoint(self, migration: Migration, data: bytes) -> None:
        state = self._run(statements.CHECKPOINT_STATE, {"key": migration.id}).one_or_none()
        if state is None:
            raise errors.MigrationNotFound(migration=migration.id)
        kept = rules.new_checkpoint(migration, data, present_epoch=state.epoch)
        values: dict[str, Any] = {"epoch": migration.epoch, "data": kept, "updated_at": self.now()}
        if state.saved is None:
            self._run(statements.ADD_CHECKPOINT, {"migration_id": migration.id, **values})
            return
        values.update(key=migration.id, key_epoch=state.saved)
        if self._run(statements.UPDATE_CHECKPOINT, values).rowcount != 1:
            raise rules.lease_lost(migration)

    def remove_checkpoint(self, migration_id: str) -> None:
        self._run(statements.REMOVE_CHECKPOINT, {"key": migration_id})

    def append_journal(self, *entries: JournalEntry) -> None:
        if not entries:
            return
        migration_id = entries[0].migration_id
        row = self._run(statements.LAST_SEQUENCE, {"key": migration_id}).one_or_none()
        if row is None:
            raise errors.MigrationNotFound(migration=migration_id)
        added = rules.new_entries(entries, after=row.last or 0, now=self.now())
        self._run(statements.ADD_ENTRY, [rows.to_columns(entry) for entry in added])

    def reserve(self, reservation: Reservation, *, limit_bytes: int, releases: int | None = None) -> None:
        rules.check_reservation(reservation)
        row = self._run(statements.GET_RESERVATION, {"key": reservation.id}).one_or_none()
        if rules.reservation_is_repeated(None if row is None else rows.to_reservation(row), reservation):
            return
        pool = self._run(statements.GET_POOL, {"pool": reservation.host}).one_or_none()
        rules.check_releases(reservation, seen=releases, present=0 if pool is None else pool.releases)
        if pool is None:
            self._run(statements.ADD_POOL, {"address": reservation.host, "reserved_bytes": 0, "releases": 0})
        charge = {"pool": reservation.host, "amount": reservation.size_bytes, "limit": limit_bytes}
        if self._run(statements.CHARGE_POOL, charge).rowcount != 1:
            reserved_bytes = 0 if pool is None else pool.reserved_bytes
            raise rules.no_room(reservation, reserved_bytes=reserved_bytes, limit_bytes=limit_bytes)
        self._run(statements.ADD_RESERVATION, rows.to_columns(reservation))

    def release(self, reservation_id: str) -> None:
        row = self._run(statements.GET_RESERVATION, {"key": reservation_id}).one_or_none()
        if row is None:
            return
        present = rows.to_reservation(row)
        self._run(statements.REMOVE_RESERVATION, {"key": reservation_id})
        self._run(statements.DISCHARGE_POOL, {"pool": present.host, "amount": present.size_bytes})

    def set_storage_identity(self, backend: str, identity: str) -> None:
        rules.check_text("backend", backend)
        rules.check_text("storage_identity", identity)
        # Looked up first: MariaDB counts a row that is written with what it holds as none.
        if self._run(statements.GET_BACKEND, {"key": backend}).one_or_none() is None:
            self._run(statements.ADD_BACKEND, {"address": backend, "storage_identity": identity})
        else:
            self._run(statements.UPDATE_BACKEND, {"key": backend, "storage_identity": identity})

    def add_retired(self, retired: RetiredObject) -> None:
        if self._run(statements.GET_RETIRED, {"key": retired.id}).one_or_none() is not None:
            raise errors.InternalError(reason=f"retired object {retired.id} is recorded already")
        self._run(statements.ADD_RETIRED, rows.to_columns(rules.new_retired(retired)))

    def update_retired(self, retired_id: str, *, attempts: int, last_error: str) -> None:
        rules.check_text("last_error", last_error)
        values = {"key": retired_id, "attempts": attempts, "last_error": last_error}
        if self._run(statements.UPDATE_RETIRED, values).rowcount != 1:
            raise errors.StoreConflict(kind="retired object", id=retired_id)

    def schedule_retired(self, retired_id: str, *, delete_after: datetime) -> None:
        time = rules.deletion_time(delete_after)
        # Looked up first, as in set_storage_identity.
        if self._run(statements.GET_RETIRED, {"key": retired_id}).one_or_none() is None:
            raise errors.StoreConflict(kind="retired object", id=retired_id)
        self._run(statements.UPDATE_RETIRED, {"key": retired_id, "delete_after": time})

    def begin_deletion(self, retired_id: str) -> RetiredObject:
        row = self._run(statements.GET_RETIRED, {"key": retired_id}).one_or_none()
        if row is None:
            raise errors.StoreConflict(kind="retired object", id=retired_id)
        begun = rules.deletion_begun(rows.to_retired(row), now=self.now())
        self._run(statements.UPDATE_RETIRED, {"key": retired_id, "deletion_begun_at": begun.deletion_begun_at})
        return begun

    def remove_retired(self, retired_id: str) -> None:
        self._run(statements.REMOVE_RETIRED, {"key": retired_id})
