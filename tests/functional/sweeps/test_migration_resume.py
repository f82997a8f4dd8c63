"""A copy goes on where its worker has died, and only where nobody else can reach its object any more."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.migration.world import KINDS, World
from volmig import errors
from volmig.manager.processes import ProcessIdentity
from volmig.migration.ownership import OwnedMigration
from volmig.migration.runner import MigrationRunner
from volmig.migration.takeover import LET_GO
from volmig.model import EntryKind, JournalEntry, Migration, Phase
from volmig.store import Store
from volmig.testing import patterns
from volmig.testing.faults import DyingStore, FailingStep, When, steps_for
from volmig.transfer.ends.pins import pin
from volmig.transfer.flow import copying

MIB = 1024 * 1024
SIZE = 40 * MIB + 513
BLOCK = next(kind for kind in KINDS if kind.name == "file-block")


class DeadAtCheckpoint(DyingStore):
    """The store of a worker that dies when it has recorded so many checkpoints."""

    def __init__(self, store: Store, *, checkpoints: int) -> None:
        super().__init__(store, fail_at=10**9)
        self._left = checkpoints

    def writing(self) -> Any:
        return _Counting(super().writing(), self)

    def note_checkpoint(self) -> None:
        self._left -= 1
        if not self._left:
            self.fail_at = 0


class _Counting:
    """A transaction that tells of the checkpoint recorded in it, when that is committed."""

    def __init__(self, inner: Any, store: DeadAtCheckpoint) -> None:
        self._inner, self._store, self._seen = inner, store, False

    def __enter__(self) -> Any:
        transaction = self._inner.__enter__()
        plain = transaction.save_checkpoint

        def save(*arguments: Any) -> None:
            plain(*arguments)
            self._seen = True

        return _With(transaction, save_checkpoint=save)

    def __exit__(self, *arguments: Any) -> Any:
        answer = self._inner.__exit__(*arguments)
        if self._seen:
            self._store.note_checkpoint()
        return answer


class _With:
    def __init__(self, inner: Any, **methods: Any) -> None:
        self._inner = inner
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("tests.unit.migration.world.SIZE", SIZE)
    # The least that the digests allow: so that small volumes have checkpoints.
    monkeypatch.setattr(copying, "_AT_RISK_BYTES", 16 * MIB)
    world = World(tmp_path, BLOCK)
    world.pattern = patterns.dense(SIZE)
    world.fill(world.volume)
    return world


def dead() -> ProcessIdentity:
    return dataclasses.replace(ProcessIdentity.own("here"), pid=2**22 + 1)


def run(
    world: World,
    migration: Migration,
    *,
    process: ProcessIdentity | None = None,
    store: Store | None = None,
    steps: Callable[..., Any] = steps_for,
    is_patient: bool = False,
) -> OwnedMigration:
    owned = OwnedMigration(migration)
    owned.is_patient = is_patient
    MigrationRunner(store or world.store, world.backends, world.settings, owned, process=process, steps_for=steps).run()
    return owned


def take_over(
    world: World, migration: Migration, *, process: ProcessIdentity | None = None, is_patient: bool = False
) -> OwnedMigration:
    with world.store.writing() as transaction:
        transaction.update_migration(transaction.get_migration(migration.id), owner="")
        claimed = transaction.claim_migration(migration.id, owner="second", lease_seconds=60.0)
    return run(world, claimed, process=process, is_patient=is_patient)


def journal(world: World, migration: Migration) -> list[JournalEntry]:
    with world.store.reading() as view:
        return list(view.read_journal(migration.id))


def copied(world: World, migration: Migration) -> dict[str, Any]:
    """Return the outcome of the last copy."""
    done = [entry for entry in journal(world, migration) if (entry.kind, entry.subject) == (EntryKind.DONE, "copy")]
    return dict(done[-1].data)


def assert_arrived(world: World, migration: Migration) -> None:
    world.assert_at_destination(migration)
    with world.store.reading() as view:
        assert view.list_checkpoints() == []


def die_at_checkpoint(world: World, *, process: ProcessIdentity, checkpoints: int = 1) -> Migration:
    migration = world.accept()
    run(world, migration, process=process, store=DeadAtCheckpoint(world.store, checkpoints=checkpoints))
    with world.store.reading() as view:
        assert view.get_migration(migration.id).phase is Phase.MIGRATING
        assert view.list_checkpoints() == [migration.id]
    return migration


def test_a_copy_goes_on_from_its_checkpoint(world: World) -> None:
    migration = die_at_checkpoint(world, process=dead())
    owned = take_over(world, migration)
    assert owned.error is None
    assert owned.migration.destination_id == migration.destination_id
    outcome = copied(world, migration)
    assert outcome["bytes_resumed"] >= 16 * MIB
    assert outcome["bytes_copied"] == SIZE - outcome["bytes_resumed"]
    assert owned.migration.source_digest == owned.migration.destination_digest != ""
    assert_arrived(world, migration)


def test_a_copy_goes_on_after_two_deaths(world: World) -> None:
    migration = die_at_checkpoint(world, process=dead())
    with world.store.writing() as transaction:
        transaction.update_migration(transaction.get_migration(migration.id), owner="")
        claimed = transaction.claim_migration(migration.id, owner="second", lease_seconds=60.0)
    run(world, claimed, process=dead(), store=DeadAtCheckpoint(world.store, checkpoints=1))
    owned = take_over(world, migration)
    assert owned.error is None
    assert copied(world, migration)["bytes_resumed"] >= 32 * MIB
    assert_arrived(world, migration)


def test_the_object_of_a_worker_that_may_wake_up_is_given_up(world: World) -> None:
    migration = die_at_checkpoint(world, process=ProcessIdentity.own("here"))
    owned = take_over(world, migration)
    assert owned.error is None
    assert owned.migration.destination_id != migration.destination_id
    assert copied(world, migration)["bytes_resumed"] == 0
    assert_arrived(world, migration)


def test_one_living_worker_among_dead_ones_is_enough(world: World) -> None:
    migration = die_at_checkpoint(world, process=ProcessIdentity.own("here"))
    with world.store.writing() as transaction:
        transaction.update_migration(transaction.get_migration(migration.id), owner="")
        claimed = transaction.claim_migration(migration.id, owner="second", lease_seconds=60.0)
    # It dies before it has made an object of its own.
    run(world, claimed, process=dead(), store=DyingStore(world.store, fail_at=1))
    owned = take_over(world, migration)
    assert owned.migration.destination_id != migration.destination_id
    assert_arrived(world, migration)


def test_an_object_that_was_put_in_its_place_is_not_gone_on_with(world: World) -> None:
    migration = die_at_checkpoint(world, process=dead())
    directory = Path(world.driver("right").options["file_directory"])
    path = directory / f"volume-{migration.destination_id}"
    stranger = directory / "stranger"
    stranger.write_bytes(path.read_bytes())
    stranger.rename(path)
    owned = take_over(world, migration)
    assert owned.error is None
    assert owned.migration.destination_id != migration.destination_id
    # Nobody but its owner may delete it.
    assert path.exists()
    path.unlink()
    assert_arrived(world, migration)


def test_a_source_that_was_written_to_is_copied_from_its_beginning(world: World) -> None:
    migration = die_at_checkpoint(world, process=dead())
    world.pattern = patterns.dense(SIZE, seed=7)
    world.fill(world.volume)
    owned = take_over(world, migration)
    assert owned.error is None
    assert copied(world, migration)["bytes_resumed"] == 0
    assert any("begins_anew" in entry.data for entry in journal(world, migration))
    assert_arrived(world, migration)


def test_garbage_behind_the_checkpoint_is_overwritten_by_zeroes_too(world: World) -> None:
    world.pattern = patterns.holed(SIZE)
    world.fill(world.volume)
    migration = die_at_checkpoint(world, process=dead())
    path = Path(world.driver("right").options["file_directory"]) / f"volume-{migration.destination_id}"
    with path.open("r+b") as file:
        file.seek(33 * MIB)
        file.write(os.urandom(MIB))
    owned = take_over(world, migration)
    assert owned.error is None
    assert_arrived(world, migration)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 100])
def test_a_damaged_checkpoint_is_not_used(world: World, damage: bytes) -> None:
    migration = die_at_checkpoint(world, process=dead())
    with world.store.writing() as transaction:
        transaction.save_checkpoint(transaction.get_migration(migration.id), damage)
    owned = take_over(world, migration)
    assert owned.error is None
    assert copied(world, migration)["bytes_resumed"] == 0
    assert_arrived(world, migration)


def test_a_death_while_it_is_proved_costs_no_second_copy(world: World) -> None:
    migration = world.accept()
    store = DyingStore(world.store, fail_at=10**9)

    class Dying(FailingStep):
        def run(self, move):  # type: ignore[no-untyped-def]
            store.fail_at = 0
            return super().run(move)

    run(
        world,
        migration,
        process=dead(),
        store=store,
        steps=lambda method: [Dying(s, When.BEFORE, times=0) if s.name == "verify" else s for s in steps_for(method)],
    )
    owned = take_over(world, migration)
    assert owned.error is None
    assert owned.migration.destination_id == migration.destination_id
    assert copied(world, migration)["bytes_resumed"] >= 16 * MIB
    assert_arrived(world, migration)


def test_a_store_that_is_busy_for_a_checkpoint_does_not_end_the_copy(world: World, monkeypatch: Any) -> None:

    from volmig.migration.move import Move

    tried = []

    def busy(self: Move, data: bytes) -> None:
        tried.append(data)
        raise errors.StoreBusy(database="it", seconds="1")

    monkeypatch.setattr(Move, "save_checkpoint", busy)
    migration = world.accept()
    owned = run(world, migration)
    assert owned.error is None
    assert tried
    assert_arrived(world, migration)


def test_requests_that_outlive_their_worker_do_not_reach_the_volume(world: World) -> None:
    """As when its storage hangs: the kernel carries out what it was handed whenever the storage answers."""
    migration = die_at_checkpoint(world, process=dead())
    path = Path(world.driver("right").options["file_directory"]) / f"volume-{migration.destination_id}"
    fd = os.open(path, os.O_RDWR)
    assert pin(fd)
    try:
        owned = take_over(world, migration)
        assert owned.error is None
        assert owned.migration.destination_id != migration.destination_id
        assert copied(world, migration)["bytes_resumed"] == 0
        os.pwrite(fd, b"late", 0)
    finally:
        os.close(fd)
    assert_arrived(world, migration)


def test_a_worker_that_has_let_go_has_nothing_under_way(world: World) -> None:
    """Whoever else holds the object then is none of volmig's."""
    migration = die_at_checkpoint(world, process=dead())
    with world.store.writing() as transaction:
        transaction.append_journal(
            JournalEntry(migration_id=migration.id, kind=EntryKind.NOTE, subject=LET_GO, actor="first", epoch=1)
        )
    owned = take_over(world, migration)
    assert owned.migration.destination_id == migration.destination_id
    assert_arrived(world, migration)


def test_a_worker_without_a_backend_leaves_the_migration_to_others(world: World) -> None:
    migration = die_at_checkpoint(world, process=dead())
    directory = Path(world.driver("right").options["file_directory"])
    stats = world.driver("right").get_volume_stats
    world.driver("right").get_volume_stats = lambda **_: {**stats(), "down_reason": "away"}  # type: ignore[assignment]
    for _ in range(3):
        owned = take_over(world, migration, is_patient=True)
        assert isinstance(owned.error, errors.BackendDown)
        assert owned.migration.owner == ""
    with world.store.reading() as view:
        assert view.get_migration(migration.id).phase is Phase.MIGRATING
        assert view.list_checkpoints() == [migration.id]
    entries = journal(world, migration)
    world.driver("right").get_volume_stats = stats  # type: ignore[method-assign]
    assert journal(world, migration) == entries
    assert (directory / f"volume-{migration.destination_id}").exists()
    take_over(world, migration)
    assert copied(world, migration)["bytes_resumed"] >= 16 * MIB
    assert_arrived(world, migration)
