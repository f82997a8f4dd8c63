"""Exports that nobody needs: what a process that was killed has left, and what holds the device of a volume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from volmig.doctor.findings import Code, Finding
from volmig.doctor.leftovers import Refused
from volmig.doctor.records import Records
from volmig.manager.backend import Backend
from volmig.model import Volume
from volmig.store import MigrationQuery, Store
from volmig.store.base import ReadTransaction


class Unknown(Refused):
    """Nothing on record has the name that is exported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StaleExport:
    """An export that nobody needs by the records, as long as nothing of this has changed."""

    volume: Volume
    """Whose it is, or was: a migration may have exported its copy under a name that this has no more."""
    exported: Volume
    """The same, as its driver is told of what is exported."""


def stale_export(view: ReadTransaction, address: str, backend_id: str, *, grace_seconds: float) -> StaleExport:
    """Return what is known of an export that nobody needs.

    :param address: the backend, as ``host@backend``.
    :raises Unknown: when no record has that name.
    :raises Refused: saying who uses it, or may be about to.
    """
    records = Records.of(view)
    _refuse_claimed(records, address, backend_id)
    volume, exported = _found(view, records, address, backend_id)
    if volume.attachments:
        raise Refused(f"volume {volume.id} is attached")
    if not records.is_at_rest(volume) or volume.migration_id is not None:
        raise Refused(f"something is at work on volume {volume.id}, or went wrong with it")
    recent = view.now() - timedelta(seconds=grace_seconds)
    ended = [each.finished_at for each in view.list_migrations(MigrationQuery(volume_id=volume.id, limit=1))]
    if any(_is_after(moment, recent) for moment in (volume.updated_at, *ended)):
        raise Refused(f"volume {volume.id} was in use only just now")
    return StaleExport(volume=volume, exported=exported)


def _refuse_claimed(records: Records, address: str, backend_id: str) -> None:
    for migration in records.unfinished.values():
        if backend_id in records.ids_of(migration):
            raise Refused(f"migration {migration.id} may use it")
    for retired in records.retired:
        if retired.name_id == backend_id and _is_in(address, retired.host):
            raise Refused("it is of old storage, and is taken back before that is deleted")


def _found(view: ReadTransaction, records: Records, address: str, backend_id: str) -> tuple[Volume, Volume]:
    """Return the volume that an export belongs to, and what is exported."""
    for volume in records.volumes.values():
        if volume.backend_id == backend_id and _is_in(address, volume.host):
            return volume, volume
    for migration in view.list_migrations(MigrationQuery(destination_id=backend_id)):
        present = records.volumes.get(migration.volume_id)
        if present is not None and _is_in(address, migration.destination):
            # What a copy was called before it was the volume; the target keeps the name, and holds the device.
            return present, replace(present, host=migration.destination, name_id=backend_id, provider_id=None)
    raise Unknown("nothing on record has that name")


def _is_in(address: str, pool: str) -> bool:
    return pool.startswith(f"{address}#")


def _is_after(moment: datetime | None, recent: datetime) -> bool:
    return moment is not None and moment > recent


@dataclass(frozen=True, kw_only=True)
class ExportExam:
    """The examination of what one backend shows to other hosts.

    An export counts when nobody needed it, it was listed again, and still nobody needs it: what was being made, or
    being taken back, is then gone or on record.
    """

    store: Store
    backend: Backend
    grace_seconds: float

    @property
    def _address(self) -> str:
        return f"{self.backend.host}@{self.backend.name}"

    def find(self, listed: tuple[str, ...]) -> list[Finding]:
        """Return what nobody needs of what was listed. :raises volmig.errors.VolmigError: when it cannot be told."""
        suspect = [backend_id for backend_id in listed if any(self._findings(backend_id))]
        if not suspect:
            return []
        still = self.backend.list_exports()
        return [finding for backend_id in suspect if backend_id in still for finding in self._findings(backend_id)]

    def _findings(self, backend_id: str) -> Iterator[Finding]:
        try:
            with self.store.reading() as view:
                stale = stale_export(view, self._address, backend_id, grace_seconds=self.grace_seconds)
        except Unknown:
            yield self._unknown(backend_id)
        except Refused:
            return
        else:
            yield self._stale(stale)

    def _stale(self, stale: StaleExport) -> Finding:
        volume, exported = stale.volume, stale.exported
        name = "" if volume == exported else f" under the name of its copy {exported.backend_id}"
        return Finding(
            code=Code.EXPORT_STALE,
            what=volume.id,
            places=(exported.host,),
            explanation=f"It is still shown to other hosts{name}, though it is attached to nobody and no migration "
            "of it goes on. That holds its device. The command takes the export back, unless a host is seen to use it.",
            words=("doctor", "--fix", "--volume", volume.id),
            safe=True,
            volume_id=volume.id,
            facts=(exported.backend_id,),
        )

    def _unknown(self, backend_id: str) -> Finding:
        return Finding(
            code=Code.EXPORT_STALE,
            what=backend_id,
            places=(self._address,),
            explanation="Something of that name is shown to other hosts, and no volume, migration or old storage on "
            "record has it. Whoever uses it may still do so, so that it is left as it is. Look who that is, and remove "
            "it by the means of its protocol: `targetcli`, `nvmetcli`, or by ending its `qemu-nbd`.",
            words=("backend", "show", self.backend.name),
        )


def take_back(store: Store, backend: Backend, finding: Finding, *, grace_seconds: float) -> str:
    """Take an export back that was found, if still nobody needs it; return what was done.

    :raises Refused: when somebody needs it.
    :raises volmig.errors.VolumeInUse: when a host is seen to use it.
    """
    (backend_id,) = finding.facts
    if backend_id not in backend.list_exports():
        return "it is taken back already"
    # Last, since it takes time to look at exports, and somebody may have begun to use this one.
    with store.reading() as view:
        address = f"{backend.host}@{backend.name}"
        stale = stale_export(view, address, backend_id, grace_seconds=grace_seconds)
    backend.remove_export(stale.exported)
    if backend_id in backend.list_exports():
        raise Refused("it was taken back, and is there still or again")
    return "it is taken back"
