"""One examination: the records, the storage, and the records again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from volmig.doctor.findings import Finding, Report
from volmig.doctor.record_checks import check_helpers, check_records
from volmig.doctor.records import Records
from volmig.doctor.storage import Sight, look
from volmig.doctor.storage_checks import BackendExam, check_hanging, check_places
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.parallel import for_each
from volmig.model import Volume
from volmig.store import MigrationQuery, Store

GRACE_SECONDS: Final = 60.0
"""How long something must have been left alone before it counts as left over, unless the caller says otherwise."""


def examine(
    store: Store,
    backends: Backends,
    *,
    backend: str | None = None,
    volume_id: str | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> Report:
    """Compare store, backends, processes and leases, and return what does not agree. Nothing is changed.

    Migrations and other requests may go on meanwhile: what they are at work on is no finding. A backend is asked with
    one call for each of its pools, and about each volume that is in doubt; all backends are asked at the same time.

    :param backend: examine only this backend, by name; None for all.
    :param volume_id: tell only what has to do with this volume.
    :param grace_seconds: how long something must have been without anybody who looks after it.
    :raises volmig.errors.BackendNotFound: when there is no such backend.
    :raises volmig.errors.VolumeNotFound: when there is no such volume.
    """
    asked = list(backends) if backend is None else [backends.get(backend)]
    if volume_id is not None:
        asked = _of_volume(store, asked, volume_id)
    before = Records.read(store)
    sights: dict[str, Sight] = {}
    for_each(asked, lambda each: sights.update({each.name: look(each)}), name="doctor")
    after = Records.read(store)
    exams = [
        BackendExam(store=store, backends=backends, backend=each, sight=sights[each.name], grace_seconds=grace_seconds)
        for each in asked
    ]
    for_each(exams, lambda exam: exam.compare(before, after), name="doctor")
    findings = _of_records(store, backends, (before, after), grace_seconds=grace_seconds)
    findings.extend(finding for each in asked for finding in check_hanging(each))
    findings.extend(_unchanged(store, exams))
    if backend is not None:
        address = f"{backends.host}@{backend}"
        findings = [each for each in findings if _is_in(address, each)]
    if volume_id is not None:
        findings = [each for each in findings if each.volume_id == volume_id]
    return Report(
        findings=tuple(sorted({each.key: each for each in findings}.values(), key=lambda each: each.order)),
        volumes=len(after.volumes),
        objects=sum(len(listing.objects) for sight in sights.values() for listing in sight.listings.values()),
        backends=len(asked),
    )


def _of_volume(store: Store, asked: list[Backend], volume_id: str) -> list[Backend]:
    """Return the backends that could have something of a volume."""
    with store.reading() as view:
        places = {view.get_volume(volume_id).host}
        for migration in view.list_migrations(MigrationQuery(volume_id=volume_id)):
            places |= {migration.source, migration.destination}
        places |= {retired.host for retired in view.list_retired(volume_id=volume_id)}
    addresses = {place.partition("#")[0] for place in places}
    return [each for each in asked if f"{each.host}@{each.name}" in addresses]


def _of_records(
    store: Store, backends: Backends, readings: tuple[Records, Records], *, grace_seconds: float
) -> list[Finding]:
    """Return what both readings show: what one alone shows may have been on its way."""
    before, after = (
        {each.key: each for each in check_records(records, host=backends.host, grace_seconds=grace_seconds)}
        for records in readings
    )
    findings = [finding for key, finding in after.items() if key in before]
    findings.extend(check_places(readings[1], backends))
    findings.extend(check_helpers(store, readings[1], host=backends.host))
    return findings


def _unchanged(store: Store, exams: Iterable[BackendExam]) -> Iterable[Finding]:
    """Yield what was found in storage, without what rests on a volume that was changed since it was read."""
    about: dict[str, Volume] = {}
    for exam in exams:
        about |= exam.about
    present = {volume.id: volume.version for volume in Records.read(store).volumes.values()} if about else {}
    for exam in exams:
        for finding in exam.findings:
            volume = about.get(finding.what)
            if volume is None or present.get(volume.id) == volume.version:
                yield finding


def _is_in(address: str, finding: Finding) -> bool:
    return any(place == address or place.startswith(f"{address}#") for place in finding.places)
