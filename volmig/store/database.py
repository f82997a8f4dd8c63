"""The way to a database: connections, transactions and errors, for each kind of database that volmig supports."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc, pool

from volmig import errors
from volmig.store import statements

_SERVERS: Final = ("mariadb", "mysql", "postgresql")
_BEGIN: Final = "volmig_begin"
_POLL_SECONDS: Final = 0.01
_FILE_CHANGED_HINT: Final = (
    "End every volmig that had it open. Then put the right file in its place, whole, with its -wal if there is one."
)


class Database:
    """A database, opened; makes transactions on it, from several threads at once.

    :param url: SQLAlchemy URL; ``sqlite:///FILE``, ``sqlite://`` for one in memory, or one of a server.
    :param busy_timeout_seconds: how long a writer waits for its turn.
    :raises volmig.errors.DatabaseUnusable: when it cannot be opened.
    """

    def __init__(self, url: str, *, busy_timeout_seconds: float) -> None:
        self.url = _parsed(url)
        self.busy_timeout_seconds = busy_timeout_seconds
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.path = _sqlite_path(self.url)
        if self.path is not None:
            self.url = self.url.set(database=str(self.path))
        self._turn = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        self._file: tuple[int, int] | None = None
        if self.path is not None:
            _create_file(self.path, self.label)
            self._file = _identity(self.path, self.label)
        self.engine = self._make_engine()
        self._pool = self.engine.pool
        self._reader = self.engine
        self._writer = self.engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"}) if self.is_sqlite else self.engine
        if self.url.get_backend_name() == "postgresql":
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")

    @property
    def label(self) -> str:
        """How messages name the database: its file, or its URL without the password and the options."""
        if self.path is not None:
            return str(self.path)
        if self.is_sqlite:
            return "in memory"
        return self.url.set(query={}).render_as_string(hide_password=True)

    def close(self) -> None:
        """Close the connections; those in use are closed when their transactions end."""
        self._closed = True
        if self.is_sqlite and self.path is None:
            # Its one connection is shared, and whoever uses it holds the turn.
            with self._taking_turn():
                self._pool.dispose()
        else:
            self._pool.dispose()

    # --- transactions ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, *, write: bool) -> Iterator[sa.Connection]:
        """Begin a transaction; commit it when the block of a writer ends, and undo it when the block raises.

        :raises volmig.errors.StoreBusy: when a writer's turn does not come in time.
        """
        self._check_usable()
        # Threads of one process queue at a lock, which wakes them at once; SQLite's own waiting is a poll.
        needs_turn = self.is_sqlite and (write or self.path is None)
        with self._taking_turn() if needs_turn else contextlib.nullcontext():
            self._check_usable()
            connection = self._begin(write=write)
            try:
                yield connection
            except BaseException:
                self._undo(connection)
                raise
            else:
                self._finish(connection, write=write)
            finally:
                connection.close()
                if self._closed and self.path is not None:
                    self._pool.dispose()

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise errors.InternalError(
                reason="a store is used in another process than the one that opened it; each process opens its own"
            )
        if self._closed:
            raise errors.InternalError(reason=f"the store {self.label} is used after it was closed")
        self._check_file()

    def _check_file(self) -> None:
        """Refuse to go on with a file that is no longer the one at its path: what is written to it would be lost."""
        if self.path is not None and _identity(self.path, self.label) != self._file:
            raise errors.DatabaseUnusable(
                database=self.label,
                reason="its file was replaced by another one while volmig had it open",
                hint=_FILE_CHANGED_HINT,
            )

    @contextlib.contextmanager
    def _taking_turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=self.busy_timeout_seconds):
            raise self._busy()
        try:
            yield
        finally:
            self._turn.release()

    def _begin(self, *, write: bool) -> sa.Connection:
        with self.translating():
            connection = (self._writer if write else self._reader).connect()
            try:
                connection.begin()
                if write and not self.is_sqlite:
                    connection.execute(statements.TAKE_TURN).all()
            except BaseException:
                connection.close()
                raise
        return connection

    def _finish(self, connection: sa.Connection, *, write: bool) -> None:
        if write:
            # Before a commit, not after it: then it is still certain that nothing was recorded.
            self._check_file()
        with self.translating():
            if write:
                connection.commit()
            else:
                connection.rollback()

    def _undo(self, connection: sa.Connection) -> None:
        try:
            connection.rollback()
        except exc.SQLAlchemyError:
            # The error that ends the transaction matters more; without its connection, the database undoes it too.
            connection.invalidate()

    # --- errors ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def translating(self) -> Iterator[None]:
        """Turn SQLAlchemy's errors into volmig's."""
        try:
            yield
        except exc.SQLAlchemyError as error:
            raise self.translated(error) from error

    def translated(self, error: exc.SQLAlchemyError) -> errors.VolmigError:
        """Return the error that tells what *error* means to a caller."""
        if isinstance(error, exc.TimeoutError):
            return self._busy()
        if not isinstance(error, exc.DBAPIError):
            return errors.InternalError(reason=f"the database {self.label} was misused: {self._reason(error)}")
        if isinstance(error, exc.IntegrityError):
            return errors.InternalError(reason=f"{self.label} refused a record: {self._reason(error.orig)}")
        name = getattr(error.orig, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or _is_lock_timeout(error.orig):
            return self._busy()
        if name == "SQLITE_FULL" and self.path is not None:
            return errors.DiskFull(
                path=str(self.path),
                offset=self.path.stat().st_size if self.path.exists() else 0,
                hint="Free space there, then repeat the request; what was recorded before is unharmed.",
            )
        if error.connection_invalidated:
            return errors.StoreUnreachable(database=self.label, reason=self._reason(error.orig))
        return errors.DatabaseUnusable(database=self.label, reason=self._reason(error.orig))

    def _busy(self) -> errors.StoreBusy:
        return errors.StoreBusy(database=self.label, seconds=f"{self.busy_timeout_seconds:g}")

    def _reason(self, error: BaseException | None) -> str:
        text = " ".join(str(error).split())
        return text.replace(self.url.password, "***") if self.url.password else text

    # --- connections ----------------------------------------------------------------------------

    def _make_engine(self) -> sa.Engine:
        options: dict[str, Any] = {"hide_parameters": True, "json_serializer": _to_json}
        if self.is_sqlite:
            options["connect_args"] = {"timeout": self.busy_timeout_seconds, "check_same_thread": False}
            if self.path is None:
                options["poolclass"] = pool.StaticPool
            else:
                options.update(poolclass=pool.QueuePool, max_overflow=-1)
        else:
            options.update(pool_pre_ping=True, pool_timeout=self.busy_timeout_seconds)
            if self.url.get_backend_name() != "postgresql":
                # There a snapshot begins with the first plain SELECT, and so after a writer's turn has come.
                options["isolation_level"] = "REPEATABLE READ"
        try:
            engine = sa.create_engine(self.url, **options)
        except ModuleNotFoundError as error:
            raise errors.DatabaseUnusable(
                database=self.label, reason=f"its driver, the Python module {error.name!r}, is not installed"
            ) from error
        except (exc.SQLAlchemyError, TypeError, ValueError) as error:
            raise errors.DatabaseUnusable(database=self.label, reason=self._reason(error)) from error
        if self.is_sqlite:
            sa.event.listen(engine, "connect", self._set_up_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(engine, "connect", self._set_up_server)
        return engine

    def _set_up_sqlite(self, connection: sqlite3.Connection, record: object) -> None:
        # Keeps the sqlite3 module from beginning transactions by itself.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        if self.path is not None:
            self._enter_wal(connection)
            # With WAL, NORMAL would let the last commits be lost when the power fails.
            connection.execute("PRAGMA synchronous = FULL")

    def _enter_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to write-ahead logging; SQLite itself does not wait for other processes that do the same."""
        end = time.monotonic() + self.busy_timeout_seconds
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() >= end:
                    raise
                time.sleep(_POLL_SECONDS)
                continue
            if mode != "wal":
                raise sqlite3.OperationalError(f"its file system does not allow write-ahead logging (mode {mode})")
            return

    def _set_up_server(self, connection: Any, record: object) -> None:
        if self.url.get_backend_name() == "postgresql":
            commands = [
                f"SET lock_timeout = {max(1, round(self.busy_timeout_seconds * 1000))}",
                "SET synchronous_commit = on",
            ]
        else:
            commands = [
                f"SET SESSION innodb_lock_wait_timeout = {max(1, round(self.busy_timeout_seconds))}",
                "SET SESSION sql_mode = 'TRADITIONAL'",
            ]
        cursor = connection.cursor()
        try:
            for command in commands:
                cursor.execute(command)
        finally:
            cursor.close()
        connection.commit()


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))


def _to_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _is_lock_timeout(error: BaseException | None) -> bool:
    """Whether a server refused since somebody else holds what is wanted, by the codes of PostgreSQL and MariaDB."""
    if getattr(error, "sqlstate", None) in ("55P03", "40001", "40P01"):
        return True
    args: tuple[object, ...] = getattr(error, "args", ())
    return bool(args) and args[0] in (1205, 1213)


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        # Neither the text nor the cause is shown: a password may stand anywhere in it.
        raise errors.DatabaseUnusable(database="connection", reason="it is not an SQLAlchemy URL") from None
    backend = parsed.get_backend_name()
    if backend != "sqlite" and backend not in _SERVERS:
        raise errors.DatabaseUnusable(
            database=parsed.set(query={}).render_as_string(hide_password=True),
            reason=f"{backend} is not supported; sqlite, {', '.join(_SERVERS)} are",
        )
    return parsed


def _sqlite_path(url: sa.URL) -> Path | None:
    """Return the absolute path of an SQLite file, so that a change of directory does not matter; None in memory."""
    if url.get_backend_name() != "sqlite":
        return None
    if url.query or url.host or url.username:
        raise errors.DatabaseUnusable(
            database=url.set(query={}).render_as_string(hide_password=True),
            reason="the URL of an SQLite database is sqlite:///PATH, with a fourth slash when PATH is absolute, "
            "and has no options",
        )
    if url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database)).absolute()


def _create_file(path: Path, label: str) -> None:
    """Make the database's file when there is none, readable by its owner only; and its directory, if just that lacks.

    An existing file is not even opened: closing it again would drop the locks that this process holds on it through
    SQLite.
    """
    try:
        if path.parent.parent.is_dir():
            path.parent.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        _sync_directory(path.parent)
        _sync_directory(path.parent.parent)
    except FileExistsError:
        if not path.is_file():
            raise errors.DatabaseUnusable(database=label, reason="it is not a regular file") from None
    except OSError as error:
        raise errors.DatabaseUnusable(
            database=label, reason=f"{error.filename or path.parent}: {error.strerror}"
        ) from error


def _identity(path: Path, label: str) -> tuple[int, int]:
    """Return what tells the file at *path* from every other one."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.DatabaseUnusable(
            database=label, reason="its file was removed while volmig had it open", hint=_FILE_CHANGED_HINT
        ) from error
    except OSError as error:
        raise errors.DatabaseUnusable(database=label, reason=error.strerror) from error
    return found.st_dev, found.st_ino


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
