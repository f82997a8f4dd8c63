"""Reading from the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc

from volmig import errors
from volmig.model import JournalEntry, Migration, Reservation, RetiredObject, Volume
from volmig.store import rows, rules, statements
from volmig.store.base import MigrationQuery, VolumeQuery
from volmig.store.database import Database

_CLOCKS: Final[Mapping[str, sa.TextClause]] = {
    "postgresql": sa.text("SELECT clock_timestamp()"),
    "mysql": sa.text("SELECT UTC_TIMESTAMP(6)"),
    "mariadb": sa.text("SELECT UTC_TIMESTAMP(6)"),
}


class SqlReadTransaction:
    """A consistent view of the tables; see :class:`volmig.store.base.ReadTransaction`."""

    def __init__(self, database: Database, connection: sa.Connection, clock: Callable[[], datetime] | None) -> None:
        self._database = database
        self._connection: sa.Connection | None = connection
        self._clock = clock
        self._failure: errors.VolmigError | None = None

    def end(self) -> None:
        """Refuse further use."""
        self._connection = None

    @property
    def failure(self) -> errors.VolmigError | None:
        """The database's error in an earlier call, after which nothing is committed any more."""
        return self._failure

    def _run(
        self, statement: sa.Executable, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        if self._connection is None:
            raise errors.InternalError(reason="a transaction of the store is used after its end")
        if self._failure is not None:
            # The database may have undone the transaction: what follows would not be part of it.
            raise self._failure
        try:
            return self._connection.execute(statement, values)
        except exc.SQLAlchemyError as error:
            self._failure = self._database.translated(error)
            raise self._failure from error

    def now(self) -> datetime:
        if self._clock is not None:
            return self._clock().astimezone(UTC)
        query = _CLOCKS.get(self._database.url.get_backend_name())
        if query is None:
            # SQLite has no other clock than this host's.
            return datetime.now(UTC)
        time: datetime = self._run(query).scalar_one()
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)

    def get_volume(self, volume_id: str) -> Volume:
        volume = self._find_volume(volume_id)
        if volume is None:
            raise errors.VolumeNotFound(volume=volume_id)
        return volume

    def _find_volume(self, volume_id: str) -> Volume | None:
        row = self._run(statements.GET_VOLUME, {"key": volume_id}).one_or_none()
        return None if row is None else rows.to_volume(row)

    def list_volumes(self, query: VolumeQuery = VolumeQuery()) -> Sequence[Volume]:  # noqa: B008 - immutable
        rules.check_limit(query.limit)
        values: dict[str, Any] = {
            "name": query.name,
            "status": None if query.status is None else query.status.value,
            "project_id": query.project_id,
            "limit": query.limit,
        }
        values = {name: value for name, value in values.items() if value is not None}
        filters = set(values)
        if query.host is not None:
            limits = rules.host_range(query.host)
            if limits is None:
                filters.add("host")
                values["host"] = query.host
            else:
                filters.add("below")
                values["first"], values["end"] = limits
        if query.marker is not None:
            filters.add("after")
            values["after"] = self._position(statements.VOLUME_POSITION, query.marker)
            values["after_id"] = query.marker
            if values["after"] is None:
                raise errors.VolumeNotFound(volume=query.marker)
        found = self._run(statements.list_volumes(frozenset(filters)), values)
        return [rows.to_volume(row) for row in found]

    def _position(self, statement: sa.Executable, marker: str) -> datetime | None:
        time: datetime | None = self._run(statement, {"key": marker}).scalar_one_or_none()
        return time

    def get_migration(self, migration_id: str) -> Migration:
        row = self._run(statements.GET_MIGRATION, {"key": migration_id}).one_or_none()
        if row is None:
            raise errors.MigrationNotFound(migration=migration_id)
        return rows.to_migration(row)

    def list_migrations(self, query: MigrationQuery = MigrationQuery()) -> Sequence[Migration]:  # noqa: B008
        rules.check_limit(query.limit)
        values: dict[str, Any] = {
            "volume_id": query.volume_id,
            "phases": None if query.phases is None else sorted(phase.value for phase in query.phases),
            "method": None if query.method is None else query.method.value,
            "destination_id": query.destination_id,
            "min_epoch": query.min_epoch,
            "limit": query.limit,
        }
        values = {name: value for name, value in values.items() if value is not None}
        filters = set(values)
        if query.marker is not None:
            filters.add("after")
            values["after"] = self._position(statements.MIGRATION_POSITION, query.marker)
            values["after_id"] = query.marker
            if values["after"] is None:
                raise errors.MigrationNotFound(migration=query.marker)
        found = self._run(statements.list_migrations(frozenset(filters)), values)
        return [rows.to_migration(row) for row in found]

    def read_journal(self, migration_id: str) -> Sequence[JournalEntry]:
        return [rows.to_entry(row) for row in self._run(statements.READ_JOURNAL, {"key": migration_id})]

    def load_checkpoint(self, migration_id: str) -> bytes | None:
        data: bytes | None = self._run(statements.LOAD_CHECKPOINT, {"key": migration_id}).scalar_one_or_none()
        return data

    def list_checkpoints(self) -> Sequence[str]:
        return list(self._run(statements.LIST_CHECKPOINTS).scalars())

    def list_retired(
        self, *, due_at: datetime | None = None, migration_id: str | None = None, volume_id: str | None = None
    ) -> Sequence[RetiredObject]:
        values: dict[str, Any] = {"due_at": due_at, "migration_id": migration_id, "volume_id": volume_id}
        values = {name: value for name, value in values.items() if value is not None}
        found = self._run(statements.list_retired(frozenset(values)), values)
        return sorted((rows.to_retired(row) for row in found), key=rules.retired_order)

    def list_reservations(self, host: str | None = None) -> Sequence[Reservation]:
        if host is None:
            found = self._run(statements.LIST_RESERVATIONS)
        else:
            found = self._run(statements.LIST_RESERVATIONS_OF, {"pool": host})
        return [rows.to_reservation(row) for row in found]

    def get_storage_identity(self, backend: str) -> str | None:
        identity: str | None = self._run(statements.GET_BACKEND, {"key": backend}).scalar_one_or_none()
        return identity

    def count_releases(self, host: str) -> int:
        row = self._run(statements.GET_POOL, {"pool": host}).one_or_none()
        return 0 if row is None else int(row.releases)
