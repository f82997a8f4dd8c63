"""Bringing a database's tables to the present schema, when a store is opened.

A new database gets the present tables directly, an older one is upgraded by alembic's scripts; a test proves that
both ways end at the same schema. alembic is loaded for an upgrade only, since that takes longer than all the rest.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.schema import ExecutableDDLElement

from volmig import errors
from volmig.store import schema, statements
from volmig.store.database import Database

_LOCK_NAME: Final = "volmig-schema"
_LOCK_NUMBER: Final = 0x766F6C6D6967  # the letters "volmig"


def prepare(database: Database) -> None:
    """Create the tables, upgrade them, or find them up to date.

    Several processes may do so at once; one does the work, and the others wait for it.

    :raises volmig.errors.DatabaseTooNew: when the schema is none that this volmig knows.
    :raises volmig.errors.DatabaseUnusable: when the database belongs to something else, or cannot be read.
    :raises volmig.errors.StoreBusy: when another process keeps it locked.
    """
    with database.translating():
        with database.engine.connect() as connection:
            if _revision(connection) == schema.HEAD:
                return
        with _alone(database) as connection:
            _bring_up(database, connection)


def _bring_up(database: Database, connection: sa.Connection) -> None:
    tables = set(sa.inspect(connection).get_table_names())
    found = _revision(connection)
    ours = set(schema.metadata.tables)
    if found == schema.HEAD:
        return
    if found is None:
        if foreign := sorted(tables - {schema.revision.name}):
            raise errors.DatabaseUnusable(
                database=database.label, reason=f"it holds tables that are not volmig's ({', '.join(foreign[:5])})"
            )
        if schema.revision.name in tables:
            _run_scripts(connection)
        else:
            _create(connection)
    elif found in schema.REVISIONS:
        _run_scripts(connection)
    elif ours & tables == ours:
        raise errors.DatabaseTooNew(database=database.label, found=found, supported=schema.HEAD)
    else:
        raise errors.DatabaseUnusable(
            database=database.label, reason=f"it belongs to another program (its schema is {found!r})"
        )


def _revision(connection: sa.Connection) -> str | None:
    """Return the revision of the database's schema; None when there is none."""
    if not sa.inspect(connection).has_table(schema.revision.name):
        return None
    revision: str | None = connection.execute(statements.GET_REVISION).scalars().first()
    return revision


@contextlib.contextmanager
def _alone(database: Database) -> Iterator[sa.Connection]:
    """Begin a transaction in which no other process prepares the same database."""
    if database.is_sqlite:
        with database.transaction(write=True) as connection:
            yield connection
        return
    with database.engine.connect() as connection:
        if database.url.get_backend_name() == "postgresql":
            with connection.begin():
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
                yield connection
            return
        seconds = max(1, round(database.busy_timeout_seconds))
        lock = sa.text("SELECT GET_LOCK(CONCAT(DATABASE(), ':', :name), :seconds)")
        if connection.execute(lock, {"name": _LOCK_NAME, "seconds": seconds}).scalar_one() != 1:
            raise errors.StoreBusy(database=database.label, seconds=seconds)
        try:
            yield connection
            connection.commit()
        finally:
            connection.execute(sa.text("SELECT RELEASE_LOCK(CONCAT(DATABASE(), ':', :name))"), {"name": _LOCK_NAME})


def _create(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        for command in _sqlite_commands():
            connection.exec_driver_sql(command)
    else:
        _create_tables(connection)
    connection.execute(sa.insert(schema.revision), {"version_num": schema.HEAD})


def _create_tables(connection: sa.Connection | MockConnection) -> None:
    # As alembic itself makes it.
    revision = sa.Table(
        schema.revision.name,
        sa.MetaData(),
        sa.Column("version_num", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
    )
    revision.metadata.create_all(connection, checkfirst=False)
    schema.metadata.create_all(connection, checkfirst=False)


@functools.cache
def _sqlite_commands() -> tuple[str, ...]:
    """Return what makes the tables in SQLite, which takes longer to put into words than to run.

    It is kept for processes that make many databases, as tests do.
    """
    commands: list[str] = []

    def note(element: ExecutableDDLElement, *_: object, **__: object) -> None:
        commands.append(str(element.compile(dialect=recorder.dialect)))

    recorder = sa.create_mock_engine("sqlite://", note)
    _create_tables(recorder)
    return tuple(commands)


def _run_scripts(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "alembic").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
