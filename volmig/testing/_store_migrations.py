"""The promises of a store about migrations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volmig import errors
from volmig.model import (
    PHASE_TRANSITIONS,
    EntryKind,
    JournalEntry,
    Method,
    Migration,
    Phase,
)
from volmig.store import MigrationQuery, Store
from volmig.testing._store_clock import StoreClock
from volmig.testing._store_values import (
    JSON,
    MIGRATIONS,
    ROUND_TRIP,
    TEXT,
    ManualClock,
    add_migration,
    another_value,
    claimed_migration,
    in_threads,
    make_migration,
    make_note,
    migration_in,
    read_migration,
)


class MigrationContract(StoreClock):
    """Migrations are kept, found, and changed by their phases' table."""

    def test_new_migration_has_times(self, store: Store) -> None:
        added = add_migration(store)
        assert added.created_at is not None
        assert added.updated_at == added.created_at
        assert read_migration(store, added.id) == added

    def test_unknown_migration_is_named(self, store: Store) -> None:
        ghost = make_migration()
        with store.writing() as writer:
            calls: list[Callable[[], object]] = [
                lambda: writer.get_migration(ghost.id),
                lambda: writer.update_migration(ghost, bytes_done=1),
                lambda: writer.claim_migration(ghost.id, owner="worker", lease_seconds=1),
                lambda: writer.renew_lease(ghost, lease_seconds=1),
                lambda: writer.request_cancel(ghost.id, requested_by="me"),
                lambda: writer.request_pause(ghost.id, requested_by="me"),
                lambda: writer.request_resume(ghost.id, requested_by="me"),
                lambda: writer.set_bandwidth_limit(ghost.id, bandwidth_limit_bytes=1),
                lambda: writer.save_checkpoint(ghost, b"data"),
                lambda: writer.append_journal(make_note(ghost.id)),
            ]
            for call in calls:
                with pytest.raises(errors.MigrationNotFound, match=ghost.id):
                    call()

    def test_migration_id_is_taken_once(self, store: Store) -> None:
        present = add_migration(store)
        with pytest.raises(errors.InternalError, match=present.id), store.writing() as writer:
            writer.add_migration(make_migration(id=present.id))
        assert read_migration(store, present.id) == present

    @ROUND_TRIP
    @given(migration=MIGRATIONS)
    def test_migration_comes_back_as_it_was(self, store: Store, migration: Migration) -> None:
        migration = replace(migration, id=str(uuid4()))
        with store.writing() as writer:
            added = writer.add_migration(migration)
        got = read_migration(store, migration.id)
        assert got == added
        assert replace(got, created_at=None, updated_at=None) == migration
        assert type(got.phase) is Phase
        assert type(got.method) is Method

    def test_phase_follows_the_table(self, store: Store) -> None:
        for present in Phase:
            for following in Phase:
                migration = add_migration(store, phase=present)
                if following is present or following in PHASE_TRANSITIONS[present]:
                    with store.writing() as writer:
                        assert writer.update_migration(migration, phase=following).phase is following
                else:
                    with store.writing() as writer, pytest.raises(errors.InternalError, match=following.value):
                        writer.update_migration(migration, phase=following)
                    assert read_migration(store, migration.id) == migration

    @pytest.mark.parametrize(
        "name",
        [
            "id",
            "volume_id",
            "epoch",
            "created_at",
            "updated_at",
            "cancel_requested_by",
            "pause_requested_by",
            "no_such_field",
        ],
    )
    def test_migration_fields_that_cannot_be_changed(self, store: Store, name: str) -> None:
        migration = add_migration(store)
        with pytest.raises(errors.InternalError, match=name), store.writing() as writer:
            writer.update_migration(migration, **{name: None})
        assert read_migration(store, migration.id) == migration

    @pytest.mark.parametrize(
        "values",
        [{"rate_bytes": float("nan")}, {"eta_seconds": float("inf")}, {"started_at": datetime(2026, 1, 1)}],
    )
    def test_values_that_mean_nothing_are_refused(self, store: Store, values: dict[str, Any]) -> None:
        migration = add_migration(store)
        with pytest.raises(errors.InternalError), store.writing() as writer:
            writer.update_migration(migration, **values)

    def test_every_field_that_may_change_does(self, store: Store) -> None:
        fixed = {"id", "volume_id", "epoch", "created_at", "updated_at", "phase", "method"}
        fixed |= {"cancel_requested_by", "pause_requested_by"}
        migration = add_migration(store)
        for item in fields(Migration):
            if item.name in fixed:
                continue
            value = another_value(getattr(migration, item.name), item.name)
            with store.writing() as writer:
                migration = writer.update_migration(migration, **{item.name: value})
            assert getattr(migration, item.name) == value
            assert read_migration(store, migration.id) == migration

    @pytest.mark.parametrize("phase", Phase)
    def test_cancel_is_accepted_as_long_as_the_phase_allows(self, store: Store, phase: Phase) -> None:
        migration = migration_in(store, phase)
        if phase in (Phase.QUEUED, Phase.STARTING, Phase.MIGRATING, Phase.PAUSED, Phase.CANCELLING):
            with store.writing() as writer:
                requested = writer.request_cancel(migration.id, requested_by="someone")
            assert requested.cancel_requested_by == "someone"
            assert requested.phase is phase
            assert read_migration(store, migration.id) == requested
        else:
            with pytest.raises(errors.CancelTooLate) as caught, store.writing() as writer:
                writer.request_cancel(migration.id, requested_by="someone")
            assert caught.value.fields == {"migration": migration.id, "phase": phase.value}
            assert read_migration(store, migration.id) == migration

    def test_first_request_to_cancel_stays(self, store: Store) -> None:
        migration = add_migration(store)
        for name in ("first", "second"):
            with store.writing() as writer:
                assert writer.request_cancel(migration.id, requested_by=name).cancel_requested_by == "first"

    def test_request_to_cancel_does_not_take_ownership(self, store: Store) -> None:
        claimed = claimed_migration(store)
        with store.writing() as writer:
            requested = writer.request_cancel(claimed.id, requested_by="someone")
        assert (requested.owner, requested.epoch) == (claimed.owner, claimed.epoch)
        assert requested.lease_expires_at == claimed.lease_expires_at

    def test_migrations_are_listed_newest_first(self, store: Store, clock: ManualClock) -> None:
        added = []
        for number in range(6):
            added.append(add_migration(store))
            self.pass_time(clock, 0.001 * (number % 2))
        with store.reading() as reader:
            listed = list(reader.list_migrations())
            paged: list[Migration] = []
            marker = None
            while page := reader.list_migrations(MigrationQuery(limit=2, marker=marker)):
                paged.extend(page)
                assert len(paged) <= 6, "a page repeats what an earlier one had"
                marker = page[-1].id
        assert listed == sorted(added, key=lambda item: (item.created_at, item.id), reverse=True)
        assert paged == listed

    def test_migrations_by_volume_and_phase(self, store: Store) -> None:
        mine = [add_migration(store, volume_id="mine", phase=phase) for phase in Phase]
        other = add_migration(store, volume_id="other")
        with store.reading() as reader:

            def ids(**query: Any) -> set[str]:
                return {item.id for item in reader.list_migrations(MigrationQuery(**query))}

            assert ids(volume_id="mine") == {item.id for item in mine}
            assert ids(phases=(Phase.QUEUED,)) == {mine[0].id, other.id}
            final = {phase for phase in Phase if phase.is_final}
            assert ids(volume_id="mine", phases=final) == {item.id for item in mine if item.phase in final}
            assert ids(phases=()) == set()

    def test_migrations_by_method_destination_and_epoch(self, store: Store) -> None:
        plain = add_migration(store)
        rollback = add_migration(store, method=Method.ROLLBACK, destination_id="old", rolls_back=plain.id)
        again = add_migration(store, method=Method.ROLLBACK, destination_id="old")
        for times, item in ((1, rollback), (2, again)):
            for _ in range(times):
                with store.writing() as writer:
                    claimed = writer.claim_migration(item.id, owner="worker", lease_seconds=60)
                    writer.update_migration(claimed, owner="", lease_expires_at=None)
        with store.reading() as reader:

            def ids(**query: Any) -> set[str]:
                return {item.id for item in reader.list_migrations(MigrationQuery(**query))}

            assert ids(method=Method.ROLLBACK) == {rollback.id, again.id}
            assert ids(method=Method.DRIVER) == set()
            assert ids(destination_id=plain.destination_id) == {plain.id}
            assert ids(destination_id="old") == {rollback.id, again.id}
            assert ids(destination_id="OLD") == set()
            assert ids(min_epoch=0) == {plain.id, rollback.id, again.id}
            assert ids(min_epoch=1) == {rollback.id, again.id}
            assert ids(min_epoch=2, destination_id="old", volume_id=again.volume_id) == {again.id}
            assert ids(min_epoch=3) == set()
            (first,) = reader.list_migrations(MigrationQuery(method=Method.ROLLBACK, limit=1))
            (second,) = reader.list_migrations(MigrationQuery(method=Method.ROLLBACK, limit=1, marker=first.id))
            assert {first.id, second.id} == {rollback.id, again.id}

    def test_journal_is_in_order(self, store: Store, clock: ManualClock) -> None:
        first, second = add_migration(store), add_migration(store)
        written = []
        for number in range(12):
            entry = JournalEntry(
                migration_id=first.id,
                kind=EntryKind.INTENT if number % 2 else EntryKind.DONE,
                subject=f"step {number}",
                actor="worker",
                epoch=3,
                data={"number": number},
                sequence=99,
            )
            with store.writing() as writer:
                writer.append_journal(entry)
                writer.append_journal(make_note(second.id))
            written.append(entry)
            # A clock that is set back does not change the order.
            self.pass_time(clock, 1 if number < 6 else 0)
        with store.reading() as reader:
            journal = reader.read_journal(first.id)
        assert [entry.sequence for entry in journal] == list(range(1, 13))
        assert all(entry.at is not None for entry in journal)
        assert [replace(entry, sequence=99, at=None) for entry in journal] == written
        assert all(type(entry.kind) is EntryKind for entry in journal)

    def test_journal_of_a_migration_without_entries(self, store: Store) -> None:
        migration = add_migration(store)
        with store.reading() as reader:
            assert list(reader.read_journal(migration.id)) == []
            assert list(reader.read_journal("nothing")) == []

    def test_writers_to_one_journal(self, store: Store) -> None:
        migration = add_migration(store)

        def append(_: int) -> None:
            for _ in range(5):
                with store.writing() as writer:
                    writer.append_journal(make_note(migration.id))

        in_threads(4, append)
        with store.reading() as reader:
            assert [entry.sequence for entry in reader.read_journal(migration.id)] == list(range(1, 21))

    @ROUND_TRIP
    @given(data=st.dictionaries(TEXT, JSON, max_size=4))
    def test_journal_data_comes_back_as_it_was(self, store: Store, data: dict[str, Any]) -> None:
        migration = make_migration()
        with store.writing() as writer:
            writer.add_migration(migration)
            writer.append_journal(replace(make_note(migration.id), data=data))
        with store.reading() as reader:
            (entry,) = reader.read_journal(migration.id)
        assert entry.data == data

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"bytes", {1, 2}])
    def test_journal_data_that_is_not_json(self, store: Store, value: object) -> None:
        migration = add_migration(store)
        with pytest.raises(errors.InternalError), store.writing() as writer:
            writer.append_journal(replace(make_note(migration.id), data={"key": value}))
        with store.reading() as reader:
            assert list(reader.read_journal(migration.id)) == []
