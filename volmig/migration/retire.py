"""Deleting storage that was left for later.

An object is deleted only while the volume that it was a copy of is seen at its recorded place, or is no longer recorded
at all; and never while its migration goes on, or another one goes back to it. Before its driver is called, its record
says that its deletion has begun: the call may take effect at any later time, so that from then on nothing may use the
object again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from volmig import errors
from volmig.manager.backends import Backends
from volmig.manager.parallel import by_backend, for_each
from volmig.migration.request import place_of
from volmig.model import EntryKind, JournalEntry, RetiredObject, Volume, VolumeStatus
from volmig.store import Store
from volmig.store.base import ReadTransaction, WriteTransaction

LOG = logging.getLogger(__name__)


def delete_retired(
    store: Store,
    backends: Backends,
    migration_id: str | None = None,
    *,
    where: Callable[[str], bool] | None = None,
) -> list[RetiredObject]:
    """Delete the retired objects that are due, and return the records of those that are still there.

    :param migration_id: only those of this migration; None for all.
    :param where: says of a backend, as ``host@backend``, whether to do it there; None for everywhere.
    """
    with store.reading() as view:
        due = view.list_retired(due_at=view.now(), migration_id=migration_id)
    if where is not None:
        due = [retired for retired in due if where(_backend_of(retired.host))]
    round_ = _Round(store, backends)
    for_each(by_backend(due, lambda retired: retired.host), round_.delete_all, name="retire")
    ids = {retired.id for retired in due}
    with store.reading() as view:
        return [left for left in view.list_retired(migration_id=migration_id) if left.id in ids]


class _Round:
    """One round over what is due. A backend that is found silent is asked nothing more in it."""

    def __init__(self, store: Store, backends: Backends) -> None:
        self._store = store
        self._backends = backends
        self._silent: set[str] = set()
        """Names of backends that did not answer in time, or are out of service."""

    def delete_all(self, group: list[RetiredObject]) -> None:
        for retired in group:
            try:
                self._delete(retired)
            except errors.VolmigError as error:
                # That of one object must not keep the others.
                LOG.warning("retired object %s in %s is left for later: %s", retired.name_id, retired.host, error)

    def _delete(self, retired: RetiredObject) -> None:
        try:
            seen = self._look(retired)
            if seen is None or not self._begin(retired, seen.volume):
                return
            self._backends.at(retired.host).delete_object(_as_volume(retired), retired.identity)
        except errors.VolmigError as error:
            if isinstance(error, errors.DriverTimeout | errors.BackendDown):
                self._silent.add(error.fields["backend"])
            self._note_failure(retired, error)
        else:
            self._forget(retired)

    # --- whether it may go --------------------------------------------------------------------

    def _look(self, retired: RetiredObject) -> _Seen | None:
        """Ask the drivers, and return what was seen; None when the object has to stay for now."""
        with self._store.reading() as view:
            volume = _volume_of(view, retired)
            if not _may_go(view, retired, volume):
                return None
        for host in (retired.host, volume.host if volume else retired.host):
            if self._backends.at(host).name in self._silent:
                return None
        if volume is None:
            return _Seen(None)
        backend = self._backends.of(volume)
        if not backend.volume_exists(volume):
            return None
        if (volume.host, volume.provider_id or volume.backend_name) == (retired.host, _object_name(retired)):
            # The volume has come back to a place of that name. Its object is another one, if they can be told apart.
            present = backend.identify_object(volume)
            if retired.identity is None or present is None or present == retired.identity:
                return None
        return _Seen(volume)

    def _begin(self, retired: RetiredObject, seen: Volume | None) -> bool:
        """Record that the deletion begins, if everything is still as it was seen; return whether it does."""
        with self._store.writing() as transaction:
            present = _present(transaction, retired)
            volume = _volume_of(transaction, retired)
            if present is None or present.delete_after is None or present.delete_after > transaction.now():
                return False
            if not _may_go(transaction, retired, volume):
                return False
            if volume is not None and (seen is None or place_of(volume) != place_of(seen)):
                return False
            if present.deletion_begun_at is None:
                transaction.begin_deletion(retired.id)
                _note(transaction, retired, "its deletion begins, and it cannot be gone back to any more")
        return True

    # --- what became of it --------------------------------------------------------------------

    def _note_failure(self, retired: RetiredObject, error: errors.VolmigError) -> None:
        LOG.warning("retired object %s in %s cannot be deleted: %s", retired.name_id, retired.host, error)
        with self._store.writing() as transaction:
            present = _present(transaction, retired)
            # Another process may have been at it, too, with more success.
            if present is not None:
                transaction.update_retired(present.id, attempts=present.attempts + 1, last_error=error.message)

    def _forget(self, retired: RetiredObject) -> None:
        with self._store.writing() as transaction:
            if _present(transaction, retired) is not None:
                transaction.remove_retired(retired.id)
                _note(transaction, retired, "its time has come, and it is deleted")


@dataclass(frozen=True, slots=True)
class _Seen:
    """That an object may go, by what the drivers say."""

    volume: Volume | None
    """The volume as they were asked about it; None when it is no longer recorded."""


def _may_go(view: ReadTransaction, retired: RetiredObject, volume: Volume | None) -> bool:
    """Say whether, by the records, an object may be deleted of which *volume* was left."""
    try:
        if not view.get_migration(retired.migration_id).phase.is_final:
            return False
    except errors.MigrationNotFound:
        LOG.debug("retired object %s is of a migration that is no longer recorded", retired.name_id)
    if volume is None:
        return True
    if volume.migration_id is not None and view.get_migration(volume.migration_id).rolls_back == retired.migration_id:
        return False
    return volume.status is not VolumeStatus.ERROR


def _present(view: ReadTransaction, retired: RetiredObject) -> RetiredObject | None:
    found = view.list_retired(migration_id=retired.migration_id)
    return next((present for present in found if present.id == retired.id), None)


def _volume_of(view: ReadTransaction, retired: RetiredObject) -> Volume | None:
    try:
        return view.get_volume(retired.volume_id)
    except errors.VolumeNotFound:
        return None


def _note(transaction: WriteTransaction, retired: RetiredObject, reason: str) -> None:
    try:
        migration = transaction.get_migration(retired.migration_id)
    except errors.MigrationNotFound:
        LOG.debug("nobody keeps a history of retired object %s", retired.name_id)
        return
    transaction.append_journal(
        JournalEntry(
            migration_id=migration.id,
            epoch=migration.epoch,
            kind=EntryKind.NOTE,
            subject="old-storage",
            actor=retired.host.partition("@")[0],
            data={"reason": reason, "host": retired.host, "name_id": retired.name_id},
        )
    )


def _backend_of(host: str) -> str:
    return host.partition("#")[0]


def _object_name(retired: RetiredObject) -> str:
    return retired.provider_id or _as_volume(retired).backend_name


def _as_volume(retired: RetiredObject) -> Volume:
    return Volume(
        id=retired.volume_id,
        name="",
        size_bytes=retired.size_bytes,
        host=retired.host,
        status=VolumeStatus.DELETING,
        name_id=retired.name_id,
        provider_location=retired.provider_location,
        provider_id=retired.provider_id,
        format=retired.format,
    )
