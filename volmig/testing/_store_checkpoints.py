"""The promises of a store about the checkpoints of copies."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time

import pytest

from volmig import errors
from volmig.model import Migration, Phase
from volmig.store import Store
from volmig.testing._store_clock import StoreClock
from volmig.testing._store_values import (
    LEASE_SECONDS,
    ManualClock,
    add_migration,
    claimed_migration,
    in_threads,
)

_LARGEST_BYTES = 16 << 20


def save(store: Store, migration: Migration, data: bytes) -> None:
    """Save a checkpoint in a transaction of its own."""
    with store.writing() as writer:
        writer.save_checkpoint(migration, data)


def load(store: Store, migration: Migration) -> bytes | None:
    """Return a checkpoint, read in a transaction of its own."""
    with store.reading() as reader:
        return reader.load_checkpoint(migration.id)


def pattern(size: int) -> bytes:
    """Return *size* bytes of all values, none of which is text."""
    return hashlib.shake_256(b"volmig").digest(size)


class CheckpointContract(StoreClock):
    """The last checkpoint of a copy is kept whole, and only its owner replaces it."""

    def test_checkpoint_is_kept_and_replaced(self, store: Store) -> None:
        first, second = claimed_migration(store), claimed_migration(store)
        assert load(store, first) is None
        for data in (b"one", b"two", b"two", b"", bytes(range(256))):
            save(store, first, data)
            got = load(store, first)
            assert type(got) is bytes
            assert got == data
        assert load(store, second) is None
        save(store, second, b"other")
        assert load(store, first) == bytes(range(256))

    def test_checkpoint_is_seen_inside_its_own_block(self, store: Store) -> None:
        claimed = claimed_migration(store)
        with store.writing() as writer:
            for data in (b"one", b"two"):
                writer.save_checkpoint(claimed, data)
                assert writer.load_checkpoint(claimed.id) == data
            writer.remove_checkpoint(claimed.id)
            assert writer.load_checkpoint(claimed.id) is None
            assert list(writer.list_checkpoints()) == []

    def test_checkpoint_of_12_mib(self, store: Store) -> None:
        claimed = claimed_migration(store)
        data = pattern(12 << 20)
        save(store, claimed, data)
        assert load(store, claimed) == data
        save(store, claimed, b"small")
        assert load(store, claimed) == b"small"

    def test_checkpoint_that_is_too_large_is_refused(self, store: Store) -> None:
        claimed = claimed_migration(store)
        save(store, claimed, b"kept")
        with pytest.raises(errors.InternalError, match=f"{_LARGEST_BYTES} are the most"):
            save(store, claimed, bytes(_LARGEST_BYTES + 1))
        assert load(store, claimed) == b"kept"

    def test_checkpoints_are_listed(self, store: Store) -> None:
        claimed = [claimed_migration(store) for _ in range(3)]
        add_migration(store)
        for migration in claimed:
            save(store, migration, b"data")
        with store.reading() as reader:
            assert list(reader.list_checkpoints()) == sorted(migration.id for migration in claimed)

    def test_removed_checkpoint_is_gone(self, store: Store) -> None:
        first, second = claimed_migration(store), claimed_migration(store)
        save(store, first, b"first")
        save(store, second, b"second")
        for _ in range(2):
            with store.writing() as writer:
                writer.remove_checkpoint(first.id)
                writer.remove_checkpoint("nothing")
        with store.reading() as reader:
            assert list(reader.list_checkpoints()) == [second.id]
        assert load(store, first) is None
        save(store, first, b"again")
        assert load(store, first) == b"again"

    def test_checkpoint_of_nothing(self, store: Store) -> None:
        with store.reading() as reader:
            assert reader.load_checkpoint("nothing") is None

    def test_checkpoint_outlives_a_pause_and_a_takeover(self, store: Store) -> None:
        claimed = claimed_migration(store)
        with store.writing() as writer:
            writer.save_checkpoint(claimed, b"so far")
            writer.update_migration(claimed, phase=Phase.PAUSED, owner="", lease_expires_at=None)
        with store.writing() as writer:
            writer.request_resume(claimed.id, requested_by="someone")
            taken = writer.claim_migration(claimed.id, owner="other", lease_seconds=LEASE_SECONDS)
            assert writer.load_checkpoint(claimed.id) == b"so far"
        save(store, taken, b"further")
        assert load(store, claimed) == b"further"

    def test_the_store_removes_no_checkpoint_by_itself(self, store: Store) -> None:
        claimed = claimed_migration(store)
        save(store, claimed, b"data")
        for phase in (Phase.CANCELLING, Phase.CANCELLED):
            with store.writing() as writer:
                writer.update_migration(claimed, phase=phase)
        assert load(store, claimed) == b"data"

    @pytest.mark.parametrize("data", [None, b"of the first", b"of the second"])
    def test_fenced_worker_saves_no_checkpoint(self, store: Store, clock: ManualClock, data: bytes | None) -> None:
        claimed = claimed_migration(store)
        if data is not None:
            save(store, claimed, b"of the first")
        self.pass_time(clock, LEASE_SECONDS)
        with store.writing() as writer:
            taken = writer.claim_migration(claimed.id, owner="other", lease_seconds=LEASE_SECONDS)
        if data == b"of the second":
            save(store, taken, data)
        with pytest.raises(errors.LeaseLost) as caught:
            save(store, claimed, b"late")
        assert caught.value.fields == {"migration": claimed.id, "owner": "worker", "epoch": claimed.epoch}
        assert load(store, claimed) == data
        save(store, taken, b"goes on")
        assert load(store, claimed) == b"goes on"

    def test_refused_checkpoint_leaves_the_rest_of_its_transaction(self, store: Store, clock: ManualClock) -> None:
        claimed, other = claimed_migration(store), claimed_migration(store)
        self.pass_time(clock, LEASE_SECONDS)
        with store.writing() as writer:
            writer.claim_migration(claimed.id, owner="other", lease_seconds=LEASE_SECONDS)
        with store.writing() as writer:
            with pytest.raises(errors.LeaseLost):
                writer.save_checkpoint(claimed, b"late")
            writer.save_checkpoint(other, b"data")
        with store.reading() as reader:
            assert list(reader.list_checkpoints()) == [other.id]

    def test_nothing_is_saved_behind_a_takeover(self, store: Store, clock: ManualClock) -> None:
        claimed = claimed_migration(store)
        begun = threading.Event()
        end = time.monotonic() + 60

        def save_until_fenced() -> bool:
            for number in itertools.count():
                try:
                    save(store, claimed, b"%d" % number)
                except errors.LeaseLost:
                    return True
                begun.set()
                if time.monotonic() > end:
                    return False
            raise AssertionError("counting ended")

        def take_over() -> bytes | None:
            assert begun.wait(timeout=60)
            self.pass_time(clock, LEASE_SECONDS)
            with store.writing() as writer:
                writer.claim_migration(claimed.id, owner="other", lease_seconds=LEASE_SECONDS)
                return writer.load_checkpoint(claimed.id)

        fenced, seen = in_threads(2, lambda number: take_over() if number else save_until_fenced())
        assert fenced is True
        assert seen is not None
        assert load(store, claimed) == seen

    def test_reader_keeps_its_checkpoint(self, store: Store) -> None:
        claimed = claimed_migration(store)
        save(store, claimed, b"before")
        thread = threading.Thread(target=save, args=(store, claimed, b"after"))
        with store.reading() as reader:
            assert reader.load_checkpoint(claimed.id) == b"before"
            thread.start()
            # A store may let the writer pass, or make it wait for the reader.
            thread.join(timeout=0.2)
            assert reader.load_checkpoint(claimed.id) == b"before"
        thread.join(timeout=30)
        assert not thread.is_alive()
        assert load(store, claimed) == b"after"
