"""The host copies the data: making the destination, switching the volume over, and what is left then."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from volmig import errors
from volmig.drivers.base import VolumeUpdate
from volmig.manager.backend import placed
from volmig.manager.late import enter_late, retired_object, why_copy_kept
from volmig.migration.move import PLACE, Move, Recording
from volmig.migration.request import has_left_storage
from volmig.migration.steps.base import Facts, Step
from volmig.migration.steps.places import check_arrival, commit_place, place_of, retire, retire_source, retired_id
from volmig.model import EntryKind, Phase, Volume

_RENAMED = "update_migrated_volume"
"""Subject of the note that holds what the destination's driver made of the copy."""


class _Creation:
    """The making of a copy, and what becomes of it when nobody needs it any more by the time that it is made."""

    def __init__(self, move: Move) -> None:
        # As it was begun: this process, or another, may give the copy up and make a new one under another id.
        self._store = move.store
        self._migration = move.migration

    def enter(self, made: Volume, identity: str | None) -> None:
        """Enter an object as retired if the migration has given it up, or has ended without it."""
        migration = self._migration
        retired = retired_object(made, volume_id=migration.volume_id, migration_id=migration.id, identity=identity)
        enter_late(
            self._store, retired, why_kept=lambda view: why_copy_kept(view, migration.id, migration.destination_id)
        )

    def enter_if_lost(self, move: Move, made: Volume, identity: str | None) -> None:
        """Do so when this worker may record nothing more, since another could have taken over before it was made.

        :raises volmig.errors.LeaseLost: then.
        """
        try:
            move.owned.check()
        except errors.LeaseLost:
            self.enter(made, identity)
            raise


class CreateDestination(Step):
    """Make the object that the data is copied to."""

    name = "create_destination"
    phase = Phase.STARTING

    def intent(self, move: Move) -> Facts:
        return {"id": move.migration.destination_id, "host": move.migration.destination}

    def run(self, move: Move) -> Facts:
        creation = _Creation(move)
        try:
            update: Mapping[str, Any] = move.destination.create_volume(move.copy_volume, when_late=creation.enter)
        except errors.DriverTimeout:
            move.left_running.add(self.name)
            raise
        except errors.VolmigError:
            creation.enter_if_lost(move, move.copy_volume, None)
            raise
        place = {key.removeprefix("_"): update[key] for key in ("_name_id", *PLACE[1:]) if key in update}
        if place:
            # By what the driver calls it, it is found from now on, also if nothing more succeeds.
            move.note(EntryKind.NOTE, self.name, place)
        made = placed(move.copy_volume, update)
        try:
            identity = move.destination.identify_object(made)
        except errors.VolumeObjectMissing:
            # Another worker has removed it, or the driver is wrong.
            raise
        except errors.VolmigError:
            creation.enter_if_lost(move, made, None)
            raise
        creation.enter_if_lost(move, made, identity)
        return {"identity": identity, **place}

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
            due_at = recording.transaction.now() + timedelta(seconds=move.destination.call_seconds("create_volume"))
            retire(move, recording, move.copy_volume, identity=None, due_at=due_at)

    def leave(self, move: Move, recording: Recording, error: errors.VolmigError) -> None:
        identity = move.recorded(self.name, "identity")
        for volume in _names_of_copy(move):
            retire(move, recording, volume, identity=identity, error=error.message)


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
        place = place_of(update, copy, name_id=copy.backend_id)
        # On record even when the commit fails, since the copy has its new name by now.
        move.note(EntryKind.NOTE, _RENAMED, place)
        check_arrival(move, place)
        return {}

    def commit(self, move: Move, recording: Recording) -> None:
        commit_place(move, recording, _RENAMED)
        recording.update_migration(
            digest_algorithm=move.recorded("verify", "digest_algorithm") or "",
            source_digest=move.recorded("verify", "source_digest") or "",
            destination_digest=move.recorded("verify", "destination_digest") or "",
        )
        retire_source(move, recording)


class RetireSource(Step):
    """Delete the storage that the volume has left, unless it is to be kept for a while."""

    name = "retire_source"
    phase = Phase.COMPLETING
    commits = True

    def run(self, move: Move) -> Facts:
        # The old storage is only ever deleted while the volume is seen to be at its new place.
        if not move.destination.volume_exists(move.volume):
            raise move.doubt("it is not seen at its destination, so its old storage is kept")
        if move.migration.source_retention_seconds:
            return {"kept_seconds": move.migration.source_retention_seconds}
        with move.recording() as recording:
            # Whatever becomes of the call, it may take effect at any time from here on.
            recording.transaction.begin_deletion(retired_id(move, move.source_volume))
        move.source.delete_object(move.source_volume, move.recorded_source("identity"))
        return {}

    def commit(self, move: Move, recording: Recording) -> None:
        if move.migration.source_retention_seconds:
            return
        recording.transaction.remove_retired(retired_id(move, move.source_volume))


def _names_of_copy(move: Move) -> list[Volume]:
    """Return the volumes under whose names the copy may be known to the destination's driver.

    Once ``cut_over`` has begun, the driver may have renamed the copy: to what its answer said, if that was recorded,
    or most likely to the original's id, unless something else had that name before. That is told by the first intent:
    when a later one was made, the copy itself may have had the name.
    """
    names = [move.copy_volume]
    if move.has(EntryKind.INTENT, CutOver.name):
        if move.has(EntryKind.NOTE, _RENAMED):
            names.append(move.arrived_as({key: move.recorded(_RENAMED, key) for key in PLACE}))
        elif move.first_intended(CutOver.name, "final_name_is_free"):
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
    renamed = move.arrived_as(place_of(update, copy, name_id=copy.backend_id))
    if not move.destination.volume_exists(renamed):
        raise errors.ObjectLeftBehind(
            what=f"the copy {copy.id} in {copy.host}", reason="it is not seen under any name that its driver gives"
        )
    return [renamed]


def _waits_for_deletion(move: Move, volume: Volume) -> bool:
    """Say whether a call that deletes something else could hit what has the name of *volume* there."""
    with move.store.reading() as view:
        retired = [each for each in view.list_retired() if each.host == volume.host]
        if any(each.name_id == volume.backend_id for each in retired):
            return True
        # Where objects of one name can be told apart, even a call of a process that sleeps hits only its own.
        can_tell = move.recorded(CreateDestination.name, "identity") is not None
        return not can_tell and has_left_storage(view, volume.id, volume.host)
