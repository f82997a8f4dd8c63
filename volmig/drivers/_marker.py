"""The file by which a directory says which backend and which storage it belongs to."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass, replace
from typing import Any

from volmig.drivers._directory import OpenDirectory

MARKER = ".volmig-backend"
_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """What a directory's marker says."""

    backend: str
    """Name of the backend; empty when the marker cannot be understood."""
    storage: str | None = None
    """Identity of the storage, the same in all directories of it; None in markers of old."""
    pools: tuple[str, ...] = ()
    """In the base directory: the pools that were made below it."""

    @classmethod
    def read(cls, directory: OpenDirectory) -> Marker | None:
        """Return the marker of a directory, or None. :raises volmig.errors.UnsafePath: when it is no regular file."""
        try:
            fd = directory.open(MARKER, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            data = file.read(_MAX_BYTES)
        try:
            return cls._parsed(json.loads(data))
        except (ValueError, RecursionError):
            return cls(backend="")

    @classmethod
    def _parsed(cls, value: Any) -> Marker:
        members = value if isinstance(value, dict) else {}
        backend, storage, pools = members.get("backend"), members.get("storage"), members.get("pools", [])
        sound = (
            isinstance(backend, str)
            and (storage is None or (isinstance(storage, str) and storage))
            and isinstance(pools, list)
            and all(isinstance(pool, str) for pool in pools)
        )
        if not sound:
            raise ValueError("a member is not as it should be")
        return cls(backend=str(backend), storage=storage, pools=tuple(pools))

    def data(self) -> bytes:
        """Return the content of the marker's file."""
        members: dict[str, Any] = {"backend": self.backend, "storage": self.storage}
        if self.pools:
            members["pools"] = list(self.pools)
        return json.dumps(members).encode() + b"\n"

    def with_pool(self, pool: str) -> Marker:
        """Return the marker that lists *pool*, too."""
        return self if pool in self.pools else replace(self, pools=(*self.pools, pool))


def new_storage() -> str:
    """Return an identity that no other storage has."""
    return str(uuid.uuid4())
