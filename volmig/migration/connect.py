"""Opening the volumes of a migration on this host, and letting go of them."""

from __future__ import annotations

from volmig import plugins
from volmig.connectors import Connector
from volmig.drivers.base import Capability
from volmig.manager.backend import Backend
from volmig.migration.move import Move
from volmig.migration.request import host_method
from volmig.model import Method, Volume
from volmig.transfer import End

NAMESPACE = "volmig.connectors"


def connect(move: Move) -> None:
    """Open both volumes, by the way that the migration's method says.

    :raises volmig.errors.PluginNotFound: when no connector serves what a driver answers.
    """
    move.ends.source = _open(move, move.source, move.source_volume, write=False)
    move.ends.destination = _open(move, move.destination, move.copy_volume, write=True)


def disconnect(move: Move) -> None:
    """Let go of both volumes. Succeeds when they are not open, also after the process that opened them has died."""
    move.ends.source = move.ends.destination = None
    while move.ends.releases:
        move.ends.releases.pop()()
    for backend, volume in ((move.source, move.source_volume), (move.destination, move.copy_volume)):
        if not _by_handle(move, backend):
            backend.terminate_connection(volume)


def _open(move: Move, backend: Backend, volume: Volume, *, write: bool) -> End:
    if _by_handle(move, backend):
        handle = backend.open_volume(volume, "r+b" if write else "rb")
        move.ends.releases.append(handle.close)
        return handle
    info = backend.initialize_connection(volume)
    data = info["data"]
    connector = plugins.load(NAMESPACE, info["driver_volume_type"], Connector).cls()  # type: ignore[type-abstract]
    # Before connecting, since a connection that fails halfway has to be taken back as well.
    move.ends.releases.append(lambda: connector.disconnect(data))
    return connector.connect(data)


def _by_handle(move: Move, backend: Backend) -> bool:
    method = move.migration.method
    if method is Method.ROLLBACK:
        method = host_method(move.source, move.destination)
    return method is Method.FILE and backend.can(Capability.FILE_MODE)
