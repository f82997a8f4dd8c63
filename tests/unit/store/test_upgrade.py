"""A database of the first schema, with work under way in it, becomes one of the present schema."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.model import EntryKind, Method, Phase, VolumeStatus
from volmig.store import MigrationQuery, schema
from volmig.store.sql import SqlStore

DUMP = Path(__file__).with_name("database_0001.sql")
"""Written by the volmig of that time."""

ADDED = {
    "migrations": {"pause_requested_by": "", "source_retention_seconds": 0, "rolls_back": ""},
    "volumes": {"operation": "{}"},
    # Due, so that a call that deletes it may be under way.
    "retired": {"deletion_begun_at": 1795176000313456},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of the first schema."""
    path = tmp_path / "volmig.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(DUMP.read_text())
    return path


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    """The database, upgraded."""
    store = SqlStore(f"sqlite:///{path}", clock=lambda: datetime(2026, 11, 21, tzinfo=UTC))
    yield store
    store.close()


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


ROWS = {
    "volumes": "SELECT * FROM volumes ORDER BY id",
    "migrations": "SELECT * FROM migrations ORDER BY id",
    "journal": "SELECT * FROM journal ORDER BY migration_id, sequence",
    "retired": "SELECT * FROM retired ORDER BY id",
    "pools": "SELECT * FROM pools ORDER BY address",
    "reservations": "SELECT * FROM reservations ORDER BY id",
    "backends": "SELECT * FROM backends ORDER BY address",
}


def records(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of the tables of the first schema, as SQLite itself sees them."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return {table: [dict(row) for row in connection.execute(sql)] for table, sql in ROWS.items()}


def objects(path: Path) -> set[tuple[str, ...]]:
    found = query(path, "SELECT type, name, sql FROM sqlite_master")
    return {(kind, name, *sorted(re.sub(r"[\s()]", "", sql or "").split(","))) for kind, name, sql in found}


def revision(path: Path) -> str:
    ((found,),) = query(path, "SELECT version_num FROM alembic_version")
    return str(found)


def open_and_close(path: Path) -> None:
    SqlStore(f"sqlite:///{path}").close()


def test_no_record_is_lost_or_changed(path: Path) -> None:
    assert revision(path) == "0001"
    before = records(path)
    assert all(before.values())
    for table, values in ADDED.items():
        before[table] = [row | values for row in before[table]]
    open_and_close(path)
    assert revision(path) == schema.HEAD
    assert records(path) == before
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert query(path, "PRAGMA foreign_key_check") == []


def test_schema_is_that_of_a_new_database(path: Path, tmp_path: Path) -> None:
    open_and_close(path)
    open_and_close(tmp_path / "new.db")
    assert objects(path) == objects(tmp_path / "new.db")


def test_volumes_are_as_they_were(store: SqlStore) -> None:
    with store.reading() as reader:
        volumes = {volume.id: volume for volume in reader.list_volumes()}
        assert len(volumes) == 5
        assert all(volume.operation == {} for volume in volumes.values())
        assert volumes["volume-resting"].name == "データ"
        assert volumes["volume-resting"].snapshots[0].name == "monday"
        assert volumes["volume-used"].attachments[0].mountpoint == "/dev/vdb"
        assert volumes["volume-extending"].status is VolumeStatus.EXTENDING
        assert volumes["volume-moving"].migration_id == "moving"
        assert reader.get_storage_identity("host1@fast") == "storage 1"
        assert [(item.id, item.attempts) for item in reader.list_retired(volume_id="volume-moved")] == [
            ("retired-1", 2)
        ]


def test_migrations_are_as_they_were(store: SqlStore) -> None:
    with store.reading() as reader:
        migrations = {item.id: item for item in reader.list_migrations()}
        assert {item.id: item.phase for item in migrations.values()} == {
            "done": Phase.SUCCESS,
            "moving": Phase.MIGRATING,
            "waiting": Phase.QUEUED,
            "cancelling": Phase.CANCELLING,
        }
        for migration in migrations.values():
            assert migration.method is Method.BLOCK
            assert (migration.pause_requested_by, migration.source_retention_seconds, migration.rolls_back) == (
                "",
                0,
                "",
            )
        assert (migrations["moving"].owner, migrations["moving"].epoch) == ("host1:77", 1)
        assert list(reader.list_checkpoints()) == []
        journal = reader.read_journal("moving")
    assert [entry.sequence for entry in journal] == [1, 2, 3, 4]
    assert journal[-1].kind is EntryKind.INTENT
    assert journal[1].data == {"n": [1, None, "é"]}


def test_work_goes_on(store: SqlStore) -> None:
    with store.writing() as writer:
        taken = writer.claim_migration("moving", owner="host1:99", lease_seconds=60)
        assert (taken.epoch, taken.bytes_done) == (2, 1 << 30)
        writer.save_checkpoint(taken, b"so far")
        writer.request_pause("moving", requested_by="ann")
        writer.update_migration(taken, phase=Phase.PAUSED, owner="", lease_expires_at=None)
        assert writer.request_pause("waiting", requested_by="ann").phase is Phase.PAUSED
        assert writer.get_migration("cancelling").cancel_requested_by == "bob"
        writer.release("moving")
        (retired,) = writer.list_retired(migration_id="done")
        writer.schedule_retired(retired.id, delete_after=writer.now())
        extending = writer.get_volume("volume-extending")
        writer.update_volume(extending, operation={"name": "extend"})
    with store.reading() as reader:
        assert reader.get_migration("moving").pause_requested_by == "ann"
        assert reader.load_checkpoint("moving") == b"so far"
        assert reader.get_volume("volume-extending").operation == {"name": "extend"}
        assert [item.id for item in reader.list_migrations(MigrationQuery(destination_id="destination-done"))] == [
            "done"
        ]
        assert reader.count_releases("host2@slow#pool2") == 2


@pytest.mark.parametrize("steps", range(1, 5))
def test_upgrade_goes_on_where_another_was_killed(path: Path, tmp_path: Path, steps: int) -> None:
    # As on MariaDB, which commits each of these by itself.
    done = [
        "ALTER TABLE migrations ADD COLUMN pause_requested_by VARCHAR(255) DEFAULT '' NOT NULL",
        "ALTER TABLE volumes ADD COLUMN operation JSON DEFAULT ('{}') NOT NULL",
        "CREATE INDEX ix_migrations_destination ON migrations (destination_id)",
        "CREATE TABLE checkpoints (migration_id VARCHAR(255) NOT NULL, epoch BIGINT NOT NULL, data BLOB NOT NULL, "
        "updated_at BIGINT NOT NULL, PRIMARY KEY (migration_id), "
        "CONSTRAINT fk_checkpoints_migration FOREIGN KEY(migration_id) REFERENCES migrations (id))",
    ]
    for statement in done[:steps]:
        query(path, statement)
    open_and_close(path)
    open_and_close(tmp_path / "new.db")
    assert objects(path) == objects(tmp_path / "new.db")
    assert revision(path) == schema.HEAD


DIE_LATE = """
import os, sys
from volmig.store import upgrade
from volmig.store.sql import SqlStore
run_scripts = upgrade._run_scripts
def die_late(connection):
    run_scripts(connection)
    os._exit(9)
upgrade._run_scripts = die_late
SqlStore(f"sqlite:///{sys.argv[1]}")
"""


def test_killed_upgrade_leaves_the_old_schema(path: Path) -> None:
    before = (objects(path), records(path))
    command = [sys.executable, "-c", DIE_LATE, str(path)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 9
    assert revision(path) == "0001"
    assert (objects(path), records(path)) == before
    open_and_close(path)
    assert revision(path) == schema.HEAD


OPEN_AT_ONCE = """
import sys, time
from volmig.store.sql import SqlStore
time.sleep(max(0, float(sys.argv[2]) - time.time()))
store = SqlStore(f"sqlite:///{sys.argv[1]}")
with store.writing() as writer:
    assert len(writer.list_migrations()) == 4
    assert writer.list_checkpoints() == []
store.close()
"""


def test_processes_upgrade_at_once(path: Path) -> None:
    start = str(time.time() + 1)
    workers = [subprocess.Popen([sys.executable, "-c", OPEN_AT_ONCE, str(path), start]) for _ in range(3)]
    assert [worker.wait(timeout=60) for worker in workers] == [0] * 3
    assert revision(path) == schema.HEAD


def test_volmig_of_the_first_schema_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_and_close(path)
    monkeypatch.setattr(schema, "REVISIONS", ("0001",))
    monkeypatch.setattr(schema, "HEAD", "0001")
    with pytest.raises(errors.DatabaseTooNew) as caught:
        open_and_close(path)
    assert caught.value.fields["found"] == "0002"
