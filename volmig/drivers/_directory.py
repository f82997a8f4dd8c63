"""Volumes as regular files of one directory, reached only through a descriptor of that directory.

Names come from records that a hostile hand may have written, and files from whoever can write to the directory. So
a name is checked before it is used, is always one component below the descriptor, and is never followed when
it is a symbolic link; whatever is not a regular file is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from volmig import errors
from volmig.drivers import _syscalls
from volmig.drivers.base import StoredObject
from volmig.model import Volume

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
_VOLUME_NAME = re.compile(r"volume-(?P<id>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
"""What the files of volumes that volmig made are called: all their ids are UUIDs. A stranger's ``volume-old.img`` is
not one of them."""
_TEMPORARY = re.compile(r"\.volmig-new-[0-9a-f]{16}")
_TEMPORARY_MAX_AGE_SECONDS = 24 * 3600
_CREATE_ATTEMPTS = 5


def volume_name(backend_id: str) -> str:
    """Return the file name ``volume-<backend_id>``. :raises volmig.errors.UnsafePath: for an id that could escape."""
    if not _ID.fullmatch(backend_id):
        raise errors.UnsafePath(
            path=f"volume-{backend_id[:200]!r}",
            reason="an id has at most 128 characters: letters, digits, '_', '-' and '.', the first a letter or digit",
        )
    return f"volume-{backend_id}"


def plain_name(name: str) -> str:
    """Return *name* when it can only mean a visible file of the directory itself.

    :raises volmig.errors.UnsafePath: otherwise.
    """
    if not name or "/" in name or name.startswith(".") or not name.isprintable() or len(os.fsencode(name)) > 255:
        raise errors.UnsafePath(path=repr(name[:200]), reason="it is not the plain, visible name of a file")
    return name


def object_name(volume: Volume) -> str:
    """Return the name of the file of *volume*: ``provider_id`` when it was adopted, else by its backend id."""
    return volume_name(volume.backend_id) if volume.provider_id is None else plain_name(volume.provider_id)


def stored_object(name: str, size_bytes: int) -> StoredObject:
    """Tell of an object by its name: which volume it would be the object of, if the name is one that volmig gives."""
    match = _VOLUME_NAME.fullmatch(name)
    return StoredObject(name=name, size_bytes=size_bytes, backend_id=match["id"] if match else None)


def enlarge(fd: int, size_bytes: int, *, path: Path, thick: bool = False) -> None:
    """Enlarge an open file to *size_bytes* with zeroes, durably; a failure leaves its size as it was.

    :param thick: also allocate all of the new room.
    """
    before = os.fstat(fd).st_size
    if size_bytes < before:
        raise ValueError(f"{path} has {before} bytes and is not cut to {size_bytes}")
    try:
        if thick and size_bytes > before:
            _require_room(fd, size_bytes - before)
            os.posix_fallocate(fd, before, size_bytes - before)
        os.ftruncate(fd, size_bytes)
        os.fsync(fd)
    except (OSError, OverflowError) as exc:
        with contextlib.suppress(OSError):  # the error that matters is the one under way
            os.ftruncate(fd, before)
        number = exc.errno if isinstance(exc, OSError) else errno.EFBIG
        if number in {errno.ENOSPC, errno.EDQUOT}:
            raise errors.DiskFull(path=path, offset=before) from exc
        if number == errno.EFBIG:
            raise errors.SizeInvalid(value=size_bytes, reason=f"the file system of {path.parent} refuses it") from exc
        raise


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenDirectory:
    """A directory that is held open; every name given to it must have been checked."""

    fd: int
    path: Path

    def entry(self, name: str) -> os.stat_result | None:
        """Return the state of a file, or None. :raises volmig.errors.UnsafePath: when it is no regular file."""
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        self._require_regular(name, found)
        return found

    def open(self, name: str, flags: int) -> int:
        """Open a regular file and return its descriptor.

        :raises FileNotFoundError: when there is none.
        :raises volmig.errors.UnsafePath: as :meth:`entry`; also when it was exchanged while being opened.
        """
        if self.entry(name) is None:  # looked at before it is opened: opening a device or a pipe can have effects
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path / name))
        try:
            fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise self._unsafe(name, "it is a symbolic link") from exc
            raise
        try:
            self._require_regular(name, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def create(
        self, name: str, size_bytes: int, *, thick: bool = False, prepare: Callable[[int], None] | None = None
    ) -> None:
        """Make a file that reads as zeroes; it has its name only once it is whole and durable.

        :param prepare: called with the descriptor of the file before it gets its name.
        :raises FileExistsError: when the name is taken, whatever by.
        """
        for attempt in range(1, _CREATE_ATTEMPTS + 1):
            with self._temporary() as (fd, temporary):
                enlarge(fd, size_bytes, path=self.path / name, thick=thick)
                if prepare is not None:
                    prepare(fd)
                    os.fsync(fd)
                try:
                    self.move(temporary, self, name)
                except FileNotFoundError:
                    # Cleared by somebody's set-up in the instant before it was locked.
                    if attempt == _CREATE_ATTEMPTS:
                        raise
                    continue
                return

    def move(self, name: str, to: OpenDirectory, new_name: str) -> None:
        """Give a file another name, durably.

        :raises FileExistsError: when the new name is taken; nothing has changed then.
        :raises OSError: with ``EXDEV`` when the directories are on different file systems.
        """
        _syscalls.rename_without_overwriting(self.fd, name, to.fd, new_name)
        to.sync()
        if to is not self:
            self.sync()

    def remove(self, name: str) -> None:
        """Remove a regular file, durably. Succeeds when there is none."""
        if self.entry(name) is None:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)
        self.sync()

    def sync(self) -> None:
        """Make the names of the directory durable."""
        try:
            os.fsync(self.fd)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # file systems without that notion say so
                raise

    def files(self) -> dict[str, int]:
        """Return the sizes of the visible regular files by name, leaving out names that no volume can have.

        One that is renamed meanwhile may be there under both names, or under neither.
        """
        sizes: dict[str, int] = {}
        with os.scandir(self.fd) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError, errors.UnsafePath):  # removed since it was listed, or unfit
                    if entry.is_file(follow_symlinks=False):
                        sizes[plain_name(entry.name)] = entry.stat(follow_symlinks=False).st_size
        return sizes

    def usage(self) -> tuple[int, int]:
        """Return the sum of the sizes and of the allocated bytes of the visible regular files."""
        size_bytes = allocated_bytes = 0
        with os.scandir(self.fd) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                        found = entry.stat(follow_symlinks=False)
                        size_bytes += found.st_size
                        allocated_bytes += found.st_blocks * 512
        return size_bytes, allocated_bytes

    def add(self, name: str, data: bytes) -> None:
        """Make a small file of *data*, durably and at once. :raises FileExistsError: when the name is taken."""
        self.create(name, 0, prepare=lambda fd: _write_all(fd, data))

    def replace(self, name: str, data: bytes) -> None:
        """Make a small file of *data*, in place of one that has the name; a crash leaves the one or the other whole."""
        with self._temporary() as (fd, temporary):
            _write_all(fd, data)
            os.fsync(fd)
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        self.sync()

    def clear_leftovers(self) -> None:
        """Remove temporary files that a dead process left behind; those of living ones are locked."""
        with os.scandir(self.fd) as entries:
            names = [entry.name for entry in entries if _TEMPORARY.fullmatch(entry.name)]
        for name in names:
            with contextlib.suppress(FileNotFoundError, errors.UnsafePath):
                fd = self.open(name, os.O_RDWR)
                try:
                    if _is_abandoned(fd):
                        os.unlink(name, dir_fd=self.fd)
                finally:
                    os.close(fd)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, str]]:
        name = f".volmig-new-{secrets.token_hex(8)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=self.fd)
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise errors.DiskFull(path=self.path, offset=0) from exc
            if exc.errno == errno.EROFS:
                raise errors.DestinationReadOnly(pool=self.path, reason="its file system is read-only") from exc
            raise
        try:
            # Without locks on this file system, its age alone tells whether it is left over.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield fd, name
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.fd)
            os.close(fd)

    def _require_regular(self, name: str, found: os.stat_result) -> None:
        if stat.S_ISLNK(found.st_mode):
            raise self._unsafe(name, "it is a symbolic link")
        if not stat.S_ISREG(found.st_mode):
            raise self._unsafe(name, "it is not a regular file")

    def _unsafe(self, name: str, reason: str) -> errors.UnsafePath:
        return errors.UnsafePath(path=self.path / name, reason=reason)


def _require_room(fd: int, needed_bytes: int) -> None:
    """Raise the error of a full disk beforehand, so that a hopeless request does not fill it for a while."""
    room = os.fstatvfs(fd)
    if needed_bytes > room.f_bavail * room.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_abandoned(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return time.time() - os.fstat(fd).st_mtime > _TEMPORARY_MAX_AGE_SECONDS
    return True


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
