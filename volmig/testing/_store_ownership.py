"""The promises of a store about who owns a migration."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from volmig import errors
from volmig.model import (
    Phase,
)
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


class OwnershipContract(StoreClock):
    """One worker owns a migration, as long as its lease lasts."""

    def test_claim_gives_owner_lease_and_epoch(self, store: Store) -> None:
        migration = add_migration(store)
        with store.writing() as writer:
            now = writer.now()
            claimed = writer.claim_migration(migration.id, owner="worker", lease_seconds=LEASE_SECONDS)
        assert (claimed.owner, claimed.epoch) == ("worker", migration.epoch + 1)
        assert claimed.lease_expires_at is not None
        assert timedelta(0) <= claimed.lease_expires_at - now - timedelta(seconds=LEASE_SECONDS) < timedelta(seconds=5)
        assert read_migration(store, migration.id) == claimed

    @pytest.mark.parametrize("owner", ["worker", "other"])
    def test_owned_migration_cannot_be_claimed(self, store: Store, clock: ManualClock, owner: str) -> None:
        claimed = claimed_migration(store)
        self.pass_time(clock, LEASE_SECONDS / 2)
        with pytest.raises(errors.LeaseLost), store.writing() as writer:
            writer.claim_migration(claimed.id, owner=owner, lease_seconds=LEASE_SECONDS)
        assert read_migration(store, claimed.id) == claimed

    def test_expired_lease_can_be_taken_over(self, store: Store, clock: ManualClock) -> None:
        claimed = claimed_migration(store)
        self.pass_time(clock, LEASE_SECONDS)
        with store.writing() as writer:
            taken = writer.claim_migration(claimed.id, owner="other", lease_seconds=LEASE_SECONDS)
        assert (taken.owner, taken.epoch) == ("other", claimed.epoch + 1)
        changes: list[Callable[[WriteTransaction], object]] = [
            lambda writer: writer.update_migration(claimed, bytes_done=1),
            lambda writer: writer.update_migration(claimed, phase=Phase.STARTING),
            lambda writer: writer.renew_lease(claimed, lease_seconds=LEASE_SECONDS),
        ]
        for change in changes:
            with pytest.raises(errors.LeaseLost) as caught, store.writing() as writer:
                change(writer)
            assert caught.value.fields == {"migration": claimed.id, "owner": "worker", "epoch": claimed.epoch}
        assert read_migration(store, claimed.id) == taken

    def test_released_migration_can_be_claimed(self, store: Store) -> None:
        claimed = claimed_migration(store)
        with store.writing() as writer:
            writer.update_migration(claimed, owner="", lease_expires_at=None)
        with store.writing() as writer:
            taken = writer.claim_migration(claimed.id, owner="other", lease_seconds=LEASE_SECONDS)
        assert (taken.owner, taken.epoch) == ("other", claimed.epoch + 1)

    @pytest.mark.parametrize("phase", Phase)
    def test_what_is_final_or_paused_cannot_be_claimed(self, store: Store, phase: Phase) -> None:
        migration = migration_in(store, phase)
        if phase.is_final or phase is Phase.PAUSED:
            with pytest.raises(errors.LeaseLost) as caught, store.writing() as writer:
                writer.claim_migration(migration.id, owner="worker", lease_seconds=LEASE_SECONDS)
            assert isinstance(caught.value, errors.MigrationPaused) is (phase is Phase.PAUSED)
            assert read_migration(store, migration.id) == migration
        else:
            assert claimed_migration(store, migration).owner == "worker"

    def test_one_of_many_claims_succeeds(self, store: Store) -> None:
        migration = add_migration(store)

        def claim(number: int) -> bool:
            try:
                with store.writing() as writer:
                    writer.claim_migration(migration.id, owner=f"worker {number}", lease_seconds=LEASE_SECONDS)
            except errors.LeaseLost:
                return False
            return True

        assert in_threads(6, claim).count(True) == 1
        assert read_migration(store, migration.id).epoch == migration.epoch + 1

    def test_renewal_counts_from_now(self, store: Store, clock: ManualClock) -> None:
        claimed = claimed_migration(store)
        self.pass_time(clock, LEASE_SECONDS - 10)
        with store.writing() as writer:
            renewed = writer.renew_lease(claimed, lease_seconds=LEASE_SECONDS)
        assert claimed.lease_expires_at is not None
        assert renewed.lease_expires_at is not None
        assert renewed.lease_expires_at - claimed.lease_expires_at >= timedelta(seconds=LEASE_SECONDS - 10)
        assert (renewed.owner, renewed.epoch) == (claimed.owner, claimed.epoch)
        self.pass_time(clock, LEASE_SECONDS - 10)
        with pytest.raises(errors.LeaseLost), store.writing() as writer:
            writer.claim_migration(claimed.id, owner="other", lease_seconds=LEASE_SECONDS)

    def test_expired_lease_cannot_be_renewed(self, store: Store, clock: ManualClock) -> None:
        claimed = claimed_migration(store)
        self.pass_time(clock, LEASE_SECONDS)
        with pytest.raises(errors.LeaseLost), store.writing() as writer:
            writer.renew_lease(claimed, lease_seconds=LEASE_SECONDS)
        assert read_migration(store, claimed.id) == claimed

    def test_writer_with_an_old_state_of_its_epoch(self, store: Store) -> None:
        claimed = claimed_migration(store)
        with store.writing() as writer:
            writer.request_cancel(claimed.id, requested_by="someone")
        with store.writing() as writer:
            changed = writer.update_migration(claimed, bytes_done=5)
        assert changed.cancel_requested_by == "someone"
        assert read_migration(store, claimed.id) == changed
