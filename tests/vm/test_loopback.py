"""Loopback volume groups on a real device mapper: made, found again after a reboot, killed, taken down."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.vm.support import MIB, new_name, require_device_mapper, run
from volmig import conf as configuration
from volmig import errors
from volmig.drivers.lvm.commands import Commands, Completed, run_process
from volmig.drivers.lvm.loopback import Loopback
from volmig.engine import Engine

SIZE = 64 * MIB
DATA = b"what must not be lost" * 1000


class Storage:
    """One backend's loopback storage, and what an operator does to it by other means."""

    def __init__(self, file: Path, vg: str) -> None:
        self.file = file
        self.vg = vg

    def loopback(self, started: Callable[[Sequence[str]], None] = lambda _: None) -> Loopback:
        """Return what is tested. *started* is told of each command that has ended."""

        def run_and_tell(command: Sequence[str], stdin: bytes | None) -> Completed:
            completed = run_process(command, stdin)
            started(command)
            return completed

        commands = Commands(run=run_and_tell)
        return Loopback(commands, backend=self.file.stem, file=self.file, size_bytes=SIZE, vg=self.vg)

    @property
    def volume(self) -> Path:
        return Path("/dev", self.vg, "data")

    def fill(self) -> None:
        run("lvcreate", "-q", "-y", "-Wn", "-Zn", "-L", "8m", "-n", "data", self.vg)
        with self.volume.open("r+b") as device:
            device.write(DATA)

    def has_its_data(self) -> bool:
        return self.volume.read_bytes().startswith(DATA)

    def devices(self) -> list[str]:
        return [line.partition(":")[0] for line in run("losetup", "--associated", str(self.file)).splitlines()]

    def let_go(self) -> None:
        """Leave all of it as a reboot does."""
        run("vgchange", "-q", "-an", self.vg)
        for device in self.devices():
            run("losetup", "--detach", device)

    def killed_after(self, work: Callable[[Loopback], None], program: str, *word: str) -> None:
        """Do something in a process that is killed when a command has ended that has these words."""

        def kill(command: Sequence[str]) -> None:
            if command[0] == program and set(word) <= set(command):
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if child == 0:
            try:
                work(self.loopback(kill))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def assert_gone(self) -> None:
        left = [path.name for path in self.file.parent.iterdir() if self.file.name in path.name]
        assert left == []
        assert self.file.name not in run("losetup", "--list")
        assert self.vg not in run("vgs", "--noheadings", "-o", "vg_name")


@pytest.fixture
def directory() -> Iterator[Path]:
    require_device_mapper()
    path = Path("/dev/shm", new_name("loopback"))  # noqa: S108
    path.mkdir()
    try:
        yield path
    finally:
        for line in run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines():
            device, _, file = line.partition(" ")
            if path.name in file:
                groups = run("pvs", "--noheadings", "-o", "vg_name", device, check=False).split()
                for group in groups:
                    run("vgchange", "-q", "-an", group, check=False)
                run("losetup", "--detach", device)
        shutil.rmtree(path)


def storage(directory: Path, backend: str = "one") -> Storage:
    return Storage(directory / f"{backend}.img", new_name())


def test_one_of_two_lives_through_a_reboot_and_is_taken_down(directory: Path) -> None:
    one, two = storage(directory, "one"), storage(directory, "two")
    one.loopback().attach(create=True)
    assert one.file.stat().st_mode & 0o7777 == 0o600
    assert one.file.stat().st_size == SIZE
    one.fill()
    one.let_go()
    two.loopback().attach(create=True)  # has the number that the other one had
    one.loopback().attach(create=False)
    with one.volume.open("rb"), pytest.raises(errors.BackendInUse, match="open logical volumes: data"):
        one.loopback().detach(delete=False)
    one.loopback().detach(delete=False)
    assert one.devices() == []
    assert not one.volume.exists()
    one.loopback().attach(create=False)
    assert one.has_its_data()
    one.loopback().detach(delete=True)
    one.assert_gone()
    assert len(two.devices()) == 1


def test_a_kill_in_the_middle_of_a_set_up(directory: Path) -> None:
    made = storage(directory)
    for words in (("losetup", "--find"), ("vgcreate",)):
        made.killed_after(lambda it: it.attach(create=True), *words)
        assert not made.file.exists()
    made.loopback().attach(create=True)
    assert [path.name for path in directory.iterdir()] == [made.file.name]
    made.fill()
    made.let_go()
    made.killed_after(lambda it: it.attach(create=True), "losetup", "--find")
    made.loopback().attach(create=False)
    assert made.has_its_data()
    assert len(made.devices()) == 1


def test_a_kill_in_the_middle_of_a_removal(directory: Path) -> None:
    made = storage(directory)
    made.loopback().attach(create=True)
    made.fill()
    made.killed_after(lambda it: it.detach(delete=True), "vgchange")
    made.loopback().attach(create=False)
    assert made.has_its_data()
    made.killed_after(lambda it: it.detach(delete=True), "losetup", "--detach")
    assert not made.file.exists()
    made.loopback().detach(delete=True)
    made.assert_gone()


def test_what_belongs_to_somebody_else_is_left_alone(directory: Path) -> None:
    made, other = storage(directory), storage(directory, "other")
    other.loopback().attach(create=True)
    shared = Storage(made.file, other.vg)
    with pytest.raises(errors.BackendSetupFailed, match="a volume group named"):
        shared.loopback().attach(create=True)
    assert not made.file.exists()
    with made.file.open("xb") as stream:
        stream.truncate(SIZE)
    run("mkfs.ext4", "-q", str(made.file))
    before = made.file.read_bytes()
    for act in (lambda it: it.attach(create=True), lambda it: it.detach(delete=True)):
        with pytest.raises(errors.BackendSetupFailed, match="should hold the volume group"):
            act(made.loopback())
    assert made.file.read_bytes() == before
    assert made.devices() == []


def test_the_last_copy_of_a_file_that_somebody_removed_is_kept(directory: Path) -> None:
    made = storage(directory)
    made.loopback().attach(create=True)
    made.fill()
    made.file.unlink()
    for act in (lambda it: it.attach(create=True), lambda it: it.detach(delete=False)):
        with pytest.raises(errors.VolmigError, match="somebody has removed the file"):
            act(made.loopback())
    assert made.has_its_data()


def test_a_volume_moves_between_two_backends_and_outlives_a_reboot(directory: Path) -> None:
    stores = {name: storage(directory, name) for name in ("one", "two")}
    overrides: dict[str, dict[str, object]] = {
        "DEFAULT": {"enabled_backends": ["one", "two"], "host": "here", "state_path": str(directory / "state")}
    }
    for name, made in stores.items():
        overrides[name] = {
            "volume_driver": "lvm",
            "lvm_volume_group": made.vg,
            "lvm_loopback_file": str(made.file),
            "lvm_loopback_size_bytes": SIZE,
        }
    one, two = stores["one"], stores["two"]
    with Engine(configuration.load([], overrides=overrides)) as engine:
        assert engine.setup_backend("one").up
        assert engine.setup_backend("two").up
        volume = engine.create_volume(host=f"here@one#{one.vg}", size_bytes=8 * MIB)
        with Path(engine.volume_path(volume.id)).open("r+b") as device:
            device.write(DATA)
        engine.migrate(volume.id, f"here@two#{two.vg}").result()
        with pytest.raises(errors.BackendInUse, match=volume.id):
            engine.teardown_backend("two", delete_data=True)
    for made in stores.values():
        made.let_go()
    with Engine(configuration.load([], overrides=overrides)) as engine:
        assert Path(engine.volume_path(volume.id)).read_bytes().startswith(DATA)
        engine.teardown_backend("one", delete_data=True)
        one.assert_gone()
        engine.teardown_backend("two")
        kept = two.file.rename(two.file.with_suffix(".kept"))
        with pytest.raises(errors.BackendDown, match="there is no file"):
            engine.setup_backend("two")
        assert not two.file.exists()
        kept.rename(two.file)
        assert engine.setup_backend("two").up
        assert Path(engine.volume_path(volume.id)).read_bytes().startswith(DATA)
        engine.delete_volume(volume.id)
        engine.teardown_backend("two", delete_data=True)
        two.assert_gone()
