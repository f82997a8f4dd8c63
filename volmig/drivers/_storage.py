"""The directories of one backend, and the marks by which they are known again.

The marker in the base directory has the storage's identity and lists the pools below it; each pool's own marker has
the same identity. The core keeps the identity on record. So a directory that only lies where the storage used to be,
such as a mount point with nothing mounted on it, is never taken for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from volmig import errors
from volmig.drivers import _gone
from volmig.drivers._directory import OpenDirectory
from volmig.drivers._marker import MARKER, Marker, new_storage

_LOCK_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeDirectory:
    """The directory of one pool, marked as the property of one backend."""

    backend: str
    base: Path
    subdirectory: str | None = None
    """Name of the pool's directory below *base*; None when it is *base* itself."""
    storage: str | None = None
    """Identity that its marker must have; None where any will do."""

    @property
    def path(self) -> Path:
        return self.base if self.subdirectory is None else self.base / self.subdirectory

    @contextlib.contextmanager
    def opened(self) -> Iterator[OpenDirectory]:
        """Hold the directory open.

        :raises volmig.errors.BackendDown: when it is not there, or no longer the one that was marked: an empty
            mount point must not be taken for a pool without volumes.
        """
        with self.unchecked() as directory:
            marker = Marker.read(directory)
            if marker is None:
                raise self.down(f"{self.path} has lost its marker {MARKER}; is its file system mounted?")
            if marker.backend != self.backend:
                raise self.down(f"the marker {self.path / MARKER} names the backend {marker.backend!r}")
            if self.storage is not None and marker.storage != self.storage:
                raise self.not_the_storage(f"its marker names the storage {marker.storage}", self.storage)
            yield directory

    @contextlib.contextmanager
    def unchecked(self) -> Iterator[OpenDirectory]:
        """Hold the directory open, whosever it is. :raises volmig.errors.BackendDown: when it cannot be opened."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            fd = os.open(self.base, flags)
            if self.subdirectory is not None:
                base_fd = fd
                try:
                    fd = os.open(self.subdirectory, flags | os.O_NOFOLLOW, dir_fd=base_fd)
                finally:
                    os.close(base_fd)
        except OSError as exc:
            raise self.down(f"the directory {self.path} cannot be opened: {exc.strerror or exc}") from exc
        try:
            yield OpenDirectory(fd=fd, path=self.path)
        finally:
            os.close(fd)

    def check(self) -> None:
        """Check that the directory can be read and written.

        :raises volmig.errors.BackendSetupFailed: saying what is wrong with it.
        """
        try:
            with self.unchecked():
                pass
        except errors.BackendDown as exc:
            raise self.setup_failed(exc.fields["reason"]) from exc
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise self.setup_failed(f"{self.path} cannot be read and written by the user {os.geteuid()}")

    def require_own(self, marker: Marker) -> None:
        """Refuse another backend's marker. :raises volmig.errors.BackendSetupFailed: saying whose it is."""
        if marker.backend == self.backend:
            return
        reason = f"{self.path} belongs to the backend {marker.backend!r}"
        raise errors.BackendSetupFailed(
            backend=self.backend,
            reason=reason if marker.backend else f"{self.path / MARKER} is damaged",
            hint="Give each backend a directory of its own. If the backend was renamed, and no other uses the "
            f"directory, put the new name into {self.path / MARKER} and start again.",
        )

    def down(self, reason: str) -> errors.BackendDown:
        """Return the error of a backend that is out of service."""
        return errors.BackendDown(backend=self.backend, reason=reason)

    def not_the_storage(self, found: str, expected: str) -> errors.BackendDown:
        """Return the error of a directory that is not the one seen before."""
        return self.down(
            f"{self.path} is not the storage {expected} that was seen before: {found}. Is the file system mounted? "
            f"If the content was moved, copy the marker file {MARKER} along"
        )

    def setup_failed(self, reason: str) -> errors.BackendSetupFailed:
        """Return the error of a backend that cannot work as configured."""
        return errors.BackendSetupFailed(backend=self.backend, reason=reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """All directories of one backend."""

    backend: str
    base: Path
    pools: Sequence[str]
    """Names of the pools' directories below *base*; without any, *base* itself is the one pool."""

    def directory(self, pool: str, *, storage: str | None = None) -> VolumeDirectory:
        """Return the directory of a pool."""
        return VolumeDirectory(
            backend=self.backend, base=self.base, subdirectory=pool if self.pools else None, storage=storage
        )

    def prepare(self, expected: str | None) -> str:
        """Make all directories ready, clear what dead processes left in them, and return the storage's identity.

        :param expected: the identity that the storage must have; with None, an unmarked directory is marked with
            a new one, and a marked one is taken as it is.
        :raises volmig.errors.BackendDown: when it is another storage, or not there; nothing is changed then.
        :raises volmig.errors.BackendSetupFailed: when it cannot be used, or is another backend's.
        """
        root = VolumeDirectory(backend=self.backend, base=self.base)
        try:
            with self._opened_base(root, expected) as base, _locked(root, base):
                marker = self._find(root, base, expected)
                marker = self._mark_base(root, base, marker)
                marker = self._mark_pools(base, marker)
                self._clear(base, str(marker.storage))
        except (errors.BackendDown, errors.ConfigurationError):
            raise
        except errors.VolmigError as exc:
            raise root.setup_failed(exc.message) from exc
        except OSError as exc:
            raise root.setup_failed(f"{root.path} cannot be written to: {exc.strerror or exc}") from exc
        return str(marker.storage)

    @contextlib.contextmanager
    def _opened_base(self, root: VolumeDirectory, expected: str | None) -> Iterator[OpenDirectory]:
        with contextlib.ExitStack() as stack:
            try:
                base = stack.enter_context(root.unchecked())
            except errors.BackendDown as exc:
                if expected is not None:
                    raise
                raise root.setup_failed(exc.fields["reason"]) from exc
            yield base

    def _find(self, root: VolumeDirectory, base: OpenDirectory, expected: str | None) -> Marker | None:
        """Return the base's marker when all that is there is this storage's; change nothing."""
        marker = Marker.read(base)
        if expected is not None:
            found = None if marker is None else marker.storage
            if found != expected:
                raise root.not_the_storage(_naming(found), expected)
        if marker is not None:
            root.require_own(marker)
        storage = None if marker is None else marker.storage
        for pool in self.pools:
            directory = self.directory(pool)
            if marker is not None and pool in marker.pools:
                self._require_listed(directory, str(storage))
            else:
                self._require_free(directory, storage)
        return marker

    def _require_listed(self, directory: VolumeDirectory, storage: str) -> None:
        """Refuse a pool that was made, and is not there now."""
        with directory.unchecked() as opened:
            found = Marker.read(opened)
        if found is None or found.storage != storage:
            raise directory.not_the_storage(_naming(None if found is None else found.storage), storage)
        directory.require_own(found)

    def _require_free(self, directory: VolumeDirectory, storage: str | None) -> None:
        """Refuse a new pool whose directory belongs to something else."""
        if not os.path.lexists(directory.path):
            return
        try:
            with directory.unchecked() as opened:
                found = Marker.read(opened)
        except errors.BackendDown as exc:
            raise directory.setup_failed(exc.fields["reason"]) from exc
        if found is not None:
            directory.require_own(found)
            if found.storage not in {None, storage}:
                raise directory.not_the_storage(_naming(found.storage), storage or f"of {self.base}")

    def _mark_base(self, root: VolumeDirectory, base: OpenDirectory, marker: Marker | None) -> Marker:
        if marker is None:
            marker = Marker(backend=self.backend, storage=new_storage())
            try:
                base.add(MARKER, marker.data())
            except FileExistsError:  # another process was quicker, where locks are not offered
                marker = Marker.read(base) or marker
                root.require_own(marker)
        if marker.storage is None:
            marker = replace(marker, storage=new_storage())
            base.replace(MARKER, marker.data())
        return marker

    def _mark_pools(self, base: OpenDirectory, marker: Marker) -> Marker:
        """Mark the pools that are new, and then list them: what is listed is marked, whenever a crash comes."""
        listed = marker
        for pool in self.pools:
            if pool in marker.pools:
                continue
            directory = self.directory(pool)
            with contextlib.suppress(FileExistsError):
                os.mkdir(pool, mode=0o700, dir_fd=base.fd)
                base.sync()
            with directory.unchecked() as opened:
                found = Marker.read(opened)
                if found is None or found.storage is None:
                    opened.replace(MARKER, Marker(backend=self.backend, storage=marker.storage).data())
            listed = listed.with_pool(pool)
        if listed != marker:
            base.replace(MARKER, listed.data())
        return listed

    def _clear(self, base: OpenDirectory, storage: str) -> None:
        base.clear_leftovers()
        _gone.prepare(base)
        for pool in self.pools:
            with self.directory(pool, storage=storage).opened() as opened:
                opened.clear_leftovers()
                _gone.prepare(opened)


def _naming(storage: str | None) -> str:
    return "it has no marker that names one" if storage is None else f"its marker names the storage {storage}"


@contextlib.contextmanager
def _locked(root: VolumeDirectory, base: OpenDirectory) -> Iterator[None]:
    """Keep other processes from setting up the same directory; without effect where locks are not offered."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(base.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as exc:
            if time.monotonic() > deadline:
                raise root.down(f"another process has been setting up {root.path} for {_LOCK_SECONDS:.0f} s") from exc
            time.sleep(_LOCK_POLL_SECONDS)
        except OSError:
            break
    yield  # closing the directory unlocks it
