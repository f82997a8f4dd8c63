"""What must be true when all was recovered: read from the store and the storage, not asked of the engine."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from volmig import errors
from volmig.model import PHASE_TRANSITIONS, EntryKind, JournalEntry, Migration, MigrationStatus, Phase, VolumeStatus
from volmig.store import MigrationQuery
from volmig.store.base import ReadTransaction
from volmig.testing.killsweep.bench import pattern_digest
from volmig.testing.killsweep.scenario import Run, Scenario

MARKER = "VOLMIG_KILLSWEEP_RUN"
"""Variable in the environment of a run's processes, by which programs that they started are known."""


def problems_after_kill(scenario: Scenario, run: Run) -> list[str]:
    """Return what is wrong before anybody has recovered: nowhere may the last whole copy be gone."""
    pools = (run.bench.source, run.bench.destination)
    found = {pool: run.bench.objects(run.directory, pool) for pool in pools}
    whole = {pattern_digest(scenario.pattern, size) for size in (scenario.pattern.size_bytes, *scenario.sizes)}
    if scenario.may_be_gone or any(whole & set(objects.values()) for objects in found.values()):
        return []
    return [f"right after the kill there is no whole copy of the volume anywhere: {found}"]


def problems_at_rest(scenario: Scenario, run: Run) -> list[str]:
    """Return what is wrong when all has been recovered; empty when all is as it must be."""
    store = run.open_store()
    try:
        with store.reading() as view:
            found = [*_records(scenario, run, view), *_volume(scenario, run, view)]
    finally:
        store.close()
    found.extend(f"left over in the storage: {name}" for name in run.bench.leftovers(run.directory))
    state = sorted(path.name for path in (run.directory / "state").iterdir())
    if state != ["volmig.db"]:
        found.append(f"the state's directory holds {state}")
    found.extend(f"still running: {program}" for program in programs_of(run.directory))
    return found


def _volume(scenario: Scenario, run: Run, view: ReadTransaction) -> Iterator[str]:
    """Yield what is wrong with the volume's record and with the objects in the pools."""
    found = {pool: run.bench.objects(run.directory, pool) for pool in (run.bench.source, run.bench.destination)}
    try:
        volume = view.get_volume(run.facts()["volume"])
    except errors.VolumeNotFound:
        if not scenario.may_be_gone:
            yield "the volume's record is gone"
        yield from (
            f"the volume is gone, and in {pool} there are {sorted(found[pool])}" for pool in found if found[pool]
        )
        return
    migrations = _migrations(view, volume.id)
    arrived = [migration.destination for migration in migrations if migration.phase is Phase.SUCCESS]
    status = migrations[-1].phase.public_status if migrations else MigrationStatus.NONE
    for name, actual, wanted in (
        ("status", volume.status, VolumeStatus.AVAILABLE),
        ("migration_status", volume.migration_status, status),
        ("migration_id", volume.migration_id, None),
        ("operation", dict(volume.operation), {}),
        ("host", volume.host, [run.bench.source, *arrived][-1]),
        ("metadata", dict(volume.metadata), {"key": "value"}),
    ):
        if actual != wanted:
            yield f"the volume's {name} is {actual!r}, not {wanted!r}"
    if volume.size_bytes not in (scenario.pattern.size_bytes, *scenario.sizes):
        yield f"the volume's size is {volume.size_bytes}"
    whole = pattern_digest(scenario.pattern, volume.size_bytes)
    for pool, objects in found.items():
        names = [volume.provider_id or volume.backend_name] if pool == volume.host else []
        if sorted(objects) != names:
            yield f"in {pool} there are {sorted(objects)}, not {names}"
        if any(digest != whole for digest in objects.values()):
            yield f"in {pool} there is another content than the volume's"


def _records(scenario: Scenario, run: Run, view: ReadTransaction) -> Iterator[str]:
    """Yield what is wrong with the records other than the volume's."""
    yield from (f"room is still reserved: {held}" for held in view.list_reservations())
    yield from (f"an object still waits for its deletion: {retired}" for retired in view.list_retired())
    yield from (f"a checkpoint is left of migration {owner}" for owner in view.list_checkpoints())
    for migration in _migrations(view, run.facts()["volume"]):
        yield from (f"migration {migration.id}: {text}" for text in _migration(scenario, migration))
        yield from (
            f"migration {migration.id}: {text}" for text in _journal(migration, view.read_journal(migration.id))
        )


def _migrations(view: ReadTransaction, volume_id: str) -> list[Migration]:
    return list(reversed(view.list_migrations(MigrationQuery(volume_id=volume_id))))


def _migration(scenario: Scenario, migration: Migration) -> Iterator[str]:
    if migration.phase not in scenario.outcomes:
        yield f"it ended in {migration.phase.value}: {migration.error_code} {migration.error_message}"
    if not migration.phase.is_final:
        yield f"it has not ended: {migration.phase.value}"
    if migration.finished_at is None or migration.owner:
        yield f"it ended at {migration.finished_at}, and {migration.owner or 'nobody'} owns it"
    if migration.source_digest != migration.destination_digest:
        yield f"its digests differ: {migration.source_digest}, {migration.destination_digest}"


def _journal(migration: Migration, journal: Sequence[JournalEntry]) -> Iterator[str]:
    """Yield where the journal does not tell what the record says, or what cannot be."""
    phases = [Phase(entry.subject) for entry in journal if entry.kind is EntryKind.PHASE]
    if not phases or phases[0] is not Phase.QUEUED or phases[-1] is not migration.phase:
        yield f"its journal has the phases {[phase.value for phase in phases]}, and it is in {migration.phase.value}"
    for before, after in itertools.pairwise(phases):
        if after not in PHASE_TRANSITIONS[before]:
            yield f"its journal goes from {before.value} to {after.value}"
    if [entry.sequence for entry in journal] != list(range(1, len(journal) + 1)):
        yield "its journal's entries are not numbered one by one"
    # Entries of epoch 0 are of no worker: requests, and what is cleared up after the end.
    epochs = [entry.epoch for entry in journal if entry.epoch]
    if epochs != sorted(epochs) or (epochs and epochs[-1] > migration.epoch):
        yield f"its journal has the epochs {epochs}, and it is at {migration.epoch}"


def programs_of(directory: Path) -> dict[int, str]:
    """Return the running programs that a run's processes have started, by process id."""
    mark = f"{MARKER}={directory}".encode()
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:  # it has ended, or is somebody else's
            continue
    return found
