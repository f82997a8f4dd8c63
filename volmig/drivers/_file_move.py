"""Moving a volume's file from one directory to another of the same file system."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from volmig import errors
from volmig.drivers import _checks
from volmig.drivers._directory import OpenDirectory

if TYPE_CHECKING:
    from volmig.model import Volume


@dataclass(frozen=True, kw_only=True, slots=True)
class FileMove:
    """One volume's way from *name* in one open directory to *new_name* in another."""

    volume: Volume
    destination: str
    """The destination's address, for errors."""
    source: OpenDirectory
    name: str
    target: OpenDirectory
    new_name: str

    def is_done(self) -> bool:
        """Say whether the file is at the destination alone; a move that stopped between two names is ended.

        :raises volmig.errors.LocationDoubtful: when there are two different files, or none.
        :raises volmig.errors.VolumeSizeMismatch: when the one that is there is not as recorded.
        """
        here, there = self.source.entry(self.name), self.target.entry(self.new_name)
        if there is None:
            if here is None:
                raise self._doubtful(f"there is neither {self.source.path / self.name} nor {self._arrival}")
            _checks.require_size(self.volume, here.st_size, self.source.path / self.name)
            return False
        if here is not None and not os.path.samestat(here, there):
            raise self._doubtful(f"{self.source.path / self.name} and {self._arrival} are different files")
        _checks.require_size(self.volume, there.st_size, self._arrival)
        self.target.sync()
        if here is not None:
            self.source.remove(self.name)
        return True

    def carry_out(self) -> bool:
        """Move the file; False when the two directories are mounts between which none can be moved.

        :raises volmig.errors.VolumeInUse: when somebody has locked it.
        :raises volmig.errors.UnsafePath: when it was exchanged for something else meanwhile, which is moved back.
        """
        try:
            fd = self.source.open(self.name, os.O_RDONLY)
        except FileNotFoundError as exc:
            location = self.source.path / self.name
            raise errors.VolumeObjectMissing(volume=self.volume.id, location=location) from exc
        try:
            _checks.require_size(self.volume, os.fstat(fd).st_size, self.source.path / self.name)
            _checks.require_unlocked(self.volume, fd)
            return self._rename(fd)
        finally:
            os.close(fd)

    def _rename(self, fd: int) -> bool:
        try:
            self.source.move(self.name, self.target, self.new_name)
        except FileExistsError as exc:
            raise self._doubtful(f"{self._arrival} appeared during the move") from exc
        except OSError as exc:
            if exc.errno == errno.EXDEV:  # one file system, but two mounts of it
                return False
            raise
        arrived = os.stat(self.new_name, dir_fd=self.target.fd, follow_symlinks=False)
        if not os.path.samestat(arrived, os.fstat(fd)):
            self.target.move(self.new_name, self.source, self.name)
            raise errors.UnsafePath(path=self.source.path / self.name, reason="it was exchanged during the move")
        return True

    @property
    def _arrival(self) -> str:
        return str(self.target.path / self.new_name)

    def _doubtful(self, reason: str) -> errors.LocationDoubtful:
        return errors.LocationDoubtful(
            volume=self.volume.id, source=self.volume.host, destination=self.destination, reason=reason
        )
