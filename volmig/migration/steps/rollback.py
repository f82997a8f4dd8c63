"""The volume goes back to its old storage, which an earlier migration has kept."""

from __future__ import annotations

import logging

from volmig import errors
from volmig.migration.move import KEPT, PLACE, Move, Recording
from volmig.migration.steps.base import Facts, Step
from volmig.migration.steps.data import VerifyCopy
from volmig.migration.steps.places import check_arrival, commit_place, kept_storage, retire_source
from volmig.model import Phase
from volmig.transfer import Verify, digest_of
from volmig.transfer.digest import ALGORITHM

LOG = logging.getLogger(__name__)


class VerifyUnchanged(VerifyCopy):
    """Prove that the old storage holds what the volume was copied from, and, unless the changes are to be discarded,
    that the volume still holds the same.

    The former is proved by the digest of the copy. After one that was not verified there is none on record.
    """

    def run(self, move: Move) -> Facts:
        if Verify(move.migration.verify) is Verify.NONE:
            return {"verify": Verify.NONE.value, **_prove_kept(move)}
        try:
            facts = super().run(move)
        except errors.VerificationFailed as error:
            _prove_kept(move)
            raise errors.ChangesWouldBeLost(
                migration=move.migration.rolls_back,
                volume=move.volume.id,
                host=move.migration.source,
                offset=error.fields["offset"],
            ) from error
        expected = _digest_on_record(move)
        if expected and facts["destination_digest"] != expected:
            raise _damaged(move)
        return facts


def _prove_kept(move: Move) -> Facts:
    """Compare the old storage with the digest of what was copied from it, if that is on record.

    :raises volmig.errors.OldStorageDamaged: when it holds something else by now.
    """
    expected = _digest_on_record(move)
    if not expected:
        LOG.warning("migration %s: there is no digest by which to prove the old storage", move.migration.id)
        return {}
    if move.ends.destination is None:
        raise errors.InternalError(reason="old storage was to be read before it was connected")
    found = digest_of(
        move.ends.destination,
        size_bytes=move.volume.size_bytes,
        chunk_bytes=move.settings.chunk_bytes,
        format_name=move.copy_volume.format,
        control=move.owned.control,
        progress=move.owned.report,
        has_arrived=True,
    )
    if found != expected:
        raise _damaged(move)
    # Not the digest of the migration: what the volume leaves was not read, and may hold something else.
    return {"kept_digest": found}


def _digest_on_record(move: Move) -> str:
    """Return the digest of what the migration that is taken back has read from the old storage; empty without one."""
    with move.store.reading() as view:
        done = view.get_migration(move.migration.rolls_back)
    return done.source_digest if done.digest_algorithm == ALGORITHM else ""


def _damaged(move: Move) -> errors.OldStorageDamaged:
    kept = move.copy_volume
    return errors.OldStorageDamaged(
        migration=move.migration.rolls_back,
        volume=move.volume.id,
        name=kept.provider_id or kept.backend_name,
        host=kept.host,
        present=move.migration.source,
    )


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
        # The last word about whether it is still kept: after this, nobody may delete it any more.
        kept = kept_storage(recording.transaction, move.migration.rolls_back)
        if kept.id != move.recorded(KEPT, "retired"):
            raise errors.StoreConflict(kind="retired object", id=kept.id)
        recording.transaction.remove_retired(kept.id)
        commit_place(move, recording, KEPT)
        recording.update_migration(
            digest_algorithm=move.recorded("verify", "digest_algorithm") or "",
            source_digest=move.recorded("verify", "source_digest") or "",
            destination_digest=move.recorded("verify", "destination_digest") or "",
        )
        retire_source(move, recording)
