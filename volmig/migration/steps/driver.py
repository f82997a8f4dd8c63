"""The driver moves the volume within its own storage."""

from __future__ import annotations

from dataclasses import replace

from volmig import errors
from volmig.drivers.base import VolumeUpdate
from volmig.manager.backend import Backend
from volmig.migration.driver_calls import DRIVER_MOVE, DriverCalls, WatchedCall, new_call_facts
from volmig.migration.move import PLACE, Move, Recording
from volmig.migration.steps.base import CannotGoBack, Declined, Facts, Step
from volmig.migration.steps.places import check_arrival, commit_place, place_of
from volmig.model import Phase, Volume


class DriverMove(Step):
    """Let the driver move the volume within its own storage."""

    name = DRIVER_MOVE
    phase = Phase.MIGRATING

    def intent(self, move: Move) -> Facts:
        return new_call_facts()

    def run(self, move: Move) -> Facts:
        call = WatchedCall.there(move)
        with call.noting_failure():
            return self._run(move, call)

    def _run(self, move: Move, call: WatchedCall) -> Facts:
        # Something that has the name at the destination already, and that no earlier call of this migration has put
        # there, would make it impossible to say where the volume is.
        name_id = move.source_volume.name_id
        if not move.was_begun_before(self.name) and move.destination.volume_exists(
            move.arrived_as({"name_id": name_id})
        ):
            raise Declined("its name is taken at the destination")
        host = move.backends.as_destination(move.migration.destination)
        try:
            moved, update = call.make(move.source, move.source_volume, host)
        except errors.DriverTimeout as error:
            raise move.doubt(f"{error.message} It may still be moving it") from error
        if not moved:
            if earlier := _earlier_callers(move):
                # The host must not copy what a call of theirs may yet move.
                raise move.doubt(f"the driver declined to move it, and {earlier} may still be moving it")
            raise Declined("the driver declined")
        here = move.source_volume
        return place_of(update, here, name_id=here.name_id)

    def undo(self, move: Move) -> None:
        """Bring the volume back, if it has left.

        :raises volmig.errors.LocationDoubtful: when nobody can say where it is.
        :raises CannotGoBack: when it has arrived and cannot be brought back.
        """
        if self.name in move.left_running:
            raise move.doubt("a call of its driver did not end in its time, and may still be moving it")
        if earlier := _earlier_callers(move):
            # What is seen now may change at any moment, with what somebody writes to the volume until then.
            raise move.doubt(f"{earlier} may still be moving it")
        outcome = _outcome_of_driver(move)
        if outcome is None:
            return
        call = WatchedCall.back(move, {key: outcome[key] for key in PLACE})
        with call.noting_failure():
            self._bring_back(move, call, outcome)

    def _bring_back(self, move: Move, call: WatchedCall, outcome: Facts) -> None:
        there = move.arrived_as(outcome)
        try:
            back = move.backends.as_destination(move.migration.source)
            moved, update = call.make(move.destination, there, back)
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
        place = place_of(update, there, name_id=there.name_id)
        move.source_update = {key: place[key] for key in PLACE}

    def leave(self, move: Move, recording: Recording, error: errors.VolmigError) -> None:
        raise move.doubt(f"bringing it back failed ({error.message})")


class CutOverDriverMove(Step):
    """Give the volume its new place: the commit point of a driver's own migration."""

    name = "cut_over"
    phase = Phase.COMPLETING
    commits = True

    def run(self, move: Move) -> Facts:
        check_arrival(move, {key: move.recorded(DriverMove.name, key) for key in PLACE})
        return {}

    def commit(self, move: Move, recording: Recording) -> None:
        commit_place(move, recording, DriverMove.name)


def _earlier_callers(move: Move) -> str:
    """Return which earlier workers may still have a call running; empty when none does."""
    own = move.migration.epoch
    earlier = [entry for entry in move.entries() if entry.epoch < own]
    return " and ".join(DriverCalls.of(earlier).running(move.backends.host))


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
            return place_of(update, there, name_id=there.name_id) if arrived else None
        except NotImplementedError:
            is_here = mover.volume_exists(here)
            is_there = move.backends.at(host).volume_exists(there)
    except errors.VolmigError as error:
        raise move.doubt(f"the drivers cannot tell ({error.message})") from error
    if is_here == is_there:
        raise move.doubt("both places have it" if is_here else "neither place has it")
    return place_of({}, there, name_id=name_id or there.name_id) if is_there else None
