"""A store whose commits are points to be killed at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

from volmig.model import JournalEntry
from volmig.store.base import ReadTransaction, Store, WriteTransaction
from volmig.testing.killsweep.marks import Marks

_READING = frozenset(name for name in vars(ReadTransaction) if not name.startswith("_"))
_CHANGING = frozenset(name for name in vars(WriteTransaction) if not name.startswith("_")) - _READING


class MarkedStore:
    """Passes everything on to another store, and marks each commit of a change, before and after.

    A commit is named by what it writes: the entries of the journal if there are any, and else the changes.
    """

    def __init__(self, store: Store, marks: Marks) -> None:
        self._store = store
        self._marks = marks

    def reading(self) -> AbstractContextManager[ReadTransaction]:
        return self._store.reading()

    @contextmanager
    def writing(self) -> Iterator[WriteTransaction]:
        with self._store.writing() as transaction:
            noted = _NotedTransaction(transaction)
            yield cast(WriteTransaction, noted)
            name = f"commit ({noted.summary()})"
            self._marks.reach(f"{name} before")
        self._marks.reach(f"{name} after")

    def close(self) -> None:
        self._store.close()


class _NotedTransaction:
    """A transaction that notes what is changed."""

    def __init__(self, transaction: WriteTransaction) -> None:
        self._transaction = transaction
        self._changes: list[str] = []
        self._entries: list[JournalEntry] = []

    def summary(self) -> str:
        """Return what the transaction changes, in a few words."""
        words = [f"{entry.kind.value} {entry.subject}" for entry in self._entries]
        words += ["checkpoint"] if "save_checkpoint" in self._changes else []
        return ", ".join(dict.fromkeys(words or self._changes)) or "nothing"

    def append_journal(self, *entries: JournalEntry) -> None:
        self._entries.extend(entries)
        self._transaction.append_journal(*entries)

    def __getattr__(self, name: str) -> Any:
        if name in _CHANGING:
            self._changes.append(name)
        return getattr(self._transaction, name)
