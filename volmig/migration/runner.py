"""Running one migration: forward step by step, or back.

Before the commit point a failure or a request to cancel takes everything back; after it there is only forward. What
is to be done next follows from the journal alone, so that another process can go on where one has died.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from volmig import errors
from volmig.manager.backends import Backends
from volmig.migration.helpers import stop_helpers
from volmig.migration.move import Move, Recording
from volmig.migration.ownership import OwnedMigration
from volmig.migration.request import host_method
from volmig.migration.settings import Settings
from volmig.migration.steps import CannotGoBack, Copy, CreateDestination, Declined, DriverMove, Step, steps_for
from volmig.model import EntryKind, Method, Migration, Phase, VolumeStatus
from volmig.store import Store

LOG = logging.getLogger(__name__)

StepsFor = Callable[[Method], Sequence[Step]]


class MigrationRunner:
    """Runs one migration that this process owns, to its end.

    :param steps_for: gives the steps of a method; tests put failing ones in their place.
    """

    def __init__(
        self,
        store: Store,
        backends: Backends,
        settings: Settings,
        owned: OwnedMigration,
        *,
        steps_for: StepsFor = steps_for,
    ) -> None:
        self._settings = settings
        self._owned = owned
        self._steps_for = steps_for
        self._move = Move(store, backends, settings, owned)
        self._must_go_forward = False
        self._left_behind: errors.VolmigError | None = None

    def run(self) -> None:
        """Bring the migration to a final phase.

        Afterwards ``owned.migration`` is its final state, and ``owned.error`` what ended it unless it succeeded. When
        the lease was lost, or the store cannot be reached, it is left as it is for the next owner.
        """
        error: BaseException | None = None
        try:
            error = self._run()
        except errors.LeaseLost as lost:
            LOG.warning("%s", lost)
            error = lost
        except Exception as unexpected:
            LOG.exception("migration %s could not be brought to an end", self._owned.migration.id)
            error = unexpected
        finally:
            self._close_ends()
            self._owned.end(error)

    def _run(self) -> errors.VolmigError | None:
        stop_helpers(self._move.entries(), host=self._move.backends.host)
        phase = self._owned.migration.phase
        if phase in (Phase.CANCELLING, Phase.ROLLING_BACK):
            return self._persistently(lambda: self._back(self._interruption(), phase))
        # A request to cancel is refused from this phase on; so one that is on record has been found impossible.
        self._must_go_forward = phase is Phase.COMPLETING and bool(self._owned.migration.cancel_requested_by)
        try:
            if self._is_copy_of_another():
                self._begin_copy_afresh()
            self._forward()
            self._finish()
        except errors.LeaseLost:
            raise
        except errors.LocationDoubtful as doubt:
            return self._persistently(partial(self._stop_in_doubt, doubt))
        except Exception as error:  # noqa: BLE001
            # Whatever it was, it is taken back, and told to whoever waits for the migration.
            return self._persistently(partial(self._turn_back, error))
        return None

    # --- forward ------------------------------------------------------------------------------

    def _forward(self) -> None:
        """Run all steps that are left.

        Which they are is decided anew when the driver declines to move the volume, and the host has to.
        """
        while True:
            steps = self._steps_for(self._move.migration.method)
            try:
                for step in self._steps_left(steps):
                    self._run_step(step)
            except Declined as reason:
                self._choose_host_method(str(reason))
            else:
                return

    def _is_copy_of_another(self) -> bool:
        """Say whether an earlier owner was to make the copy's object, under the present id, and has not filled it."""
        move = self._move
        made_as = move.intended(CreateDestination.name, "id")
        return made_as == move.migration.destination_id and not move.is_done(Copy.name)

    def _begin_copy_afresh(self) -> None:
        """Give up the object that an earlier owner was making or copying to, and use a new one under a new id.

        The earlier owner may only have been paused, and have a write under way: it must not reach what will be the
        volume. Nor must the end of a creation that takes back what it finds to be made too late.
        """
        move = self._move
        for step in reversed(self._steps_begun()):
            self._undo_step(step)
        with move.recording() as recording:
            recording.update_migration(destination_id=str(uuid.uuid4()))

    def _steps_left(self, steps: Sequence[Step]) -> list[Step]:
        left: set[str] = set()
        for step in reversed(steps):
            if not self._move.is_done(step.name) or step.needed_by & left:
                left.add(step.name)
        return [step for step in steps if step.name in left]

    def _run_step(self, step: Step) -> None:
        move = self._move
        self._check_may_go_on()
        intent = step.intent(move)
        with move.recording() as recording:
            self._enter_phase_of(step, recording)
            move.note(EntryKind.INTENT, step.name, intent)
            recording.write()
            if recording.migration.cancel_requested_by and not self._is_past_return:
                raise _cancellation(recording.migration)
        if move.committed:
            self._run_after_commit(step)
            return
        outcome = step.run(move)
        if step.commits:
            with move.recording() as recording:
                move.note(EntryKind.DONE, step.name, outcome)
                step.commit(move, recording)
        else:
            # Written together with the next step's intent.
            move.note(EntryKind.DONE, step.name, outcome)

    def _enter_phase_of(self, step: Step, recording: Recording) -> None:
        """Go forward to the phase of *step*; never back, as when the host begins after a driver has declined."""
        if recording.phase is Phase.QUEUED:
            self._move.enter(recording, Phase.STARTING)
            recording.update_migration(started_at=recording.transaction.now())
        forward = (Phase.STARTING, Phase.MIGRATING, Phase.COMPLETING)
        if forward.index(step.phase) > forward.index(recording.phase):
            self._move.enter(recording, step.phase)

    @property
    def _is_past_return(self) -> bool:
        return self._move.committed or self._must_go_forward

    def _check_may_go_on(self) -> None:
        self._owned.check()
        if self._owned.control.cancelled and not self._is_past_return:
            raise _cancellation(self._move.migration)

    def _run_after_commit(self, step: Step) -> None:
        """Run a step that only clears up; when it keeps failing, what it leaves is on record and is not forgotten."""
        move = self._move

        def attempt() -> None:
            outcome = step.run(move)
            with move.recording() as recording:
                move.note(EntryKind.DONE, step.name, outcome)
                step.commit(move, recording)

        error = self._try_repeatedly(step, attempt)
        if error is not None:
            LOG.warning("migration %s: %s is left for later: %s", move.migration.id, step.name, error)
            move.note(EntryKind.FAILED, step.name, error.as_dict())

    def _choose_host_method(self, reason: str) -> None:
        move = self._move
        method = host_method(move.source, move.destination)
        with move.recording() as recording:
            move.note(EntryKind.UNDONE, DriverMove.name, {"reason": reason, "method": method.value})
            recording.update_migration(method=method)

    def _finish(self) -> None:
        move = self._move
        with move.recording() as recording:
            move.enter(recording, Phase.SUCCESS)
            recording.update_migration(
                finished_at=recording.transaction.now(),
                stage="",
                bytes_done=move.volume.size_bytes,
                bytes_total=move.volume.size_bytes,
                eta_seconds=None,
                owner="",
            )
            recording.update_volume(status=self._restored_status(), migration_id=None, status_reason="")
        LOG.info("migration %s: volume %s is now in %s", move.migration.id, move.volume.id, move.volume.host)

    def _restored_status(self) -> VolumeStatus:
        status = self._move.volume.status
        return self._move.original_status if status is VolumeStatus.MAINTENANCE else status

    # --- back ---------------------------------------------------------------------------------

    def _turn_back(self, error: Exception) -> errors.VolmigError | None:
        """After a failure: take everything back, or go forward where the commit point is passed."""
        move = self._move
        # A transaction that raised may have been committed all the same.
        move.refresh()
        if move.migration.phase.is_final:
            return None
        if self._is_past_return:
            LOG.warning("migration %s: the commit point is passed, going forward after: %s", move.migration.id, error)
            self._forward()
            self._finish()
            return None
        if isinstance(error, errors.TransferCancelled):
            error = _cancellation(self._move.migration)
        reason = as_volmig_error(error)
        if isinstance(reason, errors.MigrationCancelled):
            return self._back(reason, Phase.CANCELLING)
        LOG.error("migration %s of volume %s failed: %s", move.migration.id, move.volume.id, reason)
        LOG.log(logging.ERROR if isinstance(reason, errors.BugError) else logging.DEBUG, "its cause", exc_info=error)
        return self._back(reason, Phase.ROLLING_BACK)

    def _back(self, reason: errors.VolmigError, phase: Phase) -> errors.VolmigError | None:
        move = self._move
        with move.recording() as recording:
            if recording.phase is not phase:
                move.note(EntryKind.FAILED, self._step_under_way(), reason.as_dict())
                move.enter(recording, phase)
                recording.update_migration(
                    error_code=reason.code, error_message=reason.message, error_hint=reason.hint, stage=""
                )
        try:
            for step in reversed(self._steps_begun()):
                self._undo_step(step)
            self._check_source(reason)
        except CannotGoBack as forward:
            self._go_forward_after_all(forward)
            return None
        except errors.LocationDoubtful as doubt:
            return self._stop_in_doubt(doubt)
        return self._end_at_source(reason, phase)

    def _end_at_source(self, reason: errors.VolmigError, phase: Phase) -> errors.VolmigError:
        move = self._move
        final = Phase.CANCELLED if phase is Phase.CANCELLING else Phase.ERROR
        with move.recording() as recording:
            message = recording.migration.error_message
            if final is Phase.CANCELLED and self._left_behind is not None:
                # Cancelled would mean that nothing of it is left.
                final, reason = Phase.ERROR, self._left_behind
                message = reason.message
                recording.update_migration(error_code=reason.code, error_message=message, error_hint=reason.hint)
            move.enter(recording, final)
            recording.transaction.release(move.migration.id)
            recording.update_migration(finished_at=recording.transaction.now(), eta_seconds=None, owner="")
            recording.update_volume(
                status=self._restored_status(),
                status_reason="" if final is Phase.CANCELLED else message,
                migration_id=None,
                **move.source_update,
            )
        return reason

    def _steps_begun(self) -> list[Step]:
        """Return the steps whose effects may be there, whatever method they belong to."""
        methods = dict.fromkeys((Method.DRIVER, self._move.migration.method))
        steps = [step for method in methods for step in self._steps_for(method)]
        begun = {step.name: step for step in steps if self._move.is_begun(step.name)}
        return list(begun.values())

    def _step_under_way(self) -> str:
        begun = [entry.subject for entry in self._move.entries() if entry.kind is EntryKind.INTENT]
        return begun[-1] if begun else "queued"

    def _undo_step(self, step: Step) -> None:
        move = self._move
        error = self._try_repeatedly(step, lambda: step.undo(move))
        with move.recording() as recording:
            if error is None:
                step.after_undo(move, recording)
                move.note(EntryKind.UNDONE, step.name)
            else:
                LOG.warning("migration %s: undoing %s is left for later: %s", move.migration.id, step.name, error)
                move.note(EntryKind.NOTE, f"undo {step.name}", error.as_dict())
                step.leave(move, recording, error)
                self._left_behind = errors.ObjectLeftBehind(
                    what=f"what {step.name} made for migration {move.migration.id}", reason=error.message
                )

    def _check_source(self, reason: errors.VolmigError) -> None:
        """Say that the volume is at its source only after having looked."""
        move = self._move
        here = replace(move.source_volume, **move.source_update)
        try:
            seen = move.source.volume_exists(here)
        except errors.VolmigError as error:
            # Nothing was ever done to the source, so that failing to look is no reason for doubt.
            LOG.warning("migration %s: the source could not be looked at: %s", move.migration.id, error)
            return
        if not seen:
            raise move.doubt(f"it is not seen at its source, after: {reason.message}")

    def _go_forward_after_all(self, forward: CannotGoBack) -> None:
        """Commit a driver's own migration that has arrived and cannot be taken back."""
        move = self._move
        LOG.warning("migration %s: the volume is at its destination and stays there", move.migration.id)
        self._must_go_forward = True
        with move.recording() as recording:
            move.note(EntryKind.DONE, DriverMove.name, {**forward.outcome, "reason": "it cannot be moved back"})
            move.enter(recording, Phase.COMPLETING)
            recording.update_migration(error_code="", error_message="", error_hint="")
        self._forward()
        self._finish()

    def _stop_in_doubt(self, doubt: errors.LocationDoubtful) -> errors.VolmigError:
        """End with the volume in ``error``: nothing is deleted, and both places are named."""
        move = self._move
        LOG.error("migration %s: %s", move.migration.id, doubt)
        with move.recording() as recording:
            if recording.phase not in (Phase.CANCELLING, Phase.ROLLING_BACK):
                move.enter(recording, Phase.ROLLING_BACK)
            move.note(EntryKind.FAILED, self._step_under_way(), doubt.as_dict())
            move.enter(recording, Phase.ERROR)
            recording.transaction.release(move.migration.id)
            recording.update_migration(
                error_code=doubt.code,
                error_message=doubt.message,
                error_hint=doubt.hint,
                finished_at=recording.transaction.now(),
                owner="",
            )
            recording.update_volume(status=VolumeStatus.ERROR, status_reason=doubt.message, migration_id=None)
        return doubt

    # --- common -------------------------------------------------------------------------------

    def _persistently(self, end: Callable[[], errors.VolmigError | None]) -> errors.VolmigError | None:
        """Bring the migration to its end, beginning again when the way there fails, as when the store is busy.

        What was done already is in the journal and is not done twice.
        """
        delay = self._settings.cleanup_delay_seconds
        for left in reversed(range(self._settings.cleanup_attempts)):
            try:
                return end()
            except errors.LeaseLost:
                raise
            except Exception as error:
                if not left:
                    raise
                LOG.warning("migration %s: beginning again after: %s", self._move.migration.id, error, exc_info=error)
            time.sleep(delay)
            delay *= 2
            self._move.refresh()
            if self._move.migration.phase.is_final:
                return None
        return None

    def _try_repeatedly(self, step: Step, attempt: Callable[[], None]) -> errors.VolmigError | None:
        """Call *attempt* until it succeeds or its attempts are used up; return the last error, if any."""
        delay = self._settings.cleanup_delay_seconds
        last: errors.VolmigError | None = None
        for number in range(self._settings.cleanup_attempts):
            if number:
                time.sleep(delay)
                delay *= 2
            try:
                self._owned.check()
                attempt()
            except (errors.LeaseLost, errors.LocationDoubtful, CannotGoBack):
                raise
            except Exception as error:  # noqa: BLE001
                # Clearing up goes on with what is left; the error is recorded by the caller.
                last = as_volmig_error(error)
                LOG.warning(
                    "migration %s: %s failed, attempt %d: %s", self._move.migration.id, step.name, number + 1, last
                )
            else:
                return None
        return last

    def _interruption(self) -> errors.VolmigError:
        """Return why the earlier owner was going back, from its record."""
        migration = self._move.migration
        if migration.phase is Phase.CANCELLING:
            return _cancellation(self._move.migration)
        return errors.MigrationFailed(
            migration=migration.id,
            error_code=migration.error_code,
            reason=migration.error_message,
            hint=migration.error_hint,
        )

    def _close_ends(self) -> None:
        """Close what is still open in this process, whatever happened."""
        releases = self._move.ends.releases
        while releases:
            try:
                releases.pop()()
            except Exception:
                LOG.exception("migration %s: letting go of a volume failed", self._owned.migration.id)


def _cancellation(migration: Migration) -> errors.MigrationCancelled:
    who = migration.cancel_requested_by or "the program that runs it"
    return errors.MigrationCancelled(migration=migration.id, requested_by=who)


def as_volmig_error(error: Exception) -> errors.VolmigError:
    """Return *error*, or an internal error with it as its cause."""
    if isinstance(error, errors.VolmigError):
        return error
    found = errors.InternalError(reason=f"{type(error).__name__}: {error}")
    found.__cause__ = error
    return found
