"""An engine with its backends on real storage, and what must hold after each migration, however it ended."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import mmap
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volmig import conf
from volmig.engine import Engine
from volmig.model import MigrationStatus, Phase, Volume, VolumeStatus
from volmig.store import Store
from volmig.store.sql import SqlStore

HOST = "here"
MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a volume holds: noise, with holes in it. Quicker to make than a pattern, which counts under emulation."""

    size_bytes: int
    seed: int
    hole_bytes: int = 0
    """Noise and holes alternate, both of this size, beginning with noise; 0 for noise everywhere."""

    @functools.cached_property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """Where the noise is: ranges of start and end."""
        if not self.hole_bytes:
            return ((0, self.size_bytes),)
        starts = range(0, self.size_bytes, 2 * self.hole_bytes)
        return tuple((at, min(at + self.hole_bytes, self.size_bytes)) for at in starts)

    @functools.cached_property
    def data(self) -> bytes:
        """All of it."""
        found = bytearray(self.size_bytes)
        for start, end in self.parts:
            found[start:end] = random.Random(f"{self.seed} {start}").randbytes(end - start)
        return bytes(found)

    @functools.cached_property
    def sha256(self) -> str:
        """Its digest."""
        return sha256(self.data)


class Bench:
    """An engine of this process, its store and its backends."""

    def __init__(self, root: Path, backends: Mapping[str, Mapping[str, Any]], **migration: Any) -> None:
        root.mkdir(parents=True, exist_ok=True)
        transfer = {name: migration.pop(name) for name in ("chunk_bytes",) if name in migration}
        lines = ["[DEFAULT]", f"enabled_backends = {', '.join(backends)}", f"host = {HOST}", f"state_path = {root}"]
        sections = {**backends, "migration": migration, "transfer": transfer}
        for name, options in sections.items():
            lines += [f"[{name}]", *(f"{option} = {value}" for option, value in options.items())]
        self._file = root / "volmig.conf"
        self._file.write_text("\n".join(lines) + "\n")
        self.store: Store = SqlStore(f"sqlite:///{root}/volmig.db")
        self.engine = self._engine()

    def _engine(self) -> Engine:
        return Engine(conf.load([str(self._file)]), store=self.store)

    def restart(self) -> None:
        """Begin anew, as a process that starts does."""
        self.engine.close()
        self.engine = self._engine()

    def recover(self, seconds: float = 90.0) -> None:
        """Recover until nothing is left to be done, as a service does that keeps recovering."""
        deadline = time.monotonic() + seconds
        while True:
            for handle in self.engine.recover():
                handle.wait(seconds)
            with self.store.reading() as view:
                open_ends = [each.id for each in view.list_migrations() if not each.phase.is_final]
                left = [(each.name_id, each.last_error) for each in view.list_retired()]
            if not open_ends and not left:
                return
            assert time.monotonic() < deadline, (open_ends, left)
            time.sleep(0.3)

    def close(self) -> None:
        """Let go of everything."""
        self.engine.close()
        self.store.close()

    def volume(self, place: str, content: Content, *, zeroed: bool = False) -> Volume:
        """Make a volume that holds *content*.

        :param zeroed: it reads as zeroes where it was not written to: write the noise only.
        """
        volume = self.engine.create_volume(host=address(place), size_bytes=content.size_bytes)
        parts = content.parts if zeroed else ((0, content.size_bytes),)
        write(self.path(volume), content.data, *parts)
        return volume

    def path(self, volume: Volume) -> str:
        """Return where the volume is now."""
        return self.engine.volume_path(volume.id)

    # --- what must hold -------------------------------------------------------------------------------

    def assert_moved(self, volume: Volume, place: str, content: Content) -> Volume:
        """Check that the volume is at *place*, whole, and nothing of the migration is left."""
        found = self.engine.show_volume(volume.id)
        assert found.host == address(place)
        assert found.migration_status is MigrationStatus.SUCCESS
        self._assert_whole(volume, found, content)
        self.assert_nothing_left()
        return found

    def assert_stayed(self, volume: Volume, place: str, content: Content, *, cancelled: bool = False) -> None:
        """Check that the volume is where it was, whole, and nothing of the migration is left."""
        found = self.engine.show_volume(volume.id)
        assert found.host == address(place)
        assert found.migration_status is (MigrationStatus.NONE if cancelled else MigrationStatus.ERROR)
        self._assert_whole(volume, found, content)
        self.assert_nothing_left()

    def _assert_whole(self, before: Volume, found: Volume, content: Content) -> None:
        assert found.status is VolumeStatus.AVAILABLE
        assert (found.id, found.name, found.size_bytes) == (before.id, before.name, before.size_bytes)
        assert read_sha256(self.path(found), content.size_bytes) == content.sha256

    def assert_nothing_left(self) -> None:
        """Check that no migration runs, nothing is reserved or waits for its deletion, and storage is as recorded."""
        with self.store.reading() as view:
            assert list(view.list_reservations()) == []
            assert list(view.list_retired()) == []
            assert list(view.list_checkpoints()) == []
            assert {migration.phase for migration in view.list_migrations()} <= _ENDED
        assert self.engine.examine(grace_seconds=0).findings == ()


_ENDED = frozenset({Phase.SUCCESS, Phase.CANCELLED, Phase.ERROR})


@contextlib.contextmanager
def bench(root: Path, backends: Mapping[str, Mapping[str, Any]], **migration: Any) -> Iterator[Bench]:
    """Give an engine with these backends and its options of ``[migration]``; it is closed in the end."""
    made = Bench(root, backends, **migration)
    try:
        yield made
    finally:
        made.close()


def files(directory: Path, **options: Any) -> dict[str, Any]:
    """Return the options of a ``file`` backend."""
    return {"volume_driver": "file", "file_directory": str(directory), **options}


def address(place: str) -> str:
    """Return the full address of ``backend`` or ``backend#pool``."""
    backend, _, pool = place.partition("#")
    return f"{HOST}@{backend}#{pool or backend}"


def objects(directory: Path) -> list[str]:
    """Return what a ``file`` backend has in its directory, other than what is its own."""
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith((".", "lost+found")))


def write(path: str | Path, data: bytes, *parts: tuple[int, int]) -> None:
    """Write parts of *data* (all of it when none are named) to their places in a file or a device, and flush."""
    fd = os.open(path, os.O_WRONLY)
    try:
        for start, end in parts or ((0, len(data)),):
            view = memoryview(data)[start:end]
            while view:
                count = os.pwrite(fd, view, start)
                view, start = view[count:], start + count
        os.fsync(fd)
    finally:
        os.close(fd)


def read_sha256(path: str | Path, size_bytes: int) -> str:
    """Return the digest of the first bytes of a file or a device, past the page cache if there is more than that."""
    state, offset = hashlib.sha256(), 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A file in memory.
        fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(-1, MIB) as buffer:
            while offset < size_bytes:
                count = min(os.preadv(fd, [buffer], offset), size_bytes - offset)
                assert count, f"{path} ends at byte {offset} of {size_bytes}"
                state.update(buffer[:count])
                offset += count
    finally:
        os.close(fd)
    return state.hexdigest()


def sha256(data: bytes | bytearray) -> str:
    """Return a digest, to be shown in place of megabytes when it differs."""
    return hashlib.sha256(data).hexdigest()
