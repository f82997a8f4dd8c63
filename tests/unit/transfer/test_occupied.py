"""Who uses a device or a file, as a made-up kernel tells it, and what is on it, as a made-up blkid tells it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from volmig import errors
from volmig.transfer.guard import occupied, signatures
from volmig.transfer.guard.occupied import Storage, System
from volmig.transfer.guard.signatures import Answer, signature_of


def device(major: int, minor: int) -> Storage:
    return Storage(is_device=True, number=(major, minor))


DISK, PART, OTHER = device(8, 0), device(8, 1), device(8, 16)
VOLUME, LOOP = device(253, 0), device(7, 3)
FILE = Storage(is_device=False, number=(8, 1), inode=42)


@dataclass
class Kernel:
    """A disk with a partition, a logical volume on that, another disk, and loop devices; nothing is used."""

    root: Path
    nodes: dict[str, Storage] = field(default_factory=dict)

    @property
    def system(self) -> System:
        return System(proc=self.root / "proc", sys=self.root / "sys", identify=self.nodes.get)

    def write(self, path: str, text: str = "") -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def add(self, storage: Storage, directory: str, node: str) -> None:
        number = f"{storage.number[0]}:{storage.number[1]}"
        self.write(f"sys/{directory}/dev", f"{number}\n")
        link = self.root / "sys/dev/block" / number
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.root / "sys" / directory)
        self.nodes[node] = storage

    def mounts(self, *lines: str) -> None:
        self.write("proc/self/mountinfo", "".join(f"{line}\n" for line in lines))

    def swaps(self, *lines: str) -> None:
        self.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n" + "".join(f"{line}\n" for line in lines))

    def loop(self, backing: str) -> None:
        self.write("sys/block/loop3/loop/backing_file", f"{backing}\n")

    def process(self, pid: int, name: str, link: str, flags: int) -> None:
        self.write(f"proc/{pid}/comm", f"{name}\n")
        self.write(f"proc/{pid}/fdinfo/5", f"pos:\t0\nflags:\t0{flags:o}\nmnt_id:\t9\n")
        place = self.root / f"proc/{pid}/fd/5"
        place.parent.mkdir(parents=True)
        place.symlink_to(link)
        if link in self.nodes:
            self.nodes[str(place)] = self.nodes[link]


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    made = Kernel(tmp_path)
    made.mounts("22 1 0:21 / /proc rw,relatime - proc proc rw")
    made.swaps()
    made.add(DISK, "block/sda", "/dev/sda")
    made.add(PART, "block/sda/sda1", "/dev/sda1")
    made.write("sys/block/sda/sda1/partition", "1\n")
    made.add(OTHER, "block/sdb", "/dev/sdb")
    made.add(VOLUME, "block/dm-0", "/dev/dm-0")
    made.add(LOOP, "block/loop3", "/dev/loop3")
    made.nodes["/srv/disk.img"] = FILE
    return made


def told(storage: Storage, kernel: Kernel) -> list[str]:
    return [one.what for one in occupied.obstacles(storage, "/dev/it", kernel.system)]


class TestObstacles:
    def test_nothing_stands_against_what_nobody_uses(self, kernel: Kernel) -> None:
        for storage in (DISK, PART, OTHER, VOLUME, LOOP, FILE):
            assert told(storage, kernel) == []

    def test_mounted(self, kernel: Kernel) -> None:
        kernel.mounts(
            "22 1 0:21 / /proc rw,relatime - proc proc rw",
            r"36 22 8:1 / /mnt/my\040disk rw,noatime shared:1 - ext4 /dev/sda1 rw",
            "37 22 8:1 /sub /srv ro - ext4 /dev/sda1 rw",
            "garbage",
            "38 22 8:1 / /short",
        )
        assert told(PART, kernel) == ["it is mounted at /mnt/my disk", "it is mounted at /srv"]
        assert told(DISK, kernel)[0] == "its partition /dev/sda1 is mounted at /mnt/my disk"
        assert told(OTHER, kernel) == []
        assert occupied.obstacles(PART, "/dev/my disk", kernel.system)[0].shown_by == "lsblk '/dev/my disk'"

    def test_mounted_by_a_file_system_with_a_number_of_its_own(self, kernel: Kernel) -> None:
        kernel.mounts("40 22 0:52 /@ / rw - btrfs /dev/sdb rw", "41 22 0:53 / /x rw - fuse server:/dev/sdb rw")
        assert told(OTHER, kernel) == ["it is mounted at /"]

    def test_swap(self, kernel: Kernel) -> None:
        kernel.nodes["/swap file"] = FILE
        kernel.swaps("/dev/sda1 partition 102396 0 -2", r"/swap\040file file 8188 0 -3", "/gone file 1 1 1", "")
        assert told(PART, kernel) == ["it is in use as swap"]
        assert told(DISK, kernel) == ["its partition /dev/sda1 is in use as swap"]
        assert told(FILE, kernel) == ["it is in use as swap"]
        assert told(OTHER, kernel) == []

    def test_held_by_a_mapping_and_by_a_raid(self, kernel: Kernel) -> None:
        kernel.write("sys/block/sda/sda1/holders/dm-0/dm/name", "vg-lv\n")
        kernel.write("sys/block/sdb/holders/md127/dev", "9:127\n")
        assert told(PART, kernel) == ["it is part of /dev/mapper/vg-lv"]
        assert told(DISK, kernel) == ["its partition /dev/sda1 is part of /dev/mapper/vg-lv"]
        assert told(OTHER, kernel) == ["it is part of /dev/md127"]

    def test_backing_of_a_loop_device(self, kernel: Kernel) -> None:
        kernel.loop("/srv/disk.img")
        assert told(FILE, kernel) == ["the loop device /dev/loop3 is made of it"]
        kernel.mounts("36 22 7:3 / /mnt rw - ext4 /dev/loop3 rw")
        assert told(FILE, kernel) == ["the loop device /dev/loop3 is made of it, which is mounted at /mnt"]
        assert told(LOOP, kernel) == ["it is mounted at /mnt"]
        kernel.loop("/dev/sda1")
        assert "the loop device /dev/loop3 is made of it" in told(DISK, kernel)[0]
        kernel.loop("/srv/disk.img (deleted)")
        assert told(FILE, kernel) == []

    def test_open_for_writing(self, kernel: Kernel) -> None:
        kernel.process(100, "qemu-system-x86", "/dev/sda1", os.O_RDWR | os.O_DIRECT)
        kernel.process(101, "blkid", "/dev/sda1", os.O_RDONLY)
        kernel.process(102, "writer", "/dev/sdb", os.O_WRONLY)
        kernel.process(os.getpid(), "this", "/dev/sda1", os.O_RDWR)
        assert told(PART, kernel) == ["it is open for writing in process 100 (qemu-system-x86)"]
        assert told(DISK, kernel) == ["it is open for writing in process 100 (qemu-system-x86)"]
        kernel.process(103, "second", "/dev/sda1", os.O_WRONLY)
        [both] = occupied.obstacles(PART, "/dev/sda1", kernel.system)
        assert both.what == "it is open for writing in processes 100 (qemu-system-x86), 103 (second)"
        assert both.shown_by == "fuser --verbose /dev/sda1"

    def test_files_of_other_processes_are_not_looked_at(self, kernel: Kernel) -> None:
        # One of them may lie on a server that does not answer.
        asked: list[str] = []
        kernel.process(100, "reader", "/net/dead/file", os.O_RDWR)
        system = System(proc=kernel.root / "proc", sys=kernel.root / "sys", identify=lambda path: asked.append(path))
        occupied.obstacles(PART, "/dev/sda1", system)
        assert not [path for path in asked if "/fd/" in path]

    def test_a_kernel_that_tells_nothing(self, tmp_path: Path) -> None:
        system = System(proc=tmp_path / "proc", sys=tmp_path / "sys")
        assert occupied.obstacles(PART, "/dev/sda1", system) == []


def test_where_a_source_is_mounted(kernel: Kernel) -> None:
    kernel.loop("/srv/disk.img")
    kernel.mounts(
        "36 22 8:1 / /mnt rw - ext4 /dev/sda1 rw",
        "37 22 8:16 / /ro ro - ext4 /dev/sdb ro",
        "38 22 7:3 / /image rw - ext4 /dev/loop3 rw",
    )
    assert occupied.mounted_at(DISK, kernel.system) == ["/mnt"]
    assert occupied.mounted_at(OTHER, kernel.system) == []
    assert occupied.mounted_at(FILE, kernel.system) == ["/image"]


class TestApart:
    @pytest.fixture
    def layers(self, kernel: Kernel) -> Kernel:
        (kernel.root / "sys/block/dm-0/slaves").mkdir()
        (kernel.root / "sys/block/dm-0/slaves/sda1").symlink_to(kernel.root / "sys/block/sda/sda1")
        kernel.loop("/srv/disk.img")
        return kernel

    @pytest.mark.parametrize(
        ("source", "destination"),
        [
            (DISK, DISK),
            (PART, DISK),
            (DISK, PART),
            (VOLUME, PART),
            (VOLUME, DISK),
            (DISK, VOLUME),
            (LOOP, FILE),
            (FILE, LOOP),
            (FILE, PART),
            (FILE, DISK),
        ],
    )
    def test_what_lies_on_the_same_storage_is_refused(
        self, layers: Kernel, source: Storage, destination: Storage
    ) -> None:
        with pytest.raises(errors.RequestInvalid, match="same storage"):
            occupied.check_apart(source, destination, layers.system)

    @pytest.mark.parametrize(
        ("source", "destination"),
        [
            (DISK, OTHER),
            (VOLUME, OTHER),
            (OTHER, FILE),
            # The first sectors of a disk into a file on it, say.
            (DISK, FILE),
            (PART, FILE),
        ],
    )
    def test_what_does_not_is_allowed(self, layers: Kernel, source: Storage, destination: Storage) -> None:
        occupied.check_apart(source, destination, layers.system)

    def test_two_partitions_of_a_disk_are_apart(self, layers: Kernel) -> None:
        second = device(8, 2)
        layers.add(second, "block/sda/sda2", "/dev/sda2")
        layers.write("sys/block/sda/sda2/partition", "2\n")
        occupied.check_apart(PART, second, layers.system)


class TestStorage:
    def test_of_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.touch()
        link = tmp_path / "link"
        os.link(file, link)
        found = occupied.identify(str(file))
        assert found is not None
        assert found == occupied.identify(str(link))
        assert (found.is_device, found.inode) == (False, file.stat().st_ino)

    def test_of_a_device(self) -> None:
        status = os.stat_result((stat.S_IFBLK | 0o600, 1, 2, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": os.makedev(259, 300)})
        assert Storage.of(status) == device(259, 300)

    @pytest.mark.parametrize("path", ["/dev/null", "/", "/nonexistent", "\0"])
    def test_of_nothing(self, path: str) -> None:
        assert occupied.identify(path) is None


# --- signatures -------------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "image").write_bytes(bytes(1024 * 1024))
    fd = os.open(tmp_path / "image", os.O_RDWR)
    yield fd
    os.close(fd)


def answering(status: int, output: str = "", complaint: str = "") -> Callable[[int], Answer]:
    return lambda _: Answer(status=status, output=output, complaint=complaint)


class TestSignature:
    @pytest.mark.parametrize(
        ("output", "said"),
        [
            (
                r"DEVNAME=/dev/x" "\n" r"LABEL=my\ disk" "\nTYPE=ext4\nUSAGE=filesystem",
                "a file system (ext4, label 'my disk')",
            ),
            ("TYPE=LVM2_member\nUSAGE=raid\nUUID=x", "a member of a RAID or volume group (LVM2_member)"),
            ("TYPE=crypto_LUKS\nUSAGE=crypto", "an encrypted volume (crypto_LUKS)"),
            ("TYPE=swap\nUSAGE=other", "data (swap)"),
            ("PTTYPE=gpt\nPTUUID=y", "a partition table (gpt)"),
            ("TYPE=vfat\nUSAGE=filesystem\nPTTYPE=dos", "a file system (vfat) and a partition table (dos)"),
            ("SOMETHING=else", "a signature"),
        ],
    )
    def test_what_is_found_is_said(self, opened: int, output: str, said: str) -> None:
        assert str(signature_of(opened, "x", answering(0, output + "\n"))) == said

    def test_contradicting_ones_count(self, opened: int) -> None:
        found = signature_of(opened, "x", answering(8, "", "ambivalent result (probably more filesystems)"))
        assert str(found) == "several signatures that contradict each other"

    def test_nothing(self, opened: int) -> None:
        assert signature_of(opened, "x", answering(2)) is None
        assert signature_of(opened, "x", answering(0, "DEVNAME=/dev/x\nPART_ENTRY_TYPE=0x83\n")) is None

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (answering(2, "", "blkid: error: /x: Input/output error"), "Input/output error"),
            (answering(4, "", ""), "ended with status 4"),
            (answering(-1, "", "no answer within 30 seconds"), "no answer"),
            (answering(127), "status 127"),
        ],
    )
    def test_not_knowing_is_no_permission(self, opened: int, answer: Callable[[int], Answer], reason: str) -> None:
        with pytest.raises(errors.TransferFailed, match=reason) as caught:
            signature_of(opened, "/dev/x", answer)
        assert "Nothing was written" in caught.value.hint

    def test_what_cannot_be_read_is_not_empty(self, opened: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(fd: int, length: int, offset: int) -> bytes:
            if offset:
                raise OSError(5, "Input/output error")
            return bytes(length)

        monkeypatch.setattr(os, "pread", broken)
        with pytest.raises(errors.TransferFailed, match="Input/output error"):
            signature_of(opened, "/dev/x", answering(2))

    def test_the_program_itself(self, opened: int, tmp_path: Path) -> None:
        assert signature_of(opened, "image") is None
        program = shutil.which("mkswap", path="/usr/sbin:/sbin:/usr/bin")
        assert program is not None
        subprocess.run([program, "--label", "a b", str(tmp_path / "image")], check=True, capture_output=True)
        before = (tmp_path / "image").read_bytes()
        assert str(signature_of(opened, "image")) == "data (swap, label 'a b')"
        assert (tmp_path / "image").read_bytes() == before

    def test_a_program_that_is_missing(self, opened: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
        with pytest.raises(errors.ProgramMissing, match="blkid") as caught:
            signature_of(opened, "image")
        assert "util-linux" in caught.value.hint

    def test_a_program_that_does_not_answer(self, opened: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hanging = tmp_path / "blkid"
        hanging.write_text(f"#!{sys.executable} -IS\nimport time\ntime.sleep(60)\n")
        hanging.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(signatures, "_TIMEOUT_SECONDS", 0.2)
        with pytest.raises(errors.TransferFailed, match=r"no answer within 0\.2 seconds"):
            signature_of(opened, "image")
