"""Running one migration: forward step by step, or back.

Before the commit point a failure or a request to cancel takes everything back; after it there is only forward. What
is to be done next follows from the journal alone, so that another process can go on where one has died.
"""

from __future__ import annotations

import enum
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from volmig import errors
from volmig.manager.backends import Backends
from volmig.manager.processes import ProcessIdentity
from volmig.migration.attempts import Attempts, as_volmig_error
from volmig.migration.connect import disconnect, release_connections
from volmig.migration.endings import end_at_source, let_go, stop_in_doubt, succeed
from volmig.migration.helpers import stop_helpers
from volmig.migration.move import Move, Recording
from volmig.migration.ownership import OwnedMigration
from volmig.migration.request import host_method
from volmig.migration.settings import Settings
from volmig.migration.steps import (
    CannotGoBack,
    Copy,
    CreateDestination,
    CutOver,
    Declined,
    Disconnect,
    DriverMove,
    Step,
    VerifyCopy,
    steps_for,
)
from volmig.migration.steps.data import load_checkpoint
from volmig.migration.takeover import WORKER, earlier_workers, worker_facts
from volmig.model import EntryKind, Method, Migration, Phase
from volmig.store import Store
from volmig.transfer import Verify

LOG = logging.getLogger(__name__)

StepsFor = Callable[[Method], Sequence[Step]]


class MigrationRunner:
    """Runs one migration that this process owns, to its end.

    :param process: the process that runs it; None for this one.
    :param steps_for: gives the steps of a method; tests put failing ones in their place.
    """

    def __init__(
        self,
        store: Store,
        backends: Backends,
        settings: Settings,
        owned: OwnedMigration,
        *,
        process: ProcessIdentity | None = None,
        steps_for: StepsFor = steps_for,
    ) -> None:
        self._owned = owned
        self._steps_for = steps_for
        self._process = process or ProcessIdentity.own(backends.host)
        self._move = Move(store, backends, settings, owned)
        self._attempts = Attempts(settings, self._move)
        self._must_go_forward = False
        self._left_behind: errors.VolmigError | None = None
        self._storage_hangs = False

    def run(self) -> None:
        """Bring the migration to a final phase, or let go of it when somebody wants it paused or handed over.

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
        move = self._move
        obstacle = self._find_obstacle()
        if obstacle is not None:
            return self._leave_to_others(obstacle)
        journal = move.entries()
        stop_helpers(journal, host=move.backends.host)
        # Written with whatever this worker records first, and so before it does anything.
        facts = worker_facts(self._process, owner=move.migration.owner, journal=journal)
        move.note(EntryKind.NOTE, WORKER, facts)
        self._release_earlier_connections()
        phase = self._owned.migration.phase
        if phase in (Phase.CANCELLING, Phase.ROLLING_BACK):
            return self._attempts.persistently(lambda: self._back(self._interruption(), phase))
        # A request to cancel is refused from this phase on; so one that is on record has been found impossible.
        self._must_go_forward = phase is Phase.COMPLETING and bool(self._owned.migration.cancel_requested_by)
        while True:
            try:
                self._take_up_copy()
                self._forward()
                succeed(move)
            except errors.LeaseLost:
                raise
            except errors.LocationDoubtful as doubt:
                return self._attempts.persistently(partial(self._stop_in_doubt, doubt))
            except errors.DestinationBusy as busy:
                if not move.goes_on:
                    return self._attempts.persistently(partial(self._turn_back, busy))
                LOG.warning("migration %s: the copy begins anew elsewhere: %s", move.migration.id, busy)
                self._attempts.persistently(self._begin_copy_afresh)
            except (_PauseWanted, errors.TransferCancelled) as stop:
                after = self._attempts.persistently(partial(self._stop, stop))
                if after is _After.GO_ON:
                    continue
                if after is not _After.TURN_BACK:
                    return None
                return self._attempts.persistently(partial(self._turn_back, stop))
            except Exception as error:  # noqa: BLE001
                # Whatever it was, it is taken back, and told to whoever waits for the migration.
                return self._attempts.persistently(partial(self._turn_back, error))
            else:
                return None

    # --- taking over --------------------------------------------------------------------------

    def _find_obstacle(self) -> errors.VolmigError | None:
        """Return why this process cannot go on with what others have left; None when it can, or was asked to.

        A process that lacks a backend, or one whose storage is not there yet after a power failure, must not undo what
        another can bring to its end.
        """
        if not self._owned.is_patient:
            return None
        try:
            for pool in self._pools_needed():
                self._move.backends.pool(pool)
        except errors.VolmigError as error:
            return error
        return None

    def _release_earlier_connections(self) -> None:
        """Let go of what an earlier worker has connected here: nothing that it has left under way may reach what is
        about to be written or deleted. What cannot be let go now is tried again before the volumes are let go.
        """
        try:
            release_connections(self._move)
        except errors.VolmigError as error:
            LOG.warning("migration %s: an earlier connection is still there: %s", self._move.migration.id, error)

    def _pools_needed(self) -> tuple[str, ...]:
        """Return the pools without which it cannot come to its end; what is in others can be left for later."""
        migration = self._move.migration
        if self._move.committed:
            return (migration.destination,)
        if migration.phase in (Phase.CANCELLING, Phase.ROLLING_BACK):
            return (migration.source,)
        return migration.source, migration.destination

    def _leave_to_others(self, obstacle: errors.VolmigError) -> errors.VolmigError:
        """Let go of a migration with which nothing was done; without an entry, since it may happen again and again."""
        LOG.warning("migration %s is left to others, or for later: %s", self._move.migration.id, obstacle)
        with self._move.store.writing() as transaction:
            left = transaction.update_migration(self._move.migration, owner="", lease_expires_at=None)
        self._owned.record(left)
        return obstacle

    # --- what an earlier owner has left -------------------------------------------------------

    def _take_up_copy(self) -> None:
        """Decide what becomes of the object that an earlier owner was to make, was copying to, or has proved."""
        move = self._move
        if move.is_done(VerifyCopy.name):
            self._prove_anew()
            return
        made_as = move.intended(CreateDestination.name, "id")
        if made_as != move.migration.destination_id:
            return
        move.goes_on = self._may_go_on_with_copy()
        if not move.is_done(Copy.name):
            if not move.goes_on:
                self._begin_copy_afresh()
        elif move.goes_on and load_checkpoint(move) is not None:
            # The digests of what was read after it are gone, and with them the proof that needs no second reading.
            move.note(EntryKind.UNDONE, Copy.name, {"reason": "it is made once more from its last checkpoint on"})

    def _prove_anew(self) -> None:
        """Have what was proved proved once more, while the source still counts: nobody has watched it meanwhile."""
        move = self._move
        if self._is_past_return or move.is_begun(CutOver.name):
            return
        # Without a verification there is nothing but the copy itself that looks at the source.
        again = (Copy.name,) if Verify(move.migration.verify) is Verify.NONE else ()
        steps = (*again, VerifyCopy.name, Disconnect.name)
        for step in steps:
            if move.is_done(step):
                move.note(EntryKind.UNDONE, step, {"reason": "nobody has watched the source since"})

    def _may_go_on_with_copy(self) -> bool:
        move = self._move
        if self._storage_hangs:
            return False
        earlier = earlier_workers(
            move.entries(),
            destination_id=move.migration.destination_id,
            epoch=move.migration.epoch,
            host=move.backends.host,
        )
        if not earlier.are_gone:
            return False
        move.must_be_sole_writer = not earlier.have_let_go
        if not move.is_done(CreateDestination.name):
            return True
        try:
            present = move.destination.identify_object(move.copy_volume)
        except errors.VolumeObjectMissing:
            return False
        made: str | None = move.recorded(CreateDestination.name, "identity")
        return present == made

    def _begin_copy_afresh(self) -> None:
        """Give up the object that an earlier owner was making or copying to, and use a new one under a new id.

        The earlier owner may only have been paused, and have a write under way: it must not reach what will be the
        volume. Nor must the end of a creation that takes back what it finds to be made too late.
        """
        move = self._move
        move.goes_on = move.must_be_sole_writer = False
        for step in reversed(self._steps_begun()):
            self._undo_step(step)
        with move.recording() as recording:
            recording.transaction.remove_checkpoint(move.migration.id)
            recording.update_migration(destination_id=str(uuid.uuid4()))

    # --- stopping for a while -----------------------------------------------------------------

    def _stop(self, stop: _PauseWanted | errors.TransferCancelled) -> _After:
        """Let go of the migration if it is to be paused, and say what is to be done next."""
        move = self._move
        move.refresh()
        self._owned.check()
        self._storage_hangs = self._storage_hangs or getattr(stop, "storage_hangs", False)
        if move.migration.phase.is_final:
            return _After.NOTHING
        if self._is_past_return or move.migration.cancel_requested_by:
            return _After.TURN_BACK
        if move.migration.pause_requested_by or self._owned.is_to_be_handed_over:
            return self._let_go()
        if isinstance(stop, _PauseWanted) or self._owned.may_go_on:
            return self._go_on_after_all()
        return _After.TURN_BACK

    def _let_go(self) -> _After:
        move = self._move
        error = self._attempts.repeatedly("disconnect", lambda: disconnect(move))
        if error is not None:
            LOG.warning("migration %s: it is connected again all the same when it goes on", move.migration.id)
        # What is proved now may be something else when it goes on.
        undone = tuple(name for name in (VerifyCopy.name, Disconnect.name) if move.is_done(name))
        if let_go(move, hands_over=self._owned.is_to_be_handed_over, is_clean=not self._storage_hangs, undone=undone):
            return _After.NOTHING
        return _After.TURN_BACK if move.migration.cancel_requested_by else self._go_on_after_all()

    def _go_on_after_all(self) -> _After:
        """Go on here: the request to pause was withdrawn, or the lease renewed, before this worker had let go."""
        self._owned.go_on_after_all()
        return _After.GO_ON

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
            if not self._is_past_return:
                _heed_requests(recording.migration)
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
            self._move.enter(recording, Phase.STARTING, f"{self._move.migration.owner} takes it")
            if recording.migration.started_at is None:
                recording.update_migration(started_at=recording.transaction.now())
        forward = (Phase.STARTING, Phase.MIGRATING, Phase.COMPLETING)
        if forward.index(step.phase) > forward.index(recording.phase):
            self._move.enter(recording, step.phase, f"step {step.name} begins")

    @property
    def _is_past_return(self) -> bool:
        return self._move.committed or self._must_go_forward

    def _check_may_go_on(self) -> None:
        self._owned.check()
        if self._is_past_return:
            return
        _heed_requests(self._move.migration)
        if self._owned.is_to_be_handed_over and not self._move.is_begun(DriverMove.name):
            raise _PauseWanted
        if self._owned.control.cancelled and not self._owned.is_to_be_handed_over:
            if not self._owned.may_go_on:
                raise _cancellation(self._move.migration)
            self._owned.go_on_after_all()

    def _run_after_commit(self, step: Step) -> None:
        """Run a step that only clears up; when it keeps failing, what it leaves is on record and is not forgotten."""
        move = self._move

        def attempt() -> None:
            outcome = step.run(move)
            with move.recording() as recording:
                move.note(EntryKind.DONE, step.name, outcome)
                step.commit(move, recording)

        error = self._attempts.repeatedly(step.name, attempt)
        if error is not None:
            LOG.warning("migration %s: %s is left for later: %s", move.migration.id, step.name, error)
            move.note(EntryKind.FAILED, step.name, error.as_dict())

    def _choose_host_method(self, reason: str) -> None:
        move = self._move
        method = host_method(move.source, move.destination)
        with move.recording() as recording:
            move.note(EntryKind.UNDONE, DriverMove.name, {"reason": reason, "method": method.value})
            recording.update_migration(method=method)

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
            succeed(move)
            return None
        if isinstance(error, errors.TransferCancelled | _PauseWanted):
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
                move.enter(recording, phase, reason.message)
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
        return end_at_source(move, reason, phase, self._left_behind)

    def _stop_in_doubt(self, doubt: errors.LocationDoubtful) -> errors.VolmigError:
        return stop_in_doubt(self._move, doubt, self._step_under_way())

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
        error = self._attempts.repeatedly(step.name, lambda: step.undo(move))
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
            move.enter(recording, Phase.COMPLETING, "the volume has arrived, and cannot be moved back")
            recording.update_migration(error_code="", error_message="", error_hint="")
        self._forward()
        succeed(move)

    # --- common -------------------------------------------------------------------------------

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
        try:
            # With another owner on this host they may be that one's by now, and it goes by the journal.
            self._owned.check()
            release_connections(self._move)
        except errors.LeaseLost as lost:
            LOG.debug("migration %s: its connections are left to its owner: %s", self._owned.migration.id, lost)
        except Exception:
            LOG.exception("migration %s: letting go of a connection failed", self._owned.migration.id)


class _PauseWanted(Exception):
    """Somebody wants the migration paused, or left to another worker."""


class _After(enum.Enum):
    """What is to be done after a stop."""

    NOTHING = enum.auto()
    GO_ON = enum.auto()
    TURN_BACK = enum.auto()


def _heed_requests(migration: Migration) -> None:
    """Raise what ends the work when somebody wants that."""
    if migration.cancel_requested_by:
        raise _cancellation(migration)
    if migration.pause_requested_by:
        raise _PauseWanted


def _cancellation(migration: Migration) -> errors.MigrationCancelled:
    who = migration.cancel_requested_by or "the program that runs it"
    return errors.MigrationCancelled(migration=migration.id, requested_by=who)
