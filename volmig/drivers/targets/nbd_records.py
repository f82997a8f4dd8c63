"""What is on record of the NBD servers that a backend has started, so that another process finds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

_VERSION = 2
_ONE_SERVER = 1
"""The version that had one server for all hosts of a volume, as the whole record."""
_SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRecord:
    """One server. It is on record before it is started, until it is gone."""

    volume_id: str
    export: str
    """Name of the export, which no other has: its server is found by it."""
    device: str
    device_identity: str
    """What tells the device from another one that gets its path, as long as somebody has it open."""
    port: int
    initiators: tuple[str, ...]
    """The host that it is for; several for a server that an earlier version has started."""
    identity: str = ""
    """The one name whose certificate is let in; empty when all certificates of the authority are."""
    boot: str = ""
    pid: int = 0
    start_time_ticks: int = 0
    """The server, in this boot of the host; 0 while it is started."""

    @classmethod
    def parsed(cls, value: Any) -> Self | None:
        """Return what :meth:`facts` gave; None when *value* is nothing like it."""
        try:
            facts = dict(value)
            for name in ("port", "pid", "start_time_ticks"):
                facts[name] = int(facts[name])
            initiators = tuple(str(name) for name in facts.pop("initiators"))
            return cls(**facts, initiators=initiators)
        except (KeyError, TypeError, ValueError):
            return None

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def _servers(value: Any) -> tuple[ExportRecord, ...] | None:
    """Return the servers that the record of a volume tells of; None when *value* is no such record."""
    if not isinstance(value, dict):
        return None
    facts = dict(value)
    version = facts.pop("version", None)
    told = [facts] if version == _ONE_SERVER else facts.get("servers") if version == _VERSION else None
    if not isinstance(told, list):
        return None
    found = [ExportRecord.parsed(each) for each in told]
    return tuple(each for each in found if each is not None) if None not in found else None


class Records:
    """The records in a directory, one for each volume. One process at a time works on it: :meth:`locked`."""

    def __init__(self, directory: Path, *, prefix: str) -> None:
        """Keep where they are. :param prefix: begins the names of their files."""
        self.directory = directory
        self._prefix = prefix

    @contextlib.contextmanager
    def locked(self, volume_id: str) -> Iterator[None]:
        """Keep other threads and processes from the record of a volume. The lock goes with the process."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(volume_id, "lock")
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _is_at(fd, path):
                    yield
                    return
            finally:
                os.close(fd)

    def read(self, volume_id: str) -> tuple[ExportRecord, ...]:
        """Return the servers of a volume that are on record.

        :raises OSError: also for a record that cannot be understood, since a server may run that it tells of.
        """
        path = self._path(volume_id, "json")
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return ()
        try:
            found = _servers(json.loads(content))
        except ValueError:
            found = None
        if found is None or any(server.volume_id != volume_id for server in found):
            raise OSError(errno.EINVAL, f"{path} is no record of an export; stop the server that it may tell of")
        return found

    def write(self, volume_id: str, servers: Sequence[ExportRecord]) -> None:
        """Put the servers of a volume on stable storage, in place of what was on record."""
        path, fresh = self._path(volume_id, "json"), self._path(volume_id, "new")
        record = {"version": _VERSION, "servers": [server.facts() for server in servers]}
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        self._sync()

    def remove(self, volume_id: str, *, keeps_lock: bool = False) -> None:
        """Remove what is on record of a volume, and the lock, which the caller holds, unless it is still needed."""
        for kind in ("json", "new") if keeps_lock else ("json", "new", "lock"):
            self._path(volume_id, kind).unlink(missing_ok=True)
        self._sync()

    def volumes(self) -> list[str]:
        """Return the ids of the volumes that there are records of."""
        start, tail = f"{self._prefix}-", ".json"
        found = (path.name for path in self.directory.glob(f"{start}*{tail}"))
        return sorted(name[len(start) : -len(tail)] for name in found)

    def _path(self, volume_id: str, kind: str) -> Path:
        if _SAFE_KEY.match(volume_id) is None:
            raise ValueError(f"{volume_id!r} cannot be part of a file's name")
        return self.directory / f"{self._prefix}-{volume_id}.{kind}"

    def _sync(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    """Say whether an open file still has its name: who removed it, with the lock, has made way for another one."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)
