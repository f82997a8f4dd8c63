"""Where the fake driver keeps its volumes: in memory, or in files that outlive it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from volmig import errors
from volmig.drivers import _gone
from volmig.drivers._directory import enlarge
from volmig.drivers._storage import Storage, VolumeDirectory

Prepare = Callable[[int], None]


class Objects(Protocol):
    """Named files of bytes in the pools of a backend; calls may come from several threads."""

    def setup(self, storage: str | None) -> str | None:
        """Make the pools ready; take and return the storage's identity as the contract's ``do_setup`` does."""

    def location_info(self) -> str:
        """Return what is equal for all backends that :meth:`move` can reach."""

    def has_pool(self, backend: str, pool: str) -> bool:
        """Say whether :meth:`move` can reach that pool."""

    def size_of(self, backend: str, pool: str, name: str) -> int | None:
        """Return an object's size, or None when there is none."""

    def create(self, pool: str, name: str, size_bytes: int, prepare: Prepare) -> None:
        """Make an object and have *prepare* fill it. :raises FileExistsError: when the name is taken."""

    def open(self, pool: str, name: str, flags: int) -> int:
        """Return a new descriptor of an object. :raises FileNotFoundError: when there is none."""

    def path(self, pool: str, name: str) -> str:
        """Return a path by which other processes of this host can open an object."""

    def enlarge(self, pool: str, name: str, size_bytes: int) -> None:
        """Make an object larger, with zeroes."""

    def move(self, pool: str, name: str, to_backend: str, to_pool: str, to_name: str) -> None:
        """Move an object. :raises FileExistsError: when the new name is taken."""

    def remove(self, pool: str, name: str) -> None:
        """Remove an object. Succeeds when there is none."""

    def identify(self, pool: str, name: str) -> str:
        """Return what tells an object from a later one. :raises FileNotFoundError: when there is none."""

    def remove_this(self, pool: str, name: str, identity: str) -> None:
        """Remove an object if it has this identity. Succeeds when there is none, or another."""

    def sizes(self, pool: str) -> dict[str, int]:
        """Return the sizes of all objects of a pool, by name, other than those whose names begin with a dot."""

    def usage(self, pool: str) -> tuple[int, int]:
        """Return the sum of the sizes and of the allocated bytes."""

    def close(self) -> None:
        """Give back what is held; objects in memory are gone then."""


class MemoryObjects:
    """Each object is an anonymous file in memory; all are gone with the driver."""

    def __init__(self, *, host: str, backend: str, pools: Sequence[str]) -> None:
        self._info = f"fake:{host}:{backend}:memory"
        self._backend = backend
        self._lock = threading.RLock()
        self._pools: dict[str, dict[str, int]] = {pool: {} for pool in pools}
        self._identities: dict[int, str] = {}  # of each descriptor in the pools
        self._finalizer = weakref.finalize(self, _close_all, self._pools)

    def setup(self, storage: str | None) -> str | None:
        """Memory is always ready, but never what an earlier process has seen."""
        if storage is not None:
            raise errors.BackendDown(
                backend=self._backend, reason=f"it is in memory now, and was the storage {storage}"
            )
        return None

    def location_info(self) -> str:
        return self._info

    def has_pool(self, backend: str, pool: str) -> bool:
        return backend == self._backend and pool in self._pools

    def size_of(self, backend: str, pool: str, name: str) -> int | None:
        with self._lock:
            fd = self._pools[pool].get(name) if backend == self._backend else None
            return None if fd is None else os.fstat(fd).st_size

    def create(self, pool: str, name: str, size_bytes: int, prepare: Prepare) -> None:
        fd = os.memfd_create(name[:200], os.MFD_CLOEXEC)
        try:
            enlarge(fd, size_bytes, path=Path(name))
            prepare(fd)
            with self._lock:
                self._require_free(pool, name)
                self._pools[pool][name] = fd
                self._identities[fd] = uuid.uuid4().hex
        except BaseException:
            os.close(fd)
            raise

    def open(self, pool: str, name: str, flags: int) -> int:
        with self._lock:
            return os.open(f"/proc/self/fd/{self._fd(pool, name)}", flags | os.O_CLOEXEC)

    def path(self, pool: str, name: str) -> str:
        with self._lock:
            return f"/proc/{os.getpid()}/fd/{self._fd(pool, name)}"

    def enlarge(self, pool: str, name: str, size_bytes: int) -> None:
        with self._lock:
            enlarge(self._fd(pool, name), size_bytes, path=Path(name))

    def move(self, pool: str, name: str, to_backend: str, to_pool: str, to_name: str) -> None:
        with self._lock:
            fd = self._fd(pool, name)
            self._require_free(to_pool, to_name)
            self._pools[to_pool][to_name] = fd
            del self._pools[pool][name]

    def remove(self, pool: str, name: str) -> None:
        with self._lock:
            fd = self._pools[pool].pop(name, None)
            if fd is not None:
                os.close(fd)

    def identify(self, pool: str, name: str) -> str:
        with self._lock:
            return self._identities[self._fd(pool, name)]

    def remove_this(self, pool: str, name: str, identity: str) -> None:
        with self._lock:
            if name in self._pools[pool] and self.identify(pool, name) == identity:
                self.remove(pool, name)

    def sizes(self, pool: str) -> dict[str, int]:
        with self._lock:
            return {name: os.fstat(fd).st_size for name, fd in self._visible(pool)}

    def usage(self, pool: str) -> tuple[int, int]:
        with self._lock:
            found = [os.fstat(fd) for _, fd in self._visible(pool)]
        return sum(each.st_size for each in found), sum(each.st_blocks * 512 for each in found)

    def close(self) -> None:
        with self._lock:
            self._finalizer()

    def _visible(self, pool: str) -> list[tuple[str, int]]:
        return [(name, fd) for name, fd in self._pools[pool].items() if not name.startswith(".")]

    def _require_free(self, pool: str, name: str) -> None:
        if name in self._pools[pool]:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)

    def _fd(self, pool: str, name: str) -> int:
        try:
            return self._pools[pool][name]
        except KeyError as exc:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from exc


def _close_all(pools: dict[str, dict[str, int]]) -> None:
    for objects in pools.values():
        while objects:
            os.close(objects.popitem()[1])


class DirectoryObjects:
    """Each object is a file in ``<root>/<backend>/<pool>``; backends with the same root reach each other's pools."""

    def __init__(self, *, root: Path, backend: str, pools: Sequence[str]) -> None:
        self._root = root
        self._backend = backend
        self._pools = tuple(pools)
        self._storage: str | None = None

    def setup(self, storage: str | None) -> str | None:
        base = self._root / self._backend
        if storage is None:
            base.mkdir(parents=True, exist_ok=True)
        self._storage = Storage(backend=self._backend, base=base, pools=self._pools).prepare(storage)
        return self._storage

    def location_info(self) -> str:
        return f"fake:{self._root}"

    def has_pool(self, backend: str, pool: str) -> bool:
        if backend == self._backend:
            return pool in self._pools
        return "/" not in pool and pool not in {".", ".."} and (self._root / backend / pool).is_dir()

    def size_of(self, backend: str, pool: str, name: str) -> int | None:
        with self._directory(backend, pool).opened() as directory:
            found = directory.entry(name)
            return None if found is None else found.st_size

    def create(self, pool: str, name: str, size_bytes: int, prepare: Prepare) -> None:
        with self._directory(self._backend, pool).opened() as directory:
            directory.create(name, size_bytes, prepare=prepare)

    def open(self, pool: str, name: str, flags: int) -> int:
        with self._directory(self._backend, pool).opened() as directory:
            return directory.open(name, flags)

    def path(self, pool: str, name: str) -> str:
        return str(self._directory(self._backend, pool).path / name)

    def enlarge(self, pool: str, name: str, size_bytes: int) -> None:
        with self._opened_file(pool, name) as fd:
            enlarge(fd, size_bytes, path=Path(name))

    def move(self, pool: str, name: str, to_backend: str, to_pool: str, to_name: str) -> None:
        target = self._directory(to_backend, to_pool)
        with self._directory(self._backend, pool).opened() as source, target.opened() as opened:
            source.move(name, opened, to_name)

    def remove(self, pool: str, name: str) -> None:
        with self._directory(self._backend, pool).opened() as directory:
            directory.remove(name)

    def identify(self, pool: str, name: str) -> str:
        with self._directory(self._backend, pool).opened() as directory:
            return _gone.identify(directory, name)

    def remove_this(self, pool: str, name: str, identity: str) -> None:
        with self._directory(self._backend, pool).opened() as directory:
            _gone.remove(directory, name, identity, lambda _: None)

    def sizes(self, pool: str) -> dict[str, int]:
        with self._directory(self._backend, pool).opened() as directory:
            return directory.files()

    def usage(self, pool: str) -> tuple[int, int]:
        with self._directory(self._backend, pool).opened() as directory:
            return directory.usage()

    def close(self) -> None:
        """Nothing is held; the files stay."""

    @contextlib.contextmanager
    def _opened_file(self, pool: str, name: str) -> Iterator[int]:
        fd = self.open(pool, name, os.O_RDWR)
        try:
            yield fd
        finally:
            os.close(fd)

    def _directory(self, backend: str, pool: str) -> VolumeDirectory:
        storage = self._storage if backend == self._backend else None
        return VolumeDirectory(backend=backend, base=self._root / backend, subdirectory=pool, storage=storage)
