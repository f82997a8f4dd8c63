"""An SQLite file that was removed or replaced while a store has it open is not written to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from volmig import errors
from volmig.store.sql import SqlStore
from volmig.testing.store_contract import add_volume, make_volume


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "volmig.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    store = SqlStore(f"sqlite:///{path}")
    yield store
    store.close()


def volume_names(store: SqlStore) -> list[str]:
    with store.reading() as reader:
        return [volume.name for volume in reader.list_volumes()]


def remove(path: Path) -> None:
    path.unlink()


def replace_by_a_new_one(path: Path) -> None:
    other = path.with_name("other.db")
    SqlStore(f"sqlite:///{other}").close()
    other.replace(path)


def replace_by_a_copy(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


def remove_with_its_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        (remove, "removed"),
        (remove_with_its_directory, "removed"),
        (replace_by_a_new_one, "replaced"),
        (replace_by_a_copy, "replaced"),
    ],
)
def test_file_that_is_gone_is_not_written_to(tmp_path: Path, lose: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "state" / "volmig.db"
    store = SqlStore(f"sqlite:///{path}")
    kept = add_volume(store)
    # Keep the lost files within sight: what is written to the database goes to the log first.
    with path.open("rb"), path.with_name("volmig.db-wal").open("rb") as log:
        recorded = log.read()
        lose(path)
        there = path.read_bytes() if path.exists() else None
        with pytest.raises(
            errors.DatabaseUnusable, match=rf"volmig\.db.*{reason}.* while volmig had it open"
        ) as caught:
            add_volume(store)
        assert "-wal" in caught.value.hint
        with pytest.raises(errors.DatabaseUnusable, match=reason), store.reading() as reader:
            reader.get_volume(kept.id)
        assert log.seek(0) == 0
        assert log.read() == recorded
    store.close()
    assert (path.read_bytes() if path.exists() else None) == there


@pytest.mark.parametrize("lose", [remove, replace_by_a_new_one])
def test_file_that_is_lost_during_a_change_is_not_committed_to(
    path: Path, store: SqlStore, lose: Callable[[Path], None]
) -> None:
    add_volume(store)
    with path.open("rb"), path.with_name("volmig.db-wal").open("rb") as log:
        recorded = log.read()

        def change() -> None:
            with store.writing() as writer:
                writer.add_volume(make_volume())
                lose(path)

        with pytest.raises(errors.DatabaseUnusable, match="while volmig had it open"):
            change()
        assert log.seek(0) == 0
        assert log.read() == recorded


def test_file_that_is_put_back_is_used_again(path: Path, store: SqlStore) -> None:
    path.rename(path.with_name("aside.db"))
    with pytest.raises(errors.DatabaseUnusable, match="removed"):
        add_volume(store)
    path.with_name("aside.db").rename(path)
    assert volume_names(store) == []
    add_volume(store)
    assert len(volume_names(store)) == 1
