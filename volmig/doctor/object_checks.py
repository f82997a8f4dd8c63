"""Objects in the pools of one backend that belong to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from volmig import errors
from volmig.doctor.findings import Code, Finding
from volmig.doctor.leftovers import IsVolume, Refused, made_by, prove
from volmig.doctor.records import Records
from volmig.doctor.storage import Sight, list_pool
from volmig.drivers.base import Capability, StoredObject
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.model import Volume
from volmig.store import MigrationQuery, Store

_MOST_FOREIGN = 20
"""How many objects of strangers in one pool are told one by one."""


@dataclass(kw_only=True)
class ObjectExam:
    """The examination of what lies in one backend.

    An object counts only when nothing has claimed it before it was listed, afterwards, and when it was listed again.
    """

    store: Store
    backends: Backends
    backend: Backend
    grace_seconds: float
    findings: list[Finding] = field(default_factory=list)

    def find(self, sight: Sight, before: Records, after: Records) -> list[Finding]:
        """Return what belongs to nothing. :raises volmig.errors.VolmigError: when it cannot be looked at again."""
        claimed = (before.claims(), after.claims())
        for pool, listing in sorted(sight.listings.items()):
            unclaimed = [
                found
                for found in listing.objects
                if not any(claims.include(pool, found.name, found.backend_id) for claims in claimed)
            ]
            if unclaimed:
                self._confirm(pool, unclaimed)
        return self.findings

    def _confirm(self, pool: str, unclaimed: list[StoredObject]) -> None:
        """Look again: an object that was on its way, in or out, is gone by now or belongs to something."""
        still = list_pool(self.backend, pool).by_name
        records = Records.read(self.store)
        claims, namesakes = records.claims(), _namesakes(records)
        strangers: list[StoredObject] = []
        for found in unclaimed:
            if found.name not in still or claims.include(pool, found.name, found.backend_id):
                continue
            if (volume := namesakes.get(found.name)) is not None:
                if was_at_rest(volume, records, records) and not self._is_recent(volume.id):
                    self._add_namesake(pool, found, volume)
            elif found.backend_id is None:
                strangers.append(found)
            elif not self._is_recent(found.backend_id):
                self._unclaimed(pool, found, found.backend_id)
        self._foreign(pool, strangers)

    def _is_recent(self, backend_id: str) -> bool:
        """Say whether a migration that could have to do with the object goes on, or has only just ended."""
        with self.store.reading() as view:
            now = view.now()
            involved = [
                *view.list_migrations(MigrationQuery(destination_id=backend_id)),
                *view.list_migrations(MigrationQuery(volume_id=backend_id, limit=1)),
            ]
        grace = timedelta(seconds=self.grace_seconds)
        return any(
            not migration.phase.is_final or migration.finished_at is None or migration.finished_at + grace > now
            for migration in involved
        )

    def _unclaimed(self, pool: str, found: StoredObject, backend_id: str) -> None:
        with self.store.reading() as view:
            makers = made_by(view, pool, backend_id)
        if not makers:
            self._add_unknown(pool, found)
            return
        maker = makers[0]
        said = (
            f"Migration {maker.id} of volume {maker.volume_id} made it, and has ended in phase {maker.phase.value} "
            "without it."
        )
        words, safe = self._adopt(pool, found.name), False
        try:
            prove(self.store, self.backends, pool, found.name, backend_id, grace_seconds=self.grace_seconds)
        except IsVolume as refusal:
            said += f" It is not deleted: {refusal}."
            words = ("volume", "show", maker.volume_id)
        except Refused as refusal:
            said += f" It is not deleted: {refusal}. {self._adoption}"
        except errors.VolmigError as error:
            said += f" It is not deleted, since nobody can tell whether it is the only copy: {error.message}"
        else:
            said += f" Volume {maker.volume_id} is whole at its own place, so that this can be deleted."
            words, safe = ("doctor", "--fix", "--volume", maker.volume_id), True
        self.findings.append(
            Finding(
                code=Code.LEFTOVER_COPY,
                what=found.name,
                places=(pool,),
                explanation=said,
                words=words,
                safe=safe,
                volume_id=maker.volume_id,
                migration_id=maker.id,
                facts=(backend_id,),
            )
        )

    def _add_namesake(self, pool: str, found: StoredObject, volume: Volume) -> None:
        self.findings.append(
            Finding(
                code=Code.UNKNOWN_OBJECT,
                what=found.name,
                places=(pool,),
                explanation=f"It has {found.size_bytes} bytes, and the name of volume {volume.id}, which is recorded "
                f"in {volume.host}. Either it is another copy, or both backends reach the same storage and it is the "
                "volume itself; so it is never deleted. Compare both before you touch either.",
                words=("volume", "show", volume.id),
                volume_id=volume.id,
            )
        )

    def _add_unknown(self, pool: str, found: StoredObject) -> None:
        self.findings.append(
            Finding(
                code=Code.UNKNOWN_OBJECT,
                what=found.name,
                places=(pool,),
                explanation=f"It has {found.size_bytes} bytes and a name as volmig gives it, but no volume, migration "
                "or old storage on record has that name. It may be the only copy of something, so it is never deleted. "
                f"{self._adoption}",
                words=self._adopt(pool, found.name),
            )
        )

    def _foreign(self, pool: str, strangers: list[StoredObject]) -> None:
        if len(strangers) > _MOST_FOREIGN:
            first = strangers[0].name
            self._add_foreign(pool, f"{len(strangers)} objects", f"{first} is one of them. Each", first)
            return
        for found in strangers:
            self._add_foreign(pool, found.name, f"It has {found.size_bytes} bytes, and", found.name)

    def _add_foreign(self, pool: str, what: str, begin: str, name: str) -> None:
        self.findings.append(
            Finding(
                code=Code.FOREIGN_OBJECT,
                what=what,
                places=(pool,),
                explanation=f"{begin} has none of the names that volmig gives; most likely it is somebody else's. It "
                f"may be the only copy of something, and is never deleted. {self._adoption}",
                words=self._adopt(pool, name),
            )
        )

    @property
    def _adoption(self) -> str:
        if self.backend.can(Capability.MANAGE):
            return "The command makes it a volume of its own, which can be looked at, and be deleted."
        return "Its backend cannot make it a volume; look at it in the storage itself."

    def _adopt(self, pool: str, name: str) -> tuple[str, ...]:
        if not self.backend.can(Capability.MANAGE):
            return ("backend", "show", self.backend.name)
        # A name could be taken for an option.
        return ("volume", "manage", "--host", pool, *(("--",) if name.startswith("-") else ()), name)


def was_at_rest(volume: Volume, before: Records, after: Records) -> bool:
    """Say whether a volume was left alone in two readings of the store and between them."""
    earlier = before.volumes.get(volume.id)
    return (
        earlier is not None
        and earlier.version == volume.version
        and before.is_at_rest(earlier)
        and after.is_at_rest(volume)
    )


def _namesakes(records: Records) -> Mapping[str, Volume]:
    """Return the volumes by all names that their objects have, or could have, in whatever pool."""
    found: dict[str, Volume] = {}
    for volume in records.volumes.values():
        for name in (volume.provider_id, volume.backend_name, f"volume-{volume.id}"):
            if name:
                found[name] = volume
    return found
