"""Comparing the records with what one backend has told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from volmig import errors
from volmig.doctor.export_checks import ExportExam
from volmig.doctor.findings import Code, Finding
from volmig.doctor.object_checks import ObjectExam, was_at_rest
from volmig.doctor.record_checks import RECOVER
from volmig.doctor.records import Records
from volmig.doctor.storage import Sight, reason_of
from volmig.drivers.base import StoredObject
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.doubts import unsettled_doubt
from volmig.migration.driver_calls import DriverCalls
from volmig.model import Migration, Volume, VolumeStatus
from volmig.store import MigrationQuery, Store

_OF_STORE = (errors.StoreBusy, errors.StoreUnreachable, errors.StoreConflict, errors.ConfigurationError)
"""Errors that say nothing of a backend."""

_OUT_OF_SERVICE = "It is out of service, so that what is in it could not be examined: "


@dataclass(kw_only=True)
class BackendExam:
    """The examination of one backend, in two steps: what it tells at once, and what is asked about doubts then.

    A volume counts only when its record was the same before and after it was looked for, with nothing at work on it.
    """

    store: Store
    backends: Backends
    backend: Backend
    sight: Sight
    grace_seconds: float
    findings: list[Finding] = field(default_factory=list)
    about: dict[str, Volume] = field(default_factory=dict)
    """Volumes that findings rest on, as they were then; by id."""

    def compare(self, before: Records, after: Records) -> None:
        """Compare, and ask the backend about what is in doubt."""
        sight = self.sight
        if sight.down:
            self._add_down(sight.address, sight.down)
            return
        if not sight.lists:
            self._add_unlisted()
        for pool, reason in sorted(sight.pools_down.items()):
            self._add_down(pool, reason)
        try:
            self._volumes(before, after)
            exam = ObjectExam(
                store=self.store, backends=self.backends, backend=self.backend, grace_seconds=self.grace_seconds
            )
            self.findings += exam.find(sight, before, after)
            self._exports()
        except _OF_STORE:
            raise
        except errors.VolmigError as error:
            self._add_down(sight.address, reason_of(error))

    def _exports(self) -> None:
        sight = self.sight
        exam = ExportExam(store=self.store, backend=self.backend, grace_seconds=self.grace_seconds)
        try:
            if not sight.exports_down:
                self.findings += exam.find(sight.exports)
        except _OF_STORE:
            raise
        except errors.VolmigError as error:
            sight.exports_down = reason_of(error)
        if sight.exports_down:
            self._add_down(
                f"exports of {sight.address}",
                sight.exports_down,
                "They cannot be listed, so that those are not found which nobody needs: ",
            )

    # --- volumes ------------------------------------------------------------------------------

    def _volumes(self, before: Records, after: Records) -> None:
        homeless: dict[str, int] = {}
        for volume in after.volumes.values():
            if not volume.host.startswith(f"{self.sight.address}#"):
                continue
            if volume.host not in self.sight.pools:
                homeless[volume.host] = homeless.get(volume.host, 0) + 1
                continue
            listing = self.sight.listings.get(volume.host)
            if volume.status is VolumeStatus.ERROR:
                self._in_error(after, volume)
            elif not was_at_rest(volume, before, after) or volume.host in self.sight.pools_down:
                continue
            elif listing is not None and (found := listing.find(volume)) is not None:
                if found.size_bytes != self.backend.stored_size(volume):
                    self._add_size(volume, found)
            else:
                self._ask_for(volume)
        for pool, count in sorted(homeless.items()):
            self._add_homeless(pool, count)

    def _ask_for(self, volume: Volume) -> None:
        try:
            if self.backend.volume_exists(volume):
                return
        except errors.DriverFailed:
            # It may fail for each volume; so it is told once, of the backend.
            raise
        except errors.OperatorError as error:
            self._add(
                Code.VOLUME_UNUSABLE,
                volume,
                f"Its driver cannot use what is at its place: {error.message} {error.hint}".strip(),
                ("volume", "show", volume.id),
            )
            return
        self._add_missing(volume)

    def _add_missing(self, volume: Volume) -> None:
        name = volume.provider_id or volume.backend_name
        with self.store.reading() as view:
            last = next(iter(view.list_migrations(MigrationQuery(volume_id=volume.id, limit=1))), None)
            retired = view.list_retired(volume_id=volume.id)
        places = [volume.host]
        text = f"There is no {name} in {volume.host}, where the record says that it is. "
        if last is not None:
            places += [place for place in (last.source, last.destination) if place not in places]
            text += (
                f"Its last migration, {last.id}, from {last.source} to {last.destination}, ended in phase "
                f"{last.phase.value}; look there for volume-{last.destination_id} and volume-{volume.id} too. "
            )
        for each in retired:
            places += [each.host] if each.host not in places else []
            old = each.provider_id or f"volume-{each.name_id}"
            fate = "and is kept" if each.deletion_begun_at is None else "unless a deletion that was begun ends yet"
            text += f"Its old storage {old} is still in {each.host}, {fate}. "
        text += (
            "Find out who removed it, and put it back there. Only when it is lost for good, `volmig volume delete` "
            "forgets the volume" + (", and deletes its old storage with it: save that before." if retired else ".")
        )
        self._add(Code.VOLUME_MISSING, volume, text, ("volume", "show", volume.id), places=tuple(places))

    def _add_size(self, volume: Volume, found: StoredObject) -> None:
        text = f"It should have {volume.size_bytes} bytes, and {found.name} has {found.size_bytes}. "
        if found.size_bytes > volume.size_bytes:
            text += (
                "Somebody has enlarged it. If that was meant to be, the command records the size that it has; "
                "nothing of its data changes."
            )
            words: tuple[str, ...] = ("volume", "extend", volume.id, f"{found.size_bytes}B")
        else:
            text += "Its end is cut off: find out who did that, and restore it. It cannot be migrated as it is."
            words = ("volume", "show", volume.id)
        self._add(Code.SIZE_DIFFERS, volume, text, words)

    def _in_error(self, records: Records, volume: Volume) -> None:
        last = records.latest.get(volume.id)
        if volume.operation or volume.migration_id is not None:
            return
        if last is not None and last.error_code == errors.LocationDoubtful.code:
            with self.store.reading() as view:
                doubt = unsettled_doubt(view, volume.id)
                calls = DriverCalls.of(view.read_journal(last.id))
            if doubt is not None:
                self._add_doubt(volume, doubt, calls.running(self.backends.host))
                return
        listing = self.sight.listings.get(volume.host)
        found = listing.find(volume) if listing is not None else None
        text = f"{volume.status_reason or 'No reason is on record.'} "
        words: tuple[str, ...] = ("volume", "show", volume.id)
        if found is not None and found.size_bytes > volume.size_bytes:
            text += f"Its object has {found.size_bytes} bytes by now, which the command records."
            words = ("volume", "extend", volume.id, f"{found.size_bytes}B")
        elif found is not None:
            text += f"Its object is in {volume.host}, with {found.size_bytes} bytes. What failed can be tried again."
        elif listing is not None:
            text += f"There is no object of it in {volume.host}; `volmig volume delete` forgets it."
        self._add(Code.VOLUME_IN_ERROR, volume, text, words)

    def _add_doubt(self, volume: Volume, migration: Migration, running: Sequence[str]) -> None:
        there = replace(volume, host=migration.destination, provider_location=None, provider_id=None)
        places = [volume] if volume.host == migration.destination else [volume, there]
        seen: list[str] = []
        for place in places:
            try:
                answer = "is seen" if self.backends.of(place).volume_exists(place) else "is not seen"
            except errors.VolmigError as error:
                answer = f"cannot be told ({error.message})"
            seen.append(f"in {place.host} it {answer}")
        text = (
            f"{migration.error_message} Now, {' and '.join(seen)}. Nothing was deleted; look at both places before you "
        )
        text += "touch either. "
        if volume.status_reason != migration.error_message:
            text += f"Something else has gone wrong since, so that it is not freed by itself: {volume.status_reason}"
        elif running:
            text += (
                f"A call of its driver in {' and '.join(running)} may still be moving it. When that has ended, or its "
                "process is gone, the command frees a volume that is seen whole in just one of them."
            )
        else:
            text += "The command frees a volume that is seen whole in just one of them."
        self._add(
            Code.LOCATION_DOUBTFUL,
            volume,
            text,
            RECOVER,
            places=tuple(dict.fromkeys((migration.source, migration.destination))),
            migration_id=migration.id,
        )

    def _add_homeless(self, pool: str, count: int) -> None:
        known = ", ".join(sorted(self.sight.pools)) or "none"
        self.findings.append(
            Finding(
                code=Code.POOL_UNKNOWN,
                what=pool,
                places=(self.sight.address,),
                explanation=f"{_volumes(count)} recorded there, and the backend has no such pool; its pools: {known}. "
                "Configure that pool again.",
                words=("volume", "list", "--host", pool),
            )
        )

    # --- shared -------------------------------------------------------------------------------

    def _add(
        self,
        code: Code,
        volume: Volume,
        explanation: str,
        words: tuple[str, ...],
        *,
        places: tuple[str, ...] = (),
        migration_id: str = "",
    ) -> None:
        self.about[volume.id] = volume
        self.findings.append(
            Finding(
                code=code,
                what=volume.id,
                places=places or (volume.host,),
                explanation=explanation.strip(),
                words=words,
                volume_id=volume.id,
                migration_id=migration_id,
            )
        )

    def _add_down(self, what: str, reason: str, begin: str = _OUT_OF_SERVICE) -> None:
        self.findings.append(
            Finding(
                code=Code.BACKEND_DOWN,
                what=what,
                places=(what.rpartition(" ")[2],),
                explanation=f"{begin}{reason}",
                words=("backend", "show", self.backend.name),
            )
        )

    def _add_unlisted(self) -> None:
        self.findings.append(
            Finding(
                code=Code.BACKEND_UNLISTED,
                what=self.sight.address,
                places=(self.sight.address,),
                explanation="Its driver cannot list objects: each volume was looked for, but leftovers and wrong sizes "
                "are not found.",
                words=("backend", "show", self.backend.name),
            )
        )


def check_hanging(backend: Backend) -> Iterator[Finding]:
    """Yield the calls of a driver that this process has given up and that still run."""
    counts = backend.hanging_calls()
    if counts:
        which = ", ".join(f"{count} of {method}" for method, count in counts.items())
        address = f"{backend.host}@{backend.name}"
        yield Finding(
            code=Code.CALLS_HANGING,
            what=address,
            places=(address,),
            explanation=f"Calls of its driver did not end in their time, and still run in this process: {which}. Look "
            "at the storage; a restart of this process ends them.",
            words=("backend", "show", backend.name),
        )


def check_places(records: Records, backends: Backends) -> Iterator[Finding]:
    """Yield where volumes are recorded that are not examined here, since host or backend is not configured."""
    elsewhere: dict[str, int] = {}
    for volume in records.volumes.values():
        try:
            backends.of(volume)
        except errors.RequestError:
            place = volume.host.partition("#")[0]
            elsewhere[place] = elsewhere.get(place, 0) + 1
    for place, count in sorted(elsewhere.items()):
        yield Finding(
            code=Code.NOT_CONFIGURED,
            what=place,
            places=(place,),
            explanation=f"{_volumes(count)} recorded there. That host or backend is not configured here, so that they "
            "were not examined; examine them where it is.",
            words=("volume", "list", "--host", place),
        )


def _volumes(count: int) -> str:
    return "1 volume is" if count == 1 else f"{count} volumes are"
