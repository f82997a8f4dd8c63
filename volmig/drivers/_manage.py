"""Judging whether a present file can be taken over as a volume."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from volmig import errors
from volmig.drivers import _directory, _images, _syscalls
from volmig.drivers._directory import OpenDirectory
from volmig.drivers._storage import VolumeDirectory


@dataclass(frozen=True, kw_only=True, slots=True)
class Adoption:
    """A request to take over the file that *reference* names, in the pool *pool*."""

    reference: str
    """The file's name, or its absolute path."""
    pool: str
    directories: Mapping[str, VolumeDirectory]
    """All pools of the backend, by name."""

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[str, int]]:
        """Find the file, check it, and give its name and its size in bytes.

        :raises volmig.errors.NotManageable: when it lies elsewhere or is not fit to be a volume.
        :raises volmig.errors.UnsupportedFormat: when it holds a disk image format.
        :raises volmig.errors.VolumeInUse: when somebody has locked it.
        """
        name = self._name()
        with self.directories[self.pool].opened() as directory:
            fd = self._open(directory, name)
            try:
                yield name, self._require_fit(fd)
            finally:
                os.close(fd)

    def _name(self) -> str:
        path = Path(self.reference)
        try:
            name = _directory.plain_name(path.name if path.is_absolute() else self.reference)
        except errors.UnsafePath as exc:
            raise self._refused("it must be a file's name, or its absolute path, and not hidden") from exc
        if path.is_absolute():
            self._require_pool(path.parent)
        return name

    def _require_pool(self, parent: Path) -> None:
        """Refuse a path outside the pool's directory, by what the directories are and not by how they are spelled."""
        try:
            found = parent.stat()
        except OSError as exc:
            raise self._refused(f"{parent} cannot be looked into: {exc.strerror}") from exc
        for pool, directory in self.directories.items():
            with directory.opened() as opened:
                if os.path.samestat(found, os.fstat(opened.fd)):
                    if pool != self.pool:
                        raise self._refused(f"it lies in the pool {pool!r}, not in {self.pool!r}")
                    return
        raise self._refused("it does not lie directly in the directory of a pool of this backend")

    def _open(self, directory: OpenDirectory, name: str) -> int:
        try:
            # Opened for writing, since a volume that cannot be written is none; nothing is written.
            return directory.open(name, os.O_RDWR)
        except FileNotFoundError as exc:
            elsewhere = [pool for pool in self.directories if pool != self.pool and self._has(pool, name)]
            where = f"; the pool {elsewhere[0]!r} has one" if elsewhere else ""
            raise self._refused(f"there is no such file in {directory.path}{where}") from exc
        except errors.UnsafePath as exc:
            raise self._refused(str(exc.fields["reason"])) from exc
        except OSError as exc:
            raise self._refused(f"it cannot be opened to read and write: {exc.strerror}") from exc

    def _has(self, pool: str, name: str) -> bool:
        try:
            with self.directories[pool].opened() as directory:
                return directory.entry(name) is not None
        except (errors.BackendDown, errors.UnsafePath):
            return False

    def _require_fit(self, fd: int) -> int:
        found = os.fstat(fd)
        if found.st_nlink != 1:
            raise self._refused(f"it has {found.st_nlink} names (hard links), and one could change under the other")
        if found.st_size == 0:
            raise self._refused("it is empty")
        detected = _images.image_format(fd)
        if detected != "raw":
            raise errors.UnsupportedFormat(
                what=self.reference,
                format=detected,
                reason="it would be presented as raw, and its users would see the container instead of the disk",
                hint=f"Convert it first: qemu-img convert -f {detected} -O raw, then take over the result.",
            )
        holder = _syscalls.lock_holder(fd)
        if holder:
            raise errors.VolumeInUse(volume=self.reference, users=holder)
        return found.st_size

    def _refused(self, reason: str) -> errors.NotManageable:
        return errors.NotManageable(reference=repr(self.reference), reason=reason)
