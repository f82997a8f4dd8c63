"""Settling what can be settled without any risk.

Everything is looked at once more right before: what a record says in the transaction that changes it, and what storage
says just before. Each change is one transaction, so that this can be killed at any point and done again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from volmig import errors
from volmig.doctor.exam import GRACE_SECONDS
from volmig.doctor.export_checks import take_back
from volmig.doctor.findings import Code, Finding, Mended
from volmig.doctor.leftovers import Refused, check_on_record, prove
from volmig.doctor.record_checks import expected_place, is_needed, running_helpers
from volmig.doctor.records import Records, find_migrations
from volmig.doctor.storage import is_seen_whole
from volmig.manager.backends import Backends
from volmig.migration.helpers import stop_helpers
from volmig.migration.retire import delete_retired
from volmig.model import EntryKind, JournalEntry, Migration, Phase, Volume, VolumeStatus
from volmig.store import MigrationQuery, Store
from volmig.store.base import ReadTransaction, WriteTransaction

LOG = logging.getLogger(__name__)

NOTE = "doctor"
"""Subject of the journal entries that tell what was mended."""


def mend(
    store: Store,
    backends: Backends,
    findings: Iterable[Finding],
    *,
    actor: str = "doctor",
    grace_seconds: float = GRACE_SECONDS,
) -> list[Mended]:
    """Settle those findings that are safe to settle, one after another, and return what came of each.

    Nothing is deleted that might be the only copy of something. One that fails does not keep the others from being
    tried, and what is settled already is left as it is.

    :param actor: who asks; recorded in the history.
    :param grace_seconds: as for :func:`volmig.doctor.examine`.
    """
    doctor = _Doctor(store, backends, actor=actor, grace_seconds=grace_seconds)
    return [doctor.treat(finding) for finding in findings if finding.safe]


class _Doctor:
    def __init__(self, store: Store, backends: Backends, *, actor: str, grace_seconds: float) -> None:
        self._store = store
        self._backends = backends
        self._actor = actor
        self._grace_seconds = grace_seconds
        self._ways: Mapping[Code, Callable[[Finding], str]] = {
            Code.VOLUME_LOCKED: self._free,
            Code.VOLUME_STUCK: self._free,
            Code.LEFTOVER_COPY: self._delete_leftover,
            Code.RETIRED_OVERDUE: self._delete_retired,
            Code.EXPORT_STALE: self._take_back,
            Code.RESERVATION_STALE: self._release,
            Code.CHECKPOINT_STALE: self._forget_checkpoint,
            Code.HELPER_RUNNING: self._stop_helper,
        }

    def treat(self, finding: Finding) -> Mended:
        try:
            outcome = self._ways[finding.code](finding)
        except Refused as refusal:
            return Mended(finding=finding, done=False, outcome=f"left as it is: {refusal}")
        except errors.VolmigError as error:
            return Mended(finding=finding, done=False, outcome=f"failed: {error.message}")
        LOG.info("%s %s: %s", finding.code.value, finding.what, outcome)
        return Mended(finding=finding, done=True, outcome=outcome)

    # --- volumes ------------------------------------------------------------------------------

    def _free(self, finding: Finding) -> str:
        with self._store.reading() as view:
            volume, migration = _held(view, finding.volume_id)
        if migration is None:
            return "it is free already"
        if not is_seen_whole(self._backends.of(volume), volume):
            raise Refused(f"it is not seen whole in {volume.host}")
        with self._store.writing() as transaction:
            current, still = _held(transaction, volume.id)
            if still is None or current.version != volume.version:
                raise Refused("somebody is changing it")
            status = VolumeStatus.AVAILABLE if current.status is VolumeStatus.MAINTENANCE else current.status
            transaction.update_volume(
                current,
                migration_id=None,
                status=status,
                migration_status=still.phase.public_status,
                status_reason=still.error_message if still.phase is Phase.ERROR else "",
            )
            self._note(transaction, still, {"freed": current.id, "host": current.host, "status": status.value})
        return f"it was seen whole in {volume.host}, and is {status.value}"

    # --- storage ------------------------------------------------------------------------------

    def _delete_leftover(self, finding: Finding) -> str:
        (pool,), (backend_id,) = finding.places, finding.facts
        leftover = prove(self._store, self._backends, pool, finding.what, backend_id, grace_seconds=self._grace_seconds)
        # On record first: from then on nobody adopts it, and whoever finds the record goes on with the deletion.
        name = f"doctor/{leftover.migration.id}/{pool}/{backend_id}/{leftover.identity}"
        retired_id = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
        with self._store.writing() as transaction:
            again = check_on_record(transaction, pool, backend_id, grace_seconds=self._grace_seconds)
            if again.volume.version != leftover.volume.version:
                raise Refused(f"somebody is changing volume {again.volume.id}")
            transaction.add_retired(leftover.retired(retired_id, transaction))
            self._note(transaction, again.migration, {"deletes": finding.what, "host": pool})
        return self._delete(retired_id, leftover.migration.id)

    def _delete_retired(self, finding: Finding) -> str:
        return self._delete(finding.facts[0], finding.migration_id)

    def _delete(self, retired_id: str, migration_id: str) -> str:
        delete_retired(self._store, self._backends, migration_id)
        with self._store.reading() as view:
            left = [each for each in view.list_retired(migration_id=migration_id) if each.id == retired_id]
        if left:
            why = left[0].last_error or "the volume is not seen at its own place, or goes back to it"
            raise Refused(f"it is on record to be deleted, but still there: {why}")
        return "it is deleted"

    def _take_back(self, finding: Finding) -> str:
        backend = self._backends.at(finding.places[0])
        return take_back(self._store, backend, finding, grace_seconds=self._grace_seconds)

    # --- records ------------------------------------------------------------------------------

    def _release(self, finding: Finding) -> str:
        records = Records.read(self._store)
        held = [each for each in records.reservations if each.id == finding.what]
        if not held:
            return "it is released already"
        with self._store.writing() as transaction:
            if not self._is_stale(transaction, finding.what):
                raise Refused("something of that id is under way by now")
            transaction.release(finding.what)
        return f"{held[0].size_bytes} bytes were given back"

    @staticmethod
    def _is_stale(view: ReadTransaction, reservation_id: str) -> bool:
        records = Records.of(view)
        held = [each for each in records.reservations if each.id == reservation_id]
        return all(not is_needed(records, each) for each in held)

    def _forget_checkpoint(self, finding: Finding) -> str:
        with self._store.writing() as transaction:
            migrations = find_migrations(transaction, [finding.migration_id])
            if any(not migration.phase.is_final for migration in migrations):
                raise Refused("its migration goes on")
            transaction.remove_checkpoint(finding.migration_id)
        return "it is forgotten"

    def _stop_helper(self, finding: Finding) -> str:
        host = self._backends.host
        with self._store.reading() as view:
            migration = view.get_migration(finding.migration_id)
            journal = view.read_journal(migration.id)
        entries = [each for each in running_helpers(journal, host=host) if str(each.sequence) in finding.facts]
        if not entries:
            return "it has ended"
        if not migration.phase.is_final:
            records = Records.read(self._store)
            epochs = {each.epoch for each in entries}
            if migration.id in records.unfinished and not all(
                records.worker_is_gone(migration, epoch=epoch, host=host) for epoch in epochs
            ):
                raise Refused("its worker is there")
        stop_helpers(entries, host=host)
        return "it was stopped"

    def _note(self, transaction: WriteTransaction, migration: Migration, data: Mapping[str, Any]) -> None:
        transaction.append_journal(
            JournalEntry(
                migration_id=migration.id,
                kind=EntryKind.NOTE,
                subject=NOTE,
                actor=self._actor,
                epoch=migration.epoch,
                data=dict(data),
            )
        )


def _held(view: ReadTransaction, volume_id: str) -> tuple[Volume, Migration | None]:
    """Return a volume with the ended migration that still holds it; with None when none does.

    :raises Refused: when that is not over, or does not say that the volume is where its record has it.
    """
    volume = view.get_volume(volume_id)
    if volume.operation:
        raise Refused("a request is at work on it")
    if volume.migration_id is not None:
        found = find_migrations(view, [volume.migration_id])
    elif volume.status is VolumeStatus.MAINTENANCE:
        found = list(view.list_migrations(MigrationQuery(volume_id=volume.id, limit=1)))
    else:
        return volume, None
    if not found or not found[0].phase.is_final:
        raise Refused("its migration goes on, or is not on record")
    if expected_place(found[0]) != volume.host:
        raise Refused("its migration does not say that it is where its record has it")
    return volume, found[0]
