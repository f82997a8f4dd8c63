"""What must be so before a request may begin."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from volmig import errors
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.doubts import unsettled_doubt
from volmig.manager.volumes.operations import Entry, Held, Operation, Operations, longest_seconds
from volmig.model import Volume, VolumeStatus
from volmig.store import Store
from volmig.store.base import WriteTransaction

LOG = logging.getLogger(__name__)

Finish = Callable[[Held], object]
"""Brings a request to its end that another process has begun. Raises :class:`volmig.errors.TemporaryError`, and ends
nothing, when that cannot be done now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A kind of request."""

    operation: str
    """What it is called in errors, so that a volume's id can follow."""
    allowed: tuple[VolumeStatus, ...]
    """The statuses in which it may be made."""
    status: VolumeStatus | None = None
    """The volume's status meanwhile; None when it stays as it is."""
    calls: tuple[str, ...] = ()
    """The driver's methods that it calls, and those that clear up when one fails."""
    name: str = ""
    """How the volume's record names it; empty for one that only changes the record."""
    keeps_error: bool = False
    """Whether a volume in status ``error`` stays in it meanwhile."""
    allows_doubt: bool = False
    """Whether it may be made while nobody can tell where the volume is."""
    allows_attachments: bool = False
    allows_snapshots: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Overtaken(Exception):
    """Something came in between looking at a volume and beginning a request."""


class Gate:
    """Lets requests begin one at a time for each volume, and never beside a migration.

    :param settle: see :class:`volmig.manager.volumes.VolumeManager`.
    """

    def __init__(
        self, store: Store, backends: Backends, operations: Operations, settle: Callable[[Volume, str], None]
    ) -> None:
        self._store = store
        self._backends = backends
        self._operations = operations
        self._settle = settle
        self._finishers: dict[str, tuple[Finish, tuple[str, ...]]] = {}

    def register(self, name: str, finish: Finish, *, calls: tuple[str, ...]) -> None:
        """Say how requests of a name are finished, and by which methods of the driver."""
        self._finishers[name] = (finish, calls)

    def get(self, volume_id: str) -> Volume:
        """Return a volume as recorded. :raises volmig.errors.VolumeNotFound:"""
        with self._store.reading() as view:
            return view.get_volume(volume_id)

    # --- beginning ----------------------------------------------------------------------------

    def ready(self, volume_id: str, request: Request) -> Volume:
        """Return a volume that a request may be made for, after migrations have given way and lost requests are ended.

        What else stands against the request is refused before a migration is ended for it.
        """
        while True:
            volume = self.get(volume_id)
            if volume.operation:
                self.finish_abandoned(volume)
                continue
            _check_use(volume, request)
            if volume.migration_id is None:
                _check_status(volume, request)
                self._check_doubt(volume, request)
                return volume
            self._settle(volume, request.operation)

    def _check_doubt(self, volume: Volume, request: Request) -> None:
        if volume.status is not VolumeStatus.ERROR or request.allows_doubt:
            return
        with self._store.reading() as view:
            doubt = unsettled_doubt(view, volume.id)
        if doubt is not None:
            raise errors.LocationDoubtful(
                volume=volume.id,
                source=doubt.source,
                destination=doubt.destination,
                reason="its last migration ended in doubt",
            )

    def require(
        self, transaction: WriteTransaction, volume_id: str, request: Request, *, seen: Volume | None = None
    ) -> Volume:
        """Return a volume as it is in a transaction that begins a request, if that may still be.

        :param seen: what was looked at before, whose place and size must still be the same.
        :raises Overtaken: when it is to be made :meth:`ready` again.
        """
        volume = transaction.get_volume(volume_id)
        if volume.operation or volume.migration_id is not None:
            raise Overtaken
        if seen is not None and (seen.host, seen.size_bytes) != (volume.host, volume.size_bytes):
            raise Overtaken
        _check_use(volume, request)
        _check_status(volume, request)
        return volume

    def enter(self, entry: Entry, volume: Volume, request: Request) -> Held:
        """Enter a request in the record of a volume that :meth:`require` has returned."""
        return entry.begin(
            volume,
            request.name,
            seconds=longest_seconds(self._backends.of(volume), *request.calls),
            arguments=request.arguments,
            status=_status_meanwhile(volume, request),
        )

    def change(self, volume_id: str, request: Request, change: Callable[[WriteTransaction, Volume], Volume]) -> Volume:
        """Do a request that only changes the record, and return the volume as it is then."""
        while True:
            self.ready(volume_id, request)
            try:
                with self._store.writing() as transaction:
                    return change(transaction, self.require(transaction, volume_id, request))
            except Overtaken:
                LOG.debug("volume %s: %s begins again", volume_id, request.operation)

    def begin(self, volume_id: str, request: Request, look: Callable[[Backend, Volume], None]) -> Held:
        """Enter a request in the record of its volume, and return what is to be done.

        :param look: called before that, to refuse what the backend cannot do.
        """
        while True:
            volume = self.ready(volume_id, request)
            look(self._backends.of(volume), volume)
            try:
                with self._operations.entering() as entry:
                    current = self.require(entry.transaction, volume_id, request, seen=volume)
                    return self.enter(entry, current, request)
            except Overtaken:
                LOG.debug("volume %s: %s begins again", volume_id, request.operation)

    # --- ending what others have begun --------------------------------------------------------

    def finish_abandoned(self, volume: Volume) -> Operation | None:
        """Bring the request to its end that a volume's record tells of, if nobody does it any more.

        :returns: the request; None when there is none any more.
        :raises volmig.errors.OperationInProgress: when somebody does it.
        :raises volmig.errors.VolmigError: when it cannot be finished now.
        """
        operation = Operation.of(volume)
        if operation is None:
            return None
        if operation.name not in self._finishers:
            raise errors.InternalError(reason=f"volume {volume.id} has an unknown operation {operation.name!r}")
        finish, calls = self._finishers[operation.name]
        held = self._operations.take_over(volume, longest_seconds(self._backends.of(volume), *calls))
        if held is None:
            return None
        LOG.warning("volume %s: finishing %s, which %s has left", volume.id, operation.name, operation.process)
        try:
            with self._operations.at_work(held):
                finish(held)
        except errors.VolmigError as error:
            if not held.is_ended:
                raise
            LOG.warning("volume %s: %s has ended with: %s", volume.id, operation.name, error)
        return operation


def _status_meanwhile(volume: Volume, request: Request) -> VolumeStatus:
    stays = request.status is None or (request.keeps_error and volume.status is VolumeStatus.ERROR)
    return volume.status if request.status is None or stays else request.status


def _check_use(volume: Volume, request: Request) -> None:
    if volume.attachments and not request.allows_attachments:
        users = ", ".join(attachment.instance for attachment in volume.attachments)
        raise errors.VolumeInUse(volume=volume.id, users=f"attached to {users}")
    if volume.snapshots and not request.allows_snapshots:
        raise errors.VolumeHasSnapshots(operation=request.operation, volume=volume.id, count=len(volume.snapshots))


def _check_status(volume: Volume, request: Request) -> None:
    if volume.status not in request.allowed:
        raise errors.WrongStatus(
            operation=request.operation,
            volume=volume.id,
            status=volume.status.value,
            allowed=" or ".join(status.value for status in request.allowed),
        )
