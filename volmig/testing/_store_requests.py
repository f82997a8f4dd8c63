"""The promises of a store about requests to pause, resume, limit and cancel a migration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from volmig import errors
from volmig.model import Migration, Phase
from volmig.store import Store, WriteTransaction
from volmig.testing._store_clock import StoreClock
from volmig.testing._store_values import (
    LEASE_SECONDS,
    ManualClock,
    add_migration,
    claimed_migration,
    in_threads,
    migration_in,
    read_migration,
)

_UNENDED = [phase for phase in Phase if not phase.is_final]
_ENDED = [phase for phase in Phase if phase.is_final]
_BUSY = [Phase.STARTING, Phase.MIGRATING]
"""The phases in which a migration can be paused, and somebody is at work."""


def request_cancel(store: Store, migration: Migration, requested_by: str = "canceller") -> Migration:
    """Ask to cancel in a transaction of its own."""
    with store.writing() as writer:
        return writer.request_cancel(migration.id, requested_by=requested_by)


def request_pause(store: Store, migration: Migration, requested_by: str = "pauser") -> Migration:
    """Ask to pause in a transaction of its own."""
    with store.writing() as writer:
        return writer.request_pause(migration.id, requested_by=requested_by)


def request_resume(store: Store, migration: Migration) -> Migration:
    """Ask to resume in a transaction of its own."""
    with store.writing() as writer:
        return writer.request_resume(migration.id, requested_by="resumer")


def let_go(store: Store, migration: Migration) -> Migration:
    """Let the worker that holds *migration* pause it."""
    with store.writing() as writer:
        return writer.update_migration(migration, phase=Phase.PAUSED, owner="", lease_expires_at=None)


def working_migration(store: Store) -> Migration:
    """Record a migration that ``worker`` is at work on, in ``migrating``."""
    return claimed_migration(store, migration_in(store, Phase.MIGRATING))


class RequestContract(StoreClock):
    """Whoever asks gets a true answer at once, and takes nothing from the owner."""

    # --- to pause -------------------------------------------------------------------------------

    def test_queued_migration_is_paused_at_once(self, store: Store) -> None:
        migration = add_migration(store)
        paused = request_pause(store, migration)
        expected = replace(migration, phase=Phase.PAUSED, pause_requested_by="pauser", updated_at=paused.updated_at)
        assert paused == expected
        assert read_migration(store, migration.id) == expected

    @pytest.mark.parametrize("phase", _BUSY)
    def test_worker_is_told_to_pause(self, store: Store, clock: ManualClock, phase: Phase) -> None:
        claimed = claimed_migration(store, migration_in(store, phase))
        self.pass_time(clock, 1)
        asked = request_pause(store, claimed)
        assert asked == replace(claimed, pause_requested_by="pauser", updated_at=asked.updated_at)
        assert read_migration(store, claimed.id) == asked
        with store.writing() as writer:
            seen = writer.renew_lease(claimed, lease_seconds=LEASE_SECONDS)
        assert seen.pause_requested_by == "pauser"
        paused = let_go(store, claimed)
        assert (paused.phase, paused.owner, paused.epoch) == (Phase.PAUSED, "", claimed.epoch)
        assert paused.pause_requested_by == "pauser"

    @pytest.mark.parametrize("expired", [False, True])
    def test_queued_migration_of_a_worker_is_not_paused_over_it(
        self, store: Store, clock: ManualClock, expired: bool
    ) -> None:
        claimed = claimed_migration(store)
        self.pass_time(clock, LEASE_SECONDS * 2 if expired else 1)
        asked = request_pause(store, claimed)
        assert (asked.phase, asked.owner, asked.pause_requested_by) == (Phase.QUEUED, "worker", "pauser")
        # A worker that wakes up late, and was not replaced, still finds what it left.
        with store.writing() as writer:
            assert writer.update_migration(claimed, phase=Phase.STARTING).phase is Phase.STARTING

    def test_queued_migration_that_its_worker_gave_back_is_paused_at_the_next_request(self, store: Store) -> None:
        claimed = claimed_migration(store)
        request_pause(store, claimed, "first")
        with store.writing() as writer:
            writer.update_migration(claimed, owner="", lease_expires_at=None)
        paused = request_pause(store, claimed, "second")
        assert (paused.phase, paused.pause_requested_by) == (Phase.PAUSED, "first")

    @pytest.mark.parametrize("phase", [Phase.QUEUED, *_BUSY])
    def test_first_request_to_pause_stays(self, store: Store, clock: ManualClock, phase: Phase) -> None:
        first = request_pause(store, migration_in(store, phase), "first")
        self.pass_time(clock, 1)
        assert request_pause(store, first, "second") == first
        assert read_migration(store, first.id) == first

    @pytest.mark.parametrize(
        ("phase", "reason"),
        [
            (Phase.COMPLETING, "switched over"),
            (Phase.SUCCESS, "it has succeeded already"),
            (Phase.CANCELLING, "it is being cancelled"),
            (Phase.CANCELLED, "it was cancelled"),
            (Phase.ROLLING_BACK, "being undone"),
            (Phase.ERROR, "it has failed"),
        ],
    )
    def test_pause_is_refused_with_the_reason(self, store: Store, phase: Phase, reason: str) -> None:
        migration = migration_in(store, phase)
        with pytest.raises(errors.PauseImpossible, match=reason) as caught:
            request_pause(store, migration)
        assert caught.value.fields["migration"] == migration.id
        assert read_migration(store, migration.id) == migration

    @pytest.mark.parametrize("phase", [Phase.QUEUED, *_BUSY, Phase.PAUSED])
    def test_what_is_to_be_cancelled_cannot_be_paused(self, store: Store, phase: Phase) -> None:
        cancelled = request_cancel(store, migration_in(store, phase))
        with pytest.raises(errors.PauseImpossible, match="it is being cancelled"):
            request_pause(store, cancelled)
        assert read_migration(store, cancelled.id) == cancelled

    # --- while it is paused ---------------------------------------------------------------------

    def test_paused_migration_cannot_be_claimed(self, store: Store, clock: ManualClock) -> None:
        working = working_migration(store)
        request_pause(store, working)
        paused = let_go(store, working)
        self.pass_time(clock, LEASE_SECONDS * 2)
        with pytest.raises(errors.MigrationPaused) as caught, store.writing() as writer:
            writer.claim_migration(paused.id, owner="other", lease_seconds=LEASE_SECONDS)
        assert caught.value.fields == {"migration": paused.id, "requested_by": "pauser"}
        assert read_migration(store, paused.id) == paused

    def test_paused_migration_is_cancelled(self, store: Store) -> None:
        paused = request_pause(store, add_migration(store))
        cancelled = request_cancel(store, paused)
        assert (cancelled.phase, cancelled.cancel_requested_by) == (Phase.PAUSED, "canceller")
        assert cancelled.pause_requested_by == "pauser"

        def claim(number: int) -> bool:
            try:
                with store.writing() as writer:
                    writer.claim_migration(paused.id, owner=f"worker {number}", lease_seconds=LEASE_SECONDS)
            except errors.LeaseLost:
                return False
            return True

        assert in_threads(4, claim).count(True) == 1
        claimed = read_migration(store, paused.id)
        for phase in (Phase.CANCELLING, Phase.CANCELLED):
            with store.writing() as writer:
                claimed = writer.update_migration(claimed, phase=phase)
        assert (claimed.phase, claimed.pause_requested_by) == (Phase.CANCELLED, "pauser")

    def test_worker_that_was_paused_and_replaced_is_fenced(self, store: Store) -> None:
        working = working_migration(store)
        request_pause(store, working)
        request_resume(store, let_go(store, working))
        with store.writing() as writer:
            taken = writer.claim_migration(working.id, owner="other", lease_seconds=LEASE_SECONDS)
        with pytest.raises(errors.LeaseLost):
            let_go(store, working)
        assert read_migration(store, working.id) == taken

    # --- to resume ------------------------------------------------------------------------------

    def test_paused_migration_is_queued_again(self, store: Store, clock: ManualClock) -> None:
        working = working_migration(store)
        request_pause(store, working)
        paused = let_go(store, working)
        self.pass_time(clock, 1)
        resumed = request_resume(store, paused)
        expected = replace(paused, phase=Phase.QUEUED, pause_requested_by="", updated_at=resumed.updated_at)
        assert resumed == expected
        assert read_migration(store, paused.id) == expected
        assert claimed_migration(store, resumed).epoch == working.epoch + 1

    def test_request_to_pause_is_withdrawn(self, store: Store) -> None:
        working = working_migration(store)
        request_pause(store, working)
        resumed = request_resume(store, working)
        assert resumed == replace(working, updated_at=resumed.updated_at)
        assert read_migration(store, working.id) == resumed

    @pytest.mark.parametrize("phase", [phase for phase in _UNENDED if phase is not Phase.PAUSED])
    def test_resume_of_what_goes_on_changes_nothing(self, store: Store, clock: ManualClock, phase: Phase) -> None:
        migration = migration_in(store, phase)
        self.pass_time(clock, 1)
        assert request_resume(store, migration) == migration
        assert read_migration(store, migration.id) == migration

    # --- to limit -------------------------------------------------------------------------------

    @pytest.mark.parametrize("phase", _UNENDED)
    @pytest.mark.parametrize("limit", [0, 1, 2**63 - 1])
    def test_limit_of_what_goes_on_is_changed(self, store: Store, phase: Phase, limit: int) -> None:
        migration = claimed = migration_in(store, phase)
        if phase is not Phase.PAUSED:
            claimed = claimed_migration(store, migration)
        with store.writing() as writer:
            limited = writer.set_bandwidth_limit(migration.id, bandwidth_limit_bytes=limit)
        assert limited == replace(claimed, bandwidth_limit_bytes=limit, updated_at=limited.updated_at)
        assert read_migration(store, migration.id) == limited
        with store.writing() as writer:
            assert writer.update_migration(claimed, bytes_done=1).bandwidth_limit_bytes == limit

    @pytest.mark.parametrize("limit", [-1, 2**63, 1.5, True, "10", None])
    def test_limit_that_is_no_number_of_bytes_is_refused(self, store: Store, limit: Any) -> None:
        migration = add_migration(store)
        with pytest.raises(errors.RequestInvalid, match="bandwidth limit"), store.writing() as writer:
            writer.set_bandwidth_limit(migration.id, bandwidth_limit_bytes=limit)
        assert read_migration(store, migration.id) == migration

    # --- all ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("phase", _ENDED)
    def test_what_has_ended_is_neither_resumed_nor_limited(self, store: Store, phase: Phase) -> None:
        migration = migration_in(store, phase)
        calls: list[Callable[[WriteTransaction], object]] = [
            lambda writer: writer.request_resume(migration.id, requested_by="resumer"),
            lambda writer: writer.set_bandwidth_limit(migration.id, bandwidth_limit_bytes=7),
        ]
        for call in calls:
            with pytest.raises(errors.MigrationEnded) as caught, store.writing() as writer:
                call(writer)
            assert caught.value.fields == {"migration": migration.id, "phase": phase.value}
        assert read_migration(store, migration.id) == migration

    @pytest.mark.parametrize("call", ["request_cancel", "request_pause", "request_resume"])
    def test_request_says_who_asks(self, store: Store, call: str) -> None:
        migration = add_migration(store)
        for name, error in (("", errors.InternalError), ("a\0b", errors.RequestInvalid)):
            with pytest.raises(error), store.writing() as writer:
                getattr(writer, call)(migration.id, requested_by=name)
        assert read_migration(store, migration.id) == migration

    def test_requests_of_many_at_once(self, store: Store) -> None:
        working = working_migration(store)

        def ask(number: int) -> str:
            if number % 2:
                return request_pause(store, working, f"pauser {number}").pause_requested_by
            with store.writing() as writer:
                writer.set_bandwidth_limit(working.id, bandwidth_limit_bytes=number)
            return ""

        answers = set(in_threads(6, ask)) - {""}
        final = read_migration(store, working.id)
        assert answers == {final.pause_requested_by}
        assert final.bandwidth_limit_bytes in (0, 2, 4)
        assert (final.owner, final.epoch, final.phase) == (working.owner, working.epoch, working.phase)
