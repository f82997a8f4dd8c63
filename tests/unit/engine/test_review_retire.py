"""A deletion that has begun may take effect at any later time; and nothing is gone back to that is not what it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.engine.world import DESTINATION, SOURCE, STORES, World, pattern_of
from tests.unit.waiting import LONG, until
from volmig import errors
from volmig.migration.steps.rollback import CutOverToKept
from volmig.model import EntryKind, Migration, Phase, RetiredObject, Volume
from volmig.testing import patterns
from volmig.transfer import Control, digest_of

MakeWorld = Callable[..., World]
WEEK = 7 * 86400
SLOW_DELETE = {"driver_call_timeouts": {"delete_object": "0.3"}}


def moved(world: World, *, seconds: int = WEEK, name: str = "data", **options: Any) -> tuple[Volume, Migration]:
    volume = world.create(name=name)
    handle = world.engine.migrate(
        volume.id, DESTINATION, force_host_copy=True, source_retention_seconds=seconds, **options
    )
    handle.result(LONG)
    return volume, handle.status()


def kept(world: World) -> RetiredObject:
    (retired,) = world.rows()["retired"]
    assert isinstance(retired, RetiredObject)
    return retired


def release(world: World) -> None:
    """Let hung calls end, and wait until they have."""
    world.fake("left").faults.clear()
    world.fake("left").faults.release()
    until(lambda: not world.engine.show_backend("left").calls_hanging)


def damage(world: World) -> None:
    """Change what was kept."""
    (name,) = world.objects("left")
    with (world.pool("left") / name).open("r+b") as file:
        file.write(b"\xee" * 4096)


# --- a deletion that has begun ------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("seconds", [0, WEEK])
def test_nothing_goes_back_to_storage_whose_deletion_hangs(make_world: MakeWorld, store: str, seconds: int) -> None:
    world = make_world(kind="handle", store=store, left=SLOW_DELETE)
    world.fake("left").faults.add("delete_object:hang")
    volume, done = moved(world, seconds=seconds)
    if seconds:
        assert kept(world).deletion_begun_at is None
        (left,) = world.engine.retire_migration(done.id)
        assert (left.attempts, "delete_object" in left.last_error) == (1, True)
    assert kept(world).deletion_begun_at is not None
    for discard in (False, True):
        with pytest.raises(errors.RollbackImpossible, match="has begun"):
            world.engine.rollback_migration(done.id, discard_changes=discard)
    release(world)
    until(lambda: world.engine.recover() or not world.rows()["retired"])
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_an_attempt_that_failed_is_a_beginning_too(make_world: MakeWorld) -> None:
    world = make_world(kind="path")
    _, done = moved(world)
    world.fake("left").faults.add("delete_object@1:fail")
    world.engine.retire_migration(done.id)
    with pytest.raises(errors.RollbackImpossible, match="has begun"):
        world.engine.rollback_migration(done.id)
    begun = [entry.data["reason"] for entry in world.engine.history(done.id) if entry.subject == "old-storage"]
    assert begun == ["its deletion begins, and it cannot be gone back to any more"]


def test_the_commit_of_a_rollback_looks_once_more(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    volume, done = moved(world)
    run, retired = CutOverToKept.run, kept(world)

    def late(self: CutOverToKept, move: Any) -> Any:
        outcome = run(self, move)
        with world.store.writing() as transaction:
            transaction.begin_deletion(retired.id)
        return outcome

    monkeypatch.setattr(CutOverToKept, "run", late)
    final = world.engine.rollback_migration(done.id).wait(LONG)
    assert (final.phase, final.error_code) == (Phase.ERROR, "rollback-impossible")
    world.engine.retire_migration(done.id)
    world.assert_at(volume, DESTINATION, Phase.ERROR)


def test_a_rollback_that_is_accepted_meanwhile_keeps_the_old_storage(make_world: MakeWorld) -> None:
    """It is accepted after the drivers were asked, and before the deletion begins."""
    world = make_world(kind="path")
    volume, done = moved(world)
    driver = world.fake("right")
    look = driver.volume_exists
    accepted: list[str] = []

    def volume_exists(volume: Volume) -> bool:
        if not accepted:
            accepted.append("")
            accepted.append(world.engine.request_rollback(done.id).id)
        return look(volume)

    driver.volume_exists = volume_exists  # type: ignore[method-assign]
    (left,) = world.engine.retire_migration(done.id)
    assert left.deletion_begun_at is None
    world.engine.run_migration(accepted[1]).result(LONG)
    world.assert_at(volume, SOURCE, Phase.SUCCESS)


def test_no_second_call_for_an_object_whose_first_one_hangs(make_world: MakeWorld) -> None:
    world = make_world(kind="handle", left=SLOW_DELETE)
    _, done = moved(world)
    world.fake("left").faults.add("delete_object@1:hang")
    world.engine.retire_migration(done.id)
    other, _ = moved(world, name="other", seconds=0)
    (left,) = world.engine.retire_migration(done.id)
    assert "still runs" in left.last_error
    calls = [volume_id for method, volume_id in world.fake("left").calls if method == "delete_object"]
    assert len(calls) == len(set(calls))
    assert other.id not in {retired.volume_id for retired in world.rows()["retired"]}
    release(world)
    assert world.engine.retire_migration(done.id) == []


def test_without_identities_the_old_name_is_not_taken_again(make_world: MakeWorld) -> None:
    world = make_world(kind="path", left=SLOW_DELETE)
    for name in ("left", "right"):
        world.fake(name).identify_object = lambda volume: None  # type: ignore[method-assign]  # noqa: ARG005
    world.fake("left").faults.add("delete_object@1:hang")
    volume, _ = moved(world, seconds=0)
    # Another process deletes it, and knows nothing of the call that hangs here.
    other, _ = world.open_engine()
    other.recover()
    assert world.rows()["retired"] == []
    back = world.engine.migrate(volume.id, SOURCE)
    assert back.result(LONG).name_id not in (None, volume.id)
    assert back.status().method != "driver"
    release(world)
    world.assert_at(volume, SOURCE, Phase.SUCCESS)


# --- what hangs holds up nothing else -----------------------------------------------------------


def make_due(world: World) -> None:
    with world.store.writing() as transaction:
        for retired in transaction.list_retired():
            transaction.schedule_retired(retired.id, delete_after=transaction.now() - timedelta(seconds=1))


def test_one_round_waits_for_one_hung_call_of_a_backend(make_world: MakeWorld) -> None:
    world = make_world(kind="handle", left=SLOW_DELETE)
    for number in range(4):
        moved(world, name=f"v{number}")
    make_due(world)
    world.fake("left").faults.add("delete_object:hang")
    for hanging in (1, 2):
        world.engine.recover()
        assert world.engine.show_backend("left").calls_hanging == hanging
    release(world)
    world.engine.recover()
    assert world.rows()["retired"] == []


def test_a_backend_that_hangs_has_a_pace_of_its_own(make_world: MakeWorld) -> None:
    world = make_world(kind="handle", left={"driver_call_timeouts": {"delete_object": "600"}})
    volume, _ = moved(world)
    back = world.create(host=DESTINATION, name="back")
    make_due(world)
    world.fake("left").faults.add("delete_object:hang")
    world.engine.keep_recovering(0.05)
    until(lambda: "delete_object" in [method for method, _ in world.fake("left").calls])
    world.engine.migrate(back.id, SOURCE, force_host_copy=True, source_retention_seconds=1).result(LONG)
    until(lambda: [each.volume_id for each in world.rows()["retired"]] == [volume.id])
    release(world)
    until(lambda: not world.rows()["retired"])


def test_two_recoveries_at_once(make_world: MakeWorld) -> None:
    world = make_world(kind="handle")
    volume, done = moved(world)
    other, _ = world.open_engine()
    driver = world.fake("left")
    entered: list[str] = []

    def delete_object(volume: Volume, identity: str | None) -> None:
        entered.append(volume.id)
        other.recover()
        raise errors.VolumeInUse(volume=volume.id, users="somebody")

    driver.delete_object = delete_object  # type: ignore[method-assign]
    assert world.engine.retire_migration(done.id) == []
    assert entered == [volume.id]
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


# --- what is gone back to -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "handle"])
@pytest.mark.parametrize("discard", [False, True])
def test_old_storage_that_is_not_what_it_was(make_world: MakeWorld, kind: str, discard: bool) -> None:
    world = make_world(kind=kind)
    volume, done = moved(world)
    damage(world)
    final = world.engine.rollback_migration(done.id, discard_changes=discard).wait(LONG)
    assert (final.phase, final.error_code) == (Phase.ERROR, "old-storage-damaged")
    assert SOURCE in final.error_message
    assert "--discard" not in final.error_hint
    assert kept(world).migration_id == done.id
    world.engine.retire_migration(done.id)
    world.assert_at(volume, DESTINATION, Phase.ERROR)


def test_both_changed_alike_is_no_proof(make_world: MakeWorld) -> None:
    world = make_world()
    volume, done = moved(world)
    damage(world)
    (name,) = world.objects("left")
    world.path(world.engine.show_volume(volume.id)).write_bytes((world.pool("left") / name).read_bytes())
    final = world.engine.rollback_migration(done.id).wait(LONG)
    assert (final.phase, final.error_code) == (Phase.ERROR, "old-storage-damaged")


def test_without_a_digest_there_is_nothing_to_prove_it_by(make_world: MakeWorld) -> None:
    world = make_world()
    volume, done = moved(world, verify="none")
    damage(world)
    final = world.engine.rollback_migration(done.id).wait(LONG)
    assert final.error_code == "changes-would-be-lost"
    assert world.engine.rollback_migration(done.id, discard_changes=True).result(LONG).host == SOURCE
    # The volume as it was is not lost by that.
    (name,) = world.objects("right")
    patterns.check(world.pool("right") / name, pattern_of(volume))


@pytest.mark.parametrize("kind", ["file", "handle"])
def test_a_rollback_is_rolled_back(make_world: MakeWorld, kind: str) -> None:
    world = make_world(kind=kind)
    volume, done = moved(world)
    there = world.engine.show_volume(volume.id)
    with world.path(there).open("r+b") as file:
        file.write(b"written since")
    content = world.path(there).read_bytes()
    back = world.engine.rollback_migration(done.id, discard_changes=True)
    assert back.result(LONG).host == SOURCE
    patterns.check(world.path(world.engine.show_volume(volume.id)), pattern_of(volume))
    retired = kept(world)
    assert (retired.migration_id, retired.host, retired.deletion_begun_at) == (back.id, DESTINATION, None)
    assert retired.delete_after is not None
    with world.store.reading() as view:
        assert retired.delete_after - view.now() > timedelta(seconds=WEEK - 600)
    world.engine.recover()
    final = world.engine.rollback_migration(back.id).wait(LONG)
    assert final.error_code == "changes-would-be-lost"
    again = world.engine.rollback_migration(back.id, discard_changes=True)
    assert again.result(LONG).host == DESTINATION
    assert world.path(world.engine.show_volume(volume.id)).read_bytes() == content
    assert kept(world).migration_id == again.id
    assert [each for each in world.engine.history(again.id) if each.kind is EntryKind.FAILED] == []


def test_the_proof_of_old_storage_is_cancelled(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    volume, done = moved(world)
    handle = world.engine.request_rollback(done.id, discard_changes=True)

    def slowly(*args: Any, control: Control, **options: Any) -> str:
        world.engine.cancel_migration(handle.id)
        deadline = time.monotonic() + LONG
        while not control.cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        return digest_of(*args, control=control, **options)

    monkeypatch.setattr("volmig.migration.steps.rollback.digest_of", slowly)
    assert world.engine.run_migration(handle.id).wait(LONG).phase is Phase.CANCELLED
    assert kept(world).migration_id == done.id
    assert world.engine.show_volume(volume.id).host == DESTINATION
