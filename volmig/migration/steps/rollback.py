"""The volume goes back to its old storage, which an earlier migration has kept."""

from __future__ import annotations

from volmig import errors
from volmig.migration.move import KEPT, PLACE, Move, Recording
from volmig.migration.steps.base import Facts, Step
from volmig.migration.steps.data import VerifyCopy
from volmig.migration.steps.places import check_arrival, commit_place, retire
from volmig.model import Phase


class VerifyUnchanged(VerifyCopy):
    """Prove that the old storage holds what the volume holds, unless the changes are to be discarded."""

    def run(self, move: Move) -> Facts:
        try:
            return super().run(move)
        except errors.VerificationFailed as error:
            raise errors.ChangesWouldBeLost(
                migration=move.migration.rolls_back,
                volume=move.volume.id,
                host=move.migration.source,
                offset=error.fields["offset"],
            ) from error


class CutOverToKept(Step):
    """Give the volume its old place back: the commit point of a rollback."""

    name = "cut_over"
    phase = Phase.COMPLETING
    commits = True

    def run(self, move: Move) -> Facts:
        kept = move.copy_volume
        identity = move.recorded(KEPT, "identity")
        if identity is not None and move.destination.identify_object(kept) != identity:
            location = f"{kept.provider_id or kept.backend_name} in {kept.host}"
            raise errors.VolumeObjectMissing(volume=move.volume.id, location=location)
        check_arrival(move, {key: move.recorded(KEPT, key) for key in PLACE})
        return {}

    def commit(self, move: Move, recording: Recording) -> None:
        commit_place(move, recording, KEPT)
        recording.transaction.remove_retired(move.recorded(KEPT, "retired"))
        retire(move, recording, move.source_volume, identity=move.recorded_source("identity"))
