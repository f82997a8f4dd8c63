"""Requests that die at any point are ended by others, wholly, and nobody works on a volume beside another."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.manager.world import SIZE, World
from tests.unit.waiting import let_go, until
from volmig import errors
from volmig.manager.processes import ProcessIdentity
from volmig.manager.volumes import VolumeManager
from volmig.manager.volumes.operations import Operation, longest_seconds
from volmig.model import Method, Migration, Phase, RetiredObject, Snapshot, Volume, VolumeStatus
from volmig.store import Store
from volmig.testing.faults import DyingStore, FailingStore, InjectedFailure, When

OWN = ProcessIdentity.own("here")
DEAD = replace(OWN, start_time_ticks=1)
"""A process that has ended: the one that has its id now was started at another time."""
FAR = replace(OWN, host="there")
"""A process of which nobody here can say whether it has ended."""


class Killed(BaseException):
    """The end of the process: nothing of it runs any more."""


@pytest.fixture
def typed(world: World) -> World:
    world.driver.types = {"fast"}
    return world


def manager_of(world: World, store: Store | None = None, process: ProcessIdentity = DEAD) -> VolumeManager:
    return VolumeManager(store or world.store, world.backends, settle=world._settle, process=process)


REQUESTS: dict[str, Callable[[VolumeManager, Volume], Any]] = {
    "create": lambda manager, volume: manager.create(replace(volume, id="0d4f5c1e-0000-4000-8000-0000000000aa")),
    "delete": lambda manager, volume: manager.delete(volume.id),
    "extend": lambda manager, volume: manager.extend(volume.id, 2 * SIZE),
    "create_snapshot": lambda manager, volume: manager.create_snapshot(volume.id, name="mine"),
    "delete_snapshot": lambda manager, volume: manager.delete_snapshot(volume.id, volume.snapshots[0].id),
    "retype": lambda manager, volume: manager.retype(volume.id, "fast"),
    "unmanage": lambda manager, volume: manager.unmanage(volume.id),
}
CALLS = {"create": "create_volume", "delete": "delete_volume", "extend": "extend_volume"}
DRIVER_CALLS = {name: CALLS.get(name, name) for name in REQUESTS}


def prepared(world: World, request: str) -> tuple[Volume, Any]:
    """Return a volume that the request can be made for, and its data."""
    volume = world.create()
    pattern = world.fill(volume)
    if request == "delete_snapshot":
        world.manager.create_snapshot(volume.id, name="old")
    return world.get(volume), pattern


def check_whole(world: World, before: Volume, pattern: Any) -> None:
    """Every record agrees with the storage, nothing is at work, and nothing is left over."""
    rows = world.rows()
    assert rows["reservations"] == []
    sizes = 0
    for volume in rows["volumes"]:
        assert volume.operation == {}
        assert volume.status in (VolumeStatus.AVAILABLE, VolumeStatus.ERROR)
        if volume.status is VolumeStatus.ERROR:
            assert "was interrupted" in volume.status_reason
        assert world.driver.volume_exists(volume)
        world.check(volume, replace(pattern, size_bytes=volume.size_bytes) if volume.id == before.id else EMPTY)
        sizes += volume.size_bytes
    if not rows["volumes"] and world.driver.volume_exists(before):
        # Unmanaged: it is as it was.
        world.check(before, pattern)
        sizes += before.size_bytes
    assert world.provisioned() == sizes
    hidden = [name for name in world.driver._objects._pools["p"] if name.startswith(".")]  # type: ignore[attr-defined]
    recorded = [f".snapshot-volume-{each.id}" for volume in rows["volumes"] for each in volume.snapshots]
    assert hidden == recorded


class _Empty:
    size_bytes = SIZE

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


EMPTY: Any = _Empty()


@pytest.fixture(autouse=True)
def _plain_check(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = World.check

    def check(self: World, volume: Volume, pattern: Any) -> None:
        if pattern is EMPTY:
            with self.driver.open_volume(volume, "rb") as handle:
                assert handle.read(volume.size_bytes) == bytes(volume.size_bytes)
        else:
            plain(self, volume, pattern)

    monkeypatch.setattr(World, "check", check)


# --- the record ---------------------------------------------------------------------------------


@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_request_at_work_is_on_record_and_alone(typed: World, request_name: str) -> None:
    volume, pattern = prepared(typed, request_name)
    call = DRIVER_CALLS[request_name]
    typed.driver.faults.add(f"{call}@1:hang")
    thread = threading.Thread(target=REQUESTS[request_name], args=(typed.manager, volume))
    typed.driver.calls.clear()
    thread.start()
    until(lambda: call in [method for method, _ in typed.driver.calls])
    (busy,) = (each for each in typed.rows()["volumes"] if each.operation)
    assert busy.operation["name"] == request_name
    assert busy.operation["process"] == OWN.facts()
    another = manager_of(typed, process=OWN)
    for name, other in REQUESTS.items():
        if name in ("create", "delete_snapshot"):
            continue
        for manager in (typed.manager, another, manager_of(typed)):
            with pytest.raises(errors.OperationInProgress) as caught:
                other(manager, busy)
            assert request_name in caught.value.message
            assert str(OWN.pid) in caught.value.message
    with pytest.raises(errors.OperationInProgress):
        another.attach(busy.id, instance="vm", mountpoint="")
    assert typed.manager.recover() == another.recover() == []
    # What is only recorded can be changed all the same, and stays.
    typed.manager.change(busy.id, name="renamed", metadata={"a": "1"}, remove_metadata=())
    let_go(typed.driver, lambda: not thread.is_alive())
    check_whole(typed, volume, pattern)
    for left in typed.rows()["volumes"]:
        if left.id == busy.id:
            assert (left.name, left.metadata) == ("renamed", {"a": "1"})


def test_the_time_of_a_request_covers_its_calls() -> None:
    world = World(driver_timeout_seconds=7.0, driver_retries=2, driver_retry_delay_seconds=1.0)
    backend = world.backends.get("one")
    assert longest_seconds(backend, "create_volume") >= 3 * 7.0 * 3
    assert longest_seconds(backend, "create_volume", "delete_volume") > longest_seconds(backend, "create_volume")
    world.driver.close()


@pytest.mark.parametrize(
    "record", [{"name": "x"}, {"until": "soon"}, {"process": 5, "until": 7}, {"process": {"pid": "x"}, "arguments": []}]
)
def test_a_damaged_record_of_a_request_is_read_as_far_as_it_goes(world: World, record: dict[str, Any]) -> None:
    operation = Operation.of(replace(world.record(), operation=record))
    assert operation is not None
    assert operation.process is None
    assert operation.until is None


# --- death at any point -------------------------------------------------------------------------


@pytest.mark.parametrize("fail_at", range(1, 5))
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_process_that_dies_before_any_transaction(typed: World, request_name: str, fail_at: int) -> None:
    volume, pattern = prepared(typed, request_name)
    dying = manager_of(typed, DyingStore(typed.store, fail_at=fail_at))
    with contextlib.suppress(InjectedFailure):
        REQUESTS[request_name](dying, volume)
    typed.manager.recover()
    check_whole(typed, volume, pattern)
    assert typed.manager.recover() == []
    assert request_name != "delete" or fail_at == 1 or not typed.driver.volume_exists(volume)


@pytest.mark.parametrize("fail_at", range(1, 5))
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_transaction_that_is_committed_and_reported_as_failed(typed: World, request_name: str, fail_at: int) -> None:
    volume, pattern = prepared(typed, request_name)
    manager = manager_of(typed, FailingStore(typed.store, fail_at=fail_at, when=When.AFTER), OWN)
    with contextlib.suppress(InjectedFailure):
        REQUESTS[request_name](manager, volume)
    manager.recover()
    check_whole(typed, volume, pattern)


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_process_that_dies_at_its_call(typed: World, request_name: str, is_after: bool) -> None:
    """Whoever ends it may die as well, as often as it likes."""
    volume, pattern = prepared(typed, request_name)
    kill_at(typed, DRIVER_CALLS[request_name], is_after=is_after)
    with pytest.raises(Killed):
        REQUESTS[request_name](manager_of(typed), volume)
    (busy,) = (each for each in typed.rows()["volumes"] if each.operation)
    assert busy.operation["name"] == request_name
    for fail_at in range(1, 4):
        manager_of(typed, DyingStore(typed.store, fail_at=fail_at)).recover()
    typed.manager.recover()
    check_whole(typed, volume, pattern)
    rows = {each.id: each for each in typed.rows()["volumes"]}
    final = rows.get(volume.id)
    match request_name:
        case "create":
            assert len(rows) == 2
        case "delete":
            assert final is None
        case "extend":
            assert final is not None
            assert final.size_bytes == 2 * SIZE
        case "create_snapshot":
            assert final is not None
            assert [each.name for each in final.snapshots] == ["mine"]
        case "delete_snapshot":
            assert final is not None
            assert final.snapshots == ()
        case _:
            assert final is not None
            assert final.status is VolumeStatus.ERROR


def kill_at(world: World, call: str, *, is_after: bool) -> None:
    """End the process at its next call of that method: before its effect, or after it."""
    backend = world.backends.get("one")
    real = getattr(backend, call)

    def die(*args: Any, **options: Any) -> None:
        delattr(backend, call)
        if is_after:
            real(*args, **options)
        raise Killed

    setattr(backend, call, die)


@pytest.mark.parametrize("other", ["delete", "extend", "create_snapshot", "attach", "unmanage", "retype"])
@pytest.mark.parametrize("request_name", ["create", "extend", "create_snapshot", "delete_snapshot"])
def test_the_next_request_ends_what_a_dead_process_left(typed: World, request_name: str, other: str) -> None:
    volume, _ = prepared(typed, request_name)
    kill_at(typed, DRIVER_CALLS[request_name], is_after=False)
    with pytest.raises(Killed):
        REQUESTS[request_name](manager_of(typed), volume)
    (busy,) = (each for each in typed.rows()["volumes"] if each.operation)
    if other == "attach":
        assert typed.manager.attach(busy.id, instance="vm", mountpoint="").status is VolumeStatus.IN_USE
    elif request_name == "create_snapshot" and other in ("delete", "unmanage"):
        with pytest.raises(errors.VolumeHasSnapshots):
            REQUESTS[other](typed.manager, busy)
    else:
        REQUESTS[other](typed.manager, busy)
    assert [each for each in typed.rows()["volumes"] if each.operation] == []
    assert typed.rows()["reservations"] == []


def test_an_extension_that_died_is_asked_for_again(world: World) -> None:
    volume, pattern = prepared(world, "extend")
    kill_at(world, "extend_volume", is_after=True)
    with pytest.raises(Killed):
        manager_of(world).extend(volume.id, 2 * SIZE)
    assert world.manager.extend(volume.id, 2 * SIZE).size_bytes == 2 * SIZE
    check_whole(world, volume, pattern)


# --- who is at work -----------------------------------------------------------------------------


def test_a_process_that_nobody_can_see_has_its_time(world: World) -> None:
    volume, pattern = prepared(world, "extend")
    kill_at(world, "extend_volume", is_after=False)
    with pytest.raises(Killed):
        manager_of(world, process=FAR).extend(volume.id, 2 * SIZE)
    assert world.manager.recover() == []
    with pytest.raises(errors.OperationInProgress, match="of there"):
        world.manager.delete(volume.id)
    late = world.store._clock() + timedelta(seconds=longest_seconds(world.backends.get("one"), "extend_volume") * 5)
    world.store._clock = lambda: late
    (ended,) = world.manager.recover()
    assert ended.size_bytes == 2 * SIZE
    check_whole(world, volume, pattern)


@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_process_that_wakes_up_after_its_time_changes_nothing(
    typed: World, request_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, pattern = prepared(typed, request_name)
    asleep = manager_of(typed, process=FAR)
    clock = typed.store._clock
    later = clock() + timedelta(days=1)

    def sleep(held: Any) -> None:
        monkeypatch.undo()
        typed.store._clock = lambda: later
        typed.manager.recover()
        raise errors.StoreConflict(kind="volume", id=held.volume.id)

    before = typed.rows()["volumes"]
    monkeypatch.setattr("volmig.manager.volumes.operations.Held.check", sleep)
    with pytest.raises(errors.StoreConflict):
        REQUESTS[request_name](asleep, volume)
    assert typed.rows()["volumes"] != before
    monkeypatch.setattr(World, "check", lambda *_: None)
    check_whole(typed, volume, pattern)


def test_a_request_whose_time_is_over_does_not_act(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = world.create()
    now = iter([0.0, 1e9, 1e9, 1e9])
    monkeypatch.setattr("volmig.manager.volumes.operations.boottime_seconds", lambda: next(now))
    world.driver.calls.clear()
    with pytest.raises(errors.StoreConflict):
        world.manager.delete(volume.id)
    assert "delete_volume" not in [method for method, _ in world.driver.calls]


def test_two_that_end_a_request_do_it_once(world: World) -> None:
    volume, pattern = prepared(world, "extend")
    kill_at(world, "extend_volume", is_after=False)
    with pytest.raises(Killed):
        manager_of(world).extend(volume.id, 2 * SIZE)
    world.driver.calls.clear()
    world.driver.faults.add("extend_volume:delay=0.05")
    ended: list[Volume] = []
    managers = [manager_of(world, process=OWN) for _ in range(4)]
    threads = [threading.Thread(target=lambda each=each: ended.extend(each.recover())) for each in managers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.id for each in ended] == [volume.id]
    assert [method for method, _ in world.driver.calls].count("extend_volume") == 1
    check_whole(world, volume, pattern)


# --- what cannot be done now --------------------------------------------------------------------


@pytest.mark.parametrize("request_name", ["create", "delete", "extend", "create_snapshot", "delete_snapshot"])
def test_a_backend_that_is_down_is_waited_for(typed: World, request_name: str) -> None:
    volume, pattern = prepared(typed, request_name)
    kill_at(typed, DRIVER_CALLS[request_name], is_after=False)
    with pytest.raises(Killed):
        REQUESTS[request_name](manager_of(typed), volume)
    typed.driver.down_reason = "the array is off"
    for _ in range(2):
        assert typed.manager.recover() == []
        (busy,) = (each for each in typed.rows()["volumes"] if each.operation)
        assert busy.operation["name"] == request_name
        with pytest.raises(errors.BackendDown):
            typed.manager.attach(busy.id, instance="vm", mountpoint="")
    typed.driver.down_reason = ""
    assert len(typed.manager.recover()) == 1
    check_whole(typed, volume, pattern)


def test_a_creation_that_cannot_be_repeated_is_undone(world: World) -> None:
    kill_at(world, "create_volume", is_after=False)
    with pytest.raises(Killed):
        manager_of(world).create(world.record())
    world.driver.faults.add("create_volume:fail=disk-full")
    assert len(world.manager.recover()) == 1
    world.assert_nothing_there()


def test_an_extension_that_no_longer_fits_leaves_the_volume_as_it_was(world: World) -> None:
    volume, pattern = prepared(world, "extend")
    kill_at(world, "extend_volume", is_after=False)
    with pytest.raises(Killed):
        manager_of(world).extend(volume.id, 2 * SIZE)
    world.driver.faults.add("extend_volume:fail=disk-full")
    world.manager.recover()
    assert world.get(volume).size_bytes == SIZE
    check_whole(world, volume, pattern)


# --- snapshots, types, records ------------------------------------------------------------------


def test_a_snapshot_that_fails_leaves_no_trace(world: World) -> None:
    volume, pattern = prepared(world, "create_snapshot")
    world.driver.faults.add("create_snapshot:fail_after")
    with pytest.raises(errors.DriverFailed):
        world.manager.create_snapshot(volume.id, name="")
    check_whole(world, volume, pattern)
    assert world.get(volume).snapshots == ()


def test_a_snapshot_that_cannot_be_taken_back_at_once_is_taken_back_later(world: World) -> None:
    volume, pattern = prepared(world, "create_snapshot")
    world.driver.faults.add("create_snapshot:fail_after")
    world.driver.faults.add("delete_snapshot:fail")
    with pytest.raises(errors.DriverFailed, match="create_snapshot"):
        world.manager.create_snapshot(volume.id, name="")
    assert world.get(volume).status is VolumeStatus.SNAPSHOTTING
    world.driver.faults.clear()
    world.manager.recover()
    check_whole(world, volume, pattern)
    assert world.get(volume).snapshots == ()


def test_a_snapshot_that_may_come_yet_is_taken_back_when_it_must_be_over() -> None:
    world = World(driver_timeout_seconds=0.1)
    volume, pattern = prepared(world, "create_snapshot")
    world.driver.faults.add("create_snapshot@1:hang")
    with pytest.raises(errors.DriverTimeout):
        world.manager.create_snapshot(volume.id, name="")
    with pytest.raises(errors.OperationInProgress):
        world.manager.delete(volume.id)
    world.driver.faults.release()
    until(lambda: len(world.manager.recover()) == 1)
    assert world.get(volume).snapshots == ()
    check_whole(world, volume, pattern)
    world.driver.close()


def test_snapshots_are_listed_and_deleted(world: World) -> None:
    volume, pattern = prepared(world, "create_snapshot")
    one, two = (world.manager.create_snapshot(volume.id, name=name) for name in ("one", "two"))
    assert world.get(volume).snapshots == (one, two)
    with pytest.raises(errors.RequestInvalid, match=two.id):
        world.manager.delete_snapshot(volume.id, "another")
    world.manager.delete_snapshot(volume.id, one.id)
    assert world.get(volume).snapshots == (two,)
    world.driver.faults.add("delete_snapshot@1:fail")
    with pytest.raises(errors.DriverFailed):
        world.manager.delete_snapshot(volume.id, two.id)
    assert world.get(volume).snapshots == (two,)
    assert world.get(volume).status is VolumeStatus.AVAILABLE
    world.manager.delete_snapshot(volume.id, two.id)
    check_whole(world, volume, pattern)
    world.manager.delete(volume.id)
    world.assert_nothing_there()


def test_snapshots_that_the_driver_does_not_make(world: World) -> None:
    volume = world.change(world.create(), migration_id="some-migration", snapshots=(Snapshot(id="s"),))
    world.driver.capabilities = frozenset()
    for request in (
        lambda: world.manager.create_snapshot(volume.id, name=""),
        lambda: world.manager.delete_snapshot(volume.id, "s"),
    ):
        with pytest.raises(errors.UnsupportedOperation, match="snapshots"):
            request()
    assert world.settled == []
    assert world.get(volume) == volume


def test_retype(typed: World) -> None:
    volume, pattern = prepared(typed, "retype")
    assert typed.manager.retype(volume.id, "fast").volume_type == "fast"
    changes = typed.get(volume).version
    typed.manager.retype(volume.id, "fast")
    assert typed.get(volume).version == changes
    with pytest.raises(errors.UnsupportedOperation, match="slow") as caught:
        typed.manager.retype(volume.id, "slow")
    assert "migrate" in caught.value.hint
    for unfit in ("", "a\nb", "x" * 256, None):
        with pytest.raises(errors.RequestInvalid):
            typed.manager.retype(volume.id, unfit)  # type: ignore[arg-type]
    assert typed.get(volume).volume_type == "fast"
    check_whole(typed, volume, pattern)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("retype:fail=storage-busy", VolumeStatus.AVAILABLE),
        ("retype:fail=unsupported-operation", VolumeStatus.AVAILABLE),
        ("retype:fail", VolumeStatus.ERROR),
        ("retype:nonsense", VolumeStatus.ERROR),
    ],
)
def test_a_change_of_type_that_fails(world: World, fault: str, status: VolumeStatus) -> None:
    volume = world.create()
    world.driver.faults.add(fault)
    with pytest.raises(errors.VolmigError):
        world.manager.retype(volume.id, "fast")
    now = world.get(volume)
    assert (now.status, now.volume_type, now.operation) == (status, None, {})
    assert ("'fast'" in now.status_reason) is (status is VolumeStatus.ERROR)


def test_change(world: World) -> None:
    volume = world.change(world.create(), migration_id="some-migration", metadata={"a": "1", "b": "2"})
    changed = world.manager.change(volume.id, name="new", metadata={"b": "3", "c": "4"}, remove_metadata=["a", "z"])
    assert (changed.name, changed.metadata) == ("new", {"b": "3", "c": "4"})
    assert world.manager.change(volume.id, name=None, metadata={}, remove_metadata=["b"]).metadata == {"c": "4"}
    assert world.get(volume).name == "new"
    assert world.settled == []
    for name, metadata in (("a\nb", {}), (None, {"": "x"}), (None, {"a": 1}), ("x" * 256, {}), (7, {})):
        with pytest.raises(errors.RequestInvalid):
            world.manager.change(volume.id, name=name, metadata=metadata, remove_metadata=())  # type: ignore[arg-type]
    assert world.get(volume).metadata == {"c": "4"}


def test_changes_at_once_are_all_kept(world: World) -> None:
    volume = world.create()

    def change(number: int) -> None:
        for each in range(10):
            key = f"{number}-{each}"
            world.manager.change(volume.id, name=None, metadata={key: "x"}, remove_metadata=())
            world.manager.attach(volume.id, instance=key, mountpoint="")

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = world.get(volume)
    assert len(now.metadata) == 80
    assert {attachment.instance for attachment in now.attachments} == set(now.metadata)


# --- what a volume leaves -----------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "is_due"), [(Phase.SUCCESS, True), (Phase.ERROR, False), (Phase.CANCELLED, False)])
def test_old_storage_of_a_deleted_volume_is_not_kept_any_longer(world: World, phase: Phase, is_due: bool) -> None:
    """What a driver's call may make yet is still looked for when that call must be over."""
    volume = world.create()
    migration = Migration(
        id="m",
        volume_id=volume.id,
        source="here@one#q",
        destination=volume.host,
        destination_id="copy",
        method=Method.BLOCK,
        phase=phase,
    )
    later = world.store._clock() + timedelta(days=1)
    with world.store.writing() as transaction:
        transaction.add_migration(migration)
        transaction.add_retired(
            RetiredObject(
                id="r",
                migration_id="m",
                volume_id=volume.id,
                host="here@one#q",
                name_id="copy",
                size_bytes=SIZE,
                delete_after=later,
            )
        )
    world.manager.delete(volume.id)
    with world.store.reading() as view:
        due = view.list_retired(due_at=view.now())
        assert len(view.list_retired()) == 1
    assert [retired.id for retired in due] == (["r"] if is_due else [])
