"""Make the first tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}


def _short() -> sa.String:
    return (
        sa.String(255)
        .with_variant(sa.String(255, collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
    )


def _text(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, _short(), nullable=nullable)


def _long(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    kind = sa.Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
    return sa.Column(name, kind, nullable=nullable)


def _integer(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _json(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON(), nullable=False)


def upgrade() -> None:
    """Make the tables for volumes, migrations and what belongs to them."""
    _make_volumes()
    _make_migrations()
    _make_journal()
    _make_retired()
    _make_reservations()
    _make_backends()


def _make_volumes() -> None:
    op.create_table(
        "volumes",
        _text("id"),
        _text("name"),
        _integer("size_bytes"),
        _text("host"),
        _text("status"),
        _text("migration_status"),
        _text("name_id", nullable=True),
        _long("provider_location", nullable=True),
        _long("provider_id", nullable=True),
        _text("format"),
        _text("volume_type", nullable=True),
        _text("project_id", nullable=True),
        _json("metadata"),
        _json("attachments"),
        _json("snapshots"),
        _text("migration_id", nullable=True),
        _long("status_reason"),
        _integer("created_at"),
        _integer("updated_at"),
        _integer("version"),
        sa.PrimaryKeyConstraint("id"),
        **_OPTIONS,
    )
    op.create_index("ix_volumes_created", "volumes", ["created_at", "id"])
    op.create_index("ix_volumes_name", "volumes", ["name", "created_at", "id"])
    op.create_index("ix_volumes_host", "volumes", ["host", "created_at", "id"])
    op.create_index("ix_volumes_project", "volumes", ["project_id", "created_at", "id"])


def _make_migrations() -> None:
    op.create_table(
        "migrations",
        _text("id"),
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
        _integer("bandwidth_limit_bytes"),
        _text("stage"),
        _integer("bytes_total"),
        _integer("bytes_done"),
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
        _text("owner"),
        _integer("epoch"),
        _integer("lease_expires_at", nullable=True),
        _integer("created_at"),
        _integer("started_at", nullable=True),
        _integer("finished_at", nullable=True),
        _integer("updated_at"),
        sa.PrimaryKeyConstraint("id"),
        **_OPTIONS,
    )
    op.create_index("ix_migrations_created", "migrations", ["created_at", "id"])
    op.create_index("ix_migrations_volume", "migrations", ["volume_id", "created_at", "id"])
    op.create_index("ix_migrations_phase", "migrations", ["phase", "created_at", "id"])


def _make_journal() -> None:
    op.create_table(
        "journal",
        _text("migration_id"),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        _text("kind"),
        _text("subject"),
        _text("actor"),
        _integer("epoch"),
        _json("data"),
        _integer("at"),
        sa.PrimaryKeyConstraint("migration_id", "sequence"),
        sa.ForeignKeyConstraint(["migration_id"], ["migrations.id"], name="fk_journal_migration"),
        **_OPTIONS,
    )


def _make_retired() -> None:
    op.create_table(
        "retired",
        _text("id"),
        _text("migration_id"),
        _text("volume_id"),
        _text("host"),
        _text("name_id"),
        _integer("size_bytes"),
        _long("provider_location", nullable=True),
        _long("provider_id", nullable=True),
        _long("identity", nullable=True),
        _text("format"),
        _integer("delete_after", nullable=True),
        _integer("attempts"),
        _long("last_error"),
        sa.PrimaryKeyConstraint("id"),
        **_OPTIONS,
    )
    op.create_index("ix_retired_due", "retired", ["delete_after"])


def _make_reservations() -> None:
    op.create_table(
        "pools",
        _text("address"),
        _integer("reserved_bytes"),
        _integer("releases"),
        sa.PrimaryKeyConstraint("address"),
        sa.CheckConstraint("reserved_bytes >= 0", name="ck_pools_reserved"),
        **_OPTIONS,
    )
    op.create_table(
        "reservations",
        _text("id"),
        _text("host"),
        _integer("size_bytes"),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["host"], ["pools.address"], name="fk_reservations_pool"),
        **_OPTIONS,
    )
    op.create_index("ix_reservations_host", "reservations", ["host"])


def _make_backends() -> None:
    op.create_table(
        "backends",
        _text("address"),
        _long("storage_identity"),
        sa.PrimaryKeyConstraint("address"),
        **_OPTIONS,
    )
