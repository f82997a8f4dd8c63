"""Measure the store, empty-ish and full: does it stay fast with 10,000 volumes?

    python benchmarks/store.py            # a table
    python benchmarks/store.py --json     # the same, for programs

The files are made in a temporary directory; --directory chooses the disk to measure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from volmig.model import EntryKind, JournalEntry, Method, Migration, Phase, Volume
from volmig.store import MigrationQuery, VolumeQuery
from volmig.store.sql import SqlStore

POOL = "host@fast#pool"
OTHER_POOL = "host@slow#pool"
PAGE = 100
CHUNK = 500
UNDER_WAY = 10
ACTIVE = frozenset(phase for phase in Phase if not phase.is_final)

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How full a store is."""

    volumes: int
    migrations: int


SMALL = Size(volumes=100, migrations=10)
LARGE = Size(volumes=10_000, migrations=1_000)


def fill(store: SqlStore, size: Size) -> None:
    """Record volumes of which every 20th is on another host, and migrations of which 10 are under way."""
    for start in range(0, size.volumes, CHUNK):
        with store.writing() as writer:
            for number in range(start, min(start + CHUNK, size.volumes)):
                host = POOL if number % 20 else "other@backend#pool"
                writer.add_volume(Volume(id=str(uuid.uuid4()), name=f"volume {number}", size_bytes=1 << 30, host=host))
    for start in range(0, size.migrations, CHUNK):
        with store.writing() as writer:
            for number in range(start, min(start + CHUNK, size.migrations)):
                phase = Phase.QUEUED if number < UNDER_WAY else Phase.SUCCESS
                migration = writer.add_migration(new_migration(phase=phase))
                for _ in range(10):
                    writer.append_journal(note(migration))


def new_migration(*, phase: Phase = Phase.QUEUED) -> Migration:
    """Return a migration with ids of its own."""
    volume_id, destination_id = str(uuid.uuid4()), str(uuid.uuid4())
    return Migration(
        id=str(uuid.uuid4()),
        volume_id=volume_id,
        source=POOL,
        destination=OTHER_POOL,
        destination_id=destination_id,
        method=Method.BLOCK,
        phase=phase,
    )


def note(migration: Migration) -> JournalEntry:
    """Return a journal entry of usual size."""
    return JournalEntry(
        migration_id=migration.id,
        kind=EntryKind.INTENT,
        subject="create_destination",
        actor="benchmark",
        data={"id": migration.destination_id, "host": migration.destination},
    )


def measures(store: SqlStore, size: Size) -> dict[str, Work]:
    """Return what is measured, by name."""
    with store.reading() as reader:
        everything = reader.list_volumes()
        deep = everything[max(0, len(everything) - PAGE - 1)].id
    names = iter(range(10**9))
    with store.writing() as writer:
        running = writer.claim_migration(writer.add_migration(new_migration()).id, owner="me", lease_seconds=86400)

    def listing(query: VolumeQuery) -> Work:
        def work() -> None:
            with store.reading() as reader:
                reader.list_volumes(query)

        return work

    def by_name() -> None:
        with store.reading() as reader:
            (_,) = reader.list_volumes(VolumeQuery(name=f"volume {next(names) % size.volumes}"))

    def active() -> None:
        with store.reading() as reader:
            reader.list_migrations(MigrationQuery(phases=ACTIVE, limit=PAGE))

    def journal() -> None:
        with store.reading() as reader:
            reader.read_journal(running.id)

    def claim() -> None:
        with store.writing() as writer:
            writer.claim_migration(writer.add_migration(new_migration()).id, owner="me", lease_seconds=60)

    def progress() -> None:
        with store.writing() as writer:
            writer.update_migration(running, bytes_done=next(names))

    def renew() -> None:
        with store.writing() as writer:
            writer.renew_lease(running, lease_seconds=86400)

    return {
        "list volumes, first page": listing(VolumeQuery(limit=PAGE)),
        "list volumes, last page": listing(VolumeQuery(limit=PAGE, marker=deep)),
        "list volumes of a host": listing(VolumeQuery(host="other", limit=5)),
        "get volume by name": by_name,
        "list active migrations": active,
        "read journal": journal,
        "add and claim migration (commit)": claim,
        "update migration (commit)": progress,
        "renew lease (commit)": renew,
        "one whole migration (12 commits)": lambda: whole_migration(store),
    }


def whole_migration(store: SqlStore) -> None:
    """Make the records of one migration, as many commits as a run of it makes."""
    with store.writing() as writer:
        migration = writer.add_migration(new_migration())
    with store.writing() as writer:
        migration = writer.claim_migration(migration.id, owner="me", lease_seconds=60)
    for phase in (Phase.STARTING, Phase.MIGRATING, Phase.COMPLETING, Phase.SUCCESS):
        with store.writing() as writer:
            migration = writer.update_migration(migration, phase=phase)
            writer.append_journal(note(migration))
    for _ in range(6):
        with store.writing() as writer:
            migration = writer.update_migration(migration, bytes_done=migration.bytes_done + 1)
            writer.append_journal(note(migration))


def median_milliseconds(work: Work, repeats: int) -> float:
    """Return the median time that *work* takes, after a run that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def measure(directory: Path, size: Size, repeats: int) -> dict[str, float]:
    """Make a store of *size* and return the median times in milliseconds, by name."""
    store = SqlStore(f"sqlite:///{directory}/{size.volumes}.db")
    try:
        fill(store, size)
        return {name: median_milliseconds(work, repeats) for name, work in measures(store, size).items()}
    finally:
        store.close()


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=100, help="runs of each measure (default: %(default)s)")
    parser.add_argument("--directory", help="where to make the files (default: the system's temporary directory)")
    parser.add_argument("--json", action="store_true", help="print JSON: milliseconds by measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        small = measure(Path(directory), SMALL, arguments.repeats)
        large = measure(Path(directory), LARGE, arguments.repeats)
    result = {
        name: {"small_ms": small[name], "large_ms": large[name], "ratio": large[name] / small[name]} for name in small
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'median milliseconds':36}{SMALL.volumes:>10,}{LARGE.volumes:>10,}{'ratio':>8}")
    for name, values in result.items():
        print(f"{name:36}{values['small_ms']:>10.3f}{values['large_ms']:>10.3f}{values['ratio']:>8.2f}")


if __name__ == "__main__":
    main()
