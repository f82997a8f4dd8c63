"""File systems on logical volumes, full of files as people keep them: migrated, checked, and compared file by file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from .bench import Bench, bench, files
from .devices import FILE_SYSTEMS, nothing_left, unmount
from .support import MIB, Group, run, volume_group

__all__ = ["nothing_left"]

SIZE = 40 * MIB
READ_ONLY = {"ext4": "ro,noload", "xfs": "ro,norecovery"}
"""Options by which mounting changes nothing."""
CHECKS: dict[str, Sequence[str]] = {"ext4": ("e2fsck", "-fn"), "xfs": ("xfs_repair", "-n")}

NAMES = ("naïve Größe 数据 🙂", "line\nbreak", " blanks around ", "-rf", "a" * 255, "tab\tand\\slash", "$(id)`'\"")

Tree = dict[Path, tuple[object, ...]]
"""What there is at each path, below the root of the file system."""


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with volume_group(size_bytes=140 * MIB, thin_pools={"pool": 56 * MIB}) as made:
        yield made


@pytest.fixture(scope="module")
def yard(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("yard")
    (root / "files").mkdir()
    lvm = {"volume_driver": "lvm", "lvm_volume_group": group.name}
    backends = {
        "files": files(root / "files"),
        "thick": lvm,
        "thin": {**lvm, "lvm_type": "thin", "lvm_thin_pools": "pool"},
    }
    with bench(root / "state", backends, heartbeat_seconds=0.3) as made:
        yield made


def fill(root: Path) -> None:
    """Make files of many sizes, with odd names, holes, links and attributes, in directories within directories."""
    chance = random.Random(8)
    sizes = [0, 1, 511, 4095, 4096, 4097, 65537, MIB + 1, 3 * MIB]
    sizes += [chance.randrange(20_000) for _ in range(60)]
    for number, size in enumerate(sizes):
        folder = root / f"d{number % 7}" / f"e{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"f{number}"
        path.write_bytes(chance.randbytes(size))
        path.chmod(0o600 + number % 0o77)
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number))
    for name in (
        "naïve Größe 数据 🙂",
        "line\nbreak",
        " leading and trailing ",
        "-rf",
        "a" * 255,
        "tab\tand\\slash",
        "$(id)`'\"",
    ):
        (root / name).write_text(name * 3)
    (root / os.fsdecode(b"no \xff utf-8 \xfe")).write_bytes(b"\0\xff")
    with (root / "sparse").open("wb") as file:
        for offset in (0, 5 * MIB + 123, 900 * MIB):
            file.seek(offset)
            file.write(chance.randbytes(5000))
        file.truncate(1024 * MIB)
    first = root / "d0" / "e0" / "f0"
    for number in range(5):
        (root / f"hard{number}").hardlink_to(first)
    (root / "link").symlink_to("d1/e1/f1")
    (root / "dangling").symlink_to("/nowhere/" + "x" * 200)
    os.mkfifo(root / "fifo")
    os.setxattr(first, "user.comment", "größer".encode())
    os.setxattr(first, "user.binary", bytes(range(256)) * 3)
    os.setxattr(root / "d1", "user.of-a-directory", b"")
    os.setxattr(root / "d2" / "e2" / "f2", "trusted.root", b"\0")
    for number in range(300):
        (root / "d3" / f"{number:03}-many").write_bytes(b"")


def tree(root: Path) -> Tree:
    """Return everything below a directory that is not a matter of reading it."""
    found: Tree = {}
    inodes: dict[int, Path] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = path.readlink()
        elif stat.S_ISREG(status.st_mode):
            content = data_digest(path)
        key = path.relative_to(root)
        found[key] = (
            (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns, status.st_blocks),
            None if stat.S_ISDIR(status.st_mode) else status.st_size,
            inodes.setdefault(status.st_ino, key),
            content,
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
        )
    return found


def attributes(path: Path) -> dict[str, bytes]:
    """Return the extended attributes of whatever has that path, not of what it links to."""
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def data_digest(path: Path) -> str:
    """Return the digest of a file's data and of where it lies; a hole of a gigabyte is not read."""
    state, offset = hashlib.sha256(), 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while offset < end:
            try:
                first = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            offset = os.lseek(file.fileno(), first, os.SEEK_HOLE)
            file.seek(first)
            state.update(f"{first}-{offset}:".encode() + file.read(offset - first))
    return state.hexdigest()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_system_full_of_files_goes_round(yard: Bench, group: Group, tmp_path: Path, kind: str) -> None:
    places = [f"thick#{group.name}", "thin#pool", "files", f"thick#{group.name}"]
    volume = yard.engine.create_volume(host=f"here@{places[0]}", size_bytes=SIZE)
    run(*FILE_SYSTEMS[kind], yard.path(volume))
    place = tmp_path / "mounted"
    place.mkdir()
    with mounted(yard.path(volume), place):
        fill(place)
    with mounted(yard.path(volume), place, READ_ONLY[kind]):
        expected = tree(place)
    assert len(expected) > 380
    for destination in places[1:]:
        target = destination if "#" in destination else f"{destination}#{destination}"
        yard.engine.migrate(volume.id, f"here@{target}").result(300)
        yard.assert_nothing_left()
        found = yard.engine.show_volume(volume.id)
        assert found.host == f"here@{target}"
        assert_whole(yard.path(found), kind, place, expected)
    yard.engine.delete_volume(volume.id)
    yard.assert_nothing_left()


def assert_whole(device: str, kind: str, place: Path, expected: Tree) -> None:
    """Check a file system, and compare all that is in it."""
    checked = subprocess.run([*CHECKS[kind], device], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with mounted(device, place, READ_ONLY[kind]):
        found = tree(place)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path] == value, path


@contextlib.contextmanager
def mounted(device: str, place: Path, options: str = "defaults") -> Iterator[None]:
    """Mount a file system while the context lasts; an image file by a loop device."""
    run("mount", "-o", options + ("" if device.startswith("/dev/") else ",loop"), device, str(place))
    try:
        yield
    finally:
        unmount(place)
