"""Changing a volume's type in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from volmig import errors
from volmig.manager.backends import Backends
from volmig.manager.volumes.gate import Gate, Request
from volmig.manager.volumes.lifecycle import require_in_service
from volmig.manager.volumes.operations import Held, Operations
from volmig.manager.volumes.values import check_name, merged_fields
from volmig.model import RequestContext, Volume, VolumeStatus
from volmig.store.base import WriteTransaction

_TYPE: Final = "volume_type"
_RETYPE: Final = Request(
    operation="change the type of",
    name="retype",
    allowed=(VolumeStatus.AVAILABLE, VolumeStatus.ERROR),
    status=VolumeStatus.RETYPING,
    calls=("retype",),
)


class Retyping:
    """Changes the type of volumes, where their driver can do that in place."""

    def __init__(self, backends: Backends, operations: Operations, gate: Gate) -> None:
        self._backends = backends
        self._operations = operations
        self._gate = gate
        gate.register(_RETYPE.name, self._stop_in_doubt, calls=())

    def retype(self, volume_id: str, volume_type: str) -> Volume:
        """See :meth:`volmig.manager.volumes.VolumeManager.retype`."""
        check_name("the volume's type", volume_type)
        if not volume_type:
            raise errors.RequestInvalid(what="the volume's type", reason="it is empty")
        volume = self._gate.get(volume_id)
        if volume.volume_type == volume_type and not volume.operation:
            return volume
        backend = self._backends.of(volume)
        if not backend.offers("retype"):
            # Before a migration is ended for it.
            raise errors.UnsupportedOperation(backend=backend.name, operation="changing a volume's type in place")
        held = self._gate.begin(volume_id, replace(_RETYPE, arguments={_TYPE: volume_type}), require_in_service)
        with self._operations.at_work(held):
            return self._change(held, volume_type)

    def _change(self, held: Held, volume_type: str) -> Volume:
        backend = self._backends.of(held.volume)
        context = RequestContext(project_id=held.volume.project_id)
        held.check()
        try:
            changed, update = backend.retype(context, held.volume, volume_type)
        except (errors.RequestError, errors.StorageBusy):
            # By their contract nothing was changed.
            self._operations.finish(held, status=VolumeStatus.AVAILABLE)
            raise
        except Exception as error:
            reason = f"Changing its type to {volume_type!r} failed, and nobody can say how far it has come: {error}"
            self._operations.finish(held, status=VolumeStatus.ERROR, status_reason=reason)
            raise
        if not changed:
            self._operations.finish(held, status=VolumeStatus.AVAILABLE)
            raise errors.UnsupportedOperation(
                backend=backend.name,
                operation=f"changing a volume's type to {volume_type!r} in place",
                hint="Move the volume to a pool of that type: `volmig volume migrate`.",
            )

        def end(transaction: WriteTransaction, volume: Volume) -> Volume:
            fields = merged_fields(volume, update)
            return transaction.update_volume(
                volume, operation={}, status=VolumeStatus.AVAILABLE, volume_type=volume_type, **fields
            )

        return self._operations.end(held, end)

    def _stop_in_doubt(self, held: Held) -> None:
        """End a change that was interrupted: a driver need not be able to repeat it, and none can be asked."""
        reason = (
            f"Changing its type to {held.operation.arguments.get(_TYPE)!r} was interrupted, and nobody can say how far "
            "it has come. Its data was not touched by volmig; look at it in its storage."
        )
        self._operations.finish(held, status=VolumeStatus.ERROR, status_reason=reason)
