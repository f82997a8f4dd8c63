"""Whether a worker may go on with the very object that an earlier one was writing to.

It may when nobody else can write to that object any more: every worker that has had it is certainly gone, or has let
go of it. Of a worker that merely lost its lease nobody knows: it may be paused with a write under way, and must not
reach what will be the volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from volmig.manager.processes import ProcessIdentity
from volmig.model import EntryKind, JournalEntry

WORKER = "worker"
"""Subject of the note by which each worker enters itself before it does anything."""

LET_GO = "let-go"
"""Subject of the note by which a worker says that nothing of it is under way any more."""


def worker_facts(process: ProcessIdentity, *, owner: str, journal: Sequence[JournalEntry]) -> dict[str, Any]:
    """Return what a worker notes of itself: its process, and from whom it takes over."""
    earlier = [entry for entry in journal if entry.kind is EntryKind.NOTE and entry.subject == WORKER]
    facts: dict[str, Any] = {**process.facts(), "owner": owner}
    if earlier:
        facts["takes_over_from"] = earlier[-1].data.get("owner", earlier[-1].actor)
    return facts


def others_are_gone(journal: Sequence[JournalEntry], *, destination_id: str, epoch: int, host: str) -> bool:
    """Say whether no earlier worker can still write to the object *destination_id*.

    :param epoch: this worker's own; the entries of earlier ones are judged.
    :param host: what this host is called.
    """
    first = _first_epoch(journal, destination_id)
    workers: dict[int, Mapping[str, Any]] = {}
    let_go: set[int] = set()
    active: set[int] = set()
    for entry in journal:
        if not first <= entry.epoch < epoch:
            continue
        if entry.kind is EntryKind.NOTE and entry.subject == WORKER:
            workers[entry.epoch] = entry.data
        elif entry.kind is EntryKind.NOTE and entry.subject == LET_GO:
            let_go.add(entry.epoch)
        elif entry.kind is EntryKind.INTENT:
            active.add(entry.epoch)
    return all(each in let_go or _is_gone(workers.get(each), host) for each in active)


def _first_epoch(journal: Sequence[JournalEntry], destination_id: str) -> int:
    for entry in journal:
        if entry.kind is EntryKind.INTENT and entry.data.get("id") == destination_id:
            return entry.epoch
    return 0


def _is_gone(facts: Mapping[str, Any] | None, host: str) -> bool:
    process = ProcessIdentity.from_facts(facts or {})
    return process is not None and process.is_gone(host)
