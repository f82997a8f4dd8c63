"""The steps of a migration: what each does, and how it is undone.

Every step can be repeated, since a crash can fall between its effect and the record of it. Its intent is recorded
before, and its outcome after it.
"""

from __future__ import annotations

import abc
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

from volmig import errors
from volmig.drivers.base import Capability, VolumeUpdate
from volmig.manager.backend import Backend
from volmig.migration.connect import connect, disconnect
from volmig.migration.helpers import HELPER_NOTE, helper_facts
from volmig.migration.move import Move, Recording
from volmig.model import EntryKind, Method, Phase, RetiredObject, Volume
from volmig.transfer import CopyOptions, End, HelperProcess, Verify, check_unchanged, copy_data, verify_copy

Facts = Mapping[str, Any]

_PLACE = ("name_id", "provider_location", "provider_id")
"""What of a volume's record says where its driver finds it, beside the pool."""

_RENAMED = "update_migrated_volume"
"""Subject of the note that holds what the destination's driver made of the copy."""


class Declined(Exception):
    """The driver does not move the volume itself, for the reason given; the host has to copy it."""


class Step(abc.ABC):
    """One step. Objects hold no state: what a step knows is in the :class:`Move` and the journal."""

    name: ClassVar[str]
    phase: ClassVar[Phase]
    """Phase that the migration is in while the step runs."""
    needed_by: ClassVar[frozenset[str]] = frozenset()
    """Steps that need an effect of this one that ends with the process, so that it is done again before them."""
    commits: ClassVar[bool] = False
    """Whether the step ends with a transaction of its own."""

    def intent(self, move: Move) -> Facts:
        """Return the ids and names that the step is going to create."""
        return {}

    @abc.abstractmethod
    def run(self, move: Move) -> Facts:
        """Do it, and return what is worth recording."""

    def commit(self, move: Move, recording: Recording) -> None:
        """Change the records in the transaction that also records the outcome (with ``commits``)."""

    def undo(self, move: Move) -> None:
        """Take the effect back. Succeeds when there was none, or only a part of it."""

    def after_undo(self, move: Move, recording: Recording) -> None:
        """Record what may appear yet although it was taken back."""

    def leave(self, move: Move, recording: Recording, error: errors.VolmigError) -> None:
        """Record, for later, what :meth:`undo` could not take back for all its attempts."""


class CreateDestination(Step):
    """Make the object that the data is copied to."""

    name = "create_destination"
    phase = Phase.STARTING

    def intent(self, move: Move) -> Facts:
        return {"id": move.migration.destination_id, "host": move.migration.destination}

    def run(self, move: Move) -> Facts:
        try:
            update = move.destination.create_volume(move.copy_volume)
        except errors.DriverTimeout:
            move.left_running.add(self.name)
            raise
        outcome: dict[str, Any] = {"identity": move.destination.identify_object(move.copy_volume)}
        outcome.update((key, update.get(key)) for key in ("provider_location", "provider_id") if key in update)
        return outcome

    def undo(self, move: Move) -> None:
        # A copy is only ever deleted while the original is seen to be there.
        if not move.source.volume_exists(move.source_volume):
            raise move.doubt(f"it is not seen at its source, so the copy {move.migration.destination_id} is kept")
        identity = move.recorded(self.name, "identity")
        present = [volume for volume in _names_of_copy(move) if move.destination.volume_exists(volume)]
        for volume in present or _renamed_out_of_sight(move):
            move.destination.delete_object(volume, identity)

    def after_undo(self, move: Move, recording: Recording) -> None:
        # A call of which nobody saw the end may make the object yet: it is looked for once more when it must be over.
        if self.name in move.left_running or (move.was_begun_before(self.name) and not move.is_done(self.name)):
            due_at = recording.transaction.now() + timedelta(seconds=move.destination.timeout_seconds)
            _retire(move, recording, move.copy_volume, identity=None, due_at=due_at)

    def leave(self, move: Move, recording: Recording, error: errors.VolmigError) -> None:
        identity = move.recorded(self.name, "identity")
        for volume in _names_of_copy(move):
            _retire(move, recording, volume, identity=identity, error=error.message)


class Connect(Step):
    """Make both volumes reachable from this host."""

    name = "connect"
    phase = Phase.STARTING
    needed_by = frozenset({"copy", "verify"})

    def run(self, move: Move) -> Facts:
        connect(move)
        return {"method": move.migration.method.value}

    def undo(self, move: Move) -> None:
        disconnect(move)


class Copy(Step):
    """Move the bytes, and flush them to stable storage."""

    name = "copy"
    phase = Phase.MIGRATING

    def intent(self, move: Move) -> Facts:
        return {"bytes_total": move.volume.size_bytes, "engine": move.migration.engine}

    def run(self, move: Move) -> Facts:
        def on_process(process: HelperProcess) -> None:
            with move.recording():
                move.note(EntryKind.NOTE, HELPER_NOTE, helper_facts(process, host=move.backends.host))

        source, destination = _ends(move)
        copied = move.copied = copy_data(
            source,
            destination,
            size_bytes=move.volume.size_bytes,
            options=_copy_options(move),
            progress=move.owned.report,
            control=move.owned.control,
            on_process=on_process,
        )
        return {
            "engine": copied.engine,
            "engine_reason": copied.engine_reason,
            "means": copied.means,
            "bytes_copied": copied.bytes_copied,
            "bytes_zero": copied.bytes_zero,
            "seconds": round(copied.seconds, 6),
        }


class VerifyCopy(Step):
    """Compare what arrived with what left.

    After a takeover the digest of what was read is not known in this process, and the source is read again.
    """

    name = "verify"
    phase = Phase.MIGRATING

    def run(self, move: Move) -> Facts:
        source, destination = _ends(move)
        verified = verify_copy(
            source,
            destination,
            size_bytes=move.volume.size_bytes,
            options=_copy_options(move),
            copied=move.copied,
            progress=move.owned.report,
            control=move.owned.control,
        )
        return {
            "verify": move.migration.verify,
            "digest_algorithm": verified.digest_algorithm,
            "source_digest": verified.source_digest,
            "destination_digest": verified.destination_digest,
            "seconds": round(verified.seconds, 6),
        }


class Disconnect(Step):
    """Let go of both volumes, after a last look at whether the source was written to."""

    name = "disconnect"
    phase = Phase.MIGRATING

    def run(self, move: Move) -> Facts:
        move.owned.leave_transfer(move.volume.size_bytes)
        if move.copied is not None and move.ends.source is not None:
            check_unchanged(move.ends.source, move.copied)
        disconnect(move)
        return {}


class CutOver(Step):
    """Give the volume its new place: the commit point of a copy made by the host."""

    name = "cut_over"
    phase = Phase.COMPLETING
    commits = True

    def intent(self, move: Move) -> Facts:
        # An object that has the final name already is not the copy, whatever happens from now on.
        return {"final_name_is_free": not move.destination.volume_exists(move.arrived_as({}))}

    def run(self, move: Move) -> Facts:
        copy = move.copy_volume
        if _waits_for_deletion(move, move.arrived_as({})):
            # An old call could still delete whatever has that name.
            update: VolumeUpdate = {"_name_id": copy.backend_id}
        else:
            update = move.destination.update_migrated_volume(
                move.context, move.source_volume, copy, move.original_status.value
            )
        place = _place(update, copy, name_id=copy.backend_id)
        # On record even when the commit fails, since the copy has its new name by now.
        move.note(EntryKind.NOTE, _RENAMED, place)
        _check_arrival(move, place)
        return {}

    def commit(self, move: Move, recording: Recording) -> None:
        _commit_place(move, recording, _RENAMED)
        recording.update_migration(
            digest_algorithm=move.recorded("verify", "digest_algorithm") or "",
            source_digest=move.recorded("verify", "source_digest") or "",
            destination_digest=move.recorded("verify", "destination_digest") or "",
        )
        _retire(move, recording, move.source_volume, identity=move.recorded_source("identity"))


class RetireSource(Step):
    """Delete the storage that the volume has left."""

    name = "retire_source"
    phase = Phase.COMPLETING
    commits = True

    def run(self, move: Move) -> Facts:
        # The old storage is only ever deleted while the volume is seen to be at its new place.
        if not move.destination.volume_exists(move.volume):
            raise move.doubt("it is not seen at its destination, so its old storage is kept")
        move.source.delete_object(move.source_volume, move.recorded_source("identity"))
        return {}

    def commit(self, move: Move, recording: Recording) -> None:
        recording.transaction.remove_retired(_retired_id(move, move.source_volume))


class DriverMove(Step):
    """Let the driver move the volume within its own storage."""

    name = "driver_move"
    phase = Phase.MIGRATING

    def run(self, move: Move) -> Facts:
        # Something that has the name at the destination already, and that no earlier call of this migration has put
        # there, would make it impossible to say where the volume is.
        name_id = move.source_volume.name_id
        if not move.was_begun_before(self.name) and move.destination.volume_exists(
            move.arrived_as({"name_id": name_id})
        ):
            raise Declined("its name is taken at the destination")
        host = move.backends.as_destination(move.migration.destination)
        try:
            moved, update = move.source.migrate_volume(move.context, move.source_volume, host)
        except errors.DriverTimeout as error:
            raise move.doubt(f"{error.message} It may still be moving it") from error
        if not moved:
            raise Declined("the driver declined")
        here = move.source_volume
        return _place(update, here, name_id=here.name_id)

    def undo(self, move: Move) -> None:
        """Bring the volume back, if it has left.

        :raises volmig.errors.LocationDoubtful: when nobody can say where it is.
        :raises CannotGoBack: when it has arrived and cannot be brought back.
        """
        outcome = _outcome_of_driver(move)
        if outcome is None:
            return
        there = move.arrived_as(outcome)
        try:
            back = move.backends.as_destination(move.migration.source)
            moved, update = move.destination.migrate_volume(move.context, there, back)
        except errors.DriverTimeout as error:
            raise move.doubt(f"{error.message} It may still be bringing it back") from error
        except errors.VolmigError as error:
            # It may have come back all the same.
            back_at = _outcome_of_move(move, move.destination, there, move.migration.source)
            if back_at is None:
                raise CannotGoBack(outcome) from error
            moved, update = (
                True,
                VolumeUpdate(
                    _name_id=back_at["name_id"],
                    provider_location=back_at["provider_location"],
                    provider_id=back_at["provider_id"],
                ),
            )
        if not moved:
            raise CannotGoBack(outcome)
        place = _place(update, there, name_id=there.name_id)
        move.source_update = {key: place[key] for key in _PLACE}

    def leave(self, move: Move, recording: Recording, error: errors.VolmigError) -> None:
        raise move.doubt(f"bringing it back failed ({error.message})")


class CutOverDriverMove(Step):
    """Give the volume its new place: the commit point of a driver's own migration."""

    name = "cut_over"
    phase = Phase.COMPLETING
    commits = True

    def run(self, move: Move) -> Facts:
        _check_arrival(move, {key: move.recorded(DriverMove.name, key) for key in _PLACE})
        return {}

    def commit(self, move: Move, recording: Recording) -> None:
        _commit_place(move, recording, DriverMove.name)


class CannotGoBack(Exception):
    """The volume is whole at its destination and cannot be brought back, so that the way is forward.

    :ivar outcome: what :meth:`DriverMove.run` would have recorded.
    """

    def __init__(self, outcome: Facts) -> None:
        super().__init__("the volume cannot be brought back")
        self.outcome = outcome


HOST_STEPS: tuple[Step, ...] = (
    CreateDestination(),
    Connect(),
    Copy(),
    VerifyCopy(),
    Disconnect(),
    CutOver(),
    RetireSource(),
)

DRIVER_STEPS: tuple[Step, ...] = (DriverMove(), CutOverDriverMove())


def steps_for(method: Method) -> Sequence[Step]:
    """Return the steps of a method after ``reserve``, which is part of accepting the request."""
    if method is Method.DRIVER:
        return DRIVER_STEPS
    if method in (Method.BLOCK, Method.FILE):
        return HOST_STEPS
    raise errors.InternalError(reason=f"there are no steps for method {method.value}")


def _commit_place(move: Move, recording: Recording, outcome_of: str) -> None:
    recording.update_volume(
        host=move.migration.destination,
        name_id=_other_than(move.recorded(outcome_of, "name_id"), move.volume.id),
        provider_location=move.recorded(outcome_of, "provider_location"),
        provider_id=move.recorded(outcome_of, "provider_id"),
        metadata={**move.volume.metadata, **(move.recorded(outcome_of, "metadata") or {})},
    )
    recording.transaction.release(move.migration.id)


def _other_than(name_id: str | None, volume_id: str) -> str | None:
    return None if name_id == volume_id else name_id


def _ends(move: Move) -> tuple[End, End]:
    if move.ends.source is None or move.ends.destination is None:
        raise errors.InternalError(reason="a copy was begun before its ends were connected")
    return move.ends.source, move.ends.destination


def _copy_options(move: Move) -> CopyOptions:
    migration = move.migration
    return CopyOptions(
        engine=migration.engine,
        verify=Verify(migration.verify),
        source_format=move.source_volume.format,
        destination_format=move.copy_volume.format,
        # A copy that was begun by another owner is never gone on with: see the runner.
        destination_is_zero=move.destination.can(Capability.ZEROED_ON_CREATE),
        bandwidth_limit_bytes=migration.bandwidth_limit_bytes,
        chunk_bytes=move.settings.chunk_bytes,
        ignore_header=not move.settings.check_image_headers,
    )


def _names_of_copy(move: Move) -> list[Volume]:
    """Return the volumes under whose names the copy may be known to the destination's driver.

    Once ``cut_over`` has begun, the driver may have renamed the copy: to what its answer said, if that was recorded,
    or most likely to the original's id, unless something else had that name before.
    """
    names = [move.copy_volume]
    if move.has(EntryKind.INTENT, CutOver.name):
        if move.has(EntryKind.NOTE, _RENAMED):
            names.append(move.arrived_as({key: move.recorded(_RENAMED, key) for key in _PLACE}))
        elif move.intended(CutOver.name, "final_name_is_free"):
            names.append(move.arrived_as({}))
    return list({(volume.backend_id, volume.provider_id): volume for volume in names}.values())


def _renamed_out_of_sight(move: Move) -> list[Volume]:
    """Return the copy under a name that only the driver knows, after a rename that did not end well.

    The driver tells by repeating its answer, as the contract has it.

    :raises volmig.errors.ObjectLeftBehind: when it does not.
    """
    was_made = move.has(EntryKind.INTENT, CutOver.name) and move.is_done(CreateDestination.name)
    if not was_made or move.has(EntryKind.NOTE, _RENAMED):
        return []
    copy = move.copy_volume
    try:
        update = move.destination.update_migrated_volume(
            move.context, move.source_volume, copy, move.original_status.value
        )
    except errors.VolumeObjectMissing:
        return []
    renamed = move.arrived_as(_place(update, copy, name_id=copy.backend_id))
    if not move.destination.volume_exists(renamed):
        raise errors.ObjectLeftBehind(
            what=f"the copy {copy.id} in {copy.host}", reason="it is not seen under any name that its driver gives"
        )
    return [renamed]


def _waits_for_deletion(move: Move, volume: Volume) -> bool:
    with move.store.reading() as view:
        retired = [each for each in view.list_retired() if each.host == volume.host]
    return any(each.name_id == volume.backend_id and not each.provider_id for each in retired)


def _check_arrival(move: Move, place: Facts) -> None:
    """Look at the volume at its new place before the commit point.

    :raises volmig.errors.VolmigError: when it is not there, or has another size.
    """
    arrived = move.arrived_as(place)
    if not move.destination.volume_exists(arrived):
        raise errors.VolumeObjectMissing(
            volume=move.volume.id, location=f"{arrived.provider_id or arrived.backend_name} in {arrived.host}"
        )
    move.destination.check_object(arrived)


def _outcome_of_driver(move: Move) -> Facts | None:
    """Return what a driver's own migration has made of the volume, or None when it is still at its source.

    :raises volmig.errors.LocationDoubtful: when the drivers cannot say.
    """
    name_id = move.recorded(DriverMove.name, "name_id")
    return _outcome_of_move(move, move.source, move.source_volume, move.migration.destination, name_id=name_id)


def _outcome_of_move(
    move: Move, mover: Backend, here: Volume, host: str, *, name_id: str | None = None
) -> Facts | None:
    """Return what *mover* has made of *here* by moving it to the pool *host*, or None when it is where it was.

    :param name_id: the name that it has there, if that is known already.
    :raises volmig.errors.LocationDoubtful: when the drivers cannot say.
    """
    there = replace(here, host=host, provider_location=None, provider_id=None)
    try:
        try:
            arrived, update = mover.recover_migration(move.context, here, move.backends.as_destination(host))
            return _place(update, there, name_id=there.name_id) if arrived else None
        except NotImplementedError:
            is_here = mover.volume_exists(here)
            is_there = move.backends.at(host).volume_exists(there)
    except errors.VolmigError as error:
        raise move.doubt(f"the drivers cannot tell ({error.message})") from error
    if is_here == is_there:
        raise move.doubt("both places have it" if is_here else "neither place has it")
    return _place({}, there, name_id=name_id or there.name_id) if is_there else None


def _place(update: Mapping[str, Any], volume: Volume, *, name_id: str | None) -> dict[str, Any]:
    """Return a volume's place as a driver's update gives it; what the update leaves out is as in *volume*."""
    return {
        "name_id": update.get("_name_id", name_id),
        "provider_location": update.get("provider_location", volume.provider_location),
        "provider_id": update.get("provider_id", volume.provider_id),
        "metadata": dict(update.get("metadata", {})),
    }


def _retired_id(move: Move, volume: Volume) -> str:
    # The id follows from what it names, so that a repeated step finds the same record.
    name = f"{move.migration.id}/{volume.host}/{volume.backend_id}/{volume.provider_id or ''}"
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def _retire(
    move: Move,
    recording: Recording,
    volume: Volume,
    *,
    identity: str | None,
    due_at: datetime | None = None,
    error: str = "",
) -> None:
    """Record an object that is to be deleted, at once or when it is due."""
    transaction = recording.transaction
    retired = RetiredObject(
        id=_retired_id(move, volume),
        migration_id=move.migration.id,
        volume_id=move.volume.id,
        host=volume.host,
        name_id=volume.backend_id,
        size_bytes=volume.size_bytes,
        provider_location=volume.provider_location,
        provider_id=volume.provider_id,
        identity=identity,
        format=volume.format,
        delete_after=due_at or transaction.now(),
        last_error=error,
    )
    transaction.remove_retired(retired.id)
    transaction.add_retired(retired)
