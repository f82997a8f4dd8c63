"""Loopback on real files, with a fake of losetup and of LVM's programs."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.drivers.lvm.fake_machine import FakeMachine, die, in_a_process, read_group, write_group
from volmig import errors
from volmig.drivers.lvm import backing_file, loop_devices, loopback
from volmig.drivers.lvm.loopback import Loopback

SIZE = 16 * 1024**2
VG = "volmig-one"
TAG = "volmig.backend=one"
LVS = {"volume-1": ("linear", False), "pool": ("thin,pool", True)}


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    (tmp_path / "devices").mkdir()
    (tmp_path / "files").mkdir()
    return FakeMachine(tmp_path / "devices")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "files" / "one.img"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (loopback, "_OPEN_SECONDS"),
        (loopback, "_LISTED_SECONDS"),
        (backing_file, "_LOCK_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.05)
    patience = loop_devices.LoopDevices.__init__
    monkeypatch.setitem(patience.__kwdefaults__ or {}, "patience_seconds", 0.2)
    monkeypatch.setattr(loop_devices, "_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nothing here loses its power


def made(machine: FakeMachine, file: Path, /, **changes: Any) -> Loopback:
    values: dict[str, Any] = {"backend": "one", "file": file, "size_bytes": SIZE, "vg": VG, **changes}
    return Loopback(machine.commands(), **values)


def a_file(path: Path, size_bytes: int = SIZE) -> Path:
    with path.open("xb") as stream:
        stream.truncate(size_bytes)
    return path


def names(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir())


def assert_ready(machine: FakeMachine, file: Path) -> None:
    assert names(file) == [file.name]
    (device,) = machine.loops()
    assert machine.backing(device).samefile(file)
    assert (machine.group(device)["name"], machine.group(device)["tags"]) == (VG, [TAG])
    assert machine.active() == {VG}


class TestAttach:
    def test_makes_a_sparse_private_file_with_the_volume_group(self, machine: FakeMachine, file: Path) -> None:
        umask = os.umask(0o277)
        try:
            made(machine, file).attach(create=True)
        finally:
            os.umask(umask)
        assert_ready(machine, file)
        status = file.stat()
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_size == SIZE
        assert status.st_blocks * 512 < SIZE / 10

    def test_repeated_it_changes_nothing(self, machine: FakeMachine, file: Path) -> None:
        made(machine, file).attach(create=True)
        uuid = read_group(file)["uuid"]
        for create in (True, False):
            made(machine, file).attach(create=create)
            assert_ready(machine, file)
        assert read_group(file)["uuid"] == uuid
        assert len(machine.ran("vgcreate")) == 1

    def test_finds_it_again_after_a_reboot(self, machine: FakeMachine, file: Path) -> None:
        made(machine, file).attach(create=True)
        machine.reboot()
        machine.bind(a_file(file.with_name("other")))  # takes the number that it had
        made(machine, file).attach(create=False)
        assert machine.active() == {VG}
        assert len(machine.ran("vgcreate")) == 1

    def test_without_direct_io_it_works_as_well(self, machine: FakeMachine, file: Path) -> None:
        machine.direct_io = False
        made(machine, file).attach(create=True)
        assert_ready(machine, file)

    def test_a_missing_file_is_not_made_unasked(self, machine: FakeMachine, file: Path) -> None:
        with pytest.raises(errors.BackendDown, match="there is no file") as caught:
            made(machine, file).attach(create=False)
        assert "volmig backend setup one" in caught.value.hint
        assert names(file) == []

    def test_a_directory_that_is_not_there(self, machine: FakeMachine, tmp_path: Path) -> None:
        file = tmp_path / "none" / "one.img"
        with pytest.raises(errors.BackendDown, match="no file"):
            made(machine, file).attach(create=False)
        with pytest.raises(errors.ConfigOptionInvalid, match="no directory"):
            made(machine, file).attach(create=True)
        made(machine, file).detach(delete=True)

    @pytest.mark.parametrize("content", [b"", b"somebody's", b"vg of another name", b"no tag", b"another backend"])
    def test_what_is_not_its_own_is_left_as_it_is(self, machine: FakeMachine, file: Path, content: bytes) -> None:
        a_file(file)
        match content:
            case b"vg of another name":
                write_group(file, "other", TAG)
            case b"no tag":
                write_group(file, VG)
            case b"another backend":
                write_group(file, VG, "volmig.backend=two")
            case _:
                with file.open("r+b") as stream:
                    stream.write(content)
        before = (file.read_bytes(), file.stat().st_ino)
        for act in (lambda it: it.attach(create=True), lambda it: it.detach(delete=True)):
            with pytest.raises(errors.BackendSetupFailed, match="should hold the volume group"):
                act(made(machine, file))
            assert (file.read_bytes(), file.stat().st_ino) == before
            assert machine.loops() == {}
            assert names(file) == [file.name]

    @pytest.mark.parametrize("change", [-4096, 4096])
    def test_a_file_of_another_size_is_left_as_it_is(self, machine: FakeMachine, file: Path, change: int) -> None:
        made(machine, file).attach(create=True)
        made(machine, file).detach(delete=False)
        os.truncate(file, SIZE + change)
        for create in (True, False):
            with pytest.raises(errors.BackendSetupFailed, match=f"{SIZE + change} bytes"):
                made(machine, file).attach(create=create)
        with pytest.raises(errors.BackendSetupFailed, match=f"{SIZE + change} bytes"):
            made(machine, file).detach(delete=True)
        assert file.stat().st_size == SIZE + change
        assert machine.loops() == {}

    @pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "fifo"])
    def test_what_is_no_regular_file_is_refused(self, machine: FakeMachine, file: Path, kind: str) -> None:
        target = file.with_name("target")
        match kind:
            case "link":
                file.symlink_to(a_file(target))
            case "dangling link":
                file.symlink_to(target)
            case "directory":
                file.mkdir()
            case "fifo":
                os.mkfifo(file)
        with pytest.raises(errors.BackendSetupFailed, match=r"symbolic link|no regular file"):
            made(machine, file).attach(create=True)
        assert machine.log == []
        assert target.exists() == (kind == "link")

    def test_a_name_that_is_taken_is_told_before_anything_is_changed(self, machine: FakeMachine, file: Path) -> None:
        other = a_file(file.with_name("other"))
        write_group(other, VG)
        device = machine.bind(other)
        with pytest.raises(errors.BackendSetupFailed, match=f"named '{VG}' is on {device}"):
            made(machine, file).attach(create=True)
        assert names(file) == ["other"]
        assert {command[0] for command in machine.log} == {"pvs"} | {"losetup"} & {c[0] for c in machine.log}
        assert list(machine.loops()) == [device]

    def test_a_copy_of_its_file_elsewhere_is_not_taken_for_it(self, machine: FakeMachine, file: Path) -> None:
        made(machine, file).attach(create=True)
        made(machine, file).detach(delete=False)
        copy = Path(shutil.copy(file, file.with_name("copy")))
        device = machine.bind(copy)
        with pytest.raises(errors.BackendSetupFailed, match=device):
            made(machine, file).attach(create=False)
        assert list(machine.loops()) == [device]

    def test_a_device_of_a_removed_file_of_that_name_is_told_apart(self, machine: FakeMachine, file: Path) -> None:
        made(machine, file).attach(create=True)
        file.unlink()
        for create in (True, False):
            with pytest.raises(errors.BackendSetupFailed, match="somebody has removed the file"):
                made(machine, file).attach(create=create)
        a_file(file)
        with pytest.raises(errors.BackendSetupFailed, match="somebody has removed the file"):
            made(machine, file).attach(create=True)
        assert machine.active() == {VG}

    @pytest.mark.parametrize("changes", [{"offset": 512}, {"ro": True}])
    def test_a_device_that_is_not_all_of_the_file_is_refused(
        self, machine: FakeMachine, file: Path, changes: dict[str, Any]
    ) -> None:
        made(machine, file).attach(create=True)
        machine.reboot()
        machine.bind(file, **changes)
        with pytest.raises(errors.BackendSetupFailed, match="read-only, or shows a part"):
            made(machine, file).attach(create=False)

    def test_two_devices_of_one_file_are_refused(self, machine: FakeMachine, file: Path) -> None:
        made(machine, file).attach(create=True)
        machine.bind(file)
        with pytest.raises(errors.BackendSetupFailed, match="several loop devices"):
            made(machine, file).attach(create=False)

    def test_a_program_that_fails_leaves_nothing(self, machine: FakeMachine, file: Path) -> None:
        machine._vgcreate = lambda _: (5, "", "it does not like it")  # type: ignore[method-assign]
        with pytest.raises(errors.BackendDown, match="does not like it"):
            made(machine, file).attach(create=True)
        assert names(file) == []
        assert machine.loops() == {}

    @pytest.mark.parametrize(
        "changes",
        [
            {"size_bytes": 0},
            {"size_bytes": SIZE + 1},
            {"size_bytes": loopback.LEAST_BYTES - 4096},
            {"file": Path("one.img")},
            {"file": Path("/srv/../one.img")},
            {"file": Path("/")},
        ],
    )
    def test_options_that_cannot_be(self, machine: FakeMachine, file: Path, changes: dict[str, Any]) -> None:
        with pytest.raises(errors.ConfigOptionInvalid):
            made(machine, file, **changes).attach(create=True)
        assert machine.log == []

    def test_those_who_set_up_at_once_get_one_storage(self, machine: FakeMachine, file: Path, monkeypatch) -> None:
        monkeypatch.setattr(backing_file, "_LOCK_SECONDS", 30)
        with ThreadPoolExecutor(4) as workers:
            for done in [workers.submit(made(machine, file).attach, create=True) for _ in range(4)]:
                done.result(60)
        assert_ready(machine, file)
        assert len(machine.ran("vgcreate")) == 1

    def test_a_lock_that_somebody_keeps_is_told(self, machine: FakeMachine, file: Path) -> None:
        descriptor = os.open(file.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with pytest.raises(errors.StorageBusy):
                made(machine, file).attach(create=True)
        finally:
            os.close(descriptor)
        assert names(file) == []


class TestDetach:
    @pytest.mark.parametrize("delete", [False, True])
    def test_repeated_it_succeeds(self, machine: FakeMachine, file: Path, delete: bool) -> None:
        made(machine, file).detach(delete=delete)
        made(machine, file).attach(create=True)
        for _ in range(2):
            made(machine, file).detach(delete=delete)
            assert machine.loops() == {}
            assert names(file) == ([] if delete else [file.name])

    def test_all_data_is_kept_and_found_again(self, machine: FakeMachine, file: Path) -> None:
        made(machine, file).attach(create=True)
        write_group(file, VG, TAG, **LVS)
        group = read_group(file)
        made(machine, file).detach(delete=False)
        made(machine, file).attach(create=False)
        assert_ready(machine, file)
        assert read_group(file) == group

    def test_deletes_what_is_not_attached(self, machine: FakeMachine, file: Path) -> None:
        made(machine, file).attach(create=True)
        machine.reboot()
        made(machine, file).detach(delete=True)
        assert names(file) == []
        assert machine.loops() == {}

    @pytest.mark.parametrize("delete", [False, True])
    def test_what_is_open_stays(self, machine: FakeMachine, file: Path, delete: bool) -> None:
        made(machine, file).attach(create=True)
        write_group(file, VG, TAG, **LVS, **{"volume-2": ("linear", True)})
        with pytest.raises(errors.BackendInUse, match=r"open logical volumes: volume-2\.$"):
            made(machine, file).detach(delete=delete)
        assert_ready(machine, file)

    @pytest.mark.parametrize("delete", [False, True])
    def test_the_last_copy_of_a_removed_file_stays(self, machine: FakeMachine, file: Path, delete: bool) -> None:
        made(machine, file).attach(create=True)
        file.unlink()
        with pytest.raises(errors.BackendInUse, match="somebody has removed the file") as caught:
            made(machine, file).detach(delete=delete)
        assert "cp --sparse=always /dev/loop0" in caught.value.hint
        assert machine.active() == {VG}

    def test_a_device_that_somebody_keeps_open_is_told(self, machine: FakeMachine, file: Path) -> None:
        made(machine, file).attach(create=True)
        machine._vgchange = lambda _: (0, "", "")  # type: ignore[method-assign]
        with pytest.raises(errors.BackendInUse, match="still has it open"):
            made(machine, file).detach(delete=False)

    def test_the_storage_of_another_backend_is_not_touched(self, machine: FakeMachine, file: Path) -> None:
        made(machine, file).attach(create=True)
        second = file.with_name("two.img")
        made(machine, second, backend="two", vg="volmig-two").attach(create=True)
        made(machine, file).detach(delete=True)
        assert names(file) == ["two.img"]
        assert machine.active() == {"volmig-two"}


class TestKilled:
    """After kill -9 at any place the same call, or the other one, ends what was begun."""

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("then", ["attach", "detach", "delete"])
    @pytest.mark.parametrize("work", ["attach", "find", "detach", "delete"])
    def test_at_each_command(self, tmp_path: Path, work: str, then: str, when: str) -> None:
        number = 0
        while True:
            files = tmp_path / str(number)
            (files / "devices").mkdir(parents=True)
            (files / "files").mkdir()
            machine, file = FakeMachine(files / "devices"), files / "files" / "one.img"
            if work != "attach":
                made(machine, file).attach(create=True)
                write_group(file, VG, TAG, **LVS)
            if work == "find":
                machine.reboot()
            group = read_group(file) if file.exists() else None
            machine.log.clear()
            setattr(machine, when, lambda reached, number=number: die() if reached == number else None)
            status = in_a_process(lambda: act(made(machine, file), work))  # noqa: B023
            setattr(machine, when, lambda _: None)
            if status == 0:
                break
            assert status == -9
            self.check(machine, file, then, group, may_be_gone=work == "delete")
            number += 1
        assert number >= {"attach": 6, "find": 6, "detach": 5, "delete": 5}[work]

    def check(self, machine: FakeMachine, file: Path, then: str, group: Any, *, may_be_gone: bool) -> None:
        was_there = file.exists()
        assert was_there or group is None or may_be_gone
        act(made(machine, file), then)
        if then == "attach":
            assert_ready(machine, file)
        else:
            assert machine.loops() == {}
            assert names(file) == ([file.name] if was_there and then == "detach" else [])
        if group and was_there and then != "delete":
            assert read_group(file) == group


def act(it: Loopback, work: str) -> None:
    if work in {"attach", "find"}:
        it.attach(create=True)
    else:
        it.detach(delete=work == "delete")
