"""Scenarios after whose kills the power fails, too: what no file system had yet been made to write is gone.

The store and each backend have an ext4 of their own, over a loop device, over an image file. Right after the kill the
images are copied as they are: with what ext4 has written to its device, and without what it still had in memory, as a
disk without a volatile cache would have it. The copies are mounted in place of the originals, which replays their
journals, and there the recovery runs. By itself ext4 writes nothing for minutes (``commit=300``).

The kernel's boot stays the same. volmig may so believe its process table that the worker is gone, which it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volmig.drivers._directory import OpenDirectory
from volmig.testing import patterns
from volmig.testing.killsweep import FileBench, Scenario, cases, migrate_plainly
from volmig.testing.killsweep.bench import MIB

from ..storage import KIB, run, unmount

IMAGE_BYTES = 96 * MIB
_OPTIONS = "loop,commit=300,data=ordered,noauto_da_alloc,noatime"
_FORMAT = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"


class PowerBench(FileBench):
    """Files on file systems whose power fails at each kill.

    :param together: both backends are on one file system, so that a volume can be renamed from one to the other.
    """

    def __init__(
        self,
        driver: Mapping[str, Any],
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        together: bool = False,
    ) -> None:
        super().__init__(driver, settings)
        self._together = together
        self.file_systems = ("state", "storage") if together else ("state", "left", "right")

    def base(self, directory: Path, name: str) -> Path:
        return directory / "storage" / name if self._together else directory / name

    def begin(self, directory: Path) -> None:
        empty = _empty_file_system(directory.parent)
        for name in self.file_systems:
            _copy(empty, directory / f"{name}.img")
            (directory / name).mkdir(mode=0o700)
            _mount(directory / f"{name}.img", directory / name)
        for name in ("left", "right"):
            self.base(directory, name).mkdir(mode=0o700, exist_ok=True)
        for name in self.file_systems:
            # What is there before the run begins was there for long.
            run("sync", "--file-system", directory / name)

    def interrupted(self, directory: Path) -> None:
        for name in self.file_systems:
            _copy(directory / f"{name}.img", directory / f"{name}.lost")
        for name in self.file_systems:
            unmount(directory / name)
            (directory / f"{name}.lost").rename(directory / f"{name}.img")
            _mount(directory / f"{name}.img", directory / name)

    def leftovers(self, directory: Path) -> Sequence[str]:
        return [name for name in super().leftovers(directory) if not name.endswith("lost+found")]

    def end(self, directory: Path) -> None:
        for name in self.file_systems:
            if (directory / name).is_mount():
                unmount(directory / name)
        super().end(directory)


def _empty_file_system(folder: Path) -> Path:
    """Return the image of an empty ext4, which is made once by each process."""
    image = folder / f"empty-{os.getppid()}.img"
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", _FORMAT, image)
        run("debugfs", "-w", "-R", "rmdir lost+found", image)
    return image


def _copy(source: Path, destination: Path) -> None:
    run("cp", "--reflink=auto", "--sparse=always", source, destination)


def _mount(image: Path, place: Path) -> None:
    run("mount", "-t", "ext4", "-o", _OPTIONS, image, place)
    place.chmod(0o700)


def unmount_below(folder: Path) -> list[Path]:
    """Unmount what is mounted below a directory, and return it."""
    mounts = [Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()]
    found = [place for place in mounts if folder in place.parents]
    for place in reversed(found):
        unmount(place)
    return found


def without_fsync() -> None:
    """Take from this process what makes the names of a directory durable: a defect, for the sweep to find."""

    def forget(directory: OpenDirectory) -> None:
        """Do nothing."""

    OpenDirectory.sync = forget  # type: ignore[method-assign]


_PATTERN = patterns.holed(4 * MIB, seed=11, hole_bytes=256 * 1024)

_SEGMENTS = patterns.Pattern(
    size_bytes=64 * MIB, seed=13, data=tuple((at, at + 64 * KIB) for at in range(0, 64 * MIB, 2 * MIB))
)
"""Four segments of the digest, for as many checkpoints."""

_FILES = PowerBench({"volume_driver": "file"})
_HANDLES = PowerBench({"volume_driver": "fake", "fake_connection": "handle"})
_TOGETHER = PowerBench({"volume_driver": "file"}, together=True)

SCENARIOS = (
    Scenario(name="power-block", bench=_FILES, pattern=_PATTERN, act=migrate_plainly(force_host_copy=True)),
    Scenario(name="power-file", bench=_HANDLES, pattern=_PATTERN, act=migrate_plainly(force_host_copy=True)),
    Scenario(name="power-driver", bench=_TOGETHER, pattern=_PATTERN, act=migrate_plainly()),
    Scenario(
        name="power-copy",
        bench=_FILES,
        pattern=_SEGMENTS,
        act=migrate_plainly(force_host_copy=True, bandwidth_limit_bytes=8 * MIB),
        adjust=cases.checkpoint_each_segment,
        instants=20,
    ),
    Scenario(
        name="power-rollback",
        bench=_FILES,
        pattern=_PATTERN,
        prepare=cases.migrate_and_retain,
        act=cases.roll_back(),
    ),
)

DEFECTIVE = Scenario(
    name="power-without-fsync",
    bench=_FILES,
    pattern=_PATTERN,
    act=migrate_plainly(force_host_copy=True),
    adjust=without_fsync,
)

ALL = (*SCENARIOS, DEFECTIVE)
