"""What SQLite is asked to do for the store, seen on real files and processes."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from volmig import errors
from volmig.model import Method
from volmig.store import MigrationQuery, VolumeQuery, WriteTransaction
from volmig.store.sql import SqlStore
from volmig.testing.store_contract import add_migration, add_volume, make_volume


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "volmig.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    store = SqlStore(f"sqlite:///{path}")
    yield store
    store.close()


def run(code: str, *args: object, expect: int = 0) -> str:
    """Run *code* in a new Python process and return what it prints."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == expect, done.stderr
    return done.stdout


def volume_names(store: SqlStore) -> list[str]:
    with store.reading() as reader:
        return [volume.name for volume in reader.list_volumes()]


def fill(writer: WriteTransaction) -> None:
    for _ in range(200):
        writer.add_volume(make_volume(status_reason="x" * 1000))


def forbid_growth(store: SqlStore) -> None:
    """Make SQLite answer as on a full disk."""
    with store._database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


def volume_count(path: Path) -> int:
    store = SqlStore(f"sqlite:///{path}")
    try:
        with store.reading() as reader:
            return len(reader.list_volumes())
    finally:
        store.close()


# --- files ----------------------------------------------------------------------------------------


def test_records_outlive_the_store(path: Path) -> None:
    for _ in range(3):
        store = SqlStore(f"sqlite:///{path}")
        add_volume(store)
        store.close()
    assert volume_count(path) == 3


def test_file_is_for_its_owner_only(store: SqlStore, path: Path) -> None:
    add_volume(store)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_missing_directory_is_made_for_its_owner_only(tmp_path: Path) -> None:
    SqlStore(f"sqlite:///{tmp_path}/new/volmig.db").close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_missing_path_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(errors.DatabaseUnusable, match=r"no/such/volmig.db.*No such file"):
        SqlStore(f"sqlite:///{tmp_path}/no/such/volmig.db")
    assert list(tmp_path.iterdir()) == []


def test_relative_path_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqlStore("sqlite:///volmig.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    thread = threading.Thread(target=add_volume, args=(store,))
    with store.reading() as reader:
        assert list(reader.list_volumes()) == []
        # Needs a second connection, made after the change of directory.
        thread.start()
        thread.join(timeout=30)
    store.close()
    assert volume_count(tmp_path / "volmig.db") == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("content", [b"this is a text, and no database\n" * 100, os.urandom(8192)])
def test_file_that_is_no_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(errors.DatabaseUnusable, match=r"volmig\.db.*not a database"):
        SqlStore(f"sqlite:///{path}")
    assert path.read_bytes() == content


def test_damaged_pages(path: Path) -> None:
    store = SqlStore(f"sqlite:///{path}")
    for _ in range(50):
        add_volume(store)
    store.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    with pytest.raises(errors.DatabaseUnusable, match=r"volmig\.db"):
        volume_count(path)


def test_directory_in_place_of_the_file(path: Path) -> None:
    path.mkdir()
    with pytest.raises(errors.DatabaseUnusable, match="not a regular file"):
        SqlStore(f"sqlite:///{path}")


def test_directory_where_nothing_can_be_made() -> None:
    with pytest.raises(errors.DatabaseUnusable, match=r"/proc/volmig\.db"):
        SqlStore("sqlite:////proc/volmig.db")


@pytest.mark.parametrize("exists", [False, True])
def test_read_only_directory(exists: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "volmig.db")
        if exists:
            SqlStore(f"sqlite:///{path}").close()
            path.chmod(0o444)
        Path(directory).chmod(0o555)
        try:
            printed = run(OPEN_UNPRIVILEGED, path)
        finally:
            Path(directory).chmod(0o755)
    assert f"database-unusable The database {path} cannot be used" in printed


OPEN_UNPRIVILEGED = """
import os, sys
from volmig import errors
from volmig.store.sql import SqlStore
SqlStore("sqlite://").close()  # loads all that is needed, which may be unreadable afterwards
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    SqlStore(f"sqlite:///{sys.argv[1]}")
except errors.DatabaseUnusable as error:
    print(error.code, error)
"""


def test_full_disk(store: SqlStore) -> None:
    kept = add_volume(store)
    forbid_growth(store)
    with pytest.raises(errors.DiskFull, match=r"volmig\.db"), store.writing() as writer:
        fill(writer)
    assert volume_names(store) == [kept.name]


def test_swallowed_failure_commits_nothing(store: SqlStore) -> None:
    forbid_growth(store)

    def go_on_after_failure() -> None:
        with store.writing() as writer:
            writer.add_volume(make_volume(name="first"))
            with pytest.raises(errors.DiskFull):
                fill(writer)
            with pytest.raises(errors.DiskFull):
                writer.add_volume(make_volume(name="after"))

    with pytest.raises(errors.DiskFull):
        go_on_after_failure()
    assert volume_names(store) == []


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 7000)]
)
def test_settings_of_each_connection(path: Path, pragma: str, value: object) -> None:
    store = SqlStore(f"sqlite:///{path}", busy_timeout_seconds=7)
    engine = store._database.engine
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value
    store.close()


def test_writing_begins_with_the_lock_and_reading_without(store: SqlStore) -> None:
    begun: list[str] = []

    def note(conn: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("BEGIN"):
            begun.append(statement)

    sa.event.listen(store._database.engine, "before_cursor_execute", note)
    with store.reading():
        pass
    with store.writing():
        pass
    assert begun == ["BEGIN", "BEGIN IMMEDIATE"]


def test_ledger_cannot_be_bypassed(store: SqlStore) -> None:
    with (
        store._database.engine.connect() as connection,
        pytest.raises(sa.exc.IntegrityError, match="FOREIGN KEY"),
    ):
        connection.exec_driver_sql("INSERT INTO reservations VALUES ('r', 'nowhere', 1)")


def test_checkpoint_belongs_to_a_migration(store: SqlStore) -> None:
    with (
        store._database.engine.connect() as connection,
        pytest.raises(sa.exc.IntegrityError, match="FOREIGN KEY"),
    ):
        connection.exec_driver_sql("INSERT INTO checkpoints VALUES ('nothing', 1, x'00', 0)")


def test_full_disk_keeps_the_last_checkpoint(store: SqlStore) -> None:
    migration = add_migration(store)
    with store.writing() as writer:
        writer.save_checkpoint(migration, b"kept")
    forbid_growth(store)
    with pytest.raises(errors.DiskFull), store.writing() as writer:
        writer.save_checkpoint(migration, bytes(1 << 20))
    with store.reading() as reader:
        assert reader.load_checkpoint(migration.id) == b"kept"


def test_no_file_stays_open(path: Path) -> None:
    def open_files() -> list[str]:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [str(link.readlink()) for link in links if link.exists()]

    store = SqlStore(f"sqlite:///{path}")
    threads = [threading.Thread(target=volume_names, args=(store,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    with store.writing() as writer:
        writer.add_volume(make_volume())
        assert [name for name in open_files() if name == str(path)]
        # What is in use is closed as soon as it is no longer.
        store.close()
    assert not [name for name in open_files() if name.startswith(str(path))]
    for _ in range(3):
        with pytest.raises(errors.DatabaseUnusable):
            SqlStore(f"sqlite:///{path.parent}")
    assert not [name for name in open_files() if name.startswith(str(path.parent))]


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (VolumeQuery(limit=100), "ix_volumes_created"),
        (VolumeQuery(limit=100, marker="m"), "ix_volumes_created (created_at>?)"),
        (VolumeQuery(name="n"), "ix_volumes_name (name=?)"),
        (VolumeQuery(host="h@a"), "ix_volumes_host (host>? AND host<?)"),
        (VolumeQuery(host="h@a#p"), "ix_volumes_host (host=?)"),
        (VolumeQuery(project_id="p"), "ix_volumes_project (project_id=?)"),
    ],
)
def test_volumes_are_found_by_index(store: SqlStore, query: VolumeQuery, index: str) -> None:
    add_volume(store, id="m")
    assert index in plan_of(store, lambda: read(store, query))


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (MigrationQuery(limit=100), "ix_migrations_created"),
        (MigrationQuery(volume_id="v"), "ix_migrations_volume (volume_id=?)"),
        (MigrationQuery(destination_id="d"), "ix_migrations_destination (destination_id=?)"),
        (MigrationQuery(destination_id="d", method=Method.BLOCK, min_epoch=1), "ix_migrations_destination"),
    ],
)
def test_migrations_are_found_by_index(store: SqlStore, query: MigrationQuery, index: str) -> None:
    add_migration(store)
    assert index in plan_of(store, lambda: read(store, query))


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"migration_id": "m"}, "ix_retired_migration (migration_id=?)"),
        ({"volume_id": "v"}, "ix_retired_volume (volume_id=?)"),
        ({"due_at": datetime(2026, 1, 1, tzinfo=UTC)}, "ix_retired_due (delete_after<?)"),
    ],
)
def test_retired_objects_are_found_by_index(store: SqlStore, filters: dict[str, Any], index: str) -> None:
    def work() -> None:
        with store.reading() as reader:
            reader.list_retired(**filters)

    assert index in plan_of(store, work)


def read(store: SqlStore, query: VolumeQuery | MigrationQuery) -> None:
    with store.reading() as reader:
        if isinstance(query, VolumeQuery):
            reader.list_volumes(query)
        else:
            reader.list_migrations(query)


def plan_of(store: SqlStore, work: Callable[[], None]) -> str:
    """Return how SQLite carries out the last statement of *work*."""
    ran: list[tuple[str, object]] = []

    def note(conn: object, cursor: object, statement: str, parameters: object, *rest: object) -> None:
        ran.append((statement, parameters))

    sa.event.listen(store._database.engine, "before_cursor_execute", note)
    work()
    statement, parameters = ran[-1]
    with store._database.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return "\n".join(row[3] for row in plan)


# --- loading --------------------------------------------------------------------------------------


def test_package_does_not_load_sqlalchemy() -> None:
    code = "import sys, volmig.store; print([name for name in ('sqlalchemy', 'alembic') if name in sys.modules])"
    assert run(code).strip() == "[]"


def test_opening_does_not_load_alembic(path: Path) -> None:
    code = "import sys; from volmig.store.sql import SqlStore\nfor _ in range(2): SqlStore(sys.argv[1]).close()\n"
    assert run(code + "print('alembic' in sys.modules)", f"sqlite:///{path}").strip() == "False"


# --- addresses of databases -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nodriver://someone:pa55word@host/volmig",
        "oracle://someone:pa55word@host/volmig",
        "mysql+pymysql://someone:pa55word@127.0.0.1:1/volmig?ssl_key=pa55word&no_such_option=pa55word",
        "nothing://someone:pa55word@host/volmig",
        "sqlite://someone:pa55word@host/volmig.db",
        "sqlite:///volmig.db?key=pa55word",
        "//someone:pa55word@host",
        "postgresql://someone:pa55word@host:port/volmig",
    ],
)
def test_password_is_not_shown(url: str) -> None:
    with pytest.raises(errors.DatabaseUnusable) as caught:
        SqlStore(url)
    error: BaseException | None = caught.value
    assert "pa55word" not in str(error) + caught.value.hint + repr(caught.value.fields)
    while error is not None:
        assert "pa55word" not in str(error)
        error = error.__cause__


def test_label_is_the_file(store: SqlStore, path: Path) -> None:
    assert store.label == str(path)
    assert repr(store) == f"<SqlStore {path}>"


def test_plain_sqlite_sees_readable_records(store: SqlStore, path: Path) -> None:
    add_volume(store, name="データ", metadata={"ключ": "значение"})
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("SELECT name, status FROM volumes").fetchall() == [("データ", "creating")]
    finally:
        connection.close()
