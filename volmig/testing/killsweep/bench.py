"""Where a sweep takes place: two pools with real storage, and a way to look at them that is not the engine's."""

from __future__ import annotations

import abc
import dataclasses
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from oslo_config import cfg

from volmig import conf as configuration
from volmig.model import PoolAddress, Volume
from volmig.testing import patterns
from volmig.testing.killsweep.drivers import MarkedCalls
from volmig.testing.patterns import Pattern

MIB = 1024 * 1024

_STEP_BYTES = 64 * 1024
_ZEROES = bytes(_STEP_BYTES)

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    # A heartbeat that comes in no run would be counted in one and not in the next.
    "migration": {"lease_seconds": 60.0, "heartbeat_seconds": 15.0, "cleanup_delay_seconds": 0.01},
    "database": {"busy_timeout_seconds": 10.0},
}
"""Options of every run, by group."""


class Bench(abc.ABC):
    """Two pools of real storage. Each run has a directory of its own; the store is in its sub-directory ``state``.

    Objects are looked at by other means than those that are tested.
    """

    source: str
    """Pool in which the volumes are at the beginning, as ``host@backend#pool``."""
    destination: str
    in_parallel: bool = True
    """Whether several runs can go on at once, since each has storage of its own."""
    patience_seconds: float = 20.0
    """How long anything in a run may take before it counts as hung."""

    @abc.abstractmethod
    def configuration(self, directory: Path) -> cfg.ConfigOpts:
        """Return the configuration of a run."""

    @abc.abstractmethod
    def fill(self, directory: Path, volume: Volume, pattern: Pattern) -> None:
        """Write the volume's first content, durably."""

    @abc.abstractmethod
    def objects(self, directory: Path, pool: str) -> Mapping[str, str]:
        """Return the objects in a pool: the digest of each one's content (:func:`content_digest`), by its name."""

    def begin(self, directory: Path) -> None:
        """Make what a run needs before its first engine."""
        (directory / "state").mkdir(mode=0o700)

    def mark(self, calls: MarkedCalls) -> None:
        """Mark points within the drivers' calls. Without this method they are the system calls that change files."""
        calls.mark_system_calls()

    def interrupted(self, directory: Path) -> None:
        """Do what else befalls the storage when the process was killed, before anybody recovers."""

    def leftovers(self, directory: Path) -> Sequence[str]:
        """Return what lies in the storage, at rest, and is neither an object nor meant to stay there."""
        return ()

    def end(self, directory: Path) -> None:
        """Remove all that the run has made, whatever became of it."""
        shutil.rmtree(directory)


class FileBench(Bench):
    """Two backends, ``left`` and ``right``, that keep their volumes as files: of the drivers ``file`` or ``fake``.

    :param driver: options of both backends, with their ``volume_driver``.
    :param settings: further options, by group.
    """

    source = "here@left#left"
    destination = "here@right#right"

    def __init__(self, driver: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._driver = dict(driver)
        self._settings = dict(settings or {})

    def begin(self, directory: Path) -> None:
        super().begin(directory)
        for name in ("left", "right"):
            self.base(directory, name).mkdir(mode=0o700)

    def configuration(self, directory: Path) -> cfg.ConfigOpts:
        groups: dict[str, Mapping[str, Any]] = {
            "DEFAULT": {
                "enabled_backends": ["left", "right"],
                "host": "here",
                "state_path": str(directory / "state"),
            },
            **{name: {**self._driver, **self._place(directory, name)} for name in ("left", "right")},
        }
        for settings in (SETTINGS, self._settings):
            for group, values in settings.items():
                groups[group] = {**groups.get(group, {}), **values}
        return configuration.load([], overrides=groups)

    def base(self, directory: Path, name: str) -> Path:
        """Return the directory of a backend's storage."""
        return directory / name

    def _place(self, directory: Path, name: str) -> Mapping[str, Any]:
        base = self.base(directory, name)
        if self._driver["volume_driver"] == "fake":
            # One directory for both, by which they know that volumes can be moved between them.
            return {"fake_directory": str(base.parent), "fake_pools": [name]}
        return {"file_directory": str(base)}

    def folder(self, directory: Path, pool: str) -> Path:
        """Return the directory that a pool's files are in."""
        name = PoolAddress.parse(pool).pool
        base = self.base(directory, name)
        return base / name if self._driver["volume_driver"] == "fake" else base

    def fill(self, directory: Path, volume: Volume, pattern: Pattern) -> None:
        path = self.folder(directory, volume.host) / (volume.provider_id or volume.backend_name)
        patterns.fill(path, pattern, zeroed=True)

    def objects(self, directory: Path, pool: str) -> Mapping[str, str]:
        folder = self.folder(directory, pool)
        visible = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
        return {path.name: content_digest(path) for path in visible}

    def leftovers(self, directory: Path) -> Sequence[str]:
        """Everything hidden, but for the marks of the directories and the empty one that is kept in reserve."""
        found: list[str] = []
        for name in ("left", "right"):
            for parent, folders, files in os.walk(self.base(directory, name)):
                paths = [Path(parent) / entry for entry in (*files, *folders) if entry.startswith(".")]
                found.extend(str(path.relative_to(directory)) for path in paths if not _may_stay(path))
        return found


def _may_stay(path: Path) -> bool:
    if path.is_dir():
        return path.name == ".volmig-gone-0000000000000000" and not any(path.iterdir())
    return path.name == ".volmig-backend"


def content_digest(end: Path | BinaryIO) -> str:
    """Return a digest of the size of a file, a device or a handle, and of what in it is not zero.

    Where it has holes makes no difference.
    """
    if isinstance(end, Path):
        with end.open("rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            return _digest(size, _read(file, _data_blocks(file.fileno(), size)))
    size = end.seek(0, os.SEEK_END)
    return _digest(size, _read(end, range(0, size, _STEP_BYTES)))


def pattern_digest(pattern: Pattern, size_bytes: int) -> str:
    """Return the :func:`content_digest` of a pattern that was enlarged by zeroes to a size."""
    whole = dataclasses.replace(pattern, size_bytes=size_bytes)
    blocks = {at for start, end in whole.data for at in range(start - start % _STEP_BYTES, end, _STEP_BYTES)}
    return _digest(size_bytes, ((offset, whole.read(offset, _STEP_BYTES)) for offset in sorted(blocks)))


def _digest(size: int, blocks: Iterable[tuple[int, bytes]]) -> str:
    state = hashlib.sha256(str(size).encode())
    for offset, block in blocks:
        if block != _ZEROES[: len(block)]:
            state.update(f"{offset}:".encode() + block)
    return state.hexdigest()


def _read(file: IO[bytes], offsets: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    for offset in offsets:
        file.seek(offset)
        block = bytearray()
        while len(block) < _STEP_BYTES and (piece := file.read(_STEP_BYTES - len(block))):
            block += piece
        yield offset, bytes(block)


def _data_blocks(fd: int, size: int) -> Iterator[int]:
    """Yield where the blocks begin that have data in them, or may have."""
    offset = 0
    while offset < size:
        try:
            first = os.lseek(fd, offset, os.SEEK_DATA)
            end = os.lseek(fd, first, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            first, end = offset, size  # a device, which cannot tell
        offset = max(offset, first // _STEP_BYTES * _STEP_BYTES)
        yield from range(offset, end, _STEP_BYTES)
        offset += -(-(end - offset) // _STEP_BYTES) * _STEP_BYTES
