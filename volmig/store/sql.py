"""The store that volmig brings: SQLite. It is written for MariaDB and PostgreSQL too, but not yet tested there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TypeVar

from volmig import errors
from volmig.store.database import Database
from volmig.store.reading import SqlReadTransaction
from volmig.store.upgrade import prepare
from volmig.store.writing import SqlWriteTransaction

_Transaction = TypeVar("_Transaction", bound=SqlReadTransaction)


class SqlStore:
    """Keeps volumes and migrations in an SQL database; opening it creates or upgrades the tables.

    Used from several threads at once, and from several processes that each open their own. A process that is forked
    off must not use the store of its parent, which is refused; nor open the same SQLite file while it is a fork of one
    that has it open, which cannot be noticed (SQLite's own rule).

    A thread has one transaction of a store at a time: a second one inside the first is refused, since it could wait
    for the first for ever. A writer can read.

    An SQLite file is created with mode 0600, and its directory with mode 0700 when only that is missing. It is in
    write-ahead mode, and each commit is synced to disk before the block of :meth:`writing` ends. Not for a network file
    system.

    A file that was removed or replaced while it is open is not used any more, neither for reading nor for writing:
    each transaction looks for that as it begins, and a writer once more before it commits.

    :param url: SQLAlchemy URL: ``sqlite:///relative/path``, ``sqlite:////absolute/path``, ``sqlite://`` (in memory, one
        transaction at a time, gone when closed) or one of a server, such as ``postgresql+psycopg://…``.
    :param busy_timeout_seconds: how long a writer waits for others: first for those of this process, and
        then as long again for those of other processes.
    :param clock: replaces the store's clock; for tests.
    :raises volmig.errors.DatabaseUnusable: when it cannot be opened, or is not one of volmig's.
    :raises volmig.errors.DatabaseTooNew: when a newer volmig made its tables.
    :raises volmig.errors.StoreBusy: when others kept it locked all the time.
    """

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_seconds: float = 30.0,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._database = Database(url, busy_timeout_seconds=busy_timeout_seconds)
        self._clock = clock
        self._thread = threading.local()
        try:
            prepare(self._database)
        except BaseException:
            self._database.close()
            raise

    @property
    def label(self) -> str:
        """How messages name the database; holds no password."""
        return self._database.label

    def __repr__(self) -> str:
        return f"<SqlStore {self.label}>"

    @contextlib.contextmanager
    def reading(self) -> Iterator[SqlReadTransaction]:
        """Begin a consistent view, fixed by the first record that is read."""
        with self._transaction(SqlReadTransaction, write=False) as transaction:
            yield transaction

    @contextlib.contextmanager
    def writing(self) -> Iterator[SqlWriteTransaction]:
        """Begin a change: committed, durably, when the block ends, and undone when it raises.

        :raises volmig.errors.StoreBusy: when the turn does not come in time.
        :raises volmig.errors.DatabaseUnusable: when the SQLite file was removed or replaced; nothing was changed.
        :raises volmig.errors.DiskFull: when there was no room to record it; nothing was changed.
        :raises volmig.errors.StoreUnreachable: when the connection to a server broke; should that happen at the very
            end, the change may have been made.
        """
        with self._transaction(SqlWriteTransaction, write=True) as transaction:
            yield transaction

    @contextlib.contextmanager
    def _transaction(self, kind: type[_Transaction], *, write: bool) -> Iterator[_Transaction]:
        if getattr(self._thread, "is_busy", False):
            raise errors.InternalError(reason="a transaction of the store was begun inside another one of its thread")
        self._thread.is_busy = True
        try:
            with self._database.transaction(write=write) as connection:
                transaction = kind(self._database, connection, self._clock)
                try:
                    yield transaction
                finally:
                    transaction.end()
                if transaction.failure is not None:
                    raise transaction.failure
        finally:
            self._thread.is_busy = False

    def close(self) -> None:
        """Close the connections. Repeating it does no harm."""
        self._database.close()
