"""A failure at any point of a migration leaves the volume whole, in one known place, and nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.migration.world import KINDS, Kind, World
from volmig.migration.steps import DRIVER_STEPS, HOST_STEPS, steps_for
from volmig.model import EntryKind, Method, Phase
from volmig.testing.faults import DyingStore, FailingStep, FailingStore, InjectedFailure, When, failing_steps


def step_points() -> list[pytest.param]:
    points = []
    for kind in KINDS:
        for step in DRIVER_STEPS if kind.method is Method.DRIVER else HOST_STEPS:
            for when in When:
                if when is When.IN_COMMIT and not step.commits:
                    continue
                points.append(pytest.param(kind, step.name, when, id=f"{kind.name}-{step.name}-{when.value}"))
    return points


@pytest.fixture(params=[False, True], ids=["unlocked", "locked"])
def lock_volume(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_without_failures_it_succeeds(tmp_path: Path, kind: Kind, lock_volume: bool) -> None:
    world = World(tmp_path, kind)
    migration = world.accept(lock_volume=lock_volume)
    assert migration.method is kind.method
    assert world.recorded().status.value == ("maintenance" if lock_volume else "available")
    owned = world.run(migration)
    assert owned.error is None
    world.assert_at_destination(migration)


@pytest.mark.parametrize(("kind", "step", "when"), step_points())
def test_failing_step(tmp_path: Path, kind: Kind, step: str, when: When, lock_volume: bool) -> None:
    world = World(tmp_path, kind)
    migration = world.accept(lock_volume=lock_volume)
    owned = world.run(migration, steps=failing_steps(step, when))
    if step == "retire_source":
        # Past the commit point there is only forward.
        assert owned.error is None
        world.assert_at_destination(migration)
        return
    volume = world.assert_at_source(migration)
    assert "InjectedFailure" in volume.status_reason
    assert owned.error is not None
    assert isinstance(owned.error.__cause__, InjectedFailure)
    assert owned.migration.error_code == "internal-error"
    assert owned.migration.error_hint


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("when", [When.BEFORE, When.AFTER], ids=lambda when: when.value)
def test_failing_transaction(tmp_path: Path, kind: Kind, when: When) -> None:
    """Each write to the store fails once: undone, or committed though it was reported as failed."""
    fail_at = 0
    while True:
        fail_at += 1
        directory = tmp_path / str(fail_at)
        directory.mkdir()
        world = World(directory, kind)
        migration = world.accept()
        store = FailingStore(world.store, fail_at=fail_at, when=when)
        world.run(migration, store=store)
        if store.writes < fail_at:
            break
        if world.recorded().host == world.destination:
            world.assert_at_destination(migration)
        else:
            world.assert_at_source(migration)
    # As many as the steps, and the end.
    steps = DRIVER_STEPS if kind.method is Method.DRIVER else HOST_STEPS
    assert fail_at > len(steps) + 1


DRIVER_CALLS = [
    ("left", "initialize_connection"),
    ("left", "terminate_connection"),
    ("left", "open_volume"),
    ("left", "delete_object"),
    ("left", "migrate_volume"),
    ("right", "create_volume"),
    ("right", "initialize_connection"),
    ("right", "terminate_connection"),
    ("right", "open_volume"),
    ("right", "update_migrated_volume"),
]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.driver == "fake"], ids=lambda kind: kind.name)
@pytest.mark.parametrize("action", ["fail", "fail_after", "nonsense"])
@pytest.mark.parametrize(("backend", "method"), DRIVER_CALLS, ids="-".join)
def test_failing_driver_call(tmp_path: Path, kind: Kind, backend: str, method: str, action: str) -> None:
    world = World(tmp_path, kind)
    migration = world.accept()
    driver = world.driver(backend)
    driver.faults.add(f"{method}@1:{action}")  # type: ignore[attr-defined]
    before = len(driver.calls)  # type: ignore[attr-defined]
    owned = world.run(migration)
    called = [name for name, _ in driver.calls[before:]]  # type: ignore[attr-defined]
    driver.faults.clear()  # type: ignore[attr-defined]
    if method not in called or method == "delete_object":
        # It plays no part in this way, or it comes after the commit point.
        assert owned.error is None
        world.assert_at_destination(migration)
        return
    volume = world.assert_at_source(migration)
    code = "driver-contract-broken" if action == "nonsense" else "driver-failed"
    assert owned.migration.error_code == code
    assert backend in volume.status_reason


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_second_worker_goes_on_wherever_the_first_has_left(tmp_path: Path, kind: Kind) -> None:
    """The first worker's store breaks for good at each write in turn; the second one finishes what it left."""

    die_at = 0
    while True:
        die_at += 1
        directory = tmp_path / str(die_at)
        directory.mkdir()
        world = World(directory, kind)
        migration = world.accept()
        store = DyingStore(world.store, fail_at=die_at)
        world.run(migration, store=store)
        if store.writes < die_at:
            break
        assert not _phase(world, migration.id).is_final
        owned = world.take_over(migration)
        assert owned.error is None
        world.assert_at_destination(migration)
    assert die_at > 3


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("step", ["create_destination", "connect", "copy", "verify", "disconnect", "driver_move"])
def test_cancelled_before_any_step(tmp_path: Path, kind: Kind, step: str) -> None:
    """A request to cancel that comes while a step runs is obeyed before the next one."""
    world = World(tmp_path, kind)
    migration = world.accept()
    asked: list[str] = []

    def steps(method: Method):  # type: ignore[no-untyped-def]
        chosen = steps_for(method)
        for each in chosen:
            if each.name == step and not asked:
                return [_Cancelling(each, world, migration.id, asked) if each is other else other for other in chosen]
        return chosen

    class _Cancelling(FailingStep):
        def __init__(self, wrapped, world, migration_id, asked):  # type: ignore[no-untyped-def]
            super().__init__(wrapped, When.BEFORE, times=0)
            self._world, self._migration_id, self._asked = world, migration_id, asked

        def run(self, move):  # type: ignore[no-untyped-def]
            outcome = super().run(move)
            with self._world.store.writing() as transaction:
                transaction.request_cancel(self._migration_id, requested_by="somebody")
            self._asked.append(self.name)
            return outcome

    owned = world.run(migration, steps=steps)
    if not asked:
        assert owned.error is None
        return
    volume = world.assert_at_source(migration, phase=Phase.CANCELLED)
    assert volume.status_reason == ""
    assert owned.migration.error_code == "migration-cancelled"
    assert "somebody" in owned.migration.error_message


def test_history_tells_intents_before_outcomes(tmp_path: Path) -> None:
    world = World(tmp_path, KINDS[1])
    migration = world.accept()
    world.run(migration)
    with world.store.reading() as view:
        journal = view.read_journal(migration.id)
    assert [entry.sequence for entry in journal] == list(range(1, len(journal) + 1))
    for step in HOST_STEPS:
        kinds = [entry.kind for entry in journal if entry.subject == step.name]
        assert kinds == [EntryKind.INTENT, EntryKind.DONE], step.name
    phases = [entry.subject for entry in journal if entry.kind is EntryKind.PHASE]
    assert phases == ["queued", "starting", "migrating", "completing", "success"]


def _phase(world: World, migration_id: str) -> Phase:
    with world.store.reading() as view:
        return view.get_migration(migration_id).phase
