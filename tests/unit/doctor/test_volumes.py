"""What can be wrong with a volume, and what settles it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.unit.doctor.support import add_migration, codes, findings, gone_process, mend, serious
from tests.unit.engine.world import DESTINATION, KINDS, SOURCE
from volmig.manager.processes import ProcessIdentity
from volmig.model import MigrationStatus, Phase, VolumeStatus


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_found_where_all_is_well(make_world, kind):
    world = make_world(kind=kind)
    kept = world.create()
    moved = world.engine.migrate(world.create(name="moved").id, DESTINATION).result()
    copied = world.engine.migrate(world.create(name="copied").id, DESTINATION, force_host_copy=True).result()
    world.engine.attach_volume(kept.id, instance="vm")
    assert findings(world) == ()
    assert {volume.host for volume in (moved, copied)} == {DESTINATION}


@pytest.mark.parametrize("kind", KINDS)
def test_missing_object_is_critical_and_settled_by_putting_it_back(make_world, kind):
    world = make_world(kind=kind)
    volume = world.create()
    migration = add_migration(world, volume, Phase.CANCELLED)
    data = world.path(volume).read_bytes()
    world.path(volume).unlink()
    [found] = findings(world)
    assert (found.code, found.severity, found.safe) == ("volume-missing", "critical", False)
    assert found.places == (SOURCE, DESTINATION)
    assert migration.id in found.explanation
    assert found.command == f"volmig volume show {volume.id}"
    world.path(volume).write_bytes(data)
    assert findings(world) == ()


def test_missing_object_of_an_adopted_volume(make_world):
    world = make_world()
    (world.pool("left") / "disk one.img").write_bytes(b"x" * 4096)
    volume = world.engine.manage_volume(str(world.pool("left") / "disk one.img"))
    assert findings(world) == ()
    (world.pool("left") / "disk one.img").rename(world.pool("left") / "renamed.img")
    missing, stranger = findings(world)
    assert (missing.code, missing.what) == ("volume-missing", volume.id)
    assert "disk one.img" in missing.explanation
    assert (stranger.code, stranger.what) == ("foreign-object", "renamed.img")


def test_enlarged_object_is_recorded_by_the_command(make_world):
    world = make_world()
    volume = world.create()
    with world.path(volume).open("ab") as file:
        file.write(b"more" * 1000)
    size = world.path(volume).stat().st_size
    [found] = findings(world)
    assert (found.code, found.severity) == ("size-differs", "critical")
    assert found.words == ("volume", "extend", volume.id, f"{size}B")
    assert world.engine.extend_volume(volume.id, size).size_bytes == size
    assert world.path(volume).read_bytes().endswith(b"moremore")
    assert findings(world) == ()


def test_truncated_object(make_world):
    world = make_world()
    volume = world.create()
    world.path(volume).write_bytes(b"short")
    [found] = findings(world)
    assert (found.code, found.words) == ("size-differs", ("volume", "show", volume.id))
    assert "cut off" in found.explanation


def test_link_in_place_of_the_object(make_world):
    world = make_world()
    volume = world.create()
    target = world.directory / "elsewhere"
    world.path(volume).rename(target)
    world.path(volume).symlink_to(target)
    [found] = findings(world)
    assert (found.code, found.severity) == ("volume-unusable", "critical")
    assert "symbolic link" in found.explanation


def test_volume_in_doubt_names_both_places_and_recovery_settles_it(make_world):
    world = make_world()
    volume = world.create()
    add_migration(world, volume, error_code="location-doubtful", error_message="It may be in either.")
    world.change(
        volume,
        status=VolumeStatus.ERROR,
        migration_status=MigrationStatus.ERROR,
        status_reason="It may be in either.",
    )
    [found] = findings(world)
    assert (found.code, found.severity, found.safe) == ("location-doubtful", "critical", False)
    assert found.where == f"{SOURCE} or {DESTINATION}"
    assert f"in {SOURCE} it is seen and in {DESTINATION} it is not seen" in found.explanation
    assert found.command == "volmig migration recover"
    assert world.engine.recover() == []
    assert findings(world) == ()


def test_volume_in_error_tells_why_and_what_is_there(make_world):
    world = make_world()
    volume = world.create()
    world.change(volume, status=VolumeStatus.ERROR, status_reason="Extending it failed.")
    [found] = findings(world)
    assert (found.code, found.severity) == ("volume-in-error", "warning")
    assert found.explanation.startswith("Extending it failed. Its object is in")
    with world.path(volume).open("ab") as file:
        file.write(b"x")
    [found] = findings(world)
    assert found.words == ("volume", "extend", volume.id, f"{volume.size_bytes + 1}B")
    world.engine.extend_volume(volume.id, volume.size_bytes + 1)
    assert findings(world) == ()


class TestLocks:
    @pytest.mark.parametrize(
        ("phase", "status", "public"),
        [
            (Phase.CANCELLED, VolumeStatus.AVAILABLE, MigrationStatus.NONE),
            (Phase.ERROR, VolumeStatus.MAINTENANCE, MigrationStatus.ERROR),
        ],
    )
    def test_lock_of_an_ended_migration_is_released(self, make_world, phase, status, public):
        world = make_world()
        volume = world.create()
        migration = add_migration(world, volume, phase, error_message="It failed." if phase is Phase.ERROR else "")
        world.change(volume, migration_id=migration.id, status=status)
        [found] = findings(world)
        assert (found.code, found.severity, found.safe) == ("volume-locked", "critical", True)
        assert found.command == f"volmig doctor --fix --volume {volume.id}"
        [mended] = mend(world)
        assert mended.done, mended.outcome
        now = world.engine.show_volume(volume.id)
        assert (now.status, now.migration_id, now.migration_status) == (VolumeStatus.AVAILABLE, None, public)
        assert now.status_reason == migration.error_message
        assert world.engine.history(migration.id)[-1].subject == "doctor"
        assert findings(world) == ()
        assert mend(world, [found])[0].done

    def test_lock_is_kept_when_the_volume_is_not_where_the_migration_left_it(self, make_world):
        world = make_world()
        volume = world.create()
        migration = add_migration(world, volume, Phase.SUCCESS)
        before = world.change(volume, migration_id=migration.id)
        [found] = findings(world)
        assert (found.safe, found.places) == (False, (SOURCE, DESTINATION))
        assert mend(world) == []
        assert world.engine.show_volume(volume.id) == before

    def test_lock_is_kept_when_the_migration_is_not_on_record(self, make_world):
        world = make_world()
        before = world.change(world.create(), migration_id="8d5a6bd6-17ca-4bd1-8da3-2a5a27c0a6a4")
        [found] = findings(world)
        assert (found.code, found.safe) == ("volume-locked", False)
        assert mend(world) == []
        assert world.engine.show_volume(before.id) == before

    def test_lock_is_kept_when_the_object_has_gone_by_then(self, make_world):
        world = make_world()
        volume = world.create()
        migration = add_migration(world, volume, Phase.CANCELLED)
        before = world.change(volume, migration_id=migration.id)
        found = findings(world)
        world.path(volume).unlink()
        [mended] = mend(world, found)
        assert not mended.done
        assert "not seen whole" in mended.outcome
        assert world.engine.show_volume(volume.id) == before
        assert codes(world) == ["volume-missing", "volume-locked"]

    def test_lock_is_kept_when_its_migration_was_in_doubt(self, make_world):
        world = make_world()
        volume = world.create()
        migration = add_migration(world, volume, error_code="location-doubtful")
        world.change(volume, migration_id=migration.id)
        assert [found.safe for found in findings(world)] == [False]

    def test_maintenance_without_a_migration(self, make_world):
        world = make_world()
        volume = world.create()
        world.change(volume, status=VolumeStatus.MAINTENANCE)
        [found] = findings(world)
        assert (found.code, found.severity, found.safe) == ("volume-stuck", "critical", False)
        add_migration(world, volume, Phase.CANCELLED)
        [found] = findings(world)
        assert found.safe
        assert mend(world)[0].done
        assert world.engine.show_volume(volume.id).status is VolumeStatus.AVAILABLE
        assert findings(world) == ()


class TestRequests:
    def test_status_without_a_request(self, make_world):
        world = make_world()
        volume = world.change(world.create(), status=VolumeStatus.EXTENDING)
        [found] = findings(world)
        assert (found.code, found.what, found.words) == ("request-abandoned", volume.id, ("migration", "recover"))
        assert serious(world, grace_seconds=60) == []

    @pytest.mark.parametrize("is_gone", [True, False])
    def test_request_whose_process_is_gone(self, make_world, is_gone):
        world = make_world()
        process = gone_process() if is_gone else ProcessIdentity.own("here").facts()
        until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        operation = {"id": "1", "name": "extend", "arguments": {}, "process": process, "until": until}
        world.change(world.create(), status=VolumeStatus.EXTENDING, operation=operation)
        assert codes(world, grace_seconds=60) == (["request-abandoned"] if is_gone else [])

    def test_request_of_another_host_whose_time_is_over(self, make_world):
        world = make_world()
        until = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        process = ProcessIdentity.own("there").facts()
        operation = {"id": "1", "name": "retype", "arguments": {}, "process": process, "until": until}
        world.change(world.create(), status=VolumeStatus.RETYPING, operation=operation)
        [found] = findings(world, grace_seconds=60)
        assert "time is over" in found.explanation
