"""Workers that are suspended for longer than their lease: another one ends the migration, and the first writes nothing.

What the first one could still do is what it had asked of a driver before; that must harm nothing either.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from volmig.model import EntryKind, Migration, Phase, Volume
from volmig.testing import patterns

from ..cli_support import until
from .drivers import BEFORE_COMMIT
from .yard import LEFT, MIB, RIGHT, Worker, Yard, without_grace

SIZE = 4 * MIB + 4097
SLOW = 2 * MIB


def wake_up(worker: Worker) -> str:
    """Let a suspended worker go on until its end; return what it said."""
    worker.signal(signal.SIGCONT)
    said = worker.said()
    assert "Traceback" not in said
    return said


def assert_knows(said: str, migration_id: str) -> None:
    """It must have said that the migration is not its own any more, and have left it or found that it has ended."""
    *log, last = said.strip().splitlines()
    if last != "ended: None":
        assert last.startswith(("ended: [lease-lost]", "ended: [migration-abandoned]")), said
        assert any(f"No worker runs migration {migration_id}" in line or "not in the hands" in line for line in log)


def ended_by_another(yard: Yard, migration_id: str) -> Migration:
    """Let another worker, of another process, bring a migration to its end, and end itself."""
    other = yard.recoverer("other")
    final = yard.await_end(migration_id)
    assert "Traceback" not in other.end()
    return final


def assert_handed_over(yard: Yard, migration: Migration) -> None:
    """The history says who took over from whom, and nobody has written after the next one did."""
    history = yard.history(migration.id)
    epochs = [entry.epoch for entry in history if entry.kind is not EntryKind.REQUEST]
    assert epochs == sorted(epochs)
    first, second = (e for e in history if (e.kind, e.subject) == (EntryKind.NOTE, "worker"))
    assert (first.epoch, second.epoch) == (1, 2)
    assert second.data["takes_over_from"] == first.data["owner"] != second.data["owner"]


# --- in the middle of the data --------------------------------------------------------------------


def begin(yard: Yard, *, size_bytes: int = SIZE, **options: object) -> tuple[Volume, Migration, Worker]:
    volume = yard.create(size_bytes)
    queued = yard.engine.request_migration(
        volume.id, RIGHT, force_host_copy=True, bandwidth_limit_bytes=SLOW, **options
    )
    return volume, queued, yard.runner(queued.id, "first")


def test_in_a_copy(yard: Yard) -> None:
    """The next one uses an object of its own; whatever the first has under way does not reach it."""
    volume, queued, first = begin(yard)
    yard.await_copy(queued.id)
    yard.suspend(first)
    yard.engine.limit_migration(queued.id, 0)
    final = ended_by_another(yard, queued.id)
    assert final.phase is Phase.SUCCESS
    assert final.destination_id != queued.destination_id
    assert_handed_over(yard, final)
    now = yard.assert_whole(volume, host=RIGHT)
    # Meanwhile the volume is in use.
    patterns.fill(yard.path(now), patterns.dense(SIZE, seed=2))
    before = yard.state()
    assert_knows(wake_up(first), queued.id)
    assert yard.state() == before
    assert yard.engine.recover() == []
    assert yard.state() == before
    yard.assert_whole(volume, seed=2, host=RIGHT)
    yard.assert_no_records_left()


def test_in_a_copy_that_is_cancelled_meanwhile(yard: Yard) -> None:
    volume, queued, first = begin(yard)
    yard.await_copy(queued.id)
    yard.suspend(first)
    yard.engine.cancel_migration(queued.id)
    assert ended_by_another(yard, queued.id).phase is Phase.CANCELLED
    before = yard.state()
    assert_knows(wake_up(first), queued.id)
    assert yard.state() == before
    yard.assert_whole(volume, host=LEFT)
    yard.assert_no_records_left()


def test_in_a_copy_of_which_nobody_knows(yard: Yard) -> None:
    """Nobody has taken over: the first one may not go on all the same, since somebody could have."""
    volume, queued, first = begin(yard)
    yard.await_copy(queued.id)
    yard.suspend(first)
    until(lambda: yard.engine.is_abandoned(yard.now(queued.id)), "its lease is over")
    before = yard.state()
    assert_knows(wake_up(first), queued.id)
    assert yard.state() == before
    yard.engine.limit_migration(queued.id, 0)
    final = ended_by_another(yard, queued.id)
    assert final.phase is Phase.SUCCESS
    # The first one is gone by now, so that there is no need for another object.
    assert final.destination_id == queued.destination_id
    yard.assert_whole(volume, host=RIGHT)
    yard.assert_no_records_left()


def test_in_the_verification(yard: Yard) -> None:
    volume, queued, first = begin(yard, verify="compare")
    until(lambda: yard.now(queued.id).stage == "verify", "the verification is under way")
    yard.suspend(first)
    yard.engine.limit_migration(queued.id, 0)
    final = ended_by_another(yard, queued.id)
    assert final.phase is Phase.SUCCESS
    assert_handed_over(yard, final)
    before = yard.state()
    assert_knows(wake_up(first), queued.id)
    assert yard.state() == before
    yard.assert_whole(volume, host=RIGHT)
    yard.assert_no_records_left()


def test_a_lease_that_is_over_early(yard: Yard) -> None:
    """As when the store's clock jumps: the first worker runs, and learns of it with its next heartbeat."""
    volume, queued, first = begin(yard, size_bytes=24 * MIB)
    yard.await_copy(queued.id)
    yard.end_lease(queued.id)
    other = yard.recoverer("other")
    said = first.said()
    assert "Traceback" not in said
    assert_knows(said, queued.id)
    yard.engine.limit_migration(queued.id, 0)
    final = yard.await_end(queued.id)
    other.end()
    assert final.phase is Phase.SUCCESS
    assert_handed_over(yard, final)
    yard.assert_whole(volume, host=RIGHT)
    yard.assert_no_records_left()


def test_a_lease_that_is_over_long_before_the_next_heartbeat(make_yard: Callable[..., Yard]) -> None:
    """The first worker fails, since the object was taken from it, and finds the migration in other hands."""
    yard = make_yard(lease_seconds=60.0, heartbeat_seconds=20.0, driver_timeout_seconds=60.0)
    volume = yard.create(SIZE)
    queued = yard.engine.request_migration(volume.id, RIGHT, force_host_copy=True, bandwidth_limit_bytes=SLOW)
    yard.hold("after create_volume")
    first = yard.runner(queued.id, "first")
    yard.await_arrival("after create_volume")
    yard.end_lease(queued.id)
    other = yard.recoverer("other")
    until(lambda: yard.now(queued.id).epoch == 2, "another one has taken over")
    until(lambda: yard.now(queued.id).phase is Phase.MIGRATING, "it copies")
    taken_over = yard.now(queued.id)
    assert taken_over.destination_id != queued.destination_id
    yard.open_gate()
    said = first.said()
    assert "ended: [lease-lost]" in said
    final = yard.await_end(queued.id)
    other.end()
    assert (final.phase, final.owner, final.destination_id) == (Phase.SUCCESS, "", taken_over.destination_id)
    assert {entry.actor for entry in yard.history(queued.id) if entry.epoch == 2} == {taken_over.owner}
    yard.assert_whole(volume, host=RIGHT)
    with yard.store.reading() as view:
        assert (list(view.list_reservations()), list(view.list_checkpoints())) == ([], [])
        # The first one's object is looked for once more when its creation must be over.
        assert [retired.name_id for retired in view.list_retired()] == [queued.destination_id]


# --- in a call of a driver ------------------------------------------------------------------------


def suspended_at(yard: Yard, place: str, *, force_host_copy: bool = True) -> tuple[Volume, Migration, Worker]:
    """Return a volume and its migration, whose worker is suspended where it has just begun a call of a driver."""
    volume = yard.create(SIZE)
    queued = yard.engine.request_migration(volume.id, RIGHT, force_host_copy=force_host_copy)
    yard.hold(place)
    first = yard.runner(queued.id, "first")
    yard.await_arrival(place)
    yard.suspend(first)
    yard.open_gate()
    return volume, queued, first


def assert_settled(yard: Yard, volume: Volume, host: str | None) -> None:
    """After one more recovery the volume is whole and free in one place, and later on nothing is left over."""
    yard.engine.recover()
    now = yard.engine.show_volume(volume.id)
    assert host is None or now.host == host
    patterns.check(yard.path(now), patterns.dense(SIZE))

    def is_cleared_up() -> bool:
        yard.engine.recover()
        with yard.store.reading() as view:
            return not view.list_retired()

    until(is_cleared_up, "what a call may have made too late was looked for once more")
    yard.assert_whole(volume, host=host)
    yard.assert_no_records_left()


def assert_nothing_recorded(before: dict[str, Any], after: dict[str, Any], *, made_late: bool) -> None:
    """The first worker, when it woke up, has written nothing but that it has made an object that nobody needs."""
    added = [row for row in after["rows"]["retired"] if row not in before["rows"]["retired"]]
    assert len(added) == int(made_late)
    assert {**after["rows"], "retired": []} == {**before["rows"], "retired": []}


WITH_NO_EFFECT = (
    "before update_migrated_volume",
    "after update_migrated_volume",
    BEFORE_COMMIT,
    "before delete_object",
    "after create_volume",
)
"""Places at which a call that goes on later finds that all was done."""


@pytest.mark.parametrize("place", [*WITH_NO_EFFECT, "before create_volume"])
def test_in_a_call_for_a_copy(yard: Yard, place: str) -> None:
    volume, queued, first = suspended_at(yard, place)
    final = ended_by_another(yard, queued.id)
    assert final.phase is Phase.SUCCESS
    assert_handed_over(yard, final)
    before = yard.state()
    said = wake_up(first)
    assert_knows(said, queued.id)
    after = yard.state()
    assert_nothing_recorded(before, after, made_late=place == "before create_volume")
    if place in WITH_NO_EFFECT:
        assert contents(after) == contents(before)
    assert_settled(yard, volume, RIGHT)


@pytest.mark.parametrize("place", ["before create_volume", "after create_volume"])
def test_in_a_call_for_a_copy_that_is_cancelled_meanwhile(yard: Yard, place: str) -> None:
    volume, queued, first = suspended_at(yard, place)
    yard.engine.cancel_migration(queued.id)
    assert ended_by_another(yard, queued.id).phase is Phase.CANCELLED
    before = yard.state()
    assert_knows(wake_up(first), queued.id)
    assert_nothing_recorded(before, yard.state(), made_late=place == "before create_volume")
    assert_settled(yard, volume, LEFT)


@pytest.mark.parametrize("place", ["before migrate_volume", "after migrate_volume"])
def test_in_the_drivers_own_move(yard: Yard, place: str) -> None:
    volume, queued, first = suspended_at(yard, place, force_host_copy=False)
    final = ended_by_another(yard, queued.id)
    assert final.phase is Phase.SUCCESS
    assert_handed_over(yard, final)
    before = yard.state()
    assert_knows(wake_up(first), queued.id)
    after = yard.state()
    assert recorded(after) == recorded(before)
    assert after["files"] == before["files"]
    assert_settled(yard, volume, RIGHT)


@pytest.mark.parametrize("place", ["before migrate_volume", "after migrate_volume"])
def test_in_the_drivers_own_move_that_is_cancelled_meanwhile(yard: Yard, place: str) -> None:
    volume, queued, first = suspended_at(yard, place, force_host_copy=False)
    yard.engine.cancel_migration(queued.id)
    # A call that may be about to move the volume would take with it what somebody writes to it until then.
    final = ended_by_another(yard, queued.id)
    assert (final.phase, final.error_code) == (Phase.ERROR, "location-doubtful")
    before = yard.state()
    assert_knows(wake_up(first), queued.id)
    assert recorded(yard.state()) == recorded(before)
    # By then its end is known, and the record follows it.
    assert_settled(yard, volume, RIGHT)


@pytest.mark.parametrize("place", ["before migrate_volume", "before update_migrated_volume", "before delete_object"])
def test_in_a_call_while_the_volume_goes_on_to_move(yard: Yard, place: str) -> None:
    """The volume is back where it was, and full of other data, when the first worker wakes up."""
    volume, queued, first = suspended_at(yard, place, force_host_copy=place != "before migrate_volume")
    assert ended_by_another(yard, queued.id).phase is Phase.SUCCESS
    with without_grace():
        yard.engine.migrate(volume.id, LEFT, force_host_copy=True).result(60)
    now = yard.assert_whole(volume, host=LEFT)
    patterns.fill(yard.path(now), patterns.dense(SIZE, seed=2))
    before = yard.state()
    assert_knows(wake_up(first), queued.id)
    assert recorded(yard.state()) == recorded(before)
    yard.engine.recover()
    yard.assert_whole(volume, seed=2)
    yard.assert_no_records_left()


def recorded(state: dict[str, object]) -> dict[str, object]:
    """Return the rows of a state, without the one thing that a worker enters in a history that is not its own any more:
    that a call of a driver has ended, for which others wait."""
    rows = state["rows"]
    assert isinstance(rows, dict)
    return {**rows, "journal": [row for row in rows["journal"] if row[2:4] != ("note", "driver-call")]}


def contents(state: dict[str, object]) -> dict[str, object]:
    """Return the files of a state with what is in them, leaving out those of the pools themselves."""
    files = state["files"]
    assert isinstance(files, dict)
    return {path: facts for path, facts in files.items() if "/.volmig" not in path}
