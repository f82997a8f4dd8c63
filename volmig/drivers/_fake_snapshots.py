"""Snapshots of the fake driver's volumes: whole copies, beside them in their pool."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from volmig.drivers import _directory
from volmig.drivers._fake_objects import Objects

_PIECE_BYTES: Final = 1024 * 1024


def make(objects: Objects, pool: str, name: str, snapshot_id: str) -> None:
    """Copy an object as its snapshot. Succeeds when that is there.

    :raises FileNotFoundError: when there is no object.
    :raises volmig.errors.UnsafePath: for an id that is none.
    """
    copy_name = _name(snapshot_id)
    source = objects.open(pool, name, os.O_RDONLY)
    try:
        with contextlib.suppress(FileExistsError):
            objects.create(pool, copy_name, os.fstat(source).st_size, lambda fd: _copy(source, fd))
    finally:
        os.close(source)


def remove(objects: Objects, pool: str, snapshot_id: str) -> None:
    """Remove a snapshot. Succeeds when there is none. :raises volmig.errors.UnsafePath: for an id that is none."""
    objects.remove(pool, _name(snapshot_id))


def _name(snapshot_id: str) -> str:
    # Hidden: it is no object that could be a volume.
    return f".snapshot-{_directory.volume_name(snapshot_id)}"


def _copy(source: int, destination: int) -> None:
    offset = 0
    while data := os.pread(source, _PIECE_BYTES, offset):
        view = memoryview(data)
        while view:
            count = os.pwrite(destination, view, offset)
            view, offset = view[count:], offset + count
