"""Making each thing that the doctor finds, and looking for it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.unit.engine.world import DESTINATION, SOURCE, World
from volmig import doctor
from volmig.doctor import Finding, Mended, Severity
from volmig.model import EntryKind, JournalEntry, Method, Migration, Phase, Volume

HOUR = timedelta(hours=1)


def findings(world: World, **options: Any) -> Sequence[Finding]:
    given: dict[str, Any] = {"grace_seconds": 0.0} | options
    return doctor.examine(world.store, world.engine._backends, **given).findings


def serious(world: World, **options: Any) -> list[Finding]:
    return [finding for finding in findings(world, **options) if finding.severity is not Severity.INFO]


def codes(world: World, **options: Any) -> list[str]:
    return [finding.code.value for finding in findings(world, **options)]


def mend(world: World, found: Sequence[Finding] | None = None) -> list[Mended]:
    given = findings(world) if found is None else found
    return doctor.mend(world.store, world.engine._backends, given, actor="someone", grace_seconds=0.0)


def add_migration(world: World, volume: Volume, phase: Phase = Phase.ERROR, **fields: Any) -> Migration:
    """Put a migration on record; one that has ended did so an hour ago."""
    values: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "volume_id": volume.id,
        "source": SOURCE,
        "destination": DESTINATION,
        "destination_id": str(uuid.uuid4()),
        "method": Method.BLOCK,
        "phase": phase,
        "finished_at": datetime.now(UTC) - HOUR if phase.is_final else None,
    }
    with world.store.writing() as transaction:
        return transaction.add_migration(Migration(**(values | fields)))


def note(world: World, migration: Migration, subject: str, data: dict[str, Any], *, epoch: int = 0) -> None:
    with world.store.writing() as transaction:
        transaction.append_journal(
            JournalEntry(
                migration_id=migration.id,
                kind=EntryKind.NOTE,
                subject=subject,
                actor="worker",
                epoch=epoch,
                data=data,
            )
        )


def put(world: World, pool: str, name: str, data: bytes = b"precious") -> None:
    """Make an object that no record tells of."""
    (world.pool(pool) / name).write_bytes(data)


def gone_process(host: str = "here") -> dict[str, Any]:
    """Return the identity of a process that has ended."""
    from volmig.manager.processes import ProcessIdentity

    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return ProcessIdentity.own(host).facts() | {"pid": child, "start_time_ticks": 1}
