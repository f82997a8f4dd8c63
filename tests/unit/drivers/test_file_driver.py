"""What the file driver refuses, and what it leaves behind: nothing."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig import errors
from volmig.drivers import Capability, _directory, _syscalls

from .support import CTXT, MIB, file_driver, host_of, volume_of

CONNECTOR = {"host": "h"}
OWN = {".volmig-backend", ".volmig-gone-0000000000000000"}


@pytest.fixture
def driver(tmp_path):
    directory = tmp_path / "files"
    directory.mkdir()
    return file_driver(directory)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "files"


def made(driver, **fields):
    volume = volume_of(driver, **fields)
    driver.create_volume(volume)
    return volume


def file_of(driver, volume):
    return driver._directory(volume.host).path / f"volume-{volume.backend_id}"


# --- configuration --------------------------------------------------------------------------------


def test_directory_must_be_absolute(tmp_path):
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        file_driver("relative/path")
    assert caught.value.fields["option"] == "file_directory"


def test_directory_must_be_there(tmp_path):
    with pytest.raises(errors.BackendSetupFailed, match="cannot be opened"):
        file_driver(tmp_path / "absent")


def test_directory_must_be_one(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.BackendSetupFailed, match="cannot be opened"):
        file_driver(tmp_path / "file")


@pytest.mark.parametrize("pools", [["../x"], ["a", "a"], [".hidden"], [""], ["a/b"]])
def test_names_of_pools_are_checked(tmp_path, pools):
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        file_driver(tmp_path, file_pools=pools)
    assert caught.value.fields["option"] == "file_pools"
    assert list(tmp_path.iterdir()) == []


def test_pool_that_is_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "pool").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.BackendSetupFailed):
        file_driver(tmp_path / "files", file_pools=["pool"])
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_two_backends_cannot_share_a_directory(driver, path):
    marker = json.loads((path / ".volmig-backend").read_text())
    assert marker == {"backend": "files", "storage": driver.storage_identity}
    with pytest.raises(errors.BackendSetupFailed, match="belongs to the backend 'files'") as caught:
        file_driver(path, backend="other")
    assert ".volmig-backend" in caught.value.hint
    file_driver(path)  # the same one may come back


def test_damaged_marker_is_refused(path, driver):
    (path / ".volmig-backend").write_text("{nonsense")
    with pytest.raises(errors.BackendSetupFailed, match="damaged"):
        file_driver(path)


def test_marker_is_not_followed_as_a_link(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / ".volmig-backend").symlink_to(tmp_path / "target")
    with pytest.raises(errors.BackendSetupFailed, match="symbolic link"):
        file_driver(tmp_path / "files")
    assert not (tmp_path / "target").exists()


# --- a backend that is gone -------------------------------------------------------------------------


def test_vanished_directory_is_told_and_never_taken_for_empty(driver, path, tmp_path):
    volume = made(driver)
    path.rename(tmp_path / "away")
    assert "cannot be opened" in driver.get_volume_stats()["down_reason"]
    path.mkdir()  # an empty mount point
    assert "marker" in driver.get_volume_stats()["down_reason"]
    for call in (driver.volume_exists, driver.delete_volume, driver.create_volume):
        with pytest.raises(errors.BackendDown):
            call(volume)
    assert list(path.iterdir()) == []


def test_one_vanished_pool_does_not_take_the_other_along(tmp_path):
    driver = file_driver(tmp_path, file_pools=["a", "b"])
    (tmp_path / "b").rename(tmp_path / "c")
    stats = driver.get_volume_stats()
    assert "down_reason" not in stats
    assert [pool["read_only"] for pool in stats["pools"]] == [False, True]


# --- files that are not as recorded --------------------------------------------------------------------


@pytest.fixture(params=["link", "dangling", "directory", "pipe"])
def intruder(request, driver, tmp_path):
    volume = volume_of(driver)
    place, outside = file_of(driver, volume), tmp_path / "outside"
    outside.write_bytes(b"\1" * volume.size_bytes)
    if request.param == "link":
        place.symlink_to(outside)
    elif request.param == "dangling":
        place.symlink_to(tmp_path / "absent")
    elif request.param == "directory":
        place.mkdir()
    else:
        os.mkfifo(place)
    return volume


def test_what_is_no_regular_file_is_refused_by_every_call(driver, intruder, tmp_path):
    for call in (
        driver.create_volume,
        driver.delete_volume,
        driver.volume_exists,
        lambda volume: driver.extend_volume(volume, 2 * MIB),
        lambda volume: driver.initialize_connection(volume, CONNECTOR),
        lambda volume: driver.open_volume(volume, "rb"),
        lambda volume: driver.open_volume(volume, "r+b"),
    ):
        with pytest.raises(errors.UnsafePath):
            call(intruder)
    assert (tmp_path / "outside").read_bytes() == b"\1" * MIB
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("delta", [-1, 1])
def test_wrong_size_is_refused_with_both_sizes(driver, delta, tmp_path):
    volume = made(driver)
    os.truncate(file_of(driver, volume), MIB + delta)
    (tmp_path / "peer").mkdir()
    host = host_of(file_driver(tmp_path / "peer", backend="peer"))
    for call in (
        driver.create_volume,
        lambda volume: driver.extend_volume(volume, 2 * MIB),
        lambda volume: driver.initialize_connection(volume, CONNECTOR),
        lambda volume: driver.open_volume(volume, "rb"),
        lambda volume: driver.migrate_volume(CTXT, volume, host),
        lambda volume: driver.recover_migration(CTXT, volume, host),
    ):
        with pytest.raises(errors.VolumeSizeMismatch) as caught:
            call(volume)
        assert (caught.value.fields["recorded"], caught.value.fields["actual"]) == (MIB, MIB + delta)


def test_missing_file_is_named(driver):
    volume = volume_of(driver)
    with pytest.raises(errors.VolumeObjectMissing, match=str(file_of(driver, volume))):
        driver.initialize_connection(volume, CONNECTOR)


@pytest.mark.parametrize("form", ["qcow2", "vmdk"])
def test_raw_only(driver, form):
    with pytest.raises(errors.UnsupportedFormat):
        driver.create_volume(volume_of(driver, format=form))


def test_file_is_exchanged_between_look_and_open(driver, tmp_path, monkeypatch):
    volume = made(driver)
    (tmp_path / "outside").write_bytes(b"\1" * MIB)
    looked = _directory.OpenDirectory.entry

    def exchange(self, name):
        found = looked(self, name)
        if name.startswith("volume-"):
            file_of(driver, volume).unlink()
            file_of(driver, volume).symlink_to(tmp_path / "outside")
        return found

    monkeypatch.setattr(_directory.OpenDirectory, "entry", exchange)
    with pytest.raises(errors.UnsafePath, match="symbolic link"):
        driver.open_volume(volume, "r+b")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_no_name_leaves_the_directory(text):
    for check in (_directory.volume_name, _directory.plain_name):
        try:
            name = check(text)
        except errors.UnsafePath:
            continue
        assert name == os.path.basename(name)  # noqa: PTH119
        assert name not in {"", ".", ".."}
        assert "\0" not in name


# --- making ----------------------------------------------------------------------------------------------


def test_new_file_is_private_and_sparse(driver):
    volume = made(driver, size_bytes=64 * MIB)
    found = file_of(driver, volume).stat()
    assert found.st_mode & 0o777 == 0o600
    assert found.st_blocks * 512 < MIB


def test_thick_file_has_its_room(tmp_path):
    driver = file_driver(tmp_path, file_fallocate=True)
    assert Capability.SPARSE not in driver.capabilities
    assert file_of(driver, made(driver)).stat().st_blocks * 512 >= MIB


def test_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    driver = file_driver(tmp_path, file_fallocate=True)
    volume = volume_of(driver, size_bytes=2 * driver.get_volume_stats()["pools"][0]["total_capacity_bytes"])
    with pytest.raises(errors.DiskFull):
        driver.create_volume(volume)
    assert {each.name for each in tmp_path.iterdir()} == OWN


def test_read_only_backend_makes_nothing_new(tmp_path):
    volume = made(file_driver(tmp_path))
    driver = file_driver(tmp_path, file_read_only=True)
    assert driver.get_volume_stats()["pools"][0]["read_only"] is True
    with pytest.raises(errors.DestinationReadOnly):
        driver.create_volume(replace(volume, id="another"))
    driver.create_volume(volume)  # it is there


def test_volume_to_be_made_must_not_carry_another_ones_provider_id(driver, path):
    (path / "mine.img").write_bytes(b"x" * MIB)
    with pytest.raises(errors.InternalError):
        driver.create_volume(volume_of(driver, provider_id="mine.img"))


def _crash_while_creating(directory, started):
    driver = file_driver(directory, setup=False)
    with driver._directories["files"].opened() as opened:
        opened.create("volume-crash", MIB, prepare=lambda _: (started.set(), os._exit(9)))


def test_crash_while_creating_leaves_only_what_setup_clears(driver, path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_crash_while_creating, args=(path, started))
    process.start()
    process.join(30)
    assert process.exitcode == 9
    process.close()
    leftovers = {each.name for each in path.iterdir()} - OWN
    assert len(leftovers) == 1
    assert leftovers.pop().startswith(".volmig-new-")
    (path / ".volmig-new-not-ours").write_text("kept")
    file_driver(path)
    assert {each.name for each in path.iterdir()} == {*OWN, ".volmig-new-not-ours"}


def test_setup_leaves_the_temporary_file_of_a_living_process(driver, path):
    with driver._directories["files"].opened() as opened:
        opened.create("volume-x", MIB, prepare=lambda _: file_driver(path).check_for_setup_error())
    assert (path / "volume-x").stat().st_size == MIB


def test_without_renameat2_nothing_is_overwritten_either(driver, monkeypatch):
    monkeypatch.setattr(_syscalls, "_renameat2", lambda *_: 38)
    volume = made(driver)
    with driver._directories["files"].opened() as opened, pytest.raises(FileExistsError):
        opened.create(f"volume-{volume.id}", MIB)
    assert file_of(driver, volume).stat().st_nlink == 1


# --- locks -----------------------------------------------------------------------------------------------


def ofd_lock(fd):
    """Lock a few bytes for reading, as QEMU does."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", fcntl.F_RDLCK, os.SEEK_SET, 100, 4, 0))


def test_locked_file_is_in_use(driver, tmp_path):
    volume = made(driver)
    (tmp_path / "peer").mkdir()
    host = host_of(file_driver(tmp_path / "peer", backend="peer"))
    with file_of(driver, volume).open("rb") as holder:
        ofd_lock(holder.fileno())
        for call in (
            lambda: driver.initialize_connection(volume, CONNECTOR),
            lambda: driver.migrate_volume(CTXT, volume, host),
            lambda: driver.delete_volume(volume),
            lambda: driver.manage_existing_get_size(volume, {"source-name": file_of(driver, volume).name}),
        ):
            with pytest.raises(errors.VolumeInUse):
                call()
    driver.initialize_connection(volume, CONNECTOR)


# --- migration ---------------------------------------------------------------------------------------------


@pytest.fixture
def peer(tmp_path):
    (tmp_path / "peer").mkdir()
    return file_driver(tmp_path / "peer", backend="peer")


def test_move_to_another_backend_of_the_file_system_copies_nothing(driver, peer):
    volume = made(driver)
    inode = file_of(driver, volume).stat().st_ino
    assert driver.migrate_volume(CTXT, volume, host_of(peer))[0] is True
    assert file_of(peer, replace(volume, host=peer.address("peer"))).stat().st_ino == inode


def test_adopted_file_gets_the_name_of_its_volume(driver, peer, path):
    (path / "my disk.img").write_bytes(b"\7" * MIB)
    volume = volume_of(driver, name_id="old", provider_id="my disk.img")
    moved, update = driver.migrate_volume(CTXT, volume, host_of(peer))
    assert (moved, update) == (True, {"_name_id": "old", "provider_location": None, "provider_id": None})
    assert file_of(peer, replace(volume, host=peer.address("peer"))).read_bytes() == b"\7" * MIB


@pytest.mark.parametrize(
    "change",
    [
        {"location_info": "file:otherhost:1:/"},
        {"location_info": "file:testhost:1:relative"},
        {"location_info": "file:testhost:1:/nonexistent"},
        {"location_info": "nfs:testhost:1:/"},
        {"location_info": ""},
    ],
)
def test_other_places_are_declined(driver, peer, change):
    volume = made(driver)
    host = host_of(peer)
    host["capabilities"].update(change)
    assert driver.migrate_volume(CTXT, volume, host) == (False, None)
    assert driver.recover_migration(CTXT, volume, host) == (False, None)
    assert driver.volume_exists(volume)


def test_directory_marked_for_another_backend_is_declined(driver, peer, tmp_path):
    volume = made(driver)
    host = host_of(peer)
    (tmp_path / "peer" / ".volmig-backend").write_text('{"backend": "somebody"}')
    assert driver.migrate_volume(CTXT, volume, host) == (False, None)


def test_other_file_system_is_declined(driver, peer, monkeypatch):
    volume = made(driver)
    exdev = lambda *_: 18  # noqa: E731
    monkeypatch.setattr(_syscalls, "_renameat2", exdev)
    assert driver.migrate_volume(CTXT, volume, host_of(peer)) == (False, None)
    assert driver.volume_exists(volume)


def test_read_only_destination_is_refused(driver, tmp_path):
    (tmp_path / "ro").mkdir()
    with pytest.raises(errors.DestinationReadOnly):
        driver.migrate_volume(
            CTXT, made(driver), host_of(file_driver(tmp_path / "ro", backend="ro", file_read_only=True))
        )


def test_move_that_stopped_between_two_names_is_ended(driver, peer):
    for call in (driver.migrate_volume, driver.recover_migration):
        volume = made(driver)
        there = file_of(peer, replace(volume, host=peer.address("peer")))
        os.link(file_of(driver, volume), there)
        assert call(CTXT, volume, host_of(peer))[0] is True
        assert there.stat().st_nlink == 1


def test_two_files_or_none_are_doubtful(driver, peer):
    volume = made(driver)
    peer.create_volume(replace(volume, host=peer.address("peer")))
    for call in (driver.migrate_volume, driver.recover_migration):
        with pytest.raises(errors.LocationDoubtful):
            call(CTXT, volume, host_of(peer))
        with pytest.raises(errors.LocationDoubtful):
            call(CTXT, volume_of(driver), host_of(peer))


def test_rename_that_stopped_between_two_names_is_ended(driver):
    volume, copy = volume_of(driver), made(driver)
    os.link(file_of(driver, copy), file_of(driver, volume))
    assert driver.update_migrated_volume(CTXT, volume, copy, "available")["_name_id"] is None
    assert file_of(driver, volume).stat().st_nlink == 1


# --- taking over -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b"QFI\xfb", "qcow2"),
        (b"KDMV", "vmdk"),
        (b"# Disk DescriptorFile\n", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"\0" * 64 + b"\x7f\x10\xda\xbe", "vdi"),
    ],
)
def test_image_formats_are_not_taken_for_raw(driver, path, header, name):
    (path / "image").write_bytes(header + b"\0" * 4096)
    with pytest.raises(errors.UnsupportedFormat) as caught:
        driver.manage_existing_get_size(volume_of(driver), {"source-name": "image"})
    assert caught.value.fields["format"] == name
    assert "qemu-img convert" in caught.value.hint


def test_unfit_files_are_not_taken_over(driver, path, tmp_path):
    (path / "empty").write_bytes(b"")
    (path / "directory").mkdir()
    (path / "target").write_bytes(b"x")
    (path / "link").symlink_to("target")
    (path / "twin").write_bytes(b"x")
    os.link(path / "twin", path / "twin2")
    (tmp_path / "outside").write_bytes(b"x")
    for name in ("empty", "directory", "link", "twin", str(tmp_path / "outside"), str(path / "directory" / "x"),
                 ".volmig-backend", f"{path}/../outside"):  # fmt: skip
        with pytest.raises(errors.NotManageable):
            driver.manage_existing_get_size(volume_of(driver), {"source-name": name})


def test_file_in_another_pool_is_told(tmp_path):
    driver = file_driver(tmp_path, file_pools=["a", "b"])
    (tmp_path / "b" / "disk").write_bytes(b"x")
    for name in ("disk", str(tmp_path / "b" / "disk")):
        with pytest.raises(errors.NotManageable, match="'b'"):
            driver.manage_existing_get_size(volume_of(driver, "a"), {"source-name": name})
        assert driver.manage_existing_get_size(volume_of(driver, "b"), {"source-name": name}) == 1


def test_unmanage_leaves_the_file(driver, path):
    (path / "disk").write_bytes(b"x" * 100)
    volume = volume_of(driver, size_bytes=100)
    volume = replace(volume, **driver.manage_existing(volume, {"source-name": str(path / "disk")}))
    with driver.open_volume(volume, "rb") as handle:
        assert handle.read() == b"x" * 100
    driver.unmanage(volume)
    assert (path / "disk").read_bytes() == b"x" * 100


def test_no_descriptor_is_left_open(driver, path):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    volume = made(driver)
    driver.initialize_connection(volume, CONNECTOR)
    driver.get_volume_stats()
    with pytest.raises(errors.VolmigError):
        driver.open_volume(replace(volume, size_bytes=1), "rb")
    driver.delete_volume(volume)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
