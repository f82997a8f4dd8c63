"""What the drivers tell of their pools, whatever else lies there."""

from __future__ import annotations

import os
import socket
import uuid

import pytest

from volmig import errors
from volmig.drivers.base import StoredObject

from .support import MIB, fake_driver, file_driver, volume_of


@pytest.fixture
def path(tmp_path):
    directory = tmp_path / "files"
    directory.mkdir()
    return directory


def names(driver, pool="files"):
    return [each.name for each in driver.list_objects(pool)]


def test_strange_entries_are_passed_over(path):
    driver = file_driver(path)
    volume = volume_of(driver)
    driver.create_volume(volume)
    elsewhere = path.parent / "elsewhere"
    elsewhere.write_bytes(b"x")
    (path / "directory").mkdir()
    (path / "directory" / f"volume-{uuid.uuid4()}").write_bytes(b"x")
    (path / "link").symlink_to(elsewhere)
    (path / f"volume-{uuid.uuid4()}").symlink_to(elsewhere)
    (path / "dangling").symlink_to("nowhere")
    os.mkfifo(path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "socket"))
        (path / "new\nline").write_bytes(b"x")
        (path / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"x")
        (path / ".hidden").write_bytes(b"x")
        (path / ".volmig-new-0123456789abcdef").write_bytes(b"x")
        assert list(driver.list_objects("files")) == [
            StoredObject(name=volume.backend_name, size_bytes=MIB, backend_id=volume.id)
        ]


def test_a_file_that_is_being_removed_is_not_there(path):
    driver = file_driver(path)
    (path / ".volmig-gone-0123456789abcdef").mkdir()
    (path / ".volmig-gone-0123456789abcdef" / f"volume-{uuid.uuid4()}").write_bytes(b"x")
    assert names(driver) == []


@pytest.mark.parametrize(
    "name",
    [
        "disk.img",
        "volume-",
        "volume-old.img",
        "volume-0d4f5c1e-0000-4000-8000-00000000beef.bak",
        "Volume-0d4f5c1e-0000-4000-8000-00000000beef",
        "0d4f5c1e-0000-4000-8000-00000000beef",
    ],
)
def test_files_of_others_are_told_without_an_id(path, name):
    driver = file_driver(path)
    (path / name).write_bytes(b"four")
    assert list(driver.list_objects("files")) == [StoredObject(name=name, size_bytes=4, backend_id=None)]


def test_an_adopted_file_is_told_by_its_own_name(path):
    driver = file_driver(path)
    (path / "disk.img").write_bytes(b"x" * MIB)
    volume = volume_of(driver)
    assert driver.manage_existing(volume, {"source-name": "disk.img"}) == {"provider_id": "disk.img"}
    assert list(driver.list_objects("files")) == [StoredObject(name="disk.img", size_bytes=MIB, backend_id=None)]


def test_a_pool_that_is_not_mounted_is_not_taken_for_an_empty_one(path):
    driver = file_driver(path)
    (path / ".volmig-backend").unlink()
    with pytest.raises(errors.BackendDown):
        driver.list_objects("files")


def test_a_file_that_vanishes_while_it_is_listed_is_left_out(path, monkeypatch):
    driver = file_driver(path)
    gone = path / "gone"
    real = os.scandir

    def scandir(place):
        gone.write_bytes(b"x")
        (path / "stays").write_bytes(b"x")
        entries = real(place)
        listed = list(entries)
        entries.close()
        gone.unlink()
        return _Listed(listed)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names(driver) == ["stays"]


class _Listed(list):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_fake_lists_what_is_there_and_fails_when_told_to():
    driver = fake_driver()
    volume = volume_of(driver, "pool-b")
    driver.create_volume(volume)
    driver.add_foreign("pool-b", "foreign", b"1234567")
    assert names(driver, "pool-a") == []
    assert names(driver, "pool-b") == ["foreign", volume.backend_name]
    driver.faults.add("list_objects:fail=storage-busy")
    with pytest.raises(errors.StorageBusy):
        driver.list_objects("pool-a")
    driver.faults.clear()
    driver.down_reason = "no power"
    with pytest.raises(errors.BackendDown):
        driver.list_objects("pool-a")
    driver.close()
