"""How a worker's record of a migration ends: with success, back at the source, in doubt, or for a while.

Each is one transaction, which also lets go of the volume, of the room that was reserved, and of the checkpoint.
"""

from __future__ import annotations

import logging

from volmig import errors
from volmig.migration.move import Move, Recording
from volmig.migration.takeover import LET_GO
from volmig.model import EntryKind, Phase, VolumeStatus

LOG = logging.getLogger(__name__)


def succeed(move: Move) -> None:
    """Record that the volume is at its destination."""
    with move.recording() as recording:
        move.enter(recording, Phase.SUCCESS, f"the volume is in {move.migration.destination}")
        _end(move, recording)
        recording.update_migration(
            stage="",
            bytes_done=move.volume.size_bytes,
            bytes_total=move.volume.size_bytes,
        )
        recording.update_volume(status=_restored_status(move), migration_id=None, status_reason="")
    LOG.info("migration %s: volume %s is now in %s", move.migration.id, move.volume.id, move.volume.host)


def end_at_source(
    move: Move, reason: errors.VolmigError, phase: Phase, left_behind: errors.VolmigError | None
) -> errors.VolmigError:
    """Record that the volume is at its source, and return the error that says why.

    :param phase: the one in which all was taken back: ``cancelling`` or ``rolling_back``.
    :param left_behind: what could not be taken back, if anything.
    """
    final = Phase.CANCELLED if phase is Phase.CANCELLING else Phase.ERROR
    with move.recording() as recording:
        message = recording.migration.error_message
        if final is Phase.CANCELLED and left_behind is not None:
            # Cancelled would mean that nothing of it is left.
            final, reason = Phase.ERROR, left_behind
            message = reason.message
            recording.update_migration(error_code=reason.code, error_message=message, error_hint=reason.hint)
        move.enter(recording, final, message)
        _end(move, recording)
        recording.update_volume(
            status=_restored_status(move),
            status_reason="" if final is Phase.CANCELLED else message,
            migration_id=None,
            **move.source_update,
        )
    return reason


def stop_in_doubt(move: Move, doubt: errors.LocationDoubtful, step: str) -> errors.VolmigError:
    """Record that nobody can tell where the volume is: nothing is deleted, and both places are named.

    :param step: the one that was under way.
    """
    LOG.error("migration %s: %s", move.migration.id, doubt)
    with move.recording() as recording:
        if recording.phase not in (Phase.CANCELLING, Phase.ROLLING_BACK):
            move.enter(recording, Phase.ROLLING_BACK, doubt.message)
        move.note(EntryKind.FAILED, step, doubt.as_dict())
        move.enter(recording, Phase.ERROR, doubt.message)
        _end(move, recording)
        recording.update_migration(error_code=doubt.code, error_message=doubt.message, error_hint=doubt.hint)
        recording.update_volume(status=VolumeStatus.ERROR, status_reason=doubt.message, migration_id=None)
    return doubt


def let_go(move: Move, *, hands_over: bool, is_clean: bool, undone: tuple[str, ...]) -> bool:
    """Record that nobody owns the migration any more, unless that is no longer wanted; return whether it is so.

    :param hands_over: whether another worker is to go on with it at once; it is ``paused`` otherwise.
    :param is_clean: whether nothing of this worker is under way any more, so that another may go on with the copy.
    :param undone: steps that are to be made again when it goes on.
    """
    with move.recording() as recording:
        recording.write()
        migration = recording.migration
        is_paused = bool(migration.pause_requested_by)
        if migration.cancel_requested_by or not (is_paused or hands_over):
            return False
        for step in undone:
            move.note(EntryKind.UNDONE, step, {"reason": "it is done again when the migration goes on"})
        if is_clean:
            move.note(EntryKind.NOTE, LET_GO)
        if is_paused:
            move.enter(recording, Phase.PAUSED, f"{migration.pause_requested_by} asked for it")
        recording.update_migration(stage="", rate_bytes=0.0, eta_seconds=None, owner="", lease_expires_at=None)
    LOG.info("migration %s is %s", move.migration.id, "paused" if is_paused else "left to another worker")
    return True


def _end(move: Move, recording: Recording) -> None:
    recording.transaction.release(move.migration.id)
    recording.transaction.remove_checkpoint(move.migration.id)
    recording.update_migration(finished_at=recording.transaction.now(), eta_seconds=None, owner="")


def _restored_status(move: Move) -> VolumeStatus:
    status = move.volume.status
    return move.original_status if status is VolumeStatus.MAINTENANCE else status
