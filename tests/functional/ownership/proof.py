"""What must be true when all is at rest after chaos, read from the store, the storage and the workers' own notes."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from volmig import errors
from volmig.migration.takeover import LET_GO, WORKER
from volmig.model import PHASE_TRANSITIONS, EntryKind, JournalEntry, Migration, Phase, VolumeStatus
from volmig.store import MigrationQuery

from .chaos import Figures, Kill, content
from .worker import COPIES
from .yard import Yard

EXPLAINED = (errors.MigrationCancelled.code, errors.StoreBusy.code, errors.DriverTimeout.code)
"""What migrations end with that were cancelled, or while a suspended process held up everybody for too long."""

Journals = Mapping[str, tuple[Migration, Sequence[JournalEntry]]]


def journals(yard: Yard) -> Journals:
    """Return all migrations with their journals, oldest first."""
    found = reversed(yard.engine.list_migrations())
    return {migration.id: (migration, yard.history(migration.id)) for migration in found}


def problems(yard: Yard, generations: Mapping[str, int], figures: Figures) -> list[str]:
    """Return all that is wrong."""
    found = journals(yard)
    return [
        *_volumes(yard, generations),
        *_records(yard),
        *itertools.chain.from_iterable(_journal(*each) for each in found.values()),
        *_ways(yard, found),
        *_copies(yard, figures.kills),
    ]


def _volumes(yard: Yard, generations: Mapping[str, int]) -> Iterator[str]:
    expected: dict[str, list[str]] = {pool: [] for pool in yard.pools}
    for volume_id, generation in generations.items():
        volume = yard.engine.show_volume(volume_id)
        if (volume.status, volume.migration_id, dict(volume.operation)) != (VolumeStatus.AVAILABLE, None, {}):
            reason = volume.status_reason
            yield f"volume {volume.name} is {volume.status.value}, held by {volume.migration_id}: {reason}"
        path = yard.path(volume)
        expected[volume.host].append(path.name)
        if not path.exists():
            yield f"volume {volume.name} is not at {path}"
        elif path.read_bytes() != content(volume, generation):
            yield f"volume {volume.name} at {path} is not what was written to it last (generation {generation})"
    for pool, names in yard.files().items():
        if names != sorted(expected[pool]):
            yield f"in {pool} there are {names}, not {sorted(expected[pool])}"


def _records(yard: Yard) -> Iterator[str]:
    with yard.store.reading() as view:
        yield from (f"room is still reserved: {held}" for held in view.list_reservations())
        yield from (f"an object still waits for its deletion: {retired}" for retired in view.list_retired())
        yield from (f"a checkpoint is left of migration {owner}" for owner in view.list_checkpoints())


def _journal(migration: Migration, journal: Sequence[JournalEntry]) -> Iterator[str]:
    where = f"migration {migration.id}"
    if not migration.phase.is_final or migration.owner:
        yield f"{where} is in {migration.phase.value}, owned by {migration.owner or 'nobody'}"
    # Others than its workers write to a journal too: who requests something, whoever clears up later, and a driver's
    # call at its end, however late that is.
    others = ("old-storage", "doubt-settled", "looked-for", "driver-call")
    entries = [entry for entry in journal if entry.kind is not EntryKind.REQUEST and entry.subject not in others]
    for before, after in itertools.pairwise(entries):
        if after.epoch < before.epoch:
            yield f"{where}: epoch {after.epoch} has written entry {after.sequence} after epoch {before.epoch}"
    actors: dict[int, set[str]] = defaultdict(set)
    workers: dict[int, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.kind is not EntryKind.PHASE or ":" in entry.actor:
            actors[entry.epoch].add(entry.actor)
        if entry.kind is EntryKind.NOTE and entry.subject == WORKER:
            workers[entry.epoch].add(str(entry.data["pid"]))
    for epoch, names in actors.items():
        if len(names) > 1:
            yield f"{where}: {sorted(names)} have written in epoch {epoch}"
    for epoch, pids in workers.items():
        if len(pids) > 1:
            yield f"{where}: processes {sorted(pids)} have entered themselves for epoch {epoch}"
    phases = [Phase(entry.subject) for entry in entries if entry.kind is EntryKind.PHASE]
    for before, after in itertools.pairwise(phases):
        if after not in PHASE_TRANSITIONS[before]:
            yield f"{where}: it goes from {before.value} to {after.value}"
    if not phases or phases[0] is not Phase.QUEUED or phases[-1] is not migration.phase:
        yield f"{where}: its journal has the phases {[phase.value for phase in phases]}"
    commits = sum(entry.kind is EntryKind.DONE and entry.subject == "cut_over" for entry in entries)
    if commits != (migration.phase is Phase.SUCCESS):
        yield f"{where} has ended in {migration.phase.value}, with {commits} commits"
    if migration.phase is Phase.CANCELLED and not migration.cancel_requested_by:
        yield f"{where} was cancelled, and nobody has asked for that"
    if migration.error_code not in ("", *EXPLAINED):
        yield f"{where} has failed: [{migration.error_code}] {migration.error_message}"
    if migration.source_digest != migration.destination_digest:
        yield f"{where} has different digests"


def _ways(yard: Yard, found: Journals) -> Iterator[str]:
    """Each migration begins where the one before has left the volume.

    Unless that was one by a driver, in a call that was suspended and that took effect when it had ended otherwise.
    """
    places: dict[str, str] = {}
    may_follow: set[str] = set()
    for migration, _ in found.values():
        place = places.get(migration.volume_id, migration.source)
        if migration.source != place and migration.volume_id not in may_follow:
            yield f"migration {migration.id} begins in {migration.source}, and the volume was left in {place}"
        is_there = migration.phase is Phase.SUCCESS
        places[migration.volume_id] = migration.destination if is_there else migration.source
        if any(entry.subject == "driver_move" for entry in found[migration.id][1]):
            may_follow.add(migration.volume_id)
    for volume_id, place in places.items():
        volume = yard.engine.show_volume(volume_id)
        if volume.host != place and volume_id not in may_follow:
            yield f"volume {volume.name} is in {volume.host}, and was left in {place}"


def _copies(yard: Yard, kills: Mapping[int, Kill]) -> Iterator[str]:
    """No process begins to copy to an object as long as another one may write to it."""
    notes = [json.loads(line) for line in (yard.directory / COPIES).read_text().splitlines()]
    by_object: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for note in notes:
        by_object[note["object"]].append(note)
    for name, events in by_object.items():
        writing: set[int] = set()
        for event in sorted(events, key=lambda each: each["at"]):
            if event["event"] == "end":
                writing.discard(event["pid"])
                continue
            alive = {pid for pid in writing if pid not in kills or kills[pid].boottime > event["at"]}
            if alive:
                who = f"process {event['pid']} (epoch {event['epoch']})"
                yield f"{who} copies to {name} while {sorted(alive)} may do so"
            writing = alive | {event["pid"]}


# --- figures --------------------------------------------------------------------------------------


def figures_of(yard: Yard, figures: Figures) -> str:
    """Return what has happened, for people."""
    found = journals(yard)
    phases = [migration.phase.value for migration, _ in found.values()]
    codes = [migration.error_code for migration, _ in found.values() if migration.error_code]
    takeovers = resumed = afresh = after_pause = 0
    waits: list[float] = []
    for _, journal in found.values():
        taken, paused = _takeovers(journal)
        takeovers, after_pause = takeovers + taken, after_pause + paused
        resumed += sum(entry.data.get("bytes_resumed", 0) for entry in journal if entry.subject == "copy")
        objects = {e.data["id"] for e in journal if (e.kind, e.subject) == (EntryKind.INTENT, "create_destination")}
        afresh += max(0, len(objects) - 1)
        waits += _waits(journal, figures.kills)
    lines = [f"{what}: {count}" for what, count in sorted(figures.counts.items())]
    lines.append(f"migrations ended: { ({phase: phases.count(phase) for phase in sorted(set(phases))}) }")
    lines.append(f"errors: { ({code: codes.count(code) for code in sorted(set(codes))}) }")
    lines.append(f"takeovers: {takeovers}, beside {after_pause} after a pause; copied afresh in a new object: {afresh}")
    lines.append(f"MiB resumed from checkpoints: {resumed / 2**20:.0f}")
    if waits:
        lines.append(
            f"from a kill to the takeover: {statistics.median(waits):.2f} s in the median of {len(waits)}, "
            f"{max(waits):.2f} s at most"
        )
    return "\n".join(lines)


def takeovers_in(yard: Yard) -> int:
    """Return how often a worker has taken over from another that had not let go."""
    return sum(_takeovers(journal)[0] for _, journal in journals(yard).values())


def _takeovers(journal: Sequence[JournalEntry]) -> tuple[int, int]:
    """Return how often workers took over from one that had not let go, and how often from one that had."""
    taken = paused = 0
    let_go = {entry.epoch for entry in journal if entry.kind is EntryKind.NOTE and entry.subject == LET_GO}
    workers = [entry for entry in journal if entry.kind is EntryKind.NOTE and entry.subject == WORKER]
    for before, _ in itertools.pairwise(workers):
        if before.epoch in let_go:
            paused += 1
        else:
            taken += 1
    return taken, paused


def _waits(journal: Sequence[JournalEntry], kills: Mapping[int, Kill]) -> Iterator[float]:
    """Yield how long it took, each time that a worker was killed, until the next one had entered itself."""
    workers = [entry for entry in journal if entry.kind is EntryKind.NOTE and entry.subject == WORKER]
    for before, after in itertools.pairwise(workers):
        kill = kills.get(before.data["pid"])
        own = [entry for entry in journal if entry.epoch == before.epoch and entry.kind is not EntryKind.REQUEST]
        if kill is None or before.at is None or after.at is None or own[-1].subject == LET_GO:
            continue
        if any(entry.subject == Phase.PAUSED.value for entry in own):
            continue
        if before.at.timestamp() < kill.at < after.at.timestamp():
            yield after.at.timestamp() - kill.at


def unfinished(yard: Yard) -> list[Migration]:
    return list(yard.engine.list_migrations(MigrationQuery(phases=[phase for phase in Phase if not phase.is_final])))
