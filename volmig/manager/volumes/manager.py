"""All that can be asked for a volume, other than its migration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from volmig.manager.backends import Backends
from volmig.manager.processes import ProcessIdentity
from volmig.manager.volumes.adoption import Adoption
from volmig.manager.volumes.extending import Extending
from volmig.manager.volumes.gate import Gate
from volmig.manager.volumes.lifecycle import Lifecycle
from volmig.manager.volumes.operations import Operations
from volmig.manager.volumes.recovery import VolumeRecovery
from volmig.manager.volumes.retyping import Retyping
from volmig.manager.volumes.snapshots import Snapshots
from volmig.manager.volumes.uses import Uses
from volmig.model import Snapshot, Volume
from volmig.store import Store


class VolumeManager:
    """Creates, deletes, extends, adopts, releases and changes volumes.

    A request either takes effect wholly or is refused. One that works on storage is entered in the volume's record
    while it does; until it has ended, other requests for the volume raise :class:`volmig.errors.OperationInProgress`,
    in every thread and process. Should its process die, the next request for the volume, or :meth:`recover`, ends it.

    :param settle: called with a migration that stands in the way of a request: ends it if it can be ended, and
        returns when it is over. Raises :class:`volmig.errors.VolumeMigrating` when it cannot give way.
    :param process: this process; None to find out.
    """

    def __init__(
        self,
        store: Store,
        backends: Backends,
        *,
        settle: Callable[[Volume, str], None],
        process: ProcessIdentity | None = None,
    ) -> None:
        operations = Operations(store, lambda: process or ProcessIdentity.own(backends.host))
        gate = Gate(store, backends, operations, settle)
        self._lifecycle = Lifecycle(store, backends, operations, gate)
        self._extending = Extending(store, backends, operations, gate)
        self._snapshots = Snapshots(backends, operations, gate)
        self._retyping = Retyping(backends, operations, gate)
        self._adoption = Adoption(store, backends, operations, gate)
        self._uses = Uses(store, gate)
        self._gate = gate
        self._recovery = VolumeRecovery(store, backends, operations, gate)

    # --- storage ------------------------------------------------------------------------------

    def create(self, volume: Volume) -> Volume:
        """Make the storage of a volume and record it.

        :param volume: with the pool where it is to be as ``host``.
        :raises volmig.errors.VolmigError: when it cannot be made; nothing is left behind then.
        """
        return self._lifecycle.create(volume)

    def delete(self, volume_id: str) -> None:
        """Delete a volume and its storage. An unlocked migration of it is cancelled first.

        Old storage of it that a migration has kept is due to be deleted from then on.
        """
        self._lifecycle.delete(volume_id)

    def extend(self, volume_id: str, new_size_bytes: int) -> Volume:
        """Enlarge a volume. An unlocked migration of it is cancelled first.

        :raises volmig.errors.SizeTooSmall: when it is not larger than the volume.
        """
        return self._extending.extend(volume_id, new_size_bytes)

    def create_snapshot(self, volume_id: str, *, name: str) -> Snapshot:
        """Make a snapshot of a volume. An unlocked migration of it is cancelled first.

        :raises volmig.errors.UnsupportedOperation: when its backend makes none.
        """
        return self._snapshots.create(volume_id, name=name)

    def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """Delete a snapshot of a volume. :raises volmig.errors.RequestInvalid: when it has none of that id."""
        self._snapshots.delete(volume_id, snapshot_id)

    def retype(self, volume_id: str, volume_type: str) -> Volume:
        """Change a volume's type in place. An unlocked migration of it is cancelled first.

        A change that fails halfway leaves the volume in ``error``: nobody can say how far it has come.

        :raises volmig.errors.UnsupportedOperation: when its driver cannot do that without a migration.
        """
        return self._retyping.retype(volume_id, volume_type)

    # --- objects of others --------------------------------------------------------------------

    def manage(self, reference: str, volume: Volume) -> Volume:
        """Take over an object that volmig did not make; its data stays as it is.

        :param reference: the object's name or path.
        :param volume: the record to be; with an empty ``host``, all pools that can adopt are asked.
        :raises volmig.errors.NotManageable: when no pool has it, with what each says.
        :raises volmig.errors.AlreadyManaged: when it belongs to a volume.
        """
        return self._adoption.manage(reference, volume)

    def unmanage(self, volume_id: str) -> None:
        """Forget a volume; its storage and data stay, and so does old storage of it that a migration has kept."""
        self._adoption.unmanage(volume_id)

    # --- records ------------------------------------------------------------------------------

    def attach(self, volume_id: str, *, instance: str, mountpoint: str) -> Volume:
        """Record that somebody uses a volume. An unlocked migration of it is cancelled first."""
        return self._uses.attach(volume_id, instance=instance, mountpoint=mountpoint)

    def detach(self, volume_id: str, *, attachment_id: str | None) -> Volume:
        """Record that somebody no longer uses a volume.

        :param attachment_id: which use has ended; None for the only one.
        """
        return self._uses.detach(volume_id, attachment_id=attachment_id)

    def change(
        self, volume_id: str, *, name: str | None, metadata: Mapping[str, str], remove_metadata: Collection[str]
    ) -> Volume:
        """Change what is only recorded of a volume; whatever is being done to its storage goes on and keeps that.

        :param name: the new name; None to keep it.
        :param metadata: entries to add or to replace; they win over *remove_metadata*.
        :param remove_metadata: keys of entries to remove.
        :raises volmig.errors.RequestInvalid: when the name or the metadata cannot be recorded.
        """
        return self._uses.change(volume_id, name=name, metadata=metadata, remove_metadata=remove_metadata)

    # --- recovery -----------------------------------------------------------------------------

    def finish_abandoned(self, volume: Volume) -> None:
        """Bring the request to its end that a volume's record tells of, if nobody does it any more.

        :raises volmig.errors.OperationInProgress: when somebody does it.
        """
        self._gate.finish_abandoned(volume)

    def recover(self) -> list[Volume]:
        """End all requests whose process is gone, or whose time is over, and return the volumes as they are then.

        A creation, an extension, a snapshot and a deletion are done to their end, or undone where that fails; a change
        of type and an unmanaging, which a driver need not be able to repeat, leave the volume in ``error``. What cannot
        be done now, as when a backend is down, is logged and stays for the next time; so it does for one backend alone.
        """
        return self._recovery.recover()
