"""The file driver knows its storage and its objects again, and deletes only what it knows."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import pytest

from volmig import errors
from volmig.drivers import _gone, _syscalls
from volmig.drivers._directory import OpenDirectory

from .deletion import delete_until
from .support import CTXT, MIB, fake_driver, file_driver, host_of, volume_of
from .test_file_driver import OWN, file_of, made, ofd_lock

NEW = b"\5" * MIB


@pytest.fixture
def path(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture
def driver(path):
    return file_driver(path)


def known(path, identity, **options):
    """Set up a driver as the core does when *identity* is on record."""
    driver = file_driver(path, setup=False, **options)
    driver.storage_identity = identity
    driver.do_setup(CTXT)
    driver.check_for_setup_error()
    return driver


def refill(driver, volume, data=NEW):
    """Have a new object come under the volume's name."""
    driver.create_volume(volume)
    file_of(driver, volume).write_bytes(data)


def names(path):
    return {each.name for each in path.iterdir()} - OWN


def contents(path):
    return sorted((str(each.relative_to(path)), each.read_bytes() if each.is_file() else None)
                  for each in path.rglob("*"))  # fmt: skip


# --- storage ------------------------------------------------------------------------------------------------


def test_unmounted_mount_point_is_not_claimed(driver, path, tmp_path):
    volume = made(driver)
    path.rename(tmp_path / "unmounted")
    path.mkdir()
    for _ in range(2):
        with pytest.raises(errors.BackendDown, match=r"mounted.*copy the marker file \.volmig-backend along"):
            known(path, driver.storage_identity)
    assert list(path.iterdir()) == []
    path.rmdir()
    with pytest.raises(errors.BackendDown, match="cannot be opened"):
        known(path, driver.storage_identity)
    assert not path.exists()
    (tmp_path / "unmounted").rename(path)
    assert known(path, driver.storage_identity).volume_exists(volume)


def test_other_storage_of_the_same_backend_is_refused(driver, path, tmp_path):
    (tmp_path / "other").mkdir()
    second = file_driver(tmp_path / "other")
    assert second.storage_identity != driver.storage_identity
    before = contents(path)
    with pytest.raises(errors.BackendDown, match=str(driver.storage_identity)):
        known(path, second.storage_identity, file_pools=["new"])
    assert contents(path) == before


@pytest.mark.parametrize("text", ["", "{nonsense", "[]", '{"backend": "files", "storage": 7}', '{"backend": "files"}'])
def test_damaged_marker_is_not_the_storage_on_record(driver, path, text):
    (path / ".volmig-backend").write_text(text)
    with pytest.raises(errors.BackendDown):
        known(path, driver.storage_identity)
    assert (path / ".volmig-backend").read_text() == text


def test_content_that_was_moved_with_its_marker_is_the_storage(driver, path, tmp_path):
    volume = made(driver)
    shutil.copytree(path, tmp_path / "moved")
    moved = known(tmp_path / "moved", driver.storage_identity)
    assert moved.volume_exists(volume)


def test_marker_without_identity_gets_one(path):
    (path / "a").mkdir()
    for place in (path, path / "a"):
        (place / ".volmig-backend").write_text('{"backend": "files"}')
    driver = file_driver(path, file_pools=["a", "b"])
    markers = [json.loads((place / ".volmig-backend").read_text()) for place in (path, path / "a", path / "b")]
    assert {marker["storage"] for marker in markers} == {driver.storage_identity}
    assert markers[0]["pools"] == ["a", "b"]


@pytest.mark.parametrize("on_record", [True, False])
def test_pool_that_is_not_mounted_is_not_claimed(path, on_record):
    driver = file_driver(path, file_pools=["a", "b"])
    identity = driver.storage_identity if on_record else None
    (path / "b").rename(path / "away")
    with pytest.raises(errors.BackendDown):
        known(path, identity, file_pools=["a", "b", "c"])
    (path / "b").mkdir()
    with pytest.raises(errors.BackendDown, match="mounted"):
        known(path, identity, file_pools=["a", "b", "c"])
    assert list((path / "b").iterdir()) == []
    assert not (path / "c").exists()
    assert known(path, identity, file_pools=["a"]).storage_identity == driver.storage_identity


def test_pool_is_added_and_then_belongs_to_the_storage(path):
    identity = file_driver(path, file_pools=["a"]).storage_identity
    (path / "b").mkdir()
    known(path, identity, file_pools=["a", "b", "c"])
    shutil.rmtree(path / "c")
    with pytest.raises(errors.BackendDown):
        known(path, identity, file_pools=["a", "b", "c"])
    assert not (path / "c").exists()


def test_pool_of_another_storage_is_refused(path, tmp_path):
    file_driver(path, file_pools=["a"])
    (tmp_path / "other").mkdir()
    file_driver(tmp_path / "other", file_pools=["b"])
    (tmp_path / "other" / "b").rename(path / "b")
    before = contents(path)
    with pytest.raises(errors.BackendDown, match="not the storage"):
        file_driver(path, file_pools=["a", "b", "c"])
    assert contents(path) == before


def test_crash_between_marking_a_pool_and_listing_it_is_mended(path):
    identity = file_driver(path, file_pools=["a", "b"]).storage_identity
    marker = {"backend": "files", "storage": identity, "pools": ["a"]}
    (path / ".volmig-backend").write_text(json.dumps(marker))
    known(path, identity, file_pools=["a", "b"])
    assert json.loads((path / ".volmig-backend").read_text()) == marker | {"pools": ["a", "b"]}


def test_storage_that_is_exchanged_later_is_noticed_by_each_call(driver, path, tmp_path):
    volume = made(driver)
    path.rename(tmp_path / "away")
    path.mkdir()
    file_driver(path)
    for call in (driver.volume_exists, driver.delete_volume, driver.create_volume, driver.identify_object):
        with pytest.raises(errors.BackendDown, match="not the storage"):
            call(volume)
    assert "not the storage" in driver.get_volume_stats()["down_reason"]


def test_destination_that_is_exchanged_is_declined(driver, tmp_path):
    volume = made(driver)
    (tmp_path / "peer").mkdir()
    host = host_of(file_driver(tmp_path / "peer", backend="peer"))
    (tmp_path / "peer").rename(tmp_path / "away")
    (tmp_path / "peer").mkdir()
    file_driver(tmp_path / "peer", backend="peer")
    assert driver.migrate_volume(CTXT, volume, host) == (False, None)


def test_two_that_claim_a_directory_at_once_agree(path):
    start, found = threading.Barrier(4), []

    def claim():
        start.wait()
        found.append(file_driver(path, file_pools=["a", "b"]).storage_identity)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_set_up_does_not_wait_for_ever(driver, path, monkeypatch):
    monkeypatch.setattr("volmig.drivers._storage._LOCK_SECONDS", 0.1)
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(errors.BackendDown, match="setting up"):
            file_driver(path)
    finally:
        os.close(fd)


def test_fake_directory_is_not_made_anew(tmp_path):
    driver = fake_driver(fake_directory=str(tmp_path / "root"))
    shutil.rmtree(tmp_path / "root")
    other = fake_driver(fake_directory=str(tmp_path / "root"), setup=False)
    other.storage_identity = driver.storage_identity
    with pytest.raises(errors.BackendDown):
        other.do_setup(CTXT)
    assert not (tmp_path / "root").exists()
    memory = fake_driver(setup=False)
    memory.storage_identity = driver.storage_identity
    with pytest.raises(errors.BackendDown, match="memory"):
        memory.do_setup(CTXT)
    memory.close()


# --- objects ------------------------------------------------------------------------------------------------


def test_identity_follows_a_file_to_another_directory(driver, tmp_path):
    (tmp_path / "peer").mkdir()
    peer = file_driver(tmp_path / "peer", backend="peer")
    volume = made(driver)
    identity = driver.identify_object(volume)
    driver.migrate_volume(CTXT, volume, host_of(peer))
    assert peer.identify_object(replace(volume, host=peer.address("peer"))) == identity


def test_inode_that_is_used_again_is_another_object(driver):
    volume, seen = volume_of(driver), []
    for _ in range(50):
        driver.create_volume(volume)
        seen.append(driver.identify_object(volume))
        driver.delete_volume(volume)
    assert len(set(seen)) == 50


def test_identity_is_built_of_what_is_offered(driver, monkeypatch):
    volume = made(driver)
    whole = driver.identify_object(volume)
    monkeypatch.setattr(_syscalls, "_handle", lambda _: "")
    assert whole.startswith(driver.identify_object(volume))
    monkeypatch.setattr(_syscalls, "_birth_time", lambda _: "")
    assert driver.identify_object(volume) == f"{file_of(driver, volume).stat().st_ino}::"


def test_copy_of_a_file_is_another_object(driver, path):
    volume = made(driver)
    identity = driver.identify_object(volume)
    shutil.copy2(file_of(driver, volume), path / "copy")
    os.rename(path / "copy", file_of(driver, volume))  # noqa: PTH104
    driver.delete_object(volume, identity)
    assert driver.volume_exists(volume)


def test_locked_object_is_not_deleted(driver, path):
    volume = made(driver)
    with file_of(driver, volume).open("rb") as holder:
        ofd_lock(holder.fileno())
        with pytest.raises(errors.VolumeInUse):
            driver.delete_object(volume, driver.identify_object(volume))
    assert names(path) == {f"volume-{volume.id}"}


def test_longest_name_can_be_deleted(driver, path):
    (path / ("x" * 255)).write_bytes(b"x" * MIB)
    volume = volume_of(driver, provider_id="x" * 255)
    driver.delete_object(volume, driver.identify_object(volume))
    assert names(path) == set()


@pytest.mark.parametrize("free_reserve", [True, False])
def test_full_disk_does_not_keep_from_deleting(driver, path, monkeypatch, free_reserve):
    volume = made(driver)
    identity = driver.identify_object(volume)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    fd = os.open(path / ".volmig-gone-0000000000000000", os.O_RDONLY)
    try:
        if not free_reserve:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with pytest.raises(errors.UnsafePath):
                driver.delete_object(volume, identity)
            assert driver.volume_exists(volume)
    finally:
        os.close(fd)
    driver.delete_object(volume, identity)
    assert names(path) == set()


@contextlib.contextmanager
def interposed(monkeypatch, act):
    """Have *act* happen once, between the first look at the file and its being moved."""
    move = OpenDirectory.move
    done = []

    def late(self, name, to, new_name):
        if not done and to.path.name.startswith(".volmig-gone-"):
            done.append(True)
            act()
        return move(self, name, to, new_name)

    monkeypatch.setattr(OpenDirectory, "move", late)
    yield
    assert done


def test_exchange_between_look_and_move_is_undone(driver, path, monkeypatch):
    volume = made(driver)
    identity = driver.identify_object(volume)

    def exchange():
        driver.delete_object(volume, identity)
        refill(driver, volume)

    with interposed(monkeypatch, exchange):
        driver.delete_object(volume, identity)
    assert file_of(driver, volume).read_bytes() == NEW
    assert names(path) == {f"volume-{volume.id}"}


def test_link_that_comes_between_look_and_move_is_put_back(driver, path, tmp_path, monkeypatch):
    volume = made(driver)
    place = file_of(driver, volume)

    def exchange():
        place.unlink()
        place.symlink_to(tmp_path)

    with interposed(monkeypatch, exchange), pytest.raises(errors.UnsafePath):
        driver.delete_object(volume, driver.identify_object(volume))
    assert place.is_symlink()
    assert names(path) == {place.name}


def test_exchange_whose_name_is_taken_keeps_both(driver, path, monkeypatch):
    volume = made(driver)
    identity = driver.identify_object(volume)
    same = _gone._is_same

    def exchange():
        driver.delete_object(volume, identity)
        refill(driver, volume)

    def take(directory, *rest):
        if directory.path.name.startswith(".volmig-gone-"):
            with contextlib.suppress(FileExistsError):
                refill(driver, volume, b"\6" * MIB)
        return same(directory, *rest)

    with interposed(monkeypatch, exchange):
        monkeypatch.setattr(
            _gone, "_is_same", lambda d, *r: take(d, *r) if _is_wrong(d, volume, identity) else same(d, *r)
        )
        with pytest.raises(errors.ObjectDisplaced) as caught:
            driver.delete_object(volume, identity)
    monkeypatch.undo()
    assert file_of(driver, volume).read_bytes() == b"\6" * MIB
    assert caught.value.fields["kept"].read_bytes() == NEW
    file_driver(path)  # a set-up leaves both, too
    driver.delete_object(volume, identity)
    assert file_of(driver, volume).read_bytes() == b"\6" * MIB
    assert caught.value.fields["kept"].read_bytes() == NEW
    file_of(driver, volume).unlink()
    file_driver(path)
    assert file_of(driver, volume).read_bytes() == NEW


def _is_wrong(directory, volume, identity):
    name = f"volume-{volume.id}"
    return directory.path.name.startswith(".volmig-gone-") and _gone.identify(directory, name) != identity


# --- processes that die or stop in the middle --------------------------------------------------------------


@contextlib.contextmanager
def stopped_at(point, driver, path, volume, identity):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["volmig.drivers.file", "volmig.drivers.fake"])
    reached = context.Event()
    arguments = (path, driver.storage_identity, volume, identity, point, reached)
    process = context.Process(target=delete_until, args=arguments)
    process.start()
    try:
        assert reached.wait(20)
        _wait_until_stopped(process.pid)
        yield process
    finally:
        process.kill()
        process.join(20)
        process.close()


def _wait_until_stopped(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "T":
                return
        time.sleep(0.005)
    pytest.fail("the process does not stop")


POINTS = ["looked", "moved", "unlink", "rmdir"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("by", ["set-up", "deletion"])
def test_killed_deletion_is_finished_by_the_next(driver, path, point, by):
    volume, bystander = made(driver), made(driver)
    identity = driver.identify_object(volume)
    with stopped_at(point, driver, path, volume, identity):
        pass
    if by == "set-up":
        driver = known(path, driver.storage_identity)
        assert driver.volume_exists(volume) is (point != "rmdir")
        assert names(path) == {f"volume-{each.id}" for each in (volume, bystander) if driver.volume_exists(each)}
    driver.delete_object(volume, identity)
    assert names(path) == {f"volume-{bystander.id}"}


def test_each_pool_has_its_own_put_back_and_a_reserve(path):
    identity = file_driver(path, file_pools=["a", "b"]).storage_identity
    for pool in ("a", "b"):
        private = path / pool / ".volmig-gone-00112233445566ff"
        private.mkdir()
        (private / "volume-x").write_bytes(NEW)
        (path / pool / ".volmig-gone-0000000000000000").rmdir()
    known(path, identity, file_pools=["a", "b"])
    for pool in ("a", "b"):
        assert (path / pool / "volume-x").read_bytes() == NEW
        assert {each.name for each in (path / pool).iterdir()} == {*OWN, "volume-x"}


@pytest.mark.parametrize("point", POINTS)
def test_killed_deletion_spares_the_volume_that_came_back(driver, path, point):
    volume = made(driver)
    identity = driver.identify_object(volume)
    with stopped_at(point, driver, path, volume, identity):
        driver.delete_object(volume, identity)
        refill(driver, volume)
    known(path, driver.storage_identity)
    driver.delete_object(volume, identity)
    assert file_of(driver, volume).read_bytes() == NEW
    assert names(path) == {f"volume-{volume.id}"}


@pytest.mark.parametrize("point", POINTS)
def test_stopped_deletion_that_wakes_up_spares_the_volume_that_came_back(driver, path, point):
    volume = made(driver)
    identity = driver.identify_object(volume)
    with stopped_at(point, driver, path, volume, identity) as process:
        driver.delete_object(volume, identity)
        known(path, driver.storage_identity)
        refill(driver, volume)
        os.kill(process.pid, signal.SIGCONT)
        # The function pauses at each later call of the same kind, too.
        deadline = time.monotonic() + 20
        while process.exitcode is None and time.monotonic() < deadline:
            os.kill(process.pid, signal.SIGCONT)
            process.join(0.01)
        assert process.exitcode == 0
    assert file_of(driver, volume).read_bytes() == NEW
    assert names(path) == {f"volume-{volume.id}"}


def test_hung_deletion_that_wakes_up_spares_the_volume_that_came_back(tmp_path):
    driver = fake_driver(fake_directory=str(tmp_path))
    volume = made(driver)
    identity = driver.identify_object(volume)
    driver.faults.add("delete_object@1:hang")
    hung = threading.Thread(target=driver.delete_object, args=(volume, identity))
    hung.start()
    while ("delete_object", volume.id) not in driver.calls:
        time.sleep(0.001)
    driver.delete_object(volume, identity)
    driver.create_volume(volume)
    with driver.open_volume(volume, "r+b") as handle:
        handle.write(NEW)
    driver.faults.release()
    hung.join(20)
    with driver.open_volume(volume, "rb") as handle:
        assert handle.read() == NEW


def test_without_renameat2_a_deletion_that_stopped_between_two_names_is_undone(driver, path, monkeypatch):
    monkeypatch.setattr(_syscalls, "_renameat2", lambda *_: 38)
    volume = made(driver)
    identity = driver.identify_object(volume)
    private = path / ".volmig-gone-00112233445566ff"
    private.mkdir()
    os.link(file_of(driver, volume), private / f"volume-{volume.id}")
    file_driver(path)
    assert names(path) == {f"volume-{volume.id}"}
    assert file_of(driver, volume).stat().st_nlink == 1
    driver.delete_object(volume, identity)
    assert names(path) == set()


def test_many_delete_one_object(driver, path):
    volume = made(driver)
    identity = driver.identify_object(volume)
    failures = []

    def delete():
        try:
            driver.delete_object(volume, identity)
        except errors.VolmigError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=delete) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(path) == set()
