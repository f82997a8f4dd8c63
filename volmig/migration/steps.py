"""The steps of a migration: what each does, and how it is undone.

Every step can be repeated, since a crash can fall between its effect and the record of it. Its intent is recorded
before, and its outcome after it.
"""

from __future__ import annotations

import abc
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, ClassVar

from volmig import errors
from volmig.drivers.base import Capability
from volmig.migration.connect import connect, disconnect
from volmig.migration.helpers import HELPER_NOTE
from volmig.migration.move import Move, Recording
from volmig.model import EntryKind, Method, Phase, RetiredObject, Volume
from volmig.transfer import CopyOptions, End, HelperProcess, Verify, copy_data, verify_copy

Facts = Mapping[str, Any]

_RENAMED = "update_migrated_volume"
"""Subject of the note that holds what the destination's driver made of the copy."""


class Declined(Exception):
    """The driver does not move the volume itself; the host has to copy it."""


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

    def leave(self, move: Move, recording: Recording, error: errors.VolmigError) -> None:
        """Record, for later, what :meth:`undo` could not take back for all its attempts."""


class CreateDestination(Step):
    """Make the object that the data is copied to."""

    name = "create_destination"
    phase = Phase.STARTING

    def intent(self, move: Move) -> Facts:
        return {"id": move.migration.destination_id, "host": move.migration.destination}

    def run(self, move: Move) -> Facts:
        update = move.destination.create_volume(move.copy_volume)
        return {key: update.get(key) for key in ("provider_location", "provider_id") if key in update}

    def undo(self, move: Move) -> None:
        # A copy is only ever deleted while the original is seen to be there.
        if not move.source.volume_exists(move.source_volume):
            raise _doubt(move, f"it is not seen at its source, so the copy {move.migration.destination_id} is kept")
        for volume in _names_of_copy(move):
            if move.destination.volume_exists(volume):
                move.destination.delete_volume(volume)

    def leave(self, move: Move, recording: Recording, error: errors.VolmigError) -> None:
        for volume in _names_of_copy(move):
            recording.transaction.remove_retired(_retired_id(move, volume))
            recording.transaction.add_retired(
                _retired(move, volume, due_at=recording.transaction.now(), error=error.message)
            )


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
                move.note(EntryKind.NOTE, HELPER_NOTE, {"host": move.backends.host, **asdict(process)})

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
    """Let go of both volumes."""

    name = "disconnect"
    phase = Phase.MIGRATING

    def run(self, move: Move) -> Facts:
        move.owned.leave_transfer(move.volume.size_bytes)
        disconnect(move)
        return {}


class CutOver(Step):
    """Give the volume its new place: the commit point of a copy made by the host."""

    name = "cut_over"
    phase = Phase.COMPLETING
    commits = True

    def run(self, move: Move) -> Facts:
        update = move.destination.update_migrated_volume(
            move.context, move.source_volume, move.copy_volume, move.original_status.value
        )
        copy = move.copy_volume
        # On record even when the commit fails, since the copy has its new name by now.
        move.note(EntryKind.NOTE, _RENAMED, _place(update, copy, name_id=copy.backend_id))
        return {}

    def commit(self, move: Move, recording: Recording) -> None:
        _commit_place(move, recording, _RENAMED)
        recording.update_migration(
            digest_algorithm=move.recorded("verify", "digest_algorithm") or "",
            source_digest=move.recorded("verify", "source_digest") or "",
            destination_digest=move.recorded("verify", "destination_digest") or "",
        )
        recording.transaction.add_retired(_retired(move, move.source_volume, due_at=recording.transaction.now()))


class RetireSource(Step):
    """Delete the storage that the volume has left."""

    name = "retire_source"
    phase = Phase.COMPLETING
    commits = True

    def run(self, move: Move) -> Facts:
        # The old storage is only ever deleted while the volume is seen to be at its new place.
        if not move.destination.volume_exists(move.volume):
            raise _doubt(move, "it is not seen at its destination, so its old storage is kept")
        move.source.delete_volume(move.source_volume)
        return {}

    def commit(self, move: Move, recording: Recording) -> None:
        recording.transaction.remove_retired(_retired_id(move, move.source_volume))


class DriverMove(Step):
    """Let the driver move the volume within its own storage."""

    name = "driver_move"
    phase = Phase.MIGRATING

    def run(self, move: Move) -> Facts:
        host = move.backends.as_destination(move.migration.destination)
        try:
            moved, update = move.source.migrate_volume(move.context, move.source_volume, host)
        except errors.DriverTimeout as error:
            raise _doubt(move, f"{error.message} It may still be moving it") from error
        if not moved:
            raise Declined
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
        there = replace(
            move.source_volume,
            host=move.migration.destination,
            name_id=outcome["name_id"],
            provider_location=outcome["provider_location"],
            provider_id=outcome["provider_id"],
        )
        try:
            back = move.backends.as_destination(move.migration.source)
            moved, update = move.destination.migrate_volume(move.context, there, back)
        except errors.VolmigError as error:
            raise CannotGoBack(outcome) from error
        if not moved:
            raise CannotGoBack(outcome)
        place = _place(update, there, name_id=there.name_id)
        move.source_update = {key: place[key] for key in ("name_id", "provider_location", "provider_id")}

    def leave(self, move: Move, recording: Recording, error: errors.VolmigError) -> None:
        raise _doubt(move, f"bringing it back failed ({error.message})")


class CutOverDriverMove(Step):
    """Give the volume its new place: the commit point of a driver's own migration."""

    name = "cut_over"
    phase = Phase.COMPLETING
    commits = True

    def run(self, move: Move) -> Facts:
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
    # What an earlier owner may have written to is no longer known to be empty.
    is_fresh = not move.has(EntryKind.INTENT, Copy.name, before_this_run=True)
    return CopyOptions(
        engine=migration.engine,
        verify=Verify(migration.verify),
        source_format=move.source_volume.format,
        destination_format=move.copy_volume.format,
        destination_is_zero=is_fresh and move.destination.can(Capability.ZEROED_ON_CREATE),
        bandwidth_limit_bytes=migration.bandwidth_limit_bytes,
        chunk_bytes=move.settings.chunk_bytes,
    )


def _names_of_copy(move: Move) -> list[Volume]:
    """Return the volumes under whose names the copy may be known to the destination's driver.

    Once ``cut_over`` has begun, the driver may have renamed the copy: to what its answer said, if that was recorded,
    or most likely to the original's id.
    """
    copy = move.copy_volume
    if not move.has(EntryKind.INTENT, CutOver.name):
        return [copy]
    at_destination = replace(move.source_volume, host=move.migration.destination, provider_location=None)
    answered = replace(
        at_destination,
        name_id=move.recorded(_RENAMED, "name_id"),
        provider_id=move.recorded(_RENAMED, "provider_id"),
    )
    renamed = replace(at_destination, name_id=None, provider_id=None)
    return list({(volume.backend_id, volume.provider_id): volume for volume in (copy, answered, renamed)}.values())


def _outcome_of_driver(move: Move) -> Facts | None:
    """Return what a driver's own migration has made of the volume, or None when it is still at its source.

    :raises volmig.errors.LocationDoubtful: when the drivers cannot say.
    """
    here = move.source_volume
    there = replace(here, host=move.migration.destination, provider_location=None, provider_id=None)
    try:
        try:
            host = move.backends.as_destination(move.migration.destination)
            arrived, update = move.source.recover_migration(move.context, here, host)
            return _place(update, there, name_id=there.name_id) if arrived else None
        except NotImplementedError:
            at_source = move.source.volume_exists(here)
            at_destination = move.destination.volume_exists(there)
    except errors.VolmigError as error:
        raise _doubt(move, f"the drivers cannot tell ({error.message})") from error
    if at_source == at_destination:
        raise _doubt(move, "both places have it" if at_source else "neither place has it")
    if not at_destination:
        return None
    return _place({}, there, name_id=move.recorded(DriverMove.name, "name_id") or there.name_id)


def _place(update: Mapping[str, Any], volume: Volume, *, name_id: str | None) -> dict[str, Any]:
    """Return a volume's place as a driver's update gives it; what the update leaves out is as in *volume*."""
    return {
        "name_id": update.get("_name_id", name_id),
        "provider_location": update.get("provider_location", volume.provider_location),
        "provider_id": update.get("provider_id", volume.provider_id),
        "metadata": dict(update.get("metadata", {})),
    }


def _doubt(move: Move, reason: str) -> errors.LocationDoubtful:
    return errors.LocationDoubtful(
        volume=move.volume.id, source=move.migration.source, destination=move.migration.destination, reason=reason
    )


def _retired_id(move: Move, volume: Volume) -> str:
    # The id follows from what it names, so that a repeated step finds the same record.
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{move.migration.id}/{volume.host}/{volume.backend_id}"))


def _retired(move: Move, volume: Volume, *, due_at: datetime, error: str = "") -> RetiredObject:
    return RetiredObject(
        id=_retired_id(move, volume),
        migration_id=move.migration.id,
        volume_id=move.volume.id,
        host=volume.host,
        name_id=volume.backend_id,
        size_bytes=volume.size_bytes,
        provider_location=volume.provider_location,
        provider_id=volume.provider_id,
        format=volume.format,
        delete_after=due_at,
        last_error=error,
    )
