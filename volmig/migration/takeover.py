"""Whether a worker may go on with the very object that an earlier one was writing to.

It may when nobody else can write to that object any more: every worker that has had it is certainly gone, or has let
go of it. Of a worker that merely lost its lease nobody knows: it may be paused with a write under way, and must not
reach what will be the volume. Of one that is gone the kernel may still have requests under way; whether it has, the
copy itself finds out when it opens the object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """What has become of the workers that could write to an object."""

    are_gone: bool
    """None of them can make another request."""
    have_let_go: bool
    """And all of them have seen the end of those that they had made."""


def earlier_workers(journal: Sequence[JournalEntry], *, destination_id: str, epoch: int, host: str) -> Earlier:
    """Return what has become of the earlier workers that could write to the object *destination_id*.

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
            # It thought that it had not let go after all.
            let_go.discard(entry.epoch)
    left = active - let_go
    return Earlier(are_gone=all(_is_gone(workers.get(each), host) for each in left), have_let_go=not left)


def _first_epoch(journal: Sequence[JournalEntry], destination_id: str) -> int:
    for entry in journal:
        if entry.kind is EntryKind.INTENT and entry.data.get("id") == destination_id:
            return entry.epoch
    return 0


def _is_gone(facts: Mapping[str, Any] | None, host: str) -> bool:
    process = ProcessIdentity.from_facts(facts or {})
    return process is not None and process.is_gone(host)
