"""Opening the volumes of a migration on this host, and letting go of them.

What a connector makes may outlive this process: a session with another host's target, and a device. So the journal says
before what has to be taken back, and that is what it is taken back by, here or in whichever process takes over. It is
taken back before the driver ends its part of the connection: a session whose target is gone hangs.

The driver gives access to this host by its names, which can be changed at any time. So they are in the journal, too,
before a driver is asked, and access is taken back under each of them.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from volmig import errors, plugins
from volmig.connectors import Connector
from volmig.drivers.base import Capability
from volmig.manager.backend import Backend
from volmig.migration.move import Move
from volmig.migration.request import host_method
from volmig.model import EntryKind, JournalEntry, Method, Volume
from volmig.transfer import End

LOG = logging.getLogger(__name__)

NAMESPACE = "volmig.connectors"

LOCAL = "local"
"""What drivers answer for a volume that is a path on this host."""

CONNECTION = "connection"
"""Subject of the journal entry that tells of a connection which is about to be made; it holds no secret."""

RELEASED = "connection-released"
"""Subject of the one that tells that it was taken back."""

CONNECT = "connect"
"""The step that connects."""

NAMES = "names"
"""In the intent of that step: what this host is called by those that show volumes to it; no secret is among it."""


def connect(move: Move, names: Mapping[str, Any]) -> None:
    """Open both volumes, by the way that the migration's method says.

    :param names: of this host; they are on record.
    :raises volmig.errors.PluginNotFound: when no connector serves what a driver answers.
    """
    move.ends.source = _open(move, move.source, move.source_volume, names, write=False)
    move.ends.destination = _open(move, move.destination, move.copy_volume, names, write=True)


def disconnect(move: Move) -> None:
    """Let go of both volumes. Succeeds when they are not open, also after the process that opened them has died.

    What cannot be let go of does not keep the rest.

    :raises volmig.errors.VolmigError: the first reason why something could not be; it is repeated with the step.
    """
    move.ends.source = move.ends.backing = move.ends.destination = None
    while move.ends.releases:
        move.ends.releases.pop()()
    failed = _release(move)
    for backend, volume in ((move.source, move.source_volume), (move.destination, move.copy_volume)):
        # A session whose target is gone hangs.
        if _by_handle(move, backend) or volume.backend_id in failed:
            continue
        try:
            _take_access_back(move, backend, volume)
        except errors.VolmigError as error:
            failed[volume.backend_id] = error
    if failed:
        raise next(iter(failed.values()))


def _take_access_back(move: Move, backend: Backend, volume: Volume) -> None:
    """End the driver's part of a connection, under each name that it may have been given to.

    :raises volmig.errors.VolmigError: the first reason why one could not be; the others were tried.
    """
    given = names_given(move.entries(), host=move.backends.host)
    if not given:
        # A migration that an earlier version has begun.
        backend.terminate_connection(volume)
    failed: list[errors.VolmigError] = []
    for names in given:
        try:
            backend.terminate_connection(volume, names=names)
        except errors.HostNotIdentified as error:
            # Under these names no access was given.
            LOG.debug("migration %s: %s", move.migration.id, error)
        except errors.VolmigError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def names_given(entries: Iterable[JournalEntry], *, host: str) -> list[Mapping[str, Any]]:
    """Return all that the journal says of how a host was called when volumes were to be shown to it, each once.

    :param host: what the host is called in pool addresses.
    """
    found: list[Mapping[str, Any]] = []
    for entry in entries:
        if entry.kind is EntryKind.INTENT and entry.subject == CONNECT:
            names = entry.data.get(NAMES)
            if names and names["host"] == host and names not in found:
                found.append(names)
    return found


def _open(move: Move, backend: Backend, volume: Volume, names: Mapping[str, Any], *, write: bool) -> End:
    if _by_handle(move, backend):
        handle = backend.open_volume(volume, "r+b" if write else "rb")
        move.ends.releases.append(handle.close)
        return handle
    info = backend.initialize_connection(volume, names=names)
    data = info["data"]
    kind = info["driver_volume_type"]
    if kind != LOCAL and not write:
        move.ends.backing = _local_path(backend, volume)
    connector = _connector(kind)
    # Before connecting, since a connection that fails halfway has to be taken back as well.
    if connector.leaves_connection:
        facts = {"id": str(uuid.uuid4()), "host": move.backends.host, "type": kind, "volume": volume.backend_id}
        with move.recording():
            move.note(EntryKind.NOTE, CONNECTION, {**facts, "release": dict(connector.release_data(data))})
    else:
        move.ends.releases.append(lambda: connector.disconnect(data))
    return connector.connect(data)


def _local_path(backend: Backend, volume: Volume) -> str | None:
    """Return where this host has a volume that it reaches by an export; None when the driver does not tell."""
    if not backend.can(Capability.LOCAL_PATH):
        return None
    info = backend.initialize_connection(volume, only_look=True)
    if info["driver_volume_type"] != LOCAL:
        # It has looked by way of the export that is there, which is not to be taken back yet.
        return None
    backend.terminate_connection(volume, only_look=True)
    return str(info["data"]["device_path"])


def release_connections(move: Move) -> None:
    """Take back what this process or an earlier one has connected on this host, going by the journal alone.

    :raises volmig.errors.VolmigError: the first reason why something could not be; the rest was taken back.
    """
    failed = _release(move)
    if failed:
        raise next(iter(failed.values()))


def _release(move: Move) -> dict[str, errors.VolmigError]:
    """Take back all connections; return what failed, by the id of the volume's object."""
    failed: dict[str, errors.VolmigError] = {}
    for facts in open_connections(move.entries(), host=move.backends.host):
        LOG.debug("migration %s: letting go of %s", move.migration.id, facts["volume"])
        try:
            _connector(str(facts["type"])).disconnect(facts["release"])
        except errors.VolmigError as error:
            failed[facts["volume"]] = error
        else:
            move.note(EntryKind.NOTE, RELEASED, {"connection": facts["id"]})
    return failed


def open_connections(entries: Iterable[JournalEntry], *, host: str) -> list[Mapping[str, Any]]:
    """Return what the journal says of connections on a host that may be there, the last one first.

    :param host: what the host is called in pool addresses.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        if entry.kind is EntryKind.NOTE and entry.subject == CONNECTION and entry.data["host"] == host:
            found[entry.data["id"]] = entry.data
        elif entry.kind is EntryKind.NOTE and entry.subject == RELEASED:
            found.pop(entry.data["connection"], None)
    return list(reversed(found.values()))


def _connector(kind: str) -> Connector:
    return plugins.load(NAMESPACE, kind, Connector).cls()  # type: ignore[type-abstract]


def _by_handle(move: Move, backend: Backend) -> bool:
    method = move.migration.method
    if method is Method.ROLLBACK:
        method = host_method(move.source, move.destination)
    return method is Method.FILE and backend.can(Capability.FILE_MODE)
