"""The tables, and how a database gets them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.schema import CreateTable

from volmig import errors
from volmig.model import JournalEntry, Migration, Reservation, RetiredObject, Volume
from volmig.store import schema, upgrade
from volmig.store.sql import SqlStore
from volmig.testing.store_contract import add_volume

SCRIPTS = Path(upgrade.__file__).parent / "alembic"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "volmig.db"


def open_and_close(path: Path) -> None:
    SqlStore(f"sqlite:///{path}").close()


def run_sql(path: Path, *statements: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return [connection.execute(statement).fetchall() for statement in statements]


def objects(path: Path) -> set[tuple[str, ...]]:
    """Return everything that SQLite knows of the schema, with blanks and the order of its lines evened out."""
    (found,) = run_sql(path, "SELECT type, name, tbl_name, sql FROM sqlite_master")
    return {
        (kind, name, table, *sorted(re.sub(r"[\s()]", "", sql or "").split(","))) for kind, name, table, sql in found
    }


@pytest.mark.parametrize(
    ("table", "value"),
    [
        (schema.volumes, Volume),
        (schema.migrations, Migration),
        (schema.journal, JournalEntry),
        (schema.retired, RetiredObject),
        (schema.reservations, Reservation),
    ],
)
def test_each_field_has_a_column(table: sa.Table, value: type) -> None:
    assert set(table.c.keys()) == {item.name for item in fields(value)}


def test_known_revisions_are_those_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    directory = ScriptDirectory.from_config(config)
    assert directory.get_heads() == [schema.HEAD]
    assert tuple(script.revision for script in reversed(list(directory.walk_revisions()))) == schema.REVISIONS


@pytest.fixture
def upgraded(tmp_path: Path) -> Iterator[Path]:
    """A database that alembic's scripts have made."""
    path = tmp_path / "upgraded.db"
    # What alembic leaves behind after going back to before the first script.
    run_sql(
        path,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))",
    )
    store = SqlStore(f"sqlite:///{path}")
    add_volume(store)
    store.close()
    return path


def test_scripts_make_the_same_schema(path: Path, upgraded: Path) -> None:
    open_and_close(path)
    assert objects(path) == objects(upgraded)
    query = "SELECT version_num FROM alembic_version"
    assert run_sql(path, query) == run_sql(upgraded, query) == [[(schema.HEAD,)]]


def test_alembic_finds_no_difference(upgraded: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{upgraded}")
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, schema.metadata) == []
    finally:
        engine.dispose()


def test_failed_upgrade_leaves_nothing_half_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_sql(path, "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    run_scripts = upgrade._run_scripts

    def fail_late(connection: sa.Connection) -> None:
        run_scripts(connection)
        raise RuntimeError("the power fails")

    monkeypatch.setattr(upgrade, "_run_scripts", fail_late)
    with pytest.raises(RuntimeError, match="power"):
        open_and_close(path)
    assert run_sql(path, "SELECT name FROM sqlite_master WHERE type = 'table'") == [[("alembic_version",)]]
    monkeypatch.undo()
    open_and_close(path)


def test_database_of_a_newer_volmig(path: Path) -> None:
    open_and_close(path)
    run_sql(path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(errors.DatabaseTooNew) as caught:
        open_and_close(path)
    assert caught.value.fields == {"database": str(path), "found": "9999", "supported": schema.HEAD}
    assert run_sql(path, "SELECT version_num FROM alembic_version") == [[("9999",)]]


def test_database_of_something_else(path: Path) -> None:
    run_sql(path, "CREATE TABLE songs (title TEXT)")
    with pytest.raises(errors.DatabaseUnusable, match=r"volmig\.db.*not volmig's \(songs\)"):
        open_and_close(path)
    assert run_sql(path, "SELECT name FROM sqlite_master") == [[("songs",)]]


def test_database_of_something_else_with_alembic(path: Path) -> None:
    run_sql(
        path,
        "CREATE TABLE volumes (title TEXT)",
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('c0ffee')",
    )
    with pytest.raises(errors.DatabaseUnusable, match=r"volmig\.db.*another program.*c0ffee"):
        open_and_close(path)


def test_empty_file_is_a_new_database(path: Path) -> None:
    path.touch()
    open_and_close(path)
    assert run_sql(path, "SELECT version_num FROM alembic_version") == [[(schema.HEAD,)]]


def test_scripts_are_in_the_distribution() -> None:
    setup = (Path(upgrade.__file__).parents[2] / "setup.cfg").read_text()
    assert "store/alembic/*.mako" in setup
    for directory in (SCRIPTS, SCRIPTS / "versions"):
        assert (directory / "__init__.py").is_file(), "setuptools leaves out a directory that is no package"


DIALECTS = pytest.mark.parametrize("dialect", [mysql.dialect(), postgresql.dialect()], ids=["mysql", "postgresql"])


@DIALECTS
def test_checkpoints_have_room_on_servers(dialect: sa.Dialect) -> None:
    sql = str(CreateTable(schema.checkpoints).compile(dialect=dialect))
    # A BLOB of MariaDB ends at 64 KiB, and a MEDIUMBLOB one byte before 16 MiB.
    assert ("data LONGBLOB NOT NULL" if dialect.name == "mysql" else "data BYTEA NOT NULL") in sql


@DIALECTS
def test_text_compares_by_code_point_on_servers(dialect: sa.Dialect) -> None:
    wanted = "utf8mb4_bin" if dialect.name == "mysql" else 'COLLATE "C"'
    for table in schema.metadata.tables.values():
        sql = str(CreateTable(table).compile(dialect=dialect))
        for line in sql.splitlines():
            if "VARCHAR" in line:
                assert wanted in line, line
