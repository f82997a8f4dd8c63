"""Record requests to pause, operations on volumes, the keeping of old storage, and checkpoints of copies.

Each step looks whether it was taken already: MariaDB commits each change of a table by itself, so that an upgrade that
was killed there begins anew with some of them made.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}


def _short() -> sa.String:
    return (
        sa.String(255)
        .with_variant(sa.String(255, collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
    )


def upgrade() -> None:
    """Add the columns, the indexes and the table; older rows get the columns' defaults."""
    _add_column("migrations", sa.Column("pause_requested_by", _short(), server_default="", nullable=False))
    _add_column(
        "migrations",
        sa.Column("source_retention_seconds", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    _add_column("migrations", sa.Column("rolls_back", _short(), server_default="", nullable=False))
    _add_column("volumes", sa.Column("operation", sa.JSON(), server_default=sa.text("('{}')"), nullable=False))
    _add_column("retired", sa.Column("deletion_begun_at", sa.BigInteger(), nullable=True))
    # Nothing was kept until now: whatever waits for its deletion may be under deletion.
    op.execute("UPDATE retired SET deletion_begun_at = delete_after WHERE deletion_begun_at IS NULL")
    _add_index("ix_migrations_destination", "migrations", "destination_id")
    _add_index("ix_retired_migration", "retired", "migration_id")
    _add_index("ix_retired_volume", "retired", "volume_id")
    _make_checkpoints()


def _add_column(table: str, column: sa.Column[Any]) -> None:
    if column.name not in {present["name"] for present in sa.inspect(op.get_bind()).get_columns(table)}:
        op.add_column(table, column)


def _add_index(name: str, table: str, column: str) -> None:
    if name not in {present["name"] for present in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, [column])


def _make_checkpoints() -> None:
    if sa.inspect(op.get_bind()).has_table("checkpoints"):
        return
    op.create_table(
        "checkpoints",
        sa.Column("migration_id", _short(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb"), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("migration_id"),
        sa.ForeignKeyConstraint(["migration_id"], ["migrations.id"], name="fk_checkpoints_migration"),
        **_OPTIONS,
    )
