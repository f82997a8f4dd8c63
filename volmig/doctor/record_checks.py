"""What is wrong with the records themselves, and with the processes that they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from volmig import errors
from volmig.doctor.findings import Code, Finding
from volmig.doctor.records import FINAL, Records
from volmig.manager.processes import boot_id, is_running
from volmig.manager.volumes.operations import Operation
from volmig.migration.helpers import HELPER_NOTE
from volmig.model import (
    EntryKind,
    JournalEntry,
    Method,
    Migration,
    Phase,
    Reservation,
    RetiredObject,
    Volume,
    VolumeStatus,
)
from volmig.store import MigrationQuery, Store

RECOVER = ("migration", "recover")

_TRANSITIONAL = (
    VolumeStatus.CREATING,
    VolumeStatus.EXTENDING,
    VolumeStatus.SNAPSHOTTING,
    VolumeStatus.RETYPING,
    VolumeStatus.DELETING,
)
_MOST_JOURNALS = 1000
"""How many ended migrations are looked through for programs that still run; the newest are."""
_CLOCK_SLACK = timedelta(hours=1)
"""By how much the store's clock and this host's may differ."""


def check_records(records: Records, *, host: str, grace_seconds: float) -> Iterator[Finding]:
    """Yield what one reading of the store shows.

    :param host: what this host is called.
    :param grace_seconds: how long something must have been without what should look after it.
    """
    grace = timedelta(seconds=grace_seconds)
    for migration in records.unfinished.values():
        yield from _check_worker(records, migration, host=host, grace=grace)
    for volume in records.volumes.values():
        yield from _check_volume(records, volume, host=host, grace=grace)
    awaited = records.unfinished.keys() | {each.rolls_back for each in records.unfinished.values() if each.rolls_back}
    for retired in records.retired:
        is_due = retired.delete_after is not None and retired.delete_after + grace <= records.now
        if is_due and retired.migration_id not in awaited:
            yield _overdue(retired)
    for reservation in records.reservations:
        if not is_needed(records, reservation):
            yield _stale_reservation(records, reservation)
    for migration_id in records.checkpoints:
        if migration_id not in records.unfinished:
            yield _stale_checkpoint(migration_id, records.named.get(migration_id))


# --- migrations -----------------------------------------------------------------------------------


def _check_worker(records: Records, migration: Migration, *, host: str, grace: timedelta) -> Iterator[Finding]:
    if migration.phase is Phase.PAUSED and not migration.cancel_requested_by:
        yield _of_migration(
            Code.MIGRATION_PAUSED,
            migration,
            f"{migration.pause_requested_by or 'Somebody'} has paused it, and volume {migration.volume_id} stays "
            "locked until it is resumed or cancelled.",
            ("migration", "resume", migration.id),
        )
        return
    reason = _why_abandoned(records, migration, host=host, grace=grace)
    if reason:
        yield _of_migration(
            Code.MIGRATION_ABANDONED,
            migration,
            f"{reason} It is in phase {migration.phase.value}, and nothing goes on until somebody takes it over.",
            RECOVER,
        )


def _why_abandoned(records: Records, migration: Migration, *, host: str, grace: timedelta) -> str:
    if not migration.owner:
        since = migration.updated_at
        return "No worker has it." if since is None or since + grace <= records.now else ""
    expires_at = migration.lease_expires_at
    if expires_at is None or expires_at <= records.now:
        since_when = f" since {_time(expires_at)}" if expires_at else ""
        return f"Its worker {migration.owner} is gone: the lease has not been renewed{since_when}."
    if records.worker_is_gone(migration, epoch=migration.epoch, host=host):
        return (
            f"The process of its worker {migration.owner} has ended. The lease is over at {_time(expires_at)}; only "
            "then can another take it."
        )
    return ""


def _of_migration(code: Code, migration: Migration, explanation: str, words: tuple[str, ...]) -> Finding:
    return Finding(
        code=code,
        what=migration.id,
        places=(migration.source, migration.destination),
        explanation=explanation,
        words=words,
        volume_id=migration.volume_id,
        migration_id=migration.id,
    )


# --- volumes --------------------------------------------------------------------------------------


def _check_volume(records: Records, volume: Volume, *, host: str, grace: timedelta) -> Iterator[Finding]:
    if volume.migration_id is not None and volume.migration_id not in records.unfinished:
        yield _locked(volume, records.named.get(volume.migration_id))
    elif volume.status is VolumeStatus.MAINTENANCE and volume.migration_id is None and not volume.operation:
        yield _stuck(volume, records.latest.get(volume.id))
    if volume.operation or volume.status in _TRANSITIONAL:
        reason = _why_request_is_abandoned(records, volume, host=host, grace=grace)
        if reason:
            yield _of_volume(Code.REQUEST_ABANDONED, volume, reason, RECOVER)


def expected_place(migration: Migration | None) -> str:
    """Return where an ended migration has left its volume; empty when it does not say."""
    if migration is None or not migration.phase.is_final or migration.error_code == errors.LocationDoubtful.code:
        return ""
    return migration.destination if migration.phase is Phase.SUCCESS else migration.source


def _locked(volume: Volume, migration: Migration | None) -> Finding:
    if migration is None:
        text = (
            f"It is locked by migration {volume.migration_id}, which is not on record. Nobody can say what that has "
            f"done, so the lock is not released by itself. The record says that the volume is in {volume.host}."
        )
        return _of_volume(Code.VOLUME_LOCKED, volume, text, ("volume", "show", volume.id))
    text = f"It is locked by migration {migration.id}, which has ended in phase {migration.phase.value}. "
    return _freeable(Code.VOLUME_LOCKED, volume, migration, text)


def _stuck(volume: Volume, migration: Migration | None) -> Finding:
    text = "It is in status maintenance, and no migration moves it. "
    if migration is None:
        text += "No migration of it is on record that would say where it is, so it is not released by itself."
        return _of_volume(Code.VOLUME_STUCK, volume, text, ("volume", "show", volume.id))
    return _freeable(Code.VOLUME_STUCK, volume, migration, text)


def _freeable(code: Code, volume: Volume, migration: Migration, text: str) -> Finding:
    if expected_place(migration) == volume.host:
        return _of_volume(
            code,
            volume,
            text + f"By its end the volume is in {volume.host}; the volume is freed when it is seen whole there.",
            ("doctor", "--fix", "--volume", volume.id),
            safe=True,
            migration_id=migration.id,
        )
    said = expected_place(migration) or f"{migration.source} or {migration.destination}"
    text += (
        f"By its end the volume is in {said}, and by its own record in {volume.host}, so it is not freed by itself. "
        "Look at both places before you touch either."
    )
    places = tuple(dict.fromkeys((volume.host, migration.source, migration.destination)))
    return _of_volume(code, volume, text, ("migration", "show", "--history", migration.id), places=places)


def _why_request_is_abandoned(records: Records, volume: Volume, *, host: str, grace: timedelta) -> str:
    status = f"It is in status {volume.status.value}"
    operation = Operation.of(volume)
    if operation is None:
        since = volume.updated_at
        if since is not None and since + grace > records.now:
            return ""
        return f"{status}, and no request is on record that does it: the process is gone that did."
    name, until = operation.name or "a request", operation.until
    if operation.process is not None and operation.process.is_gone(host):
        return f"{status} because of {name!r}, and {operation.process}, which did that, has ended."
    if until is not None and until + grace <= records.now:
        return f"{status} because of {name!r}, and the time is over ({_time(until)}) in which that can have ended."
    return ""


def _of_volume(
    code: Code,
    volume: Volume,
    explanation: str,
    words: tuple[str, ...],
    *,
    places: tuple[str, ...] = (),
    safe: bool = False,
    migration_id: str = "",
) -> Finding:
    return Finding(
        code=code,
        what=volume.id,
        places=places or (volume.host,),
        explanation=explanation,
        words=words,
        safe=safe,
        volume_id=volume.id,
        migration_id=migration_id or volume.migration_id or "",
    )


# --- leftovers ------------------------------------------------------------------------------------


def _overdue(retired: RetiredObject) -> Finding:
    name = retired.provider_id or f"volume-{retired.name_id}"
    tried = f"was tried {retired.attempts} times" if retired.attempts != 1 else "was tried once"
    last = f"; the last error: {retired.last_error}" if retired.last_error else ""
    begun = ""
    if retired.deletion_begun_at is not None:
        begun = f" Its deletion began at {_time(retired.deletion_begun_at)}: it cannot be gone back to any more."
    return Finding(
        code=Code.RETIRED_OVERDUE,
        what=name,
        places=(retired.host,),
        explanation=f"Volume {retired.volume_id} has left it, and it was to be deleted at "
        f"{_time(retired.delete_after)}. That {tried}{last}.{begun} It is only deleted while the volume is seen at its "
        "own place.",
        words=RECOVER,
        safe=True,
        volume_id=retired.volume_id,
        migration_id=retired.migration_id,
        facts=(retired.id,),
    )


def is_needed(records: Records, reservation: Reservation) -> bool:
    """Say whether a reservation is that of an unfinished migration, or of a request at work on a volume."""
    if reservation.id in records.unfinished:
        return True
    for volume in records.volumes.values():
        if volume.operation or volume.status in _TRANSITIONAL or volume.migration_id is not None:
            operation = Operation.of(volume)
            if volume.id in reservation.id or (operation and operation.id and operation.id in reservation.id):
                return True
    return False


def _stale_reservation(records: Records, reservation: Reservation) -> Finding:
    volume_id = reservation.id.removeprefix("extend-")
    return Finding(
        code=Code.RESERVATION_STALE,
        what=reservation.id,
        places=(reservation.host,),
        explanation=f"{reservation.size_bytes} bytes are reserved for it, and nothing of that id is under way.",
        words=("doctor", "--fix"),
        safe=True,
        volume_id=volume_id if volume_id in records.volumes else "",
    )


def _stale_checkpoint(migration_id: str, migration: Migration | None) -> Finding:
    said = f"which has ended in phase {migration.phase.value}" if migration else "which is not on record"
    return Finding(
        code=Code.CHECKPOINT_STALE,
        what=migration_id,
        places=(migration.destination,) if migration else (),
        explanation=f"It is that of a migration {said}, and nobody will go on from it.",
        words=("doctor", "--fix"),
        safe=True,
        volume_id=migration.volume_id if migration else "",
        migration_id=migration_id,
    )


# --- programs -------------------------------------------------------------------------------------


def check_helpers(store: Store, records: Records, *, host: str) -> Iterator[Finding]:
    """Yield the programs of this host that run for migrations that have ended, or whose worker is gone."""
    for migration in records.unfinished.values():
        journal = records.journals[migration.id]
        for entry in running_helpers(journal, host=host):
            if records.worker_is_gone(migration, epoch=entry.epoch, host=host):
                yield _helper(migration, entry, host, "whose worker is gone")
    for migration, journal in _ended_since_boot(store):
        for entry in running_helpers(journal, host=host):
            yield _helper(migration, entry, host, f"which has ended in phase {migration.phase.value}")


def running_helpers(journal: Sequence[JournalEntry], *, host: str) -> list[JournalEntry]:
    """Return the entries that name a program of this host and boot that still runs."""
    boot = boot_id()
    return [
        entry
        for entry in journal
        if entry.kind is EntryKind.NOTE
        and entry.subject == HELPER_NOTE
        and (entry.data.get("host"), entry.data.get("boot")) == (host, boot)
        and is_running(int(entry.data["pid"]), int(entry.data["start_time_ticks"]))
    ]


def _ended_since_boot(store: Store) -> Iterator[tuple[Migration, Sequence[JournalEntry]]]:
    with store.reading() as view:
        uptime = timedelta(seconds=float(Path("/proc/uptime").read_text().split()[0]))
        booted_at = view.now() - uptime - _CLOCK_SLACK
        ended = view.list_migrations(MigrationQuery(phases=FINAL, limit=_MOST_JOURNALS))
        found = [
            (migration, view.read_journal(migration.id))
            for migration in ended
            if migration.method is not Method.DRIVER
            and (migration.finished_at is None or migration.finished_at >= booted_at)
        ]
    yield from found


def _helper(migration: Migration, entry: JournalEntry, host: str, said: str) -> Finding:
    program, pid = entry.data.get("program", "a program"), entry.data["pid"]
    return Finding(
        code=Code.HELPER_RUNNING,
        what=f"{program} ({pid})",
        places=(host,),
        explanation=f"{program} (process {pid}) was started for migration {migration.id}, {said}, and still runs. It "
        "may write to what is, or was, the destination.",
        words=("doctor", "--fix", "--volume", migration.volume_id),
        safe=True,
        volume_id=migration.volume_id,
        migration_id=migration.id,
        facts=(str(entry.sequence),),
    )


def _time(time: datetime | None) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z") if time else "an unknown time"
