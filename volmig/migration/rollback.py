"""Accepting a rollback: a migration that brings a volume back to the old storage that an earlier one has kept."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from volmig import errors
from volmig.manager.backends import Backends
from volmig.migration.move import KEPT
from volmig.migration.ownership import Claim
from volmig.migration.request import acceptance, identify, place_of, take_volume
from volmig.migration.steps.places import kept_storage
from volmig.model import EntryKind, JournalEntry, Method, Migration, Phase, RequestContext, RetiredObject, Volume
from volmig.scheduler import check_movable
from volmig.store import Store
from volmig.store.base import ReadTransaction
from volmig.transfer import Verify


@dataclass(frozen=True, kw_only=True, slots=True)
class RollbackRequest:
    """What somebody asks for."""

    migration_id: str
    """The migration to take back."""
    discard_changes: bool = False
    """Whether what was written to the volume since may be given up; it is kept for a while all the same."""


def accept_rollback(
    store: Store,
    backends: Backends,
    request: RollbackRequest,
    context: RequestContext,
    claim: Claim | None = None,
) -> Migration:
    """Check a request, take the volume's lock and record the migration that goes back.

    No room is reserved: the old storage takes it already.

    :param claim: of the worker that will run it at once; without, it waits in ``queued`` without an owner.
    :raises volmig.errors.RollbackImpossible: when there is nothing to go back to, or the volume is elsewhere by now.
    :raises volmig.errors.VolmigError: when anything else stands against it. Nothing is changed then.
    """
    with store.reading() as view:
        done = view.get_migration(request.migration_id)
        kept = _kept(view, done)
        volume = view.get_volume(done.volume_id)
    _check_place(done, kept, volume)
    check_movable(volume)
    identity = identify(store, backends.of(volume), volume)
    # The backend must be there now; that its object is, the migration finds out.
    backends.at(kept.host)
    migration = Migration(
        id=str(uuid.uuid4()),
        volume_id=volume.id,
        source=volume.host,
        destination=kept.host,
        destination_id=kept.name_id,
        method=Method.ROLLBACK,
        verify=Verify.NONE if request.discard_changes else Verify.COMPARE,
        bytes_total=volume.size_bytes,
        requested_by=context.actor,
        # What is given up unseen can be had back for as long as what it is given up for was kept.
        source_retention_seconds=done.source_retention_seconds if request.discard_changes else 0,
        rolls_back=done.id,
    )
    with store.writing() if claim is None else claim.writing(store) as transaction:
        current = transaction.get_volume(volume.id)
        check_movable(current)
        if place_of(current) != place_of(volume):
            raise errors.StoreConflict(kind="volume", id=volume.id)
        # Its deletion may have been due a moment ago. From here on it waits for the end of this migration.
        kept = _kept(transaction, done)
        take_volume(transaction, current, migration)
        recorded = transaction.add_migration(migration)
        transaction.append_journal(
            *acceptance(recorded, current, identity, reserved_bytes=0),
            JournalEntry(
                migration_id=recorded.id,
                kind=EntryKind.NOTE,
                subject=KEPT,
                actor=recorded.requested_by,
                data={
                    "retired": kept.id,
                    "name_id": kept.name_id,
                    "provider_location": kept.provider_location,
                    "provider_id": kept.provider_id,
                    "identity": kept.identity,
                },
            ),
        )
        transaction.append_journal(
            JournalEntry(
                migration_id=done.id,
                kind=EntryKind.REQUEST,
                subject="rollback",
                actor=context.actor,
                data={"migration": recorded.id, "discard_changes": request.discard_changes},
            )
        )
        return recorded if claim is None else claim.take(transaction, recorded.id)


def _kept(view: ReadTransaction, done: Migration) -> RetiredObject:
    """Return the old storage that a migration has left and that is still there."""
    if done.phase is not Phase.SUCCESS:
        reason = f"it is in phase {done.phase.value!r}"
        hint = None if done.phase.is_final else f"End it with `volmig migration cancel {done.id}`."
        raise errors.RollbackImpossible(migration=done.id, reason=reason, hint=hint)
    if done.method is Method.DRIVER:
        raise errors.RollbackImpossible(migration=done.id, reason="the driver has moved the volume, and kept nothing")
    return kept_storage(view, done.id)


def _check_place(done: Migration, kept: RetiredObject, volume: Volume) -> None:
    if volume.host != done.destination:
        raise errors.RollbackImpossible(
            migration=done.id, reason=f"volume {volume.id} is in {volume.host} by now, not in {done.destination}"
        )
    if volume.size_bytes != kept.size_bytes:
        reason = f"volume {volume.id} was extended since, from {kept.size_bytes} to {volume.size_bytes} bytes"
        raise errors.RollbackImpossible(migration=done.id, reason=reason)
