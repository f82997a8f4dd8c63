"""Settling doubts about where a volume is, when the drivers can tell by now."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from volmig import errors
from volmig.manager.backends import Backends
from volmig.manager.doubts import SETTLED, unsettled_doubt
from volmig.manager.parallel import by_backend, for_each
from volmig.manager.processes import ProcessIdentity
from volmig.migration.driver_calls import DriverCalls, Way
from volmig.migration.move import PLACE
from volmig.migration.steps.places import place_of
from volmig.model import (
    EntryKind,
    JournalEntry,
    Method,
    Migration,
    Phase,
    RequestContext,
    Volume,
    VolumeStatus,
)
from volmig.store import MigrationQuery, Store, VolumeQuery
from volmig.store.base import ReadTransaction, WriteTransaction

LOG = logging.getLogger(__name__)

LOOKED_FOR: Final = "looked-for"
"""Subject of the note that a volume was seen at its place when no driver's call for it could run any more."""

_FINAL: Final = [phase for phase in Phase if phase.is_final]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    """A volume that may be elsewhere than its record says."""

    volume: Volume
    migration: Migration
    """The one that has left it so."""
    journal: Sequence[JournalEntry]
    calls: DriverCalls
    is_doubt: bool
    """Whether nobody knows where it is; it is only to be looked for otherwise."""

    @property
    def backends(self) -> str:
        """Return by what to group cases, so that a backend that hangs holds up only those that need it."""
        places = (self.migration.source, self.migration.destination)
        return " ".join(place.partition("#")[0] for place in places)


def settle_doubts(store: Store, backends: Backends) -> list[Volume]:
    """Look again for the volumes whose last migration ended in ``location-doubtful``; return those that were found.

    Those that an earlier worker may have moved, after another had taken the migration over and ended it, are looked for
    too, once.
    A volume that is seen whole at exactly one of the places where it can be is ``available`` there again, and the
    migration's history says so; but not while a driver's call may still be moving it, nor while something else is at
    work on it, or has gone wrong with it. Nothing is deleted. May be done in several processes at once.
    """
    with store.reading() as view:
        cases = [case for case in (*_in_doubt(view), *_taken_over(view)) if _is_here(backends, case)]
    settlement = _Settlement(store, backends)
    for_each(by_backend(cases, lambda case: case.backends), settlement.settle_all, name="doubts")
    return settlement.settled


# --- what is to be looked for ---------------------------------------------------------------------


def _in_doubt(view: ReadTransaction) -> Iterator[_Case]:
    for volume in view.list_volumes(VolumeQuery(status=VolumeStatus.ERROR)):
        if volume.operation or volume.migration_id is not None:
            continue
        migration = unsettled_doubt(view, volume.id)
        if migration is None:
            continue
        if volume.status_reason != migration.error_message:
            # A deletion that has not ended may be among what has failed since.
            LOG.warning("volume %s is in doubt, and not only that: %s", volume.id, volume.status_reason)
            continue
        yield _case(view, volume, migration, is_doubt=True)


def _taken_over(view: ReadTransaction) -> Iterator[_Case]:
    """Yield the volumes that a driver was to move in more than one worker's turn, and that are free now.

    An earlier one may only have been stopped: when it wakes up, the call that it had begun moves the volume after all.
    """
    for migration in view.list_migrations(MigrationQuery(phases=_FINAL, method=Method.DRIVER, min_epoch=2)):
        try:
            volume = view.get_volume(migration.volume_id)
        except errors.VolumeNotFound:
            continue
        if volume.status is not VolumeStatus.AVAILABLE or volume.operation or volume.migration_id is not None:
            continue
        case = _case(view, volume, migration, is_doubt=False)
        if case.calls.begun and not any(_closes(entry) for entry in case.journal):
            yield case


def _closes(entry: JournalEntry) -> bool:
    return entry.kind is EntryKind.NOTE and entry.subject in (SETTLED, LOOKED_FOR)


def _case(view: ReadTransaction, volume: Volume, migration: Migration, *, is_doubt: bool) -> _Case:
    journal = view.read_journal(migration.id)
    return _Case(volume=volume, migration=migration, journal=journal, calls=DriverCalls.of(journal), is_doubt=is_doubt)


def _is_here(backends: Backends, case: _Case) -> bool:
    """Say whether this process drives both places."""
    try:
        for place in (case.migration.source, case.migration.destination):
            backends.at(place)
    except errors.VolmigError as error:
        LOG.debug("volume %s is left to others: %s", case.volume.id, error)
        return False
    return True


# --- looking --------------------------------------------------------------------------------------


class _Settlement:
    """One round."""

    def __init__(self, store: Store, backends: Backends) -> None:
        self._store = store
        self._backends = backends
        self._actor = f"recovery, {ProcessIdentity.own(backends.host)}"
        self.settled: list[Volume] = []

    def settle_all(self, cases: Sequence[_Case]) -> None:
        """Settle what can be settled; one after another, since they need the same backends."""
        for case in cases:
            volume = case.volume
            try:
                found = self._settle(case)
            except (errors.BackendDown, errors.DriverTimeout) as error:
                # The others would have to wait for it one after another.
                LOG.warning("volume %s, and what else needs its backends, is left for later: %s", volume.id, error)
                return
            except (errors.StoreConflict, errors.VolumeNotFound) as error:
                LOG.debug("volume %s is in other hands: %s", volume.id, error)
            except errors.VolmigError as error:
                LOG.warning("volume %s cannot be looked for now: %s", volume.id, error)
            except Exception:
                LOG.exception("volume %s is left for later", volume.id)
            else:
                self.settled += [found] if found is not None else []

    def _settle(self, case: _Case) -> Volume | None:
        running = case.calls.running(self._backends.host)
        if running:
            log = LOG.warning if case.is_doubt else LOG.debug
            log("volume %s: a driver's call of %s may still be moving it", case.volume.id, " and ".join(running))
            return None
        if not case.is_doubt and self._is_in_place(case):
            self._note_looked_for(case)
            return None
        found = self._find(case)
        return None if found is None else self._record(case, found)

    def _is_in_place(self, case: _Case) -> bool:
        volume = case.volume
        if volume.host not in (case.migration.source, case.migration.destination):
            # It has been seen, and moved on, since.
            return True
        return self._backends.of(volume).volume_exists(volume)

    def _find(self, case: _Case) -> Volume | None:
        """Return the volume as it is recorded where it is seen, or None when that is not one place."""
        told = self._ask_mover(case) if case.migration.method is Method.DRIVER and case.calls.begun else None
        places = [told] if told is not None else list(self._places(case))
        seen = [place for place in places if self._backends.of(place).volume_exists(place)]
        if len(seen) != 1:
            LOG.warning("volume %s is still in doubt: it is seen in %d places", case.volume.id, len(seen))
            return None
        self._backends.of(seen[0]).check_object(seen[0])
        return seen[0]

    def _ask_mover(self, case: _Case) -> Volume | None:
        """Return where the driver says that the volume is after its last call; None when it does not offer that."""
        migration, call = case.migration, case.calls.begun[-1]
        here, host = _at_source(case), migration.destination
        if call.way is Way.BACK:
            here, host = _placed(case.volume, migration.destination, call.place), migration.source
        context = RequestContext(user=migration.requested_by, project_id=case.volume.project_id)
        mover = self._backends.of(here)
        try:
            arrived, update = mover.recover_migration(context, here, self._backends.as_destination(host))
        except NotImplementedError:
            return None
        if not arrived:
            return here
        there = replace(here, host=host, provider_location=None, provider_id=None)
        place = place_of(update, there, name_id=there.name_id)
        return _placed(replace(there, metadata={**there.metadata, **place["metadata"]}), host, place)

    def _places(self, case: _Case) -> Iterator[Volume]:
        """Yield where the volume can be."""
        volume, migration = case.volume, case.migration
        if case.is_doubt and volume.host == migration.destination:
            # Past the commit point the record is right, and what remains to be seen is that the volume is there.
            yield volume
            return
        yield volume
        other = migration.destination if volume.host == migration.source else migration.source
        elsewhere = replace(volume, host=other, provider_location=None, provider_id=None)
        yield elsewhere
        if migration.method is Method.DRIVER and volume.provider_id is not None:
            # A driver that brings an adopted volume back does not give it its old name again.
            yield replace(elsewhere, host=volume.host)

    # --- recording ----------------------------------------------------------------------------

    def _record(self, case: _Case, found: Volume) -> Volume | None:
        volume = case.volume
        with self._store.writing() as transaction:
            if _waits_for_deletion(transaction, found):
                LOG.warning("volume %s: what is seen in %s waits for its deletion", volume.id, found.host)
                return None
            settled = transaction.update_volume(
                volume,
                host=found.host,
                name_id=found.name_id,
                provider_location=found.provider_location,
                provider_id=found.provider_id,
                metadata=dict(found.metadata),
                status=VolumeStatus.AVAILABLE,
                status_reason="",
            )
            self._note(
                transaction,
                case.migration,
                SETTLED,
                {
                    "reason": f"the volume is seen whole in {found.host}, and no driver's call can be moving it",
                    "host": found.host,
                    "recorded_before": volume.host,
                    **{key: getattr(found, key) for key in PLACE if getattr(found, key) is not None},
                },
            )
        LOG.warning("volume %s was found in %s and is available again", volume.id, found.host)
        return settled

    def _note_looked_for(self, case: _Case) -> None:
        reason = f"the volume is in {case.volume.host}, and no driver's call can be moving it"
        with self._store.writing() as transaction:
            if not any(_closes(entry) for entry in transaction.read_journal(case.migration.id)):
                self._note(transaction, case.migration, LOOKED_FOR, {"reason": reason})

    def _note(self, transaction: WriteTransaction, migration: Migration, subject: str, data: Mapping[str, Any]) -> None:
        transaction.append_journal(
            JournalEntry(
                migration_id=migration.id,
                kind=EntryKind.NOTE,
                subject=subject,
                actor=self._actor,
                epoch=migration.epoch,
                data=data,
            )
        )


def _at_source(case: _Case) -> Volume:
    """Return the volume as its driver was told of it at its source."""
    if case.volume.host == case.migration.source:
        return case.volume
    for entry in case.journal:
        if entry.kind is EntryKind.DONE and entry.subject == "reserve":
            return _placed(case.volume, case.migration.source, entry.data)
    return _placed(case.volume, case.migration.source, {"name_id": case.volume.name_id})


def _placed(volume: Volume, host: str, place: Mapping[str, Any]) -> Volume:
    fields: dict[str, Any] = {key: place.get(key) for key in PLACE}
    if fields["name_id"] == volume.id:
        fields["name_id"] = None
    return replace(volume, host=host, **fields)


def _waits_for_deletion(view: ReadTransaction, found: Volume) -> bool:
    return any(
        retired.host == found.host
        and (retired.provider_id or retired.name_id) == (found.provider_id or found.backend_id)
        for retired in view.list_retired(volume_id=found.id)
    )
