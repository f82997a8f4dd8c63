"""Drivers, users and storage at their worst: nothing that belongs to anybody is deleted, overwritten or lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.test_recovery import moved_with_leftover, take_from
from tests.unit.engine.world import DESTINATION, MIB, SIZE, SOURCE, World, pattern_of
from tests.unit.waiting import LONG, let_go, until
from volmig import Engine, errors
from volmig.drivers.base import VolumeUpdate
from volmig.migration.steps import CutOver, RetireSource, VerifyCopy
from volmig.model import Migration, Phase, Reservation, Volume, VolumeStatus
from volmig.store.base import WriteTransaction
from volmig.testing import patterns

MakeWorld = Callable[..., World]

SHORT = 0.2
"""Seconds that a driver gets for an answer, where it hangs."""
SLOW = 4 * MIB
STRANGE = b"not a volume of ours" * 100


def driver_of(world: World, backend: str) -> Any:
    return world.engine._backends.get(backend).driver


def move(world: World, volume: Volume, host: str, **options: Any) -> Migration:
    return world.engine.migrate(volume.id, host, force_host_copy=True, **options).wait(LONG)


def adopt(world: World, name: str = "disk.img") -> Volume:
    """Return a volume that was an image of the user, with its own name and the pattern as its data."""
    target = world.pool("left") / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"")
    os.truncate(target, SIZE)
    volume = world.engine.manage_volume(name, host=SOURCE, name="data", project_id="owner", metadata={"key": "value"})
    patterns.fill(target, pattern_of(volume))
    return volume


def begin(engine: Engine, volume: Volume, **options: Any) -> Any:
    handle = engine.migrate(volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=SLOW, **options)
    until(lambda: handle.status().stage == "copy" and handle.status().bytes_done > 0)
    return handle


def no_calls_of(backend: str) -> bool:
    return not any(thread.name.startswith(f"volmig-{backend}-") for thread in threading.enumerate())


# --- calls that take effect late ----------------------------------------------------------------


def test_a_late_deletion_does_not_hit_the_volume_that_came_back(make_world: MakeWorld) -> None:
    world = make_world(kind="path", left={"driver_timeout_seconds": SHORT})
    volume = world.create()
    driver = world.fake("left")
    driver.faults.add("delete_object@1:hang")
    assert move(world, volume, DESTINATION).phase is Phase.SUCCESS
    # Another process deletes it, and knows nothing of the call that hangs here.
    other, _ = world.open_engine()
    other.recover()
    assert world.rows()["retired"] == []
    assert move(world, volume, SOURCE).phase is Phase.SUCCESS
    assert world.objects("left") == [volume.backend_name]
    let_go(driver, lambda: no_calls_of("left"))
    world.assert_at(volume, SOURCE, Phase.SUCCESS)


@pytest.mark.parametrize("adopted", [False, True])
def test_a_way_back_that_ends_late_is_found_by_recover(make_world: MakeWorld, adopted: bool) -> None:
    world = make_world(kind="path", right={"driver_migrate_timeout_seconds": SHORT})
    volume = adopt(world) if adopted else world.create()
    driver = world.fake("right")
    world.fake("left").faults.add("migrate_volume@1:fail_after")
    driver.faults.add("migrate_volume@1:hang")
    final = world.engine.migrate(volume.id, DESTINATION).wait(LONG)
    assert final.error_code == "location-doubtful"
    assert world.engine.show_volume(volume.id).status is VolumeStatus.ERROR
    assert world.objects("left") == []
    let_go(driver, lambda: no_calls_of("right"))
    world.engine.recover()
    now = world.assert_at(volume, SOURCE, Phase.ERROR)
    assert now.status_reason == ""


@pytest.mark.parametrize("adopted", [False, True])
def test_a_way_back_that_is_reported_as_failed_is_seen(make_world: MakeWorld, adopted: bool) -> None:
    world = make_world(kind="path")
    volume = adopt(world) if adopted else world.create()
    for name in ("left", "right"):
        world.fake(name).faults.add("migrate_volume@1:fail_after")
    final = world.engine.migrate(volume.id, DESTINATION).wait(LONG)
    assert final.error_code == "driver-failed"
    world.assert_at(volume, SOURCE, Phase.ERROR)


def test_a_volume_that_a_paused_worker_moves_after_all_is_found_by_recover(make_world: MakeWorld) -> None:
    """Another worker has ended the migration in doubt by then."""
    world = make_world(kind="path", store="sqlite")
    volume = world.create()
    driver = world.fake("left")
    driver.faults.add("migrate_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION)
    until(lambda: "migrate_volume" in [name for name, _ in driver.calls])
    with world.store.writing() as transaction:
        transaction.request_cancel(handle.id, requested_by="someone")
    take_from(world, handle.id)
    other, _ = world.open_engine()
    ended = other.run_migration(handle.id).wait(LONG)
    # What is seen at its source could leave it at any moment, with what is written there until then.
    assert (ended.phase, ended.error_code) == (Phase.ERROR, "location-doubtful")
    other.recover()
    assert world.engine.show_volume(volume.id).status is VolumeStatus.ERROR
    let_go(driver, lambda: no_calls_of("left"))
    assert world.objects("left") == []
    other.recover()
    world.assert_at(volume, DESTINATION, Phase.ERROR)
    other.recover()
    world.assert_at(volume, DESTINATION, Phase.ERROR)


def test_a_late_creation_does_not_take_the_copy_of_the_next_worker_with_it(make_world: MakeWorld) -> None:
    """What is made after its time is deleted later on; that must not be what another worker has made meanwhile."""
    world = make_world(kind="path", store="sqlite", right={"driver_timeout_seconds": 1.0})
    volume = world.create()
    stranger = world.pool("right") / volume.backend_name
    stranger.parent.mkdir(parents=True, exist_ok=True)
    stranger.write_bytes(STRANGE)  # so that the copy keeps the name that it was made under
    driver = world.fake("right")
    driver.faults.add("create_volume@1:hang")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    until(lambda: "create_volume" in [name for name, _ in driver.calls])
    take_from(world, handle.id)
    other, _ = world.open_engine()
    assert other.run_migration(handle.id).wait(LONG).phase is Phase.SUCCESS
    until(lambda: handle._owned is not None and handle._owned.ended)
    let_go(driver, lambda: no_calls_of("right"))
    stranger.unlink()
    assert len(world.objects("right")) == 2
    until(lambda: not other.recover() and not world.rows()["retired"])
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def made_later(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let the destination accept a creation, say nothing in time, and carry it out when nobody waits any more."""
    due: list[Path] = []

    def accept(volume: Volume) -> VolumeUpdate | None:
        due.append(world.pool("right") / volume.backend_name)
        raise errors.DriverTimeout(backend="right", method="create_volume", seconds="0.2")

    monkeypatch.setattr(driver_of(world, "right"), "create_volume", accept)
    return due


@pytest.mark.parametrize("by_migration", [False, True])
def test_what_the_storage_makes_after_all_is_deleted(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, by_migration: bool
) -> None:
    world = make_world(kind="file", right={"driver_timeout_seconds": SHORT})
    volume = world.create()
    due = made_later(world, monkeypatch)
    if by_migration:
        world.assert_failed(volume, move(world, volume, DESTINATION), "driver-timeout", late_call=True)
    else:
        with pytest.raises(errors.DriverTimeout):
            world.engine.create_volume(host=DESTINATION, size_bytes=SIZE)
    (path,) = due
    path.write_bytes(bytes(SIZE))

    def is_gone() -> bool:
        world.engine.recover()
        return not path.exists()

    until(is_gone)
    assert world.rows()["retired"] == []
    assert world.objects("left") == [volume.backend_name]


# --- what belongs to others ---------------------------------------------------------------------


def test_a_stranger_under_the_old_name_is_not_deleted(make_world: MakeWorld) -> None:
    """The user clears up by hand what volmig could not delete, and puts something else there."""
    world = make_world(kind="path")
    volume, retired = moved_with_leftover(world)
    assert retired.identity
    old = world.pool("left") / volume.backend_name
    world.fake("left").faults.clear()
    old.rename(world.directory / "kept-so-that-its-inode-is-not-reused")
    old.write_bytes(STRANGE)
    world.engine.recover()
    assert old.read_bytes() == STRANGE
    assert world.rows()["retired"] == []


def test_what_was_left_is_deleted_although_the_volume_came_back_beside_it(make_world: MakeWorld) -> None:
    world = make_world(kind="path")
    volume, _ = moved_with_leftover(world)
    world.fake("left").faults.clear()
    assert move(world, volume, SOURCE).phase is Phase.SUCCESS
    world.engine.recover()
    world.assert_at(volume, SOURCE, Phase.SUCCESS)


@pytest.mark.parametrize("force_host_copy", [False, True])
def test_a_name_that_is_taken_at_the_destination(make_world: MakeWorld, force_host_copy: bool) -> None:
    """A backup beside the destination's volumes is no obstacle, and no doubt."""
    world = make_world(kind="file")
    volume = world.create()
    backup = world.pool("right") / volume.backend_name
    backup.write_bytes(STRANGE)
    now = world.engine.migrate(volume.id, DESTINATION, force_host_copy=force_host_copy).result(LONG)
    assert now.backend_name != volume.backend_name
    assert backup.read_bytes() == STRANGE
    patterns.check(world.path(now), pattern_of(volume))
    backup.unlink()
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_undoing_spares_a_stranger_that_has_the_final_name(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(kind="file")
    volume = world.create()
    backup = world.pool("right") / volume.backend_name
    backup.write_bytes(STRANGE)

    def busy(*_: object) -> None:
        raise errors.StoreBusy(database="the store", seconds=1)

    monkeypatch.setattr(CutOver, "commit", busy)
    final = move(world, volume, DESTINATION)
    assert (final.phase, final.error_code) == (Phase.ERROR, "store-busy")
    assert backup.read_bytes() == STRANGE
    assert world.objects("right") == [backup.name]
    backup.unlink()
    world.assert_at(volume, SOURCE, Phase.ERROR)


def test_a_volume_that_was_given_up_in_doubt_keeps_its_old_storage(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data is lost at the destination right after the commit; what is left of it is the source."""
    world = make_world(kind="file")
    volume = world.create()
    run = RetireSource.run

    def lose_it(step: RetireSource, state: Any) -> Any:
        (world.pool("right") / volume.backend_name).unlink(missing_ok=True)
        return run(step, state)

    monkeypatch.setattr(RetireSource, "run", lose_it)
    assert move(world, volume, DESTINATION).error_code == "location-doubtful"
    world.engine.recover()
    world.engine.unmanage_volume(volume.id)
    world.engine.recover()
    patterns.check(world.pool("left") / volume.backend_name, pattern_of(volume))
    again = world.engine.manage_volume(volume.backend_name, host=SOURCE)
    world.engine.recover()
    patterns.check(world.path(again), pattern_of(volume))
    assert world.rows()["retired"] == []


# --- requests in between ------------------------------------------------------------------------


@contextmanager
def another_migration_right_after(world: World, engine: Engine, volume: Volume) -> Iterator[list[Any]]:
    """Begin a migration by another engine in the moment after the first one has given way to a request."""
    other, _ = world.open_engine(user="another")
    gate = engine._volumes._lifecycle._gate
    settle, second = gate._settle, []

    def settle_and_lose(present: Volume, operation: str) -> None:
        settle(present, operation)
        if not second:
            second.append(begin(other, volume))

    gate._settle = settle_and_lose
    yield second
    gate._settle = settle


REQUESTS: dict[str, Callable[[Engine, Volume], object]] = {
    "delete": lambda engine, volume: engine.delete_volume(volume.id),
    "unmanage": lambda engine, volume: engine.unmanage_volume(volume.id),
    "extend": lambda engine, volume: engine.extend_volume(volume.id, 3 * MIB),
    "attach": lambda engine, volume: engine.attach_volume(volume.id, instance="vm"),
}


@pytest.mark.parametrize("operation", REQUESTS)
def test_a_migration_that_begins_in_between_gives_way_too(make_world: MakeWorld, operation: str) -> None:
    world = make_world(kind="file", store="sqlite")
    volume = world.create(size_bytes=2 * MIB)
    first = begin(world.engine, volume)
    with another_migration_right_after(world, world.engine, volume) as second:
        REQUESTS[operation](world.engine, volume)
    assert first.wait(LONG).phase is Phase.CANCELLED
    assert second[0].wait(LONG).phase is Phase.CANCELLED
    rows = world.rows()
    assert rows["reservations"] == rows["retired"] == []
    assert world.objects("right") == []
    expected = {"delete": [], "unmanage": [], "extend": ["available"], "attach": ["in-use"]}[operation]
    assert [each.status for each in rows["volumes"]] == expected
    assert world.objects("left") == ([] if operation == "delete" else [volume.backend_name])
    if operation == "extend":
        assert rows["volumes"][0].size_bytes == world.path(volume).stat().st_size == 3 * MIB


@pytest.mark.parametrize(("size_bytes", "refusal"), [(5, errors.SizeTooSmall), (2**60, errors.DestinationTooSmall)])
def test_a_refused_extension_ends_no_migration(
    make_world: MakeWorld, size_bytes: int, refusal: type[errors.VolmigError]
) -> None:
    world = make_world(kind="path")
    volume = world.create(size_bytes=2 * MIB)
    handle = begin(world.engine, volume)
    with pytest.raises(refusal):
        world.engine.extend_volume(volume.id, size_bytes)
    assert handle.status().cancel_requested_by == ""
    handle.result(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_an_extension_that_a_killed_process_left_is_ended_by_the_next(make_world: MakeWorld) -> None:
    world = make_world(kind="file")
    volume = world.create()
    grown = Reservation(id=f"extend-{volume.id}", host=SOURCE, size_bytes=SIZE)
    with world.store.writing() as transaction:
        transaction.reserve(grown, limit_bytes=MIB)
    world.change(volume, status=VolumeStatus.EXTENDING)
    os.truncate(world.path(volume), 2 * SIZE)
    now = world.engine.extend_volume(volume.id, 2 * SIZE)
    assert (now.size_bytes, now.status) == (2 * SIZE, VolumeStatus.AVAILABLE)
    assert world.rows()["reservations"] == []


def test_a_deletion_is_refused_and_changes_nothing_while_the_storage_is_not_there(make_world: MakeWorld) -> None:
    world = make_world(kind="file")
    volume = world.create()
    left = world.pool("left")
    left.rename(world.directory / "unplugged")
    left.mkdir()
    with pytest.raises(errors.BackendDown):
        world.engine.delete_volume(volume.id)
    assert world.engine.show_volume(volume.id).status is VolumeStatus.AVAILABLE
    assert list(left.iterdir()) == []
    left.rmdir()
    (world.directory / "unplugged").rename(left)
    assert move(world, volume, DESTINATION).phase is Phase.SUCCESS


# --- sources that are written to ----------------------------------------------------------------


def forge(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"LOST")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_openly(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"LOST")


@pytest.mark.parametrize("change", [forge, write_openly])
@pytest.mark.parametrize("after_verification", [False, True])
def test_a_write_to_the_source_is_never_lost(
    make_world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    after_verification: bool,
) -> None:
    world = make_world(kind="file")
    volume = world.create()
    source, run = world.path(volume), VerifyCopy.run
    # The times of a file go in steps of up to 10 ms: the last write must lie further back.
    os.utime(source, ns=(10**18, 10**18))
    time.sleep(0.02)

    def meddle(step: VerifyCopy, state: Any) -> Any:
        if after_verification:
            outcome = run(step, state)
            change(source)
            return outcome
        change(source)
        return run(step, state)

    monkeypatch.setattr(VerifyCopy, "run", meddle)
    final = move(world, volume, DESTINATION)
    assert final.error_code == "source-changed"
    assert source.read_bytes()[:4] == b"LOST"
    assert world.engine.show_volume(volume.id).host == SOURCE
    assert world.objects("right") == []


# --- drivers that lie ---------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def raising(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


LIES: dict[str, tuple[Callable[[], Any], str]] = {
    "an empty name": (lambda: {"_name_id": ""}, "driver-contract-broken"),
    "a name beyond any length": (lambda: {"_name_id": "x" * 300}, "driver-contract-broken"),
    "a name with a NUL": (lambda: {"_name_id": "a\0b"}, "driver-contract-broken"),
    "no text": (lambda: {"provider_location": "\udc80"}, "driver-contract-broken"),
    "a generator": (lambda: (each for each in ()), "driver-contract-broken"),
    "too much": (lambda: {"metadata": {"key": "v" * 100_000}}, "driver-contract-broken"),
    "a name of nothing": (lambda: {"_name_id": "does-not-exist"}, "volume-missing"),
    "the end of the thread": (raising(SystemExit(3)), "driver-failed"),
    "an interrupt": (raising(KeyboardInterrupt()), "driver-failed"),
    "an error of the core": (raising(errors.LeaseLost(migration="x", owner="y", epoch=1)), "driver-failed"),
    "an error without text": (raising(Unprintable()), "driver-failed"),
    "an error of two lines": (raising(RuntimeError("link\nlost")), "driver-failed"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_driver_that_lies_about_the_copy(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    answer, code = LIES[lie]
    world = make_world(kind="file", store="sqlite")
    volume = world.create()
    monkeypatch.setattr(driver_of(world, "right"), "update_migrated_volume", lambda *_: answer())
    final = move(world, volume, DESTINATION)
    assert "\n" not in final.error_message
    world.assert_failed(volume, final, code)


def test_a_copy_that_the_driver_hid_is_kept_on_record(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(kind="file")
    volume = world.create()

    def hide(_context: object, _volume: Volume, copy: Volume, _status: str) -> VolumeUpdate:
        found = world.pool("right") / copy.backend_name
        if found.exists():
            found.rename(world.pool("right") / "LUN_0001")
        raise RuntimeError("link lost")

    monkeypatch.setattr(driver_of(world, "right"), "update_migrated_volume", hide)
    final = move(world, volume, DESTINATION)
    assert (final.phase, final.error_code) == (Phase.ERROR, "driver-failed")
    assert volume.id in {retired.volume_id for retired in world.rows()["retired"]}
    patterns.check(world.path(volume), pattern_of(volume))
    assert world.engine.show_volume(volume.id).status is VolumeStatus.AVAILABLE


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((True, None), "volume-missing"),
        (None, "driver-contract-broken"),
        ([True, None], "driver-contract-broken"),
        ((False, {}), "driver-contract-broken"),
    ],
)
def test_a_driver_that_lies_about_its_own_move(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, answer: Any, code: str
) -> None:
    world = make_world(kind="file")
    volume = world.create()
    monkeypatch.setattr(driver_of(world, "left"), "migrate_volume", lambda *_: answer)
    world.assert_failed(volume, world.engine.migrate(volume.id, DESTINATION).wait(LONG), code)


# --- records out of order -----------------------------------------------------------------------


def test_a_migration_without_its_volume_is_ended(make_world: MakeWorld) -> None:
    world = make_world(kind="file")
    volume = world.create()
    queued = world.engine.request_migration(volume.id, DESTINATION)
    with world.store.writing() as transaction:
        transaction.remove_volume(transaction.get_volume(volume.id))
    world.engine.recover()
    final = world.engine.migration(queued.id).wait(LONG)
    assert (final.phase, final.error_code, final.owner) == (Phase.ERROR, "volume-not-found", "")
    assert world.rows()["reservations"] == []
    assert world.engine.recover() == []


def test_a_takeover_uses_a_new_object(make_world: MakeWorld) -> None:
    """The first worker may only be paused, with a write on its way to the object that it knew."""
    world = make_world(kind="file", store="sqlite")
    volume = world.create(size_bytes=2 * MIB)
    handle = begin(world.engine, volume)
    known = handle.status().destination_id
    stale = os.open(world.pool("right") / f"volume-{known}", os.O_WRONLY)
    try:
        take_from(world, handle.id)
        other, _ = world.open_engine()
        final = other.run_migration(handle.id).wait(LONG)
        assert final.phase is Phase.SUCCESS
        assert final.destination_id != known
        os.pwrite(stale, b"stale data" * 1000, 0)
    finally:
        os.close(stale)
    until(lambda: handle._owned.ended)
    assert isinstance(handle._owned.error, errors.LeaseLost)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_a_store_that_stays_locked_leaves_the_migration_to_the_next(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(kind="file", migration={"lease_seconds": 2.0})
    volume = world.create(size_bytes=2 * MIB)
    handle = begin(world.engine, volume)
    locked = threading.Event()
    locked.set()
    writing = world.store.writing

    @contextmanager
    def busy() -> Iterator[WriteTransaction]:
        if locked.is_set():
            raise errors.StoreBusy(database="the store", seconds=1)
        with writing() as transaction:
            yield transaction

    monkeypatch.setattr(world.store, "writing", busy)
    with pytest.raises(errors.VolmigError):
        handle.wait(LONG)
    assert world.path(volume).exists()
    locked.clear()
    until(world.engine.recover)
    world.engine.migration(handle.id).wait(LONG)
    world.assert_at(volume, DESTINATION, Phase.SUCCESS)


def test_closing_while_a_migration_is_asked_for(make_world: MakeWorld) -> None:
    """It is refused and leaves nothing, or it is run to its end."""
    world = make_world(kind="path", store="sqlite")
    volume = world.create()
    for number in range(12):
        engine, _ = world.open_engine()
        host = DESTINATION if world.engine.show_volume(volume.id).host == SOURCE else SOURCE
        closer = threading.Timer(number * 0.0005, engine.close)
        closer.start()
        with suppress(errors.EngineClosed):
            engine.migrate(volume.id, host, force_host_copy=True)
        closer.join()
        assert all(migration.phase.is_final for migration in world.rows()["migrations"])
    now = world.engine.show_volume(volume.id)
    world.assert_at(volume, now.host, Phase.SUCCESS if world.rows()["migrations"] else Phase.CANCELLED)
