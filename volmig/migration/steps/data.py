"""Moving the bytes: opening both volumes, copying, proving, and letting go."""

from __future__ import annotations

import logging

from volmig import errors
from volmig.drivers.base import Capability
from volmig.migration.connect import CONNECT, NAMES, connect, disconnect
from volmig.migration.helpers import HELPER_NOTE, helper_facts
from volmig.migration.move import Move
from volmig.migration.steps.base import Facts, Step
from volmig.model import EntryKind, Phase
from volmig.transfer import (
    Checkpoint,
    CopiedData,
    CopyOptions,
    End,
    HelperProcess,
    Verify,
    check_unchanged,
    copy_data,
    verify_copy,
)
from volmig.transfer.resume.recording import decode, encode

LOG = logging.getLogger(__name__)


class Connect(Step):
    """Make both volumes reachable from this host.

    The names under which it is given access are on record before any driver is asked: it is taken back under the same,
    by whichever process, whatever the host is called by then.
    """

    name = CONNECT
    phase = Phase.STARTING
    needed_by = frozenset({"copy", "verify"})

    def intent(self, move: Move) -> Facts:
        return {NAMES: move.source.host_names()}

    def run(self, move: Move) -> Facts:
        connect(move, move.intended(self.name, NAMES))
        return {"method": move.migration.method.value}

    def undo(self, move: Move) -> None:
        disconnect(move)


class Copy(Step):
    """Move the bytes, and flush them to stable storage; go on from the checkpoint on record where that is allowed."""

    name = "copy"
    phase = Phase.MIGRATING

    def intent(self, move: Move) -> Facts:
        return {"bytes_total": move.volume.size_bytes, "engine": move.migration.engine}

    def run(self, move: Move) -> Facts:
        checkpoint = load_checkpoint(move) if move.goes_on else None
        try:
            copied = _copy(move, checkpoint)
        except (errors.CheckpointMismatch, errors.UnsupportedTransfer) as error:
            if checkpoint is None:
                raise
            # Nothing was written. What an earlier owner has copied is of no use, and is copied again.
            LOG.warning("migration %s: the copy begins anew: %s", move.migration.id, error)
            move.note(EntryKind.NOTE, "copy", {"begins_anew": error.message})
            copied = _copy(move, None)
        move.copied = copied
        return {
            "engine": copied.engine,
            "engine_reason": copied.engine_reason,
            "means": copied.means,
            "bytes_copied": copied.bytes_copied,
            "bytes_zero": copied.bytes_zero,
            "bytes_resumed": copied.bytes_resumed,
            "seconds": round(copied.seconds, 6),
        }


def _copy(move: Move, checkpoint: Checkpoint | None) -> CopiedData:
    source, destination = _ends(move)
    return copy_data(
        source,
        destination,
        size_bytes=move.volume.size_bytes,
        options=_copy_options(move),
        checkpoint=checkpoint,
        on_checkpoint=lambda reached: _save_checkpoint(move, reached),
        progress=move.owned.report,
        control=move.owned.control,
        on_process=lambda process: _note_helper(move, process),
        sole_writer=move.must_be_sole_writer and move.was_filled_before,
        backing=move.ends.backing,
    )


def _note_helper(move: Move, process: HelperProcess) -> None:
    with move.recording():
        move.note(EntryKind.NOTE, HELPER_NOTE, helper_facts(process, host=move.backends.host))


def _save_checkpoint(move: Move, checkpoint: Checkpoint) -> None:
    try:
        move.save_checkpoint(encode(checkpoint))
    except errors.LeaseLost:
        raise
    except errors.TemporaryError as error:
        # The copy does not need it; should the worker die, more is copied again.
        LOG.warning("migration %s: a checkpoint is not recorded: %s", move.migration.id, error)


def load_checkpoint(move: Move) -> Checkpoint | None:
    """Return the checkpoint on record of a migration's copy; None when there is none that can be used."""
    with move.store.reading() as view:
        data = view.load_checkpoint(move.migration.id)
    if data is None:
        return None
    try:
        return decode(data)
    except errors.CheckpointUnusable as error:
        LOG.warning("migration %s: %s", move.migration.id, error)
        return None


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
            backing=move.ends.backing,
        )
        move.verified = verified
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
        seen = move.copied or move.verified
        if seen is not None and move.ends.source is not None:
            check_unchanged(move.ends.source, seen, backing=move.ends.backing)
        disconnect(move)
        return {}


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
        destination_is_zero=move.destination.can(Capability.ZEROED_ON_CREATE) and not move.was_filled_before,
        bandwidth_limit_bytes=migration.bandwidth_limit_bytes,
        chunk_bytes=move.settings.chunk_bytes,
        ignore_header=not move.settings.check_image_headers,
    )
