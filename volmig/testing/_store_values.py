"""Values, and ways to record them, that the suite for stores uses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final
from uuid import uuid4

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from volmig.model import (
    Attachment,
    EntryKind,
    JournalEntry,
    Method,
    Migration,
    MigrationStatus,
    Phase,
    RetiredObject,
    Snapshot,
    Volume,
    VolumeStatus,
)
from volmig.store import Store

POOL: Final = "host1@fast#pool1"
OTHER_POOL: Final = "host2@slow#pool2"
START: Final = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
LEASE_SECONDS: Final = 60.0


class ManualClock:
    """A clock that only moves when told to; call it for the time."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start

    def __call__(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self._now += timedelta(seconds=seconds)


def make_volume(**values: Any) -> Volume:
    """Return a volume with an id of its own, as it is before it is recorded."""
    given_values: dict[str, Any] = {"id": str(uuid4()), "name": "data", "size_bytes": 1 << 30, "host": POOL} | values
    return Volume(**given_values)


def make_migration(**values: Any) -> Migration:
    """Return a migration with ids of its own, as it is before it is recorded."""
    given_values: dict[str, Any] = {
        "id": str(uuid4()),
        "volume_id": str(uuid4()),
        "source": POOL,
        "destination": OTHER_POOL,
        "destination_id": str(uuid4()),
        "method": Method.BLOCK,
    } | values
    return Migration(**given_values)


def make_retired(**values: Any) -> RetiredObject:
    """Return a retired object with ids of its own."""
    given_values: dict[str, Any] = {
        "id": str(uuid4()),
        "migration_id": str(uuid4()),
        "volume_id": str(uuid4()),
        "host": POOL,
        "name_id": str(uuid4()),
        "size_bytes": 1 << 30,
    } | values
    return RetiredObject(**given_values)


def add_volume(store: Store, **values: Any) -> Volume:
    """Record a new volume in a transaction of its own."""
    with store.writing() as writer:
        return writer.add_volume(make_volume(**values))


def add_migration(store: Store, **values: Any) -> Migration:
    """Record a new migration in a transaction of its own."""
    with store.writing() as writer:
        return writer.add_migration(make_migration(**values))


def read_volume(store: Store, volume_id: str) -> Volume:
    """Return a volume, read in a transaction of its own."""
    with store.reading() as reader:
        return reader.get_volume(volume_id)


def read_migration(store: Store, migration_id: str) -> Migration:
    """Return a migration, read in a transaction of its own."""
    with store.reading() as reader:
        return reader.get_migration(migration_id)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Call *work* with 0 to *count* - 1 in as many threads, all at once, and return the results."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait(timeout=30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


# --- values for the round trips -------------------------------------------------------------------

# NUL and lone surrogates are no text to some databases, and refused by all stores.
_CHARACTERS: Final = st.characters(codec="utf-8", exclude_characters="\0")
TEXT: Final = st.text(_CHARACTERS, max_size=30)
_MAYBE_TEXT: Final = st.none() | TEXT
_BYTES: Final = st.integers(0, 2**63 - 1)
_TIMES: Final = st.none() | st.datetimes(
    min_value=datetime(1990, 1, 1),
    max_value=datetime(2100, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30)), timezone(timedelta(hours=14))]),
)
_NUMBERS: Final = st.floats(0, 1e18, allow_nan=False, allow_infinity=False)
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
VOLUMES: Final = st.builds(
    Volume,
    id=st.uuids().map(str),
    name=TEXT,
    size_bytes=_BYTES,
    host=TEXT,
    status=st.sampled_from(VolumeStatus),
    migration_status=st.sampled_from(MigrationStatus),
    name_id=_MAYBE_TEXT,
    provider_location=_MAYBE_TEXT,
    provider_id=_MAYBE_TEXT,
    format=TEXT,
    volume_type=_MAYBE_TEXT,
    project_id=_MAYBE_TEXT,
    metadata=st.dictionaries(TEXT, TEXT, max_size=3),
    attachments=st.lists(st.builds(Attachment, id=TEXT, instance=TEXT, mountpoint=TEXT), max_size=2).map(tuple),
    snapshots=st.lists(st.builds(Snapshot, id=TEXT, name=TEXT), max_size=2).map(tuple),
    operation=st.dictionaries(TEXT, JSON, max_size=3),
    migration_id=_MAYBE_TEXT,
    status_reason=TEXT,
)
MIGRATIONS: Final = st.builds(
    Migration,
    id=st.uuids().map(str),
    volume_id=TEXT,
    source=TEXT,
    destination=TEXT,
    destination_id=TEXT,
    method=st.sampled_from(Method),
    phase=st.sampled_from(Phase),
    force_host_copy=st.booleans(),
    lock_volume=st.booleans(),
    engine=TEXT,
    verify=TEXT,
    bandwidth_limit_bytes=_BYTES,
    stage=TEXT,
    bytes_total=_BYTES,
    bytes_done=_BYTES,
    rate_bytes=_NUMBERS,
    eta_seconds=st.none() | _NUMBERS,
    digest_algorithm=TEXT,
    source_digest=TEXT,
    destination_digest=TEXT,
    error_code=TEXT,
    error_message=TEXT,
    error_hint=TEXT,
    requested_by=TEXT,
    cancel_requested_by=TEXT,
    pause_requested_by=TEXT,
    source_retention_seconds=_BYTES,
    rolls_back=TEXT,
    owner=TEXT,
    lease_expires_at=_TIMES,
    started_at=_TIMES,
    finished_at=_TIMES,
)
# The fixture is shared by the examples on purpose, and the suite is run by several classes.
ROUND_TRIP: Final = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)

_PATHS: Final[Mapping[Phase, tuple[Phase, ...]]] = {
    Phase.QUEUED: (),
    Phase.STARTING: (Phase.STARTING,),
    Phase.MIGRATING: (Phase.STARTING, Phase.MIGRATING),
    Phase.PAUSED: (Phase.STARTING, Phase.MIGRATING, Phase.PAUSED),
    Phase.COMPLETING: (Phase.STARTING, Phase.MIGRATING, Phase.COMPLETING),
    Phase.SUCCESS: (Phase.STARTING, Phase.MIGRATING, Phase.COMPLETING, Phase.SUCCESS),
    Phase.CANCELLING: (Phase.CANCELLING,),
    Phase.CANCELLED: (Phase.CANCELLING, Phase.CANCELLED),
    Phase.ROLLING_BACK: (Phase.ROLLING_BACK,),
    Phase.ERROR: (Phase.ROLLING_BACK, Phase.ERROR),
}
"""A way from ``queued`` to each phase."""


def migration_in(store: Store, phase: Phase) -> Migration:
    """Record a migration and lead it to *phase*."""
    migration = add_migration(store)
    for following in _PATHS[phase]:
        with store.writing() as writer:
            migration = writer.update_migration(migration, phase=following)
    return migration


def make_note(migration_id: str) -> JournalEntry:
    """Return a journal entry for a migration."""
    return JournalEntry(migration_id=migration_id, kind=EntryKind.NOTE, subject="test", actor="test")


def another_value(value: Any, name: str) -> Any:
    """Return a value of the kind that the field *name*, which holds *value*, takes."""
    if name.endswith("_at"):
        return START + timedelta(microseconds=1)
    if name == "eta_seconds":
        return 2.5
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value} changed"


def claimed_migration(store: Store, migration: Migration | None = None) -> Migration:
    """Let ``worker`` claim *migration*, or a new one."""
    migration = migration or add_migration(store)
    with store.writing() as writer:
        return writer.claim_migration(migration.id, owner="worker", lease_seconds=LEASE_SECONDS)
