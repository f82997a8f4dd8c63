"""The sparse file under a loopback volume group, and the names that it has on its way in and out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from volmig import errors
from volmig.drivers import _syscalls

_LOCK_SECONDS: Final = 60.0
_MODE: Final = 0o600


class BackingFile:
    """A file that is whole whenever it has its name.

    While it is prepared it is called ``.NAME.volmig-new``, and once it is given up ``.NAME.volmig-gone``. What has such
    a name after a crash is nobody's: :meth:`leftovers` tells of it.

    Use it within :meth:`locked` only, which keeps all others out that work on files of this directory by this class.
    """

    def __init__(self, path: Path, *, backend: str) -> None:
        self.path = path
        self.making = path.with_name(f".{path.name}.volmig-new")
        self.leaving = path.with_name(f".{path.name}.volmig-gone")
        self._backend = backend
        self._directory = -1

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the lock on its directory; give False, and no lock, where there is no such directory.

        :raises volmig.errors.StorageBusy: when another process keeps the lock.
        :raises volmig.errors.BackendSetupFailed: when the directory cannot be opened or locked.
        """
        try:
            self._directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield False
            return
        except OSError as error:
            raise self._failed(f"its directory {self.path.parent} cannot be opened: {error.strerror}") from error
        try:
            self._lock()
            yield True
        finally:
            # Closing it unlocks it; no program that was started has inherited it.
            os.close(self._directory)
            self._directory = -1

    def _lock(self) -> None:
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    reason = f"another process has been at work on {self.path.parent} for {_LOCK_SECONDS:g} seconds"
                    raise errors.StorageBusy(backend=self._backend, reason=reason) from error
            except OSError as error:
                raise self._failed(f"{self.path.parent} cannot be locked: {error.strerror}") from error
            else:
                return
            time.sleep(0.05)

    def status(self, path: Path) -> os.stat_result | None:
        """Return what stat(2) says of one of its names; None when nothing has it.

        :raises volmig.errors.BackendSetupFailed: when it is no regular file.
        """
        try:
            status = os.stat(path.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(f"{path} cannot be looked at: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no regular file"
            raise self._failed(f"{path} is {kind}, which is not used")
        return status

    def leftovers(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield what an interrupted set-up or removal has left."""
        for path in (self.making, self.leaving):
            status = self.status(path)
            if status is not None:
                yield path, status

    def make(self, size_bytes: int) -> os.stat_result:
        """Make the sparse file, not under its name yet.

        :raises volmig.errors.BackendSetupFailed: when that cannot be.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.making.name, flags, _MODE, dir_fd=self._directory)
            try:
                os.fchmod(fd, _MODE)  # whatever the umask
                os.ftruncate(fd, size_bytes)
                return os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._failed(
                f"a file of {size_bytes} bytes cannot be made at {self.path}: {error.strerror}"
            ) from error

    def give_name(self) -> None:
        """Give the file its name, when it is durable with all that was written to it; never replaces another.

        :raises volmig.errors.BackendSetupFailed: when the name was taken meanwhile.
        """
        try:
            fd = os.open(self.making.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            _syscalls.rename_without_overwriting(self._directory, self.making.name, self._directory, self.path.name)
            os.fsync(self._directory)
        except OSError as error:
            reason = "somebody has made it meanwhile" if error.errno == errno.EEXIST else error.strerror
            raise self._failed(f"{self.path} cannot be put in place: {reason}") from error

    def give_up(self) -> None:
        """Take the file's name away, durably: from now on it is nobody's, and removed whatever happens."""
        try:
            _syscalls.rename_without_overwriting(self._directory, self.path.name, self._directory, self.leaving.name)
            os.fsync(self._directory)
        except OSError as error:
            raise self._failed(f"{self.path} cannot be removed: {error.strerror}") from error

    def remove(self, path: Path) -> None:
        """Remove a leftover, durably; succeed when there is none."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path.name, dir_fd=self._directory)
            os.fsync(self._directory)
        except OSError as error:
            raise self._failed(f"{path} cannot be removed: {error.strerror}") from error

    def _failed(self, reason: str) -> errors.BackendSetupFailed:
        return errors.BackendSetupFailed(backend=self._backend, reason=reason)
