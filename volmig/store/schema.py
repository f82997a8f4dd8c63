"""The tables.

Each column is named as the field that it holds. Times are whole microseconds since 1970 in UTC, and text compares by
code point: both are the same on SQLite, MariaDB and PostgreSQL, whatever the server's time zone and collation.

A column that a later revision has added has a default in the database too: it is what older rows got, and adding it
takes no copy of the table.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from volmig.store.rules import SHORT_TEXT_LENGTH

REVISIONS: Final = ("0001", "0002")
"""Every schema that this volmig knows, oldest first; the tables below are the last one."""

HEAD: Final = REVISIONS[-1]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class UtcTime(sa.TypeDecorator[datetime]):
    """A time with time zone, kept as whole microseconds since 1970 in UTC."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Any) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


def _short_text() -> sa.String:
    return (
        sa.String(SHORT_TEXT_LENGTH)
        .with_variant(sa.String(SHORT_TEXT_LENGTH, collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(SHORT_TEXT_LENGTH, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
    )


def _long_text() -> sa.Text:
    return sa.Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")


def _text(
    name: str, *, nullable: bool = False, primary_key: bool = False, default: str | None = None
) -> sa.Column[Any]:
    return sa.Column(name, _short_text(), nullable=nullable, primary_key=primary_key, server_default=default)


def _long(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, _long_text(), nullable=nullable)


def _blob() -> sa.LargeBinary:
    return sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def _bytes(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def _time(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, UtcTime(), nullable=nullable)


_OPTIONS: Final[dict[str, Any]] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}

metadata = sa.MetaData()

volumes = sa.Table(
    "volumes",
    metadata,
    _text("id", primary_key=True),
    _text("name"),
    _bytes("size_bytes"),
    _text("host"),
    _text("status"),
    _text("migration_status"),
    _text("name_id", nullable=True),
    _long("provider_location", nullable=True),
    _long("provider_id", nullable=True),
    _text("format"),
    _text("volume_type", nullable=True),
    _text("project_id", nullable=True),
    sa.Column("metadata", sa.JSON(), nullable=False),
    sa.Column("attachments", sa.JSON(), nullable=False),
    sa.Column("snapshots", sa.JSON(), nullable=False),
    # In parentheses, since MySQL takes no plain default for JSON.
    sa.Column("operation", sa.JSON(), nullable=False, server_default=sa.text("('{}')")),
    _text("migration_id", nullable=True),
    _long("status_reason"),
    _time("created_at"),
    _time("updated_at"),
    sa.Column("version", sa.BigInteger(), nullable=False),
    sa.Index("ix_volumes_created", "created_at", "id"),
    sa.Index("ix_volumes_name", "name", "created_at", "id"),
    sa.Index("ix_volumes_host", "host", "created_at", "id"),
    sa.Index("ix_volumes_project", "project_id", "created_at", "id"),
    **_OPTIONS,
)

migrations = sa.Table(
    "migrations",
    metadata,
    _text("id", primary_key=True),
    # Not a foreign key: the history of a volume outlives it.
    _text("volume_id"),
    _text("source"),
    _text("destination"),
    _text("destination_id"),
    _text("method"),
    _text("phase"),
    sa.Column("force_host_copy", sa.Boolean(), nullable=False),
    sa.Column("lock_volume", sa.Boolean(), nullable=False),
    _text("engine"),
    _text("verify"),
    _bytes("bandwidth_limit_bytes"),
    _text("stage"),
    _bytes("bytes_total"),
    _bytes("bytes_done"),
    sa.Column("rate_bytes", sa.Double(), nullable=False),
    sa.Column("eta_seconds", sa.Double(), nullable=True),
    _text("digest_algorithm"),
    _text("source_digest"),
    _text("destination_digest"),
    _text("error_code"),
    _long("error_message"),
    _long("error_hint"),
    _text("requested_by"),
    _text("cancel_requested_by"),
    _text("pause_requested_by", default=""),
    sa.Column("source_retention_seconds", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
    _text("rolls_back", default=""),
    _text("owner"),
    sa.Column("epoch", sa.BigInteger(), nullable=False),
    _time("lease_expires_at", nullable=True),
    _time("created_at"),
    _time("started_at", nullable=True),
    _time("finished_at", nullable=True),
    _time("updated_at"),
    sa.Index("ix_migrations_created", "created_at", "id"),
    sa.Index("ix_migrations_volume", "volume_id", "created_at", "id"),
    sa.Index("ix_migrations_phase", "phase", "created_at", "id"),
    sa.Index("ix_migrations_destination", "destination_id"),
    **_OPTIONS,
)

journal = sa.Table(
    "journal",
    metadata,
    sa.Column(
        "migration_id",
        _short_text(),
        sa.ForeignKey("migrations.id", name="fk_journal_migration"),
        primary_key=True,
        nullable=False,
    ),
    sa.Column("sequence", sa.BigInteger(), primary_key=True, autoincrement=False, nullable=False),
    _text("kind"),
    _text("subject"),
    _text("actor"),
    sa.Column("epoch", sa.BigInteger(), nullable=False),
    sa.Column("data", sa.JSON(), nullable=False),
    _time("at"),
    **_OPTIONS,
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column(
        "migration_id",
        _short_text(),
        sa.ForeignKey("migrations.id", name="fk_checkpoints_migration"),
        primary_key=True,
        nullable=False,
    ),
    sa.Column("epoch", sa.BigInteger(), nullable=False),
    sa.Column("data", _blob(), nullable=False),
    _time("updated_at"),
    **_OPTIONS,
)

retired = sa.Table(
    "retired",
    metadata,
    _text("id", primary_key=True),
    _text("migration_id"),
    _text("volume_id"),
    _text("host"),
    _text("name_id"),
    _bytes("size_bytes"),
    _long("provider_location", nullable=True),
    _long("provider_id", nullable=True),
    _long("identity", nullable=True),
    _text("format"),
    _time("delete_after", nullable=True),
    _time("deletion_begun_at", nullable=True),
    sa.Column("attempts", sa.BigInteger(), nullable=False),
    _long("last_error"),
    sa.Index("ix_retired_due", "delete_after"),
    sa.Index("ix_retired_migration", "migration_id"),
    sa.Index("ix_retired_volume", "volume_id"),
    **_OPTIONS,
)

pools = sa.Table(
    "pools",
    metadata,
    _text("address", primary_key=True),
    # The sum of the pool's reservations: one row to compare and change, however many reservations there are.
    sa.Column("reserved_bytes", sa.BigInteger(), nullable=False),
    sa.Column("releases", sa.BigInteger(), nullable=False),
    sa.CheckConstraint("reserved_bytes >= 0", name="ck_pools_reserved"),
    **_OPTIONS,
)

reservations = sa.Table(
    "reservations",
    metadata,
    _text("id", primary_key=True),
    sa.Column("host", _short_text(), sa.ForeignKey("pools.address", name="fk_reservations_pool"), nullable=False),
    _bytes("size_bytes"),
    sa.Index("ix_reservations_host", "host"),
    **_OPTIONS,
)

backends = sa.Table(
    "backends",
    metadata,
    _text("address", primary_key=True),
    _long("storage_identity"),
    **_OPTIONS,
)

revision = sa.table("alembic_version", sa.column("version_num", sa.String(32)))
"""The table in which alembic keeps the schema's revision; one row."""
