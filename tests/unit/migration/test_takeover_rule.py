"""Who counts as gone among the earlier workers of a migration."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from volmig.manager.processes import ProcessIdentity
from volmig.migration.takeover import LET_GO, WORKER, earlier_workers
from volmig.model import EntryKind, JournalEntry

OWN = ProcessIdentity.own("here")


def dead() -> ProcessIdentity:
    return dataclasses.replace(OWN, pid=2**22 + 1)


def entry(kind: EntryKind, subject: str, epoch: int, **data: Any) -> JournalEntry:
    return JournalEntry(migration_id="m", kind=kind, subject=subject, actor="w", epoch=epoch, data=data)


def began(epoch: int, process: ProcessIdentity | None, *, object_id: str = "") -> list[JournalEntry]:
    noted = [] if process is None else [entry(EntryKind.NOTE, WORKER, epoch, **process.facts())]
    made = [entry(EntryKind.INTENT, "create_destination", epoch, id=object_id)] if object_id else []
    return [*noted, *made, entry(EntryKind.INTENT, "copy", epoch)]


@pytest.mark.parametrize(
    ("journal_", "gone"),
    [
        (began(1, dead(), object_id="o"), True),
        (began(1, OWN, object_id="o"), False),
        (began(1, None, object_id="o"), False),
        (began(1, dataclasses.replace(dead(), host="there"), object_id="o"), False),
        ([*began(1, OWN, object_id="o"), entry(EntryKind.NOTE, LET_GO, 1)], True),
        ([*began(1, OWN, object_id="o"), entry(EntryKind.NOTE, LET_GO, 1), *began(2, OWN)], False),
        ([*began(1, OWN, object_id="o"), *began(2, dead())], False),
        # It had another object, which was given up.
        ([*began(1, OWN, object_id="n"), *began(2, dead(), object_id="o")], True),
        # It was the worker, and did nothing.
        ([*began(1, dead(), object_id="o"), entry(EntryKind.NOTE, WORKER, 2, **OWN.facts())], True),
        # This worker's own.
        ([*began(1, dead(), object_id="o"), *began(3, OWN)], True),
    ],
)
def test_who_counts_as_gone(journal_: list[JournalEntry], gone: bool) -> None:
    assert earlier_workers(journal_, destination_id="o", epoch=3, host="here").are_gone is gone
