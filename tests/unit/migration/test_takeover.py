"""What a second worker makes of a migration that its first worker has left at an awkward point."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.migration.world import KINDS, Kind, World
from volmig import errors
from volmig.migration.move import Move
from volmig.migration.ownership import OwnedMigration
from volmig.migration.steps import steps_for
from volmig.model import EntryKind, JournalEntry, Method, Migration, Phase
from volmig.testing import patterns
from volmig.testing.faults import DyingStore, FailingStep, FailingStore, InjectedFailure, When, failing_steps

BY_HOST = [kind for kind in KINDS if kind.method is not Method.DRIVER]


def die_after(world: World, migration: Migration, step: str) -> None:
    """Run a migration in a worker that dies when a step has taken effect, before that is on record."""
    store = DyingStore(world.store, fail_at=10**9)

    class Last(FailingStep):
        def run(self, move):  # type: ignore[no-untyped-def]
            outcome = super().run(move)
            store.fail_at = 0
            return outcome

    def steps(method: Method):  # type: ignore[no-untyped-def]
        return [Last(each, When.BEFORE, times=0) if each.name == step else each for each in steps_for(method)]

    world.run(migration, steps=steps, store=store)


@pytest.mark.parametrize("kind", BY_HOST, ids=lambda kind: kind.name)
def test_a_copy_that_was_begun_is_made_anew_under_another_id(tmp_path: Path, kind: Kind) -> None:
    world = World(tmp_path, kind)
    migration = world.accept()
    die_after(world, migration, "copy")
    (name,) = world.objects()["right"]
    assert name == f"volume-{migration.destination_id}"
    owned = world.take_over(migration)
    assert owned.error is None
    assert owned.migration.destination_id != migration.destination_id
    world.assert_at_destination(migration)


def test_a_write_that_comes_late_does_not_reach_the_volume(tmp_path: Path) -> None:
    world = World(tmp_path, KINDS[1])
    migration = world.accept()
    die_after(world, migration, "connect")
    # The first worker was in its copy.
    with world.store.writing() as transaction:
        transaction.append_journal(
            JournalEntry(migration_id=migration.id, kind=EntryKind.INTENT, subject="copy", actor="first")
        )
    copy = Path(world.driver("right").options["file_directory"]) / f"volume-{migration.destination_id}"
    with copy.open("r+b", buffering=0) as held:
        owned = world.take_over(migration)
        assert owned.error is None
        held.seek(0)
        held.write(os.urandom(4096))
    world.assert_at_destination(migration)


@pytest.mark.parametrize("kind", BY_HOST, ids=lambda kind: kind.name)
def test_an_undoing_that_was_begun_keeps_its_reason(tmp_path: Path, kind: Kind) -> None:
    world = World(tmp_path, kind)
    migration = world.accept()
    store = DyingStore(world.store, fail_at=10**9)
    plain = failing_steps("verify", When.BEFORE)

    class Undoing(FailingStep):
        def undo(self, move):  # type: ignore[no-untyped-def]
            store.fail_at = 0
            super().undo(move)

    def steps(method: Method):  # type: ignore[no-untyped-def]
        return [Undoing(each, When.BEFORE, times=0) if each.name == "connect" else each for each in plain(method)]

    world.run(migration, steps=steps, store=store)
    with world.store.reading() as view:
        assert view.get_migration(migration.id).phase is Phase.ROLLING_BACK
    owned = world.take_over(migration)
    assert owned.error is not None
    volume = world.assert_at_source(migration)
    assert owned.migration.error_code == "internal-error"
    assert "InjectedFailure" in volume.status_reason


def test_a_cancellation_that_was_impossible_is_not_tried_again(tmp_path: Path) -> None:
    """The driver has moved the volume, cannot move it back, and the worker dies before the commit point."""
    world = World(tmp_path, KINDS[0])
    migration = world.accept()
    left, right = world.driver("left"), world.driver("right")
    store = DyingStore(world.store, fail_at=10**9)

    class Cancelled(FailingStep):
        def run(self, move):  # type: ignore[no-untyped-def]
            outcome = super().run(move)
            with world.store.writing() as transaction:
                transaction.request_cancel(migration.id, requested_by="somebody")
            return outcome

    class Dying(FailingStep):
        def run(self, move):  # type: ignore[no-untyped-def]
            store.fail_at = 0
            return super().run(move)

    def steps(method: Method):  # type: ignore[no-untyped-def]
        kinds = {"driver_move": Cancelled, "cut_over": Dying}
        return [kinds[each.name](each, When.BEFORE, times=0) for each in steps_for(method)]

    right.migrate_volume = lambda *_: (False, None)  # type: ignore[method-assign]
    world.run(migration, steps=steps, store=store)
    with world.store.reading() as view:
        assert view.get_migration(migration.id).phase is Phase.COMPLETING
    owned: OwnedMigration = world.take_over(migration)
    assert owned.error is None
    world.assert_at_destination(migration)
    assert left is not right


def test_the_pattern_would_show_it(tmp_path: Path) -> None:
    """The check that these tests rely on fails when a single block is another."""
    world = World(tmp_path, KINDS[1])
    with (Path(world.driver("left").options["file_directory"]) / f"volume-{world.volume.id}").open("r+b") as handle:
        handle.seek(4096)
        handle.write(b"x")
    with pytest.raises(patterns.PatternMismatch):
        world.check(world.volume)


def test_a_request_of_somebody_else_is_not_taken_for_a_commit(tmp_path: Path) -> None:
    """What was not written stays to be written, though the journal has grown meanwhile."""
    world = World(tmp_path, KINDS[1])
    migration = world.accept()
    with world.store.writing() as transaction:
        transaction.append_journal(
            JournalEntry(migration_id=migration.id, kind=EntryKind.REQUEST, subject="limit", actor="somebody", epoch=1)
        )
    owned = OwnedMigration(migration)
    move = Move(world.store, world.backends, world.settings, owned)
    with world.store.writing() as transaction:
        transaction.append_journal(
            JournalEntry(migration_id=migration.id, kind=EntryKind.REQUEST, subject="pause", actor="somebody", epoch=1)
        )
    move.note(EntryKind.NOTE, "kept", {"it": "is"})
    move.refresh()
    with move.recording():
        pass
    assert move.recorded("kept", "it") == "is"
    with world.store.reading() as view:
        assert [entry.subject for entry in view.read_journal(migration.id)][-3:] == ["limit", "pause", "kept"]


def test_what_was_committed_though_reported_as_failed_is_not_written_twice(tmp_path: Path) -> None:
    world = World(tmp_path, KINDS[1])
    migration = world.accept()
    store = FailingStore(world.store, fail_at=1, when=When.AFTER)
    move = Move(store, world.backends, world.settings, OwnedMigration(migration))
    move.note(EntryKind.NOTE, "once")
    with pytest.raises(InjectedFailure), move.recording():
        pass
    move.refresh()
    with move.recording():
        pass
    with world.store.reading() as view:
        assert [entry.subject for entry in view.read_journal(migration.id)].count("once") == 1


def test_who_has_let_go_does_not_go_on_although_nobody_else_has_it_yet(tmp_path: Path) -> None:
    """The answer to the commit in which it let go was lost: another may take the migration at any time."""
    world = World(tmp_path, KINDS[1])
    migration = world.accept()
    move = Move(world.store, world.backends, world.settings, OwnedMigration(migration))
    with world.store.writing() as transaction:
        transaction.update_migration(migration, owner="", lease_expires_at=None)
    with pytest.raises(errors.LeaseLost):
        move.refresh()
    assert move.owned.is_lost
